"""The noise scale and the spectra of weights, against exact values, coverage and wrong alternatives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from dynamics import operators
from dynamics.losses import half_mse
from dynamics.statistics import critical_batch, spectral_tail
from dynamics.tasks import digits
from dynamics.types import Batch, Objective


def gaussian_gradients(key, n, mean, spread):
    return mean + spread * jax.random.normal(key, (n, *mean.shape))


def test_noise_scale_covers_its_value():
    """Gaussian gradients with Tr Sigma / |G|^2 = 40 exactly: 95 % intervals hold it in 95 % of 400 draws."""
    mean, spread = jnp.full(20, 0.5), jnp.sqrt(10.0)
    found = jax.vmap(lambda key: critical_batch(gaussian_gradients(key, 200, mean, spread)))(
        jax.random.split(jax.random.key(0), 400)
    )
    inside = (found.low < 40.0) & (found.high > 40.0)
    assert 0.92 < float(jnp.mean(inside)) < 0.98
    assert abs(float(jnp.mean(found.signal)) - 5.0) < 0.05 * 5  # unbiased; |mean|^2 itself has 6
    assert float(jnp.mean((found.low < 2 * 40.0) & (found.high > 2 * 40.0))) < 0.6  # a rival by a factor 2


def test_a_gradient_lost_in_noise_has_no_upper_end(key):
    found = critical_batch(jax.random.normal(key, (50, 30)))
    assert np.isinf(found.high)
    assert float(found.low) > 10


def test_a_gradient_that_is_not_finite_tells_nothing():
    found = critical_batch(jnp.ones((5, 2)).at[0, 0].set(jnp.nan))
    assert np.isnan([found.value, found.low, found.high, found.noise]).all()


def test_complex_gradients_are_pairs_of_real_ones(key):
    g = 1.0 + jax.random.normal(key, (50, 4)) + 1j * jax.random.normal(jax.random.fold_in(key, 1), (50, 4))
    for one, two in zip(critical_batch(g), critical_batch({"re": g.real, "im": g.imag})):
        np.testing.assert_allclose(one, two, rtol=1e-5)


def test_microbatches_tell_the_same(key):
    """Means of 8 samples have an eighth of the noise; the noise scale counts samples."""
    g = gaussian_gradients(key, 8000, jnp.full(20, 0.5), 3.0)
    one, eight = critical_batch(g), critical_batch({"w": g.reshape(1000, 8, 20).mean(1)}, batch_size=8)
    np.testing.assert_allclose(eight.value, one.value, rtol=0.1)
    np.testing.assert_allclose(eight.noise, one.noise, rtol=0.1)


def test_jackknife_is_that_of_the_definition(x64, key):
    """The error in closed form against leaving each gradient out, through the interval."""
    from scipy.special import stdtrit

    g = np.asarray(gaussian_gradients(key, 12, jnp.array([1.0, -2.0]), 0.5))

    def moments(g):
        noise = np.sum((g - g.mean(0)) ** 2) / (len(g) - 1)
        return np.array([noise, np.sum(g.mean(0) ** 2) - noise / len(g)])

    left = np.array([moments(np.delete(g, i, 0)) for i in range(12)])
    cov = 11 / 12 * (left - left.mean(0)).T @ (left - left.mean(0))
    found, (noise, signal) = critical_batch(jnp.asarray(g)), moments(g)
    for end in (found.low, found.high):
        weights = np.array([1.0, -float(end)])
        error = np.sqrt(weights @ cov @ weights)
        np.testing.assert_allclose(abs(noise - float(end) * signal), stdtrit(11, 0.975) * error, rtol=1e-6)


def test_noise_scale_is_the_batch_at_which_a_step_pays_half():
    """f = |w|^2 / 2 with noisy gradients: the best step of batch B gains Delta / (1 + B_noise / B)."""
    w, spread, size = jnp.full(30, 1.0), 2.0, 4  # Tr Sigma / |G|^2 = 120 / 30 = 4
    g = gaussian_gradients(jax.random.key(1), 40_000, w, spread).reshape(-1, size, 30).mean(1)
    rates = jnp.linspace(0, 1, 201)
    gains = jnp.mean(0.5 * jnp.sum(w**2) - 0.5 * jnp.sum((w - rates[:, None, None] * g[None, :2000]) ** 2, -1), -1)
    np.testing.assert_allclose(jnp.max(gains) / (0.5 * jnp.sum(w**2)), 0.5, atol=0.02)


def test_noise_scale_in_the_hessians_metric(x64, key):
    """With curvatures h the best step of batch B gains Delta / (1 + Tr(H Sigma) / (G.HG) / B), by its definition."""
    h, g = jnp.array([1.0, 10.0, 0.1]), gaussian_gradients(key, 50, jnp.array([3.0, 1.0, -2.0]), 1.5)
    found, apart = critical_batch(g, hessian=lambda v: h * v), g - g.mean(0)
    noise = jnp.sum(h * apart**2) / 49
    np.testing.assert_allclose(found.noise, noise, rtol=1e-12)
    np.testing.assert_allclose(found.signal, jnp.sum(h * g.mean(0) ** 2) - noise / 50, rtol=1e-12)
    scaled = critical_batch(jnp.sqrt(h) * g)  # the same inner product
    np.testing.assert_allclose([found.low, found.high], [scaled.low, scaled.high], rtol=1e-9)


@pytest.mark.slow
def test_noise_scale_on_digits_is_the_batch_at_which_a_step_pays_half():
    """The interval of 400 gradients holds the batch that is measured by steps, in 9 of 10 starts; the simple noise
    scale, which takes H for a multiple of the identity, does not."""
    train = digits(500, 10, seed=0, scale="standard").train
    L, data = Objective(lambda p, x: jnp.tanh(x @ p["w"]) @ p["v"], half_mse), Batch(*map(jnp.asarray, train))

    @jax.jit
    def at(key):
        keys = jax.random.split(key, 4)
        p = {"v": jax.random.normal(keys[0], (16, 10)) / 4, "w": jax.random.normal(keys[1], (64, 16)) / 8}
        p = jax.lax.fori_loop(0, 3, lambda _, p: jax.tree.map(lambda w, s: w - 0.1 * s, p, jax.grad(L)(p, data)), p)
        flat, unravel = ravel_pytree(p)
        single = jax.vmap(lambda x, y: ravel_pytree(jax.grad(L)(p, Batch(x[None], y[None])))[0])(*data)
        rows = jax.random.choice(keys[2], 500, (400,))
        found = critical_batch(single[rows], hessian=operators.hessian(L, p, data).matvec)
        rates, size = jnp.geomspace(1e-2, 3.0, 40), 64

        def gains(v):
            return jax.lax.map(lambda rate: L(p, data) - L(unravel(flat - rate * v), data), rates)

        batches = single[jax.random.randint(keys[3], (200, size), 0, 500)].mean(1)
        most, half = jnp.max(gains(single.mean(0))), jnp.max(jnp.mean(jax.lax.map(gains, batches), 0))
        return found, critical_batch(single[rows]), size * (most / half - 1)

    def inside(found, measured):
        return bool(found.low < measured < found.high)

    seen = [at(jax.random.key(seed)) for seed in range(10)]
    assert sum(inside(found, measured) for found, _, measured in seen) >= 9
    assert sum(inside(simple, measured) for _, simple, measured in seen) <= 2


@pytest.mark.parametrize(
    ("bad", "name"),
    [
        ({"gradients": jnp.ones((2, 3))}, "gradients"),
        ({"gradients": jnp.ones(())}, "gradients"),
        ({"gradients": {"a": jnp.ones((4, 3)), "b": jnp.ones((5, 3))}}, "gradients"),
        ({"gradients": jnp.ones((9, 3), complex), "hessian": lambda v: v}, "gradients"),
        ({"gradients": jnp.ones((9, 3)), "batch_size": 0}, "batch_size"),
        ({"gradients": jnp.ones((9, 3)), "share": 1.0}, "share"),
    ],
)
def test_bad_gradients_are_named(bad, name):
    with pytest.raises(ValueError, match=f"^{name}: got"):
        critical_batch(**bad)


def pareto_matrix(rng, exponent, n=200, m=100):
    """A matrix whose eigenvalues ``lambda`` of ``W^T W / n`` are independent draws from ``lambda^-exponent``."""
    values = rng.pareto(exponent - 1, m) + 1
    u, v = frames(n, m)
    return (u * np.sqrt(n * values)) @ v.T


@functools.cache
def frames(n, m):
    return tuple(np.linalg.qr(np.random.default_rng(0).normal(size=(size, m)))[0] for size in (n, m))


@pytest.mark.parametrize("exponent", [2.0, 3.5])
def test_hill_covers_the_exponent_of_a_pareto_tail(exponent):
    found = [spectral_tail(pareto_matrix(np.random.default_rng(i), exponent), tail=60) for i in range(100)]
    assert np.mean([f.low < exponent < f.high for f in found]) >= 0.88
    assert np.mean([f.low < exponent + 1 < f.high for f in found]) < 0.5  # a rival exponent
    free = [spectral_tail(pareto_matrix(np.random.default_rng(i), exponent)) for i in range(30)]
    assert abs(np.median([f.exponent for f in free]) - exponent) < 0.25 * (exponent - 1)


@pytest.mark.parametrize("shape", [(300, 100), (100, 300), (128, 128)])
def test_noise_has_a_bulk_and_no_spikes(shape):
    found = [spectral_tail(0.3 * np.random.default_rng(i).normal(size=shape)) for i in range(60)]
    assert np.mean([f.spikes > 0 for f in found]) < 0.07  # at p = .01
    np.testing.assert_allclose(np.mean([f.sigma for f in found]), 0.3, rtol=0.02)
    assert max(f.bulk_distance for f in found) < 0.06


def test_planted_spikes_are_counted():
    """Beyond the transition, singular value > (N M)^(1/4) sigma, a rank-3 signal shows as three spikes."""
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.normal(size=(size, 3)))[0] for size in (300, 100))
    noise = rng.normal(size=(300, 100))
    assert spectral_tail(noise + 3.0 * 30000**0.25 * u @ v.T).spikes == 3
    assert spectral_tail(noise + 0.5 * 30000**0.25 * u @ v.T).spikes == 0


def test_a_pareto_spectrum_is_no_bulk():
    found = spectral_tail(pareto_matrix(np.random.default_rng(0), 2.0))
    assert found.bulk_distance > 0.2
    assert found.distance < 0.12


def test_a_matrix_of_low_rank_has_no_tail():
    rng = np.random.default_rng(0)
    found = spectral_tail(rng.normal(size=(50, 2)) @ rng.normal(size=(2, 20)))
    assert np.isnan(found.exponent)
    assert (found.tail, found.sigma, found.spikes) == (0, 0.0, 2)
    assert spectral_tail(np.zeros((9, 9))).spikes == 0


@pytest.mark.parametrize(
    ("bad", "name"),
    [
        ({"weight": np.ones(9)}, "weight"),
        ({"weight": np.full((9, 9), 1j)}, "weight"),
        ({"weight": np.full((9, 9), np.nan)}, "weight"),
        ({"weight": np.ones((9, 9)), "tail": 1}, "tail"),
        ({"weight": np.ones((9, 9)), "p": 0.02}, "p"),
    ],
)
def test_bad_spectra_are_named(bad, name):
    with pytest.raises(ValueError, match=f"^{name}: got"):
        spectral_tail(**bad)
