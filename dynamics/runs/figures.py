"""Figures in one style: measurement as markers, theory as black lines, rivals in grey; readable in greyscale."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dynamics.record import Record
from dynamics.runs.printable import printable

STYLE: dict[Any, Any] = {
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.92",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "dynamics",
    "pdf.fonttype": 42,
    "figure.constrained_layout.use": True,
}
MANY = 8
"""A legend with more entries that differ in one number becomes a colour bar; of more ticks, some are shown."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
DASHES = ("--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 3)))


def new_figure(
    rows: int = 1, cols: int = 1, *, width: float = 4.2, height: float = 3.0, sharex: Any = False, sharey: Any = False
) -> tuple[Any, Any]:
    """A figure in the house style, with its axes; needs no display.

    Args:
        rows, cols: the grid of axes.
        width, height: of one axes, in inches.
        sharex, sharey: as in ``matplotlib.figure.Figure.subplots``.

    Returns:
        ``(figure, axes)``: a single axes, or an array ``[rows, cols]`` (``[n]`` for one row or column).

    Example:
        >>> figure, axes = new_figure(1, 2)
        >>> axes.shape
        (2,)
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width * cols, height * rows))
        return figure, figure.subplots(rows, cols, sharex=sharex, sharey=sharey)


_BESIDE = ("_residual", "_upper", "_lower", "_limit", "_error", "_matvecs")


def curves(runs: Mapping[str, Mapping[str, Record]], *, log: bool = False, most: int = 24) -> Any:
    """Every scalar reading against the step, a panel each, all runs overlaid; errors and upper bounds as bands.

    Of a study's cells the median, in the band of four fifths of them.

    Args:
        runs: records by label, by the run's name.
        log: logarithmic values.
        most: panels, at most.
    """
    from matplotlib.ticker import MaxNLocator

    found: dict[str, list[tuple[int, Any, Band]]] = {}
    for index, records in enumerate(runs.values()):
        for record in records.values():
            for name in record.values:
                if (band := _band(record, name)) is not None:
                    found.setdefault(name, []).append((index, record.step, band))
    names = list(found)[:most]
    last = max((int(np.max(step)) for held in found.values() for _, step, *_ in held), default=1)
    columns = min(3, max(1, len(names)))
    figure, axes = new_figure(-(-max(1, len(names)) // columns), columns, width=4.0, height=2.6)
    panels, drawn_once = np.atleast_1d(axes).ravel(), {}
    for panel, name in zip(panels, names):
        for index, step, band in found[name]:
            label = text(list(runs)[index])
            style = {"color": colour(index, max(len(runs), 2)), "linewidth": 1.2, "marker": ".", "markersize": 3}
            drawn_once.setdefault(label, panel.plot(step, band.middle, label=label, **style)[0])
            if band.high is not band.low:
                panel.fill_between(step, band.low, band.high, color=style["color"], alpha=0.2, linewidth=0)
        panel.set(xlabel="step", ylabel=text(name.replace("_", " ")))
        panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        panel.set_xlim(-0.03 * max(last, 1), 1.03 * max(last, 1))
        if log:
            panel.set_yscale("log")
    for panel in panels[len(names) :]:
        panel.set_visible(False)
    if len(found) > most:
        figure.supxlabel(f"the first {most} of {len(found)} readings", fontsize=8)
    if len(runs) > 1 and names:
        panels[0].legend(drawn_once.values(), drawn_once.keys(), fontsize=7, frameon=False)
    return figure


class Band(NamedTuple):
    """A curve ``[T]`` and what is shaded about it: from ``low`` to ``high``, the curve itself where nothing is."""

    low: np.ndarray
    middle: np.ndarray
    high: np.ndarray


def _band(record: Record, name: str) -> Band | None:
    """A reading as a curve: a number with its error and upper bound, a study's median with four fifths of the cells.

    None for what stands beside another reading, and for arrays in each cell.
    """
    value, steps = np.asarray(record.values[name]), len(record.step)
    beside = any(name.endswith(end) and name.removesuffix(end) in record.values for end in _BESIDE)
    if beside or value.dtype.kind not in "bif" or not value.ndim or not value.size:
        return None
    cells = value.astype(float).reshape(steps, -1)
    if cells.shape[1] > 1:
        if value.ndim != 1 + len(record.axes):
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # steps at which no cell has a reading
            return Band(*np.nanquantile(cells, [0.1, 0.5, 0.9], axis=1))
    low = middle = high = cells[:, 0]
    error, upper = (np.ravel(record.values.get(f"{name}{end}", ())) for end in ("_error", "_upper"))
    if error.size == steps:
        low, high = middle - error, middle + error
    if upper.size == steps:
        high = np.where(np.isfinite(upper), upper, middle)
    return Band(low, middle, high)


def text(name: str) -> str:
    """A name that others gave as a label: on one line, without mathematics, and shown whatever it begins with."""
    plain = printable(name).replace("$", r"\$")
    return f" {plain}" if plain.startswith("_") else plain


def measured_style(index: int, count: int = 5) -> dict[str, Any]:
    """How measurement ``index`` of ``count`` is drawn: open markers, distinct in shape and in grey level."""
    return {
        "linestyle": "none",
        "marker": MARKERS[index % len(MARKERS)],
        "markerfacecolor": "none",
        "color": colour(index, count),
    }


def theory_style(index: int = 0) -> dict[str, Any]:
    """How theory ``index`` is drawn: black, solid first and dashed after."""
    return {"color": "black", "linestyle": "-" if index == 0 else DASHES[(index - 1) % len(DASHES)]}


def rival_style(index: int = 0) -> dict[str, Any]:
    """How rejected rival ``index`` is drawn: thin and grey, dashed; a control's points get ``linestyle="none"``."""
    return {"color": "0.6", "linestyle": DASHES[index % len(DASHES)], "linewidth": 1.0, "zorder": 1}


def colour(index: int, count: int) -> Any:
    """Colour ``index`` of ``count``, ordered from dark to light, so that it survives greyscale."""
    import matplotlib

    return matplotlib.colormaps["viridis"](0.85 * index / max(count - 1, 1))


def ticks_at(axis: Any, values: Any) -> None:
    """Puts ticks of ``axis`` (an ``xaxis`` or ``yaxis``) at ``values``, written out; of many, at some of them."""
    held = list(values)
    shown = held if len(held) <= MANY else [held[i] for i in np.linspace(0, len(held) - 1, 6).round().astype(int)]
    axis.set_ticks(shown, labels=[f"{value:.4g}" for value in shown])
    axis.set_ticks([], minor=True)


def drawn(figure: Any, kinds: Sequence[str] = ("png", "svg"), dpi: int | None = None) -> dict[str, bytes]:
    """A figure as ``figure.png`` and ``figure.svg``: the same bytes for the same figure.

    Args:
        figure: of matplotlib.
        kinds: of files: png, svg, pdf.
        dpi: dots per inch of a PNG; 150 by default.
    """
    import matplotlib

    undated: dict[str, dict[str, None]] = {
        "png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}
    }  # fmt: skip
    files = {}
    with matplotlib.rc_context(STYLE):
        for panel in list(figure.axes):
            _legend_as_bar(panel)
        _settle(figure)
        for kind in kinds:
            buffer = io.BytesIO()
            figure.savefig(
                buffer, format=kind, metadata=undated[kind], **({"dpi": dpi or 150} if kind == "png" else {})
            )
            files[f"figure.{kind}"] = buffer.getvalue()
    return files


_ENTRY = re.compile(r"^(?:(?P<kind>.*), )?(?P<name>[^,=]+) = (?P<value>[-+0-9.eE]+)$")


def _legend_as_bar(panel: Any) -> None:
    """Replaces the entries ``NAME = NUMBER`` of a long legend by a colour bar over the numbers.

    Entries ``KIND, NAME = NUMBER`` leave one of each kind; all others stay.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm, ListedColormap

    handles, labels = panel.get_legend_handles_labels()
    found = [_ENTRY.match(label.replace("$", "").replace("\\", "")) for label in labels]
    names = [match["name"] for match in found if match]
    name = max(set(names), key=names.count, default=None)
    colours: dict[float, Any] = {}
    kept: dict[str, Any] = {}
    for handle, label, match in zip(handles, labels, found):
        if match and match["name"] == name:
            colours.setdefault(float(match["value"]), _colour_of(handle))
            if match["kind"]:
                kept.setdefault(match["kind"], handle)
        else:
            kept[label] = handle
    if panel.get_legend() is None or len(colours) <= MANY:
        return
    values = sorted(colours)
    ticks = np.unique(np.linspace(0, len(values) - 1, 6).round().astype(int))
    norm = BoundaryNorm(np.arange(len(values) + 1) - 0.5, len(values))
    shades = ScalarMappable(norm, ListedColormap([colours[value] for value in values]))
    bar = panel.figure.colorbar(shades, ax=panel, ticks=ticks, label=name, pad=0.02)
    bar.ax.set_yticklabels([f"{values[i]:.3g}" for i in ticks])
    bar.ax.minorticks_off()
    panel.get_legend().remove()
    if kept:
        panel.legend(kept.values(), kept.keys(), fontsize=7, frameon=False)


def _colour_of(handle: Any) -> Any:
    """The first colour of a legend's handle that can be seen."""
    from matplotlib.colors import to_rgba_array

    while isinstance(handle, tuple):  # a container, such as that of error bars
        handle = next(part for part in handle if part not in (None, ()))
    for get in ("get_color", "get_edgecolor", "get_facecolor"):
        for found in to_rgba_array(getattr(handle, get)()) if hasattr(handle, get) else ():
            if found[3]:
                return tuple(found)
    return "0.5"


def _settle(figure: Any) -> None:
    """Breaks axis labels longer than their axis, then takes away the minor tick labels that would touch others."""
    every_axis = [axis for axes in figure.axes if axes.axison for axis in (axes.xaxis, axes.yaxis)]
    for axis in every_axis:
        if axis.get_scale() == "log" and min(axis.get_view_interval()) <= 0 and not np.isfinite(axis.get_minpos()):
            axis.axes.set(**{f"{axis.axis_name}lim": (1, 10)})  # nothing to show, which matplotlib refuses to draw
    figure.draw_without_rendering()
    for _ in range(2):  # onto two lines, then smaller
        if sum(_broken(axis) for axis in every_axis):
            figure.draw_without_rendering()
    for axis in every_axis:
        _thin(axis)
    figure.set_layout_engine("none")  # what is found stays; each file would find it again


def _broken(axis: Any) -> bool:
    """Whether the label of ``axis`` was longer than it; the label is then set on two lines, or smaller if it cannot."""
    text, side = axis.get_label_text(), "width" if axis.axis_name == "x" else "height"
    length, room = (getattr(thing.get_window_extent(), side) for thing in (axis.label, axis.axes))
    if not text or length <= room:
        return False
    spaces = [at for at, letter in enumerate(text) if letter == " " and text.count("$", 0, at) % 2 == 0]
    if "\n" in text or not spaces:
        axis.label.set_fontsize(max(6.0, axis.label.get_fontsize() * room / length))
    else:
        middle = min(spaces, key=lambda at: abs(at - len(text) / 2))
        axis.set_label_text(f"{text[:middle]}\n{text[middle + 1 :]}")
    return True


def _thin(axis: Any) -> None:
    from matplotlib.ticker import FixedFormatter, FixedLocator

    low, high = sorted(axis.get_view_interval())
    taken: list[Any] = []
    texts: dict[bool, dict[float, str]] = {False: {}, True: {}}
    for minor in (False, True):
        for at, label in zip(axis.get_ticklocs(minor=minor), axis.get_ticklabels(minor=minor)):
            if not low <= at <= high:
                continue
            box, text = label.get_window_extent().padded(2), label.get_text()
            texts[minor][float(at)] = text if text and not any(box.overlaps(other) for other in taken) else ""
            taken += [box] if texts[minor][float(at)] else []
    if any(texts[True].values()):
        axis.set_minor_locator(FixedLocator(list(texts[True])))
        axis.set_minor_formatter(FixedFormatter(list(texts[True].values())))
