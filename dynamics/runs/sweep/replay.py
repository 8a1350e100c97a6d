"""The Result of a stored run, from its journal: the experiment's ``run`` is called, and what it asks for is there."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dynamics.evolve.simulate import prepare
from dynamics.runs.durable import checkpoint
from dynamics.runs.durable.errors import RunError, Unusable
from dynamics.runs.durable.journal import Journal
from dynamics.runs.durable.load import LoadedRun, load
from dynamics.runs.durable.provenance import code_digest
from dynamics.runs.report.outcome import call
from dynamics.runs.sweep.cells import Swept, program_of
from dynamics.runs.sweep.module import module_of
from dynamics.types import Record


class Replayed(NamedTuple):
    """A stored run as its experiment sees it.

    Attributes:
        module: the experiment's module, or a sweep of it: ``module.figure(result)``, ``module.claims(result)``.
        result: what ``module.run`` returned of the stored records.
        run: the run as it stands on disk.
        changed: whether the experiment's source is another one than when the run was begun.
    """

    module: ModuleType | Swept
    result: Any
    run: LoadedRun
    changed: bool


class Stored:
    """The ``study`` and ``simulate`` of a stored run: each call is answered with what was recorded under its label."""

    def __init__(self, run: LoadedRun) -> None:
        self.run = run
        self._calls = 0

    def study(self, *arguments: Any, label: str | None = None, **options: Any) -> Record:
        """The study's record; nothing is drawn and nothing computed."""
        return self._record(label)[1]

    def simulate(self, *arguments: Any, label: str | None = None, **options: Any) -> tuple[Any, Record]:
        """The call's record, with its last state from the newest checkpoint; NaN where ``gc`` has taken that."""
        label, record = self._record(label)
        with contextlib.closing(Journal(self.run.path / "run.sqlite", readonly=True)) as journal:
            chunk = journal.chunks(label)[0][-1]
        carry = prepare(*arguments, **options).start()
        place = checkpoint.path_of(self.run.path / "checkpoints", label, chunk.number, chunk.state)
        try:
            carry = checkpoint.placed(checkpoint.load(place, chunk.state, carry), carry)
        except ValueError:
            carry = carry._replace(state=jax.tree.map(_unknown, carry.state))
        return carry.state, record

    def _record(self, label: str | None) -> tuple[str, Record]:
        label, self._calls = f"call-{self._calls}" if label is None else str(label), self._calls + 1
        if label not in self.run.records:
            held = ", ".join(map(repr, self.run.records)) or "none"
            raise Unusable(f"{self.run.path}: has no record {label!r}, which its experiment asks for; it has {held}")
        return label, self.run.records[label]


def _unknown(leaf: Any) -> Any:
    return jnp.full_like(leaf, jnp.nan) if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf


def replayed(path: str | Path, trust: bool = False) -> Replayed:
    """A finished run's module, Result and records; what its experiment computes beside its studies is computed again.

    Args:
        path: the run's directory.
        trust: run the code that it names, wherever that lies; see ``module_of``.

    Raises:
        Unusable: for a run that is not finished, code that must not be run, or code that has changed and no longer
            understands these records.
    """
    path = Path(path)
    run = load(path)
    if run.status not in ("finished", "diverged"):
        raise Unusable(f"{path}: is {run.status}; resume it first")
    own, about = module_of(path, run.provenance, trust)
    module, config = program_of(own, run.config)
    changed = about.get("code") not in (None, code_digest(about["module"]))
    try:
        with jax.enable_x64(True) if about["x64"] else contextlib.nullcontext():
            found = module.stored(path) if isinstance(module, Swept) else call(module.run, config, Stored(run))
    except RunError:
        raise
    except Exception as error:
        if not changed:
            raise
        raise Unusable(
            f"{path}: the source of its experiment has changed since, and no longer takes its records "
            f"({type(error).__name__}: {error})"
        ) from error
    return Replayed(module, found, run, changed)


def result(path: str | Path, trust: bool = False) -> Any:
    """The Result of a finished run, ``(config, records)``: measurement and theory by the names that its figure uses.

    Nothing is trained: the experiment's ``run`` is called, and each of its studies answered with what was recorded.
    Theories that it computes beside its studies, which ``load`` does not have, are computed again.

    Args:
        path: the run's directory.
        trust: run the code that it names also where that lies outside the current folder and is no module of
            ``experiments``.

    Returns:
        What the experiment's ``run`` returns.

    Raises:
        Unusable: when the run is not finished, or its code is not here, lies elsewhere, or has changed and no longer
            takes these records.

    Cost: reads the journal, and what ``run`` computes beside its studies.
    """
    return replayed(path, trust).result
