"""The report of one run: a self-contained HTML page with its claims, figures, settings and the command to repeat it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from dynamics.runs.files import write_bytes
from dynamics.runs.page import badge, broken, document, read_json, shown, verdict
from dynamics.runs.svg import Drawing, inline_svg


def write_report(run_dir: Path) -> Path:
    """Writes ``report.html`` into a run directory from what lies in it.

    Reads ``config.json``, ``provenance.json``, ``claims.json`` and every ``*.svg`` (``figure.svg`` first); a file that
    is missing leaves its section empty. The page needs no other file and no network, and runs no script or style but
    its own.

    Args:
        run_dir: the run's directory, ``.../<experiment>/<name>``.

    Returns:
        The path of the page.

    Raises:
        ValueError: when one of the files is not what its name says; names the file.

    Example:
        >>> import tempfile
        >>> run = Path(tempfile.mkdtemp()) / "grokking.lazy_to_rich" / "first"
        >>> run.mkdir(parents=True)
        >>> write_report(run).name
        'report.html'
    """
    run_dir = Path(run_dir)
    experiment, name = run_dir.resolve().parts[-2:]
    config = read_json(run_dir / "config.json", {})
    provenance = read_json(run_dir / "provenance.json", {})
    claims = read_json(run_dir / "claims.json", [])
    svgs = sorted(run_dir.glob("*.svg"), key=lambda path: (path.name != "figure.svg", path.name))
    drawings = [inline_svg(path, _label(path, experiment), f"f{number}-") for number, path in enumerate(svgs)]
    title = f"{experiment} / {name}"
    body = "\n".join(
        [
            _header(experiment, name, provenance, claims),
            '<main id="main">',
            _claims(claims),
            _figures(svgs, drawings),
            _command(provenance),
            _values("Configuration", "config", config, " open"),
            _values("Provenance", "provenance", {k: v for k, v in provenance.items() if k not in _ELSEWHERE}),
            "</main>",
        ]
    )
    page = document(
        title,
        body,
        ["page.css", "report.css"],
        ["report.js"],
        images="data:",
        dark="".join(drawing.dark for drawing in drawings),
    )
    path = run_dir / "report.html"
    write_bytes(path, page.encode())
    return path


def _header(experiment: str, name: str, provenance: Mapping[str, Any], claims: Sequence[dict[str, Any]]) -> str:
    holds, words = verdict(claims)
    facts = [f"run <code>{escape(name)}</code>"]
    facts += [escape(text.format(_moment(provenance[key]))) for key, text in _FACTS.items() if provenance.get(key)]
    kinds = (("description", "lead"), ("source", "muted"))
    lead = "".join(
        f'<p class="{kind}">{escape(str(provenance[key]))}</p>' for key, kind in kinds if provenance.get(key)
    )
    return (
        f'<header><h1>{broken(experiment)}</h1>{lead}<p class="overall">{badge(holds, words)}</p>'
        f'<p class="muted">{" · ".join(facts)}</p></header>'
    )


_ELSEWHERE = ("command", "description", "source")
_FACTS = {"status": "{}", "started": "started {}", "seconds": "took {} s", "preset": "preset {}"}


def _moment(value: Any) -> str:
    """A fact as text; a time stamp to the minute."""
    try:
        return datetime.fromisoformat(value).astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (TypeError, ValueError):
        return shown(value)


def _claims(claims: Sequence[Mapping[str, Any]]) -> str:
    if not claims:
        return '<section aria-labelledby="claims"><h2 id="claims">Claims</h2><p>None recorded yet.</p></section>'
    words = [key for key in ("source", "note") if any(claim.get(key) for claim in claims)]
    columns = ("Verdict", "Claim", "Measured", "Predicted", "Tolerance", *map(str.capitalize, words))
    head = "".join(f'<th scope="col">{column}</th>' for column in columns)
    rows = "".join(_claim(claim, words) for claim in claims)
    return (
        '<section aria-labelledby="claims"><h2 id="claims">Claims</h2><div class="table"><table class="claims">'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></section>"
    )


def _claim(claim: Mapping[str, Any], words: Sequence[str]) -> str:
    holds = claim.get("holds")
    cells = [
        f"<td>{badge(holds if isinstance(holds, bool) else None)}</td>",
        f'<th scope="row">{escape(shown(claim.get("name")))}</th>',
    ]
    for key in ("measured", "predicted", "tolerance"):
        value = claim.get(key)
        status = claim.get(f"{key}_status") if value is None else None
        text = "" if value is None and status is None else shown(value if status is None else status)
        cells.append(f'<td class="number" data-label="{key.capitalize()}">{escape(text)}</td>')
    for key in words:
        text = shown(claim.get(key)) if claim.get(key) else ""
        cells.append(f'<td data-label="{key.capitalize()}">{escape(text)}</td>')
    return f"<tr>{''.join(cells)}</tr>"


def _figures(paths: Sequence[Path], drawings: Sequence[Drawing]) -> str:
    if not paths:
        return ""
    figures = "".join(map(_figure, paths, drawings))
    return f'<section aria-labelledby="figures"><h2 id="figures">Figures</h2>{figures}</section>'


def _label(path: Path, experiment: str) -> str:
    name = path.stem.replace("_", " ")
    return f"{name} of {experiment}: theory over measurement; the numbers stand in the table of claims"


def _figure(path: Path, drawing: Drawing) -> str:
    name = path.stem.replace("_", " ")
    keys = "plus and minus zoom, 0 resets, arrows move"
    tools = "".join(
        f'<button type="button" data-action="{action}" aria-label="{words}, {escape(name)}">{sign}</button>'
        for action, sign, words in (("in", "+", "Zoom in"), ("out", "−", "Zoom out"), ("reset", "Reset", "Reset zoom"))
    )
    caption = "" if name == "figure" else f"<figcaption>{escape(name)}</figcaption>"
    return (
        f'<figure class="{_size(drawing)}"><div class="plot" tabindex="0" role="group" '
        f'aria-label="{escape(name)}, zoomable: {keys}">'
        f"{drawing.markup}</div>"
        f'<div class="tools">{tools}<span class="muted" role="status">100 %</span>'
        f'<span class="muted">Drag or scroll to move; Ctrl and wheel, or + − 0 and arrows, to zoom.</span></div>'
        f"{caption}</figure>"
    )


def _size(drawing: Drawing) -> str:
    """The figure's class: how many steps of 150 points it is wide, which a small screen scrolls rather than shrinks."""
    return f"w{min(round(drawing.width / 150), 12)}" + (" wide" if drawing.width > 700 else "")


def _command(provenance: Mapping[str, Any]) -> str:
    command = provenance.get("command")
    if not command:
        return ""
    text = command if isinstance(command, str) else shlex.join(map(str, command))
    return (
        '<section aria-labelledby="repeat"><h2 id="repeat">Repeat this run</h2>'
        f'<pre id="command" tabindex="0">{broken(text)}</pre>'
        '<button type="button" data-copy="command" aria-live="polite" hidden>Copy command</button></section>'
    )


def _values(title: str, identifier: str, values: Mapping[str, Any], opened: str = "") -> str:
    if not values:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{escape(key)}</th><td class="number">{escape(shown(value))}</td></tr>'
        for key, value in _flat(values)
    )
    return (
        f'<section aria-labelledby="{identifier}"><h2 id="{identifier}">{title}</h2>'
        f'<details{opened}><summary>{len(values)} entries</summary><div class="table"><table class="values">'
        f"<tbody>{rows}</tbody></table></div></details></section>"
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
