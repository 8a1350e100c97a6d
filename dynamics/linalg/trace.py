"""Trace and Frobenius norm of an operator from random probes, each with its standard error."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, PRNGKeyArray

from dynamics.arguments import check_counts
from dynamics.linalg.lanczos import Matvec, working
from dynamics.precision import full_precision
from dynamics.types import Array, Estimate


class TraceEstimate(NamedTuple):
    """``trace`` = Tr A and ``frobenius`` = |A|_F, each an ``Estimate``."""

    trace: Estimate
    frobenius: Estimate


@full_precision
def trace(
    matvec: Matvec, key: PRNGKeyArray, size: int, probes: int, *, dtype=None, batch_size: int = 1
) -> TraceEstimate:
    """Hutchinson's estimators ``Tr A = E z^T A z`` and ``|A|_F^2 = E |A z|^2`` over random signs z.

    Args:
        matvec: ``v [P] -> A v [P]``; symmetric for the trace's stated variance, any square ``A`` otherwise.
        key: a PRNG key.
        size: P.
        probes: number of probes, >= 2.
        dtype: of the probes; the default float unless given.
        batch_size: probes mapped side by side (memory ``batch_size P``).

    Returns:
        ``TraceEstimate``. The trace's variance is ``2 (|A|_F^2 - sum_i A_ii^2) / probes``; errors are measured between
        probes, that of the norm by the delta method.

    Raises:
        ValueError: when ``probes < 2``.

    Cost: ``probes`` matvecs.

    Reference: Hutchinson 1990; Avron & Toledo 2011, lemma 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> estimate = trace(lambda v: jnp.arange(4.0) * v, jax.random.key(0), 4, 3)  # exact: A is diagonal
        >>> float(estimate.trace.value), float(estimate.trace.error)
        (6.0, 0.0)
    """
    check_counts(2, probes=probes)
    dtype = jnp.result_type(float) if dtype is None else dtype

    def probe(key):
        product, z = working(matvec, jax.random.rademacher(key, (size,), dtype))
        image = product(z)
        return jnp.vdot(z, image), jnp.vdot(image, image)

    traces, squares = jax.lax.map(probe, jax.random.split(key, probes), batch_size=batch_size)
    square = mean_and_error(squares)
    frobenius = jnp.sqrt(square.value)
    error = square.error / jnp.where(frobenius > 0, 2 * frobenius, 1)
    return TraceEstimate(mean_and_error(traces), Estimate(frobenius, error, probes))


def mean_and_error(samples: Float[Array, "n ..."]) -> Estimate:
    """Mean over the first axis and its standard error ``std / sqrt(n)``, n >= 2."""
    n = samples.shape[0]
    return Estimate(jnp.mean(samples, 0), jnp.std(samples, 0, ddof=1) / n**0.5, n)
