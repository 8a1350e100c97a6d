"""Where the readings of a watched loop go: a durable run directory with its report page, or a tracker."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dynamics.record import Record
from dynamics.runs.durable.errors import BadInput, InUse
from dynamics.runs.durable.files import json_text, plain
from dynamics.runs.durable.journal import root
from dynamics.runs.durable.load import load
from dynamics.runs.durable.run import Run, open_directory
from dynamics.runs.figures import curves, drawn
from dynamics.runs.report.listing import MARKS
from dynamics.runs.report.run_page import report_page
from dynamics.runs.trackers import MAKERS, Tracker, log_record
from dynamics.runs.trackers import made as tracker_made


class Sink:
    """A place where readings go, until it is closed or the process ends; a process forked off it writes nothing."""

    def __init__(self) -> None:
        self._owner, self._open = os.getpid(), True
        atexit.register(self._at_exit)

    @property
    def writes(self) -> bool:
        return self._open and os.getpid() == self._owner

    def close(self, status: str, costs: Mapping[str, Any], share: float) -> None:
        """Writes out what is left."""
        if self.writes:
            try:
                self._finish(status, costs, share)
            finally:
                self.drop()

    def drop(self) -> None:
        """Lets go of the place, which stays as it is."""
        atexit.unregister(self._at_exit)
        self._open = False

    def keep(self, name: str, step: int, readings: Mapping[str, np.ndarray]) -> None:
        """Takes one reading of the observable whose first reading is called ``name``."""
        raise NotImplementedError

    def _finish(self, status: str, costs: Mapping[str, Any], share: float) -> None:
        raise NotImplementedError

    def _at_exit(self) -> None:
        self.close("interrupted" if hasattr(sys, "last_value") else "finished", {}, float("nan"))


class Folder(Sink):
    """A durable run of what a watch reads: a call for each observable, committed every few seconds."""

    def __init__(self, path: Path, settings: Mapping[str, Any], say: Callable[[str], None]) -> None:
        _check_own(path)
        self._stack = contextlib.ExitStack()
        about = {"experiment": "observe.watch", "command": ["python", *sys.argv]}
        try:
            self._run: Run = self._stack.enter_context(open_directory(path, plain(settings), None, about, {}))
        except InUse as error:
            if f"PID {os.getpid()} " not in str(error):
                raise
            raise BadInput(
                f"to: got {str(path)!r}, which another watch of this process writes to; allowed: after its close()"
            ) from error
        self._say = say
        self._fresh: dict[str, list[tuple[int, Mapping[str, np.ndarray]]]] = {}
        self._chain: dict[str, tuple[int, str]] = {}
        super().__init__()

    def keep(self, name: str, step: int, readings: Mapping[str, np.ndarray]) -> None:
        """Takes one reading of the observable whose first reading is called ``name``.

        Raises:
            BadInput: for a step that the folder has already.
        """
        if not self.writes:
            return
        if name not in self._chain:
            self._chain[name] = self._taken_up(name, step)
            self._run.journal.set(status="running")
        self._fresh.setdefault(name, []).append((step, readings))
        if self._run.budget.due(time.perf_counter()):
            self.commit()

    def _taken_up(self, name: str, step: int) -> tuple[int, str]:
        """The number of chunks that a call holds, and the last one's link."""
        journal = self._run.journal
        header = journal.header(name)
        chunks = [] if header is None else journal.chunks(name)[0]
        if header is None:
            self._run.begin(name, {"dt": 1.0})
        elif chunks and chunks[-1].step >= step:
            self.drop()
            raise BadInput(
                f"to: got {str(self._run.path)!r}, which holds {name} up to step {chunks[-1].step}, at step {step}; "
                f"allowed: a later step, or another folder, such as {str(free(self._run.path))!r}"
            )
        else:
            journal.truncate(name, len(chunks))
        return len(chunks), chunks[-1].link if chunks else root(name, {"dt": 1.0})

    def commit(self) -> None:
        """All readings since the last commit, in one transaction."""
        began = time.perf_counter()
        with self._run.journal.transaction():
            for name, held in self._fresh.items():
                rows = {"step": np.array([step for step, _ in held], np.int32)}
                rows |= {key: np.stack([readings[key] for _, readings in held]) for key in held[0][1]}
                number, link = self._chain[name]
                link = self._run.commit(name, number, held[-1][0], False, "", rows, link)
                self._chain[name] = number + 1, link
        self._fresh = {}
        self._run.budget.committed(began, time.perf_counter())

    def drop(self) -> None:
        super().drop()
        self._stack.close()

    def _finish(self, status: str, costs: Mapping[str, Any], share: float) -> None:
        """Commits, draws the figure and writes the report."""
        self.commit()
        run = self._run
        records = {label: record for label, record in load(run.path).records.items() if len(record.step)}
        for name, data in drawn(curves({"": records})).items() if records else ():
            run.write(name, data)
        facts = {"status": status, "watch": {"share": share, "costs": costs}}
        run.write("provenance.json", json_text({**run.journal.get("provenance"), **facts}))
        run.write("report.html", report_page(run.path))
        run.journal.set(status=status)
        self._say(f"{run.path / 'report.html'}")


class ToTracker(Sink):
    """A tracker as the place where readings go; one that fails is dropped, aloud."""

    def __init__(self, tracker: Tracker, say: Callable[[str], None]) -> None:
        self._tracker, self._say = tracker, say
        super().__init__()

    def keep(self, name: str, step: int, readings: Mapping[str, np.ndarray]) -> None:
        values = {key: np.asarray(value)[None] for key, value in readings.items()}
        self._try(log_record, self._tracker, Record(np.array([step]), np.array([step]), values))

    def _finish(self, status: str, costs: Mapping[str, Any], share: float) -> None:
        self._try(self._tracker.close)

    def _try(self, act: Callable[..., None], *args: Any) -> None:
        try:
            if self.writes:
                act(*args)
        except Exception as error:
            self.drop()
            self._say(f"tracker dropped: {type(error).__name__}: {error}")


def _check_own(path: Path) -> None:
    """Raises BadInput for a folder in which other files lie, which a run would overwrite, or hide from ``list``."""
    with contextlib.suppress(OSError):
        held = sorted(name for name in os.listdir(path) if not name.startswith("."))
        if held and not set(held) & set(MARKS):
            raise BadInput(
                f"to: got {str(path)!r}, a folder with {held[0]!r} in it; allowed: a new or an empty folder, such as "
                f"{str(path / 'watch')!r}, or one that a watch has made"
            )


def sinks(to: Any, settings: Mapping[str, Any], say: Callable[[str], None]) -> list[Sink]:
    """What ``observe.watch(to=)`` names; of several processes only the first one writes.

    Raises:
        BadInput: for what names no place; the errors of ``open_run``.
        ImportError: for a tracker whose package is missing.
    """
    if isinstance(to, list):
        made: list[Sink] = []
        try:
            for one in to:
                made += sinks(one, settings, say)
        except BaseException:
            for sink in made:
                sink.drop()
            raise
        return made
    if jax.process_index():
        return []
    if isinstance(to, Tracker):
        return [ToTracker(to, say)]
    if isinstance(to, str) and to in MAKERS:
        folder = Path("runs") / "watch" / datetime.now().strftime("%Y-%m-%d-%H.%M.%S") / to
        say(f"{to} files go to {folder}")
        return [ToTracker(tracker_made(to, folder, settings), say)]
    if not isinstance(to, (str, Path)) or not str(to).strip() or "\0" in str(to):
        raise BadInput(
            f"to: got {to!r}; allowed: a folder, {', '.join(map(repr, MAKERS))}, a Tracker, or a list of these"
        )
    return [Folder(Path(to), settings, say)]


def free(path: Path) -> Path:
    """The first of ``path-2``, ``path-3``, ... that does not exist."""
    number = 2
    while path.with_name(f"{path.name}-{number}").exists():
        number += 1
    return path.with_name(f"{path.name}-{number}")
