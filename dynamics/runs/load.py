"""Reading runs back, finished or still being written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dynamics.runs.errors import Unusable
from dynamics.runs.files import digest, require_no_grid, unpack
from dynamics.runs.journal import CHAINED, FORMAT, Chunk, Journal

if TYPE_CHECKING:
    from dynamics.types import Claim, Record


LENGTHS = "lengths:"


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


def load(path: str | Path) -> LoadedRun:
    """Reads a run directory, also while the run writes to it.

    Raises:
        Unusable: when there is no run, or what it holds is damaged.

    Cost: reads the journal; no checkpoint.
    """
    from dynamics.types import Claim

    path = Path(path)
    require_no_grid(path)
    if not (path / "run.sqlite").is_file():
        raise Unusable(f"{path}: no run here (run.sqlite is missing)")
    journal = Journal(path / "run.sqlite", readonly=True)
    try:
        journal.require_format()
        status = journal.get("status", "running")
        claims = [Claim(*(_exact(held, field) for field in Claim._fields)) for held in journal.get("claims", [])]
        records = {label: _record(journal, label) for label in journal.labels()}
        return LoadedRun(
            path,
            status,
            journal.get("config", {}),
            claims,
            {label: record for label, record in records.items() if record is not None},
            journal.get("provenance", {}),
            journal.get("diverged", {}),
            [tuple(row) for row in journal.query("SELECT time, kind, text FROM event ORDER BY rowid")],
        )
    finally:
        journal.close()


def damaged_files(path: Path) -> list[str]:
    """Names of a run's files that are missing or not what the journal says they were."""
    journal = Journal(path / "run.sqlite", readonly=True)
    try:
        held = journal.get("files", {})
    finally:
        journal.close()
    return [name for name, known in held.items() if not _matches(path / name, known)]


def read_json(path: Path) -> Any:
    """A JSON file of a run directory.

    Raises:
        Unusable: when it is missing or not JSON.
    """
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise Unusable(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise Unusable(f"{path}: not JSON: {error}") from error


def _record(journal: Journal, label: str) -> Record | None:
    header, (chunks, broken) = journal.header(label), journal.chunks(label)
    if broken or header is None:
        held = journal.get("schema", FORMAT)
        what = "damaged chunks" if held >= CHAINED else f"chunks of format {held}, and this version reads {FORMAT}"
        raise Unusable(f"{journal.path}: {label!r} holds {what}; resume the run to compute them again")
    return record_of(header, chunks) if chunks else None


def record_of(header: dict[str, Any], chunks: list[Chunk]) -> Record:
    """What the chunks of a call hold, on its axes.

    A study of one piece has the lanes of ``cells`` in its rows, one of several pieces (``pieces``) its whole record.
    """
    from dynamics.evolve.merge import labels_of, merged
    from dynamics.types import Record

    parts = [unpack(chunk.rows) for chunk in chunks]
    values = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    step, dt = values.pop("step"), header.get("dt", 1.0)
    axes = {name: [tuple(v) if isinstance(v, list) else v for v in held] for name, held in header.get("axes", ())}
    if "pieces" in header:
        lengths = {name[len(LENGTHS) :]: values.pop(name) for name in list(values) if name.startswith(LENGTHS)}
        labels = {name: labels_of(held) for name, held in axes.items()}
        return Record(step, values.pop("time"), values, labels, lengths)
    if "axes" in header:
        cells = np.array(header["cells"], int)
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


def _matches(path: Path, known: str) -> bool:
    try:
        return digest(path.read_bytes()) == known
    except OSError:
        return False
