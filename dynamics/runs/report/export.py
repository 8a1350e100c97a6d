"""Runs as one file that other programs read: ``.npz``, or ``.nc`` (netCDF 4) with the extra ``xarray``."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dynamics.runs.durable.errors import BadInput, Unusable
from dynamics.runs.durable.load import LoadedRun, load
from dynamics.runs.printable import printable
from dynamics.runs.report.listing import half_written


def export(path: Path, target: Path) -> int:
    """Writes a run's records, on their axes, to ``target``; the command ``export``.

    In ``.npz``: ``<label>/step``, ``<label>/time``, ``<label>/<reading>`` ``[T, *axes, ...]``, the axes' values as
    ``<label>/axes/<name>`` and true lengths as ``<label>/lengths/<name>``, with ``/`` in a label as ``%2F``; in
    ``.nc`` one group a call. What a format
    has no type for is converted: bfloat16 to float32, and in netCDF complex numbers to two variables ``<name>_real``
    and ``<name>_imag``; a name that netCDF refuses is kept as ``long_name``.

    Raises:
        BadInput: for another ending, a folder that does not exist, or a run without records.
        Unusable: when ``path`` cannot be read or ``target`` not be written.
        ImportError: without xarray; the message names the extra.
    """
    if target.suffix not in (".npz", ".nc"):
        raise BadInput(f"target: got {str(target)!r}; allowed: a file that ends in .npz or .nc")
    if not target.parent.is_dir():
        raise BadInput(f"target: got {str(target)!r}; allowed: a file in a folder that exists")
    run = load(path)
    if not run.records:
        raise BadInput(
            f"path: got {str(path)!r}, whose run recorded no curves; allowed: one that did (numbers: claims.json)"
        )
    write = (_run_arrays if target.suffix == ".npz" else _run_netcdf)(run)
    beside = target.with_name(f".{target.name}.{os.getpid()}.part")
    for left in target.parent.glob(f".{glob.escape(target.name)}.*.part"):  # of an export that was killed
        if half_written(left):
            left.unlink(missing_ok=True)
    try:
        beside.unlink(missing_ok=True)
        count = write(beside)
        os.replace(beside, target)
    except OSError as error:
        raise Unusable(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        beside.unlink(missing_ok=True)
    print(f"{len(run.records)} records, {count} arrays written to {printable(target)}")
    return 0


def _run_arrays(run: LoadedRun) -> Callable[[Path], int]:
    arrays: dict[str, np.ndarray] = {}
    for label, record in run.records.items():
        held = {"step": record.step, "time": record.time}
        for kind in ("axes", "lengths"):
            held |= {f"{kind}/{name}": np.asarray(value) for name, value in getattr(record, kind).items()}
        held |= {name if name not in held else f"{name}_": value for name, value in record.values.items()}
        arrays |= {
            f"{_member(label).replace('/', '%2F')}/{_member(name)}": _plain(value) for name, value in held.items()
        }

    def write(file: Path) -> int:
        with open(file, "xb") as held:
            np.savez(held, **arrays)  # pyright: ignore[reportArgumentType]
        return len(arrays)

    return write


def _member(name: str) -> str:
    """Any text as the name of a member of an archive: no way out of the folder that it is unpacked to."""
    name = re.sub(r"[%\\\x00-\x1f]", lambda mark: f"%{ord(mark[0]):02X}", name)
    return re.sub(r"(?<![^/])\.{0,2}(?=/|$)", lambda part: part[0].replace(".", "%2E") or "%", name)


def _run_netcdf(run: LoadedRun) -> Callable[[Path], int]:
    about = {"config": json.dumps(run.config), "status": run.status}

    def write(file: Path) -> int:
        groups, count = _allowed(run.records, ()), 0
        for at, (label, record) in enumerate(run.records.items()):
            known = _allowed(record.lengths, ())
            lengths = {known[name]: held for name, held in record.lengths.items()}
            names, values = _variables(record.values, ("step", "time", *record.axes, *(f"{n}_length" for n in lengths)))
            dataset = record._replace(values=values, lengths=lengths).to_dataset({"label": label, **about})
            for new, old in names.items():
                if new != old:
                    dataset[new].attrs["long_name"] = old
            dataset.to_netcdf(file, mode="a" if at else "w", group=groups[label], engine="netcdf4")
            count += len(dataset.variables)
        return count

    return write


def _plain(value: Any) -> np.ndarray:
    """An array of a type of NumPy's own; what is no number as text."""
    array = np.asarray(value)
    if array.dtype.kind in "USO":
        return array.astype(str)
    return array if array.dtype.isbuiltin == 1 else array.astype(np.float32)


def _variables(values: Mapping[str, Any], taken: Iterable[str]) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """``{name: what it was}`` and arrays of types that netCDF has, under names that it allows and are not ``taken``."""
    real: dict[str, np.ndarray] = {}
    for name, value in values.items():
        array = _plain(value)
        if array.dtype.kind == "c":
            real |= {f"{name}_real": np.real(array), f"{name}_imag": np.imag(array)}
        else:
            real[name] = array
    allowed = _allowed(real, taken)
    return {new: old for old, new in allowed.items()}, {allowed[name]: array for name, array in real.items()}


def _allowed(names: Iterable[str], taken: Iterable[str]) -> dict[str, str]:
    """A distinct name for each, of letters, digits, spaces and a few marks, with a letter or digit first."""
    used, found = set(taken), {}
    for name in names:
        new = re.sub(r"[^\w .,:=+()-]", "_", name).strip() or "_"
        new = new if re.match(r"\w", new) else f"_{new}"
        while new in used:
            new += "_"
        used.add(new)
        found[name] = new
    return found
