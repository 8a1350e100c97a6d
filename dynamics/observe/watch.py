"""The same observables in anyone's loop: one object, one line."""

from __future__ import annotations

import contextlib
import importlib
import operator
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from dynamics.arguments import check_counts
from dynamics.observe.loop_state import LoopState, check_arrays, loop_state
from dynamics.observe.reader import TOLD, Cost, Reader
from dynamics.preconditioners import preconditioner_at, preconditioner_of
from dynamics.record import RESERVED
from dynamics.types import Dynamics, Objective, Observable, PyTree, Record, StatefulModel, View, check_objective


class Watch:
    """Reads observables whenever it is called and they are due; made by ``watch``."""

    def __init__(
        self,
        readers: list[Reader],
        batch: Any,
        every: int | None,
        budget: float | None,
        sinks: list[Any],
        say: Callable[[str], None],
    ) -> None:
        self._readers, self._batch, self._every, self._budget = readers, batch, every, budget
        self._sinks, self._say = sinks, say
        self._step: int | None = None
        self._began, self._closed = 0.0, False

    def __call__(
        self, step: int, params: Any, opt_state: PyTree = None, model_state: PyTree = None
    ) -> dict[str, np.ndarray] | None:
        """Reads what is due at ``step``: with ``every`` at its multiples, with a budget everything at the first call;
        None where nothing is.

        Args:
            step: updates done, an integer; increasing from call to call.
            params: the parameters: a tree, a flax ``TrainState``, an nnx or an equinox module.
            opt_state: optax's state or an ``nnx.Optimizer``, for observables that need it.
            model_state: of a ``StatefulModel``, whose statistics are frozen at it; a ``TrainState`` and an nnx module
                bring theirs.

        Raises:
            ValueError: for a step that is not after the last one, two readings of one name, readings that change their
                shapes, or a call after ``close``.
            TypeError: for parameters that are none, were donated to the update, or are traced.
        """
        step = _whole(step)
        if self._closed:
            raise ValueError(f"step: got {step} after close(); allowed: a new watch, which takes the folder up again")
        if self._step is not None and step <= self._step:
            raise ValueError(f"step: got {step}; allowed: above {self._step}, the last one")
        due = [reader for reader in self._readers if self._due(reader, step)]
        first, self._step = self._step is None, step
        if first:
            self._began = time.perf_counter()
        if not due:
            return None
        state = loop_state(params, opt_state, model_state)
        check_arrays("batch", self._batch, "arrays", "arrays that no update is given to keep")
        jax.block_until_ready(state.params)  # what the loop has begun is the loop's time
        found: dict[str, np.ndarray] = {}
        for reader in due:
            readings = reader.read(step, state, self._batch)
            if clash := sorted(found.keys() & readings.keys()):
                raise ValueError(f"observable: got the reading {clash[0]!r} twice; allowed: once; use prefixed(...)")
            if taken := sorted(set(RESERVED) & readings.keys()):
                raise ValueError(f"reading: got the name {taken[0]!r}; allowed: any but {', '.join(RESERVED)}")
            found.update(readings)
            for sink in self._sinks:
                sink.keep(reader.name, step, readings)
        if first and self._budget:
            self._tell_pace(self._budget / len(self._readers))
        return found

    def _due(self, reader: Reader, step: int) -> bool:
        """Every so many steps; or while a reading more leaves the observable within its part of the budget."""
        if self._every is not None:
            return step % self._every == 0
        if not reader.cost.readings:
            return True
        share, cost = (self._budget or 0.0) / len(self._readers), reader.cost
        pause = time.perf_counter() - reader.at  # and not in bursts
        return cost.seconds + cost.last <= share * self._seconds() and 2 * share * pause >= cost.last

    def _seconds(self) -> float:
        return time.perf_counter() - self._began - sum(reader.cost.compilation for reader in self._readers)

    def _tell_pace(self, share: float) -> None:
        for reader in self._readers:
            if reader.cost.last > TOLD:
                self._say(
                    f"a reading of {reader.name} takes {reader.cost.last:.1f} s: at {share:.2%} of the loop's time one "
                    f"every {reader.cost.last / share:.0f} s"
                )

    @property
    def share(self) -> float:
        """Of the loop's wall time since the first call, compilation apart, what readings have taken."""
        if self._step is None:
            return 0.0
        return sum(reader.cost.seconds for reader in self._readers) / max(self._seconds(), 1e-9)

    @property
    def costs(self) -> dict[str, Cost]:
        """What each observable has cost, by the name of its first reading."""
        return {reader.name: reader.cost for reader in self._readers}

    @property
    def records(self) -> dict[str, Record]:
        """The readings of each observable, by the name of its first one; ``time`` counts steps."""
        return {reader.name: reader.record() for reader in self._readers if reader.steps}

    @property
    def record(self) -> Record:
        """All readings on one list of steps; NaN where an observable was not read."""
        held = self.records.values()
        steps = np.unique(np.concatenate([record.step for record in held])) if held else np.zeros(0, np.int32)
        values = {}
        for record in held:
            at = np.searchsorted(steps, record.step)
            for name, value in record.values.items():
                values[name] = value if len(at) == len(steps) else _spread(value, at, len(steps))
        return Record(steps, steps, values)

    def close(self, status: str = "finished") -> None:
        """Writes out what is left; nothing may be read after it. At the end of the process it happens by itself."""
        sinks, self._sinks, self._closed = self._sinks, [], True
        costs = {name: cost._asdict() for name, cost in self.costs.items()}
        with contextlib.ExitStack() as stack:  # each of them, whatever another does
            for sink in reversed(sinks):
                stack.callback(sink.close, status, costs, self.share)

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        self.close("finished" if kind is None else "interrupted")


def _whole(step: Any) -> int:
    with contextlib.suppress(TypeError):
        if abs(whole := operator.index(step)) < 2**31:
            return whole
    got = "a traced value" if isinstance(step, Tracer) else repr(step)
    raise ValueError(f"step: got {got}; allowed: an integer of 32 bits, outside jit")


def _spread(value: np.ndarray, at: np.ndarray, count: int) -> np.ndarray:
    dtype = value.dtype if value.dtype.kind in "fc" else np.result_type(value.dtype, np.float32)
    spread = np.full((count, *value.shape[1:]), np.nan, dtype)
    spread[at] = value
    return spread


def watch(
    objective: Objective,
    observables: Any,
    batch: Any,
    *,
    every: int | None = None,
    budget: float | None = None,
    optimizer: Any = None,
    to: Any = None,
    quiet: bool = False,
) -> Watch:
    """Observables in a loop of your own: ``look = watch(L, [sharpness(), ntk()], batch)``, then one line in it.

    With ``budget``, a watch measures what a reading of each observable costs and takes it when its part of the budget,
    the same for each, allows: cheap ones more often than costly ones. All are read at the first call; one that
    costs more than its part over the whole loop is then read no more. ``watch.share`` is what readings have taken.

    What is compiled is kept for later processes, in JAX's own persistent cache (``~/.cache/dynamics`` unless one is
    set), and a compilation that takes long is said on stderr before it begins.

    Args:
        objective: L, which need not be what the loop descends on, but is what is read.
        observables: a list of them, or one.
        batch: on which they read; NumPy arrays are copied, since a loader may use theirs again.
        every: steps between two readings; 1 unless there is a budget.
        budget: share of the loop's wall time that readings may take, in (0, 1), instead of ``every``.
        optimizer: the optax transformation of the loop; ``preconditioned_sharpness`` needs it.
        to: where readings go besides: a folder, in which they make a durable run with its report page, taken up again
            where it ended; "tensorboard" or "wandb"; a ``dynamics.runs.trackers.Tracker``; or a list of these.
        quiet: say nothing on stderr.

    Returns:
        A ``Watch``: ``watch(step, params, opt_state)`` reads, ``watch.record`` is the Record so far.

    Raises:
        TypeError: for what is no objective, observable or optimiser, and a batch that is not of numbers. ValueError:
            without an observable; unless ``every >= 1``, ``0 < budget < 1``, and not both. With a folder, the errors of
            ``dynamics.runs.open_run``, and one for a folder with other files.

    Cost: that of the observables; one compilation of each. Between readings about a microsecond an observable.

    Example:
        >>> from dynamics.losses import mse
        >>> from dynamics.observe import loss
        >>> from dynamics.types import Batch
        >>> look = watch(Objective(lambda w, x: x @ w, mse), [loss()], Batch(jnp.eye(2), jnp.ones((2, 1))), every=2)
        >>> for step in range(4):
        ...     readings = look(step, jnp.full((2, 1), 0.5 * step))
        >>> look.record.step.tolist(), look.record.values["loss"].tolist()
        ([0, 2], [1.0, 0.0])
    """
    check_objective(objective)
    if every is not None and budget is not None:
        raise ValueError(f"budget: got {budget!r} beside every={every!r}; allowed: one of them")
    if budget is not None and not (isinstance(budget, float) and 0 < budget < 1):
        raise ValueError(f"budget: got {budget!r}; allowed: a share of the loop's time > 0 and < 1, such as .05")
    if every is not None:
        check_counts(every=every)
    if optimizer is not None and not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(f"optimizer: got {type(optimizer).__name__}; allowed: an optax transformation")

    def say(text: str) -> None:
        if not quiet and sys.stderr is not None:
            told = f"watch: {text}".encode(errors="backslashreplace").decode()
            with contextlib.suppress(OSError, ValueError):
                print(told, file=sys.stderr, flush=True)

    view = _viewer(objective, _dynamics(objective, optimizer))
    one = isinstance(observables, Observable) or not isinstance(observables, (list, tuple))
    given = [observables] if one else observables
    if not given:
        raise ValueError("observables: got none; allowed: one at least")
    check_arrays("batch", batch, "arrays", "arrays that no update is given to keep")
    batch = jax.tree.map(lambda leaf: jnp.array(leaf) if isinstance(leaf, np.ndarray) else leaf, batch)
    readers = [Reader(observable, view, say) for observable in given]
    settings = {"every": every, "budget": budget, "batch": jax.tree.map(lambda x: str(jnp.shape(x)), batch)}
    return Watch(readers, batch, every if budget else every or 1, budget, _sinks(to, settings, say), say)


def _viewer(objective: Objective, dynamics: Dynamics | None) -> Callable[..., View]:
    """``(state, batch, step, reading) -> View`` of a loop that is not ours."""

    def view(state: LoopState, batch: Any, step: Any, reading: Any) -> View:
        stateful = isinstance(objective.apply, StatefulModel)
        if stateful and not jax.tree.leaves(state.model_state) and not isinstance(state.model_state, Mapping):
            raise TypeError(
                "model_state: got none; allowed for a model with batch statistics or dropout: watch(step, params, "
                "opt_state, model_state), {} where it has no statistics"
            )
        L = objective.at(state.model_state) if stateful else objective
        key = jax.random.fold_in(jax.random.key(0), step)
        return View(state.params, batch, L, state, dynamics, step, key, batch, reading)

    return view


def _dynamics(objective: Objective, optimizer: Any) -> Dynamics | None:
    """Of a loop that is not ours we know its optimiser, and by it the preconditioner."""
    if optimizer is None:
        return None

    def not_ours(*_: Any) -> Any:
        raise TypeError("dynamics: got a watched loop's, which is not ours; allowed: evolve.descent(L, optimizer)")

    known = preconditioner_at(lambda params: preconditioner_of(optimizer, params))

    def preconditioner(state: LoopState) -> PyTree:
        if state.opt_state is None:
            raise TypeError("opt_state: got none; allowed for a preconditioner: watch(step, params, opt_state)")
        return known(state)

    return Dynamics(
        not_ours, not_ours, lambda state: state.params, objective=objective, preconditioner=preconditioner,
        optimizer=optimizer,
    )  # fmt: skip


def _sinks(to: Any, settings: Mapping[str, Any], say: Callable[[str], None]) -> list[Any]:
    """Where readings go besides. Files are the business of ``dynamics.runs``, which stands above this room and is
    loaded only for who asks for them."""
    if to is None:
        return []
    return importlib.import_module("dynamics.runs.watch_sinks").sinks(to, settings, say)
