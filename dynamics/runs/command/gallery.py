"""The gallery of experiments: as a command, and as the README's table with the claims of finished runs.

``python -m dynamics.runs.command.gallery`` fills the table between the README's ``<!-- gallery -->`` marks. Given a
folder of runs it first takes the verdicts of the quick presets that finished there, and keeps them in
``docs/gallery.json``.
"""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dynamics.runs.command.discover import Entry, gallery
from dynamics.runs.durable.errors import HOLDS, BadInput, Damaged
from dynamics.runs.durable.files import json_text, read_json, write_bytes
from dynamics.runs.report.claim_words import counted

OPEN, CLOSE = "<!-- gallery -->", "<!-- /gallery -->"


def show_gallery(package: str, argv: list[str]) -> int:
    """Prints the gallery; the command of the package of all experiments."""
    entries = gallery(package)
    if not entries:
        raise BadInput(f"experiment: got {package!r}; allowed: a package of experiments")
    if argv not in ([], ["-h"], ["--help"], ["--json"]):
        raise BadInput(
            f"experiment: got {' '.join(argv)!r}; allowed: --json, or python -m {package}.FAMILY[.PAPER], from the list"
        )
    if argv == ["--json"]:
        print(json_text([entry._asdict() for entry in entries]), end="")
        return HOLDS
    print(f"{len(entries)} experiments, with the time of their quick presets on two CPU cores.")
    print("python -m FAMILY.NAME runs one, python -m FAMILY its flagship (*); --help has more.")
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print("\n".join(listing(entries, columns)))
    return HOLDS


def listing(entries: list[Entry], columns: int | None) -> list[str]:
    """The gallery as lines: one an experiment, or at most so many columns wide, by family."""
    lines, family = [""], ""
    width = max((len(entry.module if columns is None else entry.paper) for entry in entries), default=0)
    for entry in entries:
        name = entry.module if columns is None else entry.paper
        seconds = f"{entry.seconds:4.0f} s" if entry.seconds else "     -"
        head = f"{'*' if entry.flagship else ' '} {name:<{width}} {seconds}  "
        if columns is None:
            lines.append(head + entry.title)
            continue
        if entry.family != family:
            family = entry.family
            lines += [*([""] if len(lines) > 1 else []), family]
        lines += textwrap.wrap(
            entry.title,
            max(columns, len(head) + 20),
            initial_indent=head,
            subsequent_indent=" " * len(head),
            break_on_hyphens=False,
        )
    return lines


def table(entries: Sequence[Entry], results: Mapping[str, Mapping[str, Any]]) -> str:
    """The experiments as a markdown table; a family's flagship is in bold.

    Args:
        entries: what ``discover.gallery`` finds.
        results: ``{experiment: {"held", "tested", "rejected", "rivals", ...}}``, the claims that held of those tested
            in the quick preset (``unreached`` of them within it), and the rivals rejected of those that claims name; an
            identity counts as no claim.

    Example:
        >>> entry = Entry("experiments.toy.decay", "Decay of modes (Doe 2020)", 5, True, "Doe 2020, 'On decay'")
        >>> print(table([entry], {"toy.decay": {"held": 3, "tested": 4, "rejected": 5, "rivals": 6}}).splitlines()[-1])
        | **`toy.decay`** | Decay of modes | Doe 2020 | 3 of 4 | 5 of 6 | 5 s |
    """
    lines = ["| experiment | what it shows | paper | claims held | rivals rejected | time |", "|---" * 6 + "|"]
    for entry in entries:
        name = f"**`{entry.experiment}`**" if entry.flagship else f"`{entry.experiment}`"
        found = results.get(entry.experiment)
        held = f"{found['held']} of {found['tested']}" if found else "not run yet"
        held += f", {found['unreached']} not reached" if found and found.get("unreached") else ""
        rejected = f"{found['rejected']} of {found['rivals']}" if found and found.get("rivals") else "–"
        title = re.sub(r"\s*\([^()]*\d{4}[^()]*\)\s*$", "", entry.title)
        papers = "; ".join(part.split(", '")[0].strip() for part in entry.source.split(";"))
        seconds = f"{entry.seconds:.0f} s" if entry.seconds else "–"
        lines.append(f"| {name} | {title} | {papers} | {held} | {rejected} | {seconds} |".replace("$", r"\$"))
    return "\n".join(lines)


def filled(text: str, content: str) -> str:
    """``text`` with ``content`` between its gallery marks.

    Raises:
        ValueError: when the marks are not there, once each and in order.
    """
    before, opened, rest = text.partition(OPEN)
    _, closed, after = rest.partition(CLOSE)
    if not opened or not closed or text.count(OPEN) + text.count(CLOSE) != 2:
        raise ValueError(f"text: got no single pair of marks; allowed: one {OPEN} and, after it, one {CLOSE}")
    return f"{before}{OPEN}\n{content}\n{CLOSE}{after}"


def verdicts(root: Path) -> dict[str, dict[str, Any]]:
    """The claims of the newest finished quick-preset run of each experiment under ``root``."""
    newest: dict[str, tuple[str, dict[str, Any]]] = {}
    for path in root.glob("*/*/claims.json"):
        try:
            about, claims = read_json(path.parent / "provenance.json", {}), read_json(path, [])
        except Damaged:
            continue
        flags = [word for word in about.get("command", [])[3:] if word.startswith("--")]
        if about.get("preset") != "quick" or set(flags) - {"--out", "--name", "--quiet", "--json", "--x64"}:
            continue
        claims = [claim for claim in claims if not claim.get("source", "").startswith("identity")]
        count = counted(claims)
        claims = [claim for claim in claims if claim["holds"] is not None]
        rivals = sum(len(claim.get("rivals", ())) for claim in claims)
        found = {
            "held": count["holds"],
            "tested": len(claims) + count["unreached"],
            **({"unreached": count["unreached"]} if count["unreached"] else {}),
            "rejected": rivals - sum(len(claim.get("standing", ())) for claim in claims),
            "rivals": rivals,
            "seconds": about.get("seconds"),
            "jax": about.get("jax"),
        }
        name, started = path.parent.parent.name, str(about.get("started"))
        if name not in newest or newest[name][0] < started:
            newest[name] = started, found
    return {name: found for name, (_, found) in sorted(newest.items())}


def update(root: Path, runs: Path | None = None) -> str:
    """Writes the README's table in the checkout ``root``; returns the table."""
    kept = root / "docs" / "gallery.json"
    results = read_json(kept, {})
    if runs is not None:
        results = dict(sorted({**results, **verdicts(runs)}.items()))
        write_bytes(kept, json_text(results).encode())
    content = table(gallery(), results)
    readme = root / "README.md"
    write_bytes(readme, filled(readme.read_text(encoding="utf-8"), content).encode())
    return content


if __name__ == "__main__":
    print(update(Path.cwd(), Path(sys.argv[1]) if len(sys.argv) > 1 else None))
