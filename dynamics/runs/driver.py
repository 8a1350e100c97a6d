"""The durable ``simulate``: same signature, in chunks; checkpoint, then one transaction, is the commit.

Chunks are sized by measured time and cut anywhere; all are padded to one compiled length, so neither their size nor an
interruption changes a bit of the state or of a reading. On several processes (``jax.distributed``) the first decides
and writes, and all of them compute.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.core import Tracer

from dynamics.evolve import LaneState
from dynamics.evolve.simulate import Call, Carry, advance, prepare, times
from dynamics.runs import checkpoint, hosts
from dynamics.runs.errors import Interrupted, Unusable
from dynamics.runs.files import pack
from dynamics.runs.journal import header_text
from dynamics.runs.pacing import Pace, Piece
from dynamics.runs.resume import Held, joined, resume
from dynamics.types import Dynamics, PyTree, Record

if TYPE_CHECKING:
    from dynamics.runs.directory import Run


def durable_simulate(
    run: Run,
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
        raise ValueError("simulate: a durable run cannot stand inside jit or vmap; map lanes with run.study instead")
    call = prepare(dynamics, params, data, old, train, test, steps, record_at, key, stop, state)
    return journalled(run, call, run.enter(label), {"dt": np.asarray(dynamics.dt).tolist()})


def journalled(run: Run, call: Call, label: str, about: dict[str, Any]) -> tuple[PyTree, Record]:
    """A checked call under a label that the run has entered.

    Args:
        about: what its header says beside steps and inputs: ``dt``, and of lanes ``axes`` and ``cells``.
    """
    state, data, targets = call.state, call.data, call.targets
    header = {
        "steps": call.steps,
        "record_at": targets.tolist(),
        "inputs": checkpoint.tree_digest((state, call.key, data)),
        **about,
    }
    hosts.same(f"{label!r}: start, key, data or steps", header_text(header))
    template = jax.eval_shape(lambda s, d: call._replace(state=s, data=d).start(), state, data)
    template = template._replace(state=jax.tree.map(_with_sharding, template.state, state))
    hyper = _hyper(state) if label in run.inherited else {}
    held = hosts.together(lambda: resume(run, label, header, template, hyper), Held.to_bytes, Held.from_bytes)
    progress = _Call(run, label, targets, held)
    carry = call.start() if held.carry is None else checkpoint.placed(held.carry, template)
    if not held.last:
        hosts.together(lambda: _require_space(run, carry))
        carry = progress.drive(lambda c, p: advance(call, c, *p), carry, call.steps)
    values = progress.values()
    if call.dynamics.objective_at is not None:
        run.journal.set(frozen=sorted({*run.journal.get("frozen", []), label}))
    run.diverged(label, _diverged(call.dynamics, carry, targets, values, about.get("cells")))
    return carry.state, Record(targets, times(call.dynamics.dt, targets), values)


class _Call:
    """One call of simulate: its rows so far and what is not yet committed."""

    def __init__(self, run: Run, label: str, targets: np.ndarray, held: Held):
        self.run, self.label, self.targets, self.link = run, label, targets, held.link
        self.committed = list(held.rows)  # each {"step": [n], name: [n, ...]}
        self.kept = held.kept
        self.fresh: list[dict[str, np.ndarray]] = []

    def drive(self, move: Callable[[Carry, Piece], Any], carry: Carry, steps: int) -> Carry:
        """Moves ``carry`` to ``steps`` piece by piece, committing every few seconds."""
        now = int(carry.step)
        left = self.targets[sum(len(rows["step"]) for rows in self.committed) :]
        ends = left if len(left) and left[-1] == steps else np.append(left, np.int32(steps))
        count = len(left)
        pace = Pace()
        self.run.budget.expect(checkpoint.size(carry))
        with self.run.progress(self.label, steps, now) as bar:
            while True:
                began = time.perf_counter()
                piece = pace.piece(now, ends, count)
                carry, values = jax.block_until_ready(move(carry, piece))
                pace.learn(time.perf_counter() - began)
                self._keep(piece, values)
                reached = int(piece.targets[-1])
                passed = int(piece.read.sum())
                bar.update(reached - now)
                ends, count, now = ends[passed:], count - passed, reached
                last = count == 0 and now >= steps
                due, stopping = self._agree(pace, self.run.budget.due(time.perf_counter()))
                if last or due or stopping:
                    self.commit(carry, now, last)
                if last:
                    return carry
                if stopping:
                    raise Interrupted(f"interrupted in {self.label!r} at step {now} of {steps}; all of it is saved")

    def values(self) -> dict[str, np.ndarray]:
        """The readings of the whole call."""
        return joined([{k: v for k, v in rows.items() if k != "step"} for rows in self.committed])

    def _agree(self, pace: Pace, due: bool) -> tuple[bool, bool]:
        """Whether to commit, as the first process has it, and whether any was asked to stop; one pace for all."""
        told = hosts.gathered([pace.steps, pace.reads, due, self.run.stopping])
        pace.steps, pace.reads = int(told[0, 0]), int(told[0, 1])
        return bool(told[0, 2]), bool(told[:, 3].any())

    def _keep(self, piece: Piece, values: dict[str, Any]) -> None:
        rows = {name: checkpoint.to_host(value)[piece.read] for name, value in values.items()}
        self.fresh.append({"step": piece.targets[piece.read], **rows})
        self.run.track(self.label, Record(self.fresh[-1]["step"], self.fresh[-1]["step"], rows))

    def commit(self, carry: Carry, now: int, last: bool) -> None:
        """Checkpoint, then one transaction; then the checkpoint before the last one may go."""
        began = time.perf_counter()
        rows, arrays = joined(self.fresh), checkpoint.host_arrays(carry)
        self.link = hosts.together(lambda: self._write(arrays, rows, now, last))
        self.committed.append(rows)
        self.fresh = []
        self.run.budget.committed(began, time.perf_counter())

    def _write(self, arrays: dict[str, np.ndarray], rows: dict[str, np.ndarray], now: int, last: bool) -> str:
        folder, number = self.run.checkpoints, len(self.committed)
        state = checkpoint.save(folder, self.label, number, arrays)
        link = self.run.journal.commit(self.label, number, now, last, state, pack(rows), self.link)
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


def _require_space(run: Run, carry: Carry) -> None:
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
