"""Pointwise nonlinearities: how a dual activation turns one Kernel into the next."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dynamics.stax.kernel.algebra import root, safe_sqrt, within_sides
from dynamics.stax.kernel.kernel import Kernel, deviations
from dynamics.stax.kernel.spatial import gap_of
from dynamics.stax.layers.layer import layer
from dynamics.types import Array, Model


class Dual(NamedTuple):
    """The Gaussian expectations of a nonlinearity ``f``.

    Attributes:
        variance: ``q -> E f(sqrt(q) z)^2``.
        cross: ``(gap, s1, s2) -> (gap', slope)``: the gap of ``E f(u) f(v)`` and ``slope = E f'(u) f'(v)`` for
            ``(u, v)`` Gaussian with standard deviations ``s1, s2`` and covariance ``s1 s2 - gap``.
    """

    variance: Callable[[Array], Array]
    cross: Callable[[Array, Array, Array], tuple[Array, Array]]


def elementwise(fn: Callable[[Array], Array] | None, dual: Dual) -> Model:
    """The layer of a nonlinearity ``fn`` (None: only the limit exists) with its dual."""

    def init(rng, input_shape):
        return input_shape, ()

    def apply(params, inputs, **kwargs):
        if fn is None:
            raise ValueError("fn: got None, a layer with a kernel but no finite network; allowed: a function")
        return fn(inputs)

    def propagate(k: Kernel, **kwargs):
        if not k.is_gaussian:
            raise ValueError(
                "inputs: got those of a nonlinearity; allowed: Gaussian ones, by a Dense or Conv layer in between"
            )
        s1, s2 = deviations(k)
        gap, slope = dual.cross(k.gap, *k.sides(s1, s2))

        def within(gap, s):
            return None if gap is None else dual.cross(gap, *within_sides(s))[0]

        return k.replace(
            gap=gap,
            ntk=None if k.ntk is None else k.ntk * slope,
            var1=dual.variance(k.var1),
            var2=None if k.var2 is None else dual.variance(k.var2),
            within1=within(k.within1, s1),
            within2=within(k.within2, s2),
            is_gaussian=False,
        )

    return layer(init, apply, propagate)


def distance_dual(
    variance: Callable[[Array], Array], cross: Callable[[Array, Array, Array], tuple[Array, Array, Array]]
) -> Dual:
    """The dual of ``f`` from ``(gap, s1, s2) -> (d', k', slope)``, ``d' = (q1' + q2') / 2 - k'``.

    Nothing is lost where two inputs nearly coincide when ``cross`` itself subtracts no large numbers. Where deviations
    are not ``alike``, the gap comes from ``k'``: ``d'`` has an error of ``eps`` times the larger variance.
    """

    def gaps(gap, s1, s2):
        # Broadcast once: gradients sum over each array that is broadcast, and are compiled anew for each such sum.
        gap, s1, s2 = jnp.broadcast_arrays(gap, s1, s2)
        distance, covariance, slope = cross(gap, s1, s2)
        one, two = root(variance(s1**2)), root(variance(s2**2))
        new = jnp.where(alike(s1, s2), gap_of(distance, one, two), jnp.maximum(one * two - covariance, 0))
        return settled(new, gap, s1, s2), slope

    return Dual(variance, gaps)


def settled(new: Array, gap: Array, s1: Array, s2: Array) -> Array:
    """The gap ``new`` after an activation, exactly 0 where the inputs coincide to rounding."""
    eps = jnp.finfo(s1.dtype).eps
    return _exact(new, (jnp.abs(s1 - s2) <= 4 * eps * (s1 + s2)) & (gap <= eps**2 * s1 * s2))


@jax.custom_jvp
def _exact(gap: Array, coincident: Array) -> Array:
    """``gap``, exactly 0 where points coincide to rounding: chaotic networks let any gap grow."""
    return jnp.where(coincident, 0, gap)


@_exact.defjvp
def _(primals, tangents):
    return _exact(*primals), tangents[0]


def alike(s1: Array, s2: Array) -> Array:
    """Whether deviations are within a factor of about 1.6, so that a squared distance keeps the digits of a gap."""
    return (s1 - s2) ** 2 <= 0.25 * s1 * s2


def smooth_dual(
    variance: Callable[[Array], Array], cross: Callable[[Array, Array, Array], tuple[Array, Array]]
) -> Dual:
    """The dual of a smooth ``f`` from its covariance ``(k, q1, q2) -> (E f f, E f' f')``.

    Where the gap ``g`` is small the difference ``sqrt(q1' q2') - k'`` would cancel; there
    ``g' = slope g + C (s1 - s2)^2``, with ``2 C = |da/ds|^2 - (d|a|/ds)^2``, ``a(s) = f(s z)``, good to ``O(g^2)``
    and, with the mean of C at both deviations, to ``O((s1 - s2)^4)``.
    """

    def curvature(s):
        def product(one, two):
            return cross(one * two, one**2, two**2)[0]

        ones = jnp.ones_like(s)
        _, mixed = jax.jvp(lambda b: jax.jvp(lambda a: product(a, b), (s,), (ones,))[1], (s,), (ones,))
        size, growth = jax.jvp(lambda a: safe_sqrt(variance(a**2)), (s,), (ones,))
        return 0.5 * jnp.nan_to_num(jnp.maximum(jnp.where(size > 0, mixed - growth**2, 0), 0))

    def dual_cross(gap, s1, s2):
        q1, q2 = s1**2, s2**2
        scale = s1 * s2
        covariance, slope = cross(scale - gap, q1, q2)
        far = jnp.maximum(safe_sqrt(variance(q1)) * safe_sqrt(variance(q2)) - covariance, 0)
        threshold = jnp.sqrt(jnp.finfo(gap.dtype).eps)
        small = (gap <= threshold * scale) & ((s1 - s2) ** 2 <= 100 * threshold * scale)
        near = slope * gap + 0.5 * (curvature(s1) + curvature(s2)) * (s1 - s2) ** 2
        return jnp.where(small, near, far), slope

    return Dual(variance, dual_cross)
