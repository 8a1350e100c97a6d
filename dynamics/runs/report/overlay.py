"""Two runs over each other: the readings that both have, as curves and as a table, also at other steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dynamics.runs.durable.errors import BadInput
from dynamics.runs.durable.load import LoadedRun
from dynamics.runs.figures import colour, new_figure, text
from dynamics.types import Record

MOST = 12
"""Panels, at most."""
CURVES = 6
"""Values of an axis that are drawn, at most."""


class Pair(NamedTuple):
    """A reading of two runs, a number in each cell: medians over all axes but the first, at what both have of that.

    Attributes:
        name: ``label/reading``.
        axis: the name of the first axis that is no seed, or "".
        values: of that axis, those that both runs have.
        steps: ``[T1]`` and ``[T2]``, each run's own.
        curves: ``[T1, values]`` and ``[T2, values]``.
    """

    name: str
    axis: str
    values: Sequence[Any]
    steps: tuple[np.ndarray, np.ndarray]
    curves: tuple[np.ndarray, np.ndarray]

    def apart(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
        """``(step [T], first [T, values], second, whether the second was interpolated)`` at steps of the first.

        The steps that both have read; where these are fewer than half of the shorter run's, those of the first within
        the second's range, with the second between its own steps on a straight line.
        """
        (at, other), (first, second) = self.steps, self.curves
        both, i, j = np.intersect1d(at, other, return_indices=True)
        if 2 * len(both) >= min(len(at), len(other)):
            return both, first[i], second[j], False
        within = (at >= other[0]) & (at <= other[-1])
        drawn = np.stack([np.interp(at[within], other, column) for column in second.T], axis=1)
        return at[within], first[within], drawn, True


def shared_readings(mine: LoadedRun, theirs: LoadedRun, show: str | None = None) -> list[Pair]:
    """What both runs have read as numbers, on the same axes.

    Raises:
        BadInput: when ``show`` is none of it.
    """
    found = []
    for label in (label for label in mine.records if label in theirs.records):
        held = mine.records[label], theirs.records[label]
        if list(held[0].axes) != list(held[1].axes):
            continue
        first, second, _ = at_shared_values(*held)
        for name in (name for name in first.values if name in second.values):
            arrays = [np.asarray(record.values[name]) for record in (first, second)]
            if all(_is_curve(array, record) and array.size for array, record in zip(arrays, held)):
                found.append(_pair(f"{label}/{name}", held[0], (first, second), arrays))
    kept = [pair for pair in found if show in (None, pair.name, pair.name.rpartition("/")[2])]
    if show is not None and not kept:
        allowed = ", ".join(pair.name for pair in found) or "none (they share no reading of numbers)"
        raise BadInput(f"show: got {show!r}; allowed: {allowed}")
    return kept


def _is_curve(array: np.ndarray, record: Record) -> bool:
    return array.ndim == 1 + len(record.axes) and array.dtype.kind in "bif"


def _pair(name: str, record: Record, both: tuple[Record, Record], arrays: Sequence[np.ndarray]) -> Pair:
    axes = list(record.axes)
    axis = next((own for own in axes if own != "seed" and len(record.axes[own]) > 1), "")
    values = [value for value in record.axes[axis] if value in list(both[1].axes[axis])] if axis else [""]
    curves = []
    for array in arrays:
        moved = np.moveaxis(array.astype(float), 1 + axes.index(axis), 1) if axis else array.astype(float)[:, None]
        curves.append(np.median(moved.reshape(*moved.shape[:2], -1), axis=2))
    steps = tuple(np.asarray(own.step) for own in both)
    return Pair(name, axis, values, (steps[0], steps[1]), (curves[0], curves[1]))


def side_by_side(pairs: Sequence[Pair]) -> list[str]:
    """The readings as a table: both runs at the last step that they can be compared at, and how far apart they were."""
    rows: list[tuple[str, ...]] = [("reading", "step", "first", "second", "largest difference", "at step")]
    for pair in pairs:
        step, first, second, between = pair.apart()
        if not len(step):
            rows.append((pair.name, "-", "no step within the other's", "", "", ""))
            continue
        for i, value in enumerate(pair.values):
            where = f" at {pair.axis} = {value}" if pair.axis else ""
            gap = np.abs(first[:, i] - second[:, i])
            read = np.flatnonzero(np.isfinite(gap))
            if not read.size:
                rows.append((pair.name + where, "-", "nan", "nan", "", ""))
                continue
            last, worst = read[-1], read[np.argmax(gap[read])]
            largest = f"{gap[worst]:.3g}" + (" (second interpolated)" if between else "")
            numbers = (f"{one[last, i]:.6g}" for one in (first, second))
            rows.append((pair.name + where, str(step[last]), *numbers, largest, str(step[worst])))
    if len(rows) == 1:
        return []
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def overlaid(pairs: Sequence[Pair], names: Sequence[str]) -> Any:
    """A panel a reading: the first run solid, the second dashed, a colour for each value of the axis."""
    shown = pairs[:MOST]
    columns = min(3, len(shown))
    figure, axes = new_figure(-(-len(shown) // columns), columns, width=4.0, height=2.8)
    panels = list(np.atleast_1d(axes).ravel())
    for panel, pair in zip(panels, shown):
        picked = np.unique(np.linspace(0, len(pair.values) - 1, CURVES).round().astype(int))
        for step, curve, line in zip(pair.steps, pair.curves, ("-", "--")):
            for place, i in enumerate(picked if len(pair.values) else ()):
                style = {"color": colour(place, max(len(picked), 2)), "linestyle": line, "linewidth": 1.3}
                value = pair.values[i]
                told = (
                    f"{pair.axis} = {value:g}" if isinstance(value, (float, np.floating)) else f"{pair.axis} = {value}"
                )
                panel.plot(step, curve[:, i], label=text(told) if pair.axis and line == "-" else None, **style)
        panel.set(xlabel="step", ylabel=text(pair.name.rpartition("/")[2].replace("_", " ")))
        panel.set_title(text(pair.name.rpartition("/")[0]), fontsize=9)
        _scaled(panel, pair)
        if pair.axis:
            panel.legend(fontsize=7, frameon=False)
    for panel in panels[len(shown) :]:
        panel.set_visible(False)
    heading = f"solid: {text(names[0])}   dashed: {text(names[1])}"
    more = f"\nthe first {MOST} of {len(pairs)} readings; --show NAME picks one" if len(pairs) > MOST else ""
    figure.suptitle(heading + more, fontsize=9)
    return figure


def _scaled(panel: Any, pair: Pair) -> None:
    """Logarithmic axes where the numbers span more than two decades; the start is then beside the page."""
    last = max(int(step[-1]) for step in pair.steps)
    late = [step >= 1 for step in pair.steps]
    values = np.concatenate([curve[held].ravel() for curve, held in zip(pair.curves, late)])
    values = values[np.isfinite(values)]
    if last > 100 and all(np.any(step[held] * 10 < last) for step, held in zip(pair.steps, late)):
        panel.set_xscale("log")
        panel.set_xlim(left=0.9)
    if values.size and values.min() > 0 and values.max() > 100 * values.min():
        panel.set_yscale("log")
        panel.set_ylim(values.min() / 1.5, values.max() * 1.5)


def at_shared_values(first: Record, second: Record) -> tuple[Record, Record, str]:
    """Two records at the values that their axes share, and where that is, when it is not everywhere."""
    where = ""
    for place, name in enumerate(first.axes if list(first.axes) == list(second.axes) else (), start=1):
        held = [list(record.axes[name]) for record in (first, second)]
        both = [value for value in held[0] if value in held[1]]
        if held[0] == held[1]:
            continue
        where += f" at {name} = {', '.join(map(str, both)) or 'nothing shared'}"
        rows = [np.array([own.index(value) for value in both], int) for own in held]
        first, second = (
            record._replace(values={key: np.take(value, row, place) for key, value in record.values.items()})
            for record, row in zip((first, second), rows)
        )
    return first, second, where
