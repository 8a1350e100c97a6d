"""Reading runs back, finished or still being written."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dynamics.evolve.merge import labels_of, merged
from dynamics.runs.durable.errors import BadInput, Unusable, understood
from dynamics.runs.durable.files import file_digest, require_run, unpack
from dynamics.runs.durable.journal import CHAINED, FORMAT, Chunk, Journal
from dynamics.types import Claim, Record

LENGTHS = "lengths:"
MEMORY = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
"""Bytes of a record, at most."""


class LoadedRun(NamedTuple):
    """A run as it stands on disk.

    Attributes:
        path: its directory.
        status: ``running``, ``interrupted``, ``failed``, ``finished`` or ``diverged``.
        config: its settings by field.
        claims: the claims of a finished run.
        records: what each call of ``simulate`` has recorded so far, by label.
        provenance: versions, devices, command.
        diverged: ``{label: {"lanes", "of", "first_step"}}`` for calls that left the finite numbers.
        events: ``(time, kind, text)``: warnings, resumptions.
    """

    path: Path
    status: str
    config: dict[str, Any]
    claims: list[Claim]
    records: dict[str, Record]
    provenance: dict[str, Any]
    diverged: dict[str, Any]
    events: list[tuple[str, str, str]]

    @property
    def figure(self) -> Path | None:
        """The run's ``figure.png``; None where there is none yet."""
        file = self.path / "figure.png"
        return file if file.is_file() else None


def load(path: str | Path) -> LoadedRun:
    """Reads a run directory, also while the run writes to it.

    Args:
        path: the directory, ``runs/<experiment>/<name>``.

    Raises:
        BadInput: for what names no folder.
        Unusable: when there is no run, or what it holds is damaged.

    Cost: reads the journal; no checkpoint.

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> from dynamics.evolve import ode
        >>> from dynamics.runs import open_run
        >>> where = tempfile.mkdtemp() + "/decay/first"
        >>> with open_run(where, {"rate": 1.0}) as run:
        ...     end, record = run.simulate(ode(lambda x, rate: -rate * x, 0.1), jnp.ones(()), jnp.ones(()),
        ...                                train=lambda x, rate: {"x": x}, steps=2, label="decay")
        >>> run = load(where)
        >>> run.config, list(run.records), run.claims, run.figure
        ({'rate': 1.0}, ['decay'], [], None)
        >>> run.records["decay"].to_frame()["x"].tolist()
        [1.0, 0.809999942779541]
    """
    if not isinstance(path, (str, Path)) or not str(path).strip() or "\0" in str(path):
        raise BadInput(f"path: got {path!r}; allowed: a run's folder, RUNS/EXPERIMENT/NAME")
    path = Path(path)
    with contextlib.closing(Journal(require_run(path), readonly=True)) as journal, understood(path):
        journal.require_format()
        status = journal.get("status", "running")
        claims = [
            Claim(**{field: _exact(held, field) for field in Claim._fields if field in held})
            for held in journal.get("claims", [])
        ]
        records = {label: _record(journal, label) for label in journal.labels()}
        events = journal.query("SELECT time, kind, text FROM event ORDER BY rowid")
        return LoadedRun(
            path,
            status,
            journal.get("config", {}),
            claims,
            {label: record for label, record in records.items() if record is not None},
            journal.get("provenance", {}),
            journal.get("diverged", {}),
            [(str(when), str(kind), str(text)) for when, kind, text in events],
        )


def damaged_files(path: Path, held: dict[str, str] | None = None) -> list[str]:
    """Names of a run's files that are missing or not what its journal says they were.

    Args:
        path: the run's directory.
        held: their digests, read from the journal unless given.
    """
    if held is None:
        with contextlib.closing(Journal(path / "run.sqlite", readonly=True)) as journal:
            held = journal.get("files", {})
    return [
        name for name, known in (held or {}).items() if Path(name).name != name or file_digest(path / name) != known
    ]


def _record(journal: Journal, label: str) -> Record | None:
    header, (chunks, broken) = journal.header(label), journal.chunks(label)
    if broken or header is None:
        held = journal.get("schema", FORMAT)
        what = "damaged chunks" if held >= CHAINED else f"chunks of format {held}, and this version reads {FORMAT}"
        raise Unusable(f"{journal.path}: {label!r} holds {what}; resume the run to compute them again")
    with understood(f"{journal.path}, call {label!r}"):
        return record_of(header, chunks) if chunks else None


def record_of(header: dict[str, Any], chunks: list[Chunk]) -> Record:
    """What the chunks of a call hold, on its axes.

    A study of one piece has the lanes of ``cells`` in its rows, one of several pieces (``pieces``) its whole record.
    """
    parts = [unpack(chunk.rows) for chunk in chunks]
    values = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    step, dt = values.pop("step"), header.get("dt", 1.0)
    axes = {name: [tuple(v) if isinstance(v, list) else v for v in held] for name, held in header.get("axes", ())}
    shape = tuple(len(held) for held in axes.values())
    if "pieces" in header:
        lengths = {name[len(LENGTHS) :]: values.pop(name) for name in list(values) if name.startswith(LENGTHS)}
        if wrong := [
            name for name, value in values.items() if value.shape[1 : 1 + len(shape)] != shape and name != "time"
        ]:
            raise ValueError(
                f"{wrong[0]}: got {values[wrong[0]].shape}; allowed: [T, {', '.join(map(str, shape))}, ...]"
            )
        labels = {name: labels_of(held) for name, held in axes.items()}
        return Record(step, values.pop("time"), values, labels, lengths)
    if "axes" in header:
        cells, count = np.array(header["cells"], int), math.prod(shape)
        needed = count // max(1, len(cells)) * sum(value.nbytes for value in values.values())
        if needed > MEMORY or len(set(cells) & set(range(count))) != len(cells):
            raise ValueError(
                f"cells: got {len(cells)} of {count}, {needed} bytes; allowed: own ones that fit the memory"
            )
        lanes = {name: value[:, : len(cells)] for name, value in values.items()}
        return merged([(cells, np.asarray(dt), Record(step, step, lanes))], axes)
    return Record(step, step * np.asarray(dt) if np.ndim(dt) == 0 else np.multiply.outer(step, dt), values)


def rows_of(record: Record) -> dict[str, Any]:
    """A whole record as the rows of one chunk."""
    lengths = {f"{LENGTHS}{name}": value for name, value in record.lengths.items()}
    return {"step": record.step, "time": record.time, **record.values, **lengths}


def _exact(held: dict[str, Any], field: str) -> Any:
    """A field of a JSON object, with what is not finite restored from its status."""
    return float(held[f"{field}_status"]) if f"{field}_status" in held else held.get(field)
