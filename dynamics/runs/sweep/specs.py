"""Values of settings written short: ``a,b,c``, ``lin:LOW:HIGH:COUNT``, ``log:LOW:HIGH:COUNT``, ``START:STOP``."""

from __future__ import annotations

import dataclasses
import math
import typing
from typing import Any

import numpy as np

from dynamics.config import Config
from dynamics.runs.durable.errors import BadInput

FORMS = "a,b,c or lin:LOW:HIGH:COUNT or log:LOW:HIGH:COUNT or START:STOP (whole numbers)"
MAX_CELLS = 1_000_000


def kinds(cls: type[Config]) -> dict[str, tuple[type, bool]]:
    """``{field: (int, float or str, whether it is an axis)}``: a field that takes several values is an axis."""
    found = {}
    for name, hint in typing.get_type_hints(cls).items():
        several = typing.get_origin(hint) is tuple
        inner = typing.get_args(hint)[0] if several else hint
        found[name] = inner if inner in (int, float) else str, several
    return found


def expanded(cls: type[Config], argv: list[str]) -> list[str]:
    """A command line with the specs of numeric axes written out: ``--alpha log:.1:10:3`` as ``--alpha 0.1 1.0 10.0``.

    Raises:
        BadInput: for a spec that cannot be read.
    """
    axes = {
        f"--{name.replace('_', '-')}": kind for name, (kind, axis) in kinds(cls).items() if axis and kind is not str
    }
    words, kind, flag = [], None, ""
    for word in argv:
        head, equals, rest = word.partition("=")
        if word.startswith("--"):
            flag, kind = head, axes.get(head.replace("_", "-"))
            if kind is None or not equals:
                words.append(word)
                continue
            words.append(head)
            word = rest
        if kind is not None and (":" in word or "," in word):
            words += [repr(value) for value in values_of(flag, word, kind)]
        else:
            words.append(word)
    return words


def values_of(field: str, text: str, kind: type) -> list[Any]:
    """The values of a spec; whole numbers are rounded, and each stands once.

    Raises:
        BadInput: for a spec that cannot be read, or one without values.

    Example:
        >>> values_of("width", "log:1:64:4", int)
        [1, 4, 16, 64]
    """
    try:
        parts = text.split(":")
        if parts[0] in ("lin", "log") and len(parts) == 4:
            low, high, count = float(parts[1]), float(parts[2]), int(parts[3])
            if not 1 <= count <= MAX_CELLS:
                raise ValueError(f"count: got {count}; allowed: 1 to {MAX_CELLS}")
            spaced = np.linspace(low, high, count) if parts[0] == "lin" else np.geomspace(low, high, count)
            if not np.all(np.isfinite(spaced)):
                raise ValueError("values: got some that are not finite; allowed: finite ones")
            values = list(dict.fromkeys(round(v) for v in spaced)) if kind is int else [float(v) for v in spaced]
        elif len(parts) == 2 and kind is int:
            start, stop = int(parts[0]), int(parts[1])
            if stop - start > MAX_CELLS:
                raise ValueError(f"count: got {stop - start}; allowed: at most {MAX_CELLS}")
            values = list(range(start, stop))
        else:
            values = [kind(part) for part in text.split(",")]
    except (ValueError, OverflowError) as error:
        raise BadInput(f"{field}: got {text!r}; allowed: {FORMS}, of {kind.__name__}") from error
    if not values or len(set(values)) != len(values):
        raise BadInput(f"{field}: got {text!r}; allowed: at least one value, none twice")
    return values


def parse_sweep(cls: type[Config], specs: tuple[str, ...]) -> dict[str, list]:
    """``{field: values}`` of ``FIELD=SPEC``.

    Raises:
        BadInput: for an unknown field, an axis, a spec that cannot be read, or too many cells.

    Example:
        >>> parse_sweep(Config, ("seed=0:3",))
        {'seed': [0, 1, 2]}
    """
    fields, swept = kinds(cls), {}
    single = [name for name, (_, axis) in fields.items() if not axis and name != "seeds"]
    for spec in specs:
        field, equals, text = spec.partition("=")
        field = field.lstrip("-").replace("-", "_")
        if field in fields and field not in single:
            line = "--seeds NUMBER" if field == "seeds" else f"--{field.replace('_', '-')} {text}"
            raise BadInput(f"sweep: got {spec!r}; allowed: {line}, an axis, all of whose values are one program")
        if not equals or field not in single or field in swept:
            raise BadInput(f"sweep: got {spec!r}; allowed: FIELD=SPEC with each FIELD once, of {', '.join(single)}")
        swept[field] = values_of(f"sweep: {field}", text, fields[field][0])
    cells = math.prod(len(values) for values in swept.values())
    if cells > MAX_CELLS:
        raise BadInput(f"sweep: got {cells} cells; allowed: at most {MAX_CELLS}")
    return swept


def cell_of(swept: dict[str, list], cell: int) -> dict[str, Any]:
    """The swept settings of a cell; the last field varies fastest."""
    index = np.unravel_index(cell, [len(values) for values in swept.values()])
    return {field: values[at] for (field, values), at in zip(swept.items(), index)}


def cell_config(config: Any, swept: dict[str, list], cell: int) -> Any:
    """The settings of one cell.

    Raises:
        BadInput: when they are not allowed, naming the cell, the field and the value.
    """
    chosen = cell_of(swept, cell)
    try:
        return dataclasses.replace(config, **chosen)
    except ValueError as error:
        raise BadInput(f"sweep: cell {chosen}: {error}") from error
