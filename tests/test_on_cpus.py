"""Factorisations one matrix, transforms one row at a time: the same values, and no study that waits for itself."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from devices import run_on_devices

from dynamics.backend import by_backend
from dynamics.program.jaxpr import has, trace
from dynamics.program.on_cpus import quick_loops
from dynamics.program.one_matrix_at_a_time import MATRIX_AXES, of_several_matrices
from dynamics.program.one_row_at_a_time import of_several_rows

linalg = jax.lax.linalg
FACTORISATIONS = {
    "cholesky": jnp.linalg.cholesky,
    "eig": jnp.linalg.eig,
    "eigh": jnp.linalg.eigh,
    "hessenberg": linalg.hessenberg,
    "householder_product": lambda a: linalg.householder_product(a, a[..., 0]),
    "lu": linalg.lu,
    "pivoting": lambda a: linalg.qr(a, pivoting=True),
    "qr": jnp.linalg.qr,
    "schur": linalg.schur,
    "svd": jnp.linalg.svd,
    "triangular_solve": lambda a: linalg.triangular_solve(a, a, lower=True),
    "tridiagonal": linalg.tridiagonal,
    "tridiagonal_solve": lambda a: linalg.tridiagonal_solve(
        a[..., 0].at[..., 0].set(0), a[..., 1] + 9, a[..., 2].at[..., -1].set(0), a[..., :2]
    ),
    "solve": lambda a: jnp.linalg.solve(a, a[..., :2]),
    "cho_solve": lambda a: jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(a), a),
    "pinv": jnp.linalg.pinv,
    "det": jnp.linalg.det,
}


@pytest.fixture
def matrices(x64):
    a = jax.random.normal(jax.random.key(0), (2, 3, 4, 4))
    return a @ a.swapaxes(-1, -2) + jnp.eye(4)


@pytest.mark.parametrize("name", FACTORISATIONS)
def test_equals_all_at_once(name, matrices):
    """Called with several matrices, and as the lanes of a vmap."""
    function = FACTORISATIONS[name]
    for call in (function, jax.vmap(function)):
        quick = quick_loops(call)
        both = jax.jit(lambda a, call=call, quick=quick: (quick(a), call(a)))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), *both(matrices))
        assert has(trace(call, matrices), of_several_matrices)
        assert not has(trace(quick, matrices), of_several_matrices)


@pytest.mark.parametrize("length", [5, 6])
@pytest.mark.parametrize("name", ["fft", "ifft", "rfft", "irfft", "fft2", "irfft2", "rfftn", "irfftn"])
def test_transforms_equal_all_at_once(name, length, x64):
    """And their derivatives; of one row as it is."""
    x = jax.random.normal(jax.random.key(0), (2, 4, 6, length))
    call = lambda x: getattr(jnp.fft, name)(x + 0.5j * x[::-1] if name.startswith("i") else x)  # noqa: E731
    quick = quick_loops(call)
    both = jax.jit(lambda x: (quick(x), call(x)))
    np.testing.assert_allclose(*both(x), atol=1e-12)
    assert has(trace(call, x), of_several_rows)
    assert not has(trace(quick, x), of_several_rows)
    found, expected = (jax.grad(lambda x, f=f: jnp.sum(jnp.abs(f(x)) ** 3))(x) for f in (quick, call))
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)
    if name == "fft":
        assert str(trace(quick, x[0, 0, 0])) == str(trace(call, x[0, 0, 0]))


def test_no_factorisation_of_jax_is_unknown():
    known = {getattr(linalg, name).name for name in dir(linalg) if name.endswith("_p")}
    assert known - MATRIX_AXES.keys() <= {"symmetric_product", "lu_pivots_to_permutation", "cholesky_update"}


def test_derivatives_are_kept(matrices):
    """Forward and reverse, through a linear solve and a custom rule, in a loop."""

    def function(a):
        def turn(_, a):
            return a + 0.1 * jnp.linalg.solve(a, a @ a) * jnp.linalg.det(a)[..., None, None] ** 0.01

        return jax.lax.fori_loop(0, 2, turn, a)

    quick = quick_loops(function)

    def derivatives(function):
        along = jax.jvp(function, (matrices,), (jnp.cos(matrices),))[1]
        return along, jax.grad(lambda a: jnp.sum(jnp.sin(function(a))))(matrices)

    found, expected = jax.jit(lambda: (derivatives(quick), derivatives(function)))()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), found, expected)


@jax.custom_vjp
def root(a):
    return jnp.linalg.cholesky(a)


root.defvjp(lambda a: (root(a), a), lambda a, along: (along + a,))  # not its own: it must be kept


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def scaled_root(a, times):
    return times * jnp.linalg.cholesky(a)


scaled_root.defjvp(lambda times, at, along: (scaled_root(*at, times), times * along[0] + at[0]))


@pytest.mark.parametrize("rule", [root, lambda a: scaled_root(a, 3)], ids=["reverse", "forward"])
def test_own_rules_are_kept(rule, matrices):
    """Their values are rewritten, their derivatives are what they say."""
    lanes = jax.vmap(jax.vmap(lambda a: 2 * rule(a)))
    quick = quick_loops(lanes)
    assert not has(trace(quick, matrices), of_several_matrices)
    np.testing.assert_allclose(jax.jit(quick)(matrices), lanes(matrices), atol=1e-12)
    found, expected = (jax.grad(lambda a, f=f: jnp.sum(jnp.sin(f(a))))(matrices) for f in (quick, lanes))
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("shape", [(0, 4, 4), (3, 0, 0), (3, 4, 0)])
def test_empty_matrices(shape):
    found, expected = (f(jnp.zeros(shape)) for f in (quick_loops(jnp.linalg.qr), jnp.linalg.qr))
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, expected)


def test_a_constant_is_an_array(matrices):
    assert isinstance(quick_loops(lambda a: (jnp.linalg.cholesky(a), 3))(matrices)[1], jax.Array)


def test_one_matrix_stays_as_it_is(matrices):
    one = matrices[:1, :1]
    assert str(trace(quick_loops(jnp.linalg.eigh), one)) == str(trace(jnp.linalg.eigh, one))


def test_loops_of_lanes_end_each_at_its_time(matrices):
    """A while whose lanes end apart, with a factorisation in its body and in its condition."""

    def one(a):
        def going(carry):
            return jnp.linalg.eigvalsh(carry[0])[-1] > 1.0

        def turn(carry):
            return carry[0] - 0.1 * jnp.linalg.cholesky(carry[0] @ carry[0].T), carry[1] + 1

        return jax.lax.while_loop(going, turn, (a, 0))

    lanes = jax.vmap(one)
    start = matrices.reshape(6, 4, 4)
    (found, turns), (expected, theirs) = jax.jit(lambda a: (quick_loops(lanes)(a), lanes(a)))(start)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_array_equal(turns, theirs)
    assert len(set(turns.tolist())) > 1
    assert not has(trace(quick_loops(lanes), start), of_several_matrices)


STUDY = """
import jax, jax.numpy as jnp
from dynamics.evolve import gradient_descent, study
from dynamics.losses import mse
from dynamics.types import Batch, Data, Objective

x = jax.random.normal(jax.random.key(0), (220, 40))
L = Objective(lambda w, x: jnp.sum(jnp.tanh(x @ w.T), 1, keepdims=True), mse)
study(
    {"seed": range(3)},
    lambda lane: (Data(Batch(x, jnp.ones((220, 1)))), jax.random.normal(jax.random.key(lane.seed), (200, 40))),
    lambda lane: gradient_descent(L, 1e-3),
    [lambda w, batch: {"top": jnp.linalg.eigvalsh(w.T @ w)[-1], "loss": L(w, batch)}],
    steps=40,
    record_at=range(41),
)
print("equal")
"""


def test_a_study_ends_where_the_pool_has_few_threads():
    """On two cores as two devices this one waited for itself for ever, each time."""
    run_on_devices(2, STUDY, timeout=120)


def test_a_study_of_transforms_ends_where_the_pool_has_few_threads():
    """On two cores this one, as two devices, waited for itself for ever with JAX 0.11."""
    transforms = "sum(jnp.abs(f(a)).sum() for f, a in ((jnp.fft.fft, w), (jnp.fft.rfft, w.T), (jnp.fft.fft2, w @ w.T)))"
    run_on_devices(2, STUDY.replace("jnp.linalg.eigvalsh(w.T @ w)[-1]", transforms), timeout=120)


def test_the_default_device_decides_what_is_quick(monkeypatch):
    assert by_backend(1, 2) == 1
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert by_backend(1, 2) == 2
    for device in (jax.devices("cpu")[0], "cpu"):
        with jax.default_device(device):
            assert by_backend(1, 2) == 1
