"""The Kernel of integer tokens."""

from __future__ import annotations

import jax.numpy as jnp

from dynamics.stax.kernel.algebra import pair_indices, within_sides
from dynamics.stax.kernel.kernel import Kernel
from dynamics.stax.kernel.masks import cleared, masked
from dynamics.types import Array


def kernel_from_tokens(
    x1, x2, *, full_spatial: bool, compute_ntk: bool, paired: bool = False, mask_constant=None, **axes
) -> Kernel:
    """``k[p, q] = 1`` where two tokens agree and 0 elsewhere; arguments as in ``kernel_from_inputs``."""
    first, second = (masked(x, mask_constant) for x in (integers(x1, "x1"), None if x2 is None else integers(x2, "x2")))
    one = first.masked_value
    two = one if x2 is None else second.masked_value
    if one.shape[1:] != two.shape[1:]:
        raise ValueError(f"x2: got shape {two.shape} with x1 {one.shape}; allowed: equal in all but the batch axis")
    diagonal = not full_spatial or one.ndim == 1
    paired = paired and x2 is None and not diagonal
    gap = _differ(one, two, diagonal, paired)
    k = Kernel(
        gap=gap,
        ntk=jnp.zeros_like(gap) if compute_ntk else None,
        var1=jnp.ones(one.shape, gap.dtype),
        var2=None if x2 is None else jnp.ones(two.shape, gap.dtype),
        within1=None if diagonal else _within(one),
        within2=None if diagonal or x2 is None else _within(two),
        x1_is_x2=x2 is None,
        paired=paired,
        diagonal_spatial=diagonal,
        shape1=one.shape,
        shape2=two.shape,
        batch_axis=0,
        channel_axis=one.ndim,
        mask1=first.mask,
        mask2=second.mask,
    )
    return cleared(k)


def integers(x, name: str) -> Array:
    """``x`` as an array of integer tokens ``[n, *positions]``."""
    x = jnp.asarray(x)
    if x.ndim < 1 or not jnp.issubdtype(x.dtype, jnp.integer):
        raise ValueError(f"{name}: got {x.dtype} of shape {x.shape}; allowed: integer tokens [n, *positions]")
    return x


def _differ(one: Array, two: Array, diagonal: bool, paired: bool) -> Array:
    row, column = (one, two) if diagonal else (within_sides(one)[0], within_sides(two)[1])
    if paired:
        first, second = pair_indices(one.shape[0])
        return (row[first] != column[second]).astype(jnp.result_type(float))[:, None]
    return (row[:, None] != column[None]).astype(jnp.result_type(float))


def _within(x: Array) -> Array:
    row, column = within_sides(x)
    return (row != column).astype(jnp.result_type(float))
