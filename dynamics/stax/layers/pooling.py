"""Pooling and flattening."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from dynamics.stax.kernel.algebra import diagonal_of, where_kept, within_sides
from dynamics.stax.kernel.kernel import Deviations, Kernel, deviations
from dynamics.stax.kernel.masks import check_positions, visible, visible_mean
from dynamics.stax.kernel.positions import map_positions
from dynamics.stax.kernel.spatial import (
    Window,
    gap_of,
    half_distance,
    map_shared,
    mask_at_centres,
    output_sizes,
    pad,
    pad_all,
    spatial_shape,
    sum_independent,
    windows,
)
from dynamics.stax.layers.checks import Padding, choice
from dynamics.stax.layers.layer import Needs, layer
from dynamics.types import Array, Model


def AvgPool(
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: Any = "VALID",
    normalize_edges: bool = False,
    batch_axis: int = 0,
    channel_axis: int = -1,
) -> Model:
    """Averages over windows: ``k'[P, Q]`` is the mean of ``k[p, q]`` over both windows.

    Args:
        window_shape: sizes of the window. strides: steps between windows, ones when None.
        padding: 'SAME', 'VALID' or 'CIRCULAR'.
        normalize_edges: whether windows that overlap the border divide by what they hold, not by their full size.
        batch_axis, channel_axis: axes of the input.
    """
    return _pool(window_shape, strides, padding, True, normalize_edges, batch_axis, channel_axis)


def SumPool(
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: Any = "VALID",
    batch_axis: int = 0,
    channel_axis: int = -1,
) -> Model:
    """Sums over windows; arguments as in ``AvgPool``."""
    return _pool(window_shape, strides, padding, False, False, batch_axis, channel_axis)


def _shares(k: Kernel, average: bool) -> tuple[Array, Array]:
    """``[n1, *S]`` and ``[n2, *S]`` what a position weighs in a mean over those that count, or in a sum."""
    counts = (visible(k) if average else None) or [jnp.ones((1, *spatial_shape(k)))] * 2
    counts = [c.astype(k.gap.dtype) for c in counts]
    axes = tuple(range(1, k.var1.ndim))
    one, two = (c / jnp.maximum(jnp.sum(c, axes, keepdims=True), 1) if average else c for c in counts)
    return one, two


def _sum_of_equal(k: Kernel, one: Array, two: Array) -> Kernel:
    """``k' = sum_p a_p b_p k[p, p]``, where different positions are uncorrelated: the sum as a single position."""
    axes = tuple(range(1, k.var1.ndim))

    def total(x: Array, start: int = 1) -> Array:
        return jnp.sum(x, tuple(range(start, x.ndim)), keepdims=True)

    var2 = where_kept(lambda var: total(var * two**2), k.var2)
    out = k.replace(var1=jnp.sum(k.var1 * one**2, axes, keepdims=True), var2=var2)
    (a, b), (q1, q2) = k.sides(one, two), k.sides(k.var1, k.other(k.var1, k.var2))
    distance = a * b * half_distance(k.gap, *k.sides(*deviations(k))) + 0.5 * (a - b) * (a * q1 - b * q2)
    return out.replace(
        gap=gap_of(total(distance, 2), *out.sides(*deviations(out))),
        ntk=where_kept(lambda ntk: total(a * b * ntk, 2), k.ntk),
    )


def _sum_of_visible(k: Kernel, one: Array, two: Array) -> Kernel:
    """``k' = sum_pq a_p b_q k[p, q]`` as a single position."""
    axes = tuple(range(1, k.var1.ndim))
    return map_positions(k, *(lambda x, w=w: jnp.sum(x * w[..., None], axes, keepdims=True) for w in (one, two)))


def _spatial_axes(ndim: int, batch_axis: int, channel_axis: int) -> list[int]:
    return [i for i in range(ndim) if i not in (batch_axis % ndim, channel_axis % ndim)]


class _Pool(NamedTuple):
    """What ``AvgPool`` and ``SumPool`` were asked for."""

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    padding: str
    average: bool
    normalize_edges: bool
    batch_axis: int
    channel_axis: int

    def windows(self, shape: Sequence[int]) -> list[Window]:
        """The windows over spatial axes of sizes ``shape``."""
        return windows(shape, self.sizes, self.strides, self.padding)

    def counts(self, shape: Sequence[int]) -> Array:
        """``[*S']`` the number each window's sum is divided by."""
        if not self.average:
            return jnp.ones((1,) * len(shape))
        if not self.normalize_edges or self.padding != "SAME":
            return jnp.full((1,) * len(shape), float(math.prod(self.sizes)))
        found = self.windows(shape)
        return sum_independent(pad_all(jnp.ones(shape), 0, found, False), 0, found, False)

    def output_mask(self, mask: Array, shape: Sequence[int]) -> Array:
        """Masked outputs: those at the centre of whose window the input is masked."""
        check_positions(mask, self.channel_axis, "pooling")
        axes = _spatial_axes(mask.ndim, self.batch_axis, self.channel_axis)
        found = windows([shape[i] for i in axes], self.sizes, self.strides, self.padding)
        return mask_at_centres(mask, axes, found)

    def output_shape(self, input_shape: Sequence[int]) -> tuple[int, ...]:
        axes = _spatial_axes(len(input_shape), self.batch_axis, self.channel_axis)
        spatial = [input_shape[i] for i in axes]
        after = dict(zip(axes, output_sizes(spatial, self.windows(spatial)), strict=True))
        return tuple(after.get(i, size) for i, size in enumerate(input_shape))


def _pool(window_shape, strides, padding, average, normalize_edges, batch_axis, channel_axis) -> Model:
    sizes, padding = tuple(window_shape), choice("padding", padding, Padding)
    strides = (1,) * len(sizes) if strides is None else tuple(strides)
    asked = _Pool(sizes, strides, padding, average, normalize_edges, batch_axis, channel_axis)

    def init(rng, input_shape):
        return asked.output_shape(input_shape), ()

    return layer(
        init,
        functools.partial(_apply_pool, asked),
        functools.partial(_propagate_pool, asked),
        Needs(batch_axis, channel_axis, lambda full: True),
        asked.output_mask,
    )


def _apply_pool(asked: _Pool, params, inputs, **kwargs):
    axes = _spatial_axes(inputs.ndim, asked.batch_axis, asked.channel_axis)
    spatial = [inputs.shape[i] for i in axes]
    shape, steps = [1] * inputs.ndim, [1] * inputs.ndim
    for axis, window in zip(axes, asked.windows(spatial), strict=True):
        inputs = pad(inputs, (axis,), window)
        shape[axis], steps[axis] = window.size, window.stride
    total = lax.reduce_window(inputs, 0.0, lax.add, shape, steps, "VALID")
    divisor = jnp.expand_dims(asked.counts(spatial), [i for i in range(inputs.ndim) if i not in axes])
    return total / divisor.astype(total.dtype)


def _propagate_pool(asked: _Pool, k: Kernel, **kwargs) -> Kernel:
    found = asked.windows(spatial_shape(k))
    scale = 1 / asked.counts(spatial_shape(k)).astype(k.gap.dtype)[None]

    def padded(x, start, full=True):
        return pad_all(x, start, found, full)

    def contract(x, start):
        return sum_independent(x, start, found, True)

    out = map_shared(k, found, 1.0, None) if k.diagonal_spatial else sum_positions(k, contract, padded)
    row, column = out.sides(scale, scale)
    inside = functools.reduce(operator.mul, within_sides(scale))
    return out.replace(
        gap=out.gap * (row * column),
        ntk=None if out.ntk is None else out.ntk * (row * column),
        var1=out.var1 * scale**2,
        var2=None if out.var2 is None else out.var2 * scale**2,
        within1=where_kept(operator.mul, out.within1, inside),
        within2=where_kept(operator.mul, out.within2, inside),
        shape1=asked.output_shape(k.shape1),
        shape2=asked.output_shape(k.shape2),
    )


def GlobalAvgPool(batch_axis: int = 0, channel_axis: int = -1) -> Model:
    """Averages over all positions: ``k' = mean_pq k[p, q]``."""
    return _global_pool(True, batch_axis, channel_axis)


def GlobalSumPool(batch_axis: int = 0, channel_axis: int = -1) -> Model:
    """Sums over all positions: ``k' = sum_pq k[p, q]``."""
    return _global_pool(False, batch_axis, channel_axis)


def _global_pool(average: bool, batch_axis: int, channel_axis: int) -> Model:
    def output_shape(input_shape):
        axes = _spatial_axes(len(input_shape), batch_axis, channel_axis)
        return tuple(size for i, size in enumerate(input_shape) if i not in axes)

    def apply(params, inputs, mask=None, **kwargs):
        axes = tuple(_spatial_axes(inputs.ndim, batch_axis, channel_axis))
        if not average:
            return jnp.sum(inputs, axes)
        return jnp.mean(inputs, axes) if mask is None else visible_mean(inputs, axes, ~mask).squeeze(axes)

    def propagate(k: Kernel, **kwargs):
        if k.spatial_ndim == 0:
            return k
        if k.diagonal_spatial:
            out = _sum_of_equal(k, *_shares(k, average))
        elif average and (k.mask1 is not None or k.mask2 is not None):
            out = _sum_of_visible(k, *_shares(k, average))
        else:
            weight = 1.0 / math.prod(spatial_shape(k)) ** 2 if average else 1.0

            def contract(x, start):
                return weight * jnp.sum(x, tuple(range(start, x.ndim)), keepdims=True)

            out = sum_positions(k, contract)
        batch_first = k.batch_axis < k.channel_axis
        return drop_positions(out).replace(
            shape1=output_shape(k.shape1),
            shape2=output_shape(k.shape2),
            batch_axis=0 if batch_first else 1,
            channel_axis=1 if batch_first else 0,
        )

    def output_mask(mask, shape):
        check_positions(mask, channel_axis, "pooling")
        return jnp.all(mask, tuple(_spatial_axes(mask.ndim, batch_axis, channel_axis)))

    needs = Needs(batch_axis, channel_axis, lambda full: True)
    return layer(lambda rng, shape: (output_shape(shape), ()), apply, propagate, needs, output_mask, clears=False)


def sum_positions(k: Kernel, contract, padded=lambda x, start, full=True: x) -> Kernel:
    """The kernel of sums over positions, ``f'(P) = sum_(p in P) f(p)``.

    ``contract(x, start)`` sums a padded ``x`` over ``p in P, q in Q``; its spatial axes begin at ``start``. Half
    squared distances become ``D'[P, Q] = D[P, Q] - (D11[P, P] + D22[Q, Q]) / 2``, exactly zero where two inputs agree.
    """
    s = deviations(k)
    wide = Deviations(padded(s.one, 1, False), padded(s.two, 1, False))

    def own(within, s, wide):
        row, column = within_sides(s)
        variance = jnp.maximum(diagonal_of(contract(padded(row * column - within, 1), 1)), 0)
        return variance, contract(half_distance(padded(within, 1), *within_sides(wide)), 1)

    var1, inner1 = own(k.within1, s.one, wide.one)
    var2, inner2 = (None, inner1) if k.within2 is None else own(k.within2, s.two, wide.two)
    out = k.replace(var1=var1, var2=var2)
    after = deviations(out)

    def gap(distance, own_sides, sides):
        row, column = own_sides
        return gap_of(0.5 * ((distance - row) + (distance - column)), *sides)

    def within(inner, s):
        return gap(inner, within_sides(diagonal_of(inner)), within_sides(s))

    cross = contract(half_distance(padded(k.gap, 2), *k.sides(*wide)), 2)
    return out.replace(
        gap=gap(cross, k.sides(diagonal_of(inner1), diagonal_of(inner2)), k.sides(*after)),
        ntk=None if k.ntk is None else contract(padded(k.ntk, 2), 2),
        within1=within(inner1, after.one),
        within2=None if k.within2 is None else within(inner2, after.two),
    )


def drop_positions(k: Kernel) -> Kernel:
    """A kernel whose spatial axes all have size 1, without them."""

    def drop(x, start):
        return None if x is None else x.reshape(x.shape[:start])

    return k.replace(
        gap=drop(k.gap, 2),
        ntk=drop(k.ntk, 2),
        var1=drop(k.var1, 1),
        var2=drop(k.var2, 1),
        within1=None,
        within2=None,
        diagonal_spatial=True,
    )


def Flatten(batch_axis: int = 0, batch_axis_out: int = 0) -> Model:
    """All positions and channels as one channel axis: ``k' = mean_p k[p, p]``.

    Args:
        batch_axis: axis of the samples. batch_axis_out: 0 or 1, axis of the samples in the output.
    """
    if batch_axis_out not in (0, 1, -1, -2):
        raise ValueError(f"batch_axis_out: got {batch_axis_out}; allowed: 0 or 1")
    samples_first = batch_axis_out in (0, -2)

    def output_shape(input_shape):
        axis = batch_axis % len(input_shape)
        features = math.prod(input_shape[:axis] + input_shape[axis + 1 :])
        return (input_shape[axis], features) if samples_first else (features, input_shape[axis])

    def apply(params, inputs, **kwargs):
        axis = batch_axis % inputs.ndim
        if samples_first:
            return jnp.moveaxis(inputs, axis, 0).reshape(output_shape(inputs.shape))
        return jnp.moveaxis(inputs, axis, -1).reshape(output_shape(inputs.shape))

    def propagate(k: Kernel, **kwargs):
        s = deviations(k)
        distance = half_distance(k.gap, *k.sides(*s))
        full = not k.diagonal_spatial

        def mean(x: Array, start: int, full: bool):
            while full and x.ndim > start:
                x = jnp.trace(x, axis1=-2, axis2=-1) / x.shape[-1]
            return x if x.ndim == start else jnp.mean(x, tuple(range(start, x.ndim)))

        out = k.replace(
            var1=mean(k.var1, 1, False), var2=None if k.var2 is None else mean(k.var2, 1, False), diagonal_spatial=True
        )
        return out.replace(
            gap=gap_of(mean(distance, 2, full), *out.sides(*deviations(out))),
            ntk=None if k.ntk is None else mean(k.ntk, 2, full),
            within1=None,
            within2=None,
            is_gaussian=False,
            shape1=output_shape(k.shape1),
            shape2=output_shape(k.shape2),
            batch_axis=0 if samples_first else 1,
            channel_axis=1 if samples_first else 0,
        )

    def output_mask(mask, shape):
        return apply((), jnp.broadcast_to(mask, shape))

    needs = Needs(batch_axis, None, lambda full: False)
    return layer(lambda rng, shape: (output_shape(shape), ()), apply, propagate, needs, output_mask, clears=False)
