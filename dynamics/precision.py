"""Products of float32 numbers in float32: a GPU of 2020 or later would round their factors to TF32, 10 bits."""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Iterator
from typing import Any, TypeVar

import jax

_F = TypeVar("_F")


_OURS = contextvars.ContextVar("_OURS", default=False)  # whether "highest" was set here


@contextlib.contextmanager
def own_precision() -> Iterator[None]:
    """Products at their factors' own precision, unless ``jax_default_matmul_precision`` is set. No number of a CPU's
    changes."""
    if _told() is not None:
        yield
        return
    token = _OURS.set(True)
    try:
        with jax.default_matmul_precision("highest"):
            yield
    finally:
        _OURS.reset(token)


def told_precision() -> str | None:
    """``jax_default_matmul_precision`` as the user has set it, within ``own_precision`` too."""
    told = _told()
    return None if _OURS.get() and told == "highest" else told


def _told() -> str | None:
    return jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]


def full_precision(fn: _F) -> _F:
    """``fn``, and what functions it returns, alone or in a tuple, with products at the factors' own precision.

    For all that promises more than three digits: certificates, operators, kernels, predictions and the time loop, whose
    theories are runs too. Who sets ``jax_default_matmul_precision`` decides instead, for the whole process, or inside
    a network's ``apply`` for its products alone: ``with jax.default_matmul_precision("tensorfloat32")``.
    """
    plain: Any = fn

    @functools.wraps(plain)
    def call(*args, **kwargs):
        with own_precision():
            found = plain(*args, **kwargs)
        if isinstance(found, tuple) and any(map(_is_function, found)):
            made = getattr(type(found), "_make", tuple)
            return made(full_precision(part) if _is_function(part) else part for part in found)
        return full_precision(found) if _is_function(found) else found

    return call  # pyright: ignore[reportReturnType]


def _is_function(part: Any) -> bool:
    """Callable and no tree of arrays, as equinox's modules are."""
    return callable(part) and jax.tree_util.all_leaves([part])
