"""Sites: places where a parameter meets data bilinearly, so that its gradient is ``sum_p A[p, a] B[p, b]``.

At a site ``y = <A, W>`` with data ``A`` and cotangent ``B = df/dy`` the leaf's gradient is a sum over positions ``p``
of outer products, and the Gram of gradients factors into Grams of ``A`` and of ``B``: no gradient is ever formed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import JaxprEqn

from dynamics.program.views import Step, View, reshaped
from dynamics.types import Array


class Site(NamedTuple):
    """One site, for one sample; sizes are G groups, P positions, a rows (summed with data), b columns (outputs).

    Attributes:
        leaf: index of the parameter leaf.
        base: see ``View``.
        group_axes, row_axes, column_axes: the base's axes, in increasing order each; together all of them.
        sizes: sizes of the base's axes.
        positions: P.
        indexed: the data is ``[G, P]`` row numbers (an embedding lookup; -1 where out of range) instead of
            ``[G, P, a]``.
        tap: shape and dtype of the site's output, where the zero tap is added.
        columns: cotangent of the tap -> ``[G, P, b]``.
    """

    leaf: int
    base: tuple[Step, ...]
    group_axes: tuple[int, ...]
    row_axes: tuple[int, ...]
    column_axes: tuple[int, ...]
    sizes: tuple[int, ...]
    positions: int
    indexed: bool
    tap: jax.ShapeDtypeStruct
    columns: Callable[[Array], Array]

    def size(self, axes: Sequence[int]) -> int:
        return math.prod(self.sizes[axis] for axis in axes)

    @property
    def groups(self) -> int:
        return self.size(self.group_axes)

    @property
    def rows(self) -> int:
        return self.size(self.row_axes)

    @property
    def width(self) -> int:
        return self.size(self.column_axes)


class Meeting(NamedTuple):
    """A site with the data that it saw, already as ``[G, P, a]`` (or ``[G, P]`` row numbers), and the tap's factor."""

    site: Site
    data: Array
    scale: Any


def meetings(equation: JaxprEqn, values: Sequence[Any], result: Any) -> list[Meeting] | None:
    """The sites of an equation some of whose operands are views; None where it is not a site.

    Two views that meet are two sites with one tap, each the other's data. Complex products are no sites: the cotangent
    of a real leaf is the real part of theirs.
    """
    if jnp.issubdtype(result.dtype, jnp.complexfloating):
        return None
    name = equation.primitive.name
    tap = jax.ShapeDtypeStruct(result.shape, result.dtype)
    if name == "dot_general":
        return [
            _dot(equation.params, view, side, values[1 - side], tap)
            for side, view in enumerate(values)
            if isinstance(view, View)
        ]
    if name == "conv_general_dilated":
        data, view = values
        plain = isinstance(view, View) and not isinstance(data, View) and equation.params["batch_group_count"] == 1
        return [_conv(equation.params, view, data, tap)] if plain else None
    if name == "gather" and isinstance(values[0], View) and not isinstance(values[1], View):
        found = _lookup(equation.params, values[0], values[1], tap)
        return None if found is None else [found]
    return None


def _value(operand: Any) -> Any:
    return operand.value if isinstance(operand, View) else operand


def _sorted_by(axes: Iterable[int], order: Sequence[int]) -> list[int]:
    return sorted(axes, key=lambda axis: order[axis])


def _dot(params: dict[str, Any], view: View, side: int, other: Any, tap: jax.ShapeDtypeStruct) -> Meeting:
    data = _value(other)
    contracting, batch = params["dimension_numbers"]
    summed = dict(zip(contracting[side], contracting[1 - side]))
    shared = dict(zip(batch[side], batch[1 - side]))
    free = [axis for axis in range(view.value.ndim) if axis not in (*summed, *shared)]
    positions = [axis for axis in range(data.ndim) if axis not in (*summed.values(), *shared.values())]
    rows, groups, columns = (_sorted_by(axes, view.order) for axes in (summed, shared, free))
    p = math.prod(data.shape[axis] for axis in positions)

    ordered = jnp.transpose(data, [*(shared[axis] for axis in groups), *positions, *(summed[axis] for axis in rows)])
    g, a = (math.prod(view.value.shape[axis] for axis in axes) for axes in (groups, rows))
    matrix = jnp.reshape(ordered, (g, p, a))

    # axes of the output: the batch axes as listed, the free axes of the left operand, then of the right
    offset = len(shared) + (len(positions) if side == 1 else 0)
    place = {axis: offset + index for index, axis in enumerate(free)}
    place |= {axis: index for index, axis in enumerate(batch[side])}
    start = len(shared) + (len(free) if side == 0 else 0)
    order = [
        *(place[axis] for axis in groups),
        *range(start, start + len(positions)),
        *(place[axis] for axis in columns),
    ]

    def as_columns(cotangent: Array) -> Array:
        return jnp.reshape(jnp.transpose(cotangent, order), (g, p, -1))

    by_group, by_row, by_column = (tuple(view.order[axis] for axis in axes) for axes in (groups, rows, columns))
    site = Site(view.leaf, view.base, by_group, by_row, by_column, view.base_shape, p, False, tap, as_columns)
    return Meeting(site, matrix, view.scale)


def _conv(params: dict[str, Any], view: View, data: Any, tap: jax.ShapeDtypeStruct) -> Meeting:
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    out_axis, in_axis, *spatial = numbers.rhs_spec
    kernel = view.value
    # the kernel as [G, b, spatial..., in]
    order = (out_axis, *spatial, in_axis)
    moved = view._replace(
        value=jax.eval_shape(lambda k: jnp.transpose(k, order), kernel), order=tuple(view.order[axis] for axis in order)
    )
    window = [kernel.shape[axis] for axis in spatial]
    split = (groups, kernel.shape[out_axis] // groups, *window, kernel.shape[in_axis])
    view = reshaped(moved, jax.ShapeDtypeStruct(split, kernel.dtype))

    batch, feature, *places = numbers.out_spec
    p = math.prod(tap.shape[axis] for axis in (batch, *places))
    sample, channel, *area = numbers.lhs_spec
    seen = _patches(params, jnp.transpose(data, (sample, *area, channel)), window)
    by_group = jnp.reshape(seen, (p, math.prod(window), groups, -1))
    matrix = jnp.reshape(jnp.transpose(by_group, (2, 0, 1, 3)), (groups, p, -1))

    def as_columns(cotangent: Array) -> Array:
        flat = jnp.reshape(jnp.transpose(cotangent, (batch, *places, feature)), (p, groups, -1))
        return jnp.transpose(flat, (1, 0, 2))

    axes = tuple(range(len(split)))
    site = Site(view.leaf, view.base, (0,), axes[2:], (1,), split, p, False, tap, as_columns)
    return Meeting(site, matrix, view.scale)


def _patches(params: dict[str, Any], data: Array, window: Sequence[int]) -> Array:
    """What each entry of the window sees of ``[batch, spatial..., in]``: ``[batch, spatial_out..., windows, in]``."""
    steps, inner, outer = params["window_strides"], params["lhs_dilation"], params["rhs_dilation"]
    margins = [(0, 0, 0), *((low, high, gap - 1) for (low, high), gap in zip(params["padding"], inner)), (0, 0, 0)]
    padded = lax.pad(data, jnp.zeros((), data.dtype), margins)
    sizes = [
        (size - (width - 1) * gap - 1) // step + 1
        for size, width, gap, step in zip(padded.shape[1:-1], window, outer, steps)
    ]

    def shifted(offsets: Sequence[int]) -> Array:
        first = [offset * gap for offset, gap in zip(offsets, outer)]
        last = [start + (size - 1) * step + 1 for start, size, step in zip(first, sizes, steps)]
        ends = (padded.shape[0], *last, padded.shape[-1])
        return lax.slice(padded, (0, *first, 0), ends, (1, *steps, 1))

    return jnp.stack([shifted(offsets) for offsets in itertools.product(*map(range, window))], -2)


def _lookup(params: dict[str, Any], view: View, indices: Any, tap: jax.ShapeDtypeStruct) -> Meeting | None:
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    table = view.value
    plain = not numbers.operand_batching_dims and len(numbers.start_index_map) == 1
    if not plain or tuple(numbers.collapsed_slice_dims) != tuple(numbers.start_index_map):
        return None
    (axis,) = numbers.start_index_map
    if any(size != table.shape[place] for place, size in enumerate(sizes) if place != axis):
        return None
    rows = table.shape[axis]
    mode = params["mode"]
    flat = jnp.reshape(indices, (1, -1))
    if mode == lax.GatherScatterMode.CLIP:
        flat = jnp.clip(flat, 0, rows - 1)
    else:
        flat = jnp.where((flat >= 0) & (flat < rows), flat, -1)
    p = flat.shape[1]
    rest = [place for place in range(table.ndim) if place != axis]
    columns = _sorted_by(rest, view.order)
    place = dict(zip(rest, numbers.offset_dims))
    positions = [dim for dim in range(len(tap.shape)) if dim not in numbers.offset_dims]
    order = [*positions, *(place[column] for column in columns)]

    def as_columns(cotangent: Array) -> Array:
        return jnp.reshape(jnp.transpose(cotangent, order), (1, p, -1))

    column_axes = tuple(view.order[column] for column in columns)
    site = Site(view.leaf, view.base, (), (view.order[axis],), column_axes, view.base_shape, p, True, tap, as_columns)
    return Meeting(site, flat, view.scale)


def looped(site: Site, length: int, *, sliced: bool) -> tuple[Site, Callable[[Array], Array]]:
    """A site inside a loop of ``length`` rounds, as one site outside, and how its stacked data becomes the outer data.

    Args:
        site: as seen inside, for one round.
        length: number of rounds.
        sliced: the leaf's leading axis is the loop's (each round has its own weights), so rounds are groups; else the
            weights are shared and rounds are positions.
    """
    groups, positions = site.groups, site.positions

    def merge(stacked: Array) -> Array:
        if sliced:
            return jnp.reshape(stacked, (length * groups, positions, *stacked.shape[3:]))
        moved = jnp.swapaxes(stacked, 0, 1)
        return jnp.reshape(moved, (groups, length * positions, *stacked.shape[3:]))

    def as_columns(cotangent: Array) -> Array:
        return merge(jax.vmap(site.columns)(cotangent))

    tap = jax.ShapeDtypeStruct((length, *site.tap.shape), site.tap.dtype)
    outer = site._replace(tap=tap, columns=as_columns)
    if not sliced:
        return outer._replace(positions=length * positions), merge
    shift = [tuple(axis + 1 for axis in axes) for axes in (site.group_axes, site.row_axes, site.column_axes)]
    return (
        outer._replace(
            group_axes=(0, *shift[0]),
            row_axes=shift[1],
            column_axes=shift[2],
            sizes=(length, *site.sizes),
        ),
        merge,
    )
