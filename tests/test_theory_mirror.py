"""The law of the weights against closed forms and Monte Carlo; the projection against its optimality conditions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import lambertw

from dynamics.geometry import power, signed_entropy
from dynamics.theory.mirror import gaussian_nodes, law_of, projection, proximal, weight_law

H, P = gaussian_nodes()


@pytest.mark.parametrize(("alpha", "variance"), [(0.1, 1.0), (0.4, 1.0), (0.7, 0.25)])
def test_the_euclidean_law_is_the_closed_form(alpha, variance):
    law, noise = weight_law(power(2), alpha, H, P, target_variance=variance), alpha * variance / (1 - alpha)
    np.testing.assert_allclose(law.c, alpha / (1 - alpha), rtol=1e-9)
    np.testing.assert_allclose(law.mean(lambda w, w0: w**2), 1 - alpha + noise, rtol=1e-8)
    np.testing.assert_allclose(law.mean(lambda w, w0: (w - w0) ** 2), alpha + noise, rtol=1e-8)
    np.testing.assert_allclose(law.mean(lambda w, w0: (w - w0) * w), noise, rtol=1e-8)
    assert law.residual < 1e-12


def cubic(shifted, c):
    """``w|w| + c w = t``, by the quadratic formula."""
    return np.sign(shifted) * (np.sqrt(c**2 + 4 * np.abs(shifted)) - c) / 2


def entropic(shifted, c):
    """``ln w + c w = t`` for w > 0, by Lambert's W."""
    return np.real(lambertw(c * np.exp(shifted))) / c


CASES = {
    "cubic": (power(3), cubic, lambda w: w * np.abs(w), lambda z: z, H),
    "entropy": (signed_entropy(), entropic, np.log, lambda z: np.exp(0.5 * z), np.exp(0.5 * H)),
}


@pytest.mark.parametrize(
    ("name", "alpha"), [("cubic", 0.4), ("entropy", 0.1), pytest.param("entropy", 0.4, marks=pytest.mark.slow)]
)
def test_the_law_solves_its_equations_on_independent_samples(name, alpha):
    """Both equations and ``E[dtheta w] = c s^2`` by Monte Carlo, with the proximal map in closed form."""
    potential, solve, gradient, start, nodes = CASES[name]
    law, s2 = weight_law(potential, alpha, nodes, P, target_variance=0.5), 0.5
    rng = np.random.default_rng(0)
    h, w0 = rng.normal(size=400_000), start(rng.normal(size=400_000))
    w = solve(gradient(w0) + law.b * h, law.c)
    total = s2 + np.mean(w**2)
    error = 5 * np.std(h * w) / 400_000**0.5  # of E h w; that of E w^2 is of the same size
    np.testing.assert_allclose(np.mean(h * w), np.sqrt(alpha * total), atol=error)
    np.testing.assert_allclose(law.c, law.b * np.sqrt(alpha / total), rtol=0.02)
    np.testing.assert_allclose(law.mean(lambda w, w0: (gradient(w) - gradient(w0)) * w), law.c * s2, rtol=2e-5)


def test_the_numbers_of_the_first_derivation():
    """Of another program: fsolve on 701^2 nodes."""
    for alpha, square, step, move in ((0.1, 1.0768, 0.2989, 0.2819), (0.4, 1.3330, 2.7397, 1.1996)):
        law = weight_law(power(3), alpha, H, P)
        np.testing.assert_allclose(law.mean(lambda w, w0: w**2), square, rtol=1e-4)
        dtheta = law.mean(lambda w, w0: (w * np.abs(w) - w0 * np.abs(w0)) ** 2)
        np.testing.assert_allclose((dtheta, law.mean(lambda w, w0: (w - w0) ** 2)), (step, move), rtol=2e-4)


def test_few_samples_leave_a_pure_gaussian_in_the_dual():
    """``c = O(alpha)``, ``b^2/alpha -> s^2 + E w_0^2`` over ``(E 1/phi'')^2``, which is 1 for |w|^2/2."""
    law = weight_law(power(2), 1e-4, H, P)
    np.testing.assert_allclose(law.b**2 / 1e-4, 2.0, rtol=1e-3)
    assert law.c < 2e-4
    pure = law_of(power(2), law.b, 0.0, H, P)
    np.testing.assert_allclose(pure.mean(lambda w, w0: (w - w0) ** 2), law.b**2, rtol=1e-9)


def test_the_law_does_not_know_the_unit_of_the_weights():
    """In units u the dual of |w|^3/3 is u^2 as large: b goes with u^2, c with u."""
    laws = [weight_law(power(3), 0.1, unit * H, P, target_variance=unit**2) for unit in (1.0, 1e3)]
    np.testing.assert_allclose([laws[1].b / 1e6, laws[1].c / 1e3], [laws[0].b, laws[0].c], rtol=1e-8)


@pytest.mark.parametrize("potential", [power(3), power(1.5), signed_entropy()], ids=["3", "1.5", "entropy"])
def test_the_proximal_map_solves_its_equation(potential, x64):
    side = jnp.where(jnp.arange(400) % 2, 1.0, -1.0)
    shifted = jnp.linspace(-30.0, 30.0, 400)
    for c in (0.0, 1e-3, 1.0, 50.0):
        w = proximal(potential, shifted, c, side)
        np.testing.assert_allclose(potential.gradient(w) + c * w, shifted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("potential", [power(3), signed_entropy()], ids=["3", "entropy"])
def test_the_projection_is_feasible_optimal_and_nearest(potential, key, x64):
    kx, kw, kd = jax.random.split(key, 3)
    x, w0 = jax.random.normal(kx, (6, 20)), jax.random.normal(kw, (20,))
    y = x @ (1.2 * w0)
    found = projection(potential, w0, x, y)
    np.testing.assert_allclose(x @ found.w, y, atol=1e-10)
    np.testing.assert_allclose(potential.gradient(found.w), potential.gradient(w0) + x.T @ found.nu, atol=1e-9)
    null = jnp.linalg.svd(x)[2][6:]
    for d in 1e-2 * jax.random.normal(kd, (20, 14)) @ null * jnp.min(jnp.abs(found.w)):
        assert potential.divergence(found.w + d, w0) > potential.divergence(found.w, w0)


@pytest.mark.usefixtures("as_users_meet_it")
def test_what_the_law_refuses():
    with pytest.raises(ValueError, match=r"alpha: got 1.0; allowed: a number > 0 and < 1"):
        weight_law(power(2), 1.0, H, P)
    with pytest.raises(ValueError, match="target_variance: got -1; allowed: a number >= 0"):
        weight_law(power(2), 0.1, H, P, target_variance=-1)
    with pytest.raises(ValueError, match=r"start: got shape .*; allowed: finite nodes"):
        weight_law(power(2), 0.1, H, P[1:])
    with pytest.raises(ValueError, match=r"alpha: got 0\.1, at which no law is found; allowed: fewer equations"):
        weight_law(signed_entropy(), 0.1, np.zeros(3))  # weights that cannot move
