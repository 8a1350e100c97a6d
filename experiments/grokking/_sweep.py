"""Cells of hyper-parameters, each over the same seeds, as the lanes of one program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynamics.config import Config
from dynamics.evolve import lanes
from dynamics.observe.seldom import seldom
from dynamics.types import Array, Data, Dynamics, Params, PyTree, Record
from experiments.grokking._mechanism import mechanism, on_training


def sweep(
    config: Config,
    simulate: Callable[..., Any],
    draw: Callable[[Array], tuple[Data, Params]],
    hyper: PyTree,
    make: Callable[[Any], Dynamics],
    read: Callable[[Any], Callable[..., Any]],
    steps: int,
    record_at: Any,
    *,
    apply: Callable[[Any], Callable[..., Array]] | None = None,
    kernel_every: int = 10,
    start: Callable[[Any, Params], Params] | None = None,
    label: str = "network",
) -> Record:
    """Runs every cell on every seed of ``config``; record values are ``[T, cells, seeds, ...]``.

    Args:
        config: gives ``seed`` and ``seeds``.
        simulate: the time loop.
        draw: ``key -> (data, params)`` of one seed, shared by its cells.
        hyper: pytree of ``[cells]`` arrays.
        make, read: ``hyper -> Dynamics`` and ``hyper -> readout`` of one cell.
        steps, record_at, label: as ``simulate`` takes them.
        apply: ``hyper -> (params, x) -> f``: also reads ``mechanism``, at every ``kernel_every``-th recorded step.
        start: ``(hyper, params) -> params``, the start of a cell; by default what was drawn.
    """
    cells, keys = len(jax.tree.leaves(hyper)[0]), jax.random.key(config.seed)
    drawn = [draw(jax.random.fold_in(keys, seed)) for seed in range(config.seeds)]
    data, params = jax.tree.map(lambda *leaves: np.concatenate([np.stack(leaves)] * cells), *drawn)
    hyper = jax.tree.map(lambda leaf: jnp.repeat(jnp.asarray(leaf), config.seeds), hyper)
    params = params if start is None else jax.vmap(start)(hyper, params)
    runs = lanes(make, read, data_axis=0)
    readout = runs.readout
    if apply is not None:
        kernels = lanes(make, lambda h: on_training(mechanism(apply(h))), data_axis=0).readout
        readout = seldom(readout, kernels, kernel_every)
    state = runs.dynamics.init((hyper, params))
    _, record = simulate(runs.dynamics, readout, state, data, steps, keys, record_at, label=label)
    values = {k: np.reshape(v, (len(record_at), cells, -1, *np.shape(v)[2:])) for k, v in record.values.items()}
    return record._replace(values=values)
