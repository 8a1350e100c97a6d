"""Spectra of random matrices: the Marchenko-Pastur law, as a density and as a quadrature."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Real

from dynamics.arguments import check_counts, program
from dynamics.types import Array, ArrayLike


class Spectrum(NamedTuple):
    """A measure on the half line: ``E g(lambda) = zero g(0) + sum_i weights_i g(eigenvalues_i)``.

    Attributes:
        eigenvalues: positive.
        zero: mass at zero; all masses sum to one.
    """

    eigenvalues: Float[Array, " nodes"]
    weights: Float[Array, " nodes"]
    zero: Float[Array, ""]

    def mean(self, values: Float[Array, "*n nodes"], at_zero: Real[ArrayLike, "*#n"] = 0.0) -> Float[Array, "*n"]:
        """``E g``, from ``values = g(eigenvalues)`` and ``at_zero = g(0)``."""
        return self.zero * jnp.asarray(at_zero) + jnp.sum(self.weights * values, axis=-1)


@program
def marchenko_pastur_density(eigenvalue: ArrayLike, aspect: ArrayLike) -> Float[Array, "*shape"]:
    """``rho(l) = sqrt((l_+ - l)(l - l_-)) / (2 pi l)`` with ``l_+- = (sqrt(a) +- 1)^2``, zero outside.

    The spectrum of ``X^T X`` for ``X [P, N]`` with entries of variance 1/N, as N grows at fixed ``a = P/N``; the mass
    under it is ``min(1, a)``, the rest sits at zero.

    Args:
        eigenvalue: ``l``, any shape.
        aspect: ``a = P/N > 0``.

    Reference: Marchenko & Pastur 1967; Advani & Saxe 2017, eq. 13.

    Example:
        >>> float(marchenko_pastur_density(9.5, 4.0))
        0.0
    """
    value, a = jnp.asarray(eigenvalue), jnp.asarray(aspect)
    inside = ((jnp.sqrt(a) + 1) ** 2 - value) * (value - (jnp.sqrt(a) - 1) ** 2)
    positive = inside > 0
    root = jnp.sqrt(jnp.where(positive, inside, 1.0)) / (2 * jnp.pi * jnp.where(positive, value, 1.0))
    return jnp.where(positive, root, 0.0)


def marchenko_pastur(aspect: Real[ArrayLike, ""], nodes: int = 1000) -> Spectrum:
    """The Marchenko-Pastur law as a quadrature that keeps its square-root edges exact.

    With ``l = 1 + a - 2 sqrt(a) cos(theta)`` the density becomes ``4 a sin^2(theta) / (2 pi l) d theta``, smooth on
    ``[0, pi]``, so that the midpoint rule converges as ``min(a, 1/a)^nodes`` on smooth functions.

    Args:
        aspect: ``a = P/N > 0``; may be traced.
        nodes: number of eigenvalues.

    Returns:
        A ``Spectrum`` with mass ``min(1, a)`` on positive eigenvalues; differentiable in ``aspect`` away from 1.

    Raises:
        ValueError: when ``nodes < 1``.

    Cost: O(nodes).

    Example:
        >>> law = marchenko_pastur(2.0)
        >>> round(float(law.mean(law.eigenvalues)), 4)  # E l = a
        2.0
    """
    check_counts(nodes=nodes)
    return _law(aspect, nodes)


@partial(program, static=("nodes",))
def _law(aspect: ArrayLike, nodes: int) -> Spectrum:
    a = jnp.asarray(aspect, jnp.result_type(float))
    theta = jnp.asarray((np.arange(nodes) + 0.5) * np.pi / nodes, a.dtype)
    eigenvalues = (1 - jnp.sqrt(a)) ** 2 + 4 * jnp.sqrt(a) * jnp.sin(theta / 2) ** 2
    weights = 2 * a * jnp.sin(theta) ** 2 / eigenvalues / nodes
    return Spectrum(eigenvalues, weights, jnp.maximum(0.0, 1.0 - a))
