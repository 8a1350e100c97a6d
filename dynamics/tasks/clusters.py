"""Gaussian clusters at the corners of an XOR, with flipped labels."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, PRNGKeyArray

from dynamics.arguments import POSITIVE, check_counts, check_numbers
from dynamics.types import Array, Batch, Data


class Clusters(NamedTuple):
    """``data`` (training labels partly flipped, test labels clean) and the cluster centres ``means``."""

    data: Data
    means: Float[Array, "2 p"]


def xor_clusters(
    key: PRNGKeyArray, samples: int, test_samples: int, dim: int, separation: float, flips: float
) -> Clusters:
    """Clusters at ``+-mu_1`` labelled +1 and at ``+-mu_2`` labelled -1 in unit noise, ``mu_1`` orthogonal to ``mu_2``.

    Training samples fall into the four clusters at random, their labels are flipped at random: the clusters' sizes
    differ by about ``sqrt(n)``, and a linear classifier follows the larger of each pair. Test samples fill the clusters
    evenly, up to one.

    Args:
        key: draws the centres and the samples.
        samples, test_samples: training and test samples n.
        dim: input dimension p, >= 2.
        separation: ``|mu|``, the norm of each centre.
        flips: probability of a flipped training label, in [0, 0.5).

    Returns:
        ``Clusters(Data(train, test), means)``; ``x [n, p]``, ``y [n, 1]`` in {-1, +1}. No linear classifier is right on
        more than half of the clusters' mass.

    Raises:
        ValueError: when a size, ``separation`` or ``flips`` is out of range.

    Reference: Xu, Wang, Frei, Vardi & Hu 2023, section 2.
    """
    check_counts(samples=samples, test_samples=test_samples)
    check_counts(2, dim=dim)
    less_than_half = lambda v: (v >= 0) & (v < 0.5), "a number >= 0 and < 1/2"
    check_numbers(separation=(separation, POSITIVE), flips=(flips, less_than_half))
    return _drawn(key, samples, test_samples, dim, separation, flips)


@partial(jax.jit, static_argnames=("samples", "test_samples", "dim"))
def _drawn(key: PRNGKeyArray, samples: int, test_samples: int, dim: int, separation, flips) -> Clusters:
    centre_key, train_key, test_key = jax.random.split(key, 3)
    means = separation * jnp.linalg.qr(jax.random.normal(centre_key, (dim, 2)))[0].T  # [2, p]

    def draw(key, corner, flips):
        noise_key, flip_key = jax.random.split(key)
        n, axis, sign = corner.shape[0], corner // 2, 1.0 - 2.0 * (corner % 2)
        x = sign[:, None] * means[axis] + jax.random.normal(noise_key, (n, dim))
        y = (1.0 - 2.0 * axis)[:, None].astype(x.dtype)
        return Batch(x, jnp.where(jax.random.bernoulli(flip_key, flips, (n, 1)), -y, y))

    corner_key, train_key = jax.random.split(train_key)
    corner = jax.random.randint(corner_key, (samples,), 0, 4)
    return Clusters(Data(draw(train_key, corner, flips), draw(test_key, jnp.arange(test_samples) % 4, 0.0)), means)
