"""The only time loop: ``simulate`` moves a state and reads on device; ``advance`` is the same loop by chunks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import PRNGKeyArray

from dynamics.evolve.checks import check_data, check_dynamics, check_key
from dynamics.evolve.views import reader
from dynamics.mesh import LANES, mesh_of_lanes
from dynamics.precision import own_precision
from dynamics.program.on_cpus import quick_loops
from dynamics.record import RESERVED
from dynamics.types import Array, Dynamics, Observable, PyTree, Record, View

Observables = Any
"""An observable, or a sequence of them; plain functions ``(params, batch) -> {name: array}`` are lifted."""


class Carry(NamedTuple):
    """Everything a run is, as one pytree: what a checkpoint stores and ``advance`` moves.

    Attributes:
        state: the dynamics' state.
        memory: the observables' memory (warm starts, kernels at the start).
        step: int32 scalar, updates done.
        done: bool scalar, or ``[lanes]``: stopped for good.
        reading: int32 scalar, readings taken.
    """

    state: PyTree
    memory: PyTree
    step: Array
    done: Array
    reading: Array


def log_steps(steps: int, count: int = 80) -> np.ndarray:
    """About ``count`` log-spaced integer steps from 0 to ``steps``, both included; strictly increasing, int ``[T]``.

    Raises:
        ValueError: unless ``steps >= 1`` and ``count >= 2``.
    """
    if not 1 <= steps < np.inf or not 2 <= count < np.inf or int(count) != count:
        raise ValueError(f"log_steps: got steps={steps!r}, count={count!r}; allowed: steps >= 1, an integer count >= 2")
    spaced = np.unique(np.round(np.geomspace(1, steps, int(count) - 1)).astype(int))
    return np.concatenate([[0], spaced])


def every(interval: int, steps: int) -> np.ndarray:
    """Steps ``0, interval, 2 interval, ...`` up to ``steps``, which is always included; int ``[T]``.

    Raises:
        ValueError: unless ``interval >= 1`` and ``steps >= 0``.
    """
    if not 1 <= interval < np.inf or not 0 <= steps < np.inf or int(interval) != interval:
        raise ValueError(f"every: got interval={interval!r}, steps={steps!r}; allowed: integers >= 1 and >= 0")
    return np.unique(np.append(np.arange(0, steps + 1, interval), steps))


def simulate(
    dynamics: Dynamics,
    params: PyTree,
    data: Any,
    *old: Any,
    train: Observables = (),
    test: Observables = (),
    steps: int | None = None,
    record_at: Any = None,
    key: PRNGKeyArray | None = None,
    stop: Callable[..., Array] | None = None,
    state: PyTree = None,
    label: str | None = None,
) -> tuple[PyTree, Record]:
    """Runs ``steps`` updates in one jitted loop and reads observables at the steps in ``record_at``.

    Step ``k`` (counted from 0) draws from ``fold_in(key, k)``, so splitting a run into chunks changes no bit of it, and
    reading never changes the trajectory. The call may stand inside ``jit`` or ``vmap``. Products of float32 numbers
    are made in float32 on a GPU too, unless ``jax_default_matmul_precision`` is set, or a model asks for less.

    Args:
        dynamics: how to move; its ``step`` is traced once.
        params: what ``dynamics.init`` takes, usually the parameters.
        data: any pytree, usually ``Data(train, test)``; an argument of the compiled loop, never a constant in it.
        train: observables read on ``data.train`` (on ``data`` itself, when it is no ``Data``): one or a sequence.
        test: observables read on ``data.test``; their readings get the prefix ``test_``.
        steps: number of updates, >= 0.
        record_at: increasing integer steps in ``[0, steps]``, ``[T]``; see ``log_steps`` and ``every``. Start and end
            unless given.
        key: a PRNG key; ``jax.random.key(0)`` unless given.
        stop: ``(state, data) -> bool`` (a scalar, or ``[lanes]`` for a state whose leaves all lead with a lane axis),
            read before each update; where it holds the state stays frozen, and later readings are NaN.
        state: goes on from this state of the dynamics, which an earlier call returned, instead of from ``params``
            (which may then be None). With the same key the steps draw what they would have drawn uninterrupted, by the
            ``step`` that the state counts (from 0 where it counts none); the Record's steps count from 0 again.
        label: the name under which a durable driver journals this call; the pure loop ignores it.

    Returns:
        ``(state, Record)``; record values are ``[T, ...]``, integer and boolean ones as floats when ``stop`` is given.

    Raises:
        ValueError: when ``steps`` or ``record_at`` is out of range, or a reading has the name of a coordinate.
        TypeError: for what is no dynamics, data, key or observable, and for a call in the form of 0.1.

    Cost: the updates, one reading a recorded step, and one ``stop`` a step; no host round trip.

    Example:
        >>> import jax.numpy as jnp
        >>> from dynamics.evolve import gradient_descent
        >>> from dynamics.losses import mse
        >>> from dynamics.observe import loss
        >>> from dynamics.types import Batch, Objective
        >>> L, batch = Objective(lambda w, x: x @ w, mse), Batch(jnp.eye(2), jnp.ones((2, 1)))
        >>> state, record = simulate(gradient_descent(L, 0.5), jnp.zeros((2, 1)), batch, train=[loss()], steps=2)
        >>> record.values["loss"].tolist()
        [1.0, 0.0625]
    """
    del label
    call = prepare(dynamics, params, data, old, train, test, steps, record_at, key, stop, state)
    ends = call.ends()
    count = len(call.targets)
    carry, values = advance(call, call.start(), ends, np.arange(len(ends)) < count)
    values = {name: value[:count] for name, value in values.items()}
    return carry.state, Record(call.targets, times(dynamics.dt, call.targets), values)


class Split(NamedTuple):
    """Where the lanes of a study are split over devices, and whether their data are."""

    mesh: Mesh
    data: bool


class Call(NamedTuple):
    """A checked call of ``simulate``: what ``start`` and ``advance`` need."""

    dynamics: Dynamics
    read: Observable
    stop: Callable[..., Array] | None
    state: PyTree
    data: Any
    key: PRNGKeyArray
    steps: int
    targets: np.ndarray
    before: Any
    split: Split | None

    def start(self) -> Carry:
        """The carry at step 0: the state, the observables' fresh memory, nothing stopped."""
        zero, state, data = jnp.zeros((), jnp.int32), jax.tree.map(jnp.asarray, self.state), self.data
        view = View(None, None, state=state, step=zero + self.before, key=self.key, data=data, reading=zero)
        done = () if self.stop is None else jax.eval_shape(self.stop, state, data).shape
        with own_precision():
            memory = self.read.init(view)
        return Carry(state, memory, zero, jnp.zeros(done, bool), zero)

    def ends(self) -> np.ndarray:
        """The steps at which ``advance`` halts: the recorded ones, and the last."""
        done = len(self.targets) and self.targets[-1] == self.steps
        return self.targets if done else np.append(self.targets, np.int32(self.steps))


def prepare(
    dynamics, params, data, old=(), train=(), test=(), steps=None, record_at=None, key=None, stop=None, state=None
):
    """Checks what ``simulate`` is called with and makes its ``Call``."""
    if old or steps is None or isinstance(params, Observable) or not isinstance(dynamics, Dynamics):
        check_dynamics(dynamics)
        raise TypeError(
            "simulate: got a call without steps= or in the form of 0.1; allowed: simulate(gradient_descent(L, .05), "
            "params, data, train=[...], test=[...], steps=..., record_at=..., key=...), L = Objective(apply, loss)"
        )
    if state is None and hasattr(params, "opt_state"):
        raise TypeError("params: got a state of the dynamics; allowed: the parameters, or state= to go on from it")
    check_data(data)
    key = jax.random.key(0) if key is None else key
    check_key(key)
    targets = check_record_at(
        [0, steps] if record_at is None and steps else [0] if record_at is None else record_at, steps
    )
    read = reader(dynamics, observables(train), observables(test))
    before = jnp.int32(0) if state is None else steps_done(state)
    if state is None:
        with own_precision():
            state = dynamics.init(params)
    mesh = mesh_of_lanes(state)
    split = None if mesh is None else Split(mesh, mesh_of_lanes(data) is not None)
    return Call(dynamics, read, stop, state, data, key, int(steps), targets, before, split)


def steps_done(state: PyTree) -> Array:
    """Updates that a state counts as ``step``, itself or in the state that it wraps; the most of its lanes; int32."""
    for inner in (state, getattr(state, "inner", None), getattr(state, "state", None)):
        step: Any = getattr(inner, "step", None)
        if hasattr(step, "dtype") and jnp.issubdtype(step.dtype, jnp.integer):
            return jnp.max(jnp.asarray(step, jnp.int32))
    return jnp.int32(0)


def observables(given: Observables) -> tuple[Any, ...]:
    """One observable, or a sequence of them, as a tuple."""
    return tuple(given) if isinstance(given, Sequence) and not isinstance(given, (Observable, str)) else (given,)


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


def advance(call: Call, carry: Carry, targets: Any, read: Any = None):
    """Moves ``carry`` through the steps ``targets [T]`` (non-decreasing), reading where the mask ``read [T]`` says.

    Returns:
        ``(carry, {name: [T, ...]})``, with zeros where nothing was read; ``read=None`` reads everywhere. A target that
        is already reached and not read costs nothing, so chunks may be padded to one length by repeating the last
        target, and cut between recorded steps, without a second program or a changed bit. Compiled once for each
        ``(dynamics.step, observables, stop)`` and number of targets.
    """
    targets = jnp.asarray(targets, jnp.int32)
    read = jnp.ones(targets.shape, bool) if read is None else jnp.asarray(read, bool)
    parts = call.dynamics.step, call.read, call.stop
    with own_precision():
        return _advance(*parts, call.split, carry, call.data, call.key, targets, read, call.before)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _advance(step_fn, observable: Observable, stop, split: Split | None, carry: Carry, *rest):
    """The loop, on each device of a split for its own lanes: no device waits for another."""
    loop = partial(_loop, step_fn, observable, stop)
    if split is None:
        return loop(carry, *rest)
    same, lanes = PartitionSpec(), PartitionSpec(LANES)
    of_carry: Any = (lanes, lanes, same, same if stop is None else lanes, same)
    return jax.shard_map(
        loop,
        mesh=split.mesh,
        in_specs=(Carry(*of_carry), lanes if split.data else same, *[same] * (len(rest) - 1)),
        out_specs=(Carry(*of_carry), PartitionSpec(None, LANES)),
        check_vma=False,
    )(carry, *rest)


def _loop(step_fn, observable: Observable, stop, carry: Carry, data, key, targets, read, before):
    def move(carry: Carry) -> Carry:
        new = step_fn(jax.random.fold_in(key, before + carry.step), carry.state, data)
        if stop is None:
            return carry._replace(state=new, step=carry.step + 1)
        done = carry.done | stop(carry.state, data)
        frozen = jax.tree.map(lambda old, moved: jnp.where(_expand(done, moved), old, moved), carry.state, new)
        return carry._replace(state=frozen, step=carry.step + 1, done=done)

    @partial(jax.jit, inline=True)  # traced once, for its shapes and its values
    def taken(carry: Carry, key, data, before):
        step = before + carry.step
        own = jax.random.fold_in(jax.random.fold_in(key, step), 2**31 - 1)
        view = View(None, None, state=carry.state, step=step, key=own, data=data, reading=carry.reading)
        memory, values = observable.update(carry.memory, view)
        values = {name: jnp.asarray(value) for name, value in values.items()}
        if used := sorted(set(RESERVED) & values.keys()):
            raise ValueError(f"reading: got the name {used[0]!r}; allowed: any but {', '.join(RESERVED)}")
        if stop is not None:
            values = {name: _mask(carry.done, value) for name, value in values.items()}
        return carry._replace(memory=memory, reading=carry.reading + 1), values

    def reading(carry: Carry):
        return taken(carry, key, data, before)

    def no_reading(carry: Carry):
        values = jax.eval_shape(reading, carry)[1]
        return carry, {name: jnp.zeros(value.shape, value.dtype) for name, value in values.items()}

    def segment(carry: Carry, at):
        target, here = at

        def going(carry: Carry):
            return (carry.step < target) & ~jnp.all(carry.done)

        carry = jax.lax.while_loop(going, move, carry)
        carry = carry._replace(step=jnp.maximum(carry.step, target))
        return jax.lax.cond(here, reading, no_reading, carry)

    return quick_loops(lambda carry: jax.lax.scan(segment, carry, (targets, read)))(carry)


def _expand(done: Array, leaf: Array) -> Array:
    return jnp.reshape(done, done.shape + (1,) * (jnp.ndim(leaf) - done.ndim))


def _mask(done: Array, value: Array) -> Array:
    value = value if jnp.issubdtype(value.dtype, jnp.inexact) else value.astype(jnp.result_type(float))
    return jnp.where(_expand(done, value), jnp.nan, value)
