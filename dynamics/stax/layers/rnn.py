"""Recurrent layers: one set of weights at every time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dynamics.arguments import check_counts
from dynamics.stax.kernel.algebra import own_sides, root, where_kept
from dynamics.stax.kernel.kernel import Kernel, channels, deviations
from dynamics.stax.kernel.masks import check_no_mask
from dynamics.stax.kernel.spatial import gap_of, half_distance
from dynamics.stax.layers.checks import check_scales
from dynamics.stax.layers.layer import Needs, kernel_layer, layer
from dynamics.types import Array, ArrayLike, Model


def Rnn(
    units: int,
    activation: Sequence,
    W_std: ArrayLike = 1.0,
    U_std: ArrayLike = 1.0,
    b_std: ArrayLike | None = None,
    return_sequences: bool = False,
) -> Model:
    """A vanilla recurrent network with shared weights, unrolled over the one spatial axis of ``x [n, T, d]``.

    ``z_t = W_std W h_(t-1) / sqrt(units) + U_std U x_t / sqrt(d) + b_std b``, ``h_t = phi(z_t)``, ``h_0 = 0``, with
    standard normal ``W, U, b``. With ``V`` the dual of ``phi`` and ``V'`` that of its derivative,

        ``k_z[t, t'] = W_std^2 k_h[t-1, t'-1] + U_std^2 k_x[t, t'] + b_std^2``,  ``k_h = V(k_z)``,
        ``Theta_z[t, t'] = k_z[t, t'] + W_std^2 Theta_h[t-1, t'-1] + U_std^2 Theta_x[t, t']``,
        ``Theta_h = V'(k_z) Theta_z``:

    weights shared over time correlate states of different times, and in the limit only gradients that went through the
    same number of steps overlap. Exact as ``units`` goes to infinity.

    Args:
        units: number of hidden units.
        activation: a layer of a pointwise nonlinearity, such as ``Relu()``.
        W_std, U_std, b_std: scales of the recurrent weights, the input weights and the bias (None for no bias).
        return_sequences: ``h_1, ..., h_T`` as ``[n, T, units]``; by default the last state ``[n, units]``.

    Raises:
        ValueError: for ``units`` below 1, and for inputs without exactly one spatial axis.

    Cost: ``T`` activations a pair of inputs for the last state, ``T^2`` for sequences that are pooled; a scan over
    time, so that the program does not grow with ``T``.

    Reference: Yang 2020, 'Tensor Programs II', section on recurrent networks; Alemohammad, Wang, Balestriero & Baraniuk
    2021, 'The recurrent neural tangent kernel', theorem 1.

    >>> import jax
    >>> from dynamics import stax
    >>> kernel_fn = stax.serial(stax.Rnn(128, stax.Relu(), 2**0.5, 1.0, 0.1), stax.Dense(1)).kernel
    >>> kernel_fn(jax.random.normal(jax.random.key(0), (5, 7, 3)), None, 'ntk').shape
    (5, 5)
    """
    check_counts(units=units)
    check_scales(W_std=W_std, U_std=U_std, b_std=b_std)
    _, phi, _ = activation
    scales = _Scales(W_std**2, U_std**2, 0 if b_std is None else b_std**2)

    def init(rng, input_shape):
        _check(len(input_shape) - 2)
        n, steps, size = input_shape
        keys = jax.random.split(rng, 3)
        bias = None if b_std is None else jax.random.normal(keys[2], (1, units))
        params = jax.random.normal(keys[0], (units, units)), jax.random.normal(keys[1], (size, units)), bias
        return ((n, steps, units) if return_sequences else (n, units)), params

    def apply(params, inputs, **kwargs):
        check_no_mask("Rnn", kwargs.get("mask"))
        recurrent, feed, bias = params
        driven = U_std / inputs.shape[-1] ** 0.5 * (inputs @ feed)
        if bias is not None:
            driven = driven + b_std * bias

        def step(h, u):
            h = phi((), W_std / units**0.5 * (h @ recurrent) + u)
            return h, h

        start = jnp.zeros((inputs.shape[0], units), driven.dtype)
        last, states = lax.scan(step, start, jnp.swapaxes(driven, 0, 1))
        return jnp.swapaxes(states, 0, 1) if return_sequences else last

    def propagate(k: Kernel, **kwargs):
        _check(k.spatial_ndim)
        check_no_mask("Rnn", k.mask1, k.mask2)
        channels(k)
        states = _unrolled(k, scales, kernel_layer(activation).propagate)
        shapes = {name: (*getattr(k, name)[:2], units) for name in ("shape1", "shape2")}
        states = states.replace(is_gaussian=False, batch_axis=0, channel_axis=2, **shapes)
        return states if return_sequences else _last(states)

    needs = Needs(0, -1, lambda full: return_sequences and full)
    return layer(init, apply, propagate, needs)


def _check(spatial_ndim: int) -> None:
    if spatial_ndim != 1:
        raise ValueError(f"Rnn: got inputs with {spatial_ndim} spatial axes; allowed: one, [n, T, channels]")


class _Scales(NamedTuple):
    """Variances of the recurrent weights, the input weights and the bias."""

    recurrent: Any
    inputs: Any
    bias: Any


class _Variances(NamedTuple):
    """Variances ``[n, T]`` of preactivations ``z_t``, states ``h_t``, and the states ``h_(t-1)`` before them."""

    z: Array
    h: Array
    before: Array


def _unrolled(k: Kernel, scales: _Scales, activate: Callable[[Kernel], Kernel]) -> Kernel:
    """The Kernel of the states at all times."""
    one = _variances(k.var1, scales, activate)
    two = one if k.var2 is None else _variances(k.var2, scales, activate)
    inputs, full = deviations(k), not k.diagonal_spatial

    def run(gap, ntk, sides, i, j):
        if gap is None:
            return None, None
        pairs = [sides(*each) for each in zip((one, two)[i], (one, two)[j], strict=True)]
        row, column = (_Variances(*each) for each in zip(*pairs, strict=True))
        distance = half_distance(gap, *sides(inputs[i], inputs[j]))
        return _recursion(distance, ntk, row, column, scales, activate, full)

    gap, ntk = run(k.gap, k.ntk, k.sides, 0, 1)
    return k.replace(
        gap=gap,
        ntk=ntk,
        var1=one.h,
        var2=None if k.var2 is None else two.h,
        within1=run(k.within1, None, own_sides, 0, 0)[0],
        within2=run(k.within2, None, own_sides, 1, 1)[0],
    )


def _variances(var: Array, scales: _Scales, activate) -> _Variances:
    def step(h, x):
        z = scales.recurrent * h + scales.inputs * x + scales.bias
        after = _pointwise(activate, jnp.zeros_like(z), None, z, z).var1[0]
        return after, (z, after, h)

    found = lax.scan(step, jnp.zeros_like(var[:, 0]), var.T)[1]
    return _Variances(*(each.T for each in found))


def _pointwise(activate, gap: Array, ntk: Array | None, q1: Array, q2: Array) -> Kernel:
    """The activation of pairs with variances ``q1, q2``, entry by entry: leaves ``[1, ...]`` or ``[1, 1, ...]``."""
    shape = jnp.broadcast_shapes(gap.shape, q1.shape, q2.shape)
    q1, q2, gap = (jnp.broadcast_to(x, shape) for x in (q1, q2, gap))
    return activate(
        Kernel(
            gap[None, None],
            None if ntk is None else ntk[None, None],
            q1[None],
            q2[None],
            is_gaussian=True,
            diagonal_spatial=True,
            shape1=(1, *shape, 1),
            shape2=(1, *shape, 1),
            channel_axis=len(shape) + 1,
        )
    )


def _recursion(distance, ntk, row: _Variances, column: _Variances, scales: _Scales, activate, full: bool):
    """Gap and NTK of the states, time by time.

    Args:
        distance: ``[..., T, T']`` half squared distances of the inputs, ``[..., T]`` (equal times) unless ``full``.
        ntk: their NTK, or None. row, column: variances shaped to broadcast against ``distance``.
    """

    def scanned(x):
        return jnp.moveaxis(x, -2 if full else -1, 0)

    def columns(x):
        return scanned(jnp.broadcast_to(x, (*x.shape[:-2], *distance.shape[-2:])) if full else x)

    def earlier(x, first):
        """``x[t-1, t'-1]`` for all ``t'`` from ``x[t-1, t']`` and ``first = x[t-1, -1]``."""
        if not full:
            return x
        return jnp.concatenate([jnp.broadcast_to(first, (*x.shape[:-1], 1)), x[..., :-1]], -1)

    def step(carry, now):
        past, theta = carry
        x, own, one, two = now
        s1, s2 = root(one.z), root(two.z)
        gap = gap_of(scales.recurrent * earlier(past, 0.5 * one.before) + scales.inputs * x, s1, s2)
        if own is not None:
            own = s1 * s2 - gap + scales.recurrent * earlier(theta, jnp.zeros_like(one.z)) + scales.inputs * own
        out = _pointwise(activate, gap, own, one.z, two.z)
        gap, theta = out.gap[0, 0], None if own is None else out.ntk[0, 0]
        return (half_distance(gap, root(one.h), root(two.h)), theta), (gap, theta)

    inputs = scanned(distance)
    xs = inputs, where_kept(scanned, ntk), _Variances(*map(scanned, row)), _Variances(*map(columns, column))
    zero = jnp.zeros_like(inputs[0])
    start = zero + 0.5 * xs[3].h[0] if full else zero
    gap, theta = lax.scan(step, (start, None if ntk is None else zero), xs)[1]
    return _unscanned(gap, full), where_kept(_unscanned, theta, full)


def _unscanned(x: Array, full: bool) -> Array:
    return jnp.moveaxis(x, 0, -2 if full else -1)


def _last(k: Kernel) -> Kernel:
    """The Kernel of the last time alone, without spatial axes."""

    def end(x, count):
        return where_kept(lambda x: x[(..., *[-1] * count)], x)

    count = 1 if k.diagonal_spatial else 2
    return k.replace(
        gap=end(k.gap, count),
        ntk=end(k.ntk, count),
        var1=end(k.var1, 1),
        var2=end(k.var2, 1),
        within1=None,
        within2=None,
        diagonal_spatial=True,
        shape1=(k.shape1[0], k.shape1[2]),
        shape2=(k.shape2[0], k.shape2[2]),
        channel_axis=1,
    )
