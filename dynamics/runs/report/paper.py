"""A finished figure for a paper: one of its panels, a width in inches, and a style that survives print."""

from __future__ import annotations

import itertools
import math
import string
from typing import Any

from dynamics.runs.durable.errors import BadInput

NARROW = 2.2
"""Inches below which a panel is illegible: of a narrower page its panels go below each other."""
SIZES = {"axes": 8.0, "ticks": 7.0, "legend": 6.5}
"""Points of text in the style ``paper``."""


def panels(figure: Any) -> list[list[Any]]:
    """The panels of a figure in their order: of each its axes, twins among them, and its colour bars."""
    found: dict[Any, list[Any]] = {}
    for axes in figure.axes:
        place = axes.get_subplotspec()
        if place is not None:
            found.setdefault((id(place.get_gridspec()), place.num1, place.num2), []).append(axes)
    for axes in figure.axes:
        parents = getattr(axes, "_colorbar_info", {}).get("parents", ())
        for held in found.values():
            if axes.get_subplotspec() is None and any(parent in held for parent in parents):
                held.append(axes)
    return [held for held in found.values() if held[0].get_visible()]


def only(figure: Any, number: int) -> None:
    """Leaves panel ``number``, from 1, of a figure, at the size that it had.

    Raises:
        BadInput: where there is none; names the panels that there are.
    """
    held = panels(figure)
    if not 1 <= number <= len(held):
        known = ", ".join(f"{at} ({_named(one[0])})" for at, one in enumerate(held, start=1))
        raise BadInput(f"panel: got {number}; allowed: {known or 'none, the figure has no panels'}")
    kept, (wide, high) = held[number - 1], _size(figure, held)
    _labelled(held)
    for axes in list(figure.axes):
        if axes not in kept:
            axes.remove()
    for axes in kept:
        if "parents" in getattr(axes, "_colorbar_info", {}):
            axes._colorbar_info["parents"] = [parent for parent in axes._colorbar_info["parents"] if parent in kept]
    figure.suptitle("")
    figure.set_size_inches(wide, high)
    _placed(figure, [kept], 1)


def resized(figure: Any, width: float) -> None:
    """Makes a figure ``width`` inches wide: its panels keep their proportions, in as many columns as are legible.

    Raises:
        BadInput: unless ``width`` lies in [1, 40].
    """
    if not 1 <= width <= 40:
        raise BadInput(f"width: got {width:g}; allowed: 1 to 40 inches")
    held = panels(figure)
    (wide, high), columns = _size(figure, held), _columns(held)
    fewer = max(1, min(columns, int(width / NARROW)))
    if fewer == columns or any(one[0].get_subplotspec().num1 != one[0].get_subplotspec().num2 for one in held):
        figure.set_size_inches(width, width * figure.get_figheight() / figure.get_figwidth())
        return
    _labelled(held)
    rows = math.ceil(len(held) / fewer)
    figure.set_size_inches(width, rows * high * (width / fewer) / wide)
    _placed(figure, held, fewer)


def in_print(figure: Any) -> None:
    """The style ``paper``: text of 6.5 to 8 points, thin lines, no grid, no heading, letters on several panels."""
    figure.suptitle("")
    held = panels(figure)
    for axes in figure.axes:
        axes.grid(False)
        axes.tick_params(which="both", labelsize=SIZES["ticks"], width=0.6, length=2.5)
        for text in (axes.title, axes.xaxis.label, axes.yaxis.label):
            text.set_fontsize(SIZES["axes"])
        for text in (*axes.texts, axes.xaxis.get_offset_text(), axes.yaxis.get_offset_text()):
            text.set_fontsize(min(text.get_fontsize(), SIZES["ticks"]))
        for spine in axes.spines.values():
            spine.set_linewidth(0.6)
        for line in axes.lines:
            line.set(linewidth=min(line.get_linewidth(), 1.1), markersize=min(line.get_markersize(), 3.5))
            line.set_markeredgewidth(min(line.get_markeredgewidth(), 0.7))
        _compact(axes)
    for letter, (axes, *_) in zip(string.ascii_lowercase, held if len(held) > 1 else ()):
        place = {"xy": (0, 1), "xycoords": "axes fraction", "xytext": (-14, 4), "textcoords": "offset points"}
        axes.annotate(letter, **place, ha="right", va="baseline", fontsize=SIZES["axes"], fontweight="bold")


def _compact(axes: Any) -> None:
    """The legend in small, where it covers least."""
    legend = axes.get_legend()
    if legend is None:
        return
    told = [text.get_text() for text in legend.get_texts()]
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(
        handles if labels == told else legend.legend_handles, told, title=legend.get_title().get_text() or None,
        fontsize=SIZES["legend"], title_fontsize=SIZES["legend"], frameon=False, handlelength=1.6, handletextpad=0.5,
        labelspacing=0.25, borderaxespad=0.3, ncols=getattr(legend, "_ncols", 1), columnspacing=1.0,
    )  # fmt: skip


def _named(axes: Any) -> str:
    return " ".join((axes.get_title() or axes.get_ylabel() or axes.get_xlabel() or "no title").split())


def _columns(held: list[list[Any]]) -> int:
    return max((one[0].get_subplotspec().get_gridspec().ncols for one in held), default=1)


def _size(figure: Any, held: list[list[Any]]) -> tuple[float, float]:
    """Width and height of one cell of the figure's grid, in inches."""
    rows = max((one[0].get_subplotspec().get_gridspec().nrows for one in held), default=1)
    return figure.get_figwidth() / _columns(held), figure.get_figheight() / rows


def _labelled(held: list[list[Any]]) -> None:
    """Gives panels their own labels and ticks where they shared those of another row or column."""
    for (axes, *_), (other, *_) in itertools.permutations(held, 2):
        for which in ("x", "y"):
            shared = getattr(axes, f"get_shared_{which}_axes")().joined(axes, other)
            label = getattr(other, f"get_{which}label")()
            if shared and label and not getattr(axes, f"get_{which}label")():
                getattr(axes, f"set_{which}label")(label)
            if shared:
                axes.tick_params(**{"labelbottom" if which == "x" else "labelleft": True})


def _placed(figure: Any, held: list[list[Any]], columns: int) -> None:
    """Puts panels into a new grid, row by row."""
    grid = figure.add_gridspec(math.ceil(len(held) / columns), columns)
    for at, one in enumerate(held):
        for axes in one:
            if axes.get_subplotspec() is not None:
                axes.set_subplotspec(grid[at // columns, at % columns])
