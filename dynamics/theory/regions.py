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

from dynamics.types import Array


def crossing_probabilities(kernel: Callable[..., Any], x: Float[Array, "n ..."]) -> Float[Array, " segments"]:
    """``arccos(c_i) / pi``: the probability that a Gaussian output changes sign between successive points.

    Args:
        kernel: ``Model.kernel`` of a network that ends in a layer of weights (these outputs are the preactivations).
        x: ``[n, ...]``, points along a curve.

    Returns:
        ``[n - 1]``. Of a curve ``x(s)`` finely divided, their density is Rice's rate,
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
    if len(x) < 2:
        raise ValueError(f"x: got {len(x)} point; allowed: two or more along a curve")

    def segment(one, two):
        k = kernel(one[None], two[None], None)
        if not k.is_gaussian:
            raise ValueError("kernel: got one of activations; allowed: one of a network that ends in weights (Dense)")
        gap, scale = k.gap.reshape(()), jnp.sqrt(k.var1.reshape(()) * k.var2.reshape(()))
        return 2 / jnp.pi * jnp.arcsin(jnp.sqrt(jnp.clip(gap / (2 * scale), 0, 1)))  # 1 - c = 2 sin^2(arccos(c) / 2)

    return jax.vmap(segment)(x[:-1], x[1:])


def expected_breakpoints(kernel: Callable[..., Any], x: Float[Array, "n ..."], width: int) -> Float[Array, ""]:
    """``width sum_i arccos(c_i) / pi``: sign changes of a layer's units along a curve, each pair of points exactly.

    Args:
        kernel, x: as in ``crossing_probabilities``; ``observe.breakpoints`` counts the same on drawn networks.
        width: units of the layer.

    Reference: Rice 1945.
    """
    return width * jnp.sum(crossing_probabilities(kernel, x))
