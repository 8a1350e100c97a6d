"""Tasks that change: any dynamics trained on one after the other, and what is lost on the way."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dynamics.arguments import FINITE, check_counts, check_numbers
from dynamics.evolve.checks import check_dynamics
from dynamics.evolve.simulate import Observables, observables
from dynamics.evolve.views import of_state, training_part
from dynamics.observe.compose import joined, prefixed
from dynamics.program.lanes_last import lanes_last
from dynamics.types import Array, Dynamics, Observable, PyTree, Stream, View, factory, scalar

READ = 1000
"""Steps of an online task whose samples observables see."""


class TasksState(NamedTuple):
    """State of ``over_tasks``.

    Attributes:
        state: of the dynamics that is trained.
        memory: of the observables before and after.
        step: int32, tasks done.
        readings: of the last task, ``{name: array}``; NaN before the first.
    """

    state: PyTree
    memory: PyTree
    step: Array
    readings: dict[str, Array]


def over_tasks(
    dynamics: Dynamics,
    stream: Stream,
    *,
    steps: int | None = None,
    before: Observables = (),
    after: Observables = (),
    error: Callable[[PyTree, Any], Array] | None = None,
    fit: Any = None,
    leave: bool = False,
    forgetting: bool = False,
) -> Dynamics:
    """A dynamics trained on a stream of tasks, one task a step: continual learning.

    Task t moves the parameters from where task t - 1 has left them, the optimiser's state with them. ``task_readings``
    reads of the last task

    - ``online_error``, the mean of ``error`` over the task's steps, each before the update on the same batch; of a
      task that ``leave`` ends before its first step, fitted as it is, ``error`` itself;
    - ``end_error``, ``error`` on the task after its last step (of an online stream, with ``forgetting``);
    - ``time_to_fit``, with ``fit``: updates until ``error <= fit``, NaN where that is never reached;
    - ``forgetting``, if asked for: how far ``error`` on the task before has risen, NaN in the first task;
    - what the observables ``before`` and ``after`` read at the task's start and end, on its samples (of an online
      stream on those of its first 1000 steps), as ``before_<name>`` and ``after_<name>``.

    Lanes (``study``, ``jax.vmap``) of a small network run with their axis last. A step of 30 networks of 20-5-1 at
    batch size 1 takes some 4 us of a CPU, with ``continual_backprop`` 6, where vmap's own layout takes 7 and 90.

    Args:
        dynamics: what is trained; data in the simulation of the result is not looked at.
        stream: of tasks.
        steps: updates a task; an online stream says that itself.
        before, after: observables, as ``simulate`` takes them.
        error: ``(params, batch) -> scalar``; the objective without its penalty unless given.
        fit: an error at which a task counts as fitted.
        leave: a task ends when it is fitted, or after ``steps``.
        forgetting: whether to read it: that draws each task's samples twice.

    Returns:
        A ``Dynamics`` on ``TasksState`` whose step, and unit of time, is a task; ``params`` are those of the dynamics.

    Raises:
        ValueError: for steps that are missing or not the stream's, ``leave`` without ``fit`` or with an online stream.
        TypeError: for what is no dynamics, stream or observable, and without an objective or ``error``.

    Cost: that of the dynamics; errors of full-batch descent share its forward passes.

    Example:
        >>> import jax.numpy as jnp
        >>> from dynamics.evolve import every, gradient_descent, simulate
        >>> from dynamics.losses import mse
        >>> from dynamics.tasks.streams import label_flips
        >>> from dynamics.types import Batch, Objective
        >>> L, batch = Objective(lambda w, x: x @ w, mse), Batch(jnp.eye(2), jnp.ones((2, 1)))
        >>> tasks = over_tasks(gradient_descent(L, 0.25), label_flips(batch), steps=100, fit=1e-3, leave=True)
        >>> _, record = simulate(tasks, jnp.zeros((2, 1)), None, train=task_readings(), steps=3, record_at=every(1, 3))
        >>> record.values["time_to_fit"].tolist()  # 3/4 of the distance a step: from 1 first, from 2 then
        [nan, 13.0, 15.0, 15.0]
    """
    check_dynamics(dynamics)
    if not isinstance(stream, Stream):
        raise TypeError(f"stream: got {type(stream).__name__}; allowed: a Stream, as those of dynamics.tasks.streams")
    if leave and (fit is None or stream.steps is not None):
        raise ValueError(f"leave: got True with fit={fit!r}; allowed: a fit, and a stream that is not online")
    count = stream.steps if steps is None else steps
    check_counts(steps=count)
    if stream.steps not in (None, count):
        raise ValueError(f"steps: got {steps!r}; allowed: {stream.steps}")
    if fit is not None:
        check_numbers(many=True, fit=(fit, FINITE))
    return _Training(dynamics, stream, count, before, after, error, fit, leave, forgetting).dynamics()


@factory("task_readings()")
def task_readings() -> Observable:
    """Reads what ``over_tasks`` has read of the last task; at the start, before the first, NaN.

    Raises:
        TypeError: in a run of another dynamics.
    """

    def read(view):
        if not isinstance(view.state, TasksState):
            raise TypeError(f"task_readings: got {type(view.state).__name__}; allowed: a run of over_tasks(...)")
        return view.state.readings

    return Observable.of_view(read)


class _Training:
    """What ``over_tasks`` was asked for."""

    def __init__(self, dynamics, stream, steps, before, after, error, fit, leave, forgetting):
        self.inner, self.stream, self.steps = dynamics, stream, steps
        self.before, self.after = (
            joined(*(prefixed(name, read) for read in observables(given)))
            for name, given in (("before", before), ("after", after))
        )
        self.fit, self.leave, self.forgetting = fit, leave, forgetting
        self.error, self.loop = error, self._until_fit if leave else self._all_steps
        self.task = lanes_last(self._task)

    def dynamics(self) -> Dynamics:
        inner = self.inner
        at, preconditioner = (
            None if of is None else (lambda state, of=of: of(state.state))
            for of in (inner.objective_at, inner.preconditioner)
        )
        return Dynamics(
            self.init, self.step, lambda state: inner.params(state.state), 1.0, inner.objective, at, preconditioner,
            optimizer=inner.optimizer,
        )  # fmt: skip

    def init(self, params) -> TasksState:
        zero, key, state = jnp.zeros((), jnp.int32), jax.random.key(0), self.inner.init(params)

        def memories(state):
            view = self._view(state, self.stream.data(zero), zero, key)
            return self.before.init(view), self.after.init(view)

        memory = jax.eval_shape(memories, state)
        memory = jax.jit(memories)(state) if jax.tree.leaves(memory) else memory
        shapes = jax.eval_shape(partial(self._task, zero), key, state, memory, jnp.zeros(()))[2]
        nothing = jax.tree.map(lambda one: jnp.full(one.shape, jnp.nan, one.dtype), shapes)
        return TasksState(state, memory, zero, nothing)

    def step(self, key, state: TasksState, data) -> TasksState:
        last = state.readings.get("end_error", jnp.zeros(()))
        inner, memory, readings = self.task(state.step, key, state.state, state.memory, last)
        return TasksState(inner, memory, state.step + 1, readings)

    def _task(self, task, key, state, memory, last_error):
        data = self.stream.data(task)
        first, before = self.before.update(memory[0], self._view(state, data, task, key))
        state, (online, time) = self.loop(key, state, data)
        second, after = self.after.update(memory[1], self._view(state, data, task, key))
        readings = {"online_error": online}
        if self.fit is not None:
            readings["time_to_fit"] = time
        if self.forgetting or self.stream.steps is None:
            readings["end_error"] = self._error_of_all(state, data)
        if self.forgetting:
            previous = self._error_of_all(state, self.stream.data(jnp.maximum(task - 1, 0)))
            readings["forgetting"] = jnp.where(task > 0, previous - last_error.astype(previous.dtype), jnp.nan)
        readings |= {name: _floating(value) for name, value in {**before, **after}.items()}
        return state, (first, second), readings

    def _all_steps(self, key, state, data):
        """``(state, (mean error, time to fit))`` after every step; the error is summed in what is carried."""

        def one(carry, at):
            (state, total, time), (i, batch) = carry, at
            batch = data if batch is None else batch
            now = self._error(state, training_part(batch))
            if self.fit is not None:
                time = jnp.where(jnp.isnan(time) & (now <= self.fit), i.astype(time.dtype), time)
            state = self.inner.step(jax.random.fold_in(key, i), state, batch)
            return (state, total + now, time), None

        start = (state, *self._nothing(state, data))
        rows = jnp.arange(self.steps), None if self.stream.steps is None else data
        (state, total, time), _ = jax.lax.scan(one, start, rows)
        if self.fit is not None and self.stream.steps is None:
            time = jnp.where(jnp.isnan(time) & (self._error(state, training_part(data)) <= self.fit), self.steps, time)
        return state, (total / self.steps, time)

    def _until_fit(self, key, state, data):
        def going(carry):
            state, _, _, i = carry
            return (i < self.steps) & ~(self._error(state, training_part(data)) <= self.fit)

        def one(carry):
            state, total, time, i = carry
            now = self._error(state, training_part(data))
            state = self.inner.step(jax.random.fold_in(key, i), state, data)
            return state, total + now, time, i + 1

        start = (state, *self._nothing(state, data), jnp.zeros((), jnp.int32))
        state, total, time, i = jax.lax.while_loop(going, one, start)
        now = self._error(state, training_part(data))
        fitted, mean = now <= self.fit, jnp.where(i > 0, total / jnp.maximum(i, 1), now)
        return state, (mean, jnp.where(fitted, i.astype(time.dtype), jnp.nan))

    def _nothing(self, state, data):
        """A total of zero, and no time yet, in the error's dtype."""
        batch = data if self.stream.steps is None else jax.tree.map(lambda leaf: leaf[0], data)
        kind = jax.eval_shape(self._error, state, training_part(batch)).dtype  # never half: thousands of steps add up
        return jnp.zeros((), kind), jnp.full((), jnp.nan, kind)

    def _error(self, state, batch) -> Array:
        params = self.inner.params(state)
        if self.error is not None:
            return _wide(scalar(self.error(params, batch)))
        at, objective = self.inner.objective_at, self.inner.objective
        objective = objective if at is None else at(state)
        if objective is None:
            raise TypeError("error: got none, for a dynamics without an objective; allowed: (params, batch) -> scalar")
        return _wide(objective._replace(penalty=None)(params, batch))

    def _error_of_all(self, state, data) -> Array:
        """``error`` on a task; of an online stream the mean over its steps' batches."""
        batches = training_part(data)
        if self.stream.steps is None:
            return self._error(state, batches)

        def add(total, batch):
            return total + self._error(state, batch), None

        kind = jax.eval_shape(self._error, state, jax.tree.map(lambda leaf: leaf[0], batches)).dtype
        return jax.lax.scan(add, jnp.zeros((), kind), batches)[0] / self.steps

    def _seen(self, data):
        """What observables read: a task, or the first samples of an online one as one batch."""
        batch = training_part(data)
        if self.stream.steps is None:
            return batch
        return jax.tree.map(lambda leaf: jnp.reshape(leaf[:READ], (-1, *leaf.shape[2:])), batch)

    def _view(self, state, data, task, key) -> View:
        own = jax.random.fold_in(key, 2**31 - 1)
        view = View(None, None, state=state, step=task, key=own, data=data, reading=task)
        return of_state(self.inner, view, self._seen(data))


def _floating(value: Any) -> Array:
    value = jnp.asarray(value)
    return value if jnp.issubdtype(value.dtype, jnp.inexact) else value.astype(float)


def _wide(value: Any) -> Array:
    """At least float32: totals of many steps, and their numbers, do not fit half precision."""
    value = _floating(value)
    return value.astype(jnp.promote_types(value.dtype, jnp.float32))
