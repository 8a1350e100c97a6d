"""Eigenpairs with multiplicity, of zero, poor and tiny spectra, and of half, complex, integer parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matrices import dense, dense_of

from dynamics import linalg, observe, operators
from dynamics.losses import half_mse
from dynamics.types import Batch, Objective, View

rng = np.random.default_rng(0)
SPECTRA = {
    "copies": np.repeat(rng.normal(size=12) ** 2, 5),
    "mixed": np.repeat(rng.normal(size=40), rng.integers(1, 6, 40))[:60],
    "cluster": np.concatenate([2 + 1e-2 * rng.normal(size=5), rng.normal(size=55)]),
    "identity": np.ones(60),
    "zero": np.zeros(60),
    "rank 3": np.concatenate([[3.0, 2.0, 1.0], np.zeros(57)]),
    "tiny": 1e-27 * np.concatenate([[3.0, 2.0, 2.0], np.zeros(57)]),
    "one": np.array([2.0]),
    "two": np.array([2.0, 2.0]),
}


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def pairs(a, starts, k, which, basis_size=None):
    return jax.lax.map(
        lambda start: linalg.eigenpairs(lambda v: a @ v, start, k, which=which, basis_size=basis_size), starts
    )


def rotated(d, dtype=jnp.float32):
    q = np.linalg.qr(np.random.default_rng(1).normal(size=(len(d), len(d))))[0]
    return jnp.asarray((q * d) @ q.T, dtype), jnp.asarray(q[:, np.argmax(d)], dtype)


@pytest.mark.parametrize("basis_size", [None, 50])
@pytest.mark.parametrize("name", SPECTRA)
def test_eigenvalues_are_counted_with_multiplicity(name, basis_size):
    """Against the sorted spectrum, for random, zero and invariant starts at once, by a dense matrix and by Lanczos."""
    d = SPECTRA[name]
    size, scale, k = len(d), np.abs(d).max(), min(5, len(d))
    if basis_size is not None and size < basis_size:
        pytest.skip("the whole space is the basis")
    a, top = rotated(d)
    starts = jnp.stack([jax.random.normal(jax.random.key(0), (size,)), jnp.zeros(size), top])
    found = pairs(a, starts, k, "largest", basis_size)
    np.testing.assert_allclose(found.values, np.tile(np.sort(d)[::-1][:k], (3, 1)), atol=1.01e-3 * scale)
    assert np.all(found.residuals <= 1.01e-3 * scale)
    if basis_size is None:
        assert np.all(found.matvecs == size)
        np.testing.assert_array_equal(found.limit, found.values[:, -1])


LARGE = {
    "cluster": np.concatenate([2 + np.array([0, 2.5e-4, -3e-3, 4e-3, -8e-3]), rng.uniform(-1, 1.5, 295)]),
    "copies": np.repeat(rng.normal(size=100), rng.integers(1, 11, 100))[:300],
    "clustered copies": np.concatenate([np.repeat([3, 2.998, 2.995], [3, 4, 2]), rng.uniform(0, 2.9, 291)]),
    "edge": np.concatenate([np.geomspace(10, 1, 12), 0.3 * rng.uniform(0, 1, 288)]),
    "tenfold": np.concatenate([np.repeat([3.0, 2.0], 10), rng.uniform(0, 1, 620)]),
}


def claimed(d, found, k, sign, rounding):
    """What ``limit`` states, and that residuals are measured ones; whether all is certain."""
    a, scale = rotated(d)[0].astype(found.values.dtype), np.abs(d).max()
    exact, slack = np.sort(sign * d)[::-1][:k], 1.001e-3 * scale
    values, limit = sign * np.asarray(found.values), sign * np.asarray(found.limit)[:, None]
    assert np.all(exact <= np.maximum(values + slack, limit + rounding * scale))
    assert np.all(values <= exact + rounding * scale)
    images = np.einsum("ij,skj->ski", a, found.vectors)
    measured = np.linalg.norm(images - np.asarray(found.values)[..., None] * found.vectors, axis=-1)
    assert np.all(measured <= np.asarray(found.residuals) + rounding * scale)
    return np.all(limit[:, 0] <= values[:, -1] + 1.2 * slack)


def test_a_narrow_cluster_is_counted_by_lanczos():
    """Five eigenvalues within .01 of 2, two of them 2.5e-4 apart, of 300; certain, for six starts."""
    starts = jax.random.normal(jax.random.key(2), (6, 300))
    found = pairs(rotated(LARGE["cluster"])[0], starts, 5, "largest")
    assert claimed(LARGE["cluster"], found, 5, 1, 2e-5)
    assert np.all(found.matvecs <= 100)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("which", ["largest", "smallest"])
@pytest.mark.parametrize("k", [2, 5, 12])
@pytest.mark.parametrize("name", [name for name in LARGE if name != "tenfold"])
def test_no_eigenvalue_is_missed_below_the_limit(name, k, which, dtype, request):
    """Clusters and multiplicities 1 to 10 of 300: the statement of ``limit`` for every start, certain or not."""
    if dtype == "float64":
        request.getfixturevalue("x64")
    starts = jax.random.normal(jax.random.key(3), (6, 300), dtype)
    found = pairs(rotated(LARGE[name], dtype)[0], starts, k, which)
    certain = claimed(LARGE[name], found, k, 1 if which == "largest" else -1, 2e-5)
    if k == 12:
        assert certain  # 300 products form the matrix where nothing else does


@pytest.mark.slow
def test_ten_copies_take_ten_rounds():
    """Two eigenvalues of multiplicity 10 of 640, k = 20, three starts: certain, by residuals that do not loosen."""
    starts = jax.random.normal(jax.random.key(4), (3, 640))
    found = pairs(rotated(LARGE["tenfold"])[0], starts, 20, "largest")
    assert claimed(LARGE["tenfold"], found, 20, 1, 2e-5)
    assert np.all(found.matvecs <= 400)


@pytest.mark.slow
def test_what_has_not_converged_shows_in_the_reading():
    """The smallest eigenvalues at a dense edge in too few products: residuals above the goal, an infinite limit."""
    d = jnp.linspace(0.0, 1.0, 2000)
    L = Objective(lambda p, x: x * p, lambda f, y: 0.5 * jnp.sum(f**2))
    view = View(jnp.ones(2000), Batch(jnp.sqrt(d), d), L)
    read = observe.hessian_eigenvalues(12, which="smallest", max_matvecs=60)
    _, found = read.update(read.init(view), view)
    assert found["hessian_smallest_limit"] == -jnp.inf
    assert np.max(found["hessian_smallest_residual"]) > 1e-3


def test_a_linear_network_has_a_copy_for_every_output():
    x = jax.random.normal(jax.random.key(0), (30, 6))
    view = View(jnp.ones((6, 4)), Batch(x, jnp.ones((30, 4))), Objective(lambda p, x: x @ p, half_mse))
    read = observe.hessian_eigenvalues(6)
    _, found = read.update(read.init(view), view)
    expected = np.repeat(np.linalg.eigvalsh(np.asarray(x.T @ x) / 30)[::-1], 4)[:6]
    np.testing.assert_allclose(found["hessian_eigenvalues"], expected, rtol=1e-3)


def test_complex_parameters_are_two_real_ones(x64):
    x, y = jax.random.normal(jax.random.key(0), (5, 3)), jnp.ones((5, 1))
    w = jax.random.normal(jax.random.key(1), (3, 1)) * (1 + 2j)
    L = Objective(lambda w, x: jnp.real(x @ w * (1 - 1j)) + jnp.abs(x @ w) ** 2, half_mse)
    parts = jnp.concatenate([w.real, w.imag])[:, 0]

    def loss(v):
        return L((v[:3] + 1j * v[3:])[:, None], Batch(x, y))

    h = dense_of(operators.hessian, L, w, Batch(x, y))
    np.testing.assert_allclose(h, jax.jit(jax.hessian(loss))(parts), atol=1e-12)
    vector, unravel = operators.real_view(w)
    np.testing.assert_array_equal(vector, parts)
    np.testing.assert_array_equal(unravel(vector), w)
    scaled = operators.preconditioned(operators.hessian(L, w, Batch(x, y)), jnp.full((3, 1), 4.0))
    np.testing.assert_allclose(dense(scaled), h / 4, atol=1e-12)


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_half_precision_parameters_are_read_in_float32(dtype):
    params = {"w": jax.random.normal(jax.random.key(0), (3, 2)), "count": jnp.array(3), "on": jnp.array(True)}
    batch = Batch(jax.random.normal(jax.random.key(1), (6, 3)), jnp.ones((6, 2)))
    L = Objective(lambda p, x: jnp.tanh(x.astype(p["w"].dtype) @ p["w"]) * p["on"], half_mse)
    half = params | {"w": params["w"].astype(dtype)}
    read = {"sharpness": observe.sharpness(), "hessian_eigenvalues": observe.hessian_eigenvalues(2)}
    for name, one in read.items():
        read_once = jax.jit(lambda p, one=one: one.update(one.init(View(p, batch, L)), View(p, batch, L))[1])
        exact, found = (read_once(p)[name] for p in (params, half))
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, exact, rtol=0.03)  # eight bits
    density = jax.jit(lambda p: observe.hessian_density(probes=2, steps=3).update((), View(p, batch, L))[1])(half)
    assert np.all(np.isfinite(density["hessian_density_nodes"]))
    ranks = observe.weight_ranks(spectrum=True)
    exact, found = (ranks.update((), View(p, batch, L))[1]["singular_values/w"] for p in (params, half))
    np.testing.assert_allclose(found, exact, rtol=0.03)


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_half_precision_starts_are_widened(dtype):
    d = jnp.arange(1.0, 9.0)

    def matvec(v):
        return d.astype(v.dtype) * v

    top = jax.nn.one_hot(jnp.array([7, 6]), 8, dtype=dtype)
    np.testing.assert_allclose(linalg.refine(matvec, top).values, [8, 7], rtol=0.01)
    np.testing.assert_allclose(linalg.eigenpairs(matvec, jnp.ones(8, dtype), 2).values, [8, 7], rtol=0.01)
    assert linalg.trace(matvec, jax.random.key(0), 8, 3, dtype=dtype).trace.value == 36
    for whole in (True, False):
        density = linalg.spectral_density(
            matvec, jax.random.key(0), 8, probes=2, steps=4, dtype=dtype, reorthogonalize=whole
        )
        assert density.nodes.dtype == jnp.float32
        assert np.all((density.nodes > 0.9) & (density.nodes < 8.1))


def test_the_ntk_spectrum_of_a_half_precision_network():
    x, w = jax.random.normal(jax.random.key(0), (6, 3)), jnp.ones((3, 1))
    L = Objective(lambda w, x: x.astype(w.dtype) @ w, half_mse)
    read, found = observe.ntk(spectrum=2), []
    for params in (w, w.astype(jnp.bfloat16)):

        @jax.jit
        def once(params):
            view = View(params, Batch(x, jnp.ones((6, 1))), L)
            return read.update(read.init(view), view)[1]["ntk_eigenvalues"]

        found.append(once(params))
    np.testing.assert_allclose(found[1], found[0], rtol=0.03)


@pytest.mark.usefixtures("as_users_meet_it")
def test_parameters_without_real_numbers_are_refused():
    with pytest.raises(TypeError, match=r"^params: got leaves of int32; allowed: "):
        operators.real_view({"n": jnp.arange(3)})
    with pytest.raises(TypeError, match=r"^start: got complex64; allowed: "):
        linalg.eigenpairs(lambda v: v, jnp.ones(3) * 1j, 1)
