"""The report of one run: a self-contained HTML page with its claims, figures, settings and the command to repeat it."""

from __future__ import annotations

import base64
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dynamics.runs.durable.errors import BadInput, understood
from dynamics.runs.durable.files import read_bytes, read_json, write_bytes
from dynamics.runs.report.claim_words import rejects, verdict
from dynamics.runs.report.page import render

NUMBERS = ("measured", "predicted", "tolerance")
FACTS = {"status": "{}", "started": "started {}", "seconds": "took {} s", "preset": "preset {}"}
ELSEWHERE = ("command", "description", "source")


class Picture(NamedTuple):
    """A figure as the page shows it: an image, in which no script of the file runs and which asks for nothing.

    Attributes:
        name: of the file, in words.
        data: the SVG file in base64.
        width: in pixels.
        size: its class: how many steps of 150 points it is wide, which a small screen scrolls rather than shrinks.
    """

    name: str
    data: str
    width: int
    size: str


def write_report(run_dir: Path) -> Path:
    """Writes ``report.html`` into a run directory; see ``report_page``.

    Args:
        run_dir: the run's directory, ``.../<experiment>/<name>``.

    Returns:
        The path of the page.

    Raises:
        BadInput: where there is no such folder; Damaged as ``report_page``.

    Example:
        >>> import tempfile
        >>> run = Path(tempfile.mkdtemp()) / "grokking.lazy_to_rich" / "first"
        >>> run.mkdir(parents=True)
        >>> write_report(run).name
        'report.html'
    """
    if not Path(run_dir).is_dir():
        raise BadInput(f"run_dir: got {str(run_dir)!r}; allowed: a run's folder")
    path = Path(run_dir) / "report.html"
    write_bytes(path, report_page(Path(run_dir)).encode())
    return path


def report_page(run_dir: Path) -> str:
    """The report of a run from what lies in its directory.

    Reads ``config.json``, ``provenance.json``, ``claims.json`` and every ``*.svg`` (``figure.svg`` first); a file that
    is missing leaves its section empty. The page needs no other file and no network, and runs no script or style but
    its own.

    Raises:
        Damaged: when one of the files is not what its name says; names the file.
    """
    experiment, name = run_dir.resolve().parts[-2:]
    config, provenance = (read_json(run_dir / f"{kind}.json", {}) for kind in ("config", "provenance"))
    claims, command = read_json(run_dir / "claims.json", []), provenance.get("command")
    paths = sorted(run_dir.glob("*.svg"), key=lambda path: (path.name != "figure.svg", path.name))
    figures = [picture(path.stem.replace("_", " "), read_bytes(path)) for path in paths]
    with understood(run_dir / "claims.json"):
        state, words = verdict(claims)
        claims = [{**claim, "rejects": rejects(claim)} for claim in claims]
        return render(
            "run.html.j2", ["page.css", "run.css"], "run.js",
            title=f"{experiment} / {name}", experiment=experiment, name=name, provenance=provenance, facts=FACTS,
            claims=claims, numbers=NUMBERS, state=state, words=words, figures=figures,
            more=[key for key in ("rejects", "source", "note") if any(claim.get(key) for claim in claims)],
            command=shlex.join(map(str, command)) if isinstance(command, list) else command, config=[*_flat(config)],
            rest=[*_flat({key: value for key, value in provenance.items() if key not in ELSEWHERE})],
        )  # fmt: skip


def picture(name: str, data: bytes) -> Picture:
    """An SVG file as the page shows it."""
    box = re.search(rb"viewBox=[\"'][-+\d.eE]+[ ,]+[-+\d.eE]+[ ,]+(\d{1,5})", data[:4096])
    points = max(1, int(box[1])) if box else 300
    size = f"w{min(round(points / 150), 12)}" + (" wide" if points > 700 else "")
    return Picture(name, base64.b64encode(data).decode(), 2 * points, size)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
