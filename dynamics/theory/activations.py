"""Gaussian expectations of any activation: what mean-field theory asks of a nonlinearity."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dynamics.stax.activations.quadrature import hermite_series
from dynamics.stax.kernel import Kernel, safe_reciprocal, safe_sqrt
from dynamics.stax.layers import kernel_layer
from dynamics.types import Array, Model

Activation = Model | Callable[..., Array]
_TERMS = 128  # of the Hermite series of a plain function
_FIRST = 16  # of them tell a function that jumps


def moments_of(activation: Activation) -> Callable[[Array, Array], tuple[Array, Array, Array]]:
    """``(q, gap) -> (E phi(u)^2, gap of E phi(u) phi(v), E phi'(u) phi'(v))`` for Gaussian u, v of variance q.

    Args:
        activation: a layer of ``stax`` that acts entry by entry, or a vectorised continuous function (128 Hermite
            polynomials on 576 nodes), differentiable but for points. A kink at 0 costs the moments nothing; elsewhere
            it costs the variance and its derivative up to 0.1 %, gap and slope 1 % (hardtanh), and where they come out
            worse, and for a function that jumps, these two are NaN.

    Returns:
        A function of ``q [...]`` and ``gap [...] = q (1 - c)``, differentiable; gaps as in ``stax.Kernel``.

    Raises:
        ValueError: when the layer is not a nonlinearity.

    Example:
        >>> import jax.numpy as jnp
        >>> from dynamics import stax
        >>> variance, gap, slope = moments_of(stax.Relu())(jnp.array(2.0), jnp.array(0.0))
        >>> float(variance), float(gap), float(slope)
        (1.0, 0.0, 0.5)
    """
    if not isinstance(activation, tuple):
        return _series(activation)
    propagate = kernel_layer(activation).propagate

    def one(q, gap):
        shape = {"shape1": (1, 1), "shape2": (1, 1), "x1_is_x2": True, "is_gaussian": True}
        k = propagate(Kernel(gap.reshape(1, 1), jnp.ones((1, 1), q.dtype), q.reshape(1), **shape))
        if not isinstance(k, Kernel) or k.is_gaussian:
            raise ValueError(
                "activation: got a layer of weights; allowed: a nonlinearity (stax.Relu(), stax.Tanh(), a function)"
            )
        return k.var1[0], k.gap[0, 0], k.ntk[0, 0]

    return jnp.vectorize(one)


def _series(fn: Callable[..., Array]) -> Callable[[Array, Array], tuple[Array, Array, Array]]:
    """The same for a function, by its Hermite series: ``sum a_n^2 (1 - c^n)``, all terms at once.

    The coefficients are those of the slope, ``a_n = sqrt(q / n) b_{n-1}`` (integration by parts), and what the cut
    leaves of ``E phi'^2 = sum b_n^2`` counts as one more term, so that ``d gap / dc`` is ``-q E phi'(u) phi'(v)`` and
    ``chi_1`` the slope of the correlation map at c = 1, to rounding, for kinks too. What a kink adds to the map's
    curvature at ``1 - c < 1/128`` is not resolved.
    """

    def slope_fn(x):
        return jax.jvp(fn, (x,), (jnp.ones_like(x),))[1]

    def moments(q, gap):
        s, order = safe_sqrt(q), jnp.arange(1, _TERMS + 2, dtype=q.dtype)
        value, slope = (hermite_series(f, s, _TERMS) for f in (fn, slope_fn))
        versine = jnp.clip(gap * safe_reciprocal(q), 0, 2)[..., None]
        acute = versine < 0.5
        near = -jnp.expm1(order * jnp.log1p(-jnp.where(acute, versine, 0.0)))
        lost = jnp.where(acute, near, 1 - (1 - versine) ** jnp.arange(1, _TERMS + 2))  # 1 - c^n
        by_parts = s[..., None] * slope.coefficients[..., :_FIRST] / jnp.sqrt(order[:_FIRST])
        apart = jnp.max(jnp.abs(value.coefficients[..., 1 : _FIRST + 1] - by_parts), -1)
        continuous = apart <= 0.01 * safe_sqrt(value.variance)
        squares = jnp.concatenate([slope.coefficients**2, slope.tail[..., None]], -1)
        squares = jnp.where(continuous[..., None], squares, jnp.nan)
        apart = q * jnp.sum(squares / order * lost, -1)
        lost = jnp.concatenate([jnp.zeros_like(lost[..., :1]), lost[..., :-1]], -1)
        return value.variance, apart, slope.variance - jnp.sum(squares * lost, -1)

    return moments
