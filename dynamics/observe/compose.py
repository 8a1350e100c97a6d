"""Putting observables together: choose their batch, name their readings, join them into one readout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from dynamics.types import Array, Batch, Data, Dynamics, Observable, Params, Readings, Readout, StatefulObservable


def joined(*observables: Observable | StatefulObservable) -> StatefulObservable:
    """One observable that reads all of ``observables`` on the same parameters and batch.

    Raises:
        ValueError: at tracing, when two of them give a reading of the same name.
    """
    pairs = [as_stateful(observable) for observable in observables]

    def init(params, batch):
        return tuple(pair.init(params, batch) for pair in pairs)

    def update(memory, params, batch):
        after, merged = [], {}
        for pair, remembered in zip(pairs, memory, strict=True):
            remembered, readings = pair.update(remembered, params, batch)
            _merge(merged, readings)
            after.append(remembered)
        return tuple(after), merged

    return StatefulObservable(init, update)


def prefixed(prefix: str, observable: Observable | StatefulObservable) -> StatefulObservable:
    """The same readings under ``<prefix>_<name>``."""
    pair = as_stateful(observable)

    def update(memory, params, batch):
        memory, readings = pair.update(memory, params, batch)
        return memory, {f"{prefix}_{name}": value for name, value in readings.items()}

    return StatefulObservable(pair.init, update)


def as_stateful(observable: Observable | StatefulObservable) -> StatefulObservable:
    """``observable`` as an ``(init, update)`` pair; a plain one gets an empty memory."""
    if isinstance(observable, StatefulObservable):
        return observable
    if not callable(observable):
        got = type(observable).__name__
        raise TypeError(
            f"observable: got {got}; allowed: (params, batch) -> {{name: array}}, or an (init, update) pair"
        )
    if getattr(observable, "__module__", "").startswith("dynamics.observe.") and observable.__qualname__.isidentifier():
        name = observable.__qualname__
        raise TypeError(f"observable: got the factory {name}; call it, as in observe.{name}(...)")
    return StatefulObservable(
        lambda params, batch: (), lambda memory, params, batch: (memory, observable(params, batch))
    )


def readout(
    dynamics: Dynamics,
    train: Observable | StatefulObservable | None = None,
    test: Observable | StatefulObservable | None = None,
) -> Readout:
    """A readout for ``simulate`` that reads ``train`` on ``data.train`` and ``test`` on ``data.test``.

    Readings keep their names; put ``prefixed("test", ...)`` round what both batches share.

    Args:
        dynamics: whose ``params`` finds the parameters in the state.
        train: read on ``data.train`` (or on ``data`` itself, when that is a ``Batch``).
        test: read on ``data.test``.
    """
    chosen: list[tuple[Callable[[Any], Batch], StatefulObservable]] = []
    if train is not None:
        chosen.append((lambda data: data.train if isinstance(data, Data) else data, as_stateful(train)))
    if test is not None:
        chosen.append((_test_batch, as_stateful(test)))

    def init(state, data):
        return tuple(pair.init(dynamics.params(state), choose(data)) for choose, pair in chosen)

    def update(memory, state, data):
        params: Params = dynamics.params(state)
        after, merged = [], {}
        for (choose, pair), remembered in zip(chosen, memory, strict=True):
            remembered, readings = pair.update(remembered, params, choose(data))
            _merge(merged, readings)
            after.append(remembered)
        return tuple(after), merged

    return Readout(init, update)


def since_start(read: Callable[[Params, Params, Batch], Readings]) -> StatefulObservable:
    """An observable that compares with the start: ``read(start_params, params, batch) -> {name: array}``."""
    return StatefulObservable(
        lambda params, batch: jax.tree.map(lambda leaf: leaf, params),
        lambda start, params, batch: (start, read(start, params, batch)),
    )


def _test_batch(data: Any) -> Batch:
    if getattr(data, "test", None) is None:
        got = "Data without test" if isinstance(data, Data) else type(data).__name__
        raise TypeError(f"test: the data is {got}; allowed: Data(train, test) of two batches")
    return data.test


def _merge(merged: dict[str, Array], readings: Readings) -> None:
    if not isinstance(readings, Mapping):
        raise TypeError(f"observable: got {type(readings).__name__} from it; allowed: a dictionary {{name: array}}")
    clash = merged.keys() & readings.keys()
    if clash:
        raise ValueError(f"two observables give the same reading {sorted(clash)}; wrap one in prefixed(...)")
    merged.update(readings)
