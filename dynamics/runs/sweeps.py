"""Sweeps in a folder of runs: glance, show, compare, repeat. Loads no JAX to glance."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from dynamics.runs.files import unsealed
from dynamics.runs.lock import holder

if TYPE_CHECKING:
    from dynamics.runs.grid import Grid


def is_sweep(path: Path) -> bool:
    """Whether a folder holds a sweep rather than a run."""
    return (path / "grid.json").is_file()


def glance(path: Path) -> tuple[str, str]:
    """``(status, "done/all cells")`` from the names of the results; their digests are checked when they are read."""
    try:
        swept = unsealed((path / "grid.json").read_bytes())["swept"]
        names = set(os.listdir(path / "chunks"))
        divided = (path / "chunks.json").exists()
        chunks = unsealed((path / "chunks.json").read_bytes())["chunks"] if divided else []
    except (OSError, ValueError, KeyError):
        return "damaged", ""
    waiting = [number for number, *_ in chunks if f"{number:06d}.cells" not in names]
    done = sum(last - first for number, first, last in chunks if number not in waiting)
    cells = math.prod(len(values) for values in swept.values())
    if done == cells:
        status = "finished"
    elif any(holder(path / "chunks" / f"{number:06d}.lock") for number in waiting):
        status = "running"
    else:
        failed = bool(waiting) and all(f"{number:06d}.failed.json" in names for number in waiting)
        status = "failed" if failed else "interrupted"
    return status, f"{done}/{cells} cells"


def print_show(path: Path) -> int:
    """Prints one sweep: status, settings, swept fields, readings, failures."""
    from dynamics.runs.grid import load_grid
    from dynamics.runs.phase import summary

    grid = load_grid(path)
    print(f"{path}: {glance(path)[0]}")
    for name, value in grid.config.items():
        print(f"  {name} = {f'swept over {grid.swept[name]}' if name in grid.swept else value}")
    for name, value in grid.readings.items():
        print(f"{name}{list(value.shape)}")
    print(summary(grid, None))
    return 0


def differences(mine: Grid, theirs: Grid) -> list[str]:
    """One line a reading: the same bits, or how far apart it is."""
    import numpy as np

    if mine.swept != theirs.swept or mine.readings.keys() != theirs.readings.keys():
        return ["other cells or readings"]
    lines = []
    for name, value in mine.readings.items():
        other = theirs.readings[name]
        if value.shape != other.shape:
            lines.append(f"{name}: other steps")
        elif np.array_equal(value, other, equal_nan=True):
            lines.append(f"{name}: the same bits")
        else:
            with np.errstate(all="ignore"):
                far = float(np.nanmax(np.abs(value - other), initial=0.0))
            lines.append(f"{name}: differs by at most {far:.3g}")
    return lines


def repeat(path: Path) -> int:
    """Computes a sweep again from its directory alone, beside it, and reports the difference.

    Returns:
        0 when every reading has the same bits, 5 when not, 1 when cells fail.
    """
    from dynamics.runs.grid import begin, load_grid
    from dynamics.runs.worker import work

    spec = unsealed((path / "grid.json").read_bytes())
    twin = path.parent / f"{path.name[:93]}.repeat"
    begin(twin, spec)
    code = work(twin, quiet=False)
    lines = differences(load_grid(path), load_grid(twin))
    print("\n".join(lines))
    return code or (0 if all(line.endswith("the same bits") for line in lines) else 5)
