"""Linear regions of wide random networks along a curve: Rice's formula from any infinite-width kernel.

A unit of a ReLU network bends the function where its preactivation changes sign. At infinite width preactivations are
Gaussian with covariance K; between two inputs of correlation c one changes sign with probability arccos(c)/pi.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from dynamics.arguments import check_counts
from dynamics.types import Array


def crossing_probabilities(kernel: Callable[..., Any], x: Float[Array, "n ..."]) -> Float[Array, " segments"]:
    """``arccos(c_i) / pi``: the probability that a Gaussian output changes sign between successive points.

    Args:
        kernel: ``Model.kernel`` of a network that ends in a layer of weights (these outputs are the preactivations).
        x: ``[n, ...]``, points along a curve.

    Returns:
        ``[n - 1]``; 1/2 where one of the two outputs has variance 0 (an input 0 without biases). Gradients are 0 where
        two points are one. Of a curve ``x(s)`` finely divided, their density is Rice's rate,
        ``sqrt(r/q - (m/q)^2) / pi`` with ``q = K(s, s)``, ``m = dK/ds'`` and ``r = d^2 K/ds ds'`` at ``s' = s``.

    Raises:
        ValueError: for fewer than two points, or outputs that are not Gaussian.

    Cost: one kernel entry a segment; digits of near points are kept (gaps, see ``stax.Kernel``).

    Reference: Rice 1945; Hanin & Rolnick 2019 (regions of networks at initialisation).

    Example:
        >>> import jax.numpy as jnp
        >>> from dynamics import stax
        >>> s = jnp.linspace(0, 2 * jnp.pi, 101)
        >>> circle = jnp.stack([jnp.cos(s), jnp.sin(s)], -1)
        >>> p = crossing_probabilities(stax.Dense(1).kernel, circle)    # a line through 0 cuts it twice
        >>> round(float(p.sum()), 4)
        2.0
    """
    if isinstance(kernel, tuple):
        raise TypeError("kernel: got a Model; allowed: its kernel, Model.kernel")
    if not jnp.ndim(x) or len(x) < 2:
        got = f"{len(x)} point" if jnp.ndim(x) else "a number"
        raise ValueError(f"x: got {got}; allowed: two or more along a curve")

    def segment(one, two):
        k = kernel(one[None], two[None], None)
        if not k.is_gaussian:
            raise ValueError("kernel: got one of activations; allowed: one of a network that ends in weights (Dense)")
        if k.gap.size != 1:
            raise ValueError(f"kernel: got {k.gap.size} entries a pair; allowed: one (Flatten before the last layer)")
        gap, one, two = k.gap.reshape(()), _root(k.var1.reshape(())), _root(k.var2.reshape(()))
        both, either = (one != 0) & (two != 0), (one != 0) | (two != 0)
        versine = gap / jnp.where(both, one, 1) / jnp.where(both, two, 1)
        versine = jnp.where(both, versine, jnp.where(either, 1.0, 0 * versine))
        return 2 / jnp.pi * jnp.arcsin(_root(jnp.clip(versine / 2, 0, 1)))  # 1 - c = 2 sin^2(arccos(c) / 2)

    return jax.vmap(segment)(x[:-1], x[1:])


def _root(x: Array) -> Array:
    """``sqrt``, of gradient 0 at 0; NaN stays NaN."""
    return jnp.where(x == 0, 0, jnp.sqrt(jnp.where(x == 0, 1, x)))


def expected_breakpoints(kernel: Callable[..., Any], x: Float[Array, "n ..."], width: int) -> Float[Array, ""]:
    """``width sum_i arccos(c_i) / pi``: sign changes of a layer's units along a curve, each pair of points exactly.

    Args:
        kernel, x: as in ``crossing_probabilities``; ``observe.breakpoints`` counts the same on drawn networks.
        width: units of the layer.

    Raises:
        ValueError: for a width below 1.

    Reference: Rice 1945.
    """
    check_counts(width=width)
    return width * jnp.sum(crossing_probabilities(kernel, x))
