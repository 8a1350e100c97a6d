"""Ranks of matrices from their singular values, and norms of weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Float

from dynamics.arguments import program
from dynamics.types import Array, Params


@program
def effective_rank(singular_values: Float[Array, "*b r"]) -> Float[Array, "*b"]:
    """``exp(entropy)`` of the normalised singular values: between 1 and their number.

    Args:
        singular_values: non-negative up to rounding (negatives count as 0).

    Returns:
        0 for the zero matrix. Differentiable where the values are positive.

    Reference: Roy & Vetterli 2007, 'The effective rank', eq. 6.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(effective_rank(jnp.array([2.0, 2.0, 0.0]))), 4)
        2.0
    """
    positive = jnp.maximum(singular_values, 0)
    total = jnp.sum(positive, -1, keepdims=True)
    p = positive / jnp.where(total == 0, 1, total)
    entropy = -jnp.sum(p * jnp.log(jnp.where(p > 0, p, 1)), -1)
    return jnp.where(total[..., 0] == 0, 0, jnp.exp(entropy))


@program
def stable_rank(singular_values: Float[Array, "*b r"]) -> Float[Array, "*b"]:
    """``|W|_F^2 / |W|_2^2`` from singular values: between 1 and r; 0 for the zero matrix.

    Reference: Rudelson & Vershynin 2007, section 1.
    """
    top = jnp.max(jnp.abs(singular_values), -1)
    return jnp.sum(singular_values**2, -1) / jnp.where(top == 0, 1, top) ** 2


@program
def isometry_gap(singular_values: Float[Array, "*b r"]) -> Float[Array, "*b"]:
    """``log mean_i s_i^2 - mean_i log s_i^2``: 0 for an isometry (all equal), inf where one vanishes.

    Args:
        singular_values: of a batch's representations ``X [n, d]`` (``min(n, d)`` of them) or of a Jacobian.

    Returns:
        A number >= 0, unchanged by scale and rotation; NaN where all values are 0. Differentiable where they are
        positive.

    Reference: Meterez et al. 2023, 'Towards training without depth limits: batch normalization without gradient
    explosion'.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(isometry_gap(jnp.array([1.0, 2.0]))), 5)  # log(5/2) - log(4)/2
        0.22314
    """
    sizes = jnp.abs(singular_values)
    sizes = sizes.astype(jnp.promote_types(sizes.dtype, jnp.float32))
    top = jax.lax.stop_gradient(jnp.max(sizes, -1, keepdims=True, initial=0))
    shares = sizes / jnp.where(top > 0, top, 1)  # squares neither over- nor underflow
    return jnp.log(jnp.mean(shares**2, -1)) - 2 * jnp.mean(jnp.log(shares), -1)


@program
def weight_norm(params: Params) -> Float[Array, ""]:
    """``|theta|_2`` over all leaves."""
    return jnp.sqrt(sum((jnp.sum(jnp.abs(leaf) ** 2) for leaf in jax.tree.leaves(params)), start=jnp.zeros(())))
