"""Where the readings of a watched loop go: a durable run directory with its report page, or a tracker."""

from __future__ import annotations

import atexit
import contextlib
import sys
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dynamics.record import Record
from dynamics.runs.durable.errors import BadInput
from dynamics.runs.durable.files import json_text, plain
from dynamics.runs.durable.journal import root
from dynamics.runs.durable.load import load
from dynamics.runs.durable.run import Run, open_directory
from dynamics.runs.figures import curves, drawn
from dynamics.runs.report.run_page import report_page
from dynamics.runs.trackers import MAKERS, Tracker, log_record, made

COMMIT_SECONDS = 2.0


class Folder:
    """A durable run of what a watch reads: a call for each observable, committed every few seconds."""

    def __init__(self, path: Path, settings: Mapping[str, Any], say: Callable[[str], None]) -> None:
        self._stack = contextlib.ExitStack()
        about = {"experiment": "observe.watch", "command": sys.argv}
        self._run: Run = self._stack.enter_context(open_directory(path, plain(settings), None, about, {}))
        self._say, self._last = say, time.perf_counter()
        self._fresh: dict[str, list[tuple[int, Mapping[str, np.ndarray]]]] = {}
        self._chain: dict[str, tuple[int, str]] = {}
        atexit.register(self._at_exit)

    def keep(self, name: str, step: int, readings: Mapping[str, np.ndarray]) -> None:
        """Takes one reading of the observable whose first reading is called ``name``.

        Raises:
            BadInput: for a step that the folder has already.
        """
        if name not in self._chain:
            self._chain[name] = self._taken_up(name, step)
            self._run.journal.set(status="running")
        self._fresh.setdefault(name, []).append((step, readings))
        if time.perf_counter() - self._last > COMMIT_SECONDS:
            self.commit()

    def _taken_up(self, name: str, step: int) -> tuple[int, str]:
        """The number of chunks that a call holds, and the last one's link."""
        journal = self._run.journal
        header = journal.header(name)
        chunks = [] if header is None else journal.chunks(name)[0]
        if header is None:
            self._run.begin(name, {"dt": 1.0})
        elif chunks and chunks[-1].step >= step:
            atexit.unregister(self._at_exit)
            self._stack.close()  # what it holds stays as it is
            raise BadInput(
                f"to: got {str(self._run.path)!r}, which holds {name} up to step {chunks[-1].step}, at step {step}; "
                f"allowed: a later step, or another folder, such as {str(free(self._run.path))!r}"
            )
        else:
            journal.truncate(name, len(chunks))
        return len(chunks), chunks[-1].link if chunks else root(name, {"dt": 1.0})

    def commit(self) -> None:
        """All readings since the last commit, in one transaction."""
        with self._run.journal.transaction():
            for name, held in self._fresh.items():
                rows = {"step": np.array([step for step, _ in held], np.int32)}
                rows |= {key: np.stack([readings[key] for _, readings in held]) for key in held[0][1]}
                number, link = self._chain[name]
                link = self._run.commit(name, number, held[-1][0], False, "", rows, link)
                self._chain[name] = number + 1, link
        self._fresh, self._last = {}, time.perf_counter()

    def close(self, status: str, costs: Mapping[str, Any], share: float) -> None:
        """Commits, draws the figure and writes the report."""
        atexit.unregister(self._at_exit)
        with self._stack:
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

    def _at_exit(self) -> None:
        self.close("interrupted" if hasattr(sys, "last_value") else "finished", {}, float("nan"))


class ToTracker:
    """A tracker as the place where readings go; one that fails is dropped, aloud."""

    def __init__(self, tracker: Tracker, say: Callable[[str], None]) -> None:
        self._tracker: Tracker | None = tracker
        self._say = say
        atexit.register(self._at_exit)

    def keep(self, name: str, step: int, readings: Mapping[str, np.ndarray]) -> None:
        if self._tracker is None:
            return
        try:
            values = {key: np.asarray(value)[None] for key, value in readings.items()}
            log_record(self._tracker, Record(np.array([step]), np.array([step]), values))
        except Exception as error:
            self._tracker = None
            self._say(f"tracker dropped: {type(error).__name__}: {error}")

    def close(self, status: str, costs: Mapping[str, Any], share: float) -> None:
        atexit.unregister(self._at_exit)
        if self._tracker is not None:
            self._tracker.close()

    def _at_exit(self) -> None:
        self.close("finished", {}, float("nan"))


def sinks(to: Any, settings: Mapping[str, Any], say: Callable[[str], None]) -> list[Any]:
    """What ``observe.watch(to=)`` names; of several processes only the first one writes.

    Raises:
        BadInput: for what names no place; the errors of ``open_run``.
        ImportError: for a tracker whose package is missing.
    """
    if isinstance(to, list):
        return [sink for one in to for sink in sinks(one, settings, say)]
    if jax.process_index():
        return []
    if isinstance(to, Tracker):
        return [ToTracker(to, say)]
    if isinstance(to, str) and to in MAKERS:
        folder = Path("runs") / "watch" / datetime.now().strftime("%Y-%m-%d-%H.%M.%S") / to
        say(f"{to} files go to {folder}")
        return [ToTracker(made(to, folder, settings), say)]
    if not isinstance(to, (str, Path)) or not str(to).strip():
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
