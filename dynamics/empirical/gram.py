"""Products of a matrix of rows with another, or with itself at the upper triangle's price."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from dynamics.backend import by_backend
from dynamics.types import Array

_HIGHEST = jax.lax.Precision.HIGHEST


def product(one: Array, two: Array) -> Array:
    """``one two^T`` for ``[r, k]`` and ``[s, k]``."""
    return jax.lax.dot_general(one, two, (((1,), (1,)), ((), ())), precision=_HIGHEST)


def upper_blocks(rows: Array) -> list[Array]:
    """``rows rows^T`` of ``[r, k]``, on and above the diagonal: blocks of rows, each from its diagonal block on.

    Mirror with ``mirrored`` after any sum. Cost: ``(1 + 1/blocks) / 2`` of the whole product.
    """
    size = _block_size(rows.shape[0])
    return [product(rows[start : start + size], rows[start:]) for start in range(0, max(rows.shape[0], 1), size)]


def mirrored(blocks: Sequence[Array]) -> Array:
    """The symmetric ``[r, r]`` matrix of ``upper_blocks``."""
    if len(blocks) == 1:
        return blocks[0]
    size = blocks[0].shape[0]
    lines = []
    for place, block in enumerate(blocks):
        below = [blocks[above][:, (place - above) * size :][:, : block.shape[0]].T for above in range(place)]
        lines.append(jnp.concatenate([*below, block], 1))
    return jnp.concatenate(lines, 0)


def upper_share(rows: int) -> float:
    """Share of the whole product that ``upper_blocks`` computes."""
    if not rows:
        return 1.0
    size = _block_size(rows)
    return sum(min(size, rows - start) * (rows - start) for start in range(0, rows, size)) / rows**2


def _block_size(rows: int) -> int:
    few = by_backend(128, 4096)  # rows whose whole product is as quick as its halves
    blocks = 4 if rows >= 2 * few else 2 if rows >= few else 1
    return max(-(-rows // blocks), 1)
