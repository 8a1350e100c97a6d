"""One property list for everything shipped: what a room exports is in it by construction.

Pytree in, pytree out; jit = eager; vmap = a loop; the same key gives the same result; nothing depends on hidden state.
"""

import inspect

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dynamics import evolve, geometry, models, observe, operators, stax
from dynamics.losses import accuracy, half_mse
from dynamics.statistics import weight_norm
from dynamics.tasks.streams import label_flips
from dynamics.types import Batch, Objective, View


def network(params, x):
    return jnp.tanh(x @ params["w"]) @ params["v"]


L = Objective(network, half_mse)

# What a required parameter of this name is given, whoever has it: a new export needs a line here only for a new word.
ARGUMENTS = {
    "batch_size": 2,
    "curve": jnp.linspace(-1.0, 1.0, 12).reshape(4, 3),
    "discount": 0.9,
    "draw": lambda key, batch: batch,
    "dt": 0.1,
    "dynamics": evolve.gradient_descent(L, 0.1),
    "features": lambda params, x: {"hidden": weight_norm(params) * jnp.ones((3, 2))},
    "field": lambda state, data: jax.tree.map(jnp.negative, state),
    "interval": 1,
    "k": 2,
    "learning_rate": 0.1,
    "make": lambda L: evolve.gradient_descent(L, 0.1),
    "model": stax.serial(stax.Dense(6), stax.Erf(), stax.Dense(2)),
    "alpha": 3.0,
    "module": nn.Sequential([nn.Dense(6), nn.tanh, nn.Dense(2)]),
    "name": "hessian",
    "objective": L,
    "observable": observe.loss(),
    "operator": operators.hessian,
    "optimizer": optax.adam(1e-2),
    "outputs": 2,
    "potential": geometry.signed_entropy(),
    "preactivations": lambda params, x: {"hidden": x * weight_norm(params)},
    "phi": jnp.tanh,
    "prefix": "a",
    "read": lambda start, params, batch: {"moved": weight_norm(jax.tree.map(jnp.subtract, params, start))},
    "stream": label_flips(Batch(jnp.ones((4, 3)), jnp.ones((4, 2)))),
    "tokens": 5,
    "width": 8,
}
OF_A_VIEW = {"operator": lambda view: operators.hessian(view.objective, view.params, view.batch)}
# Further settings, for more readings or less time.
SETTINGS = {
    "from_equinox": {"make": lambda key: eqx.nn.MLP(3, 2, 6, 1, activation=jnp.tanh, key=key)},
    "over_tasks": {"steps": 2},
    "transformer": {"width": 8, "heads": 2},
    "scores": {"error": half_mse, "accuracy": accuracy},
    "weight_ranks": {"spectrum": True},
    "end_to_end": {"spectrum": True},
    "ntk": {"gram": True, "spectrum": 3},
    "sharpness": {"num_matvecs": 4, "certified_matvecs": 8},
    "top_eigenvalue": OF_A_VIEW | {"num_matvecs": 4, "certified_matvecs": 8},
    "preconditioned_sharpness": {"num_matvecs": 4, "certified_matvecs": 8},
    "sharpness_drift": {"num_matvecs": 25},
    "hessian_trace": {"probes": 4},
    "gradient_noise": {"k": 2, "probes": 4},
    "batch_sharpness": {"draws": 4},
    "density": OF_A_VIEW | {"probes": 2, "steps": 6},
    **{f"{name}_density": {"probes": 2, "steps": 6} for name in ("hessian", "gauss_newton", "ntk")},
    "eigenvalues": OF_A_VIEW,
    "layer_densities": {"probes": 2, "steps": 3},
}
MORE = {
    "stax": lambda: stax.serial(stax.Dense(6), stax.Erf(), stax.Dense(2)),
    "stax standard": lambda: stax.serial(
        stax.Dense(6, parameterization="standard", b_std=0.1), stax.Relu(), stax.Dense(2)
    ),
    "momentum": lambda: evolve.gradient_descent(L, 0.1, momentum=0.9),
    "minibatch": lambda: evolve.gradient_descent(L, 0.1, batch_size=3),
    "joined": lambda: observe.joined(observe.movement(), observe.prefixed("a", observe.loss())),
}


def made(function, **given):
    """``function`` called with whatever it requires, by its parameters' names."""
    given = SETTINGS.get(function.__name__, {}) | given
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.default is parameter.empty and parameter.kind < parameter.VAR_POSITIONAL and name not in given:
            assert name in ARGUMENTS, f"{function.__name__}: say in ARGUMENTS what the parameter {name!r} is given"
            given[name] = ARGUMENTS[name]
    return function(**given)


def table(module, returns):
    """``{name: make}`` of what the module exports and what ``returns`` so, and the further forms of such."""
    functions = {name: getattr(module, name) for name in module.__all__ if inspect.isfunction(getattr(module, name))}
    return {
        name: MORE.get(name, lambda function=function: made(function))
        for name, function in functions.items()
        if returns in str(inspect.signature(function).return_annotation).split(" | ")
    }


OBSERVABLES = table(observe, "Observable")
DYNAMICS = table(evolve, "Dynamics") | {name: MORE[name] for name in ("momentum", "minibatch")}
MODELS = table(models, "Model") | {name: MORE[name] for name in ("stax", "stax standard")}
MODELS.pop("frozen")  # of a StatefulModel: test_models.py


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
    x = batch_of(key).x
    if name == "transformer":
        x = jax.random.randint(key, x.shape, 0, ARGUMENTS["tokens"])
    shape, params = model.init(keys[0], (-1, 3))
    f = model.apply(params, x)
    assert (-1, *f.shape[1:]) == shape
    assert f.shape[0] == 8
    jax.tree.map(np.testing.assert_array_equal, params, model.init(keys[0], (-1, 3))[1])
    assert_close(jax.jit(model.apply)(params, x), f)
    both = stacked(lambda k: model.init(k, (-1, 3))[1], keys)
    assert_close(jax.jit(jax.vmap(model.apply, (0, None)))(both, x)[0], f)
    rows = np.concatenate([jax.jit(model.apply)(params, x[i : i + 1]) for i in range(3)])
    assert_close(rows, f[:3])  # samples do not mix
    tree = jax.jit(jax.grad(lambda p: jnp.sum(model.apply(p, x) ** 2)))(params)
    assert jax.tree.structure(tree) == jax.tree.structure(params)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if "central" in name else ()) for name in DYNAMICS]
)
def test_dynamics(name, key):
    run = DYNAMICS[name]()
    batch, keys = batch_of(key), jax.random.split(key, 2)

    def init(key):
        start = params_of(key)
        return run.init((start, batch) if name == "kernel_descent" else start)

    states = [init(k) for k in keys]
    once = [run.step(key, state, batch) for state in states]
    assert jax.tree.structure(once[0]) == jax.tree.structure(states[0])
    types = [
        jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.asarray(leaf).dtype), tree) for tree in (states[0], once[0])
    ]
    assert types[0] == types[1]  # a step keeps shapes and dtypes, so that a loop can carry it
    assert_close(once[0], run.step(key, states[0], batch))
    assert_close(once[0], jax.jit(run.step)(key, states[0], batch))
    together = jax.jit(jax.vmap(run.step, (None, 0, None)))(key, stacked(init, keys), batch)
    for i in range(2):
        assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], together), once[i])
    assert jax.tree.structure(run.params(once[0])) == jax.tree.structure(params_of(key))


SIZED = {
    name: (lambda dt, name=name, size=size: made(getattr(evolve, name), **{size: dt}))
    for name in table(evolve, "Dynamics")
    for size in ("learning_rate", "dt")
    if size in inspect.signature(getattr(evolve, name)).parameters
} | {"linearized": lambda dt: evolve.linearized(L, lambda L: evolve.gradient_flow(L, dt))}
ORDERS = {name: make(0.1).order for name, make in SIZED.items()}


def test_every_solver_and_flow_states_its_order():
    """Optimisers whose ``dt`` is a label have none, nor have those whose second moments forget by the step: at fixed
    time they tend to the flow of the gradient's sign, at order 1 only below a thousandth of what they are used at."""
    unordered = {"descent", "kernel_descent", "adam", "adaptive_central_flow"}
    assert {name for name, order in ORDERS.items() if order is None} == unordered
    assert ORDERS["gradient_flow"] == 4


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if "central" in name else ()) for name in ORDERS if ORDERS[name]],
)
def test_the_order_is_the_one_stated(name, key, x64):
    """At a fixed time the path at dt and dt/2 differ by ``c dt^p``: two halvings give p, to the next order's share."""
    batch, time, coarse = batch_of(key), 0.4, 16 if ORDERS[name] == 4 else 64

    def end(count):
        run = SIZED[name](time / count)
        state, _ = evolve.simulate(run, params_of(key), batch, steps=count)
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(run.params(state))])

    paths = [end(coarse * 2**i) for i in range(3)]
    first, second = (np.linalg.norm(paths[i] - paths[i + 1]) for i in range(2))
    assert abs(np.log2(first / second) - ORDERS[name]) < 0.2


def reader(name, key):
    """``(init, update)`` of an observable on parameters alone."""
    pair, batch = OBSERVABLES[name](), batch_of(key)

    def view(params):
        run = evolve.gradient_descent(L, 0.1)
        state = run.init(params)
        if name == "ntk_of_state":
            run = evolve.kernel_descent(L, ARGUMENTS["optimizer"])
            state = run.init((params, batch))
        return View(params, batch, L, state, run, step=jnp.int32(0), key=key, data=batch)

    return lambda params: pair.init(view(params)), lambda memory, params: pair.update(memory, view(params))


@pytest.mark.parametrize("name", OBSERVABLES)
def test_observable(name, key):
    """Keeps its readings' names and its memory's form, and reads side by side what it reads alone."""
    init, update = map(jax.jit, reader(name, key))
    start, later = (params_of(k) for k in jax.random.split(key, 2))
    first_memory = init(start)
    memory, first = update(first_memory, start)
    _, second = update(memory, later)
    assert first.keys() == second.keys()
    assert all(np.all(np.isfinite(value)) for value in jax.tree.leaves(second))
    assert jax.tree.structure(memory) == jax.tree.structure(first_memory)
    both = jax.tree.map(lambda a, b: jnp.stack([a, b]), (start, later), (later, start))
    together = jax.jit(jax.vmap(update))
    memories, mapped = together(jax.jit(jax.vmap(init))(both[0]), both[0])
    assert_close(jax.tree.map(lambda leaf: leaf[0], (mapped, together(memories, both[1])[1])), (first, second))


@pytest.mark.slow
@pytest.mark.parametrize("name", OBSERVABLES)
def test_observable_is_the_same_outside_jit(name, key):
    init, update = reader(name, key)
    start = params_of(key)
    assert_close(update(init(start), start)[1], jax.jit(update)(jax.jit(init)(start), start)[1])


def test_the_tables_are_the_rooms():
    """What makes an observable, a dynamics or a model is found by what it says it returns."""
    marked = {name for name in observe.__all__ if getattr(getattr(observe, name), "makes_observable", False)}
    assert marked <= OBSERVABLES.keys()
    assert {"gradient_descent", "ode", "kernel_descent", "adaptive_central_flow"} <= DYNAMICS.keys()
    assert {"from_flax", "committee", "transformer", "scaled"} <= MODELS.keys()


def test_what_needs_a_new_word_is_told():
    def unheard_of(strangeness):
        """Takes what no other takes."""

    with pytest.raises(AssertionError, match="unheard_of: say in ARGUMENTS what the parameter 'strangeness' is given"):
        made(unheard_of)
