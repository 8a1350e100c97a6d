"""Many runs as one program: lanes of a vmapped Dynamics, each with its own hyper-parameters, random stream and fate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dynamics.evolve.simulate import as_readout
from dynamics.evolve.simulate import simulate as in_memory
from dynamics.types import Array, Dynamics, PyTree, Readout


class LaneState(NamedTuple):
    """State of a vmapped dynamics; every leaf leads with the lane axis.

    Attributes:
        lane: int32 ``[lanes]``: seeds the lane's random stream, so a lane's result is independent of its neighbours.
        hyper: the lane's hyper-parameters, a pytree of ``[lanes, ...]``.
        state: the inner dynamics' states.
    """

    lane: Array
    hyper: PyTree
    state: PyTree


class Lanes(NamedTuple):
    """What ``simulate`` needs for vmapped runs: see ``lanes``."""

    dynamics: Dynamics
    readout: Readout
    stop: Callable[..., Array] | None


def lanes(
    make: Callable[[PyTree], Dynamics],
    readout: Callable[[PyTree], Any] | None = None,
    stop: Callable[[PyTree], Callable[..., Array]] | None = None,
    *,
    data_axis: int | None = None,
) -> Lanes:
    """Maps a dynamics, its readout and its stopping rule over lanes of hyper-parameters and seeds.

    Hyper-parameters live in the state, not in a closure: cells of one shape share one compiled program, and a
    checkpoint holds them.

    Args:
        make: ``hyper -> Dynamics`` for one lane.
        readout: ``hyper -> readout`` for one lane; the readout is ``(state, data) -> {name: array}`` or a ``Readout``.
        stop: ``hyper -> ((state, data) -> bool scalar)`` for one lane.
        data_axis: None when all lanes share the data, 0 when every leaf of the data leads with the lane axis.

    Returns:
        ``Lanes(dynamics, readout, stop)`` for ``simulate``. ``dynamics.init((hyper, params))`` or
        ``init((hyper, params, lane))`` takes pytrees of ``[lanes, ...]`` leaves and gives a ``LaneState``; record
        values come back as ``[T, lanes, ...]``. ``dt`` is 1: times
        are steps; scale them by each lane's own learning rate.

    Cost: that of the lanes together; one compilation.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dynamics.evolve import gradient_descent, lanes, simulate
        >>> from dynamics.losses import mse
        >>> from dynamics.types import Batch
        >>> f = lambda p, x: x @ p
        >>> runs = lanes(lambda eta: gradient_descent(f, mse, eta), lambda eta: lambda s, d: {"loss": s.loss})
        >>> state = runs.dynamics.init((jnp.array([0.1, 0.2]), jnp.ones((2, 3, 1))))
        >>> data = Batch(jnp.ones((4, 3)), jnp.zeros((4, 1)))
        >>> _, record = simulate(runs.dynamics, runs.readout, state, data, 5, jax.random.key(0), [0, 5])
        >>> record.values["loss"].shape
        (2, 2)
    """

    def init(start):
        hyper, params, *given = start
        count = jax.tree.leaves(params)[0].shape[0]
        lane = jnp.asarray(given[0], jnp.int32) if given else jnp.arange(count, dtype=jnp.int32)
        return LaneState(lane, hyper, jax.vmap(lambda h, p: make(h).init(p))(hyper, params))

    def step(key, state: LaneState, data):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, state.lane)
        move = jax.vmap(lambda k, h, s, d: make(h).step(k, s, d), (0, 0, 0, data_axis))
        return state._replace(state=move(keys, state.hyper, state.state, data))

    def params(state: LaneState):
        return jax.vmap(lambda h, s: make(h).params(s))(state.hyper, state.state)

    mapped_readout = _lane_readout(readout or _reads_nothing, data_axis)
    mapped_stop = None if stop is None else _lane_stop(stop, data_axis)
    return Lanes(Dynamics(init, step, params, 1.0), mapped_readout, mapped_stop)


class Program(NamedTuple):
    """Runs of one shape as functions of what may differ between them: what an experiment offers to a sweep.

    ``hyper`` is ``{field: scalar}`` over ``fields`` and ``"seed"``; its values are traced: nothing may branch on them.

    Attributes:
        fields: names of the settings that may differ within one compiled program.
        init: ``hyper -> params``, the start (drawn from ``hyper["seed"]``).
        make: ``hyper -> Dynamics``.
        readout: ``hyper -> readout``.
        data: shared by all cells.
        steps: number of updates.
        record_at: recorded steps ``[T]``.
        stop: ``hyper -> ((state, data) -> bool)``, or None.
    """

    fields: tuple[str, ...]
    init: Callable[[dict[str, Array]], PyTree]
    make: Callable[[dict[str, Array]], Dynamics]
    readout: Callable[[dict[str, Array]], Any]
    data: Any
    steps: int
    record_at: Any
    stop: Callable[[dict[str, Array]], Callable[..., Array]] | None = None


def run_cells(program: Program, hyper: dict[str, Any], simulate=in_memory, *, label: str | None = None, place=None):
    """All cells as the lanes of one program; a cell's result depends on its own settings and seed alone.

    Args:
        program: what the cells share.
        hyper: ``{field: [cells]}`` over ``program.fields`` and ``"seed"`` (whole numbers); the seed draws the start and
            the random stream, so cells that share it share their noise.
        simulate: the time loop.
        label: of the call, for a durable loop.
        place: ``state -> state``, puts the lanes on devices (see ``mesh``); by default they stay where they are.

    Returns:
        ``(LaneState, Record)`` with record values ``[T, cells, ...]``.

    Raises:
        ValueError: when ``hyper`` lacks a field or has another length.

    Cost: that of the cells together; one compilation for each number of cells.
    """
    missing = {*program.fields, "seed"} - hyper.keys()
    lengths = {name: len(value) for name, value in hyper.items()}
    if missing or len(set(lengths.values())) != 1:
        raise ValueError(
            f"hyper: got lengths {lengths}, missing {sorted(missing)}; allowed: every field and 'seed', of one length"
        )
    values = {name: jnp.asarray(value) for name, value in hyper.items()}
    runs = lanes(program.make, program.readout, program.stop)
    params = jax.jit(jax.vmap(program.init))(values)
    state = runs.dynamics.init((values, params, values["seed"]))
    state = state if place is None else place(state)
    key = jax.random.key(0)
    return simulate(
        runs.dynamics, runs.readout, state, program.data, program.steps, key, program.record_at, runs.stop, label=label
    )


def _lane_stop(stop: Callable[[PyTree], Callable[..., Array]], data_axis: int | None) -> Callable[..., Array]:
    def holds(state: LaneState, data):
        return jax.vmap(lambda h, s, d: stop(h)(s, d), (0, 0, data_axis))(state.hyper, state.state, data)

    return holds


def _reads_nothing(hyper):
    return lambda state, data: {}


def _lane_readout(readout: Callable[[PyTree], Any], data_axis: int | None) -> Readout:
    def pair(hyper) -> Readout:
        return as_readout(readout(hyper))

    def init(state: LaneState, data):
        return jax.vmap(lambda h, s, d: pair(h).init(s, d), (0, 0, data_axis))(state.hyper, state.state, data)

    def update(memory, state: LaneState, data):
        each = jax.vmap(lambda m, h, s, d: pair(h).update(m, s, d), (0, 0, 0, data_axis))
        return each(memory, state.hyper, state.state, data)

    return Readout(init, update)
