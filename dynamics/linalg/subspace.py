"""A few eigenvectors that move slowly: Rayleigh-Ritz on a short block Krylov space from the last ones."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Float

from dynamics.linalg.eigen import Eigenpairs
from dynamics.linalg.lanczos import Matvec, working
from dynamics.precision import full_precision
from dynamics.types import Array


@full_precision
def refine(matvec: Matvec, vectors: Float[Array, "k P"], depth: int = 3) -> Eigenpairs:
    """The best k eigenpairs, largest first, in ``span{V, A V, ..., A^(depth-1) V}``.

    Args:
        matvec: ``v [P] -> A v [P]``, ``A`` symmetric.
        vectors: V, linearly independent; the last eigenvectors. ``k depth <= P``.
        depth: blocks, >= 1; 1 only rotates V.

    Returns:
        ``Eigenpairs`` with measured residuals, each vector with the sign that points along V's row of its rank.

    Raises:
        ValueError: when ``depth`` is out of range.

    Cost: ``k depth`` matvecs, two QR factorisations a block.

    Example:
        >>> import jax.numpy as jnp
        >>> d = jnp.array([5.0, 3.0, 1.0, 0.0])
        >>> pairs = refine(lambda v: d * v, jnp.array([[1.0, 0.1, 0.1, 0.1]]), depth=4)
        >>> round(float(pairs.values[0]), 4)
        5.0
    """
    k, size = vectors.shape
    if not 1 <= depth <= size // k:
        raise ValueError(f"depth: got {depth!r}; allowed: an integer in [1, {size // k}]")
    matvec, vectors = working(matvec, vectors)
    block = jnp.linalg.qr(vectors.T)[0]
    basis, images = block, jnp.zeros((size, 0), vectors.dtype)
    for level in range(depth):
        image = jnp.stack([matvec(column) for column in block.T], axis=1)
        images = jnp.concatenate([images, image], axis=1)
        if level < depth - 1:
            basis, block = _grown(basis, image)
    values, ritz, residuals = _ritz(basis, images, vectors)
    return Eigenpairs(values, ritz, residuals, jnp.int32(k * depth))


@partial(jax.jit, inline=True)
def _grown(basis: Array, image: Array) -> tuple[Array, Array]:
    """The basis with an orthonormal block behind it that spans the rest of the image, and the block."""
    block = image - basis @ (basis.T @ image)
    block = jnp.linalg.qr(block)[0]
    block = jnp.linalg.qr(block - basis @ (basis.T @ block))[0]
    return jnp.concatenate([basis, block], axis=1), block


@partial(jax.jit, inline=True)
def _ritz(basis: Array, images: Array, vectors: Array) -> tuple[Array, Array, Array]:
    """Values, vectors and residuals of the largest Ritz pairs."""
    k, projected = len(vectors), basis.T @ images
    theta, s = jnp.linalg.eigh(0.5 * (projected + projected.T))
    theta, s = theta[::-1][:k], s[:, ::-1][:, :k]
    ritz = basis @ s
    residuals = jnp.linalg.norm(images @ s - ritz * theta, axis=0)
    ritz = jnp.where(jnp.sum(ritz * vectors.T, 0) < 0, -ritz, ritz)
    return theta, ritz.T, residuals
