"""Ranks and norms against their definitions and exact cases."""

import jax
import jax.numpy as jnp
import numpy as np

from dynamics.losses import half_mse
from dynamics.observe import end_to_end, joined, layer_gradients, movement, prefixed, weight_ranks
from dynamics.statistics import effective_rank, isometry_gap, stable_rank, weight_norm
from dynamics.types import Batch, Objective, View


def test_ranks_of_equal_singular_values_count_them(precision):
    values = jnp.array([3.0, 3.0, 3.0, 0.0, 0.0])
    eps = float(jnp.finfo(precision).eps)
    np.testing.assert_allclose(effective_rank(values), 3, rtol=20 * eps)
    np.testing.assert_allclose(stable_rank(values), 3, rtol=20 * eps)
    assert float(effective_rank(jnp.zeros(4))) == 0
    assert float(stable_rank(jnp.zeros(4))) == 0
    assert np.isfinite(effective_rank(jnp.array([1.0, -1e-9])))


def test_ranks_are_invariant_to_scale_and_rotation(x64, key):
    matrix = jax.random.normal(key, (5, 7))
    rotation = jnp.linalg.qr(jax.random.normal(key, (5, 5)))[0]
    for read in (effective_rank, stable_rank):
        a = read(jnp.linalg.svd(matrix, compute_uv=False))
        b = read(jnp.linalg.svd(1e3 * rotation @ matrix, compute_uv=False))
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_every_weight_matrix_is_read_by_its_path(key):
    params = {
        "a": {"w": jax.random.normal(key, (6, 4)), "b": jnp.ones(4)},
        "conv": jax.random.normal(key, (3, 3, 2, 8)),
    }
    _, read = weight_ranks(spectrum=True).update((), View(params, None))
    assert set(read) == {
        f"{kind}/{leaf}" for kind in ("stable_rank", "effective_rank", "singular_values") for leaf in ("a/w", "conv")
    }
    flat = np.asarray(params["conv"]).reshape(18, 8)
    np.testing.assert_allclose(read["singular_values/conv"], np.linalg.svd(flat, compute_uv=False), rtol=1e-5)
    np.testing.assert_allclose(
        read["stable_rank/conv"], np.linalg.norm(flat) ** 2 / np.linalg.norm(flat, 2) ** 2, rtol=1e-5
    )


def test_the_map_of_a_deep_linear_network_is_the_product(x64, key):
    keys = jax.random.split(key, 4)
    params = [jax.random.normal(k, s) for k, s in zip(keys, [(5, 7), (7, 6), (6, 3)])]
    batch = Batch(jax.random.normal(keys[3], (20, 5)), None)
    deep = Objective(lambda p, x: x @ p[0] @ p[1] @ p[2], half_mse)
    _, read = end_to_end(spectrum=True).update((), View(params, batch, deep))
    product = params[0] @ params[1] @ params[2]
    np.testing.assert_allclose(read["singular_values/map"], jnp.linalg.svd(product, compute_uv=False), rtol=1e-10)
    assert float(read["map_residual"]) < 1e-24
    _, bent = end_to_end().update((), View(params, batch, Objective(lambda p, x: (x @ p[0]) ** 2, half_mse)))
    assert float(bent["map_residual"]) > 0.1


def test_movement_compares_with_the_start(precision, key):
    start = {"w": jax.random.normal(key, (3, 4)), "b": jnp.ones(4)}
    observable = prefixed("net", joined(movement(), lambda params, batch: {"zero": jnp.zeros(())}))
    memory = observable.init(View(start, None))
    _, read = observable.update(memory, View(jax.tree.map(lambda leaf: 1.5 * leaf, start), None))
    np.testing.assert_allclose(read["net_weight_change"], 0.5, rtol=1e-6)
    np.testing.assert_allclose(read["net_weight_norm"], 1.5 * weight_norm(start), rtol=1e-6)
    assert float(read["net_zero"]) == 0


def test_isometry_gap_is_that_of_the_gram_matrix(x64, key):
    """``log tr(G)/d - log det(G)/d`` of ``G = X X^T``; 0 for an isometry, unchanged by scale and rotation."""
    x = jax.random.normal(key, (4, 7))
    gram = x @ x.T
    expected = jnp.log(jnp.trace(gram) / 4) - jnp.linalg.slogdet(gram)[1] / 4
    np.testing.assert_allclose(isometry_gap(jnp.linalg.svd(x, compute_uv=False)), expected, rtol=1e-12)
    np.testing.assert_allclose(isometry_gap(jnp.full(5, 3.0)), 0, atol=1e-15)
    assert isometry_gap(jnp.array([1.0, 0.0])) == np.inf
    for size in (1e-25, 1e25):  # squares leave single precision
        found = isometry_gap(jnp.array([size, 2 * size], jnp.float32))
        np.testing.assert_allclose(found, np.log(5 / 2) - np.log(4) / 2, rtol=1e-5)
    half = isometry_gap(jnp.array([300.0, 600.0], jnp.float16))
    np.testing.assert_allclose(half, np.log(5 / 2) - np.log(4) / 2, rtol=1e-5)


def test_layer_gradients_are_those_of_the_whole(key):
    """Squares add up to ``|grad L|^2``."""
    params = {"w": jax.random.normal(key, (3, 4)), "v": jnp.zeros((4, 1))}
    L = Objective(lambda p, x: jnp.tanh(x @ p["w"]) @ p["v"], half_mse)
    batch = Batch(jax.random.normal(key, (5, 3)), jnp.ones((5, 1)))
    _, found = layer_gradients().update((), View(params, batch, L))
    total = sum(value**2 for name, value in found.items() if name.startswith("gradient_norm"))
    np.testing.assert_allclose(total, weight_norm(jax.grad(L)(params, batch)) ** 2, rtol=1e-5)
    assert found["relative_gradient/v"] == 0  # of zeros
    for slope, dtype in ((1e-25, jnp.float32), (300.0, jnp.float16)):  # a square leaves the dtype
        small = Objective.of(lambda p, batch, slope=slope: jnp.sum(slope * p).astype(jnp.float32))
        _, found = layer_gradients().update((), View(jnp.ones(4, dtype), None, small))
        np.testing.assert_allclose([*found.values()], [2 * slope, slope], rtol=1e-3)
