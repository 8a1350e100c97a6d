"""The durable ``simulate``: same signature, in chunks; checkpoint, then one transaction, is the commit.

Chunks are sized by measured time and cut anywhere; all are padded to one compiled length, so neither their size nor an
interruption changes a bit of the state or of a reading. On several processes (``jax.distributed``) the first decides
and writes, and all of them compute.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from dynamics.evolve import LaneState
from dynamics.evolve.simulate import Call, Carry, advance, prepare, times
from dynamics.runs.durable import checkpoint, hosts
from dynamics.runs.durable.directory import Directory
from dynamics.runs.durable.errors import Interrupted, Unusable
from dynamics.runs.durable.journal import header_text
from dynamics.runs.durable.pacing import Pace
from dynamics.runs.durable.program import traced
from dynamics.runs.durable.resume import Held, joined, resume
from dynamics.runs.trackers import short
from dynamics.types import Dynamics, PyTree, Record


def durable_simulate(
    run: Directory,
    dynamics: Dynamics,
    params: PyTree,
    data: Any,
    *old: Any,
    train: Any = (),
    test: Any = (),
    steps: int | None = None,
    record_at: Any = None,
    key: Any = None,
    stop: Callable[..., Any] | None = None,
    state: PyTree = None,
    label: str | None = None,
) -> tuple[PyTree, Record]:
    """``evolve.simulate`` that commits as it goes and continues from what is committed.

    Args:
        run: the open run directory; the rest as in ``evolve.simulate``.
        label: the name of this call in the run, distinct from its other calls; by default its number.

    Raises:
        Interrupted: after a signal, with everything so far committed.
        Unusable: when what is stored belongs to another start, key, data or shape, or the disk refuses.
        ValueError: for a label used twice, or a call under ``jit`` or ``vmap`` (map with ``study`` instead).
    """
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((params, state, data, key))):
        raise ValueError("simulate: got a durable run inside jit or vmap; allowed: run.study, which maps lanes")
    call = prepare(dynamics, params, data, old, train, test, steps, record_at, key, stop, state)
    return journalled(run, call, run.enter(label), {"dt": np.asarray(dynamics.dt).tolist()})


def journalled(run: Directory, call: Call, label: str, about: Mapping[str, Any]) -> tuple[PyTree, Record]:
    """A checked call under a label that the run has entered.

    Args:
        about: what its header says beside steps, inputs and program: ``dt``, and of lanes ``axes`` and ``cells``.
    """
    targets = call.targets
    program, template = traced(call)
    header = {
        "steps": call.steps,
        "record_at": targets.tolist(),
        "inputs": checkpoint.tree_digest((call.state, call.key, call.data)),
        "program": program,
        **about,
    }
    hosts.same(f"{label!r}: start, key, data, steps or program", header_text(header))
    template = template._replace(state=jax.tree.map(_with_sharding, template.state, call.state))
    hyper = _hyper(call.state) if label in run.inherited else {}
    held = hosts.together(lambda: resume(run, label, header, template, hyper), Held.to_bytes, Held.from_bytes)
    carry = call.start() if held.carry is None else checkpoint.placed(held.carry, template)
    written = _Written(run, label, held, lane_names(about))
    if not held.last:
        hosts.together(lambda: _require_space(run, carry))
        carry = written.drive(call, carry)
    values = {name: value for name, value in joined(written.rows).items() if name != "step"}
    if call.dynamics.objective_at is not None:
        run.journal.set(frozen=sorted({*run.journal.get("frozen", []), label}))
    run.diverged(label, _diverged(call.dynamics, carry, targets, values, about.get("cells")))
    return carry.state, Record(targets, times(call.dynamics.dt, targets), values)


def paced(call: Call, carry: Carry, targets: np.ndarray, pace: Pace) -> Iterator[tuple[Carry, dict, int, bool]]:
    """A call from a carry to its end, in pieces of about half a second: the only loop that sees its own time.

    Args:
        targets: the recorded steps that are left.
        pace: how much a piece may hold.

    Yields:
        ``(carry, {"step": [n], reading: [n, ...]}, step reached, whether it is the last)`` after each piece.
    """
    now, count, last = int(carry.step), len(targets), False
    ends = targets if count and targets[-1] == call.steps else np.append(targets, np.int32(call.steps))
    while not last:
        began = time.perf_counter()
        piece = pace.piece(now, ends, count)
        carry, values = jax.block_until_ready(advance(call, carry, piece.targets, piece.read))
        pace.learn(time.perf_counter() - began)
        now, passed = int(piece.targets[-1]), int(piece.read.sum())
        ends, count = ends[passed:], count - passed
        last = count == 0 and now >= call.steps
        rows = {name: checkpoint.to_host(value)[piece.read] for name, value in values.items()}
        yield carry, {"step": piece.targets[piece.read], **rows}, now, last


def lane_names(about: Mapping[str, Any]) -> list[str] | None:
    """What the lanes of a study are called, ``eta=0.1 seed=2``; None for a single run."""
    if "cells" not in about:
        return None
    axes = about["axes"]
    places = np.unravel_index(np.asarray(about["cells"], int), [len(values) for _, values in axes])
    words = [[f"{name}={short(value)}" for value in values] for name, values in axes]
    return [" ".join(word[at] for word, at in zip(words, place)) for place in zip(*places)] or [""]


class _Written:
    """What is written of a call: its rows so far, and what is not yet committed."""

    def __init__(self, run: Directory, label: str, held: Held, lanes: list[str] | None):
        self.run, self.label, self.link, self.lanes = run, label, held.link, lanes
        self.rows, self.kept = list(held.rows), held.kept  # committed, each {"step": [n], name: [n, ...]}
        self.fresh: list[dict[str, np.ndarray]] = []

    def drive(self, call: Call, carry: Carry) -> Carry:
        """Moves ``carry`` to the end of the call, committing every few seconds."""
        run, pace, now = self.run, Pace(), int(carry.step)
        left = call.targets[sum(len(rows["step"]) for rows in self.rows) :]
        run.budget.expect(checkpoint.size(carry))
        with run.progress(self.label, call.steps, now) as tell:
            for moved, rows, reached, last in paced(call, carry, left, pace):
                carry = moved
                self.keep(rows)
                tell(reached)
                now = reached
                due, stopping = self._agree(pace, run.budget.due(time.perf_counter()))
                if last or due or stopping:
                    self.commit(carry, now, last)
                if stopping and not last:
                    raise Interrupted(
                        f"interrupted in {self.label!r} at step {now} of {call.steps}; all of it is saved"
                    )
        return carry

    def keep(self, rows: dict[str, np.ndarray]) -> None:
        self.fresh.append(rows)
        readings = {name: value for name, value in rows.items() if name != "step"}
        self.run.track(self.label, Record(rows["step"], rows["step"], readings), self.lanes)

    def commit(self, carry: Carry, now: int, last: bool) -> None:
        """Checkpoint, then one transaction; then the checkpoint before the last one may go."""
        began = time.perf_counter()
        rows, arrays = joined(self.fresh), checkpoint.host_arrays(carry)
        self.link = hosts.together(lambda: self._write(arrays, rows, now, last))
        self.rows.append(rows)
        self.fresh = []
        self.run.budget.committed(began, time.perf_counter())

    def _agree(self, pace: Pace, due: bool) -> tuple[bool, bool]:
        """Whether to commit, as the first process has it, and whether any was asked to stop; one pace for all."""
        told = hosts.gathered([pace.steps, pace.reads, due, self.run.stopping])
        pace.steps, pace.reads = int(told[0, 0]), int(told[0, 1])
        return bool(told[0, 2]), bool(told[:, 3].any())

    def _write(self, arrays: dict[str, np.ndarray], rows: dict[str, np.ndarray], now: int, last: bool) -> str:
        folder, number = self.run.checkpoints, len(self.rows)
        state = checkpoint.save(folder, self.label, number, arrays)
        link = self.run.commit(self.label, number, now, last, state, rows, self.link)
        self.kept = [*self.kept, checkpoint.path_of(folder, self.label, number, state)][-checkpoint.KEEP :]
        checkpoint.prune(folder, self.label, self.kept)
        return link


def _hyper(state: PyTree) -> dict[str, np.ndarray]:
    """The settings of lanes, on the host, by their paths in the carry."""
    if not isinstance(state, LaneState):
        return {}
    return {f".state.hyper{path}": value for path, value in checkpoint.host_arrays(state.hyper).items()}


def _with_sharding(struct: jax.ShapeDtypeStruct, leaf: Any) -> Any:
    sharding = getattr(leaf, "sharding", None)
    return struct if sharding is None else jax.ShapeDtypeStruct(struct.shape, struct.dtype, sharding=sharding)


def _require_space(run: Directory, carry: Carry) -> None:
    """Refuses before computing when the disk cannot hold the checkpoints to come."""
    needed = (checkpoint.KEEP + 1) * checkpoint.size(carry) + 2**16
    free = shutil.disk_usage(run.path).free
    if free < needed:
        raise Unusable(f"{run.path}: the disk has {free} bytes free and the checkpoints need {needed}; nothing was run")


def _diverged(
    dynamics: Dynamics, carry: Carry, targets: np.ndarray, values: dict[str, np.ndarray], cells: list[int] | None
) -> dict[str, Any]:
    """Lanes whose parameters or readings left the finite numbers, and the first recorded step at which they had.

    Args:
        cells: of a study the lanes' cells, by which they are then named; lanes beyond them fill up.
    """
    lanes = len(carry.state.lane) if isinstance(carry.state, LaneState) else None
    count = lanes or 1

    def by_lane(leaf: Any, axis: int) -> np.ndarray:  # [..., lanes, ...] -> [.., lanes, rest]
        array = checkpoint.to_host(leaf)
        return array.reshape((*array.shape[:axis], count, -1))

    finite = np.ones(count, bool)
    for leaf in jax.tree.leaves(dynamics.params(carry.state)):
        if np.issubdtype(getattr(leaf, "dtype", np.dtype(int)), np.inexact) and np.size(leaf):
            finite &= np.isfinite(by_lane(leaf, 0)).all(-1)
    first = np.full(count, -1)
    for value in values.values():
        fits = lanes is None or value.shape[1:2] == (lanes,)
        if len(targets) and value.size and fits and np.issubdtype(value.dtype, np.inexact):
            wrong = by_lane(value, 1)
            unknown = (wrong == np.inf) & (targets == 0)[:, None, None]  # the loss of ``descent`` before any update
            finite &= ~(np.isinf(wrong) & ~unknown).any(-1).any(0)
            bad = ~(np.isfinite(wrong) | unknown).all(-1)  # [T, lanes]
            at = np.where(bad.any(0), targets[bad.argmax(0)], -1)
            first = np.where((first < 0) | ((at >= 0) & (at < first)), at, first)
    names = np.arange(count) if cells is None else np.array(cells)
    lost = np.flatnonzero(~finite[: len(names)])
    return {"lanes": names[lost].tolist(), "of": len(names), "first_step": first[lost].tolist()} if len(lost) else {}
