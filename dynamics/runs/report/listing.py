"""Folders of runs: what is there, and what of it may go. Reads SQLite alone; loads no JAX."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from dynamics.runs.durable.errors import BadInput, Unusable, understood
from dynamics.runs.durable.files import files_within
from dynamics.runs.durable.journal import Journal
from dynamics.runs.durable.lock import in_use
from dynamics.runs.printable import printable
from dynamics.runs.report.claim_words import counted

MARKS = ("run.sqlite", "grid.json", "lock")
"""One of them is in every folder of a run, also of one that a kill left before its first entry."""


class Row(NamedTuple):
    """One run in a list; ``verdict`` is how many claims hold of how many apply ("" before there are any)."""

    experiment: str
    name: str
    status: str
    verdict: str
    changed: float
    path: Path


def run_folders(root: Path) -> Iterator[Path]:
    """Every run ``root/<experiment>/<name>`` or ``root/<name>`` (or ``root`` itself); no link is followed.

    Raises:
        BadInput: where ``root`` is no folder, or none that can be read.
    """
    if os.path.lexists(root / "run.sqlite"):
        yield root
        return
    try:
        experiments = sorted(entry.path for entry in os.scandir(root) if entry.is_dir(follow_symlinks=False))
    except (OSError, ValueError) as error:
        raise BadInput(f"root: got {str(root)!r}; allowed: an existing folder of runs") from error
    for experiment in experiments:
        if os.path.lexists(os.path.join(experiment, "run.sqlite")):
            yield Path(experiment)
            continue
        with contextlib.suppress(OSError):
            for entry in sorted(os.scandir(experiment), key=lambda entry: entry.name):
                marked = any(os.path.lexists(os.path.join(entry.path, name)) for name in MARKS)
                if entry.is_dir(follow_symlinks=False) and marked:
                    yield Path(entry.path)


def listed(root: Path) -> Iterator[Row]:
    """One row a run; one that cannot be read is listed as damaged, or as of 0.1, and stops nothing.

    Cost: one SQLite query a run, about 0.3 ms.
    """
    for path in run_folders(root):
        file = path / "run.sqlite"
        status, verdict = ("of 0.1", "a sweep") if (path / "grid.json").is_file() else ("not begun", "")
        if os.path.lexists(file):
            status, verdict = _glance(path)
        changed = (file if os.path.lexists(file) else path).lstat().st_mtime
        yield Row(path.parent.name, path.name, status, verdict, changed, path)


def _glance(path: Path) -> tuple[str, str]:
    """Status and verdict by the shortest way; the full checks are ``load``'s."""
    try:
        with understood(path), contextlib.closing(Journal(path / "run.sqlite", readonly=True)) as journal:
            status, claims = journal.get("status", "running"), journal.get("claims", [])
    except Unusable:
        return "damaged", ""
    if status in ("running", "interrupted"):
        status = "running" if in_use(path) else "interrupted"
    count = counted(claims)
    short = f", {count['unreached']} not reached" if count["unreached"] else ""
    return status, f"{count['holds']}/{sum(count.values()) - count['none']} hold{short}" if claims else ""


def print_list(root: Path) -> int:
    """Prints the runs under ``root``; the command ``list``."""
    rows = list(listed(root))
    names = [printable(f"{row.experiment}/{row.name}") for row in rows]
    width = max(map(len, names), default=0)
    for row, name in zip(rows, names):
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(row.changed))
        print(f"{name:<{width}}  {row.status:<11}  {row.verdict:<26}  {when}")
    print(f"{len(rows)} runs")
    return 0


def tidy(root: Path, *, delete: bool) -> int:
    """Frees what finished runs no longer need (all checkpoints) and half-written files; the command ``gc``.

    A run in use, by itself or by workers, is left alone; no link is followed. A finished run keeps journal, claims and
    figures; it can no longer be forked, and a damaged figure then means running it again.
    """
    freed = 0
    for file in _doomed(root):
        try:
            size = file.lstat().st_size
            if delete:
                file.unlink()
            freed += size
        except OSError as error:
            print(f"{printable(file)}: cannot be deleted: {error.strerror}", file=sys.stderr)
    print(f"{freed / 1e6:.1f} MB {'freed' if delete else 'could be freed; run again with --delete'}")
    return 0


def _doomed(root: Path) -> Iterator[Path]:
    """The files that may go."""
    for path in run_folders(root):
        if in_use(path):
            continue
        over = not os.path.lexists(path / "run.sqlite") or _glance(path)[0] in ("finished", "diverged")
        for file in files_within(path):
            is_state = file.suffix == ".ckpt" and file.parent.name == "checkpoints"
            if half_written(file) or (over and (is_state or file.name == "run.sqlite.damaged")):
                yield file
    for folder in (root, *(place for place in root.iterdir() if place.is_dir() and not place.is_symlink())):
        with contextlib.suppress(OSError):
            yield from (file for file in folder.iterdir() if half_written(file) and not file.is_dir())


def half_written(file: Path) -> bool:
    """Whether it is a ``.NAME.PID.part`` whose writer is gone."""
    if not (file.name.startswith(".") and file.suffix == ".part"):
        return False
    pid = file.name.split(".")[-2]
    return not (pid.isdecimal() and len(pid) < 10 and os.path.exists(f"/proc/{pid}"))
