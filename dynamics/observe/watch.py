"""The same observables in anyone's loop: one object, one line."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics.observe.compose import joined
from dynamics.record import RESERVED
from dynamics.types import Objective, Params, PyTree, Record, View, check_objective


class Watched(NamedTuple):
    """The state that observables see in a loop that is not ours."""

    params: Params
    opt_state: PyTree


class Watch:
    """Reads observables whenever it is called; made by ``watch``."""

    def __init__(self, objective: Objective, observables: Any, batch: Any, every: int) -> None:
        self._objective, self._batch, self._every = objective, batch, every
        given = observables if isinstance(observables, list) else [observables]
        self._observable, self._memory = joined(*given), None
        self._steps: list[int] = []
        self._readings: list[dict[str, np.ndarray]] = []
        self._init, self._update = jax.jit(self._first), jax.jit(self._next)

    def __call__(
        self, step: int, params: Params, opt_state: PyTree = None, model_state: PyTree = None
    ) -> dict[str, np.ndarray] | None:
        """Reads at ``step``, a multiple of ``every``; None at others.

        Args:
            step: updates done; increasing from call to call.
            params: the parameters.
            opt_state: optax's state, for observables that need it.
            model_state: of a ``StatefulModel``, whose statistics are frozen at it.

        Raises:
            ValueError: for a step that is not after the last one.
        """
        step = int(step)
        if self._steps and step <= self._steps[-1]:
            raise ValueError(f"step: got {step}; allowed: above {self._steps[-1]}, the last one")
        if step % self._every:
            return None
        at = params, opt_state, model_state, self._batch, jnp.int32(step), jnp.int32(len(self._steps))
        if self._memory is None:
            self._memory = self._init(*at)
        self._memory, readings = self._update(self._memory, *at)
        if taken := sorted(set(RESERVED) & readings.keys()):
            raise ValueError(f"reading: got the name {taken[0]!r}; allowed: any but {', '.join(RESERVED)}")
        self._steps.append(step)
        self._readings.append({name: np.asarray(value) for name, value in readings.items()})
        return self._readings[-1]

    @property
    def record(self) -> Record:
        """All readings so far; ``time`` counts steps."""
        names = self._readings[0] if self._readings else ()
        values = {name: np.stack([readings[name] for readings in self._readings]) for name in names}
        return Record(np.array(self._steps, np.int32), np.array(self._steps), values)

    def _view(self, params, opt_state, model_state, batch, step, reading) -> View:
        objective = self._objective if model_state is None else self._objective.at(model_state)
        key = jax.random.fold_in(jax.random.key(0), step)
        state = Watched(params, opt_state)
        return View(params, batch, objective, state=state, step=step, key=key, data=batch, reading=reading)

    def _first(self, *at: Any) -> PyTree:
        return self._observable.init(self._view(*at))

    def _next(self, memory: PyTree, *at: Any) -> Any:
        return self._observable.update(memory, self._view(*at))


def watch(objective: Objective, observables: Any, batch: Any, *, every: int = 1) -> Watch:
    """Observables in a loop of your own: ``look = watch(L, [sharpness(), ntk()], batch)``, then one line in it.

    Args:
        objective: L, which need not be what the loop descends on, but is what is read.
        observables: a list of them, or one.
        batch: on which they read.
        every: steps between two readings.

    Returns:
        A ``Watch``: ``watch(step, params, opt_state)`` reads, ``watch.record`` is the Record so far.

    Raises:
        TypeError: for what is no objective or observable. ValueError: unless ``every >= 1``.

    Cost: that of the observables; one compilation.

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
    if not isinstance(every, int) or every < 1:
        raise ValueError(f"every: got {every!r}; allowed: an integer >= 1")
    return Watch(objective, observables, batch, every)
