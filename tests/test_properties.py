"""One property list for everything shipped: a new model, dynamics or observable is one line in a table below.

Pytree in, pytree out; jit = eager; vmap = a loop; the same key gives the same result; nothing depends on hidden state.
"""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dynamics import evolve, observe, operators, stax
from dynamics.losses import accuracy, half_mse
from dynamics.models import from_equinox, from_flax, scaled
from dynamics.types import Batch, Objective, View

MODELS = {
    "stax": lambda: stax.serial(stax.Dense(6), stax.Erf(), stax.Dense(2)),
    "stax standard": lambda: stax.serial(
        stax.Dense(6, parameterization="standard", b_std=0.1), stax.Relu(), stax.Dense(2)
    ),
    "flax": lambda: from_flax(nn.Sequential([nn.Dense(6), nn.tanh, nn.Dense(2)])),
    "equinox": lambda: from_equinox(lambda key: eqx.nn.MLP(3, 2, 6, 1, activation=jnp.tanh, key=key)),
    "scaled": lambda: scaled(stax.serial(stax.Dense(6), stax.Erf(), stax.Dense(2)), 3.0),
}


def network(params, x):
    return jnp.tanh(x @ params["w"]) @ params["v"]


L = Objective(network, half_mse)

DYNAMICS = {
    "gradient_descent": lambda: evolve.gradient_descent(L, 0.1),
    "momentum": lambda: evolve.gradient_descent(L, 0.1, momentum=0.9),
    "minibatch": lambda: evolve.gradient_descent(L, 0.1, batch_size=3),
    "descent": lambda: evolve.descent(L, optax.adam(1e-2)),
    "adam": lambda: evolve.adam(L, 1e-2),
    "gradient_flow": lambda: evolve.gradient_flow(L, 0.1),
    "central flow": lambda: evolve.central_flow(L, 0.1),
    "linearized": lambda: evolve.linearized(L, lambda L: evolve.gradient_descent(L, 0.1)),
}

OBSERVABLES = {
    "loss": observe.loss,
    "accuracy": observe.accuracy,
    "scores": lambda: observe.scores(error=half_mse, accuracy=accuracy),
    "weight_ranks": lambda: observe.weight_ranks(spectrum=True),
    "end_to_end": lambda: observe.end_to_end(spectrum=True),
    "movement": observe.movement,
    "ntk": lambda: observe.ntk(gram=True, spectrum=3),
    "sharpness": lambda: observe.sharpness(num_matvecs=4, certified_matvecs=8),
    "sharpness_drift": lambda: observe.sharpness_drift(num_matvecs=25),
    "preconditioned_sharpness": lambda: observe.preconditioned_sharpness(num_matvecs=4, certified_matvecs=8),
    "hessian_eigenvalues": lambda: observe.hessian_eigenvalues(2),
    "hessian_trace": lambda: observe.hessian_trace(probes=4),
    "gradient_noise": lambda: observe.gradient_noise(2, 0.1, k=2, probes=4),
    "batch_sharpness": lambda: observe.batch_sharpness(2, draws=4),
    "hessian_density": lambda: observe.hessian_density(probes=2, steps=6),
    "gauss_newton_density": lambda: observe.gauss_newton_density(probes=2, steps=6),
    "ntk_density": lambda: observe.ntk_density(probes=2, steps=6),
    "layer_densities": lambda: observe.layer_densities(operators.hessian, "hessian", probes=2, steps=3),
    "joined": lambda: observe.joined(observe.movement(), observe.prefixed("a", observe.loss())),
    "seldom": lambda: observe.seldom(observe.loss(), 1),
}


def batch_of(key, outputs=2):
    kx, ky = jax.random.split(key)
    return Batch(jax.random.normal(kx, (8, 3)), jax.random.normal(ky, (8, outputs)))


def params_of(key):
    kw, kv = jax.random.split(key)
    return {"w": jax.random.normal(kw, (3, 5)), "v": jax.random.normal(kv, (5, 2))}


def assert_close(a, b):
    """Equal up to how compilers reorder float32 sums and iterations amplify it; keys compare by their data."""

    def plain(leaf):
        leaf = jnp.asarray(leaf)
        return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf

    jax.tree.map(lambda x, y: np.testing.assert_allclose(plain(x), plain(y), rtol=2e-3, atol=2e-4), a, b)


def stacked(make, keys):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *[make(k) for k in keys])


@pytest.mark.parametrize("name", MODELS)
def test_model(name, key):
    model = MODELS[name]()
    keys = jax.random.split(key, 2)
    shape, params = model.init(keys[0], (-1, 3))
    assert shape == (-1, 2)
    x = batch_of(key).x
    f = model.apply(params, x)
    assert f.shape == (8, 2)
    jax.tree.map(np.testing.assert_array_equal, params, model.init(keys[0], (-1, 3))[1])
    assert_close(jax.jit(model.apply)(params, x), f)
    both = stacked(lambda k: model.init(k, (-1, 3))[1], keys)
    assert_close(jax.vmap(model.apply, (0, None))(both, x)[0], f)
    rows = jnp.concatenate([model.apply(params, x[i : i + 1]) for i in range(3)])
    assert_close(rows, f[:3])  # samples do not mix
    tree = jax.grad(lambda p: jnp.sum(model.apply(p, x) ** 2))(params)
    assert jax.tree.structure(tree) == jax.tree.structure(params)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "central flow" else ()) for name in DYNAMICS]
)
def test_dynamics(name, key):
    run = DYNAMICS[name]()
    batch, keys = batch_of(key), jax.random.split(key, 2)
    states = [run.init(params_of(k)) for k in keys]
    once = [run.step(key, state, batch) for state in states]
    assert jax.tree.structure(once[0]) == jax.tree.structure(states[0])
    types = [
        jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.asarray(leaf).dtype), tree) for tree in (states[0], once[0])
    ]
    assert types[0] == types[1]  # a step keeps shapes and dtypes, so that a loop can carry it
    assert_close(once[0], run.step(key, states[0], batch))
    assert_close(once[0], jax.jit(run.step)(key, states[0], batch))
    together = jax.vmap(run.step, (None, 0, None))(key, stacked(lambda k: run.init(params_of(k)), keys), batch)
    for i in range(2):
        assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], together), once[i])
    assert jax.tree.structure(run.params(once[0])) == jax.tree.structure(params_of(key))


@pytest.mark.parametrize("name", OBSERVABLES)
def test_observable(name, key):
    pair = OBSERVABLES[name]()
    batch, keys = batch_of(key), jax.random.split(key, 2)
    start, later = params_of(keys[0]), params_of(keys[1])

    def view(params, batch):
        run = evolve.gradient_descent(L, 0.1)
        return View(params, batch, L, run.init(params), run, step=jnp.int32(0), key=key, data=batch)

    def read(start, later, batch):
        memory, first = pair.update(pair.init(view(start, batch)), view(start, batch))
        _, second = pair.update(memory, view(later, batch))
        return first, second

    first, second = jax.jit(read)(start, later, batch)
    assert first.keys() == second.keys()
    assert all(np.all(np.isfinite(value)) for value in jax.tree.leaves(second))
    memory, eager = pair.update(pair.init(view(start, batch)), view(start, batch))
    assert jax.tree.structure(memory) == jax.tree.structure(pair.init(view(start, batch)))
    assert_close(eager, first)
    both = jax.tree.map(lambda a, b: jnp.stack([a, b]), (start, later), (later, start))
    mapped = jax.jit(jax.vmap(read, (0, 0, None)))(*both, batch)
    assert_close(jax.tree.map(lambda leaf: leaf[0], mapped), (first, second))


def test_every_observable_is_in_the_table():
    """What takes other operators (``density``, ``top_eigenvalue``) or another state (``ntk_of_state``) aside."""
    made = {name for name in observe.__all__ if getattr(getattr(observe, name), "makes_observable", False)}
    assert made - OBSERVABLES.keys() == {"density", "top_eigenvalue", "ntk_of_state"}
