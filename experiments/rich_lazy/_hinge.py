"""SGD on the hinge loss until every sample has its margin, lane by lane, and the perceptron that can be solved."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics.empirical import empirical_ntk_fn, kernel_distance
from dynamics.evolve import lanes
from dynamics.types import Batch, Dynamics, Record


class Lane(NamedTuple):
    """One run: output scale, temperature, training samples, its data set, and ``f_0 [n, 1]`` there (by ``train``)."""

    alpha: jax.Array
    temperature: jax.Array
    samples: jax.Array
    pool: jax.Array
    origin: Any = None


class Noisy(NamedTuple):
    """Parameters, updates done, and whether every training sample has its margin."""

    params: jax.Array | tuple | list
    updates: jax.Array
    fitted: jax.Array


def hinge_sgd(apply, lane: Lane, batch: int, block: int) -> Dynamics:
    """``block`` SGD steps on the hinge loss of ``alpha (f - f_0)``, then a look at the whole training set.

    ``data`` is a ``Batch`` of pools ``x [pools, n, d]``, ``y [pools, n, 1]``; a lane sees the first P rows of its own.
    """

    def margin(params, x, y, origin):
        return 1.0 - lane.alpha * y * (apply(params, x) - origin)

    def loss(params, x, y, origin):
        return jnp.sum(jax.nn.relu(margin(params, x, y, origin))) / lane.alpha

    def step(key, state: Noisy, data: Batch) -> Noisy:
        x, y = data.x[lane.pool], data.y[lane.pool]

        def update(params, rows):
            gradient = jax.grad(loss)(params, data.x[lane.pool, rows], data.y[lane.pool, rows], lane.origin[rows])
            return jax.tree.map(lambda p, g: p - lane.temperature * g, params, gradient), None

        rows = jax.random.randint(key, (block, batch), 0, lane.samples)
        params, _ = jax.lax.scan(update, state.params, rows)
        missed = (margin(params, x, y, lane.origin) > 0) & (jnp.arange(len(y))[:, None] < lane.samples)
        return Noisy(params, state.updates + block, ~jnp.any(missed) & is_finite(params))

    return Dynamics(
        lambda params: Noisy(params, jnp.zeros((), jnp.int32), jnp.zeros((), bool)), step, lambda state: state.params
    )


def is_finite(params) -> jax.Array:
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)]))


def train(seed: int, apply, start, lane: Lane, data: Batch, batch: int, block: int, updates: int, simulate, label: str):
    """Runs every lane as one program until it fits, diverges or runs out of updates: the final ``Noisy`` states.

    ``start`` holds the lanes' first parameters; ``lane.origin`` is filled in.
    """
    origin = jax.jit(jax.vmap(lambda params, pool: apply(params, data.x[pool])))(start, lane.pool)
    runs = lanes(
        lambda lane: hinge_sgd(apply, lane, batch, block),
        None,
        lambda lane: lambda state, data: state.fitted | ~is_finite(state.params),
    )
    state = runs.dynamics.init((lane._replace(origin=origin), start))
    blocks, key = -(-updates // block), jax.random.key(seed)
    state, _ = simulate(runs.dynamics, runs.readout, state, data, blocks, key, [blocks], runs.stop, label=label)
    return state.state


def changes(apply, x, start, params):
    """Relative movement of the weights and of the kernel on ``x``."""
    ntk = empirical_ntk_fn(apply)
    moved, size = (
        jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)))
        for tree in (jax.tree.map(jnp.subtract, params, start), start)
    )
    return moved / size, kernel_distance(ntk(x, None, params), ntk(x, None, start))


def run_perceptron(config, simulate) -> Record:
    """Every (chi, P, draw) as one program, from zero weights: ratio ``w_1/|w_perp|``, norm and updates.

    Args:
        config: of ``sgd_noise``; its ``perceptron_*`` fields, ``chi`` and ``seed``.
        simulate: the time loop.

    Returns:
        A ``Record`` of values ``[1, chi, P, seeds]``; NaN where a draw did not fit its training set.
    """
    dim, most = 16, max(config.perceptron_samples)
    shape = (len(config.chi), len(config.perceptron_samples), config.perceptron_seeds)
    chi, samples, seed = (g.ravel() for g in np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"))

    def draw(chi, key):
        kx, kr, ks = jax.random.split(key, 3)
        radius = jnp.sqrt(2 * jax.random.gamma(kr, (chi + 1) / 2, (most,)))  # density |x_1|^chi exp(-x_1^2/2)
        x1 = radius * jax.random.rademacher(ks, (most,))
        return Batch(jax.random.normal(kx, (most, dim)).at[:, 0].set(x1), jnp.sign(x1)[:, None])

    keys = jax.random.split(jax.random.key(config.seed), config.perceptron_seeds)
    data = jax.vmap(jax.vmap(draw, (None, 0)), (0, None))(jnp.asarray(config.chi), keys)
    data = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), data)
    count = len(chi)
    lane = Lane(
        jnp.ones(count),
        jnp.full(count, 1024.0 / 4),
        jnp.asarray(config.perceptron_samples)[samples],
        jnp.asarray(chi * config.perceptron_seeds + seed),
    )
    start = jnp.zeros((count, dim, 1))
    end = train(config.seed, linear, start, lane, data, 4, 1024, config.perceptron_updates, simulate, "perceptron")
    w = np.where(np.asarray(end.fitted)[:, None], np.asarray(end.params)[:, :, 0], np.nan)
    ratio = w[:, 0] / np.linalg.norm(w[:, 1:], axis=1)
    values = {"ratio": ratio, "norm": np.linalg.norm(w, axis=1), "updates": np.asarray(end.updates, float)}
    return as_record(values, shape)


def linear(w, x):
    """``w.x/sqrt(d)``."""
    return x @ w / x.shape[-1] ** 0.5


def as_record(values: dict, shape) -> Record:
    once = np.zeros(1, int)
    return Record(once, once, {name: np.reshape(value, (1, *shape)) for name, value in values.items()})
