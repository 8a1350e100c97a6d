"""Costly readings on a sparser grid than the cheap ones of the same run."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from dynamics.types import Observable


def seldom(observable: Any, interval: int) -> Observable:
    """Reads at every ``interval``-th recorded step, counted from the first; NaN between, where nothing is computed.

    Args:
        observable: with floating-point readings; a plain function is lifted.
        interval: a positive integer.

    Raises:
        ValueError: unless ``interval >= 1``; at tracing, for a reading that is not floating.

    Example:
        >>> from dynamics.types import View
        >>> both = seldom(lambda params, batch: {"b": 2.0 * params}, 2)
        >>> view = View(jnp.float32(1.0), None)
        >>> memory, values = both.update(both.init(view), view)
        >>> memory, later = both.update(memory, view)
        >>> float(values["b"]), float(later["b"])
        (2.0, nan)
    """
    if not isinstance(interval, int) or interval < 1:
        raise ValueError(f"interval: got {interval!r}; allowed: an integer >= 1")
    pair = Observable.of(observable)

    def init(view):
        return jnp.zeros((), jnp.int32), pair.init(view)

    def update(memory, view):
        count, held = memory
        shapes = jax.eval_shape(lambda held: pair.update(held, view)[1], held)
        for name, shape in shapes.items():
            if not jnp.issubdtype(shape.dtype, jnp.inexact):
                raise ValueError(f"seldom: got the reading {name!r} of {shape.dtype}; allowed: floating ones")

        def nothing():
            return held, {name: jnp.full(shape.shape, jnp.nan, shape.dtype) for name, shape in shapes.items()}

        # the run's own count is the same for all lanes: a branch on it stays one under vmap
        taken = count if view.reading is None else view.reading
        held, readings = jax.lax.cond(taken % interval == 0, lambda: pair.update(held, view), nothing)
        return (count + 1, held), readings

    return Observable(init, update)
