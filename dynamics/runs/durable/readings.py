"""The scalars of a run as plain rows of its journal, for programs that know nothing of this package.

``reading(label, step, cell, name, value)`` and ``cell(label, cell, axis, value)``: which settings a cell has. Both say
again what the chunks hold, and are made from them.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any, cast

import numpy as np

from dynamics.runs.durable.errors import NONSENSE
from dynamics.runs.durable.files import unpack
from dynamics.runs.durable.journal import Journal

MOST = 10**6
"""Rows of a call, at most: one of more has none."""
TABLES = ("reading", "cell")


def readings_of(label: str, header: Mapping[str, Any], rows: Mapping[str, np.ndarray]) -> Iterator[tuple]:
    """The rows ``(label, step, cell, name, value)`` of a chunk; what is no real number in each cell is left out.

    Args:
        label: of the call.
        header: what it was asked.
        rows: ``{"step": [n], reading: [n, ...]}``.
    """
    step, cells, depth = rows["step"], _cells(header), 1
    if not len(step):
        return
    if "axes" in header:
        depth = 1 + (len(header["axes"]) if "pieces" in header else 1)
    scalars = {
        name: value.reshape(len(step), -1)[:, : len(cells)].astype(float)
        for name, value in rows.items()
        if name not in ("step", "time") and ":" not in name and value.ndim == depth and value.dtype.kind != "c"
    }
    if len(header.get("record_at", step)) * len(cells) * len(scalars) > MOST:
        return
    for name, value in scalars.items():
        value = np.where(np.isnan(value), cast(Any, None), value) if np.isnan(value).any() else value  # NULL in SQL
        yield from zip(
            itertools.repeat(label), np.repeat(step, len(cells)).tolist(), np.tile(cells, len(step)).tolist(),
            itertools.repeat(name), value.ravel().tolist(),
        )  # fmt: skip


def cells_of(label: str, header: Mapping[str, Any]) -> Iterator[tuple]:
    """The rows ``(label, cell, axis, value)`` of a call: what its cells are."""
    axes, cells = header.get("axes", ()), _cells(header)
    inner = len(cells) if "pieces" in header else math.prod(len(values) for _, values in axes)
    for axis, values in axes if len(cells) * len(axes) <= MOST else ():
        inner //= len(values)
        held = [value if isinstance(value, (int, float, str)) else str(value) for value in values]
        yield from ((label, cell, axis, held[cell // inner % len(held)]) for cell in cells.tolist())


def mended_readings(journal: Journal) -> list[str]:
    """Makes these rows again for calls where they are not what the chunks say; a sentence for each.

    Cost: that of reading the chunks; about 1 us a row.
    """
    said = []
    for label in journal.labels():
        header = journal.header(label)
        with contextlib.suppress(*NONSENSE):
            if header is None:
                continue
            chunks = [unpack(chunk.rows) for chunk in journal.chunks(label)[0]]
            expected = [row for rows in chunks for row in readings_of(label, header, rows)], [*cells_of(label, header)]
            held = [journal.query(f"SELECT * FROM {name} WHERE label = ? ORDER BY rowid", [label]) for name in TABLES]
            if tuple(held) == expected:
                continue
            with journal.transaction():
                for name, rows in zip(TABLES, expected):
                    journal.db.execute(f"DELETE FROM {name} WHERE label = ?", (label,))
                    journal.db.executemany(
                        f"INSERT INTO {name} VALUES ({','.join('?' * (5 - (name == 'cell')))})", rows
                    )
            said.append(
                f"{journal.path}: the tables reading and cell of {label!r} were not its readings; written again"
            )
    return said


def _cells(header: Mapping[str, Any]) -> np.ndarray:
    """The cells of a call, as its rows have them: all of a study in pieces, one of a single run."""
    if "cells" in header:
        return np.asarray(header["cells"], int)
    return np.arange(min(math.prod(len(values) for _, values in header.get("axes", ())), MOST + 1))
