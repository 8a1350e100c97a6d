"""The durable ``study``: same signature; its pieces are journalled, resumed, and shared by any number of workers.

A study of one piece is a call in the run's own journal. Several pieces are runs of their own, in ``pieces/`` of the run
directory: whoever holds a piece's lock computes it. When all are there, the readings are entered in the run's journal
as one call, on the study's axes.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from dynamics.evolve.simulate import Call, prepare
from dynamics.evolve.study import Piece, Plan, planned, told_to_loop
from dynamics.runs.durable import checkpoint, hosts
from dynamics.runs.durable.directory import Directory
from dynamics.runs.durable.driver import journalled
from dynamics.runs.durable.errors import Interrupted, InUse, Unusable
from dynamics.runs.durable.files import digest, plain
from dynamics.runs.durable.program import traced
from dynamics.types import Record

T = TypeVar("T")
Programs = dict[tuple[int, int], dict[str, str]]  # digests by group and number of lanes


def durable_study(run: Directory, axes: Any, draw: Any, *arguments: Any, **options: Any) -> Record:
    """``evolve.study`` in an open run: its arguments, and the same readings whether interrupted, shared or neither."""
    plan = planned(axes, _heeding(run, draw), *arguments, **options)
    label = run.enter(plan.label)
    known: Programs = {}
    cut = hosts.together(lambda: run.division(label) or run.divide(label, _cut(plan, run.workers, known)))
    pieces = _pieces(plan, cut)
    if len(pieces) == 1:
        held = run.single(label)
        return plan.merge([_run(run, pieces[0], label, plan)]) if held is None else held
    if jax.process_count() > 1:
        raise Unusable(
            f"{run.path}: {label!r} is a study of {len(pieces)} pieces on {jax.process_count()} processes of "
            "jax.distributed; allowed: one piece; pieces are shared by workers (--workers)"
        )
    about = {"axes": _axes(plan), "pieces": [f"{i:05d}" for i in range(len(pieces))], "inputs": _digest(plan)}
    about["program"] = _program(pieces, known)
    held = run.stored(label, about)
    if held is not None:
        return held
    lost: dict[str, Any] = {"lanes": [], "of": plan.count, "first_step": []}

    def compute(piece: Piece, part: Directory) -> Any:
        name = piece.label or label
        if part.journal.header(name) is None and run.source is not None:
            part.warn(f"{name!r} starts afresh in the fork: it had not begun, or in other pieces")
        found = _run(part, piece, name, plan)
        if not part.finished:
            part.journal.set(status="finished")
        return found, part.journal.get("diverged", {}).get(name, {})

    folders = [run.path / "pieces" / checkpoint.stem(label) / name for name in about["pieces"]]
    tasks = [functools.partial(compute, piece) for piece in pieces]
    settings = [{"study": label, "cells": piece.cells.tolist()} for piece in pieces]
    found = taken_up(run, folders, settings, tasks)
    for _, diverged in found:
        for key in ("lanes", "first_step"):
            lost[key] += diverged.get(key, [])
    record = plan.merge([part for part, _ in found])
    run.diverged(label, lost if lost["lanes"] else {})
    run.store(label, about, record)
    return record


def _heeding(run: Directory, draw: Any) -> Any:
    """``draw``, between two of which a signal is heeded: where theory is drawn, they are all of the study's work."""
    if not callable(draw) or jax.process_count() > 1:
        return draw  # what is no draw ``planned`` says; of several processes all must stop at once

    @functools.wraps(draw)
    def drawn(lane):
        if run.stopping:
            raise Interrupted("interrupted while lanes were drawn; all that was done before is saved")
        return draw(lane)

    return drawn


def _run(run: Directory, piece: Piece, label: str, plan: Plan) -> Any:
    """A piece as a journalled call of ``run``."""
    with told_to_loop(piece.group):
        call, dt = _call(piece)
        about = {"dt": dt.tolist(), "axes": _axes(plan), "cells": piece.cells.tolist()}
        return piece.part(journalled(run, call, label, about)[1], dt)


def _call(piece: Piece) -> tuple[Call, np.ndarray]:
    """A piece as a checked call of ``simulate``, and its time per step."""
    arguments, dt = piece.call()
    return prepare(**{name: value for name, value in arguments.items() if name != "label"}), dt


def _program(pieces: Sequence[Piece], known: Programs) -> dict[str, str]:
    """The digests of a study's programs, one a shape, together; those ``known`` are not looked for again."""
    parts = []
    for _, group in itertools.groupby(pieces, lambda piece: id(piece.group)):
        piece = next(group)
        shape = id(piece.group), piece.size
        if shape not in known:
            with told_to_loop(piece.group):
                known[shape] = traced(_call(piece)[0])[0]
        parts.append(known[shape])
    return {
        name: digest("".join(part.get(name, "") for part in parts).encode()) for name in ("whole", "step", "readout")
    }


def _cut(plan: Plan, workers: int, known: Programs) -> dict[str, Any]:
    """Lanes of a piece, by the name of their shape, devices over which they are divided, and of several the program.

    It is kept, on other devices too.
    """
    sizes: dict[str, int] = {}
    for piece in plan.pieces(least=workers):
        name = piece.group.label or ""
        sizes[name] = max(sizes.get(name, 0), len(piece.cells))
    cut = {"lanes": sizes, "devices": jax.local_device_count()}
    pieces = _pieces(plan, cut)
    return cut if len(pieces) == 1 else {**cut, "program": _program(pieces, known)}


def _pieces(plan: Plan, cut: dict[str, Any]) -> list[Piece]:
    return plan.pieces(lambda name, count: max(0, cut["lanes"].get(name or "", 0)), devices=max(1, cut["devices"]))


def taken_up(
    run: Directory,
    folders: Sequence[Path],
    settings: Sequence[Any],
    tasks: Sequence[Callable[[Directory], T]],
    about: Mapping[str, Any] | None = None,
) -> list[T]:
    """Runs every task in a run directory of its own, whoever else is at them; waits for those that others hold.

    Args:
        run: whose parts they are.
        folders, settings: of the tasks' runs, as ``open_run`` takes them.
        about: further entries of their ``provenance.json``.
        tasks: what to do in them; one that is finished reads its result from there.

    Raises:
        Interrupted: after a signal.
    """
    found: dict[int, T] = {}
    while len(found) < len(tasks):
        before = len(found)
        for at in (at for at in range(len(tasks)) if at not in found):
            if run.stopping:
                raise Interrupted(f"interrupted with {len(found)} of {len(tasks)} parts done; all of it is saved")
            source = None if run.source is None else run.source / folders[at].relative_to(run.path)
            source = source if source is not None and (source / "run.sqlite").is_file() else None
            began = run.seconds
            try:
                with run.part(folders[at], settings[at], fork_of=source, **(about or {})) as part:
                    found[at] = tasks[at](part)
                run.stopping |= part.stopping
                if run.seconds - began > 0.1:  # not where it was only read
                    run.journal.set(seconds=run.seconds)
            except InUse:
                continue
        if len(found) == before:
            time.sleep(0.2)
    return [found[at] for at in range(len(tasks))]


def _axes(plan: Plan) -> list[Any]:
    return [[name, plain(list(values))] for name, values in plan.axes.items()]  # in their order, which JSON's keys lose


def _digest(plan: Plan) -> str:
    """Of all that the study draws from: starts, data and key."""
    parts = [checkpoint.tree_digest(tuple(drawn)) for drawn in plan.draws]
    parts += [checkpoint.tree_digest((plan.data, plan.key)), str([group.steps for group in plan.groups])]
    parts += [str(np.asarray(group.record_at).tolist()) for group in plan.groups]
    return digest("\n".join(parts).encode())
