"""A sweep over settings that are no axis: each cell is a run of its own, and all of them are one run.

To everything else a sweep is a run: its ``run`` takes up the cells, each in a run directory in ``cells/``, and returns
their records on the swept axes; its claims say in how many cells each of theirs holds; its figure is a phase diagram.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from dynamics.evolve.merge import merged
from dynamics.extras import MissingExtra
from dynamics.runs.durable.directory import Directory
from dynamics.runs.durable.errors import RunError, Unusable
from dynamics.runs.durable.files import plain
from dynamics.runs.durable.load import LoadedRun, load
from dynamics.runs.durable.study import taken_up
from dynamics.runs.report.outcome import run_to_the_end
from dynamics.runs.sweep.phase import chosen, phase_diagram
from dynamics.runs.sweep.specs import MAX_CELLS, cell_config, cell_of
from dynamics.types import Claim, Record

SWEEP = "sweep"
"""The entry of a run's settings that makes it a sweep."""
ABOUT = ("experiment", "module", "source", "description", "preset", "device", "command")
"""What a cell knows of its sweep."""
CLAIMS = "claims"
"""The record of what the cells' claims have measured."""


class Swept(NamedTuple):
    """An experiment's module under a sweep, with the functions of one.

    Attributes:
        module: whose cells they are.
        config: the settings that the cells share.
        values: ``{field: values}``, the last field fastest.
        show: the reading to draw, or None.
    """

    module: ModuleType
    config: Any
    values: dict[str, list]
    show: str | None = None

    def run(self, config: Mapping[str, Any], run: Directory) -> Result:
        """Every cell as a run of its own, taken up by whoever is there."""
        count = math.prod(len(held) for held in self.values.values())
        folders = [run.path / "cells" / f"{cell:06d}" for cell in range(count)]
        settings = [plain(cell_config(self.config, self.values, cell)) for cell in range(count)]
        tasks = [partial(self._cell, cell) for cell in range(count)]
        known = run.journal.get("provenance")
        about = {key: known.get(key) for key in ABOUT}
        errors = taken_up(run, folders, settings, tasks, about)
        failed = {cell: error for cell, error in enumerate(errors) if error}
        loaded = {cell: load(folders[cell]) for cell in range(count) if cell not in failed}
        if not loaded:
            raise RuntimeError(f"all {count} cells failed, the first with: {next(iter(failed.values()))}")
        result = self._result(loaded, failed)
        for label, record in result.records.items():
            header = {
                "axes": [[name, plain(held)] for name, held in record.axes.items()],
                "pieces": len(loaded),
                "inputs": str(failed),
            }
            run.store(run.enter(label), header, record)
            run.diverged(label, _diverged(loaded, label, count))
        return result

    def stored(self, path: Path) -> Result:
        """The cells of the finished sweep at ``path``, as they lie there."""
        count = math.prod(len(held) for held in self.values.values())
        found = {cell: load(path / "cells" / f"{cell:06d}") for cell in range(count)}
        over = {cell: cell_run for cell, cell_run in found.items() if cell_run.status in ("finished", "diverged")}
        if not over:
            raise Unusable(f"{path}: none of its {count} cells ran to its end")
        return self._result(over, {cell: f"is {run.status}" for cell, run in found.items() if cell not in over})

    def _result(self, cells: dict[int, LoadedRun], failed: dict[int, str]) -> Result:
        return Result(self, cells, failed, _records(cells, self.values))

    def _cell(self, cell: int, part: Directory) -> str:
        """Runs a cell to its end in its own directory; returns what went wrong, or nothing."""
        if part.finished and not part.changed:
            return ""
        try:
            run_to_the_end(self.module, cell_config(self.config, self.values, cell), part)
        except (MissingExtra, RunError):
            raise
        except Exception as error:
            sentence = f"{type(error).__name__}: {error}"
            print(f"failed: cell {cell_of(self.values, cell)}: {sentence}", file=sys.stderr, flush=True)
            return sentence
        return ""

    def claims(self, result: Result) -> list[Claim]:
        """Each claim of the cells: in how many it holds, and the cell that is worst."""
        found: dict[str, list[tuple[int, Claim]]] = {}
        for cell, loaded in result.cells.items():
            for claim in loaded.claims:
                found.setdefault(claim.name, []).append((cell, claim))
        out = [self._claim(name, held) for name, held in found.items()]
        if result.failed:
            first, error = next(iter(result.failed.items()))
            note = f"{len(result.failed)} failed, first {cell_of(self.values, first)}: {error}"
            out.append(Claim("cells that ran to their end", "", len(result.cells), None, None, False, note))
        return out

    def _claim(self, name: str, held: list[tuple[int, Claim]]) -> Claim:
        tested = [(cell, claim) for cell, claim in held if claim.holds is not None]
        if not tested:
            return Claim.not_applicable(name, held[0][1].source, f"in none of {len(held)} cells")
        failing = [cell for cell, claim in tested if not claim.holds]
        words = f"{len(tested) - len(failing)} of {len(tested)} cells"
        note = f"fails in {cell_of(self.values, failing[0])}" if failing else ""
        note += f" and {len(failing) - 1} more" if len(failing) > 1 else ""
        return Claim(name, held[0][1].source, words, "all cells", None, not failing, note)

    def figure(self, result: Result) -> Any:
        label, reading = chosen(result.records, self.show)
        return phase_diagram(result.records[label], reading, list(self.values))


class Result(NamedTuple):
    """The cells that ran, by number; what went wrong in the others; and the records on the swept axes."""

    swept: Swept
    cells: dict[int, LoadedRun]
    failed: dict[int, str]
    records: dict[str, Record]


def _records(loaded: dict[int, LoadedRun], values: dict[str, list]) -> dict[str, Record]:
    """The cells' records as one a label, swept axes first; where all have the same axes of their own, these follow."""
    records = {}
    for label in dict.fromkeys(label for cell in loaded.values() for label in cell.records):
        own = {cell: run.records[label] for cell, run in loaded.items() if label in run.records}
        axes = [{name: list(held) for name, held in record.axes.items()} for record in own.values()]
        same = all(held == axes[0] for held in axes) and not axes[0].keys() & values.keys()
        inner = axes[0] if same else {}
        lanes = math.prod(map(len, inner.values()))
        parts = [
            (cell * lanes + np.arange(lanes), np.ones(lanes), _flat(record, len(inner), lanes))
            for cell, record in own.items()
        ]
        whole = merged(parts, {**values, **inner})
        time = whole.values.pop("time")
        first = np.nanmax(time.reshape(len(time), math.prod(time.shape[1:])), axis=1)
        alike = np.isnan(time) | (time == first.reshape(-1, *(1,) * (time.ndim - 1)))
        records[label] = whole._replace(time=first if np.all(alike) else time)
    return {**records, CLAIMS: _measured(loaded, values)}


def _diverged(loaded: dict[int, LoadedRun], label: str, count: int) -> dict[str, Any]:
    """The diverged lanes of the cells, numbered over ``count`` cells; nothing where there are none."""
    lost: dict[str, Any] = {"lanes": [], "of": 0, "first_step": []}
    for cell, run in loaded.items():
        held = run.diverged.get(label)
        if held:
            lost["lanes"] += [cell * held["of"] + lane for lane in held["lanes"]]
            lost["of"] = count * held["of"]
            lost["first_step"] += held["first_step"]
    return lost if lost["lanes"] else {}


def _measured(loaded: dict[int, LoadedRun], values: dict[str, list]) -> Record:
    """What the cells' claims have measured, ``[1, *swept]``; NaN where that is no number."""
    shape = tuple(len(held) for held in values.values())
    found: dict[str, np.ndarray] = {}
    for cell, run in loaded.items():
        for claim in run.claims:
            if isinstance(claim.measured, (int, float)):
                found.setdefault(claim.name, np.full((1, *shape), np.nan)).flat[cell] = claim.measured
    return Record(np.zeros(1, int), np.zeros(1), found, {name: np.asarray(held) for name, held in values.items()})


def _flat(record: Record, depth: int, lanes: int) -> Record:
    """A cell's readings, its ``depth`` axes as one of ``lanes``, with its time as a reading."""

    def flat(value: Any) -> np.ndarray:
        array = np.asarray(value)
        return array.reshape(len(array), lanes, *array.shape[1 + depth :])

    time = np.asarray(record.time)
    time = np.repeat(time[:, None], lanes, axis=1) if time.ndim == 1 else flat(time)
    return Record(record.step, None, {"time": time, **{name: flat(value) for name, value in record.values.items()}})


def program(module: ModuleType, config: Any, values: dict[str, list], show: str | None = None) -> tuple[Any, Any]:
    """What is run, and its settings as they are stored: the module and its Config, or a sweep of it."""
    if not values:
        return module, config
    if math.prod(map(len, values.values())) > MAX_CELLS:
        raise Unusable(f"sweep: got {math.prod(map(len, values.values()))} cells; allowed: at most {MAX_CELLS}")
    shared = {name: value for name, value in plain(config).items() if name not in values}
    return Swept(module, config, values, show), {**shared, SWEEP: values}


def program_of(module: ModuleType, held: Mapping[str, Any]) -> tuple[Any, Any]:
    """What ran with stored settings, and these: a module and its Config, or a sweep of it."""
    return program(module, stored_config(module.Config, held), held.get(SWEEP, {}))


def stored_config(cls: type, held: Mapping[str, Any]) -> Any:
    """The Config in stored settings; of a sweep, that of its first cell.

    Raises:
        Unusable: when the class has changed since and no longer takes it.
    """
    try:
        first = {name: values[0] for name, values in held.get(SWEEP, {}).items()}
        settings = {name: value for name, value in {**held, **first}.items() if name != SWEEP}
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()})
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise Unusable(f"config.json: no longer fits {cls.__module__}.Config: {error}") from error
