"""Readings of many programs on the axes of one study: stacked where shapes agree, padded with NaN where they do not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dynamics.types import Record

Part = tuple[np.ndarray, np.ndarray, Record]
"""``(cells [n], time per step [n], Record of values [T, n, ...])``."""


def merged(parts: Sequence[Part], axes: Mapping[str, Sequence[Any]]) -> Record:
    """The parts, whose cells are places in the product of ``axes``, as one record of values ``[T, *axes, ...]``.

    Steps are those of all parts together. What a cell lacks is NaN: a step, a reading, the rest of a longer array;
    ``lengths`` then says how long its own is.
    """
    shape = tuple(len(values) for values in axes.values())
    steps = np.unique(np.concatenate([np.asarray(record.step) for *_, record in parts]))
    names = dict.fromkeys(name for *_, record in parts for name in record.values)
    values, lengths = {}, {}
    for name in names:
        values[name], own = _one(name, parts, steps, math.prod(shape))
        values[name] = values[name].reshape(len(steps), *shape, *values[name].shape[2:])
        if own is not None:
            lengths[name] = own.reshape(shape)
    last, dt = np.zeros(math.prod(shape), int), np.zeros(math.prod(shape))
    for cells, own, record in parts:
        last[cells], dt[cells] = record.step[-1] if len(record.step) else 0, own
    if np.any(last != last[0]):
        lengths["steps"] = last.reshape(shape)
    time = steps * dt[0] if np.all(dt == dt[0]) else steps.reshape(-1, *(1,) * len(shape)) * dt.reshape(shape)
    labels = {name: labels_of(list(held)) for name, held in axes.items()}
    return Record(steps.astype(np.int32), time, values, labels, lengths)


def labels_of(values: list[Any]) -> np.ndarray:
    """An axis's values ``[n]``; tuples and the like stay whole."""
    if not any(isinstance(value, (tuple, list, dict)) for value in values):
        return np.asarray(values)
    held = np.empty(len(values), object)
    for i, value in enumerate(values):
        held[i] = value
    return held


def _one(name: str, parts: Sequence[Part], steps: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray | None]:
    """A reading ``[T, cells, ...]`` and, where it was padded, its true lengths ``[cells]``."""
    held = [
        (cells, record.step, np.asarray(record.values[name])) for cells, _, record in parts if name in record.values
    ]
    inner = [value.shape[2:] for *_, value in held]
    if len({len(one) for one in inner}) > 1:
        raise ValueError(f"reading: got {name!r} with {sorted(set(inner))} in different cells; allowed: one rank")
    widest = tuple(max(sizes) for sizes in zip(*inner))
    padded = any(one != widest for one in inner)
    whole = not padded and all(len(at) == len(steps) for _, at, _ in held)
    whole = whole and sum(len(cells) for cells, *_ in held) == count
    kind = np.result_type(*(value.dtype for *_, value in held))
    kind = kind if whole or np.issubdtype(kind, np.inexact) else np.result_type(kind, np.float32)
    out = np.empty((len(steps), count, *widest), kind) if whole else np.full((len(steps), count, *widest), np.nan, kind)
    lengths = np.zeros(count, int)
    for cells, at, value in held:
        rows = np.searchsorted(steps, at)
        out[np.ix_(rows, cells, *map(np.arange, value.shape[2:]))] = value
        lengths[cells] = value.shape[2] if widest else 1
    return out, lengths if padded else None
