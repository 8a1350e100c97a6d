"""A run directory open for writing, as the driver, the study and the experiment see it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from dynamics.record import Record
from dynamics.runs.durable.bar import step_bar
from dynamics.runs.durable.errors import Unusable
from dynamics.runs.durable.files import digest, pack, write_bytes
from dynamics.runs.durable.journal import CHAINED, FORMAT, Journal, root
from dynamics.runs.durable.load import record_of, rows_of
from dynamics.runs.durable.pacing import Budget
from dynamics.runs.durable.provenance import now
from dynamics.runs.durable.readings import cells_of, readings_of
from dynamics.runs.trackers import log_record

WORDS = {
    "axes": "axis or value on one", "cells": "number of lanes", "pieces": "number of pieces", "dt": "time step",
    "inputs": "start, key or data", "steps": "number of steps", "record_at": "recorded steps",
    "whole": "constant, start or stop", "step": "update step", "readout": "readout",
}  # fmt: skip


class Directory:
    """An open run directory.

    Attributes:
        path: the directory.
        journal: its journal.
        stopping: True once a signal has asked for an end.
        inherited: labels of calls copied by a fork and not yet taken up.
        source: the directory of the run that it was forked from, or None.
        workers: processes that shall share its studies, this one among them.
        changed: whether anything of its provenance that bears on numbers differs from when it was begun.
        platform_changed: whether jax, devices or machine do.
        code: the digest of the source of its experiment.
        code_changed: whether that is another one than when it was begun.
        budget: what its commits may cost.
        tracker: a ``trackers.Tracker`` that gets the readings too; None once it has failed.
        is_part: whether it is a part of another run, whose journal says its readings to others.
    """

    def __init__(
        self, path: Path, journal: Journal, *, quiet: bool = True, tracker: Any = None, source: Path | None = None,
        workers: int = 1, is_part: bool = False,
    ) -> None:  # fmt: skip
        self.path, self.journal, self.quiet, self.tracker = path, journal, quiet, tracker
        self.source, self.workers, self.is_part = source, workers, is_part
        self.checkpoints = path / "checkpoints"
        self.stopping = self.changed = self.platform_changed = self.code_changed = False
        self.budget = Budget(time.perf_counter())
        self._opened, self._before = time.perf_counter(), journal.get("seconds", 0.0)
        self.code: str | None = None
        self.inherited: set[str] = set(journal.get("inherited", []))
        self._labels: set[str] = set()

    @property
    def seconds(self) -> float:
        """Seconds that it took so far, in all processes up to their last commit and in this one up to now."""
        return self._before + time.perf_counter() - self._opened

    @property
    def finished(self) -> bool:
        return self.journal.get("status") in ("finished", "diverged")

    def part(self, folder: Path, settings: Any, **about: Any) -> AbstractContextManager[Directory]:
        """A part of this run, open in a directory of its own; see ``run.open_run``."""
        raise NotImplementedError

    def enter(self, label: str | None) -> str:
        """A label for the next call.

        Raises:
            ValueError: when it was used before in this run.
            Unusable: in a run of an earlier format, whose calls were others.
        """
        held = self.journal.get("schema", FORMAT)
        if CHAINED <= held < FORMAT:
            raise Unusable(
                f"{self.path}: has format {held}, of an earlier version, which this one reads and does not continue; "
                "use another --name, or --fork NEW to continue from what is there"
            )
        label = f"call-{len(self._labels)}" if label is None else str(label)
        if label in self._labels:
            raise ValueError(f"label: got {label!r} a second time; allowed: a distinct label for each call of simulate")
        self._labels.add(label)
        return label

    def agrees(self, label: str, stored: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
        """Whether a stored call is the one that is asked for now; of a fork's inherited call, that it is not.

        After a change of jax or machine, other bits at the start or another trace only warn.

        Raises:
            Unusable: when it was begun otherwise; names what differs.
        """
        changed = differing(stored, asked)
        if not changed:
            return True
        if label in self.inherited:
            return False
        soft = {"inputs", "whole", "step", "readout"}
        if soft.issuperset(changed) and self.platform_changed and not self.code_changed:
            self.warn(f"{label!r}: the start or the trace differs after the change of jax or machine; continuing")
            return True
        what = " and another ".join(WORDS.get(name, name) for name in changed)
        raise Unusable(
            f"{self.path}: {label!r} was begun with another {what} "
            "(code or data changed since); use another --name, or --fork NEW to continue from what is there"
        )

    def division(self, label: str) -> dict[str, Any] | None:
        """How a study was cut when it began; None for a new one."""
        return self.journal.get("division", {}).get(label)

    def divide(self, label: str, cut: dict[str, Any]) -> dict[str, Any]:
        """Notes how a study is cut."""
        self.journal.set(division={**self.journal.get("division", {}), label: cut})
        return cut

    def single(self, label: str) -> Record | None:
        """The record of a study that is one piece, where another process computes it."""
        return None

    def stored(self, label: str, header: dict[str, Any]) -> Record | None:
        """The record of a study in pieces, where all are there.

        Raises:
            Unusable: when the study was another one, or another program began its pieces.
        """
        held, cut = self.journal.header(label), self.division(label) or {}
        begun = {"program": cut["program"]} if "program" in cut else {}
        if not self.agrees(label, begun, {"program": header["program"]} if begun else {}) or not begun:
            self.divide(label, {**cut, "program": header["program"]})
        if held is None or not self.agrees(label, held, header):
            return None
        chunks, broken = self.journal.chunks(label)
        return record_of(held, chunks) if chunks and not broken else None

    def store(self, label: str, header: dict[str, Any], record: Record) -> None:
        """Enters the whole record of a study in one transaction."""
        last = int(record.step[-1]) if len(record.step) else 0
        with self.journal.transaction():
            self.begin(label, header)
            self.commit(label, 0, last, True, "", rows_of(record), root(label, header))
            self.disinherit(label)

    def begin(self, label: str, header: dict[str, Any]) -> None:
        """Enters a call."""
        self.journal.begin(label, header, () if self.is_part else cells_of(label, header))

    def commit(
        self, label: str, number: int, step: int, last: bool, state: str, rows: Mapping[str, Any], before: str
    ) -> str:
        """Commits a chunk of rows ``{"step": [n], reading: [n, ...]}``; see ``Journal.commit``."""
        header = {} if self.is_part else self.journal.header(label) or {}
        told = () if self.is_part else readings_of(label, header, {k: np.asarray(v) for k, v in rows.items()})
        with self.journal.transaction():
            self.journal.set(seconds=self.seconds)
            return self.journal.commit(label, number, step, last, state, pack(rows), before, told)

    def warn(self, text: str) -> None:
        """Says something on stderr and in the journal."""
        print(f"warning: {text}", file=sys.stderr)
        self.journal.event(now(), "warning", text)

    def disinherit(self, label: str) -> None:
        """Notes that a fork has taken up a call."""
        self.inherited.discard(label)
        self.journal.set(inherited=sorted(self.inherited))

    def track(self, label: str, record: Record, cells: list[str] | None = None) -> None:
        """Sends what was just read to the tracker; one that fails is dropped, and the run goes on."""
        if self.tracker is None:
            return
        try:
            log_record(self.tracker, record, label, cells=cells)
        except Exception as error:
            self.tracker = None
            self.warn(f"tracker dropped: {type(error).__name__}: {error}")

    def diverged(self, label: str, found: dict[str, Any]) -> None:
        held = self.journal.get("diverged", {})
        if found and held.get(label) != found:
            self.journal.set(diverged={**held, label: found})

    def progress(self, label: str, steps: int, done: int) -> AbstractContextManager[Callable[[int], None]]:
        """A progress bar on stderr, told of each step reached; silent when quiet."""
        interval = 0.2 if sys.stderr is not None and sys.stderr.isatty() else 10.0
        return step_bar(label, steps, done, disable=self.quiet, mininterval=interval)

    def write(self, name: str, text: str | bytes) -> Path:
        """Writes an artefact and notes its digest in the journal."""
        data = text if isinstance(text, bytes) else text.encode()
        try:
            write_bytes(self.path / name, data)
        except OSError as error:
            raise Unusable(f"{self.path / name}: cannot be written: {error.strerror}") from error
        self.journal.set(files={**self.journal.get("files", {}), name: digest(data)})
        return self.path / name


def differing(stored: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """What two calls were asked differently, by ``WORDS``; of their programs, whether step, readout or the rest."""
    changed = [name for name in {**stored, **asked} if stored.get(name) != asked.get(name) and name != "program"]
    mine, theirs = (held.get("program") or {} for held in (stored, asked))
    parts = [name for name in ("step", "readout", "whole") if mine.get(name) != theirs.get(name)]
    return changed + (parts[:-1] if len(parts) > 1 and parts[-1] == "whole" else parts)
