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
_TERMS, _DEGREE = 128, 256  # of the Hermite series of a plain function


def moments_of(activation: Activation) -> Callable[[Array, Array], tuple[Array, Array, Array]]:
    """``(q, gap) -> (E phi(u)^2, gap of E phi(u) phi(v), E phi'(u) phi'(v))`` for Gaussian u, v of variance q.

    Args:
        activation: a layer of ``stax`` that acts entry by entry, or a vectorised function (128 Hermite polynomials,
            256 nodes: see ``stax.hermite_series`` for the error).

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
    """The same for a function, by its Hermite series: ``sum a_n^2 (1 - c^n)``, all terms at once."""

    def slope_fn(x):
        return jax.jvp(fn, (x,), (jnp.ones_like(x),))[1]

    def moments(q, gap):
        s, order = safe_sqrt(q), jnp.arange(_TERMS, dtype=q.dtype)
        value, slope = (hermite_series(f, s, _TERMS, _DEGREE) for f in (fn, slope_fn))
        versine = jnp.clip(gap * safe_reciprocal(q), 0, 2)[..., None]
        acute = versine < 0.5
        near = -jnp.expm1(order * jnp.log1p(-jnp.where(acute, versine, 0.0)))
        lost = jnp.where(acute, near, 1 - (1 - versine) ** jnp.arange(_TERMS))  # 1 - c^n
        apart = jnp.sum(value.coefficients**2 * lost, -1)
        return value.variance, apart, slope.variance - jnp.sum(slope.coefficients**2 * lost, -1)

    return moments
