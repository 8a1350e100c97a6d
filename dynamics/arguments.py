"""Numbers given as arguments, refused in one sentence each: ``name: got VALUE; allowed: RANGE``."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

_F = TypeVar("_F", bound=Callable[..., Any])
Rule = tuple[Callable[[Any], Any], str]
FINITE: Rule = (np.isfinite, "a finite number")
NOT_ZERO: Rule = (lambda v: np.isfinite(v) & (v != 0), "a finite number, not 0")
POSITIVE: Rule = (lambda v: (v > 0) & (v < np.inf), "a number > 0")
NOT_NEGATIVE: Rule = (lambda v: (v >= 0) & (v < np.inf), "a number >= 0")
OR_INFINITE: Rule = (lambda v: v > 0, "a number > 0, or inf")
INSIDE: Rule = (lambda v: (v > 0) & (v < 1), "a number > 0 and < 1")
SHARE: Rule = (lambda v: (v > 0) & (v <= 1), "a number > 0 and <= 1")
BELOW_ONE: Rule = (lambda v: (v >= 0) & (v < 1), "a number >= 0 and < 1")
PROBABILITY: Rule = (lambda v: (v >= 0) & (v <= 1), "a number >= 0 and <= 1")


def check_numbers(*, many: bool = False, **given: tuple[Any, Rule]) -> None:
    """Raises unless each value is one real number within its rule; of what is traced the kind alone is looked at.

    Args:
        many: whether an array of numbers may stand for one, each within the rule.
        given: ``name=(value, rule)``.

    Raises:
        TypeError: for what is no real number; a boolean is none.
        ValueError: for a number out of its range, or a shape.

    Example:
        >>> check_numbers(eta=(0.1, POSITIVE), momentum=(np.float32(1.0), BELOW_ONE))
        Traceback (most recent call last):
        ValueError: momentum: got 1.0; allowed: a number >= 0 and < 1
    """
    for name, (value, (within, allowed)) in given.items():
        try:
            dtype = value.dtype if hasattr(value, "dtype") else np.asarray(value).dtype
        except ValueError as error:  # rows of several lengths
            raise TypeError(f"{name}: got {value!r}; allowed: {allowed}") from error
        if not jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.complexfloating):
            got = dtype if np.shape(value) or isinstance(value, jax.Array) else repr(value)
            raise TypeError(f"{name}: got {got}; allowed: {allowed}")
        if np.shape(value) and not many:
            raise ValueError(f"{name}: got shape {np.shape(value)}; allowed: one number; jax.vmap over many")
        if not isinstance(value, Tracer) and not np.all(within(np.asarray(value))):
            raise ValueError(f"{name}: got {value}; allowed: {allowed}")


def check_counts(least: int = 1, /, **counts: Any) -> None:
    """Raises ValueError unless each value is an integer, of Python or of numpy, ``>= least``; a boolean is none.

    Example:
        >>> check_counts(steps=10.0)
        Traceback (most recent call last):
        ValueError: steps: got 10.0; allowed: an integer >= 1
    """
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise ValueError(f"{name}: got {value!r}; allowed: an integer >= {least}")


def program(fn: _F, *, flags: tuple[str, ...] = (), static: tuple[str, ...] = ()) -> _F:
    """``fn`` as one program, for arrays that come from outside: ``jax.jit`` drops the mask of an array without a word.

    Args:
        fn: of arrays.
        flags: its keywords that are true or false; arrays of one boolean are taken too.
        static: its other arguments that decide which program it is, hashable.

    Raises:
        TypeError: when it is called, for a masked array of numpy.

    Example:
        >>> program(jnp.sum)(np.ma.masked_array([1.0, 2.0], [False, True]))
        Traceback (most recent call last):
        TypeError: a: got a masked array; allowed: a plain one
    """
    compiled = jax.jit(fn, static_argnames=(*flags, *static))

    @functools.wraps(fn)
    def call(*args, **kwargs):
        if any(map(_is_masked, jax.tree.leaves((args, kwargs)))):
            given = inspect.signature(fn).bind(*args, **kwargs).arguments
            name = next(name for name, value in given.items() if any(map(_is_masked, jax.tree.leaves(value))))
            raise TypeError(f"{name}: got a masked array; allowed: a plain one")
        return compiled(*args, **{name: bool(value) if name in flags else value for name, value in kwargs.items()})

    return call  # pyright: ignore[reportReturnType]


def _is_masked(leaf: Any) -> bool:
    return isinstance(leaf, np.ma.MaskedArray)
