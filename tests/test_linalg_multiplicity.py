"""Eigenpairs with multiplicity, of zero, poor and tiny spectra, and of half, complex, integer parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics import linalg, observe, operators
from dynamics.losses import half_mse
from dynamics.types import Batch, Objective, View

rng = np.random.default_rng(0)
SPECTRA = {
    "copies": np.repeat(rng.normal(size=12) ** 2, 5),
    "mixed": np.repeat(rng.normal(size=20), rng.integers(1, 6, 20)),
    "cluster": np.concatenate([2 + 1e-2 * rng.normal(size=5), rng.normal(size=55)]),
    "identity": np.ones(60),
    "zero": np.zeros(60),
    "rank 3": np.concatenate([[3.0, 2.0, 1.0], np.zeros(57)]),
    "tiny": 1e-27 * np.concatenate([[3.0, 2.0, 2.0], np.zeros(57)]),
    "one": np.array([2.0]),
    "two": np.array([2.0, 2.0]),
}


OPEN = pytest.mark.xfail(reason="a cluster narrower than 2e-4 of the scale can lose a member; limit is too low")


@functools.partial(jax.jit, static_argnums=(2, 3))
def pairs(a, starts, k, which):
    return jax.vmap(lambda start: linalg.eigenpairs(lambda v: a @ v, start, k, which=which))(starts)


@pytest.mark.parametrize("which", ["largest", "smallest"])
@pytest.mark.parametrize("name", [pytest.param(n, marks=OPEN) if n == "cluster" else n for n in SPECTRA])
def test_eigenvalues_are_counted_with_multiplicity(name, which):
    """Against the sorted spectrum, for random, zero and invariant starts at once (float32, a rotated matrix)."""
    d = SPECTRA[name]
    size, scale, k = len(d), np.abs(d).max(), min(5, len(d))
    q = np.linalg.qr(np.random.default_rng(1).normal(size=(size, size)))[0]
    a, top = jnp.asarray((q * d) @ q.T, jnp.float32), jnp.asarray(q[:, np.argmax(d)], jnp.float32)
    starts = jnp.stack([jax.random.normal(jax.random.key(0), (size,)), jnp.zeros(size), top])
    found = pairs(a, starts, k, which)
    expected = np.sort(d)[::-1][:k] if which == "largest" else np.sort(d)[:k]
    np.testing.assert_allclose(found.values, np.tile(expected, (3, 1)), atol=1.01e-3 * scale)
    assert np.all(found.residuals <= 1.01e-3 * scale)


def test_a_linear_network_has_a_copy_for_every_output():
    x = jax.random.normal(jax.random.key(0), (30, 6))
    view = View(jnp.ones((6, 4)), Batch(x, jnp.ones((30, 4))), Objective(lambda p, x: x @ p, half_mse))
    read = observe.hessian_eigenvalues(6)
    _, found = read.update(read.init(view), view)
    expected = np.repeat(np.linalg.eigvalsh(np.asarray(x.T @ x) / 30)[::-1], 4)[:6]
    np.testing.assert_allclose(found["hessian_eigenvalues"], expected, rtol=1e-3)


def dense(operator):
    return np.asarray(jax.vmap(operator.matvec)(jnp.eye(operator.size, dtype=operator.dtype)))


def test_complex_parameters_are_two_real_ones(x64):
    x, y = jax.random.normal(jax.random.key(0), (5, 3)), jnp.ones((5, 1))
    w = jax.random.normal(jax.random.key(1), (3, 1)) * (1 + 2j)
    L = Objective(lambda w, x: jnp.real(x @ w * (1 - 1j)) + jnp.abs(x @ w) ** 2, half_mse)
    parts = jnp.concatenate([w.real, w.imag])[:, 0]

    def loss(v):
        return L((v[:3] + 1j * v[3:])[:, None], Batch(x, y))

    h = dense(operators.hessian(L, w, Batch(x, y)))
    np.testing.assert_allclose(h, jax.hessian(loss)(parts), atol=1e-12)
    vector, unravel = operators.real_view(w)
    np.testing.assert_array_equal(vector, parts)
    np.testing.assert_array_equal(unravel(vector), w)
    scaled = operators.preconditioned(operators.hessian(L, w, Batch(x, y)), jnp.full((3, 1), 4.0))
    np.testing.assert_allclose(dense(scaled), h / 4, atol=1e-12)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_parameters_are_read_in_float32(dtype):
    params = {"w": jax.random.normal(jax.random.key(0), (3, 2)), "count": jnp.array(3), "on": jnp.array(True)}
    batch = Batch(jax.random.normal(jax.random.key(1), (6, 3)), jnp.ones((6, 2)))
    L = Objective(lambda p, x: jnp.tanh(x.astype(p["w"].dtype) @ p["w"]) * p["on"], half_mse)
    half = params | {"w": params["w"].astype(dtype)}
    read = {"sharpness": observe.sharpness(), "hessian_eigenvalues": observe.hessian_eigenvalues(2)}
    for name, one in read.items():
        exact, found = (one.update(one.init(v), v)[1][name] for v in (View(p, batch, L) for p in (params, half)))
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, exact, rtol=0.03)  # eight bits
    density = observe.hessian_density(probes=2, steps=3).update((), View(half, batch, L))[1]
    assert np.all(np.isfinite(density["hessian_density_nodes"]))


def test_parameters_without_real_numbers_are_refused():
    with pytest.raises(TypeError, match=r"^params: got leaves of int32; allowed: "):
        operators.real_view({"n": jnp.arange(3)})
    with pytest.raises(TypeError, match=r"^start: got complex64; allowed: "):
        linalg.eigenpairs(lambda v: v, jnp.ones(3) * 1j, 1)
