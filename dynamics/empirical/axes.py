"""Which output axes of a kernel are traced, which keep their diagonal only, and the order of the result's axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp

from dynamics.types import Array


class OutputAxes(NamedTuple):
    """Roles of the axes of one output ``f(x) [n, o_1, ..., o_k]``, as axis numbers of that output.

    Attributes:
        trace: axes averaged over along the diagonal; absent from the kernel.
        diagonal: axes of which only the diagonal is kept; once in the kernel.
        full: all others; twice in the kernel, next to one another.
    """

    trace: tuple[int, ...]
    diagonal: tuple[int, ...]
    full: tuple[int, ...]


def output_axes(ndim: int, trace_axes: int | Sequence[int], diagonal_axes: int | Sequence[int]) -> OutputAxes:
    """Sorts the axes of an output with ``ndim`` axes into roles.

    Raises:
        ValueError: when an axis is out of range or is both traced and diagonal.
    """
    trace = _canonical("trace_axes", trace_axes, ndim)
    diagonal = _canonical("diagonal_axes", diagonal_axes, ndim)
    both = set(trace) & set(diagonal)
    if both:
        raise ValueError(f"diagonal_axes: got {diagonal_axes!r}; allowed: none of trace_axes, as {sorted(both)} are")
    full = tuple(axis for axis in range(ndim) if axis not in (*trace, *diagonal))
    return OutputAxes(trace, diagonal, full)


def arrange(kernel: Array, shape1: Sequence[int], shape2: Sequence[int], axes: OutputAxes) -> Array:
    """From ``[diagonal..., full_1..., full_2...]``, flattened or not, to the public order.

    The public order walks through the output's axes: a traced axis is absent, a diagonal one appears once, any other
    appears as a pair (first argument, second argument).

    Args:
        kernel: holds ``prod(diagonal) * prod(full_1) * prod(full_2)`` numbers in that order.
        shape1: shape of ``f(x1)``.
        shape2: shape of ``f(x2)``.
        axes: roles of the output's axes.
    """
    diagonal = [shape1[axis] for axis in axes.diagonal]
    full1, full2 = [shape1[axis] for axis in axes.full], [shape2[axis] for axis in axes.full]
    kernel = jnp.reshape(kernel, (*diagonal, *full1, *full2))
    order: list[int] = []
    for axis in range(len(shape1)):
        if axis in axes.diagonal:
            order.append(axes.diagonal.index(axis))
        elif axis in axes.full:
            place = len(diagonal) + axes.full.index(axis)
            order += [place, place + len(full1)]
    return jnp.transpose(kernel, order)


def traced_size(shape: Sequence[int], axes: OutputAxes) -> int:
    """Number of entries that a trace averages over."""
    return math.prod(shape[axis] for axis in axes.trace)


def check_shapes(shape1: Sequence[int], shape2: Sequence[int], axes: OutputAxes) -> None:
    """Raises ``ValueError`` unless the two outputs agree on traced and diagonal axes."""
    same_rank = len(shape1) == len(shape2)
    if not same_rank or any(shape1[axis] != shape2[axis] for axis in (*axes.trace, *axes.diagonal)):
        raise ValueError(
            f"x2: got f(x1) {tuple(shape1)} and f(x2) {tuple(shape2)}; allowed: equal sizes along trace_axes "
            f"{axes.trace} and diagonal_axes {axes.diagonal}"
        )


def _canonical(name: str, axes: int | Sequence[int], ndim: int) -> tuple[int, ...]:
    listed = (axes,) if isinstance(axes, int) else tuple(axes)
    if any(not -ndim <= axis < ndim for axis in listed):
        raise ValueError(f"{name}: got {axes!r}; allowed: axes of the output, from {-ndim} to {ndim - 1}")
    canonical = tuple(sorted(axis % ndim for axis in listed))
    if len(set(canonical)) != len(canonical):
        raise ValueError(f"{name}: got {axes!r}; allowed: each axis once")
    return canonical
