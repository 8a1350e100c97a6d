"""Thirty small networks at small batches: tasks with the lanes' axis last, against the same steps mapped by vmap."""

import resource

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dynamics.evolve import continual_backprop, descent, over_tasks
from dynamics.losses import mse
from dynamics.types import Batch, Objective, Stream

LANES, LONG, SHORT = 30, 5000, 200
pytestmark = pytest.mark.benchmark


def layers(sizes):
    def init(key):
        keys = jax.random.split(key, len(sizes) - 1)
        return [
            {"w": jax.random.normal(k, (a, b)) / a**0.5, "b": jnp.zeros(b)} for k, a, b in zip(keys, sizes, sizes[1:])
        ]

    return init


def features(phi):
    def hidden(params, x):
        found = []
        for layer in params[:-1]:
            x = phi(x @ layer["w"] + layer["b"])
            found.append(x)
        return found

    return hidden


def programs(sizes, phi, optimizer, batch):
    """``(steps -> program of the tasks, steps -> program of mapped steps)``, both of ``LANES`` lanes."""
    hidden, init = features(phi), layers(sizes)
    L = Objective(lambda p, x: hidden(p, x)[-1] @ p[-1]["w"] + p[-1]["b"], mse)
    method, key = descent(L, optimizer(hidden)), jax.random.key(0)
    keys = jax.random.split(key, LANES)
    starts = jax.vmap(init)(keys)

    def data(steps, key):
        kx, ky = jax.random.split(key)
        shape = (steps, batch, sizes[0])
        return Batch(jax.random.bernoulli(kx, 0.5, shape).astype(float), jax.random.normal(ky, (*shape[:2], sizes[-1])))

    def tasks(steps):
        def one(key, params):
            run = over_tasks(method, Stream(lambda task: data(steps, key), steps))
            state = run.step(key, run.init(params), None)
            return run.params(state), state.readings["online_error"]

        return jax.jit(lambda: jax.vmap(one)(keys, starts))

    def mapped(steps):
        def run():
            rows = jax.vmap(lambda key: data(steps, key), out_axes=1)(keys)

            def step(carry, batch):
                state, total = carry
                now = jax.vmap(L)(jax.vmap(method.params)(state), batch)
                return (jax.vmap(method.step, (None, 0, 0))(key, state, batch), total + now), None

            (state, total), _ = jax.lax.scan(step, (jax.vmap(method.init)(starts), jnp.zeros(LANES)), rows)
            return jax.vmap(method.params)(state), total / steps

        return jax.jit(run)

    return tasks, mapped


CASES = {
    "20-5-1, batch 1": ((20, 5, 1), jax.nn.relu, lambda hidden: optax.sgd(0.01), 1, 5.0),
    "20-5-1, renewed": ((20, 5, 1), jax.nn.relu, lambda hidden: continual_backprop(optax.sgd(0.01), hidden), 1, 4.0),
    "8-16-16-2, Adam, batch 4": ((8, 16, 16, 2), jnp.tanh, lambda hidden: optax.adam(1e-3), 4, 1.1),
}


def cpu(function) -> float:
    """User seconds of one call: of a machine that others use too, the clock on the wall says little."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    jax.block_until_ready(function())
    return resource.getrusage(resource.RUSAGE_SELF).ru_utime - before


@pytest.mark.parametrize("case", CASES)
def test_lanes_last_outruns_vmap(case):
    *network, least = CASES[case]
    tasks, mapped = programs(*network)
    same = zip(jax.tree.leaves(tasks(SHORT)()), jax.tree.leaves(mapped(SHORT)()))
    assert all(jnp.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in same)
    new, old = tasks(LONG), mapped(LONG // 5)
    cpu(new), cpu(old)
    pairs = np.array([(cpu(new) / LONG, cpu(old) / (LONG // 5)) for _ in range(5)])
    ours, theirs = 1e6 * np.median(pairs, 0)
    print(f"{case}: {ours:.1f} us of CPU a step, mapped {theirs:.0f}")
    assert np.median(pairs[:, 1] / pairs[:, 0]) > least
