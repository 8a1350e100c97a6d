"""Signals in wide random networks: length and correlation maps, their fixed points, depth scales, the edge of chaos.

Each layer ``h' = W phi(h) + b``, ``W ~ N(0, W_std^2 / n)``, ``b ~ N(0, b_std^2)``, maps the variance q of the
preactivations and the correlation c of two inputs,

    q' = W_std^2 E phi(sqrt(q) z)^2 + b_std^2,      c' = (W_std^2 E phi(u) phi(v) + b_std^2) / q',

with Gaussian u, v of variance q and correlation c. ``chi_1 = W_std^2 E phi'(sqrt(q*) z)^2`` multiplies squared
gradients and small distances: below 1 inputs merge (order), above 1 they part (chaos).

An activation is any layer of ``stax`` that acts entry by entry, or a continuous function, expanded in 128 Hermite
polynomials (``theory.activations.moments_of``, which says what kinks off 0 cost); NaN where a function jumps, since
chi_1 is then infinite.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Bool, Float

from dynamics.arguments import NOT_NEGATIVE, POSITIVE, check_numbers
from dynamics.theory.activations import Activation, moments_of
from dynamics.theory.fixed_point import bisect, implicit
from dynamics.types import Array, ArrayLike

_REACH = 1e12  # fixed points are sought within this factor of where the search starts
_GRID = 481  # points of the search, ten a factor of 3


class SignalPropagation(NamedTuple):
    """Where signals go in a deep random network; each entry of the broadcast shape of ``W_std`` and ``b_std``.

    Attributes:
        q: variance ``q*`` of the preactivations that depth leads to; 0 or inf where they die out or grow for ever.
        chi: ``chi_1`` at ``q*``; at most 1: ordered, above: chaotic.
        correlation: the stable fixed point ``c*`` of the correlation map at ``q*``.
        length_slope: ``dq'/dq`` at ``q*``. correlation_slope: ``dc'/dc`` at ``c*``.
        length_depth, correlation_depth: layers in which deviations from the fixed point shrink by e,
            ``-1 / log(slope)``; inf where the slope is 1 or more.
        gradient_depth: layers in which squared gradients grow or shrink by e, ``1 / |log chi|``.
        residual: of the two fixed-point equations, relative to ``q*`` and 1; NaN where ``q*`` is 0 or inf.
    """

    q: Float[Array, "*shape"]
    chi: Float[Array, "*shape"]
    correlation: Float[Array, "*shape"]
    length_slope: Float[Array, "*shape"]
    correlation_slope: Float[Array, "*shape"]
    length_depth: Float[Array, "*shape"]
    correlation_depth: Float[Array, "*shape"]
    gradient_depth: Float[Array, "*shape"]
    residual: Float[Array, "*shape"]


class Critical(NamedTuple):
    """A point of the edge of chaos: ``chi_1 = 1`` at the fixed point ``q``.

    Attributes:
        W_std, b_std: standard deviations of weights and biases. q: the fixed point.
        length_slope: ``dq'/dq`` there. Above 1 the fixed point is unstable: rounding and finite width take the variance
            away from q, and ``chi_1`` from 1 (GELU at q = 1.5: 1.0425). See ``stable``.
    """

    W_std: Float[Array, "*shape"]
    b_std: Float[Array, "*shape"]
    q: Float[Array, "*shape"]
    length_slope: Float[Array, "*shape"]

    @property
    def stable(self) -> Bool[Array, "*shape"]:
        """Whether depth leads to q: ``length_slope <= 1``, up to rounding (ReLU: 1, every length is kept)."""
        return self.length_slope <= 1 + 64 * jnp.finfo(self.length_slope.dtype).eps


def length_map(activation: Activation, W_std: ArrayLike, b_std: ArrayLike = 0.0) -> Callable[[ArrayLike], Array]:
    """The map ``q -> q'`` of the preactivations' variance through one layer.

    Args:
        activation: see the module. W_std, b_std: standard deviations of weights (over sqrt of the fan-in) and biases.

    Returns:
        A function of ``q [...]``, differentiable. Cost: one quadrature an entry.

    Reference: Poole et al. 2016, eq. 3.

    Example:
        >>> from dynamics import stax
        >>> float(length_map(stax.Relu(), 1.0, 0.5)(2.0))
        1.25
    """
    moments = moments_of(activation)

    def step(q):
        q = jnp.asarray(q, jnp.result_type(float))
        return jnp.square(W_std) * moments(q, jnp.zeros_like(q))[0] + jnp.square(b_std)

    return step


def correlation_map(
    activation: Activation, W_std: ArrayLike, b_std: ArrayLike = 0.0, q: ArrayLike | None = None
) -> Callable[[ArrayLike], Array]:
    """The map ``c -> c'`` of two inputs' correlation through one layer, both at variance ``q``.

    Args:
        activation, W_std, b_std: as in ``length_map``. q: the variance; None for the fixed point ``q*``.

    Returns:
        A function of ``c [...]`` in [-1, 1], differentiable inside.

    Reference: Poole et al. 2016, eq. 5.

    Example:
        >>> from dynamics import stax
        >>> import math
        >>> c = correlation_map(stax.Relu(), math.sqrt(2.0), q=1.0)(0.0)   # 1/pi
        >>> round(float(c), 5)
        0.31831
    """
    moments = moments_of(activation)
    q = _usable(_length_fixed_point(_hashable(activation), W_std, b_std, 1.0), 1.0) if q is None else q
    q = jnp.asarray(q, jnp.result_type(float))

    def step(c):
        variance, gap, _ = moments(q, (1 - jnp.asarray(c, q.dtype)) * q)
        weight = jnp.square(W_std)
        return 1 - weight * gap / (weight * variance + jnp.square(b_std))

    return step


def signal_propagation(
    activation: Activation, W_std: ArrayLike, b_std: ArrayLike = 0.0, *, start: float = 1.0
) -> SignalPropagation:
    """Fixed points of the length and correlation maps, their slopes and depth scales.

    Args:
        activation, W_std, b_std: as in ``length_map``; of one shape or broadcast against each other.
        start: the variance of the first layer, > 0. Where the length map has several fixed points, q* is the one that
            iterating it from here tends to (for maps that rise with q); sought within a factor 1e12.

    Returns:
        A ``SignalPropagation``. Differentiable (by implicit differentiation; not at ``chi_1 = 1``), jit- and vmap-able.

    Raises:
        ValueError: for a negative ``W_std`` or ``b_std``, or ``start`` not positive.

    Assumptions: infinitely wide layers, independent weights; an activation whose kernel rises with the correlation
    (all of them do on [0, 1]). Where q* is 0 or inf, the correlation map is that of a variance 1e12 times smaller or
    larger than ``start``.

    Cost: about 600 quadratures an entry.

    Reference: Poole et al. 2016, eqs. 3-7; Schoenholz et al. 2017, eqs. 7-9 (depth scales).

    Example:
        >>> from dynamics import stax
        >>> found = signal_propagation(stax.Relu(), 1.0, 0.5)     # q* = b^2 / (1 - W^2 / 2), chi_1 = W^2 / 2
        >>> round(float(found.q), 5), round(float(found.chi), 5), float(found.correlation)
        (0.5, 0.5, 1.0)
    """
    _check(W_std, b_std, start)
    dtype = jnp.result_type(float)
    W_std, b_std = jnp.broadcast_arrays(jnp.asarray(W_std, dtype), jnp.asarray(b_std, dtype))
    return _propagation(_hashable(activation), W_std, b_std, start)


@partial(jax.jit, static_argnames=("activation", "start"))
def _propagation(activation: Activation, W_std: Array, b_std: Array, start: float) -> SignalPropagation:
    moments, step, weight = moments_of(activation), length_map(activation, W_std, b_std), W_std**2
    q = _length_fixed_point(activation, W_std, b_std, start)
    at = _usable(q, start)
    after, length_slope = jax.jvp(step, (at,), (jnp.ones_like(at),))
    chi = weight * moments(at, jnp.zeros_like(at))[2]

    def excess(versine, at, after, weight):
        return weight * moments(at, versine * at)[1] / after - versine

    parts = (at, after, weight)
    low = jnp.full_like(q, 1 / _REACH)
    root = bisect(lambda v: excess(v, *parts), low, jnp.ones_like(q))
    root = implicit(excess, root, *parts)
    chaotic = chi * at > after  # the slope of the correlation map at c = 1
    versine = jnp.where(chaotic, root, 0.0)
    correlation_slope = weight * moments(at, versine * at)[2] * at / after
    reached = jnp.isfinite(q) & (q > 0)
    off = jnp.maximum(jnp.abs(after / at - 1), jnp.where(chaotic, jnp.abs(excess(versine, *parts)), 0.0))
    return SignalPropagation(
        q,
        chi,
        1 - versine,
        length_slope,
        correlation_slope,
        _depth(length_slope),
        _depth(correlation_slope),
        1 / jnp.abs(jnp.log(chi)),
        jnp.where(reached, off, jnp.nan),
    )


def critical_line(activation: Activation, q: ArrayLike) -> Critical:
    """The edge of chaos, parametrised by the fixed point q: the ``(W_std, b_std)`` at which it is q and ``chi_1 = 1``.

        W_std^2 = 1 / E phi'(sqrt(q) z)^2,      b_std^2 = q - W_std^2 E phi(sqrt(q) z)^2

    Args:
        activation: see the module. q: ``[...]``, > 0.

    Returns:
        A ``Critical``; ``b_std`` is NaN where ``b_std^2`` would be negative, ``stable`` says where depth leads to q.
        Differentiable. Cost: two quadratures.

    Raises:
        ValueError: for q <= 0, unless it is traced.

    Reference: Poole et al. 2016, section 2.2; Schoenholz et al. 2017, figure 1.

    Example:
        >>> from dynamics import stax
        >>> point = critical_line(stax.Relu(), 3.0)
        >>> round(float(point.W_std) ** 2, 5), float(point.b_std)
        (2.0, 0.0)
    """
    if not isinstance(q, Tracer) and not np.all(np.asarray(q) > 0):
        raise ValueError(f"q: got {q}; allowed: numbers > 0")
    q = jnp.asarray(q, jnp.result_type(float))
    weight, bias = _critical(activation, q)
    small = 64 * jnp.finfo(q.dtype).eps * q
    positive = bias > small
    b_std = jnp.where(positive, jnp.sqrt(jnp.where(positive, bias, 1.0)), jnp.where(bias < -small, jnp.nan, 0.0))
    return Critical(jnp.sqrt(weight), b_std, q, _length_slope(activation, weight, q))


def critical_point(activation: Activation, b_std: ArrayLike) -> Critical:
    """The edge of chaos at given ``b_std``: the smallest fixed point q on the critical line with that bias.

    Args:
        activation: see the module. b_std: ``[...]``, at least 0; at 0 the limit ``q -> 0`` is returned
            (``W_std = 1 / |phi'(0)|`` for a smooth activation, sqrt 2 for ReLU).

    Returns:
        A ``Critical``; NaN where no critical point has this bias (ReLU: ``b_std > 0``). Differentiable for b_std > 0.

    Raises:
        ValueError: for a negative ``b_std``.

    Cost: about 550 quadratures an entry.

    Reference: Schoenholz et al. 2017, figure 1.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(critical_point(jnp.tanh, 0.0).W_std), 4)
        1.0
    """
    _check(0.0, b_std, 1.0)
    return _critical_point(_hashable(activation), jnp.asarray(b_std, jnp.result_type(float)))


@partial(jax.jit, static_argnames="activation")
def _critical_point(activation: Activation, b_std: Array) -> Critical:
    def excess(q, b_std):
        bias = _critical(activation, q)[1]
        return jnp.where(bias > 64 * jnp.finfo(q.dtype).eps * q, bias, 0.0) - b_std**2

    grid = _grid(1.0, b_std.dtype).reshape(-1, *[1] * b_std.ndim)
    above = excess(grid, b_std) > 0
    index = jnp.argmax(above, axis=0)
    found = jnp.any(above, axis=0) & (index > 0)
    high = grid.reshape(-1)[jnp.maximum(index, 1)]
    low = grid.reshape(-1)[jnp.maximum(index, 1) - 1]
    root = bisect(lambda q: -excess(q, b_std), low, high)
    q = jnp.where(found, implicit(excess, root, b_std), jnp.nan)
    q = jnp.where(b_std == 0, grid.reshape(-1)[0], q)
    missing = jnp.isnan(q)
    at = jnp.where(missing, 1.0, q)
    weight = _critical(activation, at)[0]
    found = jnp.sqrt(weight), b_std, q, _length_slope(activation, weight, at)
    return Critical(*(jnp.where(missing, jnp.nan, value) for value in found))


def _critical(activation: Activation, q: Array) -> tuple[Array, Array]:
    """``W_std^2`` and ``b_std^2`` (of either sign) that make q a fixed point with ``chi_1 = 1``."""
    variance, _, slope = moments_of(activation)(q, jnp.zeros_like(q))
    return 1 / slope, q - variance / slope


def _length_slope(activation: Activation, weight: Array, q: Array) -> Array:
    """``dq'/dq`` at q for ``W_std^2 = weight``."""
    return jax.jvp(length_map(activation, jnp.sqrt(weight)), (q,), (jnp.ones_like(q),))[1]


@partial(jax.jit, static_argnames=("activation", "start"))
def _length_fixed_point(activation: Activation, W_std: ArrayLike, b_std: ArrayLike, start: float) -> Array:
    """The fixed point next to ``start`` in the direction in which the length map moves it; 0 or inf without one."""
    dtype = jnp.result_type(float)
    W_std, b_std = jnp.broadcast_arrays(jnp.asarray(W_std, dtype), jnp.asarray(b_std, dtype))

    def excess(q, W_std, b_std):
        return length_map(activation, W_std, b_std)(q) - q

    grid = _grid(start, dtype).reshape(-1, *[1] * W_std.ndim)
    moves = excess(grid, W_std, b_std)
    middle = _GRID // 2
    still = jnp.abs(moves[middle]) <= 16 * jnp.finfo(dtype).eps * start
    rises = moves[middle] > 0
    # Rising: the first point above that falls. Falling: the last point below that rises.
    stops = moves[middle:] <= 0
    turns = moves[: middle + 1] >= 0
    above = jnp.where(jnp.any(stops, axis=0), middle + jnp.argmax(stops, axis=0), _GRID)
    below = jnp.where(jnp.any(turns, axis=0), middle - jnp.argmax(turns[::-1], axis=0), -1)
    left = jnp.clip(jnp.where(rises, above - 1, below), 0, _GRID - 2)
    flat = grid.reshape(-1)
    root = bisect(lambda q: excess(q, W_std, b_std), flat[left], flat[left + 1])
    q = implicit(excess, root, W_std, b_std)
    q = jnp.where(rises & (above == _GRID), jnp.inf, jnp.where(~rises & (below == -1), 0.0, q))
    return jnp.where(still, start, q)


def _grid(start: float, dtype) -> Array:
    return start * jnp.geomspace(1 / _REACH, _REACH, _GRID, dtype=dtype)


def _usable(q: Array, start: float) -> Array:
    """``q`` within the reach of the search, so that maps can be evaluated there."""
    return jnp.clip(q, start / _REACH, start * _REACH)


def _depth(slope: Array) -> Array:
    shrinks = (slope < 1) & (slope > 0)
    depth = -1 / jnp.log(jnp.where(shrinks, slope, 0.5))
    return jnp.where(shrinks, depth, jnp.where(slope >= 1, jnp.inf, 0.0))


def _check(W_std: ArrayLike, b_std: ArrayLike, start: float) -> None:
    check_numbers(many=True, W_std=(W_std, NOT_NEGATIVE), b_std=(b_std, NOT_NEGATIVE), start=(start, POSITIVE))


def _hashable(activation: Any) -> Any:
    """What has no hash, as a module of arrays, is known by its identity."""
    if isinstance(activation, tuple):  # a layer
        return activation
    if not callable(activation):
        raise TypeError(f"activation: got {type(activation).__name__}; allowed: a layer of stax, or a function")
    try:
        hash(activation)
    except TypeError:
        return partial(activation)
    return activation
