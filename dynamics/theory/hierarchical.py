"""Kernels of infinitely wide convolutional networks whose filters do not overlap, as functions of patch overlaps."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Float, Real

from dynamics.types import Array, ArrayLike


def arc_cosine(overlap: Real[ArrayLike, "*n"]) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """Order-one and order-zero arc-cosine kernels: the ReLU layer on unit-norm features, scaled to one at overlap one.

        k1 = (sqrt(1 - t^2) + t (pi - arccos t)) / pi,        k0 = k1' = (pi - arccos t) / pi

    Args:
        overlap: t in [-1, 1].

    Reference: Cho & Saul 2009, eqs. 3-6.

    Example:
        >>> [float(value) for value in arc_cosine(1.0)]
        [1.0, 1.0]
    """
    t = jnp.clip(jnp.asarray(overlap, jnp.result_type(float)), -1.0, 1.0)
    angle = jnp.pi - jnp.arccos(t)
    return (jnp.sqrt(jnp.maximum(1 - t**2, 0.0)) + t * angle) / jnp.pi, angle / jnp.pi


def hierarchical_ntk(overlaps: Float[Array, "*n patches"], depth: int) -> Float[Array, "*n"]:
    """The ReLU tangent kernel of ``depth`` convolutions with non-overlapping filters and a mean over what is left.

    The first convolution sees single patches, each later one joins two neighbours, so that units of layer l see
    ``2^(l-1)`` patches; with ``2^(depth-1)`` patches the last ones see everything. With ``Sigma_1 = Theta_1 = t``,

        Sigma_{l+1} = mean_pair k1(Sigma_l),        Theta_{l+1} = Sigma_{l+1} + mean_pair Theta_l k0(Sigma_l).

    Args:
        overlaps: ``t_i = x_i . z_i / (|x_i| |z_i|)`` of the patches.
        depth: number of convolutions, >= 1; ``patches`` must divide by ``2^(depth-1)``.

    Returns:
        ``Theta``, with readout and final mean over positions. Differentiable for overlaps inside (-1, 1).

    Raises:
        ValueError: when the patches cannot be joined ``depth - 1`` times.

    Assumptions: patches of one norm, weight variance 2/fan_in (here: kernels scaled to one), no biases.

    Cost: O(patches) an entry.

    Reference: Cagnetta, Favero & Wyart 2023, 'What can be learnt with wide convolutional neural networks?'.

    Example:
        >>> import jax.numpy as jnp
        >>> float(hierarchical_ntk(jnp.ones(4), 3))  # at the same point each of the 3 layers and the readout adds one
        4.0
    """
    patches = overlaps.shape[-1]
    if depth < 1 or patches % 2 ** (depth - 1):
        raise ValueError(f"depth: got {depth!r} for {patches} patches; allowed: >= 1, patches divisible by 2^(depth-1)")
    sigma = theta = overlaps
    for layer in range(depth):
        k1, k0 = arc_cosine(sigma)
        sigma, theta = k1, theta * k0
        size = 2 if layer < depth - 1 else sigma.shape[-1]
        sigma, theta = (jnp.mean(v.reshape(*v.shape[:-1], -1, size), -1) for v in (sigma, theta))
        theta = theta + sigma
    return theta[..., 0]
