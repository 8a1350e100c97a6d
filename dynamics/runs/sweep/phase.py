"""Phase diagrams: the last value of a reading over two named axes of a record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dynamics.runs.durable.errors import BadInput
from dynamics.runs.figures import measured_style, new_figure
from dynamics.types import Record


def chosen(records: Mapping[str, Record], show: str | None) -> tuple[str, str]:
    """``(label, reading)`` of what a sweep shows: a scalar in each cell, by its name or as ``label/name``.

    Raises:
        BadInput: when there is no such scalar.
    """
    scalars = [
        (label, name)
        for label, record in records.items()
        for name, value in record.values.items()
        if np.ndim(value) == 1 + len(record.axes)
    ]
    for label, name in scalars:
        if show in (None, name, f"{label}/{name}"):
            return label, name
    allowed = ", ".join(f"{label}/{name}" for label, name in scalars) or "a scalar reading (there is none)"
    raise BadInput(f"show: got {show!r}; allowed: {allowed}")


def final_values(record: Record, reading: str) -> np.ndarray:
    """A reading's last recorded value in every cell, ``[*axes]``; NaN where there is none or it is not finite."""
    values = np.asarray(record.values[reading], float)
    held = ~np.isnan(values)
    if "steps" in record.lengths:  # cells that end earlier are padded
        last = len(values) - 1 - np.argmax(held[::-1], axis=0)
        return np.take_along_axis(values, last[None], axis=0)[0]
    return values[-1]


def phase_diagram(record: Record, reading: str, axes: Sequence[str] | None = None) -> Any:
    """The last value of a reading over the first two axes that are not the seed; the median over the rest.

    Colours are logarithmic where positive values span more than two decades.
    One such axis gives a line of medians with every cell as a marker; cells that diverged are left blank and crossed.
    Words, truth values and the values of an axis of two are categories: evenly spaced, each under its name, no line.

    Args:
        record: readings on named axes.
        reading: a scalar in each cell.
        axes: those to choose from; all of the record's unless given.
    """
    values, fields = final_values(record, reading), list(record.axes)
    held = {name: [_item(value) for value in record.axes[name]] for name in fields}
    words, order = reading.replace("_", " "), list(axes or fields)
    shown = [name for name in order if name != "seed" and len(held[name]) > 1][:2] or order[:1]
    places = [fields.index(name) for name in shown]
    rest = [axis for axis in range(len(fields)) if axis not in places]
    values = np.transpose(values, places + rest).reshape([len(held[name]) for name in shown] + [-1])
    middle, many = _median(values), values.shape[-1] > 1
    figure, panel = new_figure(width=5.2, height=4.0)
    if len(shown) == 1:
        x = _positions(held[shown[0]])
        panel.plot(np.repeat(x, values.shape[-1]), values.ravel(), **measured_style(0))
        bars = {"linestyle": "none", "marker": "_", "markersize": 28} if _categories(held[shown[0]]) else {}
        panel.plot(x, middle, color="black", **bars)
        panel.set_ylabel(f"{words} at the last recorded step")
    else:
        x, y = (_positions(held[name]) for name in shown)
        mesh = panel.pcolormesh(
            *(_edges(held[name]) for name in shown), np.ma.masked_invalid(middle.T), cmap="viridis", norm=_norm(middle)
        )
        figure.colorbar(mesh, ax=panel, label=f"{words} at the last recorded step" + (" (median)" if many else ""))
        lost = np.argwhere(~np.isfinite(middle))
        if len(lost):
            panel.plot(x[lost[:, 0]], y[lost[:, 1]], "x", color="0.4", label="not finite")
            panel.legend(loc="upper right")
        panel.grid(False)
        _axis(panel, "y", shown[1], held[shown[1]])
    _axis(panel, "x", shown[0], held[shown[0]])
    panel.set_title(f"{np.isfinite(values).sum()} of {values.size} cells finite")
    return figure


def _item(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _norm(values: np.ndarray) -> str:
    finite = values[np.isfinite(values)]
    return "log" if finite.size and finite.min() > 0 and finite.max() > 100 * finite.min() else "linear"


def _median(values: np.ndarray) -> np.ndarray:
    """The median over the last axis, of the finite values; NaN where less than half are finite."""
    finite = np.asarray(np.isfinite(values))
    held = np.where(finite, values, np.nan)
    enough = 2 * finite.sum(-1) >= values.shape[-1]
    filled = np.where(np.any(finite, axis=-1, keepdims=True), held, 0.0)
    return np.where(enough, np.nanmedian(filled, axis=-1), np.nan)


def _categories(choices: list) -> bool:
    """Whether an axis's values are drawn by name: two have no scale between them, and words none at all."""
    return len(choices) <= 2 or not all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in choices)


def _positions(choices: list) -> np.ndarray:
    return np.arange(len(choices), dtype=float) if _categories(choices) else np.array(choices, float)


def _is_log(choices: list) -> bool:
    """Whether the values are spaced by a ratio rather than by a difference."""
    x = _positions(choices)
    if _categories(choices) or np.any(x <= 0):
        return False
    return bool(np.ptp(np.diff(np.log(x))) < np.ptp(np.diff(x)) / np.abs(x).max())


def _edges(choices: list) -> np.ndarray:
    """Cell borders between the values, halfway in their own spacing."""
    x, log = _positions(choices), _is_log(choices)
    x = np.log(x) if log else x
    middle = (x[1:] + x[:-1]) / 2
    half = (x[1] - x[0]) / 2, (x[-1] - x[-2]) / 2
    edges = np.concatenate([[x[0] - half[0]], middle, [x[-1] + half[1]]])
    return np.exp(edges) if log else edges


def _axis(axes: Any, which: str, field: str, choices: list) -> None:
    getattr(axes, f"set_{which}label")(field.replace("_", " "))
    if _categories(choices):
        names = [f"{choice:g}" if isinstance(choice, float) else str(choice) for choice in choices]
        getattr(axes, f"set_{which}ticks")(range(len(choices)), names)
        getattr(axes, f"set_{which}lim")(-0.5, len(choices) - 0.5)
    elif _is_log(choices):
        getattr(axes, f"set_{which}scale")("log")
