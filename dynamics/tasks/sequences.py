"""Sequence tasks of the neuroscience kind."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from dynamics.types import Batch


def two_alternative_choice(
    key: PRNGKeyArray, samples: int, steps: int = 8, *, evidence: float = 0.5, noise: float = 0.5
) -> Batch:
    """Which of two noisy streams is larger on average? A fixation channel and two evidence channels over time.

    Args:
        key: draws the answers and the noise.
        samples: number of sequences n.
        steps: length T.
        evidence: half the difference of the streams' means.
        noise: standard deviation of each stream at each step.

    Returns:
        ``Batch`` with ``x [n, T, 3]`` and one-hot ``y [n, 2]``.

    Raises:
        ValueError: when a size is below 1, or ``evidence`` or ``noise`` is negative.

    Reference: the two-alternative forced-choice task of Molano-Mazon et al. 2022, 'NeuroGym'.

    Example:
        >>> batch = two_alternative_choice(jax.random.key(0), 4)
        >>> batch.x.shape, batch.y.shape
        ((4, 8, 3), (4, 2))
    """
    if samples < 1 or steps < 1:
        raise ValueError(f"samples, steps: got {samples!r}, {steps!r}; allowed: integers >= 1")
    if evidence < 0 or noise < 0:
        raise ValueError(f"evidence, noise: got {evidence!r}, {noise!r}; allowed: numbers >= 0")
    answer_key, noise_key = jax.random.split(key)
    answer = jax.random.bernoulli(answer_key, 0.5, (samples,)).astype(int)
    y = jax.nn.one_hot(answer, 2)
    mean = evidence * (2 * y - 1)
    streams = mean[:, None, :] + noise * jax.random.normal(noise_key, (samples, steps, 2))
    return Batch(jnp.concatenate([jnp.ones((samples, steps, 1)), streams], axis=-1), y)
