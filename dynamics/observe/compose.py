"""Putting observables together: join them, name their readings, compare with the start."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import operators
from dynamics.types import Batch, Observable, Params, Readings

_NUMBERS = (jax.Array, np.ndarray, np.generic, bool, int, float, complex)


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
            check_readings(readings)
            if clash := sorted(merged.keys() & readings.keys()):
                raise ValueError(f"observable: got the reading {clash[0]!r} twice; allowed: once; use prefixed(...)")
            merged.update(readings)
            after.append(remembered)
        return tuple(after), merged

    return Observable(init, update)


def check_readings(readings: Any) -> None:
    """Raises TypeError unless ``readings`` is a dictionary of arrays by their names."""
    if not isinstance(readings, Mapping):
        got = "an array" if isinstance(readings, jax.Array) else type(readings).__name__
        raise TypeError(f"observable: got {got} from it; allowed: a dictionary {{name: array}}")
    for name, value in readings.items():
        if not isinstance(name, str):
            raise TypeError(f"reading: got the name {name!r}; allowed: a string")
        key = isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
        if key or not isinstance(value, _NUMBERS):
            got = "a random key" if key else type(value).__name__
            raise TypeError(f"reading: got {got} as {name!r}; allowed: an array")


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


def by_layer(reader: str, of_block: Callable[..., Observable], operator: Any, name: str, level: int) -> Observable:
    """Joins ``of_block(view -> Operator, "<name>/<layer>", size)`` of every diagonal block of an operator."""

    def blocks(view):
        found = {}
        for layer, where in operators.blocks(view.params, level).items():

            def block(view, where=where):
                return operator(view.loss(reader), view.params, view.batch, where=where)

            size = operators.flat(view.params, where)[0].size
            found[layer] = of_block(block, f"{name}/{layer}", size)
        return found

    def init(view):
        return {layer: one.init(view) for layer, one in blocks(view).items()}

    def update(memory, view):
        memory, readings = dict(memory), {}
        for layer, one in blocks(view).items():
            memory[layer], read = one.update(memory.get(layer, ()), view)
            readings |= read
        return memory, readings

    return Observable(init, update)
