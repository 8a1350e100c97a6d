"""Linear regression in context: sequences of pairs, each of a task that is new or one of a fixed set."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Float, PRNGKeyArray

from dynamics.types import ArrayLike, Batch


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
        covariance: of the inputs; the identity unless given.

    Returns:
        ``Batch`` with ``x [samples, n+1, d+1]``, inputs with their label behind them, the query's label 0, and
        ``y [samples, 1]``.

    Raises:
        ValueError: when a size is below 1.

    Reference: Garg, Tsipras, Liang & Valiant 2022; Raventos, Paul, Chen & Ganguli 2023 (fixed tasks).

    Example:
        >>> batch = regression_sequences(jax.random.key(0), 5, 8, 3, noise=0.1)
        >>> batch.x.shape, batch.y.shape
        ((5, 9, 4), (5, 1))
    """
    fresh = isinstance(tasks, int)
    sizes = (samples, length, tasks) if fresh else (samples, length, *jnp.shape(tasks))
    if min(sizes) < 1 or len(sizes) != (3 if fresh else 4):
        raise ValueError(f"samples, length, tasks: got {sizes}; allowed: integers >= 1, tasks d or an array [K, d]")
    task_key, input_key, noise_key = jax.random.split(key, 3)
    if isinstance(tasks, int):
        w = jax.random.normal(task_key, (samples, tasks)) / tasks**0.5
    else:
        w = jnp.asarray(tasks)[jax.random.randint(task_key, (samples,), 0, sizes[2])]
    x = jax.random.normal(input_key, (samples, length + 1, w.shape[1]), w.dtype)
    if covariance is not None:
        x = x @ jnp.linalg.cholesky(jnp.asarray(covariance, w.dtype)).T
    y = jnp.einsum("snd,sd->sn", x, w)
    shaken = y[:, :-1] + jnp.sqrt(jnp.asarray(noise, w.dtype)) * jax.random.normal(
        noise_key, (samples, length), w.dtype
    )
    labels = jnp.pad(shaken, ((0, 0), (0, 1)))
    return Batch(jnp.concatenate([x, labels[..., None]], -1), y[:, -1:])
