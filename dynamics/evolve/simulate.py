"""The only time loop: ``simulate`` moves a state and records on device; ``advance`` is the same loop by chunks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics.evolve.checks import check_data, check_key
from dynamics.types import Array, Dynamics, PyTree, Readout, Record, StatefulObservable

RESERVED = {"step", "time", "cell"}
"""Names that no reading may have: the coordinates of records and sweeps."""


class Carry(NamedTuple):
    """Everything a run is, as one pytree: what a checkpoint stores and ``advance`` moves.

    Attributes:
        state: the dynamics' state.
        memory: the readout's memory (warm starts, kernels at the start).
        step: int32 scalar, updates done.
        done: bool scalar, or ``[lanes]``: stopped for good.
    """

    state: PyTree
    memory: PyTree
    step: Array
    done: Array


def log_steps(steps: int, count: int = 80) -> np.ndarray:
    """About ``count`` log-spaced integer steps from 0 to ``steps``, both included; strictly increasing, int ``[T]``.

    Raises:
        ValueError: unless ``steps >= 1`` and ``count >= 2``.
    """
    if steps < 1 or count < 2:
        raise ValueError(f"log_steps: got steps={steps!r}, count={count!r}; allowed: steps >= 1 and count >= 2")
    spaced = np.unique(np.round(np.geomspace(1, steps, count - 1)).astype(int))
    return np.concatenate([[0], spaced])


def every(interval: int, steps: int) -> np.ndarray:
    """Steps ``0, interval, 2 interval, ...`` up to ``steps``, which is always included; int ``[T]``.

    Raises:
        ValueError: unless ``interval >= 1`` and ``steps >= 0``.
    """
    if interval < 1 or steps < 0 or int(interval) != interval:
        raise ValueError(f"every: got interval={interval!r}, steps={steps!r}; allowed: integers >= 1 and >= 0")
    return np.unique(np.append(np.arange(0, steps + 1, interval), steps))


def simulate(
    dynamics: Dynamics,
    readout: Callable[..., Any] | Readout,
    state: PyTree,
    data: Any,
    steps: int,
    key: Array,
    record_at: Any,
    stop: Callable[..., Array] | None = None,
    *,
    label: str | None = None,
) -> tuple[PyTree, Record]:
    """Runs ``steps`` updates in one jitted loop and records ``readout`` at the steps in ``record_at``.

    Step ``k`` (counted from 0) draws from ``fold_in(key, k)``, so splitting a run into chunks changes no bit of it, and
    recording never changes the trajectory. The call may stand inside ``jit`` or ``vmap``.

    Args:
        dynamics: how to move; its ``step`` is traced once.
        readout: ``(state, data) -> {name: array}``, or a ``Readout`` pair where memory is needed.
        state: the start, from ``dynamics.init(params)``.
        data: any pytree, usually ``Data(train, test)``; an argument of the compiled loop, never a constant in it.
        steps: number of updates, >= 0.
        key: a PRNG key.
        record_at: increasing integer steps in ``[0, steps]``, ``[T]``; see ``log_steps`` and ``every``.
        stop: ``(state, data) -> bool`` (a scalar, or ``[lanes]`` for a state whose leaves all lead with a lane axis),
            read before each update; where it holds the state stays frozen, and later readings are NaN.
        label: the name under which a durable driver journals this call; the pure loop ignores it.

    Returns:
        ``(state, Record)``; record values are ``[T, ...]``, integer and boolean ones as floats when ``stop`` is given.

    Raises:
        ValueError: when ``steps`` or ``record_at`` is out of range, or a reading has the name of a coordinate.

    Cost: the updates, one readout a recorded step, and one ``stop`` a step; no host round trip.
    """
    del label
    check_data(data)
    targets = check_record_at(record_at, steps)
    count = len(targets)
    ends = targets if count and targets[-1] == steps else np.append(targets, np.int32(steps))
    carry = start(readout, state, data, stop)
    carry, values = advance(dynamics, readout, stop, carry, data, key, ends, np.arange(len(ends)) < count)
    values = {name: value[:count] for name, value in values.items()}
    return carry.state, Record(targets, times(dynamics.dt, targets), values)


def check_record_at(record_at: Any, steps: int) -> np.ndarray:
    """``record_at`` as a checked int32 array.

    Raises:
        ValueError: unless the steps are strictly increasing integers in ``[0, steps]``.
    """
    targets = np.asarray(record_at)
    if isinstance(steps, str) or np.ndim(steps) or not 0 <= steps < 2**31 or int(steps) != steps:
        raise ValueError(f"steps: got {steps!r}; allowed: an integer >= 0 and below 2^31")
    if targets.ndim != 1 or (targets.size and not np.issubdtype(targets.dtype, np.integer)):
        raise ValueError(f"record_at: got shape {targets.shape} and dtype {targets.dtype}; allowed: integers [T]")
    if targets.size and (targets[0] < 0 or targets[-1] > steps or np.any(np.diff(targets) <= 0)):
        raise ValueError(
            f"record_at: got {targets.tolist()[:8]}...; allowed: strictly increasing steps in [0, {steps}]"
        )
    return targets.astype(np.int32)


def times(dt: Any, steps: np.ndarray) -> Any:
    """``dt * step`` as ``[T]``, or ``[T, lanes]`` when ``dt`` is per lane."""
    if isinstance(dt, (int, float)):
        return steps * dt
    dt = jnp.asarray(dt)
    return jnp.reshape(jnp.asarray(steps, dt.dtype), (-1,) + (1,) * dt.ndim) * dt


def start(readout: Callable[..., Any] | Readout, state: PyTree, data: Any, stop=None) -> Carry:
    """The carry at step 0: the state, the readout's fresh memory, nothing stopped."""
    memory = as_readout(readout).init(state, data)
    done = jnp.zeros((), bool) if stop is None else jnp.zeros(jax.eval_shape(stop, state, data).shape, bool)
    return Carry(jax.tree.map(jnp.asarray, state), memory, jnp.zeros((), jnp.int32), done)


def advance(dynamics: Dynamics, readout, stop, carry: Carry, data: Any, key: Array, targets: Any, read: Any = None):
    """Moves ``carry`` through the steps ``targets [T]`` (non-decreasing), reading where the mask ``read [T]`` says.

    Returns:
        ``(carry, {name: [T, ...]})``, with zeros where nothing was read; ``read=None`` reads everywhere. A target that
        is already reached and not read costs nothing, so chunks may be padded to one length by repeating the last
        target, and cut between recorded steps, without a second program or a changed bit. Compiled once for each
        ``(dynamics.step, readout, stop)`` and number of targets.
    """
    check_key(key)
    targets = jnp.asarray(targets, jnp.int32)
    read = jnp.ones(targets.shape, bool) if read is None else jnp.asarray(read, bool)
    return _advance(dynamics.step, readout, stop, carry, data, key, targets, read)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _advance(step_fn, readout, stop, carry: Carry, data, key, targets, read):
    update = as_readout(readout).update

    def move(carry: Carry) -> Carry:
        new = step_fn(jax.random.fold_in(key, carry.step), carry.state, data)
        if stop is None:
            return carry._replace(state=new, step=carry.step + 1)
        done = carry.done | stop(carry.state, data)
        frozen = jax.tree.map(lambda old, moved: jnp.where(_expand(done, moved), old, moved), carry.state, new)
        return carry._replace(state=frozen, step=carry.step + 1, done=done)

    def reading(carry: Carry):
        memory, values = update(carry.memory, carry.state, data)
        if not isinstance(values, Mapping):
            raise TypeError(f"readout: got {type(values).__name__} from it; allowed: a dictionary {{name: array}}")
        values = {name: jnp.asarray(value) for name, value in values.items()}
        if taken := sorted(RESERVED & values.keys()):
            raise ValueError(f"readout: got a reading named {taken[0]!r}; allowed: any name but {sorted(RESERVED)}")
        if stop is not None:
            values = {name: _mask(carry.done, value) for name, value in values.items()}
        return memory, values

    def no_reading(carry: Carry):
        values = jax.eval_shape(reading, carry)[1]
        return carry.memory, {name: jnp.zeros(value.shape, value.dtype) for name, value in values.items()}

    def segment(carry: Carry, at):
        target, here = at

        def going(carry: Carry):
            return (carry.step < target) & ~jnp.all(carry.done)

        carry = jax.lax.while_loop(going, move, carry)
        carry = carry._replace(step=jnp.maximum(carry.step, target))
        memory, values = jax.lax.cond(here, reading, no_reading, carry)
        return carry._replace(memory=memory), values

    return jax.lax.scan(segment, carry, (targets, read))


_OBSERVABLES = {f"dynamics.observe.{topic}" for topic in ("loss", "density", "rank", "fourier", "noise", "groups")}


def as_readout(readout: Callable[..., Any] | Readout) -> Readout:
    """``readout`` as a ``Readout`` pair; a plain function gets an empty memory."""
    if isinstance(readout, Readout):
        return readout
    observable = isinstance(readout, StatefulObservable) or getattr(readout, "__module__", "") in _OBSERVABLES
    if observable or not callable(readout):
        got = "an observable" if observable else type(readout).__name__
        raise TypeError(f"readout: got {got}; allowed: observe.readout(dynamics, observable), or (state, data) -> dict")
    return Readout(lambda state, data: (), lambda memory, state, data: (memory, readout(state, data)))


def _expand(done: Array, leaf: Array) -> Array:
    return jnp.reshape(done, done.shape + (1,) * (jnp.ndim(leaf) - done.ndim))


def _mask(done: Array, value: Array) -> Array:
    value = value if jnp.issubdtype(value.dtype, jnp.inexact) else value.astype(jnp.result_type(float))
    return jnp.where(_expand(done, value), jnp.nan, value)
