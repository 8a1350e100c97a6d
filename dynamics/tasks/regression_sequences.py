"""Linear regression in context: sequences of pairs, each of a task that is new or one of a fixed set."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Float, PRNGKeyArray

from dynamics.arguments import NOT_NEGATIVE, check_counts, check_numbers
from dynamics.types import Array, ArrayLike, Batch


def regression_sequences(
    key: PRNGKeyArray,
    samples: int,
    length: int,
    tasks: int | Float[ArrayLike, "K d"],
    *,
    noise: ArrayLike = 0.0,
    covariance: Float[ArrayLike, "d d"] | None = None,
) -> Batch:
    """Sequences of n pairs ``(x_i, w.x_i + noise)`` and a query, whose clean answer ``w.x`` is to be given.

    Args:
        key: draws tasks, inputs and noise.
        samples: number of sequences.
        length: n, pairs in the context of each.
        tasks: ``[K, d]``, of which each sequence has one at random; or d: each has a fresh ``w ~ N(0, I/d)``.
        noise: variance s2 of the labels' noise; the answer has none.
        covariance: of the inputs, positive definite; the identity unless given. A traced one that is not gives NaN.

    Returns:
        ``Batch`` with ``x [samples, n+1, d+1]``, inputs with their label behind them, the query's label 0, and
        ``y [samples, 1]``.

    Raises:
        ValueError: when a size is below 1, the noise below 0, or the covariance none of d inputs.

    Reference: Garg, Tsipras, Liang & Valiant 2022; Raventos, Paul, Chen & Ganguli 2023 (fixed tasks).

    Example:
        >>> batch = regression_sequences(jax.random.key(0), 5, 8, 3, noise=0.1)
        >>> batch.x.shape, batch.y.shape
        ((5, 9, 4), (5, 1))
    """
    check_counts(samples=samples, length=length)
    check_numbers(noise=(noise, NOT_NEGATIVE))
    shape = jnp.shape(tasks)
    if not shape:
        check_counts(tasks=tasks)
    elif len(shape) != 2 or 0 in shape:
        raise ValueError(f"tasks: got shape {shape}; allowed: an integer d, or an array [K, d]")
    known = jnp.asarray(tasks, jnp.result_type(float, jnp.asarray(tasks).dtype)) if shape else None
    d = shape[1] if shape else int(np.asarray(tasks))
    root = None if covariance is None else _root(covariance, d, jnp.result_type(float if known is None else known))
    return _drawn(key, samples, length, d, known, noise, root)


@partial(jax.jit, static_argnames=("samples", "length", "d"))
def _drawn(key: PRNGKeyArray, samples: int, length: int, d: int, known, noise, root) -> Batch:
    """With tasks that are drawn from ``known`` or new, and inputs of covariance ``root root^T``."""
    task_key, input_key, noise_key = jax.random.split(key, 3)
    if known is None:
        w = jax.random.normal(task_key, (samples, d)) / d**0.5
    else:
        w = known[jax.random.randint(task_key, (samples,), 0, len(known))]
    x = jax.random.normal(input_key, (samples, length + 1, d), w.dtype)
    if root is not None:
        x = x @ root.T
    y = jnp.einsum("snd,sd->sn", x, w)
    shaken = y[:, :-1] + jnp.sqrt(jnp.asarray(noise, w.dtype)) * jax.random.normal(
        noise_key, (samples, length), w.dtype
    )
    labels = jnp.pad(shaken, ((0, 0), (0, 1)))
    return Batch(jnp.concatenate([x, labels[..., None]], -1), y[:, -1:])


def _root(covariance: ArrayLike, d: int, dtype) -> Array:
    """Its Cholesky factor."""
    covariance = jnp.asarray(covariance, dtype)
    if covariance.shape != (d, d):
        raise ValueError(f"covariance: got shape {covariance.shape}; allowed: {(d, d)}, of the inputs")
    root = jnp.linalg.cholesky(covariance)
    if not isinstance(root, Tracer):
        apart = float(jnp.max(jnp.abs(covariance - covariance.T)) / jnp.max(jnp.abs(covariance)))
        if not apart < 1e-4:
            raise ValueError(f"covariance: got one {apart:.2g} from its transpose; allowed: a symmetric matrix")
        if not np.all(np.isfinite(root)):
            least = float(np.linalg.eigvalsh(covariance)[0])
            raise ValueError(f"covariance: got least eigenvalue {least:.2g}; allowed: a positive definite matrix")
    return root
