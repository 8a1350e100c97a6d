"""Normalisation and dropout."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from dynamics.arguments import NOT_NEGATIVE, SHARE, check_numbers
from dynamics.stax.kernel.algebra import safe_reciprocal, safe_sqrt, where_kept, within_sides
from dynamics.stax.kernel.kernel import Kernel, deviations
from dynamics.stax.kernel.masks import visible, visible_mean
from dynamics.stax.layers.checks import check_axes
from dynamics.stax.layers.layer import Needs, layer
from dynamics.types import Array, Model


def LayerNorm(axis: int | Sequence[int] = -1, eps: float = 1e-12, batch_axis: int = 0, channel_axis: int = -1) -> Model:
    """Subtracts the mean and divides by the standard deviation over ``axis``: ``k' = k / sqrt((eps + q1)(eps + q2))``.

    Args:
        axis: normalised axes; the channel axis must be among them. eps: added to variances.
        batch_axis, channel_axis: axes of the input.
    """
    return _norm(axis, eps, batch_axis, channel_axis, centre=True)


def RMSNorm(axis: int | Sequence[int] = -1, eps: float = 1e-12, batch_axis: int = 0, channel_axis: int = -1) -> Model:
    """Divides by the root mean square over ``axis``; the kernel of ``LayerNorm``, without centring.

    Reference: Zhang & Sennrich 2019.
    """
    return _norm(axis, eps, batch_axis, channel_axis, centre=False)


def _norm(axis, eps, batch_axis, channel_axis, centre) -> Model:
    check_numbers(eps=(eps, NOT_NEGATIVE))
    axes = (axis,) if isinstance(axis, int) else tuple(axis)

    def apply(params, inputs, mask=None, **kwargs):
        check_axes("axis", axes, inputs.ndim)
        chosen = tuple(a % inputs.ndim for a in axes)

        def mean(x):
            return visible_mean(x, chosen, None if mask is None else ~mask)

        if centre:
            inputs = inputs - mean(inputs)
        return inputs / jnp.sqrt(eps + mean(inputs**2))

    def propagate(k: Kernel, **kwargs):
        if not k.is_gaussian:
            raise ValueError(
                "inputs: got those of a nonlinearity; allowed: Gaussian ones, by a Dense or Conv layer in between"
            )
        reduced = _reduced(axes, len(k.shape1), batch_axis, channel_axis)

        counted = (visible(k) or (None, None)) if reduced else (None, None)

        def scale(var: Array, counts: Array | None) -> Array:
            total = visible_mean(var, reduced, counts) if reduced else var
            return jnp.broadcast_to(safe_reciprocal(safe_sqrt(eps + total)), var.shape)

        return _scaled(k, scale(k.var1, counted[0]), where_kept(lambda var: scale(var, counted[1]), k.var2))

    return layer(lambda rng, shape: (shape, ()), apply, propagate, Needs(batch_axis, channel_axis))


def _reduced(axes: Sequence[int], ndim: int, batch_axis: int, channel_axis: int) -> tuple[int, ...]:
    """Axes of ``var [n, *S]`` that a normalisation over ``axes`` of the inputs averages over."""
    check_axes("axis", axes, ndim)
    chosen, channel, samples = {a % ndim for a in axes}, channel_axis % ndim, batch_axis % ndim
    if channel not in chosen:
        raise ValueError(f"axis: got {tuple(axes)}; allowed: axes with the channel axis {channel_axis}")
    spatial = [i for i in range(ndim) if i not in (channel, samples)]
    positions = sorted(1 + spatial.index(a) for a in chosen - {channel, samples})
    return (0, *positions) if samples in chosen else tuple(positions)


def _scaled(k: Kernel, one: Array, two: Array | None) -> Kernel:
    """The kernel of outputs times ``one [n1, *S]`` and ``two [n2, *S]`` (None when ``x2`` is ``x1``)."""
    row, column = k.sides(one, k.other(one, two))

    def within(gap, scale):
        left, right = within_sides(scale)
        return gap * left * right

    return k.replace(
        gap=k.gap * row * column,
        ntk=None if k.ntk is None else k.ntk * row * column,
        var1=k.var1 * one**2,
        var2=None if two is None else k.var2 * two**2,
        within1=where_kept(within, k.within1, one),
        within2=where_kept(within, k.within2, two),
    )


def Dropout(rate: float, mode: str = "train") -> Model:
    """Keeps each unit with probability ``rate`` and divides by it; an identity in ``mode='test'``.

    In the limit ``k'(x, x) = k(x, x) / rate`` and other entries stay. ``apply`` needs ``rng`` in 'train' mode.

    Args:
        rate: probability to keep a unit, in (0, 1]. mode: 'train' or 'test'.

    Reference: Srivastava et al. 2014; Schoenholz et al. 2017, eq. 18.
    """
    if mode not in ("train", "test"):
        raise ValueError(f"mode: got {mode!r}; allowed: 'train', 'test'")
    check_numbers(rate=(rate, SHARE))

    def apply(params, inputs, rng=None, **kwargs):
        if mode == "test":
            return inputs
        if rng is None:
            raise ValueError("rng: got None; allowed: a key, for Dropout in mode 'train'")
        kept = jax.random.bernoulli(rng, rate, inputs.shape)
        return jnp.where(kept, inputs / rate, 0)

    def propagate(k: Kernel, **kwargs):
        if mode == "test":
            return k
        same = _same_position(k)
        growth = 1 / rate

        def gap(old, row, column, same):
            # s1 s2 grows everywhere, k only where a unit meets itself.
            return jnp.where(same, old * growth, old + (growth - 1) * row * column)

        s = deviations(k)

        def within(old, s):
            return None if old is None else gap(old, *within_sides(s), _diagonal_mask(old, 1))

        return k.replace(
            gap=gap(k.gap, *k.sides(*s), same),
            ntk=None if k.ntk is None else jnp.where(same, k.ntk * growth, k.ntk),
            var1=k.var1 * growth,
            var2=None if k.var2 is None else k.var2 * growth,
            within1=within(k.within1, s.one),
            within2=within(k.within2, s.two),
            is_gaussian=False,
        )

    return layer(lambda rng, shape: (shape, ()), apply, propagate, Needs(pairs=False), clears=False)


def _same_position(k: Kernel) -> Array:
    """True where both sides are the same position of the same input; broadcasts against ``gap``."""
    if not k.x1_is_x2:
        return jnp.zeros((1,) * k.gap.ndim, bool)
    n = k.gap.shape[0]
    same = jnp.eye(n, dtype=bool).reshape(n, n, *[1] * (k.gap.ndim - 2))
    return same if k.diagonal_spatial else same & _diagonal_mask(k.gap, 2)


def _diagonal_mask(x: Array, start: int) -> Array:
    mask = jnp.ones((1,) * x.ndim, bool)
    for axis in range(start, x.ndim, 2):
        shape = [1] * x.ndim
        shape[axis] = shape[axis + 1] = x.shape[axis]
        mask = mask & jnp.eye(x.shape[axis], dtype=bool).reshape(shape)
    return mask
