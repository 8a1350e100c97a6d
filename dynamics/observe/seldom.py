"""Costly readings on a sparser grid than the cheap ones of the same run."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from dynamics.arguments import check_counts
from dynamics.types import Array, Observable


def seldom(observable: Any, interval: int, *old: Any) -> Observable:
    """Reads at every ``interval``-th recorded step, counted from the first; NaN between, where nothing is computed.

    Args:
        observable: its integer and boolean readings become floats; a plain function is lifted.
        interval: a positive integer.

    Raises:
        ValueError: unless ``interval >= 1``.
        TypeError: for what is no observable, and for a call in the form of 0.1.

    Example:
        >>> from dynamics.types import View
        >>> both = seldom(lambda params, batch: {"b": 2.0 * params}, 2)
        >>> view = View(jnp.float32(1.0), None)
        >>> memory, values = both.update(both.init(view), view)
        >>> memory, later = both.update(memory, view)
        >>> float(values["b"]), float(later["b"])
        (2.0, nan)
    """
    if old:
        raise TypeError(
            "seldom: got a cheap and a costly observable, as in 0.1; allowed: [cheap, seldom(costly, interval)] in the "
            "list of observables"
        )
    check_counts(interval=interval)
    pair = Observable.of(observable)

    def init(view):
        return jnp.zeros((), jnp.int32), pair.init(view)

    def update(memory, view):
        count, held = memory

        def reading():
            after, readings = pair.update(held, view)
            return after, {name: floating(value) for name, value in readings.items()}

        shapes = jax.eval_shape(lambda: reading()[1])

        def nothing():
            return held, {name: jnp.full(shape.shape, jnp.nan, shape.dtype) for name, shape in shapes.items()}

        # the run's own count is the same for all lanes: a branch on it stays one under vmap
        taken = count if view.reading is None else view.reading
        held, readings = jax.lax.cond(taken % interval == 0, reading, nothing)
        return (count + 1, held), readings

    return Observable(init, update)


def floating(value: Any) -> Array:
    """``value`` in a type that has a NaN."""
    value = jnp.asarray(value)
    return value if jnp.issubdtype(value.dtype, jnp.inexact) else value.astype(jnp.result_type(float))
