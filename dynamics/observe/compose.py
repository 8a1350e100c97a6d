"""Putting observables together: join them, name their readings, compare with the start."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from dynamics.types import Batch, Observable, Params, Readings


def joined(*observables: Any) -> Observable:
    """One observable that reads all of ``observables`` on the same view; plain functions are lifted.

    Raises:
        ValueError: at tracing, when two of them give a reading of the same name.
        TypeError: for what is no observable.
    """
    pairs = [Observable.of(observable) for observable in observables]

    def init(view):
        return tuple(pair.init(view) for pair in pairs)

    def update(memory, view):
        after, merged = [], {}
        for pair, remembered in zip(pairs, memory, strict=True):
            remembered, readings = pair.update(remembered, view)
            if not isinstance(readings, Mapping):
                got = "an array" if isinstance(readings, jax.Array) else type(readings).__name__
                raise TypeError(f"observable: got {got} from it; allowed: a dictionary {{name: array}}")
            if clash := sorted(merged.keys() & readings.keys()):
                raise ValueError(f"observable: got the reading {clash[0]!r} twice; allowed: once; use prefixed(...)")
            merged.update(readings)
            after.append(remembered)
        return tuple(after), merged

    return Observable(init, update)


def prefixed(prefix: str, observable: Any) -> Observable:
    """The same readings under ``<prefix>_<name>``."""
    pair = Observable.of(observable)

    def update(memory, view):
        memory, readings = pair.update(memory, view)
        return memory, {f"{prefix}_{name}": value for name, value in readings.items()}

    return Observable(pair.init, update)


def since_start(read: Callable[[Params, Params, Batch], Readings]) -> Observable:
    """An observable that compares with the start: ``read(start_params, params, batch) -> {name: array}``."""
    return Observable(
        lambda view: jax.tree.map(lambda leaf: leaf, view.params),
        lambda start, view: (start, read(start, view.params, view.batch)),
    )
