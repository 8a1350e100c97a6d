"""Linear denoisers in high dimensions: their error, and how far those of two disjoint training sets are apart."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Float, Real

from dynamics.theory.resolvents import Resolvent
from dynamics.types import Array, ArrayLike


class DenoiserErrors(NamedTuple):
    """Per dimension: ``test``, mean squared error; ``distance``, that between the two denoisers' outputs."""

    test: Float[Array, ""]
    distance: Float[Array, ""]


def linear_denoisers(resolvent: Resolvent, noise: Real[ArrayLike, ""]) -> DenoiserErrors:
    """The best linear denoisers ``D = C (C + s^2 I)^{-1} = I - R`` of two disjoint sets of n samples, on fresh ones.

        test = E|D(x + s e) - x|^2/m = [tr(R L R) + s^2 tr(D D)]/m,
        distance = E|(D - D')(x + s e)|^2/m = 2 [tr(R S R) - tr(R S R')]/m,        S = L + s^2 I.

    Args:
        resolvent: ``theory.resolvents.resolvent(eigenvalues, n, s^2)``, of the data's principal variances ``[m]``.
        noise: ``s^2``, the noise's variance; the network is trained at it, which makes it the ridge.

    Raises:
        ValueError: for a noise that is not the resolvent's ridge (of traced values it is not looked at).

    Assumptions: those of ``resolvent``; training to the end on fresh noise.

    Reference: Kadkhodaie, Guth, Simoncelli & Mallat 2024, 'Generalization in diffusion models arises from
    geometry-adaptive harmonic representations', figures 1-2, which measures both for networks.

    Example:
        >>> from dynamics.theory.resolvents import resolvent
        >>> few, many = (linear_denoisers(resolvent(jnp.ones(50), n, 0.5), 0.5) for n in (50, 5000))
        >>> bool(few.distance > 10 * many.distance), round(float(many.test), 3)  # l s^2/(l + s^2) = 1/3
        (True, 0.334)
    """
    R, noise = resolvent, jnp.asarray(noise, resolvent.eigenvalues.dtype)
    known = not isinstance(noise, Tracer) and not isinstance(R.ridge, Tracer)
    if known and not np.allclose(noise, R.ridge, rtol=1e-5, atol=0):
        raise ValueError(f"noise: got {noise}; allowed: the resolvent's ridge, {R.ridge}")
    lam, one = R.eigenvalues, jnp.ones_like(R.eigenvalues)
    squared = lam.size - 2 * R.trace(one) + R.trace_pair(one, one)  # tr(D D)
    test = R.trace_pair(one, lam) + noise * squared
    distance = 2 * (R.trace_pair(one, lam + noise) - R.trace_pair(one, lam + noise, other=R))
    return DenoiserErrors(test / lam.size, distance / lam.size)
