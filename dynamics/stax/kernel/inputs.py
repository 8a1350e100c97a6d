"""The Kernel of the inputs themselves."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from dynamics.mesh import free_bytes
from dynamics.stax.kernel.algebra import pair_indices, safe_reciprocal, safe_sqrt, within_sides
from dynamics.stax.kernel.kernel import Kernel
from dynamics.stax.kernel.masks import is_masked, masked
from dynamics.types import Array


def kernel_from_inputs(
    x1,
    x2,
    *,
    full_spatial: bool,
    compute_ntk: bool,
    batch_axis: int = 0,
    channel_axis: int = -1,
    paired: bool = False,
    mask_constant: Any = None,
) -> Kernel:
    """``k = <x1, x2> / channels`` as a Kernel; entries of the inputs equal to ``mask_constant`` are masked."""
    (x1, mask1), (x2, mask2) = (_unmasked(x, mask_constant) for x in (x1, x2))
    first = canonical(x1, batch_axis, channel_axis, "x1")
    second = first if x2 is None else canonical(x2, batch_axis, channel_axis, "x2")
    shape1, shape2 = tuple(jnp.shape(x1)), tuple(jnp.shape(x1 if x2 is None else x2))
    diagonal = not full_spatial or first.ndim == 2
    check_pair(first, second, diagonal)
    var1, var2 = variance(first), variance(second)
    paired = paired and x2 is None and not diagonal
    itself = jnp.eye(len(first), dtype=bool) if x2 is None else jnp.zeros((1, 1), bool)
    gap = _pair_gap(first, var1) if paired else _cross_gap(first, second, var1, var2, diagonal, itself)
    ndim = first.ndim
    return Kernel(
        gap=gap,
        ntk=jnp.zeros_like(gap) if compute_ntk else None,
        var1=var1,
        var2=None if x2 is None else var2,
        within1=None if diagonal else _within_gap(first, var1),
        within2=None if diagonal or x2 is None else _within_gap(second, var2),
        mask1=mask1,
        mask2=mask2,
        x1_is_x2=x2 is None,
        paired=paired,
        diagonal_spatial=diagonal,
        shape1=shape1,
        shape2=shape2,
        batch_axis=batch_axis % ndim,
        channel_axis=channel_axis % ndim,
    )


def _unmasked(x, mask_constant: Any) -> tuple[Any, Any]:
    """The input with zeros where it is masked, and its mask or None."""
    if x is None:
        return None, None
    if mask_constant is None and not is_masked(x):
        return x, None
    found = masked(x, mask_constant)
    return found.masked_value, found.mask


def canonical(x, batch_axis: int, channel_axis: int, name: str) -> Array:
    """``[n, *spatial, channels]`` in the default floating precision."""
    x = jnp.asarray(x)
    if x.ndim < 2:
        raise ValueError(f"{name}: got shape {x.shape}; allowed: a batch and a channel axis, and any between them")
    for axis_name, axis in (("batch_axis", batch_axis), ("channel_axis", channel_axis)):
        if not -x.ndim <= axis < x.ndim:
            raise ValueError(
                f"{axis_name}: got {axis} for {name} of shape {x.shape}; allowed: {-x.ndim} to {x.ndim - 1}"
            )
    if jnp.iscomplexobj(x) or not x.shape[channel_axis]:
        raise ValueError(f"{name}: got {x.dtype} of shape {x.shape}; allowed: real numbers, at least one channel")
    x = x.astype(jnp.promote_types(jnp.result_type(float), jnp.float32))
    return jnp.moveaxis(x, (batch_axis, channel_axis), (0, -1))


def check_pair(x1: Array, x2: Array, diagonal: bool, alive: int = 3) -> None:
    """Refuses inputs of different shapes, and kernels that cannot fit: ``alive`` arrays of all pairs at once."""
    if x1.shape[1:] != x2.shape[1:]:
        raise ValueError(
            f"x2: got shape {x2.shape} with x1 {x1.shape}; allowed: equal in all but the first axis, the batch"
        )
    positions = math.prod(x1.shape[1:-1]) ** (1 if diagonal else 2)
    needed = alive * x1.shape[0] * x2.shape[0] * positions * x1.dtype.itemsize
    available = free_bytes(jax.devices()[:1])
    if needed > available:
        raise ValueError(
            f"x1, x2: got {x1.shape[0]} x {x2.shape[0]} samples, a kernel of {needed / 2**30:.3g} GiB; allowed: what "
            f"fits {available / 2**30:.3g} GiB, or tiles: batch(kernel_fn, batch_size=...)"
        )


def variance(x: Array) -> Array:
    """Mean square over channels."""
    return jnp.sum(x * x, -1) / x.shape[-1]


def _cross_gap(x1: Array, x2: Array, var1: Array, var2: Array, diagonal: bool, itself: Array) -> Array:
    """``[n1, n2, ...]`` gap, pixel by pixel (``diagonal``) or between all pixels."""
    unit1, unit2 = _unit(x1, var1), _unit(x2, var2)
    n1, n2, spatial, channels = x1.shape[0], x2.shape[0], x1.shape[1:-1], x1.shape[-1]
    size = math.prod(spatial)
    if diagonal:
        one, two = (jnp.moveaxis(u.reshape(n, size, channels), 1, 0) for u, n in ((unit1, n1), (unit2, n2)))
        versine = jnp.moveaxis(_versine(one, two, itself), 0, -1).reshape(n1, n2, *spatial)
        s1, s2 = safe_sqrt(var1)[:, None], safe_sqrt(var2)[None]
    else:
        one, two = (u.reshape(1, n * size, channels) for u, n in ((unit1, n1), (unit2, n2)))
        if itself.shape == (n1, n2):
            itself = (itself[:, None, :, None] & jnp.eye(size, dtype=bool)[:, None]).reshape(n1 * size, n2 * size)
        versine = _versine(one, two, itself).reshape(n1, *spatial, n2, *spatial)
        ndim = len(spatial)
        pairs = [axis for i in range(ndim) for axis in (1 + i, 2 + ndim + i)]
        versine = jnp.transpose(versine, [0, 1 + ndim, *pairs])
        s1, s2 = (jnp.expand_dims(s, 1 - side) for side, s in enumerate(_sides(safe_sqrt(var1), safe_sqrt(var2))))
    return s1 * s2 * versine


def _pair_gap(x: Array, var: Array) -> Array:
    """``[n (n + 1) / 2, 1, h, h, w, w, ...]`` gap between all pixels of the inputs ``i <= j``."""
    first, second = pair_indices(x.shape[0])
    spatial, ndim = x.shape[1:-1], x.ndim - 2
    unit, s = _unit(x, var).reshape(x.shape[0], math.prod(spatial), x.shape[-1]), safe_sqrt(var)
    versine = _versine(unit[first], unit[second], jnp.zeros((1, 1), bool)).reshape(-1, *spatial, *spatial)
    pairs = [axis for i in range(ndim) for axis in (1 + i, 1 + ndim + i)]
    row, column = within_sides(s)[0][first], within_sides(s)[1][second]
    gap = row * column * jnp.transpose(versine, [0, *pairs])
    return gap[:, None]


def _sides(one: Array, two: Array) -> tuple[Array, Array]:
    return within_sides(one)[0], within_sides(two)[1]


def _within_gap(x: Array, var: Array) -> Array:
    """``[n, h, h, w, w, ...]`` gap between the pixels of each input."""
    n, spatial, channels = x.shape[0], x.shape[1:-1], x.shape[-1]
    flat = _unit(x, var).reshape(n, math.prod(spatial), channels)
    ndim = len(spatial)
    pairs = [axis for i in range(ndim) for axis in (1 + i, 1 + ndim + i)]
    versine = jnp.transpose(
        _versine(flat, flat, jnp.eye(flat.shape[1], dtype=bool)).reshape(n, *spatial, *spatial), [0, *pairs]
    )
    row, column = within_sides(safe_sqrt(var))
    return row * column * versine


def _unit(x: Array, var: Array) -> Array:
    """``x`` over its root mean square along channels (0 where ``x`` is 0)."""
    return x * safe_reciprocal(safe_sqrt(var))[..., None]


_DIRECT_CHANNELS, _ROWS = 16, 8


def few_channels(x: Array) -> bool:
    """Whether versines are cheapest as half squared distances."""
    return x.shape[-1] <= _DIRECT_CHANNELS


def half_square_distance(one: Array, two: Array) -> Array:
    """Half the mean square over channels of ``one - two``: the versine of unit vectors."""
    if not few_channels(one):
        return jnp.mean((one - two) ** 2, -1) / 2
    squares = [(one[..., c] - two[..., c]) ** 2 for c in range(one.shape[-1])]
    return functools.reduce(jnp.add, squares) / (2 * len(squares))


def close_versine(dtype: Any) -> float:
    """The versine below which ``1 - cos`` has lost digits that ``half_square_distance`` keeps."""
    return max(0.02 * (float(jnp.finfo(dtype).eps) / 1.2e-7) ** 0.5, 1e-6)


def _versine(one: Array, two: Array, itself: Array) -> Array:
    """``[b, n1, n2]`` ``1 - cos`` between unit rows ``[b, n1, c]`` and ``[b, n2, c]``, accurate for close rows too."""
    if few_channels(one):
        return half_square_distance(one[:, :, None], two[:, None])
    return _refined_versine(one, two, itself)


@jax.custom_jvp
def _refined_versine(one: Array, two: Array, itself: Array) -> Array:
    """``1 - <u, v>``, recomputed as ``|u - v|^2 / 2`` where it is small.

    Rounding leaves an error of ``eps`` in the first form, that is ``eps / theta`` in the angle. Rows that hold a small
    entry are gone through again, a few at a time; without any, the second pass costs nothing.
    """
    n1 = one.shape[1]
    versine = jnp.where(itself, 0, jnp.clip(1 - inner_products(one, two) / one.shape[-1], 0, 2))
    threshold = close_versine(versine.dtype)
    close = jnp.any((versine < threshold) & ~itself, -1).reshape(-1)
    count, size = jnp.sum(close), min(_ROWS, close.size)

    def refined(versine):
        order = jnp.argsort(~close)

        def again(carry):
            start, versine = carry
            rows = jax.lax.dynamic_slice(order, (start,), (size,))
            b, r = rows // n1, rows % n1
            exact = half_square_distance(one[b, r][:, None], two[b])
            old = versine[b, r]
            return start + size, versine.at[b, r].set(jnp.where(old < threshold, exact, old))

        return jax.lax.while_loop(lambda carry: carry[0] < count, again, (jnp.zeros((), count.dtype), versine))[1]

    return jax.lax.cond(count > 0, refined, lambda versine: versine, versine)


@_refined_versine.defjvp
def _(primals, tangents):
    (one, two, itself), (d_one, d_two, _) = primals, tangents
    return _refined_versine(one, two, itself), -(inner_products(d_one, two) + inner_products(one, d_two)) / one.shape[
        -1
    ]


def inner_products(one: Array, two: Array) -> Array:
    """``[..., n1, n2]`` inner products of rows ``[..., n, c]``."""
    return jnp.einsum("...ic,...jc->...ij", one, two, precision=jax.lax.Precision.HIGHEST)
