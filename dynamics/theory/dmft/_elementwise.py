"""Activations as functions of one number, refused where training's gradients would not be theirs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynamics.types import Array, Model

_REACH, _CELLS, _FINE = 8.0, 64, 33  # the interval that is looked at, its cells, points in each


def elementwise(activation: Any) -> Callable[[Array], Array]:
    """``activation`` as a function of an array, entry by entry.

    Raises:
        TypeError: for what is no function.
        ValueError: for a layer of weights, a function that mixes entries, or one whose derivative does not integrate
            to it (a jump).
    """
    if not isinstance(activation, Model) and not callable(activation):
        raise TypeError(f"activation: got {type(activation).__name__}; allowed: a function, stax.Tanh(), stax.Relu()")
    return _checked(activation)


@functools.lru_cache(maxsize=128)
def _checked(activation: Any) -> Callable[[Array], Array]:
    phi = functools.partial(activation.apply, ()) if isinstance(activation, Model) else activation
    with jax.ensure_compile_time_eval():
        cells = _cells()
        points = jnp.asarray(cells.reshape(1, -1))
        try:
            value, slope = jax.jvp(phi, (points,), (jnp.ones_like(points),))
            alone = jnp.concatenate([phi(points[:, at : at + 1]) for at in (0, 1000, 2000)], 1)
            same = value.shape == points.shape and np.allclose(alone, value[:, [0, 1000, 2000]], rtol=1e-4, atol=1e-5)
        except (TypeError, ValueError, IndexError) as error:
            raise ValueError(
                f"activation: got {activation}, which fails on an array ({error}); allowed: {_ALLOWED}"
            ) from error
        if not same:
            raise ValueError(f"activation: got one that does not act entry by entry; allowed: {_ALLOWED}")
        value, slope = (np.asarray(one, float).reshape(cells.shape) for one in (value, slope))
    if not _integrates(slope, value, cells):
        raise ValueError(f"activation: got one whose derivative does not integrate to it (a jump); allowed: {_ALLOWED}")
    return phi


@functools.lru_cache(maxsize=128)
def is_smooth(phi: Callable) -> bool:
    """Whether the second derivative of ``phi`` integrates to the first, or there is a kink."""

    def slope(x):
        return jax.jvp(phi, (x,), (jnp.ones_like(x),))[1]

    with jax.ensure_compile_time_eval():
        points = jnp.asarray(_cells().reshape(1, -1))
        value, curvature = jax.jvp(slope, (points,), (jnp.ones_like(points),))
    curvature, value = (np.asarray(one, float).reshape(_CELLS, _FINE) for one in (curvature, value))
    return _integrates(curvature, value, _cells())


def _cells() -> np.ndarray:
    edges = np.linspace(-_REACH, _REACH, _CELLS + 1) + 0.0123
    return np.linspace(edges[:-1], edges[1:], _FINE, axis=1)


def _integrates(slope: np.ndarray, value: np.ndarray, cells: np.ndarray) -> bool:
    change = value[:, -1] - value[:, 0]
    atol = 0.02 * max(1.0, np.abs(change).max())
    return np.allclose(np.trapezoid(slope, cells, axis=1), change, rtol=0.05, atol=atol)


_ALLOWED = "a continuous function such as jnp.tanh, or a nonlinearity such as stax.Relu()"
