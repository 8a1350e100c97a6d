"""Activations as functions of one number, refused where training's gradients would not be theirs."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynamics.types import Array, Model

_REACH, _CELLS, _FINE = 8.0, 64, 513  # the interval that is looked at, its cells, points in each


@dataclasses.dataclass(frozen=True)
class _Named:
    """A function, and what makes two of them one: with it a second ``stax.Tanh()`` is not compiled anew."""

    name: Hashable
    phi: Callable[..., Any] = dataclasses.field(compare=False)


def elementwise(activation: Any) -> Callable[[Array], Array]:
    """``activation`` as a function of an array, entry by entry.

    Raises:
        TypeError: for what is no function, or one that cannot be hashed.
        ValueError: for a layer of weights, a function that mixes entries or is not finite, or one whose derivative does
            not integrate to it (a jump).
    """
    if isinstance(activation, Model):
        return _checked(_Named(_name(activation.apply), functools.partial(activation.apply, ())))
    if not callable(activation):
        raise TypeError(f"activation: got {type(activation).__name__}; allowed: a function, stax.Tanh(), stax.Relu()")
    try:
        hash(activation)
    except TypeError as error:
        raise TypeError(f"activation: got {type(activation).__name__}, not hashable; allowed: {_ALLOWED}") from error
    return _checked(_Named(activation, activation))


def _name(part: Any) -> Hashable:
    """Equal for functions that one line of ``stax`` makes of equal parts; others are themselves."""
    part = inspect.unwrap(part) if isinstance(part, types.FunctionType) else part
    if isinstance(part, types.FunctionType) and part.__module__.startswith("dynamics.stax."):
        return part.__code__, *(_name(cell.cell_contents) for cell in part.__closure__ or ())
    try:
        hash(part)
    except TypeError:
        return id(part)
    return type(part), part


@functools.lru_cache(maxsize=128)
def _checked(named: _Named) -> Callable[[Array], Array]:
    phi, cells = named.phi, _cells()
    probes = [(0, 0), (_CELLS // 2, 7), (_CELLS // 2 + 5, 200), (_CELLS - 1, 99)]
    with jax.ensure_compile_time_eval():
        points = jnp.asarray(cells[::-1, ::-1])  # descending, so that sorting shows
        try:
            value, slope = jax.jvp(phi, (points,), (jnp.ones_like(points),))
            alone = np.asarray([phi(points[i : i + 1, j : j + 1])[0, 0] for i, j in probes])
        except (TypeError, ValueError, IndexError, AttributeError) as error:
            raise ValueError(
                f"activation: got {named.phi}, which fails on an array ({error}); allowed: {_ALLOWED}"
            ) from error
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise ValueError(f"activation: got one that gives {value.dtype}; allowed: {_ALLOWED}")
        value, slope, alone = (np.asarray(one, float) for one in (value, slope, alone))
    if value.shape == cells.shape and not np.all(np.isfinite(value)):
        raise ValueError(f"activation: got one that is not finite on [-8, 8]; allowed: {_ALLOWED}")
    beside = 1e-5 * np.abs(value).max()
    if value.shape != cells.shape or not np.allclose(alone, [value[at] for at in probes], rtol=1e-4, atol=beside):
        raise ValueError(f"activation: got one that does not act entry by entry; allowed: {_ALLOWED}")
    if not _integrates(slope, value, cells[::-1, ::-1]):
        raise ValueError(f"activation: got one whose derivative does not integrate to it (a jump); allowed: {_ALLOWED}")
    return phi


@functools.lru_cache(maxsize=128)
def is_smooth(phi: Callable) -> bool:
    """Whether the second derivative of ``phi`` integrates to the first, or there is a kink."""

    def slope(x):
        return jax.jvp(phi, (x,), (jnp.ones_like(x),))[1]

    with jax.ensure_compile_time_eval():
        points = jnp.asarray(_cells())
        value, curvature = jax.jvp(slope, (points,), (jnp.ones_like(points),))
    return _integrates(np.asarray(curvature, float), np.asarray(value, float), _cells())


def _cells() -> np.ndarray:
    edges = np.linspace(-_REACH, _REACH, _CELLS + 1) + 0.0123
    return np.linspace(edges[:-1], edges[1:], _FINE, axis=1)


def _integrates(slope: np.ndarray, value: np.ndarray, cells: np.ndarray) -> bool:
    change = value[:, -1] - value[:, 0]
    atol = 0.004 * np.abs(change).max() + 1e-5 * np.abs(value).max()  # a kink inside a step, rounding
    return np.allclose(np.trapezoid(slope, cells, axis=1), change, rtol=0.01, atol=atol)


_ALLOWED = "a continuous function such as jnp.tanh, or a nonlinearity such as stax.Relu()"
