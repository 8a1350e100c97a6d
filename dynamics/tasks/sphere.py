"""Inputs on a sphere with a smooth low-degree target: the small regression task of the infinite-width experiments."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from dynamics.arguments import check_counts
from dynamics.types import Batch, Data


def sphere_quadratic(key: PRNGKeyArray, samples: int, test_samples: int, dim: int) -> Data:
    """``y = x.u + ((x.u)^2 - 1)/2`` on the sphere ``|x|^2 = dim``, scaled to unit standard deviation over the samples.

    Args:
        key: draws the unit vector ``u`` and the inputs.
        samples, test_samples: training and test samples.
        dim: input dimension.

    Returns:
        ``Data`` with ``x [n, dim]``, ``y [n, 1]``.

    Raises:
        ValueError: when a size is below 1.

    Example:
        >>> data = sphere_quadratic(jax.random.key(0), 16, 4, 8)
        >>> data.train.x.shape, data.test.y.shape, round(float((data.train.x[0] ** 2).sum()), 3)
        ((16, 8), (4, 1), 8.0)
    """
    check_counts(samples=samples, test_samples=test_samples, dim=dim)
    direction_key, input_key = jax.random.split(key)
    u = jax.random.normal(direction_key, (dim,))
    x = jax.random.normal(input_key, (samples + test_samples, dim))
    x = x * jnp.sqrt(dim) / jnp.linalg.norm(x, axis=1, keepdims=True)
    overlap = x @ u / jnp.linalg.norm(u)
    y = overlap + 0.5 * (overlap**2 - 1.0)
    y = (y / jnp.std(y))[:, None]
    return Data(Batch(x[:samples], y[:samples]), Batch(x[samples:], y[samples:]))
