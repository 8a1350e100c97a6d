"""Workers of a run: any number of processes and hosts take up the parts of its studies over a shared folder.

A worker goes through the run's own program. Where that is a study of several pieces, or a sweep's cells, it computes
those that nobody holds; what cannot be shared it reads from the run's journal, once the run has it. A killed worker's
lock frees itself, so its part is taken up again where it was committed, and none is done twice.
"""

from __future__ import annotations

import contextlib
import functools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from dynamics.evolve import simulate
from dynamics.runs.durable.directory import differing
from dynamics.runs.durable.errors import Damaged, Interrupted, RunError, Unusable, understood
from dynamics.runs.durable.files import own_folder, require_run
from dynamics.runs.durable.journal import Journal
from dynamics.runs.durable.load import record_of
from dynamics.runs.durable.lock import holder
from dynamics.runs.durable.provenance import code_digest
from dynamics.runs.durable.run import Follower
from dynamics.runs.durable.signals import on_stop
from dynamics.runs.report.outcome import call
from dynamics.runs.sweep.cells import program_of
from dynamics.runs.sweep.cluster import submit
from dynamics.runs.sweep.module import module_of, set_up_jax
from dynamics.types import Record

T = TypeVar("T")


class Left(RunError):
    """The run that a worker helps has ended, or is not under way: there is nothing to take up."""

    code = 0


class Helper(Follower):
    """A run as a worker sees it: it reads the run's journal, waits for what the run decides, and writes only parts."""

    def __init__(self, path: Path, entries: dict[str, Any]) -> None:
        super().__init__(path, entries)
        source = entries.get("forked")
        self.source = None if source is None else Path(source)
        self.code = code_digest(entries["provenance"].get("module"))

    @property
    def simulate(self):
        """A single run cannot be shared: every worker computes it for itself."""
        return simulate

    def division(self, label: str) -> dict[str, Any] | None:
        return self._awaited(lambda journal: journal.get("division", {}).get(label))

    def single(self, label: str) -> Record:
        return self._awaited(lambda journal: _finished(journal, label, None))

    def stored(self, label: str, header: dict[str, Any]) -> Record | None:
        with contextlib.closing(Journal(self.path / "run.sqlite", readonly=True)) as journal:
            begun = journal.get("division", {}).get(label, {}).get("program")
            if begun is not None and differing({"program": begun}, {"program": header["program"]}):
                raise Unusable(f"{self.path}: {label!r} is another program here than in the run; allowed: the same")
            return _finished(journal, label, header)

    def store(self, label: str, header: dict[str, Any], record: Record) -> None:
        pass

    def _awaited(self, look: Callable[[Journal], T | None]) -> T:
        """What ``look`` finds in the run's journal, once it is there."""
        while True:
            with (
                contextlib.suppress(Damaged),
                contextlib.closing(Journal(self.path / "run.sqlite", readonly=True)) as held,
            ):
                found = look(held)
                if found is not None:
                    return found
            if self.stopping:
                raise Interrupted("interrupted while waiting for the run; its parts are saved")
            if holder(self.path / "lock") is None:
                raise Left(f"{self.path}: is not under way; start or resume it, and workers beside it")
            time.sleep(0.2)


def _finished(journal: Journal, label: str, header: dict[str, Any] | None) -> Record | None:
    """A study's record where the journal has all of it."""
    held = journal.header(label)
    chunks, broken = ([], 1) if held is None else journal.chunks(label)
    whole = bool(chunks) and chunks[-1].last and not broken and (header is None or not differing(held or {}, header))
    return record_of(held, chunks) if whole and held is not None else None


def work(path: Path, trust: bool = False) -> int:
    """Helps the run at ``path``; any number of processes and hosts may do so on one folder.

    Args:
        path: the run's directory.
        trust: run the code that it names, wherever that lies; see ``module_of``.

    Returns:
        0 when nothing is left to take up.

    Raises:
        Unusable: when the folder holds no run of an experiment.
        Interrupted: after a signal; what was committed is saved.
    """
    path = Path(path)
    with contextlib.closing(Journal(require_run(path), readonly=True)) as journal, understood(path):
        entries = journal.entries()
    if entries.get("status") in ("finished", "diverged"):
        return 0
    module, about = module_of(path, entries.get("provenance", {}), trust)
    set_up_jax(about["x64"], about.get("device"))
    module, config = program_of(module, entries.get("config") or {})
    run = Helper(path, entries)

    def ask(number, frame):
        run.stopping = True

    with on_stop(ask):
        try:
            call(module.run, config, run)
        except Left as error:
            print(error, file=sys.stderr)
    return 0


@contextlib.contextmanager
def helped(path: Path, workers: int, cluster: str | None = None) -> Iterator[None]:
    """Workers at the open run of ``path`` while the block runs.

    Args:
        path: the run's directory.
        workers: processes, this one among them, which end with the block; on a cluster, its jobs.
        cluster: where to submit them (see ``cluster``), or None for this machine.
    """
    if cluster is not None:
        submit(functools.partial(work, path.resolve(), True), own_folder(path / "jobs"), workers, cluster)
    count = workers - 1 if cluster is None else 0
    helpers = [
        subprocess.Popen([sys.executable, "-m", "dynamics.runs", "work", str(path), "--trust"]) for _ in range(count)
    ]
    try:
        yield
    finally:
        for helper in helpers:
            helper.terminate()
        for helper in helpers:
            helper.wait()
