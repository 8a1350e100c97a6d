"""A block's part of the kernel from its data and cotangents: by Grams, or by gradients formed per sample.

Letters: n, m samples; t traced, d diagonal, f, h full outputs; g groups; p, q positions; a rows; b columns. A kernel
tile is ``[d, f, n, h, m]``, summed over ``t``. A second operand that *is* the first asks for the symmetric kernel.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dynamics.backend import by_backend
from dynamics.empirical.gram import mirrored, product, upper_blocks
from dynamics.types import Array

CACHED = 2**21
"""Bytes of gradients formed at once on a CPU: they are contracted while still in cache."""
LARGE = 2**26
"""The same elsewhere: an accelerator waits longer for the next chunk than for its memory."""

_HIGHEST = jax.lax.Precision.HIGHEST


def chunk_limit() -> int:
    """Bytes of gradients formed at once on this backend."""
    return by_backend(CACHED, LARGE)


class Family(NamedTuple):
    """What the sites of one orientation saw, positions concatenated.

    Attributes:
        data: ``[n, g, p, a]``, or row numbers ``[n, g, p]``.
        cotangents: ``[t, d, f, n, g, p, b]``.
        transposed: the data as ``[n, g, a, p]``; None for row numbers, or where it is to be made on the spot.
    """

    data: Array
    cotangents: Array
    transposed: Array | None

    @property
    def indexed(self) -> bool:
        return self.data.ndim == 3


class Gradients(NamedTuple):
    """A block whose gradients are to be formed: ``sum_p A[p, a] B[p, b]``, ``turned`` added as its transpose.

    Attributes:
        straight, turned: families (``turned`` None where there is none).
        rows, width: a and b.
        weight: None, or ``[g, a, b]``, multiplied onto the gradients.
    """

    straight: Family
    turned: Family | None
    rows: int
    width: int
    weight: Array | None = None


def by_gram(first: Family, second: Family) -> Array:
    """``sum_pq (A A^T)[n p, m q] (B B^T)[f n p, h m q]``."""
    single = {*first.cotangents.shape[:2], *first.cotangents.shape[4:6], second.cotangents.shape[5]} == {1}
    if single and not first.indexed:
        return _by_matrices(first, second)
    cotangents = _einsum("tdfngpb,tdhmgqb->dgfnphmq", first.cotangents, second.cotangents)
    if first.indexed:
        one, two = (_groups_first(family.data) for family in (first, second))
        same = (one[..., None, None] == two[:, None, None]) & (one[..., None, None] >= 0)
        return jnp.sum(jnp.where(same[None, :, None, :, :, None], cotangents, 0), (1, 4, 7))
    data = _einsum("ngpa,mgqa->gnpmq", first.data, second.data)
    return jnp.sum(data[None, :, None, :, :, None] * cotangents, (1, 4, 7))


def _by_matrices(first: Family, second: Family) -> Array:
    """One group, one position, one output at a time or all of them full: plain matrices."""
    rows = [jnp.reshape(family.data, (-1, family.data.shape[-1])) for family in (first, second)]
    columns = [jnp.reshape(family.cotangents, (-1, family.cotangents.shape[-1])) for family in (first, second)]
    if second is first:
        data, cotangents = mirrored(upper_blocks(rows[0])), mirrored(upper_blocks(columns[0]))
    else:
        data, cotangents = product(*rows), product(*columns)
    f, h = first.cotangents.shape[2], second.cotangents.shape[2]
    n, m = data.shape
    return (jnp.reshape(cotangents, (f, n, h, m)) * data[None, :, None])[None]


def by_turned_gram(first: Family, second: Family) -> Array:
    """Cross term of a family with one whose rows are the first's columns (``second`` turned): ``[d, f, n, h, m]``.

    With gradient ``sum_p A_p B_p^T`` in the first and ``sum_q B'_q A'_q^T`` in the second, it is
    ``sum_pq (A_p . B'_q) (B_p . A'_q)``.
    """
    columns = _einsum("tdfngpb,mgqb->tdgfnpmq", first.cotangents, second.data)
    if first.indexed:
        rows = jnp.where(_groups_first(first.data) >= 0, _groups_first(first.data), 0)
        # [t, d, h, m, g, q, a] at rows [g, n, p]
        taken = jax.vmap(lambda table, index: jnp.take(table, index, axis=-1), (4, 0), 4)(second.cotangents, rows)
        known = _groups_first(first.data)[:, None] >= 0
        cross = jnp.einsum("tdhmgqnp->tdgnphmq", jnp.where(known, taken, 0))
    else:
        cross = _einsum("ngpa,tdhmgqa->tdgnphmq", first.data, second.cotangents)
    return jnp.sum(columns[:, :, :, :, :, :, None] * cross[:, :, :, None], (0, 2, 5, 8))


def by_gradients(first: Gradients, second: Gradients) -> Array:
    """Gradients formed for a few columns at a time, each time contracted: ``[d, f, n, h, m]``."""
    f, h = first.straight.cotangents.shape[2], second.straight.cotangents.shape[2]
    together = max(f, h) > 1
    chunks = 1 if first.turned is not None else _chunks(first, second)

    def part(one: Family, two: Family, weights) -> list[Array]:
        left = _formed(first._replace(straight=one, weight=weights), together)
        if second is first and weights is None:
            return _symmetric(left)
        bare = _formed(first._replace(straight=one, weight=None), together) if second is first else None
        return [_pairs(left, _formed(second._replace(straight=two), together) if bare is None else bare)]

    if chunks == 1:
        blocks = part(first.straight, second.straight, first.weight)
    else:
        split = [_split(g.straight.cotangents, chunks) for g in ((first,) if second is first else (first, second))]
        weights = None if first.weight is None else _split(first.weight, chunks)

        def some(cut) -> list[Array]:
            one = first.straight._replace(cotangents=cut[0][0])
            return part(one, second.straight._replace(cotangents=cut[0][-1]), cut[1])

        def add(total, cut):
            return jax.tree.map(jnp.add, total, some(cut)), None

        shapes = jax.eval_shape(some, jax.tree.map(lambda leaf: leaf[0], (split, weights)))
        start = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
        blocks = jax.lax.scan(add, start, (split, weights))[0]
    n, m = first.straight.data.shape[0], second.straight.data.shape[0]
    return _tile(blocks, first.straight.cotangents.shape[1], (n, f), (m, h))


def by_rows(first: Array, second: Array, weight: Array | None = None) -> Array:
    """Gradients ``[t, d, f, n, ...]`` that exist already, times ``weight [...]``: ``[d, f, n, h, m]``."""

    def rows(gradients: Array) -> Array:
        moved = jnp.transpose(jnp.reshape(gradients, (*gradients.shape[:4], -1)), (1, 3, 2, 0, 4))
        return jnp.reshape(moved, (moved.shape[0], moved.shape[1] * moved.shape[2], -1))

    two = rows(second)
    blocks = _symmetric(two) if second is first and weight is None else None
    if blocks is None:
        blocks = [_pairs(rows(first if weight is None else first * weight), two)]
    shapes = [(gradients.shape[3], gradients.shape[2]) for gradients in (first, second)]
    return _tile(blocks, first.shape[1], *shapes)


def summed_gradient(family: Family, rows: int, coefficients: Array, *, turned: bool = False) -> Array:
    """``sum c[t d f n] A[n, p, a] B[t d f n, p, b]`` as ``[g, a, b]``; with ``turned`` as ``[g, b, a]``."""
    cotangents = jnp.einsum("tdfn,tdfngpb->ngpb", coefficients, family.cotangents)
    if family.indexed:
        index, values = (jnp.swapaxes(array, 0, 1) for array in (family.data, cotangents))
        index, values = (jnp.reshape(array, (array.shape[0], -1, *array.shape[3:])) for array in (index, values))
        kept = jnp.where((index >= 0)[..., None], values, 0)
        start = jnp.zeros((rows, values.shape[-1]), values.dtype)
        gradient = jax.vmap(lambda i, v: start.at[jnp.maximum(i, 0)].add(v))(index, kept)
        return jnp.swapaxes(gradient, 1, 2) if turned else gradient
    dims = (((0, 2), (0, 2)), ((1,), (1,)))
    one, two = (cotangents, family.data) if turned else (family.data, cotangents)
    if family.data.shape[1] == 1:
        one, two = (jnp.reshape(array, (-1, array.shape[-1])) for array in (one, two))
        return jax.lax.dot_general(one, two, (((0,), (0,)), ((), ())))[None]
    return jax.lax.dot_general(one, two, dims)


def _chunks(first: Gradients, second: Gradients) -> int:
    """The fewest equal shares of the columns whose gradients fit ``chunk_limit``."""
    size, limit = 0, chunk_limit()
    for side in (first,) if second is first else (first, second):
        cotangents = side.straight.cotangents
        size += math.prod(cotangents.shape[:5]) * side.rows * side.width * cotangents.dtype.itemsize
    shares = [count for count in range(1, first.width + 1) if first.width % count == 0]
    return next((count for count in shares if size / count <= limit), first.width)


def _split(columns: Array, chunks: int) -> Array:
    """``[..., b]`` as ``[chunks, ..., b / chunks]``."""
    return jnp.moveaxis(jnp.reshape(columns, (*columns.shape[:-1], chunks, -1)), -2, 0)


def _formed(gradients: Gradients, together: bool) -> Array:
    """Gradients as rows ``[d, n f, k]``; ``together`` puts all full outputs into one product."""
    straight, turned, rows, _, weight = gradients
    formed = _outer(straight, rows, together)
    if turned is not None:
        formed = formed + _outer(turned, straight.cotangents.shape[-1], together, turned=True)
    if weight is not None:
        formed = formed * (
            jnp.swapaxes(weight, 1, 2)[:, None, None, None] if together else weight[:, :, None, None, None]
        )
    # [n, g, t, d, f, b, a] or [n, g, a, t, d, f, b]
    moved = jnp.transpose(formed, (3, 0, 4, 1, 2, 5, 6) if together else (4, 0, 5, 1, 2, 3, 6))
    return jnp.reshape(moved, (moved.shape[0], moved.shape[1] * moved.shape[2], -1))


def _outer(family: Family, rows: int, together: bool, *, turned: bool = False) -> Array:
    """``sum_p A[p, a] B[p, b]`` as ``[n, g, t, d, f, b, a]``, or as ``[n, g, a, t, d, f, b]`` unless ``together``.

    With ``turned`` the family's own a are the block's columns, its b the block's rows.
    """
    data, cotangents, transposed = family
    if family.indexed:

        def scatter(index, values):  # [p], [p, b]
            kept = jnp.where((index >= 0)[:, None], values, 0)
            return jnp.zeros((rows, values.shape[-1]), values.dtype).at[jnp.maximum(index, 0)].add(kept)

        over = jax.vmap(jax.vmap(scatter))
        for _ in range(3):
            over = jax.vmap(over, (None, 0))
        return jnp.einsum(
            f"tdfng{'ba' if turned else 'ab'}->{'ngtdfba' if together else 'ngatdfb'}", over(data, cotangents)
        )
    if together != turned:
        formed = jax.lax.dot_general(cotangents, data, (((5,), (2,)), ((3, 4), (0, 1))), precision=_HIGHEST)
        return jnp.transpose(formed, (0, 1, 5, 2, 3, 4, 6)) if turned else formed
    rows_first = jnp.swapaxes(data, 2, 3) if transposed is None else transposed
    formed = jax.lax.dot_general(rows_first, cotangents, (((3,), (5,)), ((0, 1), (3, 4))), precision=_HIGHEST)
    return jnp.transpose(formed, (0, 1, 3, 4, 5, 2, 6)) if turned else formed


def _symmetric(rows: Array) -> list[Array]:
    return upper_blocks(rows[0]) if rows.shape[0] == 1 else [jax.vmap(product)(rows, rows)]


def _pairs(one: Array, two: Array) -> Array:
    return product(one[0], two[0]) if one.shape[0] == 1 else jax.vmap(product)(one, two)


def _tile(blocks: list[Array], d: int, left: tuple[int, int], right: tuple[int, int]) -> Array:
    """``[d, n f, m h]``, or the upper blocks of one matrix, as ``[d, f, n, h, m]``."""
    matrix = mirrored(blocks) if blocks[0].ndim == 2 else blocks[0]
    return jnp.transpose(jnp.reshape(matrix, (d, *left, *right)), (0, 2, 1, 4, 3))


def _groups_first(index: Array) -> Array:
    return jnp.swapaxes(index, 0, 1)


def _einsum(pattern: str, one: Array, two: Array) -> Array:
    return jnp.einsum(pattern, one, two, precision=_HIGHEST)
