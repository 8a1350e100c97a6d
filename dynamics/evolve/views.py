"""From a dynamics' state to what observables look at: parameters, batch and objective of the moment."""

from __future__ import annotations

import functools
from typing import Any

from dynamics.observe.compose import joined, prefixed
from dynamics.types import Data, Dynamics, Observable, View


def reader(dynamics: Dynamics, train: tuple[Any, ...], test: tuple[Any, ...]) -> Observable:
    """One observable of a run's bare views (state, data, step, key): ``train`` and ``test`` on their batches.

    The same observables on the same dynamics give the same object, so that a second run compiles nothing.

    Raises:
        TypeError: at tracing, when ``test`` is read and the data has none.
    """
    parts = dynamics._replace(dt=None), train, test
    try:
        hash(parts)
    except TypeError:  # an observable or the dynamics holds what cannot be hashed
        return composed(*parts)
    return _kept(*parts)


def composed(dynamics: Dynamics, train: tuple[Any, ...], test: tuple[Any, ...]) -> Observable:
    """``reader`` made anew, for use within a trace."""
    parts = [_on(dynamics, training_part, joined(*train))]
    if test:
        parts.append(_on(dynamics, _test_part, joined(*(prefixed("test", read) for read in test))))
    return joined(*parts)


_kept = functools.lru_cache(maxsize=256)(composed)


def _on(dynamics: Dynamics, choose, read: Observable) -> Observable:
    def seen(view: View) -> View:
        return of_state(dynamics, view, choose(view.data))

    return Observable(lambda view: read.init(seen(view)), lambda memory, view: read.update(memory, seen(view)))


def of_state(dynamics: Dynamics, view: View, batch: Any) -> View:
    """A bare view with its parameters, batch, objective and dynamics."""
    at = dynamics.objective_at
    objective = dynamics.objective if at is None else at(view.state)
    params = dynamics.params(view.state)
    return view._replace(params=params, batch=batch, objective=objective, dynamics=dynamics)


def training_part(data: Any) -> Any:
    """What moves the parameters: ``data.train`` of ``Data``, or the data itself."""
    return data.train if isinstance(data, Data) else data


def _test_part(data: Any) -> Any:
    if getattr(data, "test", None) is None:
        got = "Data without test" if isinstance(data, Data) else type(data).__name__
        raise TypeError(f"test: got {got}; allowed: Data(train, test) of two batches")
    return data.test
