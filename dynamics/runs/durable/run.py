"""Opens a run directory: locked, and held against what it was begun with; durable ``simulate`` and ``study``."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial, update_wrapper
from pathlib import Path
from typing import Any

from dynamics.evolve import simulate, study
from dynamics.extras import MissingExtra
from dynamics.runs.durable import hosts
from dynamics.runs.durable.directory import Directory
from dynamics.runs.durable.driver import durable_simulate
from dynamics.runs.durable.errors import BadInput, Damaged, Unusable
from dynamics.runs.durable.files import digest, json_text, plain, require_run
from dynamics.runs.durable.journal import Journal
from dynamics.runs.durable.lock import Lock
from dynamics.runs.durable.readings import mended_readings
from dynamics.runs.durable.resume import settle
from dynamics.runs.durable.salvage import open_journal
from dynamics.runs.durable.signals import on_stop
from dynamics.runs.durable.study import durable_study

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


class Run(Directory):
    """An open run directory, made by ``open_run``: give its ``study`` or ``simulate`` to an experiment's ``run``."""

    @property
    def simulate(self):
        """``evolve.simulate``, durable."""
        return update_wrapper(partial(durable_simulate, self), simulate)

    @property
    def study(self):
        """``evolve.study``, durable."""
        return update_wrapper(partial(durable_study, self), study)

    def part(self, folder: Path, settings: Any, **about: Any) -> AbstractContextManager[Run]:
        inside = self.path.resolve() / folder.relative_to(self.path)
        if folder.resolve() != inside:
            raise Damaged(f"{folder}: leads out of {self.path} through a link, which is not followed")
        about = {"module": self.journal.get("provenance", {}).get("module"), "code": self.code, **about}
        return open_run(folder, settings, quiet=self.quiet, tracker=self.tracker, is_part=True, **about)


class Follower(Run):
    """A run as the processes see it that do not write: its entries in memory, and nothing on the disk."""

    def __init__(self, path: Path, entries: dict[str, Any]) -> None:
        journal = Journal(Path(":memory:"))
        journal.set(**entries)
        super().__init__(path, journal)

    def warn(self, text: str) -> None:
        pass

    def write(self, name: str, text: str | bytes) -> Path:
        return self.path / name


@contextlib.contextmanager
def open_run(
    path: str | Path,
    config: Any,
    *,
    quiet: bool = True,
    fork_of: str | Path | None = None,
    tracker: Any = None,
    workers: int = 1,
    is_part: bool = False,
    **about: Any,
) -> Iterator[Run]:
    """Opens or makes a run directory, for one program at a time.

    Under ``jax.distributed`` every process calls it; the first one reads and writes (no other needs the folder), all of
    them compute, and a refusal or a signal to one ends all.

    Args:
        path: the directory, usually ``runs/<experiment>/<name>``.
        config: the run's settings (a dataclass or mapping); must be the ones it was begun with.
        quiet: no progress bars.
        fork_of: the directory of a run whose state this new one continues, where it is asked for more steps of it.
        tracker: a ``runs.trackers.Tracker`` that gets the readings too, as ``log_record`` sends them; one that fails
            is dropped with a warning.
        workers: processes that shall share its studies: each is cut into so many pieces at least.
        is_part: whether it is a part of another run.
        about: further entries of ``provenance.json`` (``command``, ``preset``, ``experiment``).

    Raises:
        BadInput: for an empty path, or settings that are no dataclass or mapping.
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
    path, settings = _checked(path, config, workers)
    hosts.same(f"{path}: settings", json_text(config))
    with contextlib.ExitStack() as stack:
        opened: list[Run] = []

        def act() -> dict[str, Any]:
            how = dict(quiet=quiet, tracker=tracker, workers=workers, is_part=is_part)
            source = None if fork_of is None else Path(fork_of)
            opened.append(stack.enter_context(open_directory(path, settings, source, about, how)))
            return opened[0].journal.entries()

        entries = hosts.together(act)
        run = opened[0] if opened else Follower(path, entries)

        def ask(number: int, frame: Any) -> None:
            """The run stops at its next commit; a second Ctrl-C stops at once."""
            if run.stopping and number == signal.SIGINT:
                raise KeyboardInterrupt
            run.stopping = True

        with on_stop(ask):
            yield run


def _checked(path: Any, config: Any, workers: int) -> tuple[Path, dict[str, Any]]:
    """A run's path, and its settings as a JSON object."""
    if not isinstance(path, (str, Path)) or not str(path).strip() or "\0" in str(path):
        raise BadInput(f"path: got {path!r}; allowed: the name of a folder")
    settings = plain(config)
    if not isinstance(settings, dict):
        raise BadInput(f"config: got {config!r}; allowed: a dataclass or a mapping")
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise BadInput(f"workers: got {workers!r}; allowed: an integer >= 1")
    return Path(path), settings


@contextlib.contextmanager
def open_directory(
    path: Path, settings: dict[str, Any], fork_of: Path | None, about: dict[str, Any], how: dict[str, Any]
) -> Iterator[Run]:
    """The directory locked, its journal open and its settings checked."""
    if fork_of is not None and not (fork_of / "run.sqlite").is_file():
        raise BadInput(f"fork: got {str(fork_of)!r}; allowed: a run that exists (there is no run.sqlite)")
    if os.path.isfile(path / "grid.json"):
        require_run(path)
    made, gone = [folder for folder in (path, *path.parents) if not os.path.exists(folder)], []
    with contextlib.ExitStack() as stack:
        stack.callback(_remove, gone)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Unusable(f"{path}: cannot be made: {error.strerror}") from error
        stack.enter_context(contextlib.closing(Lock(path / "lock")))
        file = path / "run.sqlite"
        if fork_of is not None and not os.path.lexists(file):
            _copy_state(fork_of, path)
        elif (path / "config.json").exists() and not (file.exists() and file.stat().st_size):
            print(f"warning: {path} has no run.sqlite; starting again from step 0", file=sys.stderr)
        journal, mended = open_journal(file)
        stack.enter_context(contextlib.closing(journal))
        journal.require_format()
        source = journal.get("forked")
        run = Run(path, journal, source=None if source is None else Path(source), **how)
        for text in [*mended, *(() if run.is_part else mended_readings(journal))]:
            run.warn(text)
        settle(run, settings, about)
        try:
            yield run
        except MissingExtra:  # told before anything began: there shall be no run
            if not journal.labels() and not any((path / parts).exists() for parts in ("cells", "pieces")):
                gone += made
            raise


def _remove(folders: list[Path]) -> None:
    """Deletes the first with all in it, and the others, its parents, where they are empty."""
    for folder in folders[:1]:
        shutil.rmtree(folder, ignore_errors=True)
    for folder in folders[1:]:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _copy_state(source: Path, path: Path) -> None:
    """Copies journal and checkpoints of ``source``, which stays untouched; the journal comes last, ready to go on."""
    part = path / ".run.sqlite.part"
    try:
        if (source / "checkpoints").is_dir():
            (path / "checkpoints").mkdir(exist_ok=True)
            for file in (source / "checkpoints").glob("*.ckpt"):
                if file.is_file() and not file.is_symlink():
                    shutil.copyfile(file, path / "checkpoints" / file.name)
        part.unlink(missing_ok=True)
        with (
            contextlib.closing(Journal(source / "run.sqlite", readonly=True)) as held,
            contextlib.closing(sqlite3.connect(part)) as copy,
        ):
            held.db.backup(copy)
        with contextlib.closing(Journal(part)) as journal:
            journal.set(config=None, inherited=journal.labels(), forked=str(source.resolve()))
        os.replace(part, path / "run.sqlite")
    except OSError as error:
        raise Unusable(f"{path}: cannot be written: {error.strerror}") from error
