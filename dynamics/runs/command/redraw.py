"""The figure of a stored run again, for a paper, and two runs over each other: nothing is trained."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from dynamics.precision import own_precision
from dynamics.runs.command.target import target_file, written
from dynamics.runs.figures import drawn
from dynamics.runs.printable import printable
from dynamics.runs.report.compare import print_compare
from dynamics.runs.report.paper import in_print, only, resized
from dynamics.runs.sweep.module import set_up_jax
from dynamics.runs.sweep.replay import replayed

ENDINGS = (".png", ".svg", ".pdf")
FINE = 300
"""Dots per inch of a PNG that was given a width or a style."""


def figure(
    path: Path,
    target: Path | None = None,
    panel: int | None = None,
    width: float | None = None,
    pdf: bool = False,
    style: str | None = None,
    trust: bool = False,
) -> int:
    """Draws the figure of a finished run again from its records; the command ``figure``.

    Args:
        path: the run's directory.
        target: the file, ending in .png, .svg or .pdf; by default ``EXPERIMENT-NAME.png`` in the current folder.
        panel: the one to draw alone, from 1.
        width: in inches; panels that would become illegible go below each other.
        pdf: write PDF.
        style: ``paper``, or None for that of the report.
        trust: run the code that the run names, wherever that lies; see ``module_of``.

    Raises:
        BadInput: for another ending, a folder that does not exist, a panel or a width that cannot be.
        Unusable: as ``replayed``, or when the file cannot be written.
    """
    default = "-".join(path.resolve().parts[-2:]) + (f"-panel{panel}" if panel is not None else "")
    target = target_file(target, default, ENDINGS, ".pdf" if pdf else None)
    set_up_jax(False, None)
    found = replayed(path, trust)
    with own_precision():
        made = found.module.figure(found.result)
    if panel is not None:
        only(made, panel)
    if style is not None:
        in_print(made)
    if width is not None:
        resized(made, width)
    _save(made, target, FINE if width is not None or style is not None else None)
    if found.changed:
        print("warning: the source of its experiment has changed since: it was drawn by that of now", file=sys.stderr)
    return 0


def compare(path: Path, other: Path, plot: Path | None = None, show: str | None = None) -> int:
    """Prints where two runs differ, and may draw them over each other; the command ``compare``.

    Raises:
        BadInput: for a file that cannot be, or a reading that the runs do not share.
        Unusable: when a run cannot be read, or the file not be written.
    """
    target = None if plot is None else target_file(plot, "", ENDINGS)
    made = print_compare(path, other, show, draw=target is not None)
    if target is not None:
        _save(made, target, None)
    return 0


def _save(made: Any, target: Path, dpi: int | None) -> None:
    kind = target.suffix[1:]
    data = drawn(made, (kind,), dpi)[f"figure.{kind}"]
    written(target, lambda file: file.write_bytes(data))
    print(printable(target))
