"""Products of float32 numbers in float32: a GPU of 2020 or later would round their factors to TF32, 10 bits."""

from __future__ import annotations

import functools
from typing import Any, TypeVar

import jax

_F = TypeVar("_F")


def full_precision(fn: _F) -> _F:
    """``fn``, and what functions it returns, alone or in a tuple, with products at the factors' own precision.

    For what promises more than three digits: certificates, operators, kernels, predictions. Training stays at the
    user's precision; so does this, where ``jax_default_matmul_precision`` is set. On a CPU it changes nothing.
    """
    plain: Any = fn

    @functools.wraps(plain)
    def call(*args, **kwargs):
        if jax.config.jax_default_matmul_precision is not None:  # pyright: ignore[reportAttributeAccessIssue]
            return plain(*args, **kwargs)
        with jax.default_matmul_precision("highest"):
            found = plain(*args, **kwargs)
        if isinstance(found, tuple) and any(map(_is_function, found)):
            made = getattr(type(found), "_make", tuple)
            return made(full_precision(part) if _is_function(part) else part for part in found)
        return full_precision(found) if _is_function(found) else found

    return call  # pyright: ignore[reportReturnType]


def _is_function(part: Any) -> bool:
    """Callable and no tree of arrays, as equinox's modules are."""
    return callable(part) and jax.tree_util.all_leaves([part])
