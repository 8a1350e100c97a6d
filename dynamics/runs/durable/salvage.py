"""A damaged journal: what its own digests still prove is kept, the rest is computed again.

Every entry, call and chunk carries a digest over itself, and a chunk's link also over what the call was asked to do and
all chunks before it. So a row that checks is one that this run wrote, wherever on the disk it was found; a stale one
could only lead back to an earlier chunk. Claims, status and events are dropped: they are made again.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

from dynamics.runs.durable.errors import Damaged, Unusable
from dynamics.runs.durable.files import digest, read_bytes, write_bytes
from dynamics.runs.durable.journal import FORMAT, Journal, entry_digest

NEEDED = ("config", "provenance")
"""Entries without which a run cannot be continued; their files are digested in the entry ``files``."""
PAGE = 4096


def open_journal(path: Path) -> tuple[Journal, list[str]]:
    """The journal at ``path`` for writing, mended if need be, and what was found wrong, one sentence each.

    Raises:
        Damaged: when what is left does not prove the run's settings; nothing is changed then.
        Unusable: when it cannot be read or written.
    """
    try:
        journal, said = Journal(path), []
    except Damaged as error:
        journal, said = _rebuilt(path, error)
    try:
        return journal, [*said, *_mended_entries(journal)]
    except BaseException:
        journal.close()
        raise


def _mended_entries(journal: Journal) -> list[str]:
    """Drops damaged entries, after restoring the needed ones from files that the journal vouches for."""
    wrong = journal.damaged_entries()
    files = {} if "files" in wrong else journal.get("files", {})
    for key in [key for key in NEEDED if key in wrong]:
        journal.set(**{key: _from_file(journal.path, key, files)})
    with journal.transaction():
        for key in wrong:
            if key not in NEEDED:
                journal.drop(key)
        if wrong:
            journal.drop("claims")
            journal.set(status="running", schema=journal.get("schema", FORMAT))
    return [f"{journal.path}: entry {key!r} was damaged; it is made again" for key in wrong]


def _from_file(path: Path, key: str, files: dict[str, str]) -> Any:
    beside = path.with_name(f"{key}.json")
    with contextlib.suppress(OSError, ValueError, Damaged):
        data = read_bytes(beside)
        if digest(data) == files.get(beside.name):
            return json.loads(data)
    raise Damaged(f"{path} is damaged (entry {key!r}); move the run directory away and start again")


def _rebuilt(path: Path, error: Damaged) -> tuple[Journal, list[str]]:
    """A new journal of the proven rows in place of the damaged one, which is kept beside it."""
    meta, calls, chunks = _proven(path)
    if not all(key in meta for key in NEEDED):
        raise error
    aside, part = path.with_name(f"{path.name}.damaged"), path.with_name(f".{path.name}.part")
    try:
        part.unlink(missing_ok=True)
        fresh = Journal(part)
        try:
            with fresh.transaction():
                fresh.db.executemany("INSERT INTO meta VALUES (?, ?, ?)", meta.values())
                fresh.db.executemany("INSERT INTO call VALUES (?, ?, ?)", calls.values())
                fresh.db.executemany("INSERT OR IGNORE INTO chunk VALUES (?, ?, ?, ?, ?, ?, ?)", chunks)
                fresh.drop("claims")
                fresh.set(status="running", schema=fresh.get("schema", FORMAT))
        finally:
            fresh.close()
        write_bytes(aside, read_bytes(path, 2**32))
        path.with_name(f"{path.name}-journal").unlink(missing_ok=True)  # it would be applied to the new file
        os.replace(part, path)
    except OSError as refused:
        raise Unusable(f"{path}: is damaged, and cannot be mended: {refused.strerror}") from refused
    return Journal(path), [f"{path} was damaged; kept as {aside.name}, and its {len(chunks)} sound chunk(s) taken over"]


def _proven(path: Path) -> tuple[dict[str, tuple], dict[str, tuple], list[tuple]]:
    """Entries by key, calls by label, and chunks of the right types (their links are checked when they are used)."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy.sqlite"
        copy.write_bytes(_with_fresh_header(read_bytes(path, 2**32)))
        with contextlib.closing(sqlite3.connect(f"{copy.as_uri()}?immutable=1", uri=True)) as db:
            meta, calls, chunks = (_rows(db, table) for table in ("meta", "call", "chunk"))

    def sound(rows: list[tuple]) -> dict[str, tuple]:
        texts = [row for row in rows if all(isinstance(cell, str) for cell in row)]
        return {key: (key, text, held) for key, text, held in texts if entry_digest(key, text) == held}

    kinds = (str, int, int, int, str, bytes, str)
    return sound(meta), sound(calls), [row for row in chunks if all(map(isinstance, row, kinds))]


def _rows(db: sqlite3.Connection, table: str) -> list[tuple]:
    """The rows that can be reached from either end of a table, in their order."""
    found: dict[int, tuple] = {}
    db.text_factory = lambda text: text.decode(errors="replace")
    for order in ("ASC", "DESC"):
        with contextlib.suppress(sqlite3.Error):
            for rowid, *row in db.execute(f"SELECT rowid, * FROM {table} NOT INDEXED ORDER BY rowid {order}"):
                found[rowid] = tuple(row)
    return [found[rowid] for rowid in sorted(found)]


def _with_fresh_header(data: bytes) -> bytes:
    """The file with the 100 bytes that describe it as SQLite writes them for a journal of ours.

    A file cut short gets empty pages, without which SQLite does not read the list of tables.

    Reference: SQLite, 'Database File Format', section 1.3.
    """
    held = int.from_bytes(data[16:18], "big")
    page = held if held in (512, 1024, 2048, 8192, 16384, 32768) else PAGE
    pages = max(len(data) // page, 64)
    numbers = [1, pages, 0, 0, 1, 4, 0, 0, 1, 0, 0, 0]  # change counter, size, no free pages, ..., UTF-8
    header = b"SQLite format 3\0" + page.to_bytes(2, "big") + bytes([1, 1, 0, 64, 32, 32])
    header += b"".join(number.to_bytes(4, "big") for number in numbers) + bytes(20)
    return (
        header
        + (1).to_bytes(4, "big")
        + data[96:100]
        + data[100:].ljust(pages * page - 100, b"\0")[: pages * page - 100]
    )
