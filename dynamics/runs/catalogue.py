"""Folders of runs: list, show, compare, tidy, repeat. Reads SQLite and JSON only; loads no JAX to list."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dynamics.runs.directory import config_difference, open_run
from dynamics.runs.errors import BadInput, Unusable
from dynamics.runs.journal import Journal
from dynamics.runs.load import LoadedRun, damaged_files, load
from dynamics.runs.lock import holder

if TYPE_CHECKING:
    from dynamics.types import Record


class Row(NamedTuple):
    """One run in a list; ``verdict`` is how many claims hold of how many apply ("" before there are any)."""

    experiment: str
    name: str
    status: str
    verdict: str
    changed: float
    path: Path


def run_folders(root: Path) -> Iterator[Path]:
    """Every run ``root/<experiment>/<name>`` (or ``root`` itself, when it is one)."""
    if (root / "run.sqlite").is_file():
        yield root
        return
    if not root.is_dir():
        raise BadInput(f"root: got {str(root)!r}; allowed: an existing folder of runs")
    for experiment in sorted(entry.path for entry in os.scandir(root) if entry.is_dir()):
        for entry in sorted(os.scandir(experiment), key=lambda entry: entry.name):
            if any(os.path.exists(os.path.join(entry.path, name)) for name in ("run.sqlite", "grid.json")):
                yield Path(entry.path)


def listed(root: Path) -> Iterator[Row]:
    """One row a run; one that cannot be read is listed as damaged, or as of 0.1, and stops nothing.

    Cost: one SQLite query a run, about 0.2 ms.
    """
    for path in run_folders(root):
        known = (path / "run.sqlite").is_file()
        status, verdict = _glance(path) if known else ("of 0.1", "a sweep")
        changed = (path / "run.sqlite" if known else path).stat().st_mtime
        yield Row(path.parent.name, path.name, status, verdict, changed, path)


def _glance(path: Path) -> tuple[str, str]:
    """Status and verdict by the shortest way; the full checks are ``load``'s."""
    try:
        db = sqlite3.connect(f"file:{path}/run.sqlite?mode=ro", uri=True)
        try:
            held = dict(db.execute("SELECT key, value FROM meta WHERE key IN ('status', 'claims')").fetchall())
        finally:
            db.close()
        claims = json.loads(held.get("claims", "[]"))
        status = json.loads(held.get("status", '"running"'))
    except (sqlite3.Error, ValueError):
        return "damaged", ""
    if status in ("running", "interrupted"):
        status = "running" if _in_use(path) else "interrupted"
    applicable = [claim["holds"] for claim in claims if claim["holds"] is not None]
    return status, f"{sum(applicable)}/{len(applicable)} hold" if claims else ""


def _in_use(path: Path) -> bool:
    """Whether someone writes to a run or to one of its parts."""
    return any(holder(lock) is not None for lock in path.rglob("lock"))


def print_list(root: Path) -> int:
    """Prints the runs under ``root``; the command ``list``."""
    rows = list(listed(root))
    width = max((len(f"{row.experiment}/{row.name}") for row in rows), default=0)
    for row in rows:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(row.changed))
        print(f"{row.experiment + '/' + row.name:<{width}}  {row.status:<11}  {row.verdict:<15}  {when}")
    print(f"{len(rows)} runs")
    return 0


def print_show(path: Path) -> int:
    """Prints one run: status, settings, claims, what each call recorded, warnings; the command ``show``."""
    from dynamics.runs.cli import claims_table
    from dynamics.runs.files import plain

    run = load(path)
    print(f"{run.path}: {run.status}")
    for name, value in run.config.items():
        print(f"  {name} = {value}")
    print(claims_table(plain([claim._asdict() for claim in run.claims])))
    for label, record in run.records.items():
        shapes = ", ".join(f"{name}{list(value.shape)}" for name, value in record.values.items())
        on = " x ".join(f"{name}[{len(held)}]" for name, held in record.axes.items())
        shapes = f"on {on}: {shapes}" if on else shapes
        print(f"{label}: {len(record.step)} rows to step {record.step[-1] if len(record.step) else 0}: {shapes}")
    for label, found in run.diverged.items():
        print(f"{label}: diverged in lanes {found['lanes']} of {found['of']}, first seen at {found['first_step']}")
    for when, kind, text in run.events:
        print(f"{when} {kind}: {text}")
    wrong = damaged_files(path)
    if wrong:
        raise Unusable(f"{path}: missing or damaged: {', '.join(wrong)}; the same command again writes them anew")
    return 0


def print_compare(path: Path, other: Path) -> int:
    """Prints where two runs differ: settings, claims and every reading; the command ``compare``."""
    mine, theirs = load(path), load(other)
    print(f"settings: {config_difference(mine.config, theirs.config) or 'the same'}")
    for line in record_differences(mine, theirs):
        print(line)
    claims = {claim.name: claim for claim in theirs.claims}
    for claim in mine.claims:
        second = claims.get(claim.name)
        print(
            f"{claim.name}: {claim.measured} ({claim.holds}) | "
            + (f"{second.measured} ({second.holds})" if second else "-")
        )
    return 0


def record_differences(mine: LoadedRun, theirs: LoadedRun) -> list[str]:
    """One line a call: the same bits, or how far apart each reading is; of axes that differ, where they agree."""
    import numpy as np

    lines = []
    for label in dict.fromkeys([*mine.records, *theirs.records]):
        if label not in mine.records or label not in theirs.records:
            lines.append(f"{label}: only in {(mine if label in mine.records else theirs).path}")
            continue
        first, second, where = _shared(mine.records[label], theirs.records[label])
        label += where
        shared = [name for name in first.values if name in second.values]
        shapes = [first.values[name].shape == second.values[name].shape for name in shared]
        same = list(first.axes) == list(second.axes) and np.array_equal(first.step, second.step)
        if len(shared) < len(first.values) or not all(shapes) or not same:
            lines.append(f"{label}: other readings, shapes, axes or steps")
            continue
        apart = {}
        for name in shared:
            a, b = first.values[name], second.values[name]
            if a.tobytes() != b.tobytes() or a.dtype != b.dtype:
                with np.errstate(all="ignore"):
                    apart[name] = float(
                        np.nanmax(np.abs(np.subtract(a, b, dtype=np.result_type(a, b, float))), initial=0.0)
                    )
        far = ", ".join(f"{name} by at most {by:.3g}" for name, by in apart.items())
        lines.append(f"{label}: " + (f"differs in {far}" if apart else "the same bits"))
    return lines


def _shared(first: Record, second: Record) -> tuple[Record, Record, str]:
    """Two records at the values that their axes share, and where that is, when it is not everywhere."""
    import numpy as np

    where = ""
    for place, name in enumerate(first.axes if list(first.axes) == list(second.axes) else (), start=1):
        held = [list(record.axes[name]) for record in (first, second)]
        both = [value for value in held[0] if value in held[1]]
        if held[0] == held[1]:
            continue
        where += f" at {name} = {', '.join(map(str, both)) or 'nothing shared'}"
        rows = [np.array([own.index(value) for value in both], int) for own in held]
        first, second = (
            record._replace(values={key: np.take(value, row, place) for key, value in record.values.items()})
            for record, row in zip((first, second), rows)
        )
    return first, second, where


def tidy(root: Path, *, delete: bool) -> int:
    """Frees what finished runs no longer need (all checkpoints) and half-written files; the command ``gc``.

    A run in use, by itself or by workers, is left alone. A finished run keeps journal, claims and figures; it can no
    longer be forked, and a damaged figure then means running it again.
    """
    freed = 0
    for path in run_folders(root):
        if _in_use(path):
            continue
        doomed = [*path.rglob(".*.part")]
        if _glance(path)[0] in ("finished", "diverged"):
            doomed += path.rglob("checkpoints/*.ckpt")
        for file in doomed:
            freed += file.stat().st_size
            if delete:
                file.unlink()
    print(f"{freed / 1e6:.1f} MB {'freed' if delete else 'could be freed; run again with --delete'}")
    return 0


def repeat(path: Path) -> int:
    """Runs a run again from its directory alone, beside it, and reports the difference; the command ``repeat``.

    Returns:
        0 when every reading has the same bits, 5 otherwise.
    """
    from dynamics.runs import cli
    from dynamics.runs.provenance import differences, provenance

    old = load(path)
    about = old.provenance
    if not old.config or "module" not in about:
        raise Unusable(f"{path}: does not say which experiment it is")
    if old.status not in ("finished", "diverged"):
        raise Unusable(f"{path}: is {old.status}; resume it first")
    cli.set_up_jax(about["x64"], about.get("device"))
    module, config = cli.program_of(cli.module_named(about["module"]), old.config)
    twin = path.parent / f"{path.name[:93]}.repeat"
    kept = ("experiment", "module", "source", "description", "preset", "device", "seed", "command")
    facts: dict[str, Any] = {key: about.get(key) for key in kept}
    with (
        contextlib.closing(Journal(path / "run.sqlite", readonly=True)) as journal,
        open_run(twin, config, **facts) as run,
    ):
        run.journal.set(division=journal.get("division", {}))  # lanes of other pieces may differ in their last bits
    cli.execute(module, config, twin, facts, quiet=False)
    for line in differences(about, provenance()):
        print(f"platform: {line}")
    lines = record_differences(old, load(twin))
    print("\n".join(lines))
    return 0 if all(line.endswith("the same bits") for line in lines) else 5
