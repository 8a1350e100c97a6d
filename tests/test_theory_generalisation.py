"""Random-matrix spectra and the linear student's errors: moments, limits, and agreement with simulated draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics.statistics import mean_interval, power_law
from dynamics.theory.generalisation import final_error, linear_student
from dynamics.theory.spectra import marchenko_pastur, marchenko_pastur_density


@pytest.mark.parametrize("a", [0.3, 1.0, 2.5])
def test_marchenko_pastur_moments(precision, a):
    """Mass 1, E l = a, E l^2 = a (1 + a), and E 1/l = 1/(a - 1) where that is finite."""
    law, eps = marchenko_pastur(a), np.finfo(precision).eps
    assert law.eigenvalues.dtype == precision
    np.testing.assert_allclose(law.mean(jnp.ones(1000), 1.0), 1.0, atol=50 * eps)
    np.testing.assert_allclose(law.mean(law.eigenvalues), a, rtol=50 * eps)
    np.testing.assert_allclose(law.mean(law.eigenvalues**2), a * (1 + a), rtol=50 * eps)
    if a > 1:
        np.testing.assert_allclose(law.mean(1 / law.eigenvalues), 1 / (a - 1), rtol=50 * eps)


def test_density_and_quadrature_agree(x64):
    """The density integrates to what the quadrature weighs (trapezium on 2e5 points, square-root edges: 1e-5)."""
    grid = jnp.linspace(1e-6, 6.0, 200_000)
    law = marchenko_pastur(0.5)
    direct = jnp.trapezoid(marchenko_pastur_density(grid, 0.5) * jnp.exp(-grid), grid)
    np.testing.assert_allclose(direct, law.mean(jnp.exp(-law.eigenvalues)), atol=1e-5)


def simulated(key, n, a, noise, eta, steps):
    """Train and test error of one draw, by the eigenvectors of its own data."""
    kx, kw, ke = jax.random.split(key, 3)
    x = jax.random.normal(kx, (int(a * n), n)) / jnp.sqrt(n)
    teacher, e = jax.random.normal(kw, (n,)), jnp.sqrt(noise) * jax.random.normal(ke, (int(a * n),))
    y = x @ teacher + e
    values, modes = jnp.linalg.eigh(x.T @ x)
    growth = 1 - (1 - eta * values) ** steps[:, None]
    w = (growth * (modes.T @ (x.T @ y)) / jnp.maximum(values, 1e-9)) @ modes.T
    return jnp.mean((w @ x.T - y) ** 2, -1), jnp.mean((w - teacher) ** 2, -1) + noise


@pytest.mark.slow
@pytest.mark.parametrize("a", [0.5, 2.0])
def test_errors_match_simulated_students(x64, key, a):
    """60 draws at N = 100: within 4 standard errors plus the 1/N correction."""
    steps = jnp.array([0, 3, 30, 300])
    draw = jax.jit(jax.vmap(lambda key: simulated(key, 100, a, 0.2, 0.1, steps)))
    theory = linear_student(steps * 0.1, a, noise=0.2, learning_rate=0.1)
    for measured, predicted in zip(draw(jax.random.split(key, 60)), theory):
        error = 4 * np.std(measured, axis=0) / np.sqrt(60) + 0.03 * predicted
        assert np.all(np.abs(np.mean(measured, axis=0) - predicted) < error)


def test_student_limits(x64):
    """t = 0, t -> infinity, and gradient descent -> flow with an error linear in eta."""
    start = linear_student(0.0, 0.7, signal=1.5, start=0.5, noise=0.3)
    np.testing.assert_allclose([start.test, start.train], [2.3, 2.3], rtol=1e-10)
    for a in (0.5, 2.0):
        options = dict(signal=1.0, start=0.5, noise=0.3)
        np.testing.assert_allclose(linear_student(1e5, a, **options).test, final_error(a, **options), rtol=1e-9)
    flow = linear_student(3.0, 0.7, noise=0.2).test
    gaps = [abs(linear_student(3.0, 0.7, noise=0.2, learning_rate=eta).test - flow) for eta in (0.02, 0.01)]
    assert 1.9 < gaps[0] / gaps[1] < 2.1


@pytest.mark.slow
def test_students_modes_solve_their_flow(x64):
    """Each mode decays as b' = -l b and gathers noise as v' = 1 - l v: an adaptive ODE solver, to 1e-6."""
    import diffrax

    law, times = marchenko_pastur(0.7, 200), jnp.array([0.0, 0.5, 5.0, 50.0])
    modes = jnp.stack([jnp.ones(200), jnp.zeros(200)])
    path = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, rate: jnp.stack([-rate * y[0], 1 - rate * y[1]])),
        diffrax.Tsit5(), 0.0, 50.0, None, modes, law.eigenvalues, saveat=diffrax.SaveAt(ts=times),
        stepsize_controller=diffrax.PIDController(rtol=1e-10, atol=1e-12), max_steps=100_000,
    ).ys  # fmt: skip
    assert path is not None
    kept, gathered = path[:, 0], path[:, 1]  # [T, nodes]
    test = 0.2 + law.mean(1.5 * kept**2 + 0.2 * law.eigenvalues * gathered**2, at_zero=1.5)
    train = law.mean((1.5 * law.eigenvalues + 0.2) * kept**2) / 0.7
    theory = linear_student(times, 0.7, start=0.5, noise=0.2, nodes=200)
    np.testing.assert_allclose(theory.test, test, atol=1e-6)
    np.testing.assert_allclose(theory.train, train, atol=1e-6)


def test_student_in_single_precision():
    """Against float64: 100 eps of the sum over 1000 nodes."""
    options = dict(start=0.5, noise=0.2, learning_rate=0.1)
    got = linear_student(np.array([0.0, 3.0, 30.0]), 0.7, **options)
    assert got.test.dtype == jnp.float32
    with jax.enable_x64(True):
        exact = linear_student(np.array([0.0, 3.0, 30.0]), 0.7, **options)
    for low, high in zip(got, exact):
        np.testing.assert_allclose(low, high, rtol=100 * float(np.finfo(np.float32).eps))


def test_student_is_differentiable_and_vmappable(x64):
    def early(noise):
        return linear_student(5.0, 0.8, noise=noise).test

    np.testing.assert_allclose(jax.grad(early)(0.2), (early(0.2 + 1e-6) - early(0.2 - 1e-6)) / 2e-6, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(early)(jnp.array([0.2, 0.4]))[1], early(0.4), rtol=1e-12)


def test_oscillating_steps_keep_their_sign(x64):
    """With eta l > 1 a mode overshoots: (1 - eta l)^k alternates."""
    one = linear_student(0.5 * 3, 1e-6, noise=0.0, learning_rate=0.5, nodes=10).train
    np.testing.assert_allclose(one, (1 - 0.5) ** 6, rtol=1e-2)  # a -> 0: every l on positive mass is 1


def test_power_law_fit_leaves_out_diverged_seeds_and_covers_the_truth():
    x = np.array([1.0, 2.0, 4.0, 8.0])
    rng = np.random.default_rng(0)
    y = 3.0 * x**-1.5 * np.exp(0.01 * rng.standard_normal((6, 4)))
    y[2, 1] = np.nan
    fit = power_law(x, y, share=0.8)
    assert (fit.used, fit.seeds) == (5, 6)
    assert fit.low < -1.5 < fit.high
    assert fit.high - fit.low < 0.05
    assert abs(fit.prefactor - 3.0) < 0.1
    assert np.isnan(power_law(x, np.full((2, 4), np.inf)).exponent)
    few = power_law(x, y)  # 5 of 6 seeds are fewer than 90 %
    assert np.isnan(few.exponent)
    assert few.used == 5
    with pytest.raises(ValueError, match="share"):
        power_law(x, y, share=0.0)
    with pytest.raises(ValueError, match="x"):
        power_law([1.0, 2.0], y[:, :2])
    with pytest.raises(ValueError, match="y"):
        power_law(x, y[:, :3])


def test_corrected_power_law_finds_the_exponent_that_is_approached():
    """Exact on its own form; of ``sqrt(x^3 + a x^2)`` the pure fit misses a/2x, the corrected one (a/x)^2 only."""
    x = np.array([64.0, 128.0, 256.0, 512.0])
    for r in (0.5, 1.0):
        fit = power_law(x, [3 * x**-0.7 * np.exp(4 * x**-r)] * 2, correction=r)
        np.testing.assert_allclose([fit.exponent, fit.prefactor], [-0.7, 3.0], rtol=1e-9)
    two = [np.sqrt(x**3 + 60 * x**2)] * 2
    orders = {}
    for name, r in (("pure", None), ("corrected", 1.0)):
        near, far = (
            power_law(at, [np.sqrt(at**3 + 60 * at**2)] * 2, correction=r).exponent - 1.5 for at in (8 * x, 32 * x)
        )
        orders[name] = np.log(near / far) / np.log(4)
    np.testing.assert_allclose([orders["pure"], orders["corrected"]], [1.0, 2.0], atol=0.1)
    assert abs(power_law(x, two, correction=1.0).exponent - 1.5) < abs(power_law(x, two).exponent - 1.5) / 3
    assert power_law(x[1:], [x[1:] ** 2] * 2, correction=1.0).exponent == pytest.approx(2.0)  # as many as unknowns
    assert power_law(x, two[0], correction=1.0).exponent == power_law(x, two[0]).exponent  # one seed: what is noise?
    for wrong in (0.0, -1.0, np.inf):
        with pytest.raises(ValueError, match=r"correction: got .*; allowed: None"):
            power_law(x, two, correction=wrong)


@pytest.mark.parametrize("q", [0.0, 0.35, -0.35])
@pytest.mark.parametrize("scatter", [0.2, 3.0])
def test_interval_of_the_corrected_exponent_holds_it(q, scatter):
    """Four seeds, 1000 trials: 0.95 less 4 * 0.007 at least; more where scatter hides q, but never by a wider
    estimate than of the pure power alone with a third unknown."""
    rng, x = np.random.default_rng(2), np.array([64.0, 128.0, 256.0, 512.0])
    noise = scatter * rng.standard_normal((1000, 4, 4)) / x**0.5
    fits = [power_law(x, x**0.5 * np.exp(q * 64 / x + one), correction=1.0) for one in noise]
    assert np.mean([fit.low < 0.5 < fit.high for fit in fits]) > 0.92
    spread = np.std([fit.exponent for fit in fits])
    rows = np.stack([np.log(x), np.ones_like(x), 1 / x], 1)
    free = scatter * np.linalg.inv(rows.T @ np.diag(x) @ rows)[0, 0] ** 0.5 / 2  # q unbounded: no unbiased fit has less
    assert spread < (1.08 if scatter < 1 else 0.6) * free


def test_mean_interval_has_its_coverage():
    """95 % of intervals hold the mean: 2000 trials, so 0.95 +- 4 * 0.005."""
    rng = np.random.default_rng(1)
    low, high = np.array([mean_interval(row) for row in rng.standard_normal((2000, 5))]).T
    assert 0.93 < np.mean((low < 0) & (high > 0)) < 0.97
