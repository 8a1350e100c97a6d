"""A sweep on disk: its cells grouped by shape, cut into chunks, and the results that are there.

A chunk is one compiled program over many cells; whoever holds its lock computes it (``worker``) and writes its result
in one piece.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from dynamics.runs.cells import cell_config, chosen_of, parse_sweep
from dynamics.runs.errors import Unusable
from dynamics.runs.files import json_text, plain, sealed, unpack, unsealed, write_bytes

CHUNK_CELLS = 256
FORMAT = 1  # of the files of a sweep


class Chunk(NamedTuple):
    """Cells ``first`` to ``last`` (excluded) of the order in which they are computed."""

    number: int
    first: int
    last: int


class Grid(NamedTuple):
    """A sweep as it stands on disk.

    Attributes:
        path: its directory.
        config: the settings that its cells share.
        swept: ``{field: values}``, in the order of the flags; cells are their product, the last field fastest.
        cells: how many there are; ``done`` of them have results.
        done: see ``cells``.
        readings: ``{name: [cells, T, ...]}``, NaN where there is no result (yet).
        step: ``[cells, T]`` recorded steps, -1 where there is none.
        failures: ``{chunk: text}`` of chunks that raised.
    """

    path: Path
    config: dict[str, Any]
    swept: dict[str, list]
    cells: int
    done: int
    readings: dict[str, np.ndarray]
    step: np.ndarray
    failures: dict[int, str]


def plan(module: ModuleType, config: Any, specs: tuple[str, ...], about: dict[str, Any]) -> dict[str, Any]:
    """What a sweep is, as the JSON object that every worker reads; checks every cell's settings on the host.

    Raises:
        BadInput: when a cell's settings are not allowed, naming the field and the value.
    """
    swept = parse_sweep(type(config), specs)
    for cell in range(math.prod(len(values) for values in swept.values())):
        cell_config(config, swept, cell)
    return {**about, "config": plain(config), "swept": swept, "schema": FORMAT}


def begin(path: Path, spec: dict[str, Any]) -> None:
    """Makes the sweep's directory, or checks that it holds the same sweep.

    Raises:
        Unusable: when it holds another one, or cannot be written.
    """
    try:
        (path / "chunks").mkdir(parents=True, exist_ok=True)
        if (path / "grid.json").exists():
            held = unsealed((path / "grid.json").read_bytes())
            changed = [key for key in ("module", "config", "swept", "x64") if held.get(key) != plain(spec)[key]]
            if changed:
                raise Unusable(f"{path}: holds a sweep with another {', '.join(changed)}; use another --name")
            return
        write_bytes(path / "grid.json", sealed(spec))
        write_bytes(path / "config.json", json_text({**spec["config"], "sweep": spec["swept"]}).encode())
    except OSError as error:
        raise Unusable(f"{path}: cannot be written: {error.strerror}") from error
    except ValueError as error:
        raise Unusable(f"{path / 'grid.json'} is damaged: {error}") from error


class Sweep:
    """A sweep's directory as a worker sees it: cells in the order of computation, cut into chunks."""

    def __init__(self, path: Path) -> None:
        try:
            self.spec = unsealed((path / "grid.json").read_bytes())
        except (OSError, ValueError) as error:
            raise Unusable(f"{path}: no sweep here: {error}") from error
        if self.spec.get("schema", FORMAT) > FORMAT:
            raise Unusable(f"{path}: has format {self.spec['schema']}, and this version reads up to {FORMAT}")
        self.path = path
        self.swept: dict[str, list] = self.spec["swept"]
        self.cells = math.prod(len(values) for values in self.swept.values())
        self.module: ModuleType | None = None
        self.order: list[int] = []
        self.chunks: list[Chunk] = []

    def open(self) -> None:
        """The cells in chunks: read, or, by the first worker, made."""
        try:
            held = unsealed((self.path / "chunks.json").read_bytes())
        except FileNotFoundError:
            self._divide()
            written = {"chunks": [list(chunk) for chunk in self.chunks], "order": self.order}
            write_bytes(self.path / "chunks.json", sealed(written))
        except ValueError as error:
            raise Unusable(f"{self.path / 'chunks.json'}: {error}; delete it to have it made again") from error
        else:
            self.chunks, self.order = [Chunk(*chunk) for chunk in held["chunks"]], held["order"]

    def experiment(self) -> tuple[ModuleType, Any]:
        """The experiment's module and base settings; imports it on first use."""
        if self.module is None:
            from dynamics.runs import cli

            cli.set_up_jax(self.spec["x64"], self.spec.get("device"))
            self.module = cli.module_named(self.spec["module"])
            self.config = cli.config_from(self.module.Config, self.spec["config"])
        return self.module, self.config

    def _divide(self) -> None:
        """Orders the cells so that those of one shape lie side by side, and cuts the shapes into chunks."""
        module, config = self.experiment()
        offers = getattr(module, "program", None)
        traced = {*offers(cell_config(config, self.swept, 0)).fields, "seed"} if offers else set()
        groups: dict[tuple, list[int]] = {}
        for cell in range(self.cells):
            chosen = chosen_of(self.swept, cell)
            shape = tuple(value for field, value in chosen.items() if field not in traced)
            groups.setdefault(shape if offers else (cell,), []).append(cell)
        for members in groups.values():
            size = min(CHUNK_CELLS, len(members))
            for at in range(0, len(members), size):
                first, count = len(self.order), len(members[at : at + size])
                self.chunks.append(Chunk(len(self.chunks), first, first + count))
                self.order += members[at : at + size]

    def result(self, number: int) -> Path:
        return self.path / "chunks" / f"{number:06d}.cells"

    def failure(self, number: int) -> Path:
        return self.path / "chunks" / f"{number:06d}.failed.json"


def load_grid(path: str | Path) -> Grid:
    """Reads a sweep, also while workers write to it.

    Raises:
        Unusable: when there is none.
    """
    sweep = Sweep(Path(path))
    parts = []
    for file in sorted((sweep.path / "chunks").glob("*.cells")):
        with contextlib.suppress(ValueError):
            parts.append(unpack(file.read_bytes()))
    shapes: dict[str, Any] = {"step": (0,)}
    for part in parts:
        for name, value in part.items():
            shapes[name] = tuple(np.maximum(shapes.get(name, value.shape[1:]), value.shape[1:]))
    step = np.full((sweep.cells, *shapes.pop("step")), -1)
    shapes.pop("cell", None)
    readings = {name: np.full((sweep.cells, *shape), np.nan) for name, shape in shapes.items()}
    for part in parts:
        cells, steps = part.pop("cell"), part.pop("step")
        step[cells, : steps.shape[1]] = steps
        for name, value in part.items():
            corner = tuple(slice(0, length) for length in value.shape[1:])
            readings[name][(cells, *corner)] = value
    failures = {
        int(file.name[:6]): json.loads(file.read_text())["error"]
        for file in sorted((sweep.path / "chunks").glob("*.failed.json"))
    }
    done = int(np.sum(np.any(step >= 0, axis=1)))
    return Grid(sweep.path, sweep.spec["config"], sweep.swept, sweep.cells, done, readings, step, failures)


def sound(file: Path) -> bool:
    """Whether a chunk's result is there and undamaged; a damaged one is removed and said."""
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return False
    try:
        unpack(data)
    except ValueError as error:
        print(f"warning: {file}: {error}; computing it again", file=sys.stderr)
        file.unlink(missing_ok=True)
        return False
    return True
