"""Gaussian draws with less noise than independent ones."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Float, PRNGKeyArray


def whitened(
    key: PRNGKeyArray, samples: int, columns: int, *, centred: bool = False
) -> Float[jax.Array, "samples columns"]:
    """Gaussian draws whose second moments are exact: ``X^T X/samples = I`` (plain draws where they are too few).

    Args:
        key, samples, columns: of the draws, in the default float.
        centred: whether the means are exactly 0 too.
    """
    x = jax.random.normal(key, (samples, columns))
    x = x - jnp.mean(x, 0) if centred else x
    if samples < columns:
        return x
    q, r = jnp.linalg.qr(x)
    return q * jnp.sign(jnp.diagonal(r)) * samples**0.5


def mirrored(half: Float[jax.Array, "half c"]) -> Float[jax.Array, "both c"]:
    """Draws and their mirror images."""
    return jnp.concatenate([half, -half])
