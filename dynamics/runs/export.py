"""Runs as one file that other programs read: ``.npz``, or ``.nc`` (netCDF 4) with the extra ``xarray``."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dynamics.runs.errors import BadInput, Unusable
from dynamics.runs.load import LoadedRun, load


def export(path: Path, target: Path) -> int:
    """Writes a run's records, on their axes, to ``target``; the command ``export``.

    In ``.npz``: ``<label>/step``, ``<label>/time``, ``<label>/<reading>`` ``[T, *axes, ...]``, the axes' values as
    ``<label>/axes/<name>`` and true lengths as ``<label>/lengths/<name>``; in ``.nc`` one group a call. What a format
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
        raise BadInput(f"path: got {str(path)!r}, whose run recorded no curves; its numbers are in claims.json")
    write = (_run_arrays if target.suffix == ".npz" else _run_netcdf)(run)
    beside = target.with_name(f".{target.stem}.{os.getpid()}{target.suffix}")
    try:
        write(beside)
        os.replace(beside, target)
    except OSError as error:
        raise Unusable(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        beside.unlink(missing_ok=True)
    print(f"{len(run.records)} records written to {target}")
    return 0


def _run_arrays(run: LoadedRun) -> Callable[[Path], None]:
    arrays = {}
    for label, record in run.records.items():
        for name, value in {"step": record.step, "time": record.time, **record.values}.items():
            arrays[f"{label}/{name}"] = _plain(value)
        for kind in ("axes", "lengths"):
            arrays |= {f"{label}/{kind}/{name}": np.asarray(value) for name, value in getattr(record, kind).items()}
    return lambda file: np.savez(file, **arrays)


def _run_netcdf(run: LoadedRun) -> Callable[[Path], None]:
    about = {"config": json.dumps(run.config), "status": run.status}

    def write(file: Path) -> None:
        groups = _allowed(run.records, ())
        for at, (label, record) in enumerate(run.records.items()):
            known = _allowed(record.lengths, ())
            lengths = {known[name]: held for name, held in record.lengths.items()}
            names, values = _variables(record.values, ("step", "time", *record.axes, *(f"{n}_length" for n in lengths)))
            dataset = record._replace(values=values, lengths=lengths).to_dataset({"label": label, **about})
            _note_names(dataset, names)
            dataset.to_netcdf(file, mode="a" if at else "w", group=groups[label])

    return write


def _plain(value: Any) -> np.ndarray:
    """An array of a type of NumPy's own."""
    array = np.asarray(value)
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


def _note_names(dataset: Any, names: Mapping[str, str]) -> None:
    for new, old in names.items():
        if new != old:
            dataset[new].attrs["long_name"] = old
