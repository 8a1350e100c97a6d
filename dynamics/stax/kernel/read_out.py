"""What ``get`` asks of a Kernel: a name for an array, several for a namedtuple, None for all of it."""

from __future__ import annotations

import collections
import functools

from dynamics.stax.kernel.kernel import Kernel, check_name


@functools.cache
def record(name: str, fields: tuple[str, ...]) -> type:
    """A namedtuple class, the same one for the same arguments (pytrees compare classes)."""
    return collections.namedtuple(name, fields)


def names_of(get) -> tuple[str, ...] | None:
    if get is None:
        return None
    if isinstance(get, str):
        return (check_name(get),)
    if not isinstance(get, tuple | list):
        raise ValueError(f"get must be None, a name or a tuple of names, got {get!r}")
    for name in get:
        check_name(name)
    if len(set(get)) < len(get):
        raise ValueError(f"get must name each attribute once, got {tuple(get)}")
    return tuple(get)


def read_out(kernel, get):
    """Selects ``get`` from a Kernel (or from each of a list of them)."""
    names = names_of(get)
    if names is None:
        return kernel
    if not isinstance(kernel, Kernel):
        return type(kernel)(read_out(k, get) for k in kernel)
    if isinstance(get, str):
        return kernel.select(get)
    return record("AnalyticKernel", names)(*(kernel.select(name) for name in names))
