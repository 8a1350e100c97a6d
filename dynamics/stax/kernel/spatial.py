"""Linear maps along spatial axes, on squared distances.

Weight sharing and pooling act linearly on half squared distances ``D = (q1 + q2) / 2 - k = g + (s1 - s2)^2 / 2``, which
vanish where two positions agree. Sums over a window are sums of shifted slices: no convolution is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dynamics.stax.kernel.algebra import own_sides
from dynamics.stax.kernel.kernel import Kernel, deviations
from dynamics.types import Array


class Window(NamedTuple):
    """A window along one spatial axis: ``size``, ``stride``, padding ``low, high``, zeros between inputs, wrapping."""

    size: int
    stride: int
    low: int
    high: int
    dilation: int = 1
    circular: bool = False


def windows(shape: Sequence[int], sizes: Sequence[int], strides: Sequence[int], padding: str) -> list[Window]:
    """The windows of a convolution or a pooling over spatial axes of sizes ``shape``."""
    if len(shape) != len(sizes) or len(sizes) != len(strides):
        raise ValueError(
            f"window sizes, strides: got {tuple(sizes)} and {tuple(strides)}; allowed: one entry for each of the "
            f"{len(shape)} spatial axes of the input"
        )
    pads = lax.padtype_to_pads(shape, sizes, strides, "VALID" if padding == "VALID" else "SAME")
    found = [
        Window(size, stride, low, high, 1, padding == "CIRCULAR")
        for size, stride, (low, high) in zip(sizes, strides, pads, strict=True)
    ]
    for length, window in zip(shape, found, strict=True):
        if length + window.low + window.high < window.size:
            raise ValueError(f"window: got size {window.size}; allowed: what fits into a spatial axis of size {length}")
    return found


def transposed_windows(sizes: Sequence[int], strides: Sequence[int], padding: str) -> list[Window]:
    """The windows of a transposed convolution, as those of a convolution of the dilated input."""
    found = []
    for size, stride in zip(sizes, strides, strict=True):
        if padding == "CIRCULAR":
            start = max(size - stride, 0) // 2
            found.append(Window(size, 1, size - 1 - start, start, stride, True))
            continue
        total = size + stride - 2 + (max(size - stride, 0) if padding == "VALID" else 0)
        low = size - 1 if padding == "VALID" or stride > size - 1 else -(-total // 2)
        found.append(Window(size, 1, low, total - low, stride))
    return found


@partial(jax.jit, static_argnames=("axes", "window"), inline=True)
def pad(x: Array, axes: tuple[int, ...], window: Window) -> Array:
    """Dilates and pads ``axes`` of ``x`` as ``window`` says."""
    config = [(0, 0, 0)] * x.ndim
    for axis in axes:
        trailing = window.dilation - 1 if window.circular else 0
        config[axis] = (
            (0, trailing, window.dilation - 1)
            if window.circular
            else (
                window.low,
                window.high,
                window.dilation - 1,
            )
        )
    x = lax.pad(x, jnp.zeros((), x.dtype), config)
    if not window.circular:
        return x
    wrap = [(0, 0)] * x.ndim
    for axis in axes:
        wrap[axis] = (window.low, window.high)
    return jnp.pad(x, wrap, mode="wrap")


def pad_all_axes(x: Array, axes: Sequence[int], found: Sequence[Window]) -> Array:
    """Pads each of ``axes`` by its window."""
    for axis, window in zip(axes, found, strict=True):
        x = pad(x, (axis,), window)
    return x


def mask_at_centres(mask: Array, axes: Sequence[int], found: Sequence[Window]) -> Array:
    """``mask`` at the centre of each window, unchanged where windows do not change its shape."""
    shape = [mask.shape[axis] for axis in axes]
    after = output_sizes(shape, found)
    if tuple(shape) == after:
        return mask
    index = [slice(None)] * mask.ndim
    for axis, window, size in zip(axes, found, after, strict=True):
        start = (window.size - 1) // 2 - window.low
        index[axis] = slice(start, start + 1 + (size - 1) * window.stride, window.stride)
    return mask[tuple(index)]


@partial(jax.jit, static_argnames=("axes", "window"), inline=True)
def shifted_sum(x: Array, axes: tuple[int, ...], window: Window) -> Array:
    """``sum_d x[stride p + d, ...]`` with the same shift ``d`` along all ``axes``."""

    def shifted(d):
        index = [slice(None)] * x.ndim
        for axis in axes:
            last = x.shape[axis] - window.size + 1
            index[axis] = slice(d, d + last, window.stride)
        return x[tuple(index)]

    total = shifted(0)
    for d in range(1, window.size):
        total = total + shifted(d)
    return total


def _axis_groups(start: int, count: int, full: bool) -> list[tuple[int, ...]]:
    if full:
        return [(start + 2 * i, start + 2 * i + 1) for i in range(count)]
    return [(start + i,) for i in range(count)]


def _fence(x: Array) -> Array:
    # Keeps XLA from fusing the producer of x into each shifted read, which would compute it window-size times.
    return lax.optimization_barrier(x)


def pad_all(x: Array, start: int, shape: Sequence[Window], full: bool) -> Array:
    """Pads every spatial axis of ``x``, the first of which is ``start``."""
    for axes, window in zip(_axis_groups(start, len(shape), full), shape, strict=True):
        x = pad(x, axes, window)
    return x


@partial(jax.jit, static_argnames=("start", "shape", "full"), inline=True)
def sum_shared(x: Array, start: int, shape: tuple[Window, ...], full: bool) -> Array:
    """Sums ``x``, padded with zeros, over windows that move together in both positions (shared weights).

    Each axis is padded when its turn comes, so that no array is larger than one axis's padding makes it.
    """
    for axes, window in zip(_axis_groups(start, len(shape), full), shape, strict=True):
        x = shifted_sum(_fence(pad(x, axes, window)), axes, window)
    return _fence(x)


@partial(jax.jit, static_argnames=("start", "shape"), inline=True)
def sum_shared_distances(distance: Array, var1: Array, var2: Array, start: int, shape: tuple[Window, ...]) -> Array:
    """Sums half squared distances ``D [..., h, h, w, w, ...]`` over windows that move together in both positions.

    ``var1 [..., h, 1, w, 1, ...]`` and ``var2 [..., 1, h, 1, w, ...]`` are the variances. Where one position is padding
    ``D`` is half the variance of the other.
    """
    for axes, window in zip(_axis_groups(start, len(shape), True), shape, strict=True):
        row, column = axes
        outside1, outside2 = (_outside(distance, axis, window) for axis in axes)
        var1, var2 = pad(var1, (row,), window), pad(var2, (column,), window)
        distance = pad(distance, axes, window)
        if outside1 is not None and outside2 is not None:
            distance = distance + 0.5 * (var1 * outside2 + var2 * outside1)
        distance = shifted_sum(_fence(distance), axes, window)
        var1, var2 = shifted_sum(var1, (row,), window), shifted_sum(var2, (column,), window)
    return _fence(distance)


def _outside(x: Array, axis: int, window: Window) -> Array | None:
    """1 where padding goes along ``axis`` of ``x`` and 0 elsewhere, shaped to broadcast; None without padding."""
    size = x.shape[axis]
    outside = 1 - pad(jnp.ones(size, x.dtype), (0,), window)
    if len(outside) == size or (window.circular and window.dilation == 1):
        return None
    return outside.reshape([-1 if i == axis else 1 for i in range(x.ndim)])


def sum_independent(x: Array, start: int, shape: Sequence[Window], full: bool) -> Array:
    """Sums padded ``x`` over windows that move independently in both positions (pooling)."""
    x = _fence(x)
    for axes, window in zip(_axis_groups(start, len(shape), full), shape, strict=True):
        for axis in axes:
            x = shifted_sum(x, (axis,), window)
    return x


@partial(jax.jit, inline=True)
def half_distance(gap: Array, row: Array, column: Array) -> Array:
    """``D = g + (s1 - s2)^2 / 2``."""
    return gap + 0.5 * (row - column) ** 2


@partial(jax.jit, inline=True)
def gap_of(distance: Array, row: Array, column: Array) -> Array:
    """``g = D - (s1 - s2)^2 / 2``."""
    return jnp.maximum(distance - 0.5 * (row - column) ** 2, 0)


def map_shared(k: Kernel, shape: Sequence[Window], scale, shift) -> Kernel:
    """Covariances ``scale * (window sum of k) + shift`` for shared weights; the NTK without ``shift``."""
    shape = tuple(shape)
    full = not k.diagonal_spatial
    before, variances = deviations(k), (k.var1, k.other(k.var1, k.var2))

    def variance(var):
        if var is None:
            return None
        total = sum_shared(var, 1, shape, False)
        return scale * total + (0 if shift is None else shift)

    out = k.replace(var1=variance(k.var1), var2=variance(k.var2))
    after = deviations(out)

    def convolve(gap, start, sides, i, j):
        if gap is None:
            return None
        distance = half_distance(gap, *sides(before[i], before[j]))
        if full:
            var1, var2 = sides(variances[i], variances[j])
            distance = sum_shared_distances(distance, var1, var2, start, shape)
        else:
            distance = sum_shared(distance, start, shape, False)
        return gap_of(scale * distance, *sides(after[i], after[j]))

    return out.replace(
        gap=convolve(k.gap, 2, k.sides, 0, 1),
        ntk=None if k.ntk is None else scale * sum_shared(k.ntk, 2, shape, full),
        within1=convolve(k.within1, 1, own_sides, 0, 0),
        within2=convolve(k.within2, 1, own_sides, 1, 1),
    )


def output_sizes(shape: Sequence[int], found: Sequence[Window]) -> tuple[int, ...]:
    """Sizes of the spatial axes after the windows."""
    sizes = []
    for length, w in zip(shape, found, strict=True):
        dilated = length * w.dilation if w.circular else (length - 1) * w.dilation + 1
        sizes.append((dilated + w.low + w.high - w.size) // w.stride + 1)
    return tuple(sizes)


def spatial_shape(k: Kernel) -> tuple[int, ...]:
    """Sizes of the spatial axes."""
    return tuple(k.var1.shape[1:])
