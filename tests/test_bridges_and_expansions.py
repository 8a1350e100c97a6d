"""Integer, boolean and half-precision leaves, custom derivatives, schedules, other people's loops: right or refused."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dynamics.empirical import empirical_ntk_fn, empirical_ntk_vp_fn, ntk_operator
from dynamics.evolve import gradient_descent, linearized, simulate, study
from dynamics.losses import half_mse
from dynamics.models import from_equinox
from dynamics.observe import end_to_end, loss, ntk, preconditioned_sharpness, sharpness, watch, weight_ranks
from dynamics.taylor import linearize, taylor_expand
from dynamics.types import Batch, Objective, View

X = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
Y = jnp.asarray(np.random.default_rng(1).normal(size=(4, 2)), jnp.float32)


@jax.custom_vjp
def cubed(x):
    return x**3


cubed.defvjp(lambda x: (x**3, x), lambda x, g: (3 * x**2 * g,))


def network(cube):
    def f(p, x):
        return cube(x[:, p["order"]] @ p["w"]) * jnp.where(p["on"], 1.0, 2.0)

    return f


PARAMS = {"order": jnp.array([2, 0, 1]), "w": 0.5 * Y[:3], "on": jnp.array([True, False])}
MOVED = {**PARAMS, "w": PARAMS["w"] + 0.1}


@pytest.mark.parametrize("degree", [0, 1, pytest.param(2, marks=pytest.mark.slow)])
def test_expansions_keep_integers_and_take_custom_rules(degree):
    plain, custom = (taylor_expand(network(c), PARAMS, degree)(MOVED, X) for c in (lambda x: x**3, cubed))
    along = jax.tree.map(lambda a, b: a - b, MOVED["w"], PARAMS["w"])
    terms = [lambda t: network(lambda x: x**3)({**PARAMS, "w": PARAMS["w"] + t * along}, X)]
    for _ in range(degree):
        terms.append(jax.jacfwd(terms[-1]))
    expected = sum(term(0.0) / max(order, 1) for order, term in enumerate(terms))
    np.testing.assert_allclose(plain, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(custom, expected, rtol=1e-5, atol=1e-6)


def test_products_with_custom_rules_are_the_kernels():
    f, g = network(cubed), network(lambda x: x**3)
    kernel = empirical_ntk_fn(g, trace_axes=())(X, None, PARAMS)
    expected = jnp.einsum("nmcd,md->nc", kernel, Y)
    np.testing.assert_allclose(empirical_ntk_vp_fn(f, X, None, PARAMS)(Y), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ntk_operator(f, PARAMS, X).matvec(Y.ravel()), expected.ravel(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(empirical_ntk_fn(f, trace_axes=())(X, None, PARAMS), kernel, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(linearize(f, PARAMS)(PARAMS, X), f(PARAMS, X), rtol=1e-6)


def test_equinox_modules_take_tokens_and_keep_integer_buffers():
    eqx = pytest.importorskip("equinox")

    class Reader(eqx.Module):
        table: eqx.nn.Embedding
        order: jax.Array
        keep: jax.Array

        def __init__(self, key, shuffled=False):
            self.table = eqx.nn.Embedding(7, 2, key=key)
            self.order = jax.random.permutation(key, 3) if shuffled else jnp.array([2, 0, 1])
            self.keep = jnp.array([True, False])

        def __call__(self, tokens):
            read = jax.vmap(self.table)(tokens[self.order]) ** jnp.arange(1, 4)[:, None]
            return jnp.where(self.keep, jnp.sum(read, 0), 0)

    model = from_equinox(lambda key: Reader(key), dtype=jnp.int32)
    shape, params = model.init(jax.random.key(3), (-1, 3))
    tokens = jnp.array([[0, 1, 2], [3, 4, 5]])
    module = Reader(jax.random.key(3))
    assert shape == (-1, 2)
    np.testing.assert_allclose(model.apply(params, tokens), jax.vmap(module)(tokens), rtol=1e-6)
    with pytest.raises(ValueError, match="an array of int32 that depends on the key"):
        from_equinox(lambda key: Reader(key, True), dtype=jnp.int32).init(jax.random.key(3), (-1, 3))


def test_ranks_of_half_precision_weights_are_read_in_float32():
    w = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2)), jnp.bfloat16)
    L = Objective(lambda w, x: x.astype(w.dtype) @ w, half_mse)
    for read in (weight_ranks(spectrum=True), end_to_end()):
        half, full = (read.update((), View(p, Batch(X, Y), L))[1] for p in (w, w.astype(jnp.float32)))
        for name in half:
            np.testing.assert_allclose(half[name], full[name], rtol=0.05, atol=1e-2, err_msg=name)  # 2^-8 an entry


def test_time_is_the_number_that_was_written():
    L, batch = Objective(lambda w, x: x @ w, half_mse), Batch(X, Y)
    record = study(
        {"eta": [0.1, 0.3]},
        lambda lane: jnp.zeros((3, 2)),
        lambda lane: gradient_descent(L, lane.eta),
        lambda lane: [loss()],
        steps=500,
        data=batch,
    )
    np.testing.assert_array_equal(np.unique(record.time[-1]), [50.0, 150.0])
    scheduled = gradient_descent(L, optax.cosine_decay_schedule(0.1, 10))
    _, record = simulate(scheduled, jnp.zeros((3, 2)), batch, train=[loss(), preconditioned_sharpness()], steps=20)
    assert record.time[-1] == 20
    assert np.all(np.isfinite(record.values["preconditioned_sharpness"]))


def test_watching_a_loop_reads_what_the_run_reads():
    L, batch, w = Objective(lambda w, x: jnp.tanh(x @ w), half_mse), Batch(X, Y), 0.3 * Y[:3]
    reads, run = [loss(), ntk(), sharpness()], gradient_descent(L, 0.5)
    _, record = simulate(run, w, batch, train=reads, steps=4, record_at=[0, 2, 4])
    look = watch(L, reads, batch, every=2)
    for step in range(5):
        found = look(step, w)
        assert (found is None) == bool(step % 2)
        w = w - 0.5 * jax.grad(L)(w, batch)
    np.testing.assert_array_equal(look.record.step, [0, 2, 4])
    for name, value in record.values.items():
        if "matvecs" not in name and "residual" not in name:
            np.testing.assert_allclose(look.record.values[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    with pytest.raises(ValueError, match="step: got 4; allowed: above 4"):
        look(4, w)


def test_flax_modules_of_integer_inputs_still_linearise():
    model = nn.Embed(5, 2)
    tokens = jnp.array([0, 3])
    params = model.init(jax.random.key(0), tokens)
    f = linearize(lambda p, x: model.apply(p, x), params)
    doubled = jax.tree.map(lambda p: 2 * p, params)
    np.testing.assert_allclose(f(doubled, tokens), 2 * model.apply(params, tokens), rtol=1e-6)
    L = Objective(lambda p, x: model.apply(p, x), half_mse)
    run = linearized(L, lambda M: gradient_descent(M, 0.1))
    assert simulate(run, params, Batch(tokens, jnp.zeros((2, 2))), train=[loss()], steps=2)[1].values["loss"][1] > 0
