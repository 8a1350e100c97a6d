"""A complex leaf is two real ones: every dynamics and kernel on complex parameters against itself on (re, im)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dynamics import stability
from dynamics.empirical import (
    empirical_ntk_and_vjp_fn,
    empirical_ntk_fn,
    empirical_ntk_parts_fn,
    empirical_ntk_vp_fn,
    flat_kernel,
    ntk_operator,
)
from dynamics.evolve import (
    adam,
    central_flow,
    descent,
    gradient_descent,
    gradient_flow,
    kernel_descent,
    linearized,
    simulate,
)
from dynamics.losses import half_mse
from dynamics.observe import batch_sharpness, loss, ntk, ntk_of_state
from dynamics.theory.predict import refreshed_gradient_descent_mse
from dynamics.types import Batch, Objective


def f(p, x):
    spectrum = jnp.fft.fft(x @ p["w"]) * p["v"]
    return jnp.real(jnp.fft.ifft(spectrum))[:, :2] + p["b"]


def joined(r):
    return {name: jax.lax.complex(*leaf) if isinstance(leaf, tuple) else leaf for name, leaf in r.items()}


@pytest.fixture
def problem(x64):
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape) / 2)

    real = {"w": (normal(3, 4), normal(3, 4)), "v": (normal(4), normal(4)), "b": normal(2)}
    batch = Batch(normal(5, 3), normal(5, 2))
    return Objective(f, half_mse), Objective(lambda r, x: f(joined(r), x), half_mse), joined(real), real, batch


MOVES = {
    "gradient descent": lambda L: gradient_descent(L, 0.3),
    "heavy ball, minibatches": lambda L: gradient_descent(L, 0.1, momentum=0.9, batch_size=2),
    "adam": lambda L: adam(L, 0.05),
    "rmsprop": lambda L: descent(L, optax.rmsprop(0.01)),
    "clipped": lambda L: descent(L, optax.chain(optax.clip(0.01), optax.scale(-1.0))),
    "flow": lambda L: gradient_flow(L, 0.2),
    "linearized": lambda L: linearized(L, lambda M: gradient_descent(M, 0.3)),
}


QUICK = ("heavy ball, minibatches", "adam")


@pytest.mark.parametrize("move", [pytest.param(m, marks=() if m in QUICK else pytest.mark.slow) for m in MOVES])
def test_dynamics_move_complex_leaves_as_their_real_and_imaginary_parts(problem, move):
    L, R, params, real, batch = problem
    (_, a), (_, b) = (
        simulate(MOVES[move](obj), p, batch, train=[loss()], steps=30) for obj, p in ((L, params), (R, real))
    )
    np.testing.assert_allclose(a.values["loss"], b.values["loss"], rtol=1e-9)
    assert a.values["loss"][1] < a.values["loss"][0]
    assert a.values["loss"].dtype == jnp.float64


def test_gradient_descent_on_complex_weights_reaches_the_minimum():
    rng = np.random.default_rng(1)
    x, y, w = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((4, 3), (4, 1), (3, 1)))
    L = Objective(lambda w, x: jnp.real(x @ w * (1 - 1j)), half_mse)
    _, record = simulate(gradient_descent(L, 0.1), w.astype(jnp.complex64), Batch(x, y), train=[loss()], steps=2000)
    exact = 0.5 * np.mean((x @ np.linalg.lstsq(x, y, rcond=None)[0] - y) ** 2)
    np.testing.assert_allclose(record.values["loss"][-1], exact, rtol=1e-3)
    kernel = [empirical_ntk_fn(L.apply)(x, None, w + 0j), empirical_ntk_vp_fn(L.apply, x, None, w + 0j)(y)]
    np.testing.assert_allclose(kernel[0], 2 * x @ x.T, rtol=1e-5)
    np.testing.assert_allclose(kernel[1], 2 * x @ (x.T @ y), rtol=1e-4)


@pytest.mark.slow
def test_kernels_of_complex_leaves_are_those_of_their_parts(problem):
    L, R, params, real, batch = problem
    x, full = batch.x, {}
    for name, obj, p in (("complex", L, params), ("real", R, real)):
        kernel = flat_kernel(empirical_ntk_fn(obj.apply, trace_axes=())(x, None, p))
        both = empirical_ntk_and_vjp_fn(obj.apply)(x, p)
        parts = empirical_ntk_parts_fn(obj.apply, lambda path: path.split("/")[0])(x, None, p)
        seen = np.stack([empirical_ntk_vp_fn(obj.apply, x, None, p)(v).ravel() for v in jnp.eye(10).reshape(10, 5, 2)])
        operator = ntk_operator(obj.apply, p, x, batch_size=2)
        full[name] = [kernel, both.kernel, *parts.values(), jax.vmap(operator.matvec)(jnp.eye(10))]
        np.testing.assert_allclose(seen, kernel, atol=1e-12)
        pulled = both.pull(batch.y) if name == "complex" else joined(both.pull(batch.y))
        full[name] += jax.tree.leaves(pulled)
    J = jnp.concatenate([jnp.reshape(leaf, (10, -1)) for leaf in jax.tree.leaves(jax.jacrev(R.apply)(real, x))], 1)
    np.testing.assert_allclose(full["complex"][0], J @ J.T, atol=1e-12)
    for one, two in zip(full["complex"], full["real"], strict=True):
        np.testing.assert_allclose(one, two, atol=1e-12)


@pytest.mark.slow
def test_weighted_kernels_and_preconditioners_take_both_parts(problem):
    L, R, params, real, batch = problem
    run, same = descent(L, optax.adam(0.05)), descent(R, optax.adam(0.05))
    state, twin = (simulate(d, p, batch, steps=3)[0] for d, p in ((run, params), (same, real)))
    P, Q = run.preconditioner(state), same.preconditioner(twin)
    for one, two in zip(jax.tree.leaves(P), jax.tree.leaves(joined(Q)), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-9)
    kernels = [
        empirical_ntk_parts_fn(obj.apply, lambda path: "all", weights=w)(batch.x, None, p)["all"]
        for obj, p, w in ((L, params, P), (R, real, Q))
    ]
    np.testing.assert_allclose(*kernels, rtol=1e-9)
    plain = gradient_descent(L, 0.1)
    ones = plain.preconditioner(plain.init(params))
    assert complex(ones["v"][0]) == 1 + 1j and float(ones["b"][0]) == 1  # noqa: PT018
    assert stability.preconditioner_of(optax.sgd(0.1))(()) == 1.0


@pytest.mark.slow
def test_readings_and_predictions_on_complex_parameters(problem):
    L, R, params, real, batch = problem
    reads = {"loss": loss(), "ntk": ntk(spectrum=2), "noise": batch_sharpness(2, draws=8)}
    records = [
        simulate(gradient_descent(obj, 0.1), p, batch, train=list(reads.values()), steps=2)[1]
        for obj, p in ((L, params), (R, real))
    ]
    for name, value in records[0].values.items():
        np.testing.assert_allclose(value, records[1].values[name], rtol=1e-8, atol=1e-9, err_msg=name)
    ends = []
    for obj, p in ((L, params), (R, real)):
        run = kernel_descent(obj, optax.adam(0.05), outputs="full")
        ends.append(simulate(run, (p, batch), batch, train=[ntk_of_state(), loss()], steps=3)[1].values["loss"])
    np.testing.assert_allclose(*ends, rtol=1e-9)
    predicted = [
        refreshed_gradient_descent_mse(obj.apply, p, batch.x, batch.y, 0.1, refresh=1)(4)
        for obj, p in ((L, params), (R, real))
    ]
    np.testing.assert_allclose(*predicted, rtol=1e-9)


def test_what_cannot_take_complex_numbers_says_so(problem):
    L, _, params, _, batch = problem
    with pytest.raises(TypeError, match="got complex128; allowed: real floating"):
        simulate(central_flow(L, 0.1), params, batch, steps=1)
    with pytest.raises(TypeError, match="loss: got complex128; allowed: a real scalar"):
        Objective(lambda p, x: x @ p["w"], half_mse)(params, Batch(batch.x, jnp.zeros((5, 4))))
    with pytest.raises(ValueError, match="got an output of dtype complex128"):
        empirical_ntk_vp_fn(lambda p, x: x @ p["w"], batch.x, None, params)(jnp.ones((5, 4)))
