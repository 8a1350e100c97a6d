"""The journal of a run: one SQLite file that survives kill -9, with a digest chain over everything committed.

One transaction a chunk is the commit: its rows, the digest of the checkpoint that ends it, and a link to the chunk
before; the first links to what the call was asked to do. Arrays are typed BLOBs (``files.pack``), so NaN and float32
stay exact. The tables ``reading`` and ``cell`` say the scalars among them again, for any program that reads SQLite; no
digest covers them: ``readings`` makes them from the chunks whenever they are not what the chunks say.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from dynamics.runs.durable.errors import NONSENSE, Damaged, Unusable
from dynamics.runs.durable.files import MOST, digest, open_file

FORMAT = 4
"""The format of journals that are begun now, as their entry ``schema``. Format 4 has the digest of its program in a
call, format 3 has calls on named axes; both 3 and 2 are read and not continued; format 1 did not chain a call's chunks
to what it was asked."""
CHAINED = 2
STATUS = ("running", "interrupted", "failed", "finished", "diverged")

SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL, digest TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS call (label TEXT PRIMARY KEY, header TEXT NOT NULL, digest TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS chunk (
    label TEXT NOT NULL, number INTEGER NOT NULL, step INTEGER NOT NULL, last INTEGER NOT NULL, state TEXT NOT NULL,
    rows BLOB NOT NULL, link TEXT NOT NULL, PRIMARY KEY (label, number));
CREATE TABLE IF NOT EXISTS event (time TEXT NOT NULL, kind TEXT NOT NULL, text TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS reading (
    label TEXT NOT NULL, step INTEGER NOT NULL, cell INTEGER NOT NULL, name TEXT NOT NULL, value REAL);
CREATE TABLE IF NOT EXISTS cell (label TEXT NOT NULL, cell INTEGER NOT NULL, axis TEXT NOT NULL, value NOT NULL);
"""

ENTRIES: dict[str, Any] = {
    "schema": int, "status": set(STATUS), "config": (dict, None), "provenance": dict, "seconds": (int, float),
    "claims": [{"name": str, "holds": {True, False, None}}], "inherited": [str], "frozen": [str], "forked": (str, None),
    "files": {str: str}, "diverged": {str: {"lanes": [int], "of": int, "first_step": [int]}},
    "division": {str: {"lanes": {str: int}, "devices": int, "?program": {str: str}}},
}  # fmt: skip
"""What each entry may hold; see ``fits``."""
CALL = {"?inputs": str, "?steps": int, "?record_at": [int], "?cells": [int], "?axes": [list], "?program": dict}
CHUNK = (int, int, int, str, bytes, str)


class Chunk(NamedTuple):
    """One committed chunk: the ``step`` it ends at, whether it is the ``last``, the checkpoint's digest, the rows."""

    number: int
    step: int
    last: bool
    state: str
    rows: bytes
    link: str


class Journal:
    """An open journal; every error of the file or the disk is raised as ``Unusable``."""

    def __init__(self, path: Path, *, readonly: bool = False) -> None:
        self.path = path
        self.readonly = readonly
        with self._guard():
            if readonly:
                self.db = _open_readonly(path)
            else:
                for part in () if str(path) == ":memory:" else (path, path.with_name(f"{path.name}-journal")):
                    if os.path.lexists(part):
                        os.close(open_file(part, os.O_RDWR))
                writer: Any = {"timeout": 30, "isolation_level": None, "check_same_thread": False}  # one at a time
                self.db = _checked(sqlite3.connect(path, **writer), path)
                self.db.execute("PRAGMA synchronous=FULL")
                check = self.db.execute("PRAGMA integrity_check(1)").fetchone()[0]
                if check != "ok":
                    raise sqlite3.DatabaseError(check)
                self.db.executescript(SCHEMA)
            self.db.text_factory = lambda text: text.decode(errors="replace")  # the digests then tell

    def close(self) -> None:
        self.db.close()

    @contextmanager
    def _guard(self):
        try:
            yield
        except OSError as error:
            raise Unusable(f"{self.path}: cannot be written: {error.strerror}") from error
        except sqlite3.Error as error:
            text = str(error)
            if not os.path.lexists(self.path) and str(self.path) != ":memory:":
                raise Unusable(f"{self.path}: is not there (any more)") from error
            if "full" in text:
                raise Unusable(f"{self.path}: the disk is full; what was committed is intact") from error
            if "readonly" in text or "read-only" in text:
                raise Unusable(f"{self.path}: the directory is read-only") from error
            harmed = "malformed" in text or "unsupported file format" in text
            if isinstance(error, sqlite3.OperationalError) and not harmed:
                raise Unusable(f"{self.path}: {text}") from error
            raise Damaged(f"{self.path} is damaged ({text}); move the run directory away and start again") from error

    def query(self, sql: str, values: Iterable[Any] = ()) -> list[tuple]:
        with self._guard():
            return self.db.execute(sql, tuple(values)).fetchall()

    @contextmanager
    def transaction(self):
        """All or nothing, and on the disk when it returns; one inside another joins it."""
        if self.db.in_transaction:
            yield
            return
        with self._guard():
            self.db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.db.execute("COMMIT")
            except BaseException:
                if self.db.in_transaction:
                    self.db.execute("ROLLBACK")
                raise

    def get(self, key: str, default: Any = None) -> Any:
        """A value of ``set``.

        Raises:
            Damaged: when its digest does not match, or it is of another kind.
        """
        found = self.query("SELECT value, digest FROM meta WHERE key = ?", [key])
        if not found:
            return default
        value = _entry(key, *found[0])
        if value is BROKEN:
            raise Damaged(f"{self.path} is damaged (entry {key!r}); move the run directory away and start again")
        return value

    def require_format(self) -> None:
        """Refuses a journal that a later version began.

        Raises:
            Unusable: naming both formats, and the version when it is known.
        """
        held = self.get("schema", FORMAT)
        if held > FORMAT:
            made = self.get("provenance", {}).get("dynamics")
            version = f"; dynamics {made} began it" if made else ""
            raise Unusable(f"{self.path} has format {held}, and this version reads up to {FORMAT}{version}")

    def entries(self) -> dict[str, Any]:
        """All of ``set``."""
        return {key: self.get(key) for (key,) in self.query("SELECT key FROM meta")}

    def damaged_entries(self) -> list[str]:
        """Keys of ``set`` that ``get`` refuses."""
        return [row[0] for row in self.query("SELECT key, value, digest FROM meta") if _entry(*row) is BROKEN]

    def drop(self, key: str) -> None:
        with self.transaction():
            self.db.execute("DELETE FROM meta WHERE key = ?", (key,))

    def set(self, **entries: Any) -> None:
        with self.transaction():
            for key, value in entries.items():
                text = json.dumps(value)
                row = (key, text, entry_digest(key, text))
                self.db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", row)

    def event(self, time: str, kind: str, text: str) -> None:
        with self.transaction():
            self.db.execute("INSERT INTO event VALUES (?, ?, ?)", (time, kind, text))

    def labels(self) -> list[str]:
        return [row[0] for row in self.query("SELECT label FROM call ORDER BY rowid")]

    def header(self, label: str) -> dict[str, Any] | None:
        """What a call was asked to do, or None for a new one (or one whose entry is damaged)."""
        found = self.query("SELECT header, digest FROM call WHERE label = ?", [label])
        held: Any = _entry(label, *found[0], kind=CALL) if found else BROKEN
        return None if held is BROKEN else held

    def begin(self, label: str, header: dict[str, Any], cells: Iterable[tuple] = ()) -> None:
        """Enters a call, dropping whatever stood under its label; ``cells`` are rows of the table ``cell``."""
        with self.transaction():
            for table in ("chunk", "reading", "cell"):
                self.db.execute(f"DELETE FROM {table} WHERE label = ?", (label,))
            self.enter(label, header)
            self.db.executemany("INSERT INTO cell VALUES (?, ?, ?, ?)", cells)

    def enter(self, label: str, header: dict[str, Any]) -> None:
        """Writes what a call was asked to do; its chunks stay."""
        text = header_text(header)
        with self.transaction():
            self.db.execute("DELETE FROM call WHERE label = ?", (label,))
            self.db.execute("INSERT INTO call VALUES (?, ?, ?)", (label, text, entry_digest(label, text)))

    def commit(
        self, label: str, number: int, step: int, last: bool, state: str, rows: bytes, before: str,
        readings: Iterable[tuple] = (),
    ) -> str:  # fmt: skip
        """Commits one chunk after the chunk (or, for the first, the ``root``) ``before``; returns its own link.

        Args:
            readings: what ``rows`` says to others, as rows of the table ``reading``.
        """
        link = _link(before, label, number, step, last, state, rows)
        with self.transaction():
            self.db.execute(
                "INSERT INTO chunk VALUES (?, ?, ?, ?, ?, ?, ?)", (label, number, step, int(last), state, rows, link)
            )
            self.db.executemany("INSERT INTO reading VALUES (?, ?, ?, ?, ?)", readings)
        return link

    def chunks(self, label: str, header: dict[str, Any] | None = None) -> tuple[list[Chunk], int]:
        """The unbroken chain of a call's chunks from its start, and how many stand behind a break.

        Args:
            label: the call.
            header: what it was asked to do, by default as stored; chunks of another call are no part of the chain.
        """
        header = self.header(label) if header is None else header
        with self._guard():
            found = self.db.execute(
                "SELECT number, step, last, state, rows, link FROM chunk WHERE label = ? ORDER BY number", (label,)
            ).fetchall()
        good: list[Chunk] = []
        before = "" if header is None else root(label, header)
        for row in found:
            if not all(map(isinstance, row, CHUNK)):
                break
            chunk = Chunk(row[0], row[1], bool(row[2]), *row[3:])
            expected = _link(before, label, len(good), chunk.step, chunk.last, chunk.state, chunk.rows)
            if chunk.number != len(good) or chunk.link != expected:
                break
            good.append(chunk)
            before = chunk.link
        return good, len(found) - len(good)

    def truncate(self, label: str, count: int) -> None:
        """Drops all but the first ``count`` chunks of a call."""
        with self.transaction():
            self.db.execute("DELETE FROM chunk WHERE label = ? AND number >= ?", (label, count))
            held = self.db.execute("SELECT max(step) FROM chunk WHERE label = ?", (label,)).fetchone()[0]
            self.db.execute("DELETE FROM reading WHERE label = ? AND step > ?", (label, -1 if held is None else held))


def header_text(header: dict[str, Any]) -> str:
    return json.dumps(header, sort_keys=True)


def entry_digest(key: str, text: str) -> str:
    """The digest beside an entry or a call."""
    return digest(f"{key}\n{text}".encode())


def root(label: str, header: dict[str, Any]) -> str:
    """What a call's first chunk links to."""
    return entry_digest(label, header_text(header))


def _link(before: str, label: str, number: int, step: int, last: bool, state: str, rows: bytes) -> str:
    return digest(f"{before}\n{label}\n{number}\n{step}\n{int(last)}\n{state}\n{digest(rows)}".encode())


def fits(value: Any, kind: Any) -> bool:
    """Whether a JSON value is of a kind: a type, one of a tuple of kinds, of a set of values, ``[kind of each]``,
    ``{str: kind of each}``, or ``{name: kind}`` of what an object must hold (``?name``: may hold)."""
    if isinstance(kind, tuple):
        return any(fits(value, one) for one in kind)
    if isinstance(kind, set):
        return any(type(value) is type(one) and value == one for one in kind)
    if isinstance(kind, list):
        return isinstance(value, list) and all(fits(item, kind[0]) for item in value)
    if not isinstance(kind, dict):
        return value is None if kind is None else isinstance(value, kind) and (kind is not int or type(value) is int)
    if not isinstance(value, dict):
        return False
    if str in kind:
        return all(fits(item, kind[str]) for item in value.values())
    names = ((name, name.removeprefix("?")) for name in kind)
    return all(fits(value[own], kind[name]) if own in value else name != own for name, own in names)


BROKEN = object()


def _entry(key: str, text: Any, held: Any, kind: Any = BROKEN) -> Any:
    """The value of an entry, or ``BROKEN``."""
    with contextlib.suppress(*NONSENSE):
        value = json.loads(text) if len(text) <= MOST and entry_digest(key, text) == held else BROKEN
        if fits(value, ENTRIES.get(key, object) if kind is BROKEN else kind):
            return value
    return BROKEN


def _open_readonly(path: Path) -> sqlite3.Connection:
    """Read-only, also on a read-only disk beside a hot rollback journal; the digests judge what is read."""
    os.close(open_file(path, os.O_RDONLY))
    quoted = path.absolute().as_uri()
    try:
        return _checked(sqlite3.connect(f"{quoted}?mode=ro", uri=True, timeout=30), path)
    except sqlite3.OperationalError:
        return _checked(sqlite3.connect(f"{quoted}?immutable=1", uri=True), path)


def _checked(db: sqlite3.Connection, path: Path) -> sqlite3.Connection:
    """A journal without views, triggers and virtual tables, which are code that reading it would run."""
    odd = "SELECT 1 FROM sqlite_master WHERE type NOT IN ('table', 'index') OR sql LIKE '%VIRTUAL%'"
    if db.execute(odd).fetchone():
        db.close()
        raise Unusable(f"{path}: holds a view, a trigger or a virtual table, which no run writes")
    return db
