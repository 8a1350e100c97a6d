"""Workers of a sweep: any number of processes and hosts claim its open chunks over a shared folder.

A killed worker's lock frees itself, so its chunk is taken up again, and none is done twice.
"""

from __future__ import annotations

import contextlib
import math
import shlex
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from dynamics.runs.cells import cell_config, chosen_of, scalar
from dynamics.runs.errors import Interrupted, RunError, Unusable
from dynamics.runs.files import json_text, pack, write_bytes
from dynamics.runs.grid import Chunk, Sweep, load_grid, sound
from dynamics.runs.lock import Lock
from dynamics.runs.signals import on_stop


def work(path: Path, *, quiet: bool = True) -> int:
    """Takes up open chunks until none is left; any number of processes and hosts may do so on one folder.

    Returns:
        0 when every chunk has a result, 1 when some failed.

    Raises:
        Unusable: when the folder holds no sweep or cannot be written.
        Interrupted: after a signal; the chunk under way is lost, nothing else.
    """
    sweep = Sweep(Path(path))
    sweep.open()
    tried: set[int] = set()
    with on_stop(_interrupt), _bar(sweep, quiet) as show:
        while True:
            waiting = [chunk for chunk in sweep.chunks if not sound(sweep.result(chunk.number))]
            show(sweep.cells - sum(chunk.last - chunk.first for chunk in waiting))
            open_chunks = [chunk for chunk in waiting if chunk.number not in tried]
            if not open_chunks:
                return 1 if any(sweep.failure(chunk.number).exists() for chunk in waiting) else 0
            if not any([_attempt(sweep, chunk, tried, show) for chunk in open_chunks]):
                time.sleep(0.2)


def _attempt(sweep: Sweep, chunk: Chunk, tried: set[int], show: Any) -> bool:
    """Computes a chunk unless another worker holds or has finished it."""
    try:
        lock = Lock(sweep.path / "chunks" / f"{chunk.number:06d}.lock")
    except Unusable as error:
        if "in use" in str(error):
            return False
        raise
    try:
        if sound(sweep.result(chunk.number)):
            return True
        try:
            arrays = _compute(sweep, sweep.order[chunk.first : chunk.last])
        except RunError:
            raise
        except Exception as error:
            _fail(sweep, chunk, error)
            tried.add(chunk.number)
            return True
        try:
            write_bytes(sweep.result(chunk.number), pack(arrays))
        except OSError as error:
            raise Unusable(f"{sweep.path}: cannot be written: {error.strerror}; other results are intact") from error
        sweep.failure(chunk.number).unlink(missing_ok=True)
        show(None)
        return True
    finally:
        lock.close()


def _fail(sweep: Sweep, chunk: Chunk, error: Exception) -> None:
    """Says at once which cells failed, and keeps the traceback."""
    cells = sweep.order[chunk.first : chunk.last]
    first = chosen_of(sweep.swept, cells[0])
    more = f" and {len(cells) - 1} more cells of its shape" if len(cells) > 1 else ""
    sentence = f"{type(error).__name__}: {error}"
    print(f"failed: cell {first}{more}: {sentence}", file=sys.stderr, flush=True)
    text = {"cell": first, "cells": cells, "error": sentence, "traceback": traceback.format_exc()}
    write_bytes(sweep.failure(chunk.number), json_text(text).encode())


def _compute(sweep: Sweep, cells: list[int]) -> dict[str, np.ndarray]:
    """``{"cell": [n], "step": [n, T], reading: [n, T, ...]}`` of cells of one shape."""
    module, base = sweep.experiment()
    if not hasattr(module, "program"):
        return _compute_alone(module, cell_config(base, sweep.swept, cells[0]), cells[0])
    from dynamics.evolve import run_cells

    program = module.program(cell_config(base, sweep.swept, cells[0]))
    padded = cells + [cells[-1]] * (_padded(len(cells)) - len(cells))
    configs = [cell_config(base, sweep.swept, cell) for cell in padded]
    traced = {*program.fields, "seed"}
    hyper = {name: np.array([scalar(getattr(config, name)) for config in configs]) for name in traced}
    _, record = run_cells(program, hyper, place=_over_devices)
    step = np.tile(np.asarray(record.step), (len(cells), 1))
    values = {name: np.moveaxis(np.asarray(value), 1, 0)[: len(cells)] for name, value in record.values.items()}
    return {"cell": np.array(cells), "step": step, **values}


def _compute_alone(module: ModuleType, config: Any, cell: int) -> dict[str, np.ndarray]:
    """A whole experiment as one cell: what its claims measured, and the last readings of its records, averaged."""
    result = module.run(config)
    found: dict[str, float] = {}
    for claim in module.claims(result):
        if isinstance(claim.measured, (int, float)):
            found[f"claim: {claim.name}"] = float(claim.measured)
    for label, record in result.records.items():
        for name, value in record.values.items():
            if len(value) and np.issubdtype(np.asarray(value).dtype, np.number):
                found[f"{label}: {name}"] = float(np.mean(np.asarray(value)[-1]))
    readings = {name: np.array([[value]]) for name, value in found.items()}
    return {"cell": np.array([cell]), "step": np.array([[0]]), **readings}


def _padded(count: int) -> int:
    import jax

    devices = jax.local_device_count()
    return count if devices == 1 else math.ceil(count / devices) * devices


def _over_devices(state: Any) -> Any:
    """Shards every leaf's lane axis over the local devices."""
    import jax
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    devices = jax.local_devices()
    if len(devices) == 1:
        return state
    mesh = jax.make_mesh((len(devices),), ("lanes",), axis_types=(AxisType.Auto,), devices=devices)
    return jax.device_put(state, NamedSharding(mesh, PartitionSpec("lanes")))


def finish(path: Path, *, workers: int, show: str | None, quiet: bool, json: bool = False) -> int:
    """Works on a sweep with ``workers`` processes, then writes its figure and report; returns the exit code."""
    from dynamics.runs.phase import phase_diagram, summary

    command = [sys.executable, "-m", "dynamics.runs", "work", str(path)]
    helpers = [subprocess.Popen(command) for _ in range(workers - 1)]
    try:
        code = work(path, quiet=quiet)
    except Interrupted as error:
        raise Interrupted(f"{error}\nresume with the same command, or: python {shlex.join(command[1:])}") from error
    finally:
        for helper in helpers:
            helper.terminate()
            helper.wait()
    grid = load_grid(path)
    if grid.done:
        from dynamics.runs.figures import save_figure
        from dynamics.runs.report import write_report

        save_figure(phase_diagram(grid, show), path)
        write_report(path)
    if json:
        about = {"path": str(path), "swept": grid.swept, "cells": int(grid.cells), "done": int(grid.done)}
        print(json_text(about), end="")
    elif not quiet:
        print(summary(grid, show))
    return code


def _interrupt(number: int, frame: Any) -> None:
    """SIGTERM and Ctrl-C become ``Interrupted``."""
    raise Interrupted("interrupted; finished chunks are saved")


@contextlib.contextmanager
def _bar(sweep: Sweep, quiet: bool) -> Iterator[Any]:
    """A progress bar in cells, counting other workers' results too."""
    from tqdm.auto import tqdm

    interval = 0.2 if sys.stderr.isatty() else 10.0
    with tqdm(total=sweep.cells, desc="cells", unit="cell", disable=quiet, mininterval=interval) as bar:

        def show(done: int | None) -> None:
            if done is None:
                ready = {int(file.name[:6]) for file in (sweep.path / "chunks").glob("*.cells")}
                done = sum(chunk.last - chunk.first for chunk in sweep.chunks if chunk.number in ready)
            bar.update(done - bar.n)

        yield show
