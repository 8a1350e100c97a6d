"""A convolution as shifts of its input and one matrix product, which stays fast inside loops."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax
from jax.extend.core import JaxprEqn

from dynamics.program import jaxpr
from dynamics.types import Array

_MOST_SHIFTS = 128  # of one convolution; beyond, the program would grow too long
_COLUMNS = 2**25  # bytes of shifted inputs laid side by side for one product


def shiftable(equation: JaxprEqn) -> bool:
    """Whether it is a convolution that ``shifted`` writes in few shifts; depthwise ones stay as they are."""
    if equation.primitive.name != "conv_general_dilated":
        return False
    settings = equation.params
    _, rhs, out = settings["dimension_numbers"]
    weight, result = jaxpr.shape(equation.invars[1]), jaxpr.shape(equation.outvars[0])
    shifts = min(math.prod(weight[i] for i in rhs[2:]), math.prod(result[i] for i in out[2:]))
    depthwise = settings["feature_group_count"] > 1 and weight[rhs[1]] == 1
    return 0 < shifts <= _MOST_SHIFTS and not depthwise and 0 not in (*weight, *result)


def shifted(equation: JaxprEqn, inputs: Array, weight: Array) -> Array:
    """``y[p] = sum_d x[s p + r d] W[d]``: shifts of x by d, or, where the output is smaller than W, by p."""
    settings = equation.params
    lhs, rhs, out = settings["dimension_numbers"]
    features, batches = settings["feature_group_count"], settings["batch_group_count"]
    groups = features * batches  # one of them is 1
    x = jnp.transpose(inputs, (lhs[0], *lhs[2:], lhs[1]))  # [n, ..., c]
    w = jnp.transpose(weight, (*rhs[2:], rhs[1], rhs[0]))  # [d, c, o]
    margins = [(low, high, step - 1) for (low, high), step in zip(settings["padding"], settings["lhs_dilation"])]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *margins, (0, 0, 0)])
    n, spaces, c, o = x.shape[0] // batches, x.shape[1:-1], w.shape[-2], w.shape[-1] // groups
    x = jnp.reshape(x, (batches, n, *spaces, features, c))
    x = jnp.reshape(jnp.moveaxis(x, -2, 1), (groups, n, *spaces, c))  # [g, n, ..., c]
    filters = w.shape[:-2]
    w = jnp.moveaxis(jnp.reshape(w, (*filters, c, groups, o)), -2, 0)  # [g, d, c, o]
    places = [jaxpr.shape(equation.outvars[0])[axis] for axis in out[2:]]
    steps, spreads = settings["window_strides"], settings["rhs_dilation"]
    options = {name: settings[name] for name in ("precision", "preferred_element_type")}
    by_filter = math.prod(filters) <= math.prod(places)
    moved, kept = (filters, places) if by_filter else (places, filters)
    strides, widths = (spreads, steps) if by_filter else (steps, spreads)
    whole = slice(None)

    def window(at: Sequence[int]) -> Array:
        """Of ``x``, what one shift meets: ``[g, n, ..., c]``."""
        cut = (slice(a * s, a * s + (k - 1) * t + 1, t) for a, s, k, t in zip(at, strides, kept, widths))
        return x[(whole, whole, *cut)]

    shifts = list(itertools.product(*map(range, moved)))
    w = jnp.reshape(w, (groups, math.prod(filters), c, o))
    if by_filter:
        bytes_each = groups * n * math.prod(places) * c * x.dtype.itemsize
        parts = []
        for some in _batched(range(len(shifts)), max(_COLUMNS // max(bytes_each, 1), 1)):
            columns = jnp.concatenate([window(shifts[i]) for i in some], -1)
            columns = jnp.reshape(columns, (groups, -1, len(some) * c))  # [g, n p, d c]
            parts.append(jnp.matmul(columns, jnp.reshape(w[:, some[0] : some[-1] + 1], (groups, -1, o)), **options))
        found = functools.reduce(jnp.add, parts)
    else:
        lines = jnp.reshape(w, (groups, -1, o))
        found = jnp.stack([jnp.matmul(jnp.reshape(window(at), (groups, n, -1)), lines, **options) for at in shifts], 2)
    found = jnp.reshape(found, (groups, n, *places, o))
    found = jnp.reshape(jnp.moveaxis(found, 0, -2), (n, *places, groups * o))
    held = {out[0]: 0, out[1]: len(out) - 1, **{axis: i + 1 for i, axis in enumerate(out[2:])}}
    return jnp.transpose(found, [held[axis] for axis in range(len(out))])


def _batched(items: Sequence[int], size: int) -> list[Sequence[int]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
