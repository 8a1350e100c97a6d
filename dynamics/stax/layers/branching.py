"""Branches: copies of a kernel, and ways to join kernels of independent branches."""

from __future__ import annotations

import functools
import operator
from typing import Any

import jax.numpy as jnp

from dynamics.arguments import check_counts
from dynamics.stax.kernel.algebra import safe_reciprocal, safe_sqrt, where_kept, within_sides
from dynamics.stax.kernel.kernel import Kernel, deviations
from dynamics.stax.kernel.spatial import gap_of, half_distance
from dynamics.stax.layers.checks import check_axes
from dynamics.stax.layers.layer import Needs, layer
from dynamics.types import Model


def FanOut(num: int) -> Model:
    """``num`` copies of the input, for ``parallel``."""
    check_counts(num=num)
    return layer(
        lambda rng, shape: ([shape] * num, ()),
        lambda params, x, **kwargs: [x] * num,
        lambda k, **kwargs: [k] * num,
        output_mask=lambda mask, shape: [mask] * num,
        clears=False,
    )


def FanInSum() -> Model:
    """The sum of independent Gaussian branches: ``k' = sum_b k_b``. Put a weight layer into each branch."""

    def propagate(ks, **kwargs):
        _check(ks, "FanInSum")
        if len(ks) > 1 and not all(k.is_gaussian for k in ks):
            raise ValueError(
                f"FanInSum: got branches with is_gaussian {[k.is_gaussian for k in ks]}; allowed: all True, every "
                "branch ending with a Dense or Conv layer"
            )
        return functools.reduce(_add, ks)

    def apply(params, inputs, **kwargs):
        return functools.reduce(jnp.add, inputs)

    return layer(lambda rng, shapes: (_one_shape(shapes, "FanInSum"), ()), apply, propagate, None, _shared_mask, False)


def _one_shape(shapes, name: str) -> tuple[int, ...]:
    """The shape that all branches share."""
    if any(tuple(shape) != tuple(shapes[0]) for shape in shapes[1:]):
        raise ValueError(f"{name}: got branches of shapes {list(shapes)}; allowed: equal ones")
    return shapes[0]


def _shared_mask(masks, shapes):
    """Masked in every branch that has a mask."""
    return functools.reduce(jnp.logical_and, [mask for mask in masks if mask is not None])


def _add(a: Kernel, b: Kernel) -> Kernel:
    """``k_a + k_b``; by Lagrange's identity the gap grows by ``(a1 b2 - a2 b1)^2 / (s1' s2' + a1 a2 + b1 b2)``."""
    sa, sb = deviations(a), deviations(b)

    def gap(one, two, sides, i, j):
        if one is None:
            return None
        a1, a2 = sides(sa[i], sa[j])
        b1, b2 = sides(sb[i], sb[j])
        product = safe_sqrt(a1**2 + b1**2) * safe_sqrt(a2**2 + b2**2)
        return one + two + (a1 * b2 - a2 * b1) ** 2 * safe_reciprocal(product + a1 * a2 + b1 * b2)

    def own(one, two):
        return within_sides(one)[0], within_sides(two)[1]

    return a.replace(
        gap=gap(a.gap, b.gap, a.sides, 0, 1),
        ntk=where_kept(operator.add, a.ntk, b.ntk),
        var1=a.var1 + b.var1,
        var2=where_kept(operator.add, a.var2, b.var2),
        within1=gap(a.within1, b.within1, own, 0, 0),
        within2=gap(a.within2, b.within2, own, 1, 1),
    )


def FanInProd() -> Model:
    """The product of independent branches: ``k' = prod_b k_b``, ``Theta' = sum_b Theta_b prod_(c != b) k_c``."""

    def propagate(ks, **kwargs):
        _check(ks, "FanInProd")
        return functools.reduce(_multiply, ks).replace(is_gaussian=len(ks) == 1 and ks[0].is_gaussian)

    def apply(params, inputs, **kwargs):
        return functools.reduce(jnp.multiply, inputs)

    return layer(lambda rng, shapes: (_one_shape(shapes, "FanInProd"), ()), apply, propagate, None, _shared_mask, False)


def _multiply(a: Kernel, b: Kernel) -> Kernel:
    sa, sb = deviations(a), deviations(b)

    def gap(one, two, sides, i, j):
        if one is None:
            return None
        a1, a2 = sides(sa[i], sa[j])
        b1, b2 = sides(sb[i], sb[j])
        return a1 * a2 * two + b1 * b2 * one - one * two

    def own(one, two):
        return within_sides(one)[0], within_sides(two)[1]

    return a.replace(
        gap=gap(a.gap, b.gap, a.sides, 0, 1),
        ntk=where_kept(lambda one, two: one * b.nngp + a.nngp * two, a.ntk, b.ntk),
        var1=a.var1 * b.var1,
        var2=where_kept(operator.mul, a.var2, b.var2),
        within1=gap(a.within1, b.within1, own, 0, 0),
        within2=gap(a.within2, b.within2, own, 1, 1),
    )


def FanInConcat(axis: int = -1) -> Model:
    """Concatenates independent branches: along channels ``k'`` is their mean, elsewhere a block-diagonal kernel."""

    def output_shape(shapes):
        check_axes("axis", (axis,), len(shapes[0]))
        position = axis % len(shapes[0])
        total = sum(shape[position] for shape in shapes)
        return (*shapes[0][:position], total, *shapes[0][position + 1 :])

    def propagate(ks, **kwargs):
        check_axes("axis", (axis,), len(ks[0].shape1))
        _check(ks, "FanInConcat", except_axis=axis)
        position = axis % len(ks[0].shape1)
        if position == ks[0].channel_axis:
            out = _mix(ks, [k.shape1[position] for k in ks]).replace(is_gaussian=False)
        elif not all(k.is_gaussian for k in ks):
            raise ValueError(
                f"axis: got {axis} with non-Gaussian branches; allowed: their channel axis {ks[0].channel_axis}"
            )
        else:
            kept = [i for i in range(len(ks[0].shape1)) if i != ks[0].channel_axis and i != ks[0].batch_axis]
            out = _stack(ks, 1 + kept.index(position) if position in kept else 0)
        return out.replace(shape1=output_shape([k.shape1 for k in ks]), shape2=output_shape([k.shape2 for k in ks]))

    def apply(params, inputs, **kwargs):
        return jnp.concatenate(inputs, axis)

    def output_mask(masks, shapes):
        position = axis % len(shapes[0])
        sizes = [max(each) for each in zip(*(mask.shape for mask in masks if mask is not None), strict=True)]

        def whole(mask, shape):
            size = (*sizes[:position], shape[position], *sizes[position + 1 :])
            return jnp.zeros(size, bool) if mask is None else jnp.broadcast_to(mask, size)

        return jnp.concatenate([whole(mask, shape) for mask, shape in zip(masks, shapes, strict=True)], position)

    needs = Needs(pairs=False)
    return layer(lambda rng, shapes: (output_shape(shapes), ()), apply, propagate, needs, output_mask, clears=False)


def _mix(ks, widths) -> Kernel:
    """Width-weighted mean of covariances, as the mean of half squared distances."""
    weights = [width / sum(widths) for width in widths]

    def mean(terms) -> Any:
        return None if terms[0] is None else sum(w * t for w, t in zip(weights, terms, strict=True))

    before = [deviations(k) for k in ks]
    out = ks[0].replace(var1=mean([k.var1 for k in ks]), var2=mean([k.var2 for k in ks]), ntk=mean([k.ntk for k in ks]))
    after = deviations(out)

    def own(one, two):
        return within_sides(one)[0], within_sides(two)[1]

    def gap(name, sides, i, j):
        if getattr(ks[0], name) is None:
            return None
        total = mean([half_distance(getattr(k, name), *sides(s[i], s[j])) for k, s in zip(ks, before, strict=True)])
        return gap_of(total, *sides(after[i], after[j]))

    return out.replace(
        gap=gap("gap", ks[0].sides, 0, 1), within1=gap("within1", own, 0, 0), within2=gap("within2", own, 1, 1)
    )


def _stack(ks, axis: int) -> Kernel:
    """Covariances concatenated along ``axis`` (0 for samples, then positions), zero between the branches."""

    def stack(arrays, start) -> Any:
        if arrays[0] is None:
            return None
        paired = start == 2 if axis == 0 else not ks[0].diagonal_spatial
        if not paired:
            return jnp.concatenate(arrays, 0 if axis == 0 else start + axis - 1)
        row = 0 if axis == 0 else start + 2 * (axis - 1)
        sizes, blocks = [a.shape[row] for a in arrays], []
        for i, array in enumerate(arrays):
            pads = [(0, 0)] * array.ndim
            pads[row] = (sum(sizes[:i]), sum(sizes[i + 1 :]))
            blocks.append(jnp.pad(array, pads))
        return jnp.concatenate(blocks, row + 1)

    first = ks[0]
    return Kernel.from_covariances(
        stack([k.nngp for k in ks], 2),
        stack([k.ntk for k in ks], 2),
        stack([k.cov1 for k in ks], 1),
        stack([k.cov2 for k in ks], 1),
        diagonal_spatial=first.diagonal_spatial,
        is_gaussian=True,
        batch_axis=first.batch_axis,
        channel_axis=first.channel_axis,
    )


def _check(ks, name: str, except_axis: int | None = None) -> None:
    if not isinstance(ks, list | tuple) or not ks:
        raise ValueError(f"{name}: got no list of branches; allowed: FanOut and parallel before it")

    def shape(full):
        if except_axis is None:
            return full
        position = except_axis % len(full)
        return full[:position] + full[position + 1 :]

    shapes = [(shape(k.shape1), shape(k.shape2)) for k in ks]
    if any(each != shapes[0] for each in shapes[1:]):
        raise ValueError(f"{name}: got branches of shapes {[k.shape1 for k in ks]}; allowed: equal ones")
    if any((k.batch_axis, k.channel_axis) != (ks[0].batch_axis, ks[0].channel_axis) for k in ks):
        raise ValueError(f"{name}: got branches of several batch and channel axes; allowed: the same for all")
    if any(k.diagonal_spatial != ks[0].diagonal_spatial for k in ks):
        raise ValueError(f"{name}: got branches of several diagonal_spatial; allowed: the same for all")
