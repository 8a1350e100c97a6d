"""Masked entries of inputs: where they are, and what they leave of an array and of a Kernel.

A mask is True where an entry does not count. It is shaped as its array, or with 1 for the channels once a layer has
mixed them; masked entries are zero wherever a layer meets them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dynamics.stax.kernel.algebra import within_sides
from dynamics.stax.kernel.kernel import Kernel
from dynamics.types import Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MaskedArray:
    """What ``apply_fn(params, x, mask_constant=...)`` returns: values, and True in ``mask`` where they are masked."""

    masked_value: Any
    mask: Any


def is_masked(x: Any) -> bool:
    """Whether ``x`` is a MaskedArray."""
    return isinstance(x, MaskedArray)


def any_masked(tree: Any) -> bool:
    """Whether a MaskedArray is among the leaves of ``tree``."""
    return any(map(is_masked, jax.tree.leaves(tree, is_leaf=is_masked)))


def hidden(mask: Array | None, x: Any) -> Any:
    """``x``, zero where ``mask`` is True."""
    return x if x is None or mask is None else jnp.where(mask, jnp.zeros((), x.dtype), x)


def masked(x: Any, mask_constant: Any = None) -> MaskedArray:
    """``x`` with zeros in place of ``mask_constant`` (NaN too), and the mask; a MaskedArray keeps its own mask."""
    if is_masked(x):
        return MaskedArray(hidden(x.mask, x.masked_value), x.mask)
    if x is None or mask_constant is None:
        return MaskedArray(x, None)
    x = jnp.asarray(x)
    mask = jnp.where(jnp.isnan(mask_constant), jnp.isnan(x), x == mask_constant)
    return MaskedArray(hidden(mask, x), mask)


def unmasked(tree: Any) -> Any:
    """Arrays in place of MaskedArrays, with zeros where they are masked."""
    return jax.tree.map(lambda x: hidden(x.mask, x.masked_value) if is_masked(x) else x, tree, is_leaf=is_masked)


def unmask_fn(fn: Callable[..., Any]) -> Callable[..., Any]:
    """``fn`` with arrays in place of the MaskedArrays that it returns, zero where they are masked."""

    @functools.wraps(fn)
    def plain(*args, **kwargs):
        return unmasked(fn(*args, **kwargs))

    return plain


def whole_positions(mask: Array, axis: int) -> Array:
    """Positions all of whose channels (``axis``) are masked: the mask after a layer that mixes channels."""
    return jnp.all(mask, axis, keepdims=True)


def check_positions(mask: Array, axis: int, what: str) -> None:
    """Refuses masks that differ between channels."""
    if mask.shape[axis] != 1:
        raise ValueError(
            f"mask_constant: got a mask with {mask.shape[axis]} channels for {what}; allowed: masks of whole "
            "positions, which Dense, Conv and GlobalSelfAttention leave behind"
        )


def check_no_mask(name: str, *masks: Array | None) -> None:
    """Refuses masks for the layer ``name``."""
    if any(mask is not None for mask in masks):
        raise ValueError(f"mask_constant: got masked inputs of {name}; allowed: no masks (a step is never left out)")


def visible(k: Kernel) -> tuple[Array, Array] | None:
    """``[n1, *S]`` and ``[n2, *S]``, True where a position counts; None without masks."""
    one = _positions(k, k.mask1, k.var1)
    two = one if k.x1_is_x2 else _positions(k, k.mask2, k.var2)
    if one is None and two is None:
        return None
    one, two = (
        jnp.ones(v.shape, bool) if m is None else ~m for m, v in ((one, k.var1), (two, k.other(k.var1, k.var2)))
    )
    return one, two


def visible_mean(x: Array, axes: Sequence[int], counts: Array | None) -> Array:
    """Mean of ``x`` over ``axes`` (kept, of size 1) where ``counts`` is True, everywhere when None; 0 over nothing."""
    if counts is None:
        return jnp.mean(x, axes, keepdims=True)
    counts = jnp.broadcast_to(counts, x.shape)
    number = jnp.maximum(jnp.sum(counts, axes, keepdims=True), 1)
    return jnp.sum(jnp.where(counts, x, 0), axes, keepdims=True) / number.astype(x.dtype)


def _positions(k: Kernel, mask: Array | None, var: Array | None) -> Array | None:
    if mask is None or var is None:
        return None
    if k.channel_axis < mask.ndim:  # tokens have no channels
        check_positions(mask, k.channel_axis, "a layer that acts on positions")
        mask = jnp.moveaxis(mask, (k.batch_axis, k.channel_axis), (0, -1))[..., 0]
    return jnp.broadcast_to(mask, var.shape)


def cleared(k: Kernel) -> Kernel:
    """``k`` with zero covariances wherever a position is masked."""
    sides = visible(k)
    if sides is None:
        return k
    row, column = k.sides(*sides)
    counts = row & column

    def keep(x: Any, where: Array) -> Any:
        return None if x is None else jnp.where(where, x, 0)

    def within(x: Any, side: Array) -> Any:
        return x if x is None else keep(x, functools.reduce(jnp.logical_and, within_sides(side)))

    return k.replace(
        gap=keep(k.gap, counts),
        ntk=keep(k.ntk, counts),
        var1=keep(k.var1, sides[0]),
        var2=keep(k.var2, sides[1]),
        within1=within(k.within1, sides[0]),
        within2=within(k.within2, sides[1]),
    )
