"""What a GPU must not round: kernels, certificates and predictions against the CPU's float64. ``make test-gpu``.

They run on any device; at TF32 (10 bits) each would be off by some 1e-3, and the tests hold 2e-5.
"""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics import evolve, linalg, observe, operators, predict, stax
from dynamics.empirical import empirical_ntk_fn
from dynamics.losses import half_mse
from dynamics.types import Batch, Objective, View

pytestmark = pytest.mark.gpu
ALLOWED = 2e-5  # of the largest entry: float32 sums over some 1000 terms


@contextlib.contextmanager
def exact():
    """The CPU in float64."""
    with jax.default_device(jax.devices("cpu")[0]), jax.enable_x64(True):
        yield


def assert_exact(fn, *args):
    """``fn`` in float32 on the default device against float64 on the CPU."""
    found = jax.tree.map(np.asarray, jax.jit(fn)(*jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), args)))
    with exact():
        expected = jax.tree.map(np.asarray, jax.jit(fn)(*jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), args)))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=ALLOWED * np.abs(other).max())


def drawn(*shape):
    return np.random.default_rng(0).normal(size=shape)


FC = stax.serial(stax.Dense(64), stax.Erf(), stax.Dense(64), stax.Relu(), stax.Dense(3))
CONV = stax.serial(stax.Conv(8, (3, 3), None, "SAME"), stax.Relu(), stax.GlobalAvgPool(), stax.Dense(3))


def weights(model, shape):
    with exact():
        return jax.tree.map(np.asarray, model.init(jax.random.key(0), shape)[1])


@pytest.mark.parametrize(("model", "shape"), [(FC, (200, 500)), (CONV, (10, 8, 8, 3))])
def test_kernels(model, shape):
    x = drawn(*shape)
    assert_exact(lambda x: tuple(model.kernel(x, None, ("nngp", "ntk"))), x)
    assert_exact(lambda p, x: empirical_ntk_fn(model.apply)(x, x[:5], p), weights(model, shape), x[:20])


def test_factors_of_ten_bits_would_be_seen():
    """The same kernel of inputs rounded as TF32 rounds factors."""

    def rounded(x):
        x = jax.lax.reduce_precision(x, 8, 10) if x.dtype == jnp.float32 else x
        return FC.kernel(x, None, "nngp")

    with pytest.raises(AssertionError):
        assert_exact(rounded, drawn(20, 500))


def test_the_lanczos_basis_is_orthonormal_and_its_bounds_hold():
    a = drawn(600, 600)
    a = jnp.asarray(a + a.T, jnp.float32)
    t = jax.jit(lambda v: linalg.tridiagonalize(lambda v: a @ v, v, 60))(jnp.ones(600))
    basis = np.asarray(t.basis)
    np.testing.assert_allclose(basis @ basis.T, np.eye(61), atol=1e-5)
    top = np.linalg.eigvalsh(np.asarray(a, float))[-1]
    bound = jax.jit(lambda v: linalg.extreme_eigenvalues(lambda v: a @ v, v, 60)[0])(drawn(600).astype(np.float32))
    assert bound.value <= top * (1 + 1e-5)
    assert bound.limit >= top * (1 - 1e-5)
    np.testing.assert_allclose(bound.value, top, rtol=1e-4)


def test_curvature_and_training():
    """Sharpness of the dense Hessian; a run's losses."""
    x, y = drawn(100, 20), drawn(100, 3)
    model = stax.serial(stax.Dense(10), stax.Erf(), stax.Dense(3))
    params, L = weights(model, x.shape), Objective(model.apply, half_mse)

    def sharpness(params, x, y):
        one = observe.sharpness(num_matvecs=30)
        view = View(params, Batch(x, y), L)
        return one.update(one.init(view), view)[1]["sharpness"]

    def dense(params, x, y):
        matvec, size, dtype, _ = operators.hessian(L, params, Batch(x, y))
        return jnp.linalg.eigvalsh(jax.vmap(matvec)(jnp.eye(size, dtype=dtype)))[-1]

    with exact():
        expected = float(jax.jit(dense)(params, x, y))
    single = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), (params, x, y))
    np.testing.assert_allclose(jax.jit(sharpness)(*single), expected, rtol=1e-4)
    batch = Batch(*single[1:])
    _, record = evolve.simulate(evolve.gradient_descent(L, 0.2), single[0], batch, train=[observe.loss()], steps=30)
    with exact():
        descent = evolve.gradient_descent(L, 0.2)
        _, truth = evolve.simulate(
            descent, params, Batch(jnp.asarray(x), jnp.asarray(y)), train=[observe.loss()], steps=30
        )
    np.testing.assert_allclose(record.values["loss"], truth.values["loss"], rtol=1e-4)


def test_predictions():
    x, y = drawn(60, 30), drawn(60, 2)

    def at(x, y):
        k = FC.kernel(x, None, "ntk")
        return predict.gradient_descent_mse(k[:50, :50], y[:50], diag_reg=1e-3)(5.0, 0.0, 0.0, k[50:, :50])

    assert_exact(at, x, y)
