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
        raise ValueError(f"get: got {get!r}; allowed: None, a name or a tuple of names")
    for name in get:
        check_name(name)
    if len(set(get)) < len(get):
        raise ValueError(f"get: got {tuple(get)}; allowed: each attribute once")
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
