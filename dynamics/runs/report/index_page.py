"""The index of a folder of runs: one HTML page with thumbnails, a filter and sortable columns."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from dynamics.runs.durable.errors import BadInput, Unusable
from dynamics.runs.durable.files import open_file, read_json, write_bytes
from dynamics.runs.report.claim_words import verdict
from dynamics.runs.report.page import render, shown

ROOM = 352
"""Pixels of a thumbnail's place, 22rem in index.css."""
COLUMNS = (
    ("experiment", "Experiment", "text"), ("name", "Run", "text"), ("verdict", "Verdict", "text"),
    ("changed", "Started", "number"),
)  # fmt: skip


class Row(NamedTuple):
    """One run as the index shows it.

    ``holds`` is None while it is unfinished or tests nothing; ``wide`` is the width of its figure in pixels, at which
    the text in it can be read, and 0 without one.
    """

    experiment: str
    name: str
    place: str
    holds: bool | None
    words: str
    changed: float
    when: str
    settings: str
    wide: int
    reported: bool


def write_index(root: Path) -> Path:
    """Writes ``index.html`` into a folder of runs ``root/<experiment>/<name>/``.

    A run whose files cannot be read is listed as such and stops nothing. Thumbnails are the runs' own ``figure.png``,
    as much of each as can be read in its place, loaded as they scroll into view; beyond those the page asks for
    nothing.

    Args:
        root: the folder, usually ``runs``.

    Returns:
        The path of the page.

    Raises:
        BadInput: when ``root`` is not a folder.
        Unusable: when the page cannot be written.

    Cost: three small files and the head of a fourth read a run.
    """
    root = Path(root)
    if not root.is_dir():
        raise BadInput(f"root: got {str(root)!r}; allowed: an existing folder of runs")
    found = sorted(rows(root), key=lambda row: -row.changed)
    page = render(
        "index.html.j2", ["page.css", "index.css"], "index.js", title="Runs", folder=root.resolve().name,
        columns=COLUMNS, rows=found,
    )  # fmt: skip
    try:
        write_bytes(root / "index.html", page.encode("utf-8", "replace"))
    except OSError as error:
        raise Unusable(f"{root / 'index.html'}: cannot be written: {error.strerror}") from error
    return root / "index.html"


def print_index(root: Path) -> int:
    """Writes the index and prints its path; the command ``index``."""
    print(write_index(root))
    return 0


def rows(root: Path) -> Iterator[Row]:
    """Every run directory under ``root``: a folder one or two levels down that holds a ``config.json``."""
    for config in (*root.glob("*/config.json"), *root.glob("*/*/config.json")):
        folder = config.parent
        if folder.is_symlink() or folder.parent.is_symlink():
            continue
        try:
            claims = read_json(folder / "claims.json", [])
            finished = (folder / "claims.json").exists()
            holds, words = verdict(claims) if finished else (None, "– unfinished")
        except (Unusable, OSError):
            holds, words = None, "– unreadable"
        changed = config.lstat().st_mtime
        yield Row(
            folder.parent.name, folder.name, quote(os.fsencode(folder.relative_to(root))), holds, words, changed,
            datetime.fromtimestamp(changed, UTC).strftime("%Y-%m-%d %H:%M"), _settings(config),
            _width(folder / "figure.png"), (folder / "report.html").is_file(),
        )  # fmt: skip


def _width(png: Path) -> int:
    """How wide the figure in a file of 150 dots per inch is shown, 0 for none.

    Whole where its text of 8 points is then 7 pixels high or more, else its first corner with text of 9 pixels.
    """
    try:
        with open(open_file(png, os.O_RDONLY), "rb") as file:
            head = file.read(24)
    except (Unusable, OSError):
        return 0
    width = int.from_bytes(head[16:20], "big") if head[:8] == b"\x89PNG\r\n\x1a\n" and len(head) == 24 else 0
    return min(width, ROOM if 0.42 * width <= ROOM else round(0.55 * width))


def _settings(path: Path) -> str:
    try:
        config: dict[str, Any] = read_json(path, {})
    except (Unusable, OSError):
        return "unreadable config.json"
    config |= swept if isinstance(swept := config.get("sweep"), dict) else {}
    text = " ".join(f"{key}={shown(value)}" for key, value in config.items() if not isinstance(value, dict))
    return text if len(text) <= 160 else text[:157] + "..."
