"""SGD on the hinge loss until every sample has its margin, and the perceptron that can be solved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dynamics.evolve import Drawn
from dynamics.types import Batch, Dynamics, Observable, Record


class Noisy(NamedTuple):
    """Parameters, updates done, and whether every training sample has its margin."""

    params: jax.Array | tuple | list
    updates: jax.Array
    fitted: jax.Array


def until(dynamics: Dynamics, rests: Callable[[Any], jax.Array]) -> Dynamics:
    """``dynamics`` that stays where ``rests(state)`` holds, and is read there, unlike what a study's ``stop`` ends.

    Each step is a loop of one turn or none: under ``vmap`` it takes none, and costs nothing, once all lanes rest.
    """

    def step(key, state, data):
        def turn(at):
            state, own = jax.lax.optimization_barrier((at[0], key))  # else what follows from the key is drawn outside
            return dynamics.step(own, state, data), jnp.ones((), bool)

        return jax.lax.while_loop(lambda at: ~at[1] & ~rests(at[0]), turn, (state, jnp.zeros((), bool)))[0]

    return dynamics._replace(step=step)


def hinge_sgd(apply, alpha, temperature, samples, origin, *, batch: int, block: int) -> Dynamics:
    """SGD on the hinge loss of ``alpha (f - f_0)``, looking at the whole training set after every ``block`` updates.

    It stays where it fits or has diverged. Of the ``Batch`` of ``x [n, d]``, ``y [n, 1]`` the first ``samples`` are
    trained on; ``origin [n, 1]`` is f_0 there.
    """

    def margin(params, x, y, f0):
        return 1.0 - alpha * y * (apply(params, x) - f0)

    def loss(params, x, y, f0):
        return jnp.sum(jax.nn.relu(margin(params, x, y, f0))) / alpha

    def step(key, state: Noisy, data: Batch) -> Noisy:
        known = (*data, origin)

        def update(params, rows):
            gradient = jax.grad(loss)(params, *(leaf[rows] for leaf in known))
            return jax.tree.map(lambda p, g: p - temperature * g, params, gradient), None

        rows = jax.random.randint(key, (block, batch), 0, samples)
        params, _ = jax.lax.scan(update, state.params, rows)
        missed = (margin(params, data.x, data.y, origin) > 0) & (jnp.arange(len(origin))[:, None] < samples)
        return Noisy(params, state.updates + block, ~jnp.any(missed) & is_finite(params))

    def init(params) -> Noisy:
        return Noisy(params, jnp.zeros((), jnp.int32), jnp.zeros((), bool))

    sgd = Dynamics(init, step, lambda state: state.params)
    return until(sgd, lambda state: state.fitted | ~is_finite(state.params))


def is_finite(params) -> jax.Array:
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)]))


def perceptron(chi: float) -> str:
    """The name of its record."""
    return f"perceptron, chi = {chi:g}"


def perceptron_samples(config, chi: float) -> tuple[int, ...]:
    """The perceptron's training samples P at ``chi``: the more density at the boundary, the longer does P take."""
    return config.uniform_samples if chi < 1 else config.perceptron_samples


def run_perceptron(config, chi: float, study) -> Record:
    """Every (d, P, draw) as one program, from zero weights: ratio ``w_1/|w_perp|``, norm and updates.

    Args:
        config: of ``sgd_noise``; its ``perceptron_*`` fields, ``uniform_samples``, ``chi`` and ``seed``.
        chi: exponent of the data's density, one of ``config.chi``.
        study: the pure or the durable one.

    Returns:
        A ``Record`` of values ``[1, d, P, draws]``; NaN where a draw did not fit its training set.
    """
    samples, usual = perceptron_samples(config, chi), type(config)()
    dim, most, number = max(config.perceptron_dim), max(samples), config.chi.index(chi)
    keys = jax.random.split(jax.random.key(config.seed), config.perceptron_seeds)
    chis, counts, draws = len(usual.chi), len(usual.perceptron_samples), usual.perceptron_seeds

    def draw(lane) -> Drawn:
        kx, kr, ks = jax.random.split(keys[lane.draw], 3)
        radius = jnp.sqrt(2 * jax.random.gamma(kr, (chi + 1) / 2, (most,)))  # density |x_1|^chi exp(-x_1^2/2)
        x1 = radius * jax.random.rademacher(ks, (most,))
        x = jax.random.normal(kx, (most, dim)).at[:, 0].set(x1)
        x = jnp.where(jnp.arange(dim) < lane.perceptron_dim, x, 0.0) * (dim / lane.perceptron_dim) ** 0.5
        return Drawn(jnp.zeros((dim, 1)), Batch(x, jnp.sign(x1)[:, None]))

    def make(lane) -> Dynamics:
        return hinge_sgd(
            linear, 1.0, 1024.0 / 4, lane.perceptron_samples, jnp.zeros((most, 1)), batch=4, block=1024
        )  # fmt: skip

    def read(view):
        w = jnp.where(view.state.fitted, view.params[:, 0], jnp.nan)
        ratio = w[0] / jnp.linalg.norm(w[1:])
        return {"ratio": ratio, "norm": jnp.linalg.norm(w), "updates": view.state.updates.astype(float)}

    blocks = -(-config.perceptron_updates // 1024)
    return study(
        {
            "perceptron_dim": config.perceptron_dim,
            "perceptron_samples": samples,
            "draw": range(config.perceptron_seeds),
        },
        draw=draw,
        make=make,
        read=Observable.of_view(read),
        steps=blocks,
        record_at=[blocks],
        key=jax.random.key(config.seed),
        label=perceptron(chi),
        stream=lambda at: (
            ((at["perceptron_dim"] * chis + number) * counts + at["perceptron_samples"]) * draws + at["draw"]
        ),
    )


def linear(w, x):
    """``w.x/sqrt(d)``."""
    return x @ w / x.shape[-1] ** 0.5
