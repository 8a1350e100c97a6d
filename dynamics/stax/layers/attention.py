"""Self-attention over all positions."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from dynamics.arguments import check_counts
from dynamics.stax.kernel.algebra import where_kept
from dynamics.stax.kernel.kernel import Kernel
from dynamics.stax.kernel.masks import visible, whole_positions
from dynamics.stax.kernel.spatial import spatial_shape
from dynamics.stax.layers.attention_kernels import (
    Covariances,
    Scales,
    bilinear,
    deterministic,
    position_covariance,
    sampled,
)
from dynamics.stax.layers.checks import AttentionMechanism, PositionalEmbedding, check_scales, choice
from dynamics.stax.layers.layer import Needs, layer
from dynamics.stax.layers.scaling import along, resized
from dynamics.types import Array, Model

_MECHANISMS: dict[str, Callable[[Array], Array]] = {
    "SOFTMAX": lambda x: jax.nn.softmax(x, axis=-1),
    "IDENTITY": lambda x: x,
    "ABS": jnp.abs,
    "RELU": lambda x: jnp.maximum(x, 0),
}
_NO_WEIGHT = -1e20


def GlobalSelfAttention(
    n_chan_out: int,
    n_chan_key: int,
    n_chan_val: int,
    n_heads: int,
    linear_scaling: bool = True,
    W_key_std: float = 1.0,
    W_value_std: float = 1.0,
    W_query_std: float = 1.0,
    W_out_std: float = 1.0,
    b_std: float | None = None,
    attention_mechanism: Any = "SOFTMAX",
    pos_emb_type: Any = "NONE",
    pos_emb_p_norm: float = 2,
    pos_emb_decay_fn: Callable[[float], float] | None = None,
    n_chan_pos_emb: int | None = None,
    W_pos_emb_std: float = 1.0,
    val_pos_emb: bool = False,
    batch_axis: int = 0,
    channel_axis: int = -1,
    n_samples: int | None = None,
    key: PRNGKeyArray | None = None,
) -> Model:
    """Scaled dot-product attention with infinitely many heads and channels.

    With ``linear_scaling`` (scores over ``n_chan_key``, queries tied to keys) the attention matrix becomes
    ``G(x) = zeta(QK_std k(x, x))`` and ``k' = OV_std^2 G(x) k(x, x') G(x')^T + b_std^2``. With square-root scaling the
    matrices stay random. ``attention_mechanism='IDENTITY'`` still has a closed kernel; the others are averaged over
    ``n_samples`` draws from ``key`` (``attention_kernels.sampled`` gives the layer's standard errors and
    ``estimated_kernel_fn`` those of a network).

    Args:
        n_chan_out, n_chan_key, n_chan_val, n_heads: sizes of the finite layer.
        linear_scaling: divide scores by ``n_chan_key`` (True) or its root (False).
        W_key_std, W_value_std, W_query_std, W_out_std, b_std: scales of weights and bias.
        attention_mechanism: 'SOFTMAX', 'IDENTITY', 'ABS' or 'RELU'.
        pos_emb_type: 'NONE', 'SUM' or 'CONCAT'; positional embeddings have covariance
            ``pos_emb_decay_fn(|p - q|^pos_emb_p_norm)`` (identity when None), scale ``W_pos_emb_std`` and
            ``n_chan_pos_emb`` channels; ``val_pos_emb`` adds them to the values too.
        batch_axis, channel_axis: axes of the input.
        n_samples, key: number of draws and random key, for square-root scaling with a nonlinear mechanism only.

    Raises:
        ValueError: for an unknown mechanism or embedding, and when the kernel needs ``n_samples`` and ``key`` and has
            none.

    Reference: Hron et al. 2020, 'Infinite attention: NNGP and NTK for deep attention networks'.
    """
    check_counts(n_chan_out=n_chan_out, n_chan_key=n_chan_key, n_heads=n_heads)
    check_scales(
        W_key_std=W_key_std, W_value_std=W_value_std, W_query_std=W_query_std, W_out_std=W_out_std, b_std=b_std
    )
    options = _Options(
        choice("attention_mechanism", attention_mechanism, AttentionMechanism),
        choice("pos_emb_type", pos_emb_type, PositionalEmbedding),
        linear_scaling,
        Scales(W_query_std * W_key_std, W_out_std * W_value_std, b_std),
        _Positions(pos_emb_p_norm, pos_emb_decay_fn, n_chan_pos_emb, W_pos_emb_std, val_pos_emb),
        _Sizes(n_chan_out, n_chan_key, n_chan_val, n_heads, batch_axis, channel_axis),
    )
    if n_samples is not None and n_samples < 2:
        raise ValueError(f"n_samples: got {n_samples}; allowed: an integer >= 2")

    def propagate(k: Kernel, **kwargs):
        if k.spatial_ndim and k.within1 is None:
            raise ValueError(
                "diagonal_spatial: got True; allowed: False, for GlobalSelfAttention needs full spatial covariances"
            )
        k = k.replace(mask1=output_mask(k.mask1, None), mask2=output_mask(k.mask2, None))
        counts = tuple(c.reshape(c.shape[0], -1) for c in visible(k) or ()) or None
        plain = Covariances(
            _flat(k.cov1, 1), where_kept(_flat, k.cov2, 1), _flat(k.nngp, 2), where_kept(_flat, k.ntk, 2)
        )
        new = _attended(options, plain, _embedded(options, k, plain, counts), counts, n_samples, key)
        return _rebuilt(k, new, n_chan_out)

    def output_mask(mask, shape):
        return where_kept(lambda mask: whole_positions(mask, channel_axis), mask)

    needs = Needs(batch_axis, channel_axis, lambda full: True, pairs=False)
    return layer(functools.partial(_init, options), functools.partial(_apply, options), propagate, needs, output_mask)


class _Positions(NamedTuple):
    """Positional embeddings: covariance ``decay_fn(|p - q|^p_norm)``, ``channels``, scale ``std``, added to values."""

    p_norm: float
    decay_fn: Callable[[float], float] | None
    channels: int | None
    std: float
    in_values: bool

    def width(self, channels: int) -> int:
        return channels if self.channels is None else self.channels


class _Sizes(NamedTuple):
    """Channels of outputs, keys and values, number of heads, axes of the input."""

    out: int
    key: int
    value: int
    heads: int
    batch_axis: int
    channel_axis: int


class _Options(NamedTuple):
    """What ``GlobalSelfAttention`` was asked for."""

    mechanism: str
    embedding: str
    linear_scaling: bool
    scales: Scales
    positions: _Positions
    sizes: _Sizes

    def zeta(self, scores: Array, counts: Array | None = None) -> Array:
        """Weights of scores ``[..., P, P]``, none for positions where ``counts`` is False."""
        if counts is not None:
            scores = jnp.where(counts, scores, _NO_WEIGHT if self.mechanism == "SOFTMAX" else 0)
        return _MECHANISMS[self.mechanism](scores)


def _init(options: _Options, rng, input_shape):
    query_rng, key_rng, value_rng, out_rng, bias_rng, position_rng = jax.random.split(rng, 6)
    sizes, axis = options.sizes, options.sizes.channel_axis % len(input_shape)
    channels = value_channels = input_shape[axis]
    position = None
    if options.embedding != "NONE":
        shape = list(input_shape)
        shape[axis], shape[sizes.batch_axis] = options.positions.width(channels), 1
        position = jax.random.normal(position_rng, shape)
        if options.embedding == "CONCAT":
            channels += shape[axis]
            value_channels += shape[axis] if options.positions.in_values else 0
    keys = jax.random.normal(key_rng, (sizes.heads, channels, sizes.key))
    queries = None if options.linear_scaling else jax.random.normal(query_rng, (sizes.heads, channels, sizes.key))
    values = jax.random.normal(value_rng, (sizes.heads, value_channels, sizes.value))
    out = jax.random.normal(out_rng, (sizes.value * sizes.heads, sizes.out))
    bias = None
    if options.scales.b_std is not None:
        bias = jax.random.normal(bias_rng, along(len(input_shape), axis, sizes.out))
    return resized(input_shape, axis, sizes.out), (queries, keys, values, out, bias, position)


def _apply(options: _Options, params, inputs, mask=None, **kwargs):
    queries, keys, values, out, bias, position = params
    sizes, scales = options.sizes, options.scales
    x = jnp.moveaxis(inputs, (sizes.batch_axis, sizes.channel_axis), (0, -1))
    spatial = x.shape[1:-1]
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    counts = None
    if mask is not None:
        counts = ~jnp.all(jnp.moveaxis(mask, (sizes.batch_axis, sizes.channel_axis), (0, -1)), -1)
        counts = jnp.broadcast_to(counts, (x.shape[0], *spatial)).reshape(x.shape[:2])
    score_input = x if position is None else _with_positions(options, x, position, spatial, counts)
    value_input = score_input if options.positions.in_values else x
    k = jnp.einsum("npc,hcd->hnpd", score_input, keys)
    q = k if queries is None else jnp.einsum("npc,hcd->hnpd", score_input, queries)
    v = jnp.einsum("npc,hcd->hnpd", value_input, values)
    power = 1 if options.linear_scaling else 0.5
    scores = jnp.einsum("hnpd,hnqd->hnpq", q, k) * (scales.scores / (score_input.shape[-1] * sizes.key**power))
    heads = jnp.einsum("hnpq,hnqd->npdh", options.zeta(scores, where_kept(lambda c: c[:, None], counts)), v)
    y = heads.reshape(*heads.shape[:2], -1) @ out
    y = y * (scales.values / (sizes.value * sizes.heads * value_input.shape[-1]) ** 0.5)
    y = jnp.moveaxis(y.reshape(y.shape[0], *spatial, sizes.out), (0, -1), (sizes.batch_axis, sizes.channel_axis))
    return y if bias is None else y + scales.b_std * bias


def _with_positions(options: _Options, x: Array, position: Array, spatial: tuple[int, ...], counts) -> Array:
    """``x [n, P, C]`` with positional embeddings added or appended."""
    sizes, asked = options.sizes, options.positions
    p = jnp.moveaxis(position, (sizes.batch_axis, sizes.channel_axis), (0, -1))
    p = p.reshape(1, -1, position.shape[sizes.channel_axis])
    if asked.decay_fn is not None:
        root = jnp.linalg.cholesky(position_covariance(spatial, asked.p_norm, asked.decay_fn, x.dtype))
        p = jnp.einsum("pq,nqc->npc", root, p)
    p = asked.std * p if counts is None else jnp.where(counts[..., None], asked.std * p, 0)
    if options.embedding == "SUM":
        return x + p
    return jnp.concatenate([x, jnp.broadcast_to(p, (*x.shape[:-1], p.shape[-1]))], -1)


def _embedded(options: _Options, k: Kernel, plain: Covariances, counts) -> Covariances:
    """The covariances with positional embeddings."""
    if options.embedding == "NONE":
        return plain
    asked = options.positions
    own, added = 1.0, asked.std**2
    if options.embedding == "CONCAT":
        channels = k.shape1[k.channel_axis]
        extra = asked.width(channels)
        own, added = channels / (channels + extra), added * extra / (channels + extra)
    positions = position_covariance(spatial_shape(k), asked.p_norm, asked.decay_fn, plain.cov1.dtype)
    if counts is None:
        return Covariances(*(where_kept(lambda cov: own * cov + added * positions, cov) for cov in plain))
    one, two = counts
    cross = one[:, None, :, None] & two[None, :, None, :]
    seen = *(c[:, :, None] & c[:, None, :] for c in counts), cross, cross
    return Covariances(
        *(
            where_kept(lambda c, s=s: own * c + added * jnp.where(s, positions, 0), c)
            for c, s in zip(plain, seen, strict=True)
        )
    )


def _attended(options: _Options, plain: Covariances, embedded: Covariances, counts, n_samples, key) -> Covariances:
    in_values = options.positions.in_values
    if options.linear_scaling:
        one, two = (
            where_kept(lambda cov, i=i: options.zeta(options.scales.scores * cov, counts and counts[i][:, None]), cov)
            for i, cov in enumerate(embedded[:2])
        )
        return deterministic(plain, embedded, one, two, options.scales, in_values)
    if options.mechanism == "IDENTITY":
        return bilinear(plain, embedded, options.scales, in_values)
    if n_samples is None or key is None:
        raise ValueError(
            f"linear_scaling: got False with attention_mechanism={options.mechanism!r}; allowed: True, or n_samples "
            "and key to average over: square-root scaling has a closed kernel for 'IDENTITY' only"
        )
    if counts is not None:
        raise ValueError(
            "mask_constant: got masked inputs; allowed with n_samples: none (linear_scaling=True takes masks)"
        )
    return sampled(plain, embedded, options.zeta, options.scales, in_values, key, n_samples).mean


def _rebuilt(k: Kernel, new: Covariances, n_chan_out: int) -> Kernel:
    """The Kernel of the layer's outputs."""
    shape, axis = spatial_shape(k), k.channel_axis
    return Kernel.from_covariances(
        _unflat(new.nngp, 2, shape),
        where_kept(_unflat, new.ntk, 2, shape),
        _unflat(new.cov1, 1, shape),
        where_kept(_unflat, new.cov2, 1, shape),
        diagonal_spatial=False,
        is_gaussian=True,
        shape1=resized(k.shape1, axis, n_chan_out),
        shape2=resized(k.shape2, axis, n_chan_out),
        mask1=k.mask1,
        mask2=k.mask2,
        batch_axis=k.batch_axis,
        channel_axis=axis,
    )


def _flat(cov: Array, start: int) -> Array:
    """``[..., h, h, w, w]`` to ``[..., P, P]``."""
    ndim = (cov.ndim - start) // 2
    order = [*range(start), *(start + 2 * i for i in range(ndim)), *(start + 2 * i + 1 for i in range(ndim))]
    size = math.prod(cov.shape[start::2])
    return jnp.transpose(cov, order).reshape(*cov.shape[:start], size, size)


def _unflat(cov: Array, start: int, shape) -> Array:
    """The inverse of ``_flat``."""
    ndim = len(shape)
    cov = cov.reshape(*cov.shape[:start], *shape, *shape)
    pairs = [axis for i in range(ndim) for axis in (start + i, start + ndim + i)]
    return jnp.transpose(cov, [*range(start), *pairs])
