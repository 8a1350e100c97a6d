"""Fully connected layers."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dynamics.stax.kernel.algebra import affine_gap, own_sides, rapidity, where_kept
from dynamics.stax.kernel.kernel import Kernel, channels, deviations
from dynamics.stax.kernel.masks import whole_positions
from dynamics.stax.layers.layer import Needs, layer
from dynamics.stax.layers.scaling import along, resized, scaling
from dynamics.stax.layers.weights import WeightLaw, check_law
from dynamics.types import ArrayLike, Model


def Dense(
    out_dim: int,
    W_std: ArrayLike = 1.0,
    b_std: ArrayLike | None = None,
    batch_axis: int = 0,
    channel_axis: int = -1,
    parameterization: str = "ntk",
    s: tuple[int, int] = (1, 1),
    weights: WeightLaw | None = None,
) -> Model:
    """A fully connected layer ``W x + b`` along ``channel_axis``.

    - 'ntk': ``z = W_std W x / sqrt(fan_in) + b_std b`` with standard normal ``W, b``; kernel
      ``k' = W_std^2 k + b_std^2``, ``Theta' = k' + W_std^2 Theta``.
    - 'standard': ``W ~ N(0, W_std^2 / fan_in)``, ``b ~ N(0, b_std^2)``; ``Theta' = fan_in k + 1 + W_std^2 Theta``.
    - 'mup': ``z = W_std sqrt(fan_out / fan_in) W x + b_std sqrt(fan_out) b``, ``W ~ N(0, 1 / max(fan_in, fan_out))``,
      ``b ~ N(0, 1 / fan_out)``: the spectral condition with one learning rate for every layer.
      ``k' = r W_std^2 k + b_std^2`` with ``r = min(1, fan_out / fan_in)``, so the readout's ``k'`` vanishes with width;
      ``Theta' = fan_out (W_std^2 k + b_std^2) + r W_std^2 Theta``.

    Args:
        out_dim: number of outputs, ``fan_out``.
        W_std: weight scale. b_std: bias scale, or None for no bias.
        batch_axis, channel_axis: axes of the input.
        parameterization: 'ntk', 'standard' or 'mup'.
        s: width multipliers ``(input, output)`` of the 'standard' parameterization.
        weights: the law of the initial W where its entries are not independent and normal: ``stax.Haar()``,
            ``stax.LowRank(rank)`` or ``stax.Sparse(density)``, of the same variance and kernels.
            ``theory.finite_width`` tells what they change at finite width.

    Reference: Jacot et al. 2018, section 2; Sohl-Dickstein et al. 2020 ('standard'); Yang, Simon & Bernstein 2023
    ('mup').
    """
    scaled = scaling(parameterization, W_std, b_std, out_dim, s, "out_dim")
    check_law(weights)

    def init(rng, input_shape):
        fan_in = input_shape[channel_axis]
        weight_rng, bias_rng = jax.random.split(rng)
        shape = fan_in, scaled.units
        weight = jax.random.normal(weight_rng, shape) if weights is None else weights.draw(weight_rng, *shape)
        bias = None
        if b_std is not None:
            bias = jax.random.normal(bias_rng, along(len(input_shape), channel_axis, scaled.units))
        return resized(input_shape, channel_axis, scaled.units), scaled.initial(weight, bias, fan_in)

    def apply(params, inputs, **kwargs):
        weight, bias = params
        product = jnp.moveaxis(jnp.tensordot(weight, inputs, (0, channel_axis)), 0, channel_axis)
        return scaled.forward(product, bias, inputs.shape[channel_axis])

    def propagate(k: Kernel, **kwargs):
        fan_in = channels(k)
        scale = scaled.weight_variance(fan_in)
        out = affine(k, scale, scaled.bias_variance)
        if k.ntk is not None:
            out = out.replace(ntk=scaled.own_ntk(k.nngp, out.nngp, fan_in) + scale * k.ntk)
        shapes = {name: resized(getattr(k, name), k.channel_axis, scaled.units) for name in ("shape1", "shape2")}
        return out.replace(is_gaussian=True, **shapes)

    def output_mask(mask, shape):
        return whole_positions(mask, channel_axis)

    return layer(init, apply, propagate, Needs(batch_axis, channel_axis), output_mask)


def affine(k: Kernel, scale, shift) -> Kernel:
    """Covariances ``scale * k + shift`` (``shift`` None for 0); the NTK is left alone."""

    def variance(var):
        return None if var is None else scale * var + (0 if shift is None else shift)

    def stretch(gap, sides, one, two):
        if gap is None or shift is None:
            return where_kept(lambda gap: scale * gap, gap)
        return affine_gap(gap, scale, shift, sides(one.plus, two.plus), sides(one.minus, two.minus))

    out = k.replace(var1=variance(k.var1), var2=variance(k.var2))
    one, two = (rapidity(var, s, scale) for var, s in zip((k.var1, k.other(k.var1, k.var2)), deviations(out)))
    return out.replace(
        gap=stretch(k.gap, k.sides, one, two),
        within1=stretch(k.within1, own_sides, one, one),
        within2=stretch(k.within2, own_sides, two, two),
    )
