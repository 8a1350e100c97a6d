"""Random features and scaling laws: limits, exponents, derivatives, and agreement with simulated draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics.theory import scaling_laws as sl
from dynamics.theory.random_features import random_feature_risk

LAM, C = (np.arange(1, 257.0) ** -power for power in (1.25, 1.6))
TIMES = np.array([0.3, 3.0, 30.0, 300.0])


def test_inverse_laplace_of_known_transforms(precision):
    s, weight = sl.talbot(jnp.asarray(TIMES), 12 if precision == "float32" else 24)
    got = jnp.sum((weight / (s + 0.1)).real, -1)
    np.testing.assert_allclose(got, np.exp(-0.1 * TIMES), atol=2e-6 if precision == "float32" else 1e-12)
    with pytest.raises(ValueError, match="nodes"):
        sl.talbot(jnp.asarray(TIMES), 3)


def test_infinite_size_is_plain_gradient_flow(x64):
    """n, P -> infinity: sum c exp(-2 lam t), with a gap that falls as 1/n."""
    flow = np.sum(C * np.exp(-2 * LAM * TIMES[:, None]), -1)
    np.testing.assert_allclose(sl.feature_loss(TIMES, LAM, C, np.inf).loss, flow, rtol=1e-8)
    for loss in (sl.feature_loss, sl.sample_loss):
        gaps = [np.abs(loss(TIMES, LAM, C, size).loss - flow) for size in (1e6, 2e6)]
        np.testing.assert_allclose(gaps[0] / gaps[1], 2.0, atol=0.05)


def test_response_solves_its_equation(precision):
    s, _ = sl.talbot(jnp.asarray(TIMES), 12)
    r, residual = sl.response(s, jnp.asarray(LAM), 40)
    right = 1 - r / 40 * jnp.sum(LAM / (s[..., None] + LAM * r[..., None]), -1)
    tolerance = 1e-5 if precision == "float32" else 1e-12
    assert np.abs(r - right).max() < tolerance
    assert residual.max() < tolerance


@pytest.mark.slow
def test_dynamics_match_simulated_draws(x64, key):
    """30 draws: within 4 standard errors plus the 1/n correction (2/n relative)."""
    count, modes = 128, len(LAM)

    def features(key):
        m = jax.random.normal(key, (count, modes)) * jnp.sqrt(LAM / count)
        values, u = jnp.linalg.eigh(m @ m.T)
        start = jnp.sqrt(C) * jax.random.rademacher(jax.random.fold_in(key, 1), (modes,))
        seen = u.T @ (m @ start) / jnp.sqrt(values)
        return jnp.sum(start**2) - jnp.sum(seen**2 * (1 - jnp.exp(-2 * values * TIMES[:, None])), -1)

    def samples(key):
        gaussian = jax.random.normal(key, (count, modes))
        u, size, v = jnp.linalg.svd(gaussian * jnp.sqrt(LAM), full_matrices=False)
        target = jnp.sqrt(C / LAM) * jax.random.rademacher(jax.random.fold_in(key, 1), (modes,))
        noise = jnp.sqrt(0.1) * jax.random.normal(jax.random.fold_in(key, 2), (count,))
        w = ((1 - jnp.exp(-(size**2) / count * TIMES[:, None])) * (v @ target + u.T @ noise / size)) @ v
        on_them = jnp.mean(((w - target) @ (gaussian * jnp.sqrt(LAM)).T - noise) ** 2, -1)
        return jnp.sum(LAM * (w - target) ** 2, -1), on_them

    keys = jax.random.split(key, 30)
    of_samples = sl.sample_loss(TIMES, LAM, C, count, 0.1)
    test, train = jax.jit(jax.vmap(samples))(keys)
    for measured, theory in (
        (jax.jit(jax.vmap(features))(keys), sl.feature_loss(TIMES, LAM, C, count)),
        (test, of_samples),
        (train, of_samples._replace(loss=of_samples.train)),
    ):
        error = 4 * np.std(measured, axis=0) / np.sqrt(30) + 2 / count * theory.loss
        assert np.all(np.abs(np.mean(measured, axis=0) - theory.loss) < error)
        assert theory.residual < 1e-9


def test_dynamics_are_differentiable(x64):
    for loss in (sl.feature_loss, sl.sample_loss):

        def late(size, loss=loss):
            return loss(TIMES[2:3], LAM, C, size).loss[0]

        finite = (late(50 + 1e-4) - late(50 - 1e-4)) / 2e-4
        np.testing.assert_allclose(jax.grad(late)(50.0), finite, rtol=1e-5)


@pytest.mark.slow
def test_dynamics_are_vmappable_and_work_in_single_precision(precision):
    """One vmap over sizes equals the loop; float32 with 12 nodes agrees with float64 to the contour's 3.89^-12."""
    nodes, tolerance = (12, 2e-4) if precision == "float32" else (24, 1e-9)
    sizes = jnp.array([40.0, 80.0])
    for loss in (sl.feature_loss, sl.sample_loss):
        many = jax.vmap(lambda size, loss=loss: loss(TIMES, LAM, C, size, nodes=nodes).loss)(sizes)
        assert many.dtype == precision
        with jax.enable_x64(True):
            exact = loss(TIMES, LAM, C, 80.0).loss
        np.testing.assert_allclose(many[1], exact, rtol=tolerance)


def test_exponents_of_the_bottlenecks(x64):
    """Slopes of the theory's own curves approach the stated exponents (4096 modes: finite-size drift below 0.03)."""
    a, b = 1.5, 1.25
    lam, c = sl.power_law_spectrum(4096, a, b)
    predicted = sl.exponents(a, b)
    times = np.array([10.0, 30.0])
    slope = np.diff(np.log(np.sum(c * np.exp(-2 * lam * times[:, None]), -1))) / np.log(3)
    np.testing.assert_allclose(-slope, predicted.time, atol=0.05)
    np.testing.assert_allclose(predicted, (0.4, 0.5, 0.5, 0.5 / 2.25, 1.25 / 2.25))
    with pytest.raises(ValueError, match="a, b"):
        sl.exponents(0.9, 1.0)


def test_features_and_samples_rest_with_different_powers(x64):
    """Where a - 1 > b: the deterministic equivalents' slopes, and least squares on drawn features, say b, not 2b."""
    a, b = 3.2, 1.5
    lam, c = (np.asarray(array) for array in sl.power_law_spectrum(2**16, a, b))
    sizes = np.array([64.0, 256.0])

    def kappa(n):
        low, high = 1e-12, 1e3
        for _ in range(200):
            middle = np.sqrt(low * high)
            low, high = (middle, high) if np.sum(lam / (lam + middle)) > n else (low, middle)
        return low

    features = [np.sum(c * kappa(n) / (lam + kappa(n))) for n in sizes]
    samples = [np.sum(c * (kappa(n) / (lam + kappa(n))) ** 2) for n in sizes]  # 1 - gamma tends to a constant
    predicted = sl.exponents(a, b)
    for rest, exponent in ((features, predicted.size), (samples, predicted.data)):
        assert abs(-np.diff(np.log(rest))[0] / np.log(4) - exponent) < 0.06
    drawn = []
    for n in (64, 256):
        half = np.random.default_rng(0).normal(size=(8, n, 2048)) * np.sqrt(lam[:2048])
        start = np.sqrt(c[:2048])
        left = [start - h.T @ np.linalg.solve(h @ h.T, h @ start) for h in half]
        drawn.append(np.mean(np.sum(np.square(left), -1)))
    assert abs(-np.diff(np.log(drawn))[0] / np.log(4) - predicted.size) < 0.1
    assert predicted.size + 0.5 < min(a - 1, 2 * b)


def test_compute_frontier_is_the_envelope():
    times, sizes = np.geomspace(1, 100, 50), np.array([1.0, 10.0])
    loss = np.stack([times**-1.0 + 0.1, times**-1.0 + 0.01])
    best = sl.compute_frontier(times, sizes, loss, np.array([2.0, 100.0, 1e6]))
    np.testing.assert_allclose(best.loss, [0.6, 0.11, np.inf], rtol=1e-3)
    assert np.isnan(best.size).all()  # two sizes have no middle


def test_the_best_size_balances_time_and_size():
    """Of ``n/C + 1/n``, the loss ``1/t + 1/n`` at ``n t = C``, the least is at ``n = sqrt(C)``."""
    times, sizes = np.geomspace(1e-2, 1e4, 400), np.geomspace(1, 128, 15)
    loss = 1 / times + 1 / sizes[:, None]
    best = sl.compute_frontier(times, sizes, loss, np.array([10.0, 300.0, 1e6]))
    np.testing.assert_allclose(best.size[:2], np.sqrt([10.0, 300.0]), rtol=0.02)
    assert np.isnan(best.size[2])  # at the largest
    np.testing.assert_array_equal(
        sl.compute_frontier(times, sizes[::-1], loss[::-1], np.array([10.0])).size, best.size[:1]
    )


@pytest.mark.slow
@pytest.mark.parametrize(("n", "k"), [(60, 200), (200, 60)])
def test_random_feature_risk_matches_simulation(x64, key, n, k):
    """100 draws of Gaussian features: within 4 standard errors plus 3 %."""
    ridge, noise = 1e-2, 0.05

    def draw(key):
        kf, kp, kv, ke = jax.random.split(key, 4)
        modes = len(LAM)
        x = jax.random.normal(kf, (n, modes)) * jnp.sqrt(LAM)
        test = jax.random.normal(jax.random.fold_in(kf, 1), (500, modes)) * jnp.sqrt(LAM)
        project = jax.random.normal(kp, (modes, k)) / jnp.sqrt(k)
        v = jnp.sqrt(C / LAM) * jax.random.rademacher(kv, (modes,))
        f, ft, y = x @ project, test @ project, x @ v + jnp.sqrt(noise) * jax.random.normal(ke, (n,))
        weights = jnp.linalg.solve(f @ f.T + ridge * jnp.eye(n), y)
        return jnp.mean((ft @ (f.T @ weights) - test @ v) ** 2) + noise, jnp.mean((f @ (f.T @ weights) - y) ** 2)

    measured = jax.jit(jax.vmap(draw))(jax.random.split(key, 100))
    theory = random_feature_risk(LAM, C, n, k, ridge, noise)
    assert theory.residual < 1e-9
    for got, predicted in zip(measured, theory[:2]):
        assert abs(np.mean(got) - predicted) < 4 * np.std(got) / 10 + 0.03 * predicted


def test_many_features_are_kernel_ridge_regression(precision):
    """k -> infinity: kappa solves sum lam/(lam + kappa) + ridge/kappa = n, E = bias/(1 - q/n)."""
    theory = random_feature_risk(LAM, C, 50, 1e7, 0.1, 0.2)
    share = LAM / (LAM + theory.kappa)
    tolerance = 2e-3 if precision == "float32" else 1e-5
    np.testing.assert_allclose(np.sum(share) + 0.1 / theory.kappa, 50, rtol=tolerance)
    risk = (np.sum((1 - share) ** 2 * C) + 0.2) / (1 - np.sum(share**2) / 50)
    np.testing.assert_allclose(theory.test, risk, rtol=tolerance)


def test_modes_of_one_eigenvalue_are_counted(x64):
    """Each mode three times in the sums, or once with multiplicity 3."""
    repeated = random_feature_risk(np.repeat(LAM, 3), np.repeat(C, 3), 50, 200, 0.1, 0.2)
    counted = random_feature_risk(LAM, C, 50, 200, 0.1, 0.2, multiplicities=3.0)
    np.testing.assert_allclose(counted, repeated, rtol=1e-9, atol=1e-12)


def test_random_feature_risk_is_differentiable_and_vmappable(x64):
    def risk(log_ridge):
        return random_feature_risk(LAM, C, 50, 80, jnp.exp(log_ridge)).test

    finite = (risk(-2.0 + 1e-5) - risk(-2.0 - 1e-5)) / 2e-5
    np.testing.assert_allclose(jax.grad(risk)(-2.0), finite, rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(risk)(jnp.array([-3.0, -2.0]))[1], risk(-2.0), rtol=1e-12)
