"""Products of float32 numbers in float32: a GPU of 2020 or later would round their factors to TF32, 10 bits."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any, TypeVar

import jax

_F = TypeVar("_F")


@contextlib.contextmanager
def own_precision() -> Iterator[None]:
    """Products at their factors' own precision, unless ``jax_default_matmul_precision`` is set. Nothing on a CPU."""
    told = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    with contextlib.nullcontext() if told is not None else jax.default_matmul_precision("highest"):
        yield


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
