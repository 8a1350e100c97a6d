"""Runs as one file that other programs read: netCDF 4, ``.npz`` or CSV; measurement and theory under the same names."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dynamics.record import Record, told
from dynamics.runs.command.target import target_file, written
from dynamics.runs.durable.errors import BadInput, Unusable
from dynamics.runs.durable.load import LoadedRun, load
from dynamics.runs.printable import printable
from dynamics.runs.sweep.replay import replayed

SOURCE = "source"
"""The axis of a run's records by name: of measurement, theories and controls that share their other axes."""
Records = Mapping[str, Record]


def export(path: Path, target: Path | None = None, to: str | None = None, trust: bool = False) -> int:
    """Writes a run's records, on their axes, to ``target``; the command ``export``.

    The records are those of the experiment's Result, with the theories that it computes beside its studies; where its
    code is not here, has changed or lies elsewhere, those of the journal, which is said. Formats:

    - netCDF (extra ``xarray``): what shares its axes is one dataset, with a dimension ``source`` over the records'
      names and NaN where a source has no reading; of several such datasets each is a group.
    - npz: ``<label>/step``, ``<label>/time``, ``<label>/<reading>`` ``[T, *axes, ...]``, the axes' values as
      ``<label>/axes/<name>`` and true lengths as ``<label>/lengths/<name>``, with ``/`` in a label as ``%2F``.
    - CSV (extra ``xarray``): one row a source, step and cell; of readings those that are a number there.

    What a format has no type for is converted: bfloat16 to float32, an ``Estimate`` to three readings (see
    ``record.told``), and but in npz complex numbers to ``<name>_real`` and ``<name>_imag``; a name that netCDF refuses
    is kept as ``long_name``.

    Args:
        path: the run's directory.
        target: the file; by default ``EXPERIMENT-NAME`` in the current folder, with the ending of ``to``.
        to: netcdf, npz or csv; by default what the ending of ``target`` says.
        trust: run the code that the run names, wherever that lies; see ``module_of``.

    Raises:
        BadInput: for another ending, a folder that does not exist, or a run without records.
        Unusable: when ``path`` cannot be read or ``target`` not be written.
        ImportError: without xarray; the message names the extra.
    """
    wanted = None if to is None else FORMATS[to][0]
    endings = {ending: write for ending, write in FORMATS.values()}
    target = target_file(target, "-".join(path.resolve().parts[-2:]), list(endings), wanted)
    run = load(path)
    records, words = _records(run, trust)
    if not records:
        raise BadInput(
            f"path: got {str(path)!r}, whose run recorded no curves; allowed: one that did (numbers: claims.json)"
        )
    about = {"experiment": run.provenance.get("experiment"), "config": json.dumps(run.config), "status": run.status}
    set_down = {key: value for key, value in about.items() if value is not None}
    write, more = endings[target.suffix](records, set_down)
    lines = (f"{len(records)} records, {written(target, write)} arrays written to {target}", words, more)
    print("\n".join(printable(line) for line in lines if line))
    return 0


def _records(run: LoadedRun, trust: bool) -> tuple[Records, str]:
    """The records of the run's Result, or those of its journal; and a line where these are not all of then."""
    if "module" not in run.provenance:  # no experiment's, but of a loop of the user's own
        return run.records, ""
    try:
        found = replayed(run.path, trust)
    except (BadInput, Unusable) as error:
        return run.records, f"without what its experiment computes beside its studies: {error}"
    words = "the source of its experiment has changed since: what it computes beside its studies is of now"
    return getattr(found.result, "records", None) or run.records, words if found.changed else ""


def _npz(records: Records, about: Mapping[str, Any]) -> tuple[Callable[[Path], int], str]:
    arrays: dict[str, np.ndarray] = {}
    for label, record in records.items():
        held = {"step": record.step, "time": record.time}
        for kind in ("axes", "lengths"):
            held |= {f"{kind}/{name}": np.asarray(value) for name, value in getattr(record, kind).items()}
        held |= {name if name not in held else f"{name}_": value for name, value in told(record.values).items()}
        arrays |= {
            f"{_member(label).replace('/', '%2F')}/{_member(name)}": _plain(value) for name, value in held.items()
        }

    def write(file: Path) -> int:
        with open(file, "xb") as held:
            np.savez(held, **arrays)  # pyright: ignore[reportArgumentType]
        return len(arrays)

    return write, ""


def _member(name: str) -> str:
    """Any text as the name of a member of an archive: no way out of the folder that it is unpacked to."""
    name = re.sub(r"[%\\\x00-\x1f]", lambda mark: f"%{ord(mark[0]):02X}", name)
    return re.sub(r"(?<![^/])\.{0,2}(?=/|$)", lambda part: part[0].replace(".", "%2E") or "%", name)


def _csv(records: Records, about: Mapping[str, Any]) -> tuple[Callable[[Path], int], str]:
    frames, left = [], []
    for label, record in records.items():
        values = _real(record.values)
        scalar = {name: value for name, value in values.items() if value.ndim <= 1 + len(record.axes)}
        left += [f"{label}/{name} {list(value.shape)}" for name, value in values.items() if name not in scalar]
        frame = record._replace(values=scalar).to_frame()
        frame.insert(0, SOURCE if SOURCE not in frame else f"{SOURCE}_", label)
        frames.append(frame)

    def write(file: Path) -> int:
        import pandas  # which to_frame has asked for

        whole = pandas.concat(frames, ignore_index=True)
        axes = dict.fromkeys(name for record in records.values() for name in record.axes)
        first = [name for name in (SOURCE, "step", "time", *axes) if name in whole]
        with open(file, "x", newline="") as held:
            whole[[*first, *(name for name in whole if name not in first)]].to_csv(held, index=False)
        return whole.shape[1]

    return write, f"left out, no number in each cell (npz and netCDF have it): {', '.join(left)}" if left else ""


def _netcdf(records: Records, about: Mapping[str, Any]) -> tuple[Callable[[Path], int], str]:
    groups = _together(records)
    names = _allowed(groups, ())
    datasets = {names[first]: _dataset(held) for first, held in groups.items()}

    def write(file: Path) -> int:
        import xarray  # which to_dataset has asked for

        if len(datasets) > 1:
            xarray.Dataset(attrs={**about, "groups": list(datasets)}).to_netcdf(file, engine="netcdf4")
        for name, dataset in datasets.items():
            group = name if len(datasets) > 1 else None
            dataset.attrs |= about
            dataset.to_netcdf(file, mode="a" if group else "w", group=group, engine="netcdf4")
        return sum(len(dataset.variables) for dataset in datasets.values())

    opened = f"{len(datasets)} groups, of other axes each: xarray.open_dataset(FILE, group=NAME), NAME being one of "
    return write, opened + ", ".join(map(repr, datasets)) if len(datasets) > 1 else ""


def _together(records: Records) -> dict[str, dict[str, Record]]:
    """``{name of the first: records}`` that fit into one dataset, in their order."""
    groups: dict[str, dict[str, Record]] = {}
    for name, record in records.items():
        place = next((first for first, held in groups.items() if _fits(record, held.values())), name)
        groups.setdefault(place, {})[name] = record
    return groups


def _fits(record: Record, others: Iterable[Record]) -> bool:
    """Whether a record has the axes of others, its arrays their shapes in each cell, and the union is no waste."""
    every = [*others, record]
    depth = 1 + len(record.axes)
    if SOURCE in record.axes or any(list(other.axes) != list(record.axes) for other in every):
        return False
    shapes: dict[str, set[tuple[int, ...]]] = {}
    for other in every:
        for name, value in told(other.values).items():
            shapes.setdefault(name, set()).add((min(np.ndim(value), depth), *np.shape(value)[depth:]))
    axes = [[*(np.asarray(other.step).tolist() for other in every)]]
    axes += [[list(map(str, other.axes[name])) for other in every] for name in record.axes]
    union = len(every) * math.prod(len(set().union(*held)) for held in axes)
    apart = sum(math.prod(len(held[i]) for held in axes) for i in range(len(every)))
    distinct = all(len(set(held)) == len(held) for axis in axes for held in axis)
    return distinct and union <= 4 * apart and all(len(own) == 1 for own in shapes.values())


def _dataset(records: Records) -> Any:
    """Records of the same axes as one ``xarray.Dataset``, with the dimension ``source`` where they are several."""
    first = next(iter(records.values()))
    lengths = _allowed(dict.fromkeys(name for record in records.values() for name in record.lengths), ())
    taken = ("step", "time", SOURCE, *first.axes, *(f"{name}_length" for name in lengths.values()))
    values = {label: _real(record.values) for label, record in records.items()}
    names = _allowed(dict.fromkeys(name for held in values.values() for name in held), taken)
    made = [
        record._replace(
            values={names[name]: value for name, value in values[label].items()},
            axes={name: _labels(held) for name, held in record.axes.items()},
            lengths={lengths[name]: held for name, held in record.lengths.items()},
        ).to_dataset()
        for label, record in records.items()
    ]
    if len(made) == 1:
        dataset = made[0] if SOURCE in first.axes else made[0].assign_coords({SOURCE: next(iter(records))})
    else:
        import xarray  # which to_dataset has asked for

        source = xarray.IndexVariable(SOURCE, np.array(list(records)))
        dataset = xarray.concat(made, source, data_vars="all", coords="different", compat="equals", join="outer")
    for old, new in names.items():
        if new != old:
            dataset[new].attrs["long_name"] = old
    return dataset


def _labels(values: Any) -> np.ndarray:
    """An axis's values in a type that netCDF has: numbers, truth values, or text."""
    array = np.asarray(values) if not any(isinstance(value, (tuple, list)) for value in values) else None
    return array if array is not None and array.dtype.kind in "biuf" else np.array(list(map(str, values)))


def _plain(value: Any) -> np.ndarray:
    """An array of a type of NumPy's own; what is no number as text."""
    array = np.asarray(value)
    if array.dtype.kind in "USO":
        return array.astype(str)
    return array if array.dtype.isbuiltin == 1 else array.astype(np.float32)


def _real(values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Readings as arrays of NumPy's types, complex ones as two."""
    real: dict[str, np.ndarray] = {}
    for name, value in told(values).items():
        array = _plain(value)
        parts = (
            {f"{name}_real": np.real(array), f"{name}_imag": np.imag(array)}
            if array.dtype.kind == "c"
            else {name: array}
        )
        real |= parts
    return real


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


FORMATS: dict[str, tuple[str, Callable[..., tuple[Callable[[Path], int], str]]]] = {
    "netcdf": (".nc", _netcdf),
    "npz": (".npz", _npz),
    "csv": (".csv", _csv),
}
