"""Fourier readings: pure waves, shifts, Parseval, and the split of logits into waves of a + b."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics.observe.compose import joined
from dynamics.observe.seldom import seldom
from dynamics.statistics import first_step, frequency_power, frequency_share, gini, sum_components, top_frequency
from dynamics.types import View


def test_parseval(x64, key):
    weights = jax.random.normal(key, (4, 11))
    centred = weights - weights.mean(1, keepdims=True)
    np.testing.assert_allclose(2 * frequency_power(weights).sum(1) / 11, (centred**2).sum(1), rtol=1e-12)


def test_share_and_frequency_ignore_shift_scale_and_constant(x64, key):
    weights = jax.random.normal(key, (6, 13))
    moved = 3 * jnp.roll(weights, 5, axis=1) + 7
    np.testing.assert_allclose(frequency_share(moved), frequency_share(weights), rtol=1e-9)
    small = jnp.asarray(1e-25 * weights, jnp.float32)
    np.testing.assert_allclose(frequency_share(small), frequency_share(weights), rtol=1e-5)
    np.testing.assert_array_equal(top_frequency(moved), top_frequency(weights))
    wave = jnp.cos(2 * jnp.pi * 4 * jnp.arange(13) / 13 + 0.3)
    assert int(top_frequency(wave)) == 4


@pytest.mark.parametrize("p", [1, 2, 7, 8])
def test_power_is_that_of_a_transform(p, x64, key):
    weights = 3 + jax.random.normal(key, (2, 3, p))
    expected = np.abs(np.fft.rfft(weights)[..., 1:]) ** 2
    np.testing.assert_allclose(frequency_power(weights), expected, atol=1e-12)


def test_power_on_a_large_mean_and_in_half_precision():
    wave = jnp.cos(2 * jnp.pi * 3 * jnp.arange(113) / 113)
    assert float(frequency_share(wave + 1e4)) == pytest.approx(1, abs=1e-6)
    assert float(frequency_share(jnp.tile(wave, 6).astype(jnp.float16))) == pytest.approx(1, abs=1e-4)
    assert np.isnan(frequency_share(jnp.full(113, 0.3)))


def test_the_power_of_complex_weights_is_refused(as_users_meet_it):
    with pytest.raises(ValueError, match=r"^weights: got complex64; allowed: real"):
        frequency_power(jnp.ones(5) + 1j)


def test_gini(precision):
    assert float(gini(jnp.ones(8))) == pytest.approx(0, abs=1e-6)
    assert float(gini(jnp.zeros(8).at[3].set(2.0))) == pytest.approx(1 - 1 / 8, rel=1e-6)
    values = np.random.default_rng(0).random(9)
    pairs = np.abs(values[:, None] - values).mean() / (2 * values.mean())  # mean absolute difference, the definition
    assert float(gini(jnp.asarray(values))) == pytest.approx(pairs, rel=1e-5)


def test_sum_components_keep_waves_of_the_sum(x64, key):
    p, c = 7, 4
    a, b = jnp.arange(p)[:, None], jnp.arange(p)[None, :]
    wave = jnp.cos(2 * jnp.pi * 2 * (a + b) / p + 0.4)[..., None] * jax.random.normal(key, (c,))
    other = jnp.sin(2 * jnp.pi * 3 * (a + b) / p)[..., None] * jnp.ones(c)
    difference = jnp.cos(2 * jnp.pi * 2 * (a - b) / p)[..., None] * jnp.ones(c)
    restricted, excluded = sum_components(wave + other + difference, jnp.array([2]))
    np.testing.assert_allclose(restricted, wave, atol=1e-12)
    np.testing.assert_allclose(excluded, other + difference, atol=1e-12)


def test_all_frequencies_restore_a_function_of_the_sum(x64, key):
    p = 5
    table = jax.random.normal(key, (p, 3))
    logits = table[(jnp.arange(p)[:, None] + jnp.arange(p)) % p]
    restricted, _ = sum_components(logits, jnp.arange(1, p // 2 + 1))
    np.testing.assert_allclose(restricted, logits, atol=1e-12)


def test_first_step_reads_each_curve():
    step = [0, 1, 10, 100]
    curves = np.array([[1, 1, np.nan], [0.5, 1, np.nan], [0.1, 1, 0.2], [0.0, 1, np.nan]])
    np.testing.assert_array_equal(first_step(step, curves, 0.5), [1, np.inf, 10])
    np.testing.assert_array_equal(first_step(step, 1 - curves, 0.9, "above"), [10, np.inf, np.inf])
    with pytest.raises(Exception, match="direction"):
        first_step(step, curves, 0.5, "up")


def test_seldom_leaves_the_costly_reading_out_between():
    both = joined(lambda s, d: {"cheap": s}, seldom(lambda s, d: {"costly": s + 1}, 3))

    def body(memory, s):
        return both.update(memory, View(s, None))

    _, values = jax.lax.scan(body, both.init(View(jnp.zeros(()), None)), jnp.arange(7.0))
    np.testing.assert_array_equal(values["cheap"], np.arange(7.0))
    np.testing.assert_array_equal(values["costly"], [1, np.nan, np.nan, 4, np.nan, np.nan, 7])
    clash = joined(lambda s, d: {"a": s}, seldom(lambda s, d: {"a": s}, 2))
    view = View(jnp.float32(1.0), None)
    with pytest.raises(ValueError, match="observable: got the reading 'a' twice; allowed: once"):
        clash.update(clash.init(view), view)
