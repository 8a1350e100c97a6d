"""What ``get`` asks of a Kernel: a name for an array, several for a namedtuple, None for all of it."""

from __future__ import annotations

from dynamics.empirical.functions import record_of
from dynamics.stax.kernel.kernel import Kernel, check_name


def names_of(get) -> tuple[str, ...] | None:
    """The names in small letters, None for the whole Kernel."""
    if get is None:
        return None
    if isinstance(get, str):
        return (check_name(get.lower()),)
    if not isinstance(get, tuple | list):
        raise ValueError(f"get: got {get!r}; allowed: None, a name or a tuple of names")
    names = tuple(check_name(name.lower() if isinstance(name, str) else name) for name in get)
    if len(set(names)) < len(names):
        raise ValueError(f"get: got {names}; allowed: each attribute once")
    return names


def read_out(kernel, get):
    """Selects ``get`` from a Kernel (or from each of a list of them)."""
    names = names_of(get)
    if names is None:
        return kernel
    if not isinstance(kernel, Kernel):
        return type(kernel)(read_out(k, get) for k in kernel)
    if isinstance(get, str):
        return kernel.select(names[0])
    return record_of("AnalyticKernel", names)(*(kernel.select(name) for name in names))
