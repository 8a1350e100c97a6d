"""Kernels of vectors tile by tile, in place: all layers on a tile that stays in cache.

A network of layers that act on each pair of inputs by itself is a function of pairs. The inputs' inner products fill
the array that is to hold the result, and a loop over tiles overwrites them: beside a single result no memory is needed
that grows with the number of pairs. Without ``x2`` only tiles from the diagonal up are computed, and mirrored.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dynamics.stax.kernel.algebra import root, safe_reciprocal
from dynamics.stax.kernel.inputs import (
    canonical,
    check_pair,
    close_versine,
    few_channels,
    half_square_distance,
    inner_products,
    variance,
)
from dynamics.stax.kernel.kernel import Kernel
from dynamics.stax.kernel.tiles import Grid, Place, get, grid_of, itself, mirrored, put, tile_limit
from dynamics.types import Array


def tiled_kernel(propagate: Callable[[Kernel], Any], x1, x2, batch_axis: int, channel_axis: int, keep: tuple[str, ...]):
    """The Kernel (or list of Kernels) that ``propagate`` makes of vectors, as if of all pairs at once.

    Args:
        propagate: a network of layers that act on each pair by itself. x1, x2: matrices of inputs; ``x2`` None for
            ``x1``.
        batch_axis, channel_axis: axes of the inputs.
        keep: which of 'gap' and 'ntk' to return, at least one; the other is None.
    """
    one = canonical(x1, batch_axis, channel_axis, "x1")
    two = None if x2 is None else canonical(x2, batch_axis, channel_axis, "x2")
    check_pair(one, one if two is None else two, True, 2 * len(keep) - 1)
    return _tiled(propagate, one, two, (batch_axis % 2, channel_axis % 2), keep, tile_limit())


_SEARCHED = 128
"""Tile side of the search for small versines."""


class _Vectors(NamedTuple):
    """Inputs ``x [n, c]`` and their variances ``var [n]``."""

    x: Array
    var: Array

    def part(self, start: Array, size: int) -> _Vectors:
        return _Vectors(*(lax.dynamic_slice_in_dim(each, start, size) for each in self))

    @property
    def inverse(self) -> Array:
        return safe_reciprocal(root(self.var))

    @property
    def unit(self) -> Array:
        """Directions, of root mean square 1 over channels."""
        return self.x * self.inverse[:, None]


class _Pairs(NamedTuple):
    """Both sides of a tile, or of the whole."""

    one: _Vectors
    two: _Vectors

    def tile(self, grid: Grid, place: Place) -> _Pairs:
        return _Pairs(self.one.part(place.i, grid.size1), self.two.part(place.j, grid.size2))

    def versine(self, products: Array) -> Array:
        """``1 - cos`` from inner products."""
        return 1 - products * (self.one.inverse / self.one.x.shape[1])[:, None] * self.two.inverse


# Compiled once for a network and a shape, so that calls outside of jit do not compile the loop each time.
@functools.partial(jax.jit, static_argnums=(0, 3, 4, 5))
def _tiled(propagate, x1: Array, x2: Array | None, axes: tuple[int, int], keep: tuple[str, ...], limit: int):
    grid, places = grid_of(len(x1), None if x2 is None else len(x2), limit)
    one = _Vectors(x1, variance(x1))
    pairs = _Pairs(one, one if x2 is None else _Vectors(x2, variance(x2)))
    # What belongs to the inputs one by one; its entries of pairs are not used, so that they are never computed.
    frame = propagate(_kernel(jnp.zeros((grid.n1, grid.n2), x1.dtype), pairs, axes, keep, grid.same))
    products, refined = _products(pairs, grid.same)
    # One result overwrites the products; several would each read what another one has overwritten.
    count = len(_entries(frame, keep))

    def step(buffers, place):
        tile, source = pairs.tile(grid, place), buffers[0] if count == 1 else products
        versine = _versine(tile, get(grid, place, source), lax.dynamic_slice_in_dim(refined, place.i, grid.size1))
        versine = jnp.where(itself(grid, place), 0, versine)
        gap = root(tile.one.var)[:, None] * root(tile.two.var) * versine
        new = _entries(propagate(_kernel(gap, tile, axes, keep)), keep)
        return [put(grid, place, *each) for each in zip(buffers, new, strict=True)], None

    buffers = [products] if count == 1 else [jnp.zeros_like(products) for _ in range(count)]
    buffers = lax.scan(step, buffers, places)[0]
    found = iter(map(mirrored, buffers) if grid.same else buffers)

    def filled(k: Kernel) -> Kernel:
        return k.replace(**{"gap": None, "ntk": None, **{name: next(found) for name in keep}})

    return jax.tree.map(filled, frame, is_leaf=_is_kernel)


def _kernel(gap: Array, pairs: _Pairs, axes: tuple[int, int], keep: tuple[str, ...], same: bool = False) -> Kernel:
    """The Kernel of the inputs ``pairs``."""

    def shape(x):
        return x.shape if axes[1] == 1 else x.shape[::-1]

    return Kernel(
        gap,
        jnp.zeros_like(gap) if "ntk" in keep else None,
        pairs.one.var,
        None if same else pairs.two.var,
        x1_is_x2=same,
        diagonal_spatial=True,
        shape1=shape(pairs.one.x),
        shape2=shape(pairs.two.x),
        batch_axis=axes[0],
        channel_axis=axes[1],
    )


def _is_kernel(x) -> bool:
    return isinstance(x, Kernel)


def _entries(out, keep: tuple[str, ...]) -> list[Array]:
    return [getattr(k, name) for k in jax.tree.leaves(out, is_leaf=_is_kernel) for name in keep]


def _versine(tile: _Pairs, products: Array, refined: Array) -> Array:
    """``1 - cos`` of a tile's pairs, from what ``_products`` holds."""
    if few_channels(tile.one.x):
        return half_square_distance(tile.one.unit[:, None], tile.two.unit)
    versine = jnp.where(refined[:, None], products, tile.versine(products))
    # Within [0, 2], with the derivative of the versine itself.
    return versine + lax.stop_gradient(jnp.clip(versine, 0, 2) - versine)


def _products(pairs: _Pairs, same: bool) -> tuple[Array, Array]:
    """Inner products ``[n1, n2]``; in rows with a small versine versines instead, and which rows those are."""
    products = inner_products(pairs.one.x, pairs.two.x)
    if few_channels(pairs.one.x):
        return products, jnp.zeros(len(products), bool)
    rows = _close_rows(*lax.stop_gradient((products, pairs)), same)
    return _refined(products, pairs, rows), rows


def _close_rows(products: Array, pairs: _Pairs, same: bool) -> Array:
    """Rows ``[n1]`` where ``1 - cos`` of another input loses digits."""
    grid, places = grid_of(products.shape[0], None if same else products.shape[1], _SEARCHED)
    threshold = close_versine(products.dtype)

    def step(rows, place):
        versine = pairs.tile(grid, place).versine(get(grid, place, products))
        found = jnp.any((versine < threshold) & ~itself(grid, place), -1)
        found = found | lax.dynamic_slice_in_dim(rows, place.i, grid.size1)
        return lax.dynamic_update_slice_in_dim(rows, found, place.i, 0), None

    return lax.scan(step, jnp.zeros(grid.n1, bool), places)[0]


@jax.custom_jvp
def _refined(products: Array, pairs: _Pairs, rows: Array) -> Array:
    """``products`` with versines in ``rows``, small ones as ``|u - v|^2 / 2``.

    Rounding leaves an error of ``eps`` in ``1 - cos``, that is ``eps / theta`` in the angle.
    """
    threshold = close_versine(products.dtype)

    def refine(carry):
        rows, whole = carry
        # The barrier keeps XLA from storing the directions of all inputs before the loop, which rarely runs.
        row, two = lax.optimization_barrier((jnp.argmax(rows), pairs.two))
        line = _Pairs(pairs.one.part(row, 1), two)
        versine = line.versine(lax.dynamic_slice_in_dim(whole, row, 1))
        exact = half_square_distance(line.one.unit, line.two.unit)
        versine = jnp.where(versine < threshold, exact, versine)
        return rows.at[row].set(False), lax.dynamic_update_slice_in_dim(whole, versine, row, 0)

    return lax.while_loop(lambda carry: jnp.any(carry[0]), refine, (rows, products))[1]


@_refined.defjvp
def _(primals, tangents):
    def versines(products, pairs):
        return jnp.where(primals[2][:, None], pairs.versine(products), products)

    return _refined(*primals), jax.jvp(versines, primals[:2], tangents[:2])[1]
