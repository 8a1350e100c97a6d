"""The gallery of experiments: as a command, and as the README's table with the claims of finished runs.

``python -m dynamics.runs.command.gallery`` fills the table between the README's ``<!-- gallery -->`` marks. Given a
folder of runs it first takes the verdicts of the plain presets that finished there, and the quick ones' figures, and
keeps them in ``docs/gallery.json`` and ``docs/gallery/<experiment>.webp``.
"""

from __future__ import annotations

import io
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
from dynamics.runs.machine import REFERENCE, here, matmul_rate
from dynamics.runs.report.claim_words import counted, kind

OPEN, CLOSE = "<!-- gallery -->", "<!-- /gallery -->"
FIGURE_BYTES = 60_000  # of one figure in the repository
TIMES = (
    f"Times are of the quick presets on two cores that do {REFERENCE:.0f} GFLOP/s in a float32 product of 1024 rows; "
    "`dynamics experiments` scales them to your machine."
)


def show_gallery(package: str, argv: list[str], start: str) -> int:
    """Prints the gallery; the command of the package of all experiments.

    Args:
        package: the package.
        argv: nothing, or ``--json``.
        start: what is typed before FAMILY.PAPER to run one.
    """
    entries = gallery(package)
    if not entries:
        raise BadInput(f"experiment: got {package!r}; allowed: a package of experiments")
    if argv not in ([], ["-h"], ["--help"], ["--json"]):
        raise BadInput(f"experiment: got {' '.join(argv)!r}; allowed: --json, or {start}FAMILY[.PAPER], from the list")
    if argv == ["--json"]:
        print(json_text([entry._asdict() for entry in entries]), end="")
        return HOLDS
    rate = matmul_rate()
    entries = [
        entry if entry.seconds is None else entry._replace(seconds=here(entry.seconds, rate)) for entry in entries
    ]
    print(
        f"{len(entries)} experiments. The time of their quick presets is scaled to this machine as it is now:\n"
        f"{rate:.0f} GFLOP/s in a float32 product of 1024 rows, {REFERENCE:.0f} where it was measured."
    )
    print(f"{start}FAMILY.PAPER runs one, {start}FAMILY its flagship (*); --help has more.")
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print("\n".join(listing(entries, columns)))
    return HOLDS


def listing(entries: list[Entry], columns: int | None) -> list[str]:
    """The gallery as lines: one an experiment, or at most so many columns wide, by family."""
    lines, family = [""], ""
    width = max((len(entry.experiment if columns is None else entry.paper) for entry in entries), default=0)
    for entry in entries:
        name = entry.experiment if columns is None else entry.paper
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
            identity counts as no claim. ``presets`` has those of the others by name.

    Example:
        >>> entry = Entry("experiments.toy.decay", "Decay of modes (Doe 2020)", 5, True, "Doe 2020, 'On decay'")
        >>> print(table([entry], {"toy.decay": {"held": 3, "tested": 4, "rejected": 5, "rivals": 6}}).splitlines()[-1])
        | **`toy.decay`** | Decay of modes | Doe 2020 | 3 of 4 | 5 of 6 | 5 s |
    """
    lines = [
        TIMES,
        "",
        "| experiment | what it shows | paper | claims held | rivals rejected | time |",
        "|---" * 6 + "|",
    ]
    for entry in entries:
        name = f"**`{entry.experiment}`**" if entry.flagship else f"`{entry.experiment}`"
        found = results.get(entry.experiment)
        held = "; ".join([of_tested(found), *(f"{preset} {of_tested(one)}" for preset, one in others(found).items())])
        rejected = f"{found['rejected']} of {found['rivals']}" if found and found.get("rivals") else "–"
        seconds = f"{entry.seconds:.0f} s" if entry.seconds else "–"
        line = f"| {name} | {title(entry)} | {papers(entry)} | {held} | {rejected} | {seconds} |"
        lines.append(line.replace("$", r"\$"))
    return "\n".join(lines)


def of_tested(found: Mapping[str, Any] | None) -> str:
    """How many claims of a run held."""
    if not found or "held" not in found:
        return "not run yet"
    return f"{found['held']} of {found['tested']}" + (f", {n} not reached" if (n := found.get("unreached")) else "")


def others(found: Mapping[str, Any] | None) -> dict[str, Mapping[str, Any]]:
    """The verdicts of the presets beside the quick one."""
    return dict((found or {}).get("presets", {}))


def title(entry: Entry) -> str:
    """What the experiment shows, without the paper in brackets at its end."""
    return re.sub(r"\s*\([^()]*\d{4}[^()]*\)\s*$", "", entry.title)


def papers(entry: Entry) -> str:
    """Authors and years of its papers, without their titles."""
    return "; ".join(part.split(", '")[0].strip() for part in entry.source.split(";"))


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


def newest_runs(root: Path) -> dict[tuple[str, str], Path]:
    """The newest finished run of each experiment under ``root`` and each of its presets, without other flags."""
    newest: dict[tuple[str, str], tuple[str, Path]] = {}
    for path in root.glob("*/*/claims.json"):
        try:
            about = read_json(path.parent / "provenance.json", {})
            read_json(path, [])
        except Damaged:
            continue
        flags = [word.partition("=")[0] for word in about.get("command", [])[3:] if word.startswith("--")]
        preset = about.get("preset")
        if not preset or set(flags) - {"--out", "--name", "--quiet", "--json", "--x64", "--preset"}:
            continue
        key, started = (path.parent.parent.name, preset), str(about.get("started"))
        if key not in newest or newest[key][0] < started:
            newest[key] = started, path.parent
    return {key: folder for key, (_, folder) in sorted(newest.items())}


def verdicts(folder: Path) -> dict[str, Any]:
    """The claims of one run in numbers; an identity counts as no claim."""
    about, claims = read_json(folder / "provenance.json", {}), read_json(folder / "claims.json", [])
    claims = [claim for claim in claims if not claim.get("source", "").startswith("identity")]
    count, claims = counted(claims), [claim for claim in claims if claim["holds"] is not None]
    rivals = sum(len(claim.get("rivals", ())) for claim in claims)
    failing = [claim["name"] for claim in claims if kind(claim) == "fails"]
    return {
        "held": count["holds"],
        "tested": len(claims) + count["unreached"],
        **({"unreached": count["unreached"]} if count["unreached"] else {}),
        "rejected": rivals - sum(len(claim.get("standing", ())) for claim in claims),
        "rivals": rivals,
        **({"fails": failing} if failing else {}),
        "seconds": about.get("seconds"),
        "jax": about.get("jax"),
    }


def figure_file(root: Path, experiment: str) -> Path:
    """Where the checkout ``root`` keeps the figure of an experiment."""
    return root / "docs" / "gallery" / f"{experiment}.webp"


def small_figure(path: Path) -> bytes:
    """A run's figure as WebP of at most ``FIGURE_BYTES``: as wide as a page, then of as good a quality as fits."""
    from PIL import Image

    with Image.open(path) as opened:
        image = opened.convert("RGB")
    for width in (1480, 1110, 740):
        if image.width > width:
            image = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
        for quality in (90, 80, 70, 60):
            image.save(found := io.BytesIO(), "WEBP", quality=quality, method=6)
            if found.tell() <= FIGURE_BYTES:
                return found.getvalue()
    raise ValueError(f"figure: got {path} of over {FIGURE_BYTES} bytes at any quality; allowed: one that fits")


def update(root: Path, runs: Path | None = None) -> str:
    """Writes the README's table in the checkout ``root``, with runs verdicts and figures too; returns the table."""
    kept = root / "docs" / "gallery.json"
    results = read_json(kept, {})
    if runs is not None:
        newest = newest_runs(runs)
        for (name, preset), folder in newest.items():
            kept_others = others(results.get(name))
            if preset == "quick":
                results[name] = {**verdicts(folder), **({"presets": kept_others} if kept_others else {})}
            else:
                results.setdefault(name, {})["presets"] = {**kept_others, preset: verdicts(folder)}
        results = dict(sorted(results.items()))
        write_bytes(kept, json_text(results).encode())
        for (name, preset), folder in newest.items():
            if preset == "quick" and (folder / "figure.png").is_file():
                figure_file(root, name).parent.mkdir(exist_ok=True)
                write_bytes(figure_file(root, name), small_figure(folder / "figure.png"))
    content = table(gallery(), results)
    readme = root / "README.md"
    write_bytes(readme, filled(readme.read_text(encoding="utf-8"), content).encode())
    return content


if __name__ == "__main__":
    print(update(Path.cwd(), Path(sys.argv[1]) if len(sys.argv) > 1 else None))
