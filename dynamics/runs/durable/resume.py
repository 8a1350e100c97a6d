"""What a run is held against when it is resumed, in words; of a call, the newest sound checkpoint and its rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dynamics.evolve.simulate import Carry
from dynamics.runs.durable import checkpoint
from dynamics.runs.durable.directory import Directory
from dynamics.runs.durable.errors import Unusable
from dynamics.runs.durable.files import json_text, pack, unpack
from dynamics.runs.durable.journal import CHAINED, FORMAT, root
from dynamics.runs.durable.load import damaged_files
from dynamics.runs.durable.provenance import (
    NUMBERS,
    SAME_BITS,
    VERSIONS,
    config_difference,
    differences,
    now,
    provenance,
)

Rows = dict[str, np.ndarray]


class Held(NamedTuple):
    """What is held of a call.

    Attributes:
        link: the last chunk's, or the call's root.
        rows: ``{"step": [n], reading: [n, ...]}`` by chunk.
        last: whether the call is finished.
        carry: the arrays of its newest sound checkpoint, or None.
        kept: the checkpoint files.
    """

    link: str
    rows: Sequence[Rows] = ()
    last: bool = False
    carry: Rows | None = None
    kept: Sequence[Path] = ()

    def to_bytes(self) -> bytes:
        """For the processes that do not read the directory; without files."""
        rows = {f"rows:{name}": value for name, value in joined(self.rows).items()}
        carry = {f"carry:{name}": value for name, value in (self.carry or {}).items()}
        flags = {"last": np.array(self.last), "begun": np.array(self.carry is not None), "chunks": np.array(bool(rows))}
        return pack({**flags, **rows, **carry})

    @classmethod
    def from_bytes(cls, data: bytes) -> Held:
        """See ``to_bytes``; all rows come as one chunk."""
        arrays = unpack(data)
        rows, carry = (
            {name.removeprefix(kind): value for name, value in arrays.items() if name.startswith(kind)}
            for kind in ("rows:", "carry:")
        )
        return cls("", [rows] if arrays["chunks"] else [], bool(arrays["last"]), carry if arrays["begun"] else None)


def settle(run: Directory, mine: dict[str, Any], about: dict[str, Any]) -> None:
    """Checks settings, precision, platform and code against the stored ones, and writes what is new."""
    made = provenance(about.pop("command", None), **about)
    stored, run.code = run.journal.get("config"), made["code"]
    if stored is None:
        run.journal.set(config=mine, provenance=made, status="running", diverged={}, schema=FORMAT)
        run.write("config.json", json_text(mine))
        run.write("provenance.json", json_text({**made, "status": "running"}))
        return
    before = run.journal.get("provenance")
    if wrong := [key for key in NUMBERS if key in before and before[key] != made[key]]:
        words = ", ".join(f"with {key}={before[key]}, now {key}={made[key]}" for key in wrong)
        raise Unusable(f"{run.path}: begun {words}; use the same, or --fork NEW to continue")
    if mine != stored:
        raise Unusable(
            f"{run.path}: other settings: {config_difference(stored, mine)}; use the same, or --fork NEW to continue"
        )
    held = {"config.json": stored, "provenance.json": {**before, "status": run.journal.get("status")}}
    known = run.journal.get("files", {})
    for name in damaged_files(run.path, {name: known.get(name, "") for name in held}):
        run.warn(f"{run.path / name} was missing, damaged or edited; written again from the journal")
        run.write(name, json_text(held[name]))
    changed = differences(before, made, (*SAME_BITS, *VERSIONS))
    if changed:
        run.platform_changed = bool(differences(before, made))
        run.warn(f"{run.path}: {'; '.join(changed)}: the bits may differ from an uninterrupted run")
    run.code_changed = bool(differences(before, made, ("code",)))
    if run.code_changed and not run.is_part:
        how = "its claims are those of then" if run.finished else "it goes on where its program is the same"
        run.warn(f"{run.path}: the source of its experiment has changed since; {how}")
    run.changed = bool(changed) or run.code_changed
    if run.changed or differences(before, made, ("git",)):
        run.journal.event(now(), "provenance", json.dumps(made))


def resume(run: Directory, label: str, header: dict[str, Any], template: Carry, hyper: Rows) -> Held:
    """The newest sound checkpoint of a call with the rows before it; else the call is entered anew.

    Args:
        run: the open run.
        label: the call's name.
        header: what it is asked to do now.
        template: shapes, dtypes and devices of its carry.
        hyper: of a fork's lanes the settings, which are part of the change: arrays by their paths in the carry.

    Raises:
        Unusable: when it was begun otherwise, and is not inherited by a fork.
    """
    stored = run.journal.header(label)
    if stored is None and label in run.journal.labels():
        stored = _prove_header(run, label, header)
    if stored is not None and not run.agrees(label, stored, header):
        return _fork(run, label, header, template, hyper)
    chunks, broken = run.journal.chunks(label) if stored is not None else ([], 0)
    if broken:
        held = run.journal.get("schema", FORMAT)
        what = "damaged chunk(s)" if held >= CHAINED else f"chunk(s) of format {held}, not {FORMAT},"
        run.warn(f"{label!r}: {broken} {what} in the journal; falling back to the ones before")
    carry = None
    while chunks and carry is None:
        chunk = chunks[-1]
        place = checkpoint.path_of(run.checkpoints, label, chunk.number, chunk.state)
        try:
            carry = checkpoint.load(place, chunk.state, template)
        except ValueError as error:
            older = f"step {chunks[-2].step}" if len(chunks) > 1 else "its start"
            run.warn(f"{label!r}: checkpoint at step {chunk.step} unusable ({error}); falling back to {older}")
            chunks.pop()
            broken = 1
    if carry is None:
        run.begin(label, header)
        return Held(root(label, header))
    if broken:
        run.journal.truncate(label, len(chunks))
    kept = [checkpoint.path_of(run.checkpoints, label, c.number, c.state) for c in chunks[-checkpoint.KEEP :]]
    return Held(chunks[-1].link, [unpack(c.rows) for c in chunks], chunks[-1].last, carry, kept)


def _prove_header(run: Directory, label: str, header: dict[str, Any]) -> dict[str, Any] | None:
    """A damaged call entry is put back when its chunks link to what is asked now: then it said just that."""
    if not run.journal.chunks(label, header)[0]:
        run.warn(f"{label!r}: its entry in the journal is damaged; falling back to its start")
        return None
    run.warn(f"{label!r}: its entry in the journal was damaged; its chunks prove it, and it is written again")
    run.journal.enter(label, header)
    return header


def _fork(run: Directory, label: str, header: dict[str, Any], template: Carry, hyper: Rows) -> Held:
    """An inherited call under new settings: continued where shapes and steps allow, else begun afresh, and said."""
    chunks, _ = run.journal.chunks(label)
    arrays, rows, why = None, {}, "it had not begun"
    if chunks:
        place = checkpoint.path_of(run.checkpoints, label, chunks[-1].number, chunks[-1].state)
        try:
            arrays = checkpoint.load(place, chunks[-1].state, template)
            rows = joined([unpack(chunk.rows) for chunk in chunks])
        except (ValueError, Unusable) as error:
            why = str(error)
    if arrays is not None and arrays[".step"] > header["steps"]:
        arrays, why = None, f"it had passed step {header['steps']}"
    elif arrays is not None and arrays[".step"] == header["steps"] > 0:  # all that it has read is of the old settings
        arrays, why = None, f"it had ended at step {header['steps']}, as its source was asked"
    elif arrays is not None and arrays[".step"] == 0:  # a start that was drawn under the old settings is not kept
        arrays, why = None, "it had taken no step"
    with run.journal.transaction():
        run.begin(label, header)
        run.disinherit(label)
        if arrays is None:
            run.warn(f"{label!r} starts afresh in the fork: {why}")
            return Held(root(label, header))
        step = int(arrays[".step"])
        run.warn(f"{label!r} continues in the fork from step {step}")
        arrays = {**arrays, **hyper, ".done": np.zeros_like(arrays[".done"])}
        rows = _at_steps(rows, [wanted for wanted in header["record_at"] if wanted <= step])
        digest = checkpoint.save(run.checkpoints, label, 0, arrays)
        link = run.commit(label, 0, step, False, digest, rows, root(label, header))
    kept = [checkpoint.path_of(run.checkpoints, label, 0, digest)]
    checkpoint.prune(run.checkpoints, label, kept)
    return Held(link, [rows], False, arrays, kept)


def _at_steps(rows: Rows, wanted: list[int]) -> Rows:
    """The rows at the wanted steps; NaN where a step was not recorded."""
    place = {int(step): at for at, step in enumerate(rows["step"])}
    found = np.array([place.get(step, -1) for step in wanted], int)
    picked = {}
    for name, value in rows.items():
        taken = value[found]
        if np.any(found < 0):
            taken = taken if np.issubdtype(taken.dtype, np.inexact) else taken.astype(float)
            taken[found < 0] = np.nan
        picked[name] = taken
    return {**picked, "step": np.array(wanted, np.int32)}


def joined(parts: Sequence[Rows]) -> Rows:
    """Chunks of rows as one."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}
