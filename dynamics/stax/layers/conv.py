"""Convolutional layers: shared weights, transposed, and unshared (locally connected)."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dynamics.stax.kernel.algebra import safe_sqrt, within_sides
from dynamics.stax.kernel.kernel import Kernel, channels, transpose_spatial
from dynamics.stax.kernel.masks import whole_positions
from dynamics.stax.kernel.spatial import (
    Window,
    map_shared,
    mask_at_centres,
    output_sizes,
    pad_all_axes,
    shifted_sum,
    spatial_shape,
    transposed_windows,
    windows,
)
from dynamics.stax.layers.checks import Padding, choice
from dynamics.stax.layers.layer import Needs, layer
from dynamics.stax.layers.scaling import Scaling, scaling
from dynamics.types import Array, ArrayLike, Model


def Conv(
    out_chan: int,
    filter_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: Any = "VALID",
    W_std: ArrayLike = 1.0,
    b_std: ArrayLike | None = None,
    dimension_numbers: tuple[str, str, str] | None = None,
    parameterization: str = "ntk",
    s: tuple[int, int] = (1, 1),
) -> Model:
    """A convolution with shared weights.

    ``k'[p, q] = W_std^2 / F sum_d k[p + d, q + d] + b_std^2`` over the ``F`` offsets of the filter;
    ``Theta' = k' + W_std^2 / F sum_d Theta[p + d, q + d]``. Cost: ``sum(filter_shape)`` additions an entry.

    Args:
        out_chan: number of output channels.
        filter_shape: sizes of the filter. strides: steps between outputs, ones when None.
        padding: 'SAME', 'VALID' or 'CIRCULAR'.
        W_std: weight scale. b_std: bias scale, or None for no bias.
        dimension_numbers: layouts of input, filter and output, such as ('NHWC', 'HWIO', 'NHWC').
        parameterization: 'ntk', 'standard' or 'mup', as in ``Dense``; ``fan_in`` counts channels and offsets.
        s: width multipliers ``(input, output)`` of the 'standard' parameterization.

    Reference: Novak et al. 2019; Arora et al. 2019, eq. 11.
    """
    scaled = scaling(parameterization, W_std, b_std, out_chan, s, "out_chan")
    return _layer(_geometry(filter_shape, strides, padding, dimension_numbers, "conv"), scaled)


def ConvTranspose(
    out_chan: int,
    filter_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: Any = "VALID",
    W_std: ArrayLike = 1.0,
    b_std: ArrayLike | None = None,
    dimension_numbers: tuple[str, str, str] | None = None,
    parameterization: str = "ntk",
    s: tuple[int, int] = (1, 1),
) -> Model:
    """A transposed convolution: ``Conv`` of the input dilated by ``strides``; arguments as in ``Conv``."""
    scaled = scaling(parameterization, W_std, b_std, out_chan, s, "out_chan")
    return _layer(_geometry(filter_shape, strides, padding, dimension_numbers, "transpose"), scaled)


def ConvLocal(
    out_chan: int,
    filter_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: Any = "VALID",
    W_std: ArrayLike = 1.0,
    b_std: ArrayLike | None = None,
    dimension_numbers: tuple[str, str, str] | None = None,
    parameterization: str = "ntk",
    s: tuple[int, int] = (1, 1),
) -> Model:
    """A convolution without weight sharing: different positions become independent; arguments as in ``Conv``."""
    scaled = scaling(parameterization, W_std, b_std, out_chan, s, "out_chan")
    return _layer(_geometry(filter_shape, strides, padding, dimension_numbers, "local"), scaled)


class _Geometry(NamedTuple):
    """Where a convolution's windows lie.

    Attributes:
        layouts: of input, filter and output. filter_shape, strides: in the order of the filter's layout.
        padding: 'SAME', 'VALID' or 'CIRCULAR'. flavour: 'conv', 'transpose' or 'local'.
    """

    layouts: tuple[str, str, str]
    filter_shape: tuple[int, ...]
    strides: tuple[int, ...]
    padding: str
    flavour: str

    @property
    def names(self) -> list[str]:
        """Spatial axes in the order of the filter's layout."""
        return [c for c in self.layouts[1] if c not in "IO"]

    def spatial(self, side: int) -> list[str]:
        """Spatial axes in the order of the input's (0) or the output's (2) layout."""
        return [c for c in self.layouts[side] if c not in "NC"]

    def windows(self, shape: Sequence[int]) -> list[Window]:
        """The windows over spatial axes of sizes ``shape``, in the order of the input's layout."""
        order = [self.names.index(c) for c in self.spatial(0)]
        sizes, steps = [self.filter_shape[i] for i in order], [self.strides[i] for i in order]
        if self.flavour == "transpose":
            return transposed_windows(sizes, steps, self.padding)
        return windows(shape, sizes, steps, self.padding)

    def fan_in(self, input_shape: Sequence[int]) -> int:
        """Inputs of an output: channels times offsets."""
        return input_shape[self.layouts[0].index("C")] * math.prod(self.filter_shape)

    def output_shape(self, input_shape: Sequence[int], units: int) -> tuple[int, ...]:
        """Shape of the outputs for ``units`` channels."""
        lhs, _, out = self.layouts
        shape = [size for c, size in zip(lhs, input_shape, strict=True) if c not in "NC"]
        after = dict(zip(self.spatial(0), output_sizes(shape, self.windows(shape)), strict=True))
        after.update(N=input_shape[lhs.index("N")], C=units)
        return tuple(after[c] for c in out)

    def parameter_shapes(self, input_shape: Sequence[int], units: int) -> tuple[list[int], list[int]]:
        """Shapes of the weights and of the bias."""
        lhs, rhs, out = self.layouts
        count, shape = input_shape[lhs.index("C")], self.output_shape(input_shape, units)
        if self.flavour == "local":
            after = {c: shape[out.index(c)] for c in self.names}
            weight = {"O": units, "I": count * math.prod(self.filter_shape), **after}
            return [weight[c] for c in rhs], [1 if c == "N" else size for c, size in zip(out, shape, strict=True)]
        weight = {"O": units, "I": count, **dict(zip(self.names, self.filter_shape, strict=True))}
        return [weight[c] for c in rhs], [units if c == "C" else 1 for c in out]

    def output_mask(self, mask: Array, shape: Sequence[int]) -> Array:
        """Masked outputs: those at the centre of whose window the input is masked, or that a masked input reaches."""
        lhs, _, out = self.layouts
        mask = whole_positions(mask, lhs.index("C"))
        axes = [i for i, c in enumerate(lhs) if c not in "NC"]
        found = self._replace(padding="VALID" if self.padding == "VALID" else "SAME").windows([shape[i] for i in axes])
        if self.flavour == "transpose":
            reached = pad_all_axes(mask.astype(jnp.int32), axes, found)
            for axis, window in zip(axes, found, strict=True):
                reached = shifted_sum(reached, (axis,), window)
            mask = reached > 0
        else:
            mask = mask_at_centres(mask, axes, found)
        return jnp.transpose(mask, [lhs.index(c) for c in out])

    def convolve(self, inputs: ArrayLike, weight: Array) -> Array:
        """The finite layer without scales and bias."""
        inputs, axes = jnp.asarray(inputs), [i for i, c in enumerate(self.layouts[0]) if c not in "NC"]
        inputs = pad_all_axes(inputs, axes, self.windows([inputs.shape[i] for i in axes]))
        if self.flavour == "local":
            return lax.conv_general_dilated_local(
                inputs, weight, self.strides, "VALID", self.filter_shape, dimension_numbers=self.layouts
            )
        step = (1,) * len(self.strides) if self.flavour == "transpose" else self.strides
        return lax.conv_general_dilated(inputs, weight, step, "VALID", dimension_numbers=self.layouts)


def _geometry(filter_shape, strides, padding, dimension_numbers, flavour) -> _Geometry:
    filter_shape = tuple(filter_shape)
    strides = (1,) * len(filter_shape) if strides is None else tuple(strides)
    if len(strides) != len(filter_shape):
        raise ValueError(f"strides: got {strides}; allowed: one entry for each of filter_shape {filter_shape}")
    if dimension_numbers is None:
        names = "".join(c for c in string.ascii_uppercase if c not in "NCIO")[: len(filter_shape)]
        dimension_numbers = "N" + names + "C", names + "IO", "N" + names + "C"
    return _Geometry(dimension_numbers, filter_shape, strides, choice("padding", padding, Padding), flavour)


def _layer(place: _Geometry, scaled: Scaling) -> Model:
    lhs, _, out = place.layouts

    def init(rng, input_shape):
        weight_shape, bias_shape = place.parameter_shapes(input_shape, scaled.units)
        weight_rng, bias_rng = jax.random.split(rng)
        weight = jax.random.normal(weight_rng, weight_shape)
        bias = None if scaled.b_std is None else jax.random.normal(bias_rng, bias_shape)
        return place.output_shape(input_shape, scaled.units), scaled.initial(weight, bias, place.fan_in(input_shape))

    def apply(params, inputs, **kwargs):
        weight, bias = params
        return scaled.forward(place.convolve(inputs, weight), bias, place.fan_in(inputs.shape))

    def propagate(k: Kernel, **kwargs):
        channels(k)
        mapped = _convolved(k, place, scaled)
        if place.flavour == "local":
            mapped = _independent_positions(mapped)
        mapped = mapped.replace(
            is_gaussian=True,
            shape1=place.output_shape(k.shape1, scaled.units),
            shape2=place.output_shape(k.shape2, scaled.units),
            batch_axis=out.index("N"),
            channel_axis=out.index("C"),
        )
        return transpose_spatial(mapped, [place.spatial(0).index(c) for c in place.spatial(2)])

    return layer(init, apply, propagate, Needs(lhs.index("N"), lhs.index("C")), place.output_mask)


def _convolved(k: Kernel, place: _Geometry, scaled: Scaling) -> Kernel:
    """``k'`` and ``Theta'`` of shared weights."""
    fan_in, shift = place.fan_in(k.shape1), scaled.bias_variance
    scale = scaled.weight_variance(fan_in)
    mapped = map_shared(k, place.windows(spatial_shape(k)), scale / math.prod(place.filter_shape), shift)
    if mapped.ntk is None:
        return mapped
    own = mapped.nngp
    if scaled.kind != "ntk":
        own = scaled.own_ntk((own - (0 if shift is None else shift)) / scale, own, fan_in)
    return mapped.replace(ntk=mapped.ntk + own)


def _independent_positions(k: Kernel) -> Kernel:
    """Covariances between different positions set to 0 (their gap to ``s1 s2``)."""
    if k.diagonal_spatial:
        return k

    def same(ndim, start, shape):
        mask = jnp.ones((1,) * ndim, bool)
        for i, size in enumerate(shape):
            axis = start + 2 * i
            mask = mask & jnp.eye(size, dtype=bool).reshape([1] * axis + [size, size] + [1] * (ndim - axis - 2))
        return mask

    shape = spatial_shape(k)
    s1 = safe_sqrt(k.var1)
    s2 = k.other(s1, None if k.var2 is None else safe_sqrt(k.var2))

    def keep(gap, start, row, column):
        return None if gap is None else jnp.where(same(gap.ndim, start, shape), gap, row * column)

    return k.replace(
        gap=keep(k.gap, 2, *k.sides(s1, s2)),
        ntk=None if k.ntk is None else jnp.where(same(k.ntk.ndim, 2, shape), k.ntk, 0),
        within1=keep(k.within1, 1, *within_sides(s1)),
        within2=keep(k.within2, 1, *within_sides(s2)),
    )
