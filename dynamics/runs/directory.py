"""A run directory opened for writing: locked, checked against its settings, resumable, with a durable ``simulate``."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial, update_wrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynamics.runs.errors import BadInput, Unusable
from dynamics.runs.files import digest, json_text, pack, plain, require_no_grid, write_bytes
from dynamics.runs.journal import CHAINED, FORMAT, Journal, root
from dynamics.runs.lock import Lock
from dynamics.runs.pacing import Budget
from dynamics.runs.provenance import differences, now, provenance
from dynamics.runs.salvage import open_journal
from dynamics.runs.signals import on_stop
from dynamics.runs.trackers import log_record

if TYPE_CHECKING:
    from dynamics.types import Record

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def checked_name(name: str) -> str:
    """``name`` if it may name a run directory.

    Raises:
        BadInput: unless it matches ``[A-Za-z0-9][A-Za-z0-9._-]{0,99}``.
    """
    if not NAME.fullmatch(name):
        raise BadInput(
            f"name: got {name!r}; allowed: 1 to 100 letters, digits, '.', '_' or '-', a letter or digit first"
        )
    return name


def default_name(config: Any, x64: bool) -> str:
    """A short hash of the settings, so that the same command finds the same run again."""
    return digest(json.dumps([plain(config), x64], sort_keys=True).encode())[:10]


class Run:
    """An open run directory; made by ``open_run``.

    Attributes:
        path: the directory.
        journal: its journal.
        stopping: True once a signal has asked for an end.
        inherited: labels of calls copied by a fork and not yet taken up.
        source: the directory of the run that it was forked from, or None.
        workers: processes that shall share its studies, this one among them.
        platform_changed: whether jax, devices or machine differ from those that began it.
        budget: what its commits may cost.
    """

    def __init__(
        self, path: Path, journal: Journal, *, quiet: bool, tracker: Any, source: Path | None = None, workers: int = 1
    ) -> None:
        self.path, self.journal, self.quiet, self.tracker = path, journal, quiet, tracker
        self.source, self.workers = source, workers
        self.checkpoints = path / "checkpoints"
        self.stopping = False
        self.platform_changed = False
        self.budget = Budget(time.perf_counter())
        self.inherited: set[str] = set(journal.get("inherited", []))
        self._labels: set[str] = set()

    @property
    def simulate(self):
        """``evolve.simulate``, durable: give it to an experiment's ``run``."""
        from dynamics.evolve import simulate
        from dynamics.runs.driver import durable_simulate

        return update_wrapper(partial(durable_simulate, self), simulate)

    @property
    def study(self):
        """``evolve.study``, durable: give it to an experiment's ``run``."""
        from dynamics.evolve import study
        from dynamics.runs.study import durable_study

        return update_wrapper(partial(durable_study, self), study)

    @property
    def finished(self) -> bool:
        return self.journal.get("status") in ("finished", "diverged")

    def enter(self, label: str | None) -> str:
        """A label for the next call.

        Raises:
            ValueError: when it was used before in this run.
            Unusable: in a run of format 2, whose calls were others.
        """
        held = self.journal.get("schema", FORMAT)
        if CHAINED <= held < FORMAT:
            raise Unusable(
                f"{self.path}: has format {held}, of dynamics 0.1, which this version reads and does not continue; "
                "use another --name, or --fork NEW to continue from what is there"
            )
        label = f"call-{len(self._labels)}" if label is None else str(label)
        if label in self._labels:
            raise ValueError(f"label: got {label!r} a second time; allowed: a distinct label for each call of simulate")
        self._labels.add(label)
        return label

    def division(self, label: str) -> dict[str, Any] | None:
        """How a study was cut when it began; None for a new one."""
        return self.journal.get("division", {}).get(label)

    def divide(self, label: str, cut: dict[str, Any]) -> dict[str, Any]:
        """Notes how a study is cut."""
        self.journal.set(division={**self.journal.get("division", {}), label: cut})
        return cut

    def single(self, label: str, compute: Callable[[], Record]) -> Record:
        """A study that is one piece."""
        return compute()

    def stored(self, label: str, header: dict[str, Any]) -> Record | None:
        """The record of a study whose pieces are all there.

        Raises:
            Unusable: when the study was another one.
        """
        from dynamics.runs.load import record_of
        from dynamics.runs.resume import require_same_call

        held = self.journal.header(label)
        if held is not None and held != header and label not in self.inherited:
            require_same_call(self, label, held, header)
        chunks, broken = self.journal.chunks(label) if held == header else ([], 0)
        return record_of(header, chunks) if chunks and not broken else None

    def store(self, label: str, header: dict[str, Any], record: Record) -> None:
        """Enters the whole record of a study in one transaction."""
        from dynamics.runs.load import rows_of

        last = int(record.step[-1]) if len(record.step) else 0
        with self.journal.transaction():
            self.journal.begin(label, header)
            self.journal.commit(label, 0, last, True, "", pack(rows_of(record)), root(label, header))
            self.disinherit(label)

    def warn(self, text: str) -> None:
        """Says something on stderr and in the journal."""
        print(f"warning: {text}", file=sys.stderr)
        self.journal.event(now(), "warning", text)

    def disinherit(self, label: str) -> None:
        """Notes that a fork has taken up a call."""
        self.inherited.discard(label)
        self.journal.set(inherited=sorted(self.inherited))

    def track(self, label: str, record: Record) -> None:
        """Sends what was just read to the tracker."""
        if self.tracker is not None:
            log_record(self.tracker, record, label)

    def diverged(self, label: str, found: dict[str, Any]) -> None:
        held = self.journal.get("diverged", {})
        if found and held.get(label) != found:
            self.journal.set(diverged={**held, label: found})

    @contextlib.contextmanager
    def progress(self, label: str, steps: int, done: int):
        """A progress bar on stderr; silent when quiet."""
        from tqdm.auto import tqdm

        interval = 0.2 if sys.stderr.isatty() else 10.0
        with tqdm(total=steps, initial=done, desc=label, unit="step", disable=self.quiet, mininterval=interval) as bar:
            yield bar

    def write(self, name: str, text: str | bytes) -> Path:
        """Writes an artefact and notes its digest in the journal."""
        data = text if isinstance(text, bytes) else text.encode()
        try:
            write_bytes(self.path / name, data)
        except OSError as error:
            raise Unusable(f"{self.path / name}: cannot be written: {error.strerror}") from error
        self.note(name)
        return self.path / name

    def note(self, name: str) -> None:
        """Notes the digest of a file that was just written."""
        held = self.journal.get("files", {})
        self.journal.set(files={**held, name: digest((self.path / name).read_bytes())})


class Follower(Run):
    """A run as the processes see it that do not write: its entries in memory, and nothing on the disk."""

    def __init__(self, path: Path, entries: dict[str, Any]) -> None:
        journal = Journal(Path(":memory:"))
        journal.set(**entries)
        super().__init__(path, journal, quiet=True, tracker=None)

    def warn(self, text: str) -> None:
        pass

    def write(self, name: str, text: str | bytes) -> Path:
        return self.path / name

    def note(self, name: str) -> None:
        pass


@contextlib.contextmanager
def open_run(
    path: str | Path,
    config: Any,
    *,
    quiet: bool = True,
    fork_of: str | Path | None = None,
    tracker: Any = None,
    workers: int = 1,
    **about: Any,
) -> Iterator[Run]:
    """Opens or makes a run directory, for one program at a time.

    Under ``jax.distributed`` every process calls it; the first one reads and writes (no other needs the folder), all of
    them compute, and a refusal or a signal to one ends all.

    Args:
        path: the directory, usually ``runs/<experiment>/<name>``.
        config: the run's settings (a dataclass or mapping); must be the ones it was begun with.
        quiet: no progress bars.
        fork_of: the directory of a run whose state this new one continues.
        tracker: a ``runs.trackers.Tracker`` that gets the readings too, as ``log_record`` sends them.
        workers: processes that shall share its studies: each is cut into so many pieces at least.
        about: further entries of ``provenance.json`` (``command``, ``preset``, ``experiment``).

    Raises:
        Unusable: when the directory is in use, damaged, cannot be written, or was made with other settings.

    Example:
        >>> import tempfile, jax, jax.numpy as jnp
        >>> from dynamics.evolve import ode
        >>> from dynamics.runs import load, open_run
        >>> decay, read = ode(lambda x, rate: -rate * x, 0.1), lambda x, rate: {"x": x}
        >>> where = tempfile.mkdtemp() + "/decay/first"
        >>> with open_run(where, {"rate": 1.0}) as run:
        ...     end, record = run.simulate(decay, jnp.array(1.0), jnp.array(1.0), train=read, steps=10)
        >>> load(where).records["call-0"].values["x"].shape
        (2,)
    """
    from dynamics.runs import hosts

    path = Path(path)
    hosts.same(f"{path}: settings", json_text(config))
    with contextlib.ExitStack() as stack:
        opened: list[Run] = []

        def act() -> dict[str, Any]:
            opened.append(stack.enter_context(_opened(path, config, quiet, fork_of, tracker, workers, about)))
            return opened[0].journal.entries()

        entries = hosts.together(act)
        run = opened[0] if opened else Follower(path, entries)
        with on_stop(_asker(run)):
            yield run


@contextlib.contextmanager
def _opened(
    path: Path, config: Any, quiet: bool, fork_of: str | Path | None, tracker: Any, workers: int, about: dict[str, Any]
) -> Iterator[Run]:
    """The directory locked, its journal open and its settings checked."""
    if fork_of is not None and not (Path(fork_of) / "run.sqlite").is_file():
        raise BadInput(f"fork: got {str(fork_of)!r}; allowed: a run that exists (there is no run.sqlite)")
    require_no_grid(path)
    lock = journal = None
    try:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Unusable(f"{path}: cannot be made: {error.strerror}") from error
        lock = Lock(path / "lock")
        file = path / "run.sqlite"
        forked = fork_of is not None and not file.exists()
        if fork_of is not None and forked:
            _copy_state(Path(fork_of), path)
        elif (path / "config.json").exists() and not (file.exists() and file.stat().st_size):
            print(f"warning: {path} has no run.sqlite; starting again from step 0", file=sys.stderr)
        journal, mended = open_journal(file)
        journal.require_format()
        if fork_of is not None and forked:
            journal.set(config=None, inherited=journal.labels(), forked=str(Path(fork_of).resolve()))
        source = journal.get("forked")
        source = None if source is None else Path(source)
        run = Run(path, journal, quiet=quiet, tracker=tracker, source=source, workers=workers)
        for text in mended:
            run.warn(text)
        _settle(run, config, about)
        yield run
    finally:
        if journal is not None:
            journal.close()
        if lock is not None:
            lock.close()


def _settle(run: Run, config: Any, about: dict[str, Any]) -> None:
    """Checks settings, precision and platform against the stored ones, and writes what is new."""
    made = provenance(about.pop("command", None), **about)
    mine, stored = plain(config), run.journal.get("config")
    if stored is None:
        run.journal.set(config=mine, provenance=made, status="running", diverged={}, schema=FORMAT)
        run.write("config.json", json_text(mine))
        run.write("provenance.json", json_text({**made, "status": "running"}))
        return
    before = run.journal.get("provenance")
    if before["x64"] != made["x64"]:
        raise Unusable(f"{run.path}: begun with x64={before['x64']}, now x64={made['x64']}; use the same precision")
    if mine != stored:
        raise Unusable(
            f"{run.path}: other settings: {config_difference(stored, mine)}; use the same, or --fork NEW to continue"
        )
    for name, held in (("config.json", stored), ("provenance.json", None)):
        damaged = run.journal.get("files", {}).get(name) != _digest_of(run.path / name)
        if damaged:
            run.warn(f"{run.path / name} was missing, damaged or edited; written again from the journal")
            run.write(name, json_text(held if held is not None else {**before, "status": run.journal.get("status")}))
    changed = differences(before, made)
    if changed:
        run.platform_changed = True
        run.warn(f"{run.path}: {'; '.join(changed)}: the bits may differ from an uninterrupted run")
        run.journal.event(now(), "provenance", json.dumps(made))


def config_difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """``"field: old -> new"`` for every field that differs."""
    names = [*before, *(name for name in after if name not in before)]
    changed = [name for name in names if before.get(name) != after.get(name)]
    return ", ".join(f"{name}: {before.get(name)!r} -> {after.get(name)!r}" for name in changed)


def _copy_state(source: Path, path: Path) -> None:
    """Copies journal and checkpoints of ``source``, which stays untouched."""
    try:
        if (source / "checkpoints").is_dir():
            shutil.copytree(source / "checkpoints", path / "checkpoints", dirs_exist_ok=True)
        held = Journal(source / "run.sqlite", readonly=True)
        try:
            import sqlite3

            with contextlib.closing(sqlite3.connect(path / "run.sqlite.part")) as copy:
                held.db.backup(copy)
        finally:
            held.close()
        os.replace(path / "run.sqlite.part", path / "run.sqlite")
    except OSError as error:
        raise Unusable(f"{path}: cannot be written: {error.strerror}") from error


def _digest_of(path: Path) -> str | None:
    try:
        return digest(path.read_bytes())
    except OSError:
        return None


def _asker(run: Run):
    """SIGTERM and Ctrl-C ask the run to stop at its next commit; a second Ctrl-C stops at once."""

    def ask(number, frame):
        if run.stopping and number == signal.SIGINT:
            raise KeyboardInterrupt
        run.stopping = True

    return ask
