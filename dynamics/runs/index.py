"""The index of a folder of runs: one HTML page with thumbnails, a filter and sortable columns."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from dynamics.runs.files import write_bytes
from dynamics.runs.page import badge, broken, document, read_json, shown, verdict


class Row(NamedTuple):
    """One run as the index shows it; ``holds`` is None while it is unfinished or tests nothing."""

    experiment: str
    name: str
    holds: bool | None
    words: str
    changed: float
    folder: Path


def write_index(root: Path) -> Path:
    """Writes ``index.html`` into a folder of runs ``root/<experiment>/<name>/``.

    A run whose files cannot be read is listed as such and stops nothing. Thumbnails are the runs' own ``figure.png``,
    loaded as they scroll into view; beyond those the page asks for nothing.

    Args:
        root: the folder, usually ``runs``.

    Returns:
        The path of the page.

    Raises:
        ValueError: when ``root`` is not a folder.

    From a shell: ``python -m dynamics.runs index [root]``.

    Cost: three small files read a run.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"root: got {str(root)!r}; allowed: an existing folder of runs")
    found = sorted(rows(root), key=lambda row: -row.changed)
    body = (
        f'<header><h1>Runs</h1><p class="muted">{len(found)} in <code>{escape(root.resolve().name)}</code></p></header>'
        f'<main id="main">{_CONTROLS}{_table(found)}</main>'
    )
    page = document("Runs", body, ["page.css", "index.css"], ["index.js"], images="'self' file: data:")
    path = root / "index.html"
    write_bytes(path, page.encode())
    return path


def rows(root: Path) -> Iterator[Row]:
    """Every run directory under ``root``: a folder two levels down that holds a ``config.json``."""
    for config in root.glob("*/*/config.json"):
        folder = config.parent
        try:
            claims = read_json(folder / "claims.json", [])
            finished = (folder / "claims.json").exists()
            holds, words = verdict(claims) if finished else (None, "– unfinished")
        except (ValueError, OSError):
            holds, words = None, "– unreadable"
        yield Row(folder.parent.name, folder.name, holds, words, config.stat().st_mtime, folder)


def _table(found: list[Row]) -> str:
    columns = (("experiment", "Experiment", "text"), ("name", "Run", "text"), ("verdict", "Verdict", "text"))
    head = '<th scope="col">Figure</th>' + "".join(
        f'<th scope="col" class="sortable" aria-sort="none" data-key="{key}" data-kind="{kind}">'
        f'<button type="button">{title}</button></th>'
        for key, title, kind in (*columns, ("changed", "Started", "number"))
    )
    head += '<th scope="col">Settings</th>'
    cells = "".join(_row(row) for row in found)
    return f'<table class="runs"><thead><tr>{head}</tr></thead><tbody>{cells}</tbody></table>'


def _row(row: Row) -> str:
    place = f"{quote(row.experiment)}/{quote(row.name)}"
    figure = row.folder / "figure.png"
    picture = (
        f'<img src="{place}/figure.png" alt="" loading="lazy" decoding="async" width="144" height="90">'
        if figure.exists()
        else '<span class="blank"></span>'
    )
    link = f'<a href="{place}/report.html">{escape(row.name)}</a>'
    name = link if (row.folder / "report.html").exists() else escape(row.name)
    settings = _settings(row.folder)
    kind = {True: "holds", False: "fails", None: "none"}[row.holds]
    when = datetime.fromtimestamp(row.changed, UTC).strftime("%Y-%m-%d %H:%M")
    words = escape(f"{row.experiment} {row.name} {row.words} {settings}".lower())
    return (
        f'<tr data-experiment="{escape(row.experiment)}" data-name="{escape(row.name)}" data-verdict="{kind}" '
        f'data-changed="{row.changed:.0f}" data-words="{words}"><td>{picture}</td>'
        f'<th scope="row">{broken(row.experiment)}</th><td data-label="Run">{name}</td>'
        f'<td>{badge(row.holds, row.words)}</td><td data-label="Started">{when}</td>'
        f'<td class="muted number">{escape(settings)}</td></tr>'
    )


def _settings(folder: Path) -> str:
    try:
        config: dict[str, Any] = read_json(folder / "config.json", {})
        config |= swept if isinstance(swept := config.get("sweep"), dict) else {}
    except (ValueError, OSError):
        return "unreadable config.json"
    text = " ".join(f"{key}={shown(value)}" for key, value in config.items() if not isinstance(value, dict))
    return text if len(text) <= 160 else text[:157] + "..."


_CONTROLS = (
    '<form class="controls" role="search"><label>Filter by words'
    '<input id="words" type="search" autocomplete="off"></label>'
    '<label>Verdict<select id="verdict"><option value="">all</option><option value="holds">claims hold</option>'
    '<option value="fails">a claim fails</option><option value="none">unfinished or untested</option></select></label>'
    '<span id="count" role="status"></span></form>'
)
