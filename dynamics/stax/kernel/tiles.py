"""Tiles of an array of pairs: where they lie, how they are read and overwritten in place."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from dynamics.backend import by_backend
from dynamics.types import Array

CACHED = 192
"""Largest tile side on a CPU: a float32 tile is 0.15 MB, which fits the second-level cache."""
LARGE = 4096
"""Largest tile side elsewhere, enough to occupy an accelerator."""
_MIRRORED = 80


def tile_limit() -> int:
    """The largest tile side on this backend."""
    return by_backend(CACHED, LARGE)


class Grid(NamedTuple):
    """Tiles ``[size1, size2]`` of an array ``[n1, n2]``; ``same`` where both sides are the same inputs."""

    n1: int
    n2: int
    size1: int
    size2: int
    same: bool


class Place(NamedTuple):
    """A tile's first row and column, and the first ones that no tile before it holds."""

    i: Any
    j: Any
    fresh_i: Any
    fresh_j: Any


def tile_starts(n: int, limit: int) -> tuple[np.ndarray, int]:
    """First rows and common size of tiles that cover ``n`` rows; the last one may overlap its neighbour."""
    count = -(-n // limit)
    size = min(n, -(-n // (8 * count)) * 8)
    return np.minimum(np.arange(-(-n // size)) * size, n - size), size


def grid_of(n1: int, n2: int | None, limit: int) -> tuple[Grid, Place]:
    """The grid and the places of all its tiles; ``n2`` None for the same inputs and tiles from the diagonal up."""
    starts1, size1 = tile_starts(n1, limit)
    starts2, size2 = (starts1, size1) if n2 is None else tile_starts(n2, limit)
    first, second = np.indices((len(starts1), len(starts2))).reshape(2, -1)
    if n2 is None:
        first, second = np.triu_indices(len(starts1))
    places = Place(starts1[first], starts2[second], first * size1, second * size2)
    return Grid(n1, n1 if n2 is None else n2, size1, size2, n2 is None), Place(*map(jnp.asarray, places))


def indices(grid: Grid, place: Place) -> tuple[Array, Array]:
    """Rows ``[size1, 1]`` and columns ``[size2]`` of a tile."""
    return (place.i + jnp.arange(grid.size1))[:, None], place.j + jnp.arange(grid.size2)


def itself(grid: Grid, place: Place) -> Array:
    """True where a tile pairs an input with itself."""
    row, column = indices(grid, place)
    return row == column if grid.same else jnp.zeros((1, 1), bool)


def fresh(grid: Grid, place: Place) -> Array:
    """True where no tile before this one lies: everywhere when the tiles' sizes divide the array's."""
    row, column = indices(grid, place)
    first = row >= place.fresh_i if grid.n1 % grid.size1 else jnp.ones((1, 1), bool)
    return first & (column >= place.fresh_j) if grid.n2 % grid.size2 else first


def get(grid: Grid, place: Place, whole: Array) -> Array:
    """The tile at ``place``."""
    return lax.dynamic_slice(whole, (place.i, place.j), (grid.size1, grid.size2))


def put(grid: Grid, place: Place, whole: Array, tile: Array) -> Array:
    """``whole`` with the fresh part of the tile at ``place`` overwritten."""
    tile = jnp.where(fresh(grid, place), tile, get(grid, place, whole))
    return lax.dynamic_update_slice(whole, tile, (place.i, place.j))


def mirrored(whole: Array) -> Array:
    """``whole [n, n]`` with what lies above the diagonal copied below it."""
    grid, places = grid_of(len(whole), None, _MIRRORED)

    def step(whole, place):
        row, column = indices(grid, place)
        above = get(grid, place, whole).T
        opposite = place._replace(i=place.j, j=place.i)
        below = jnp.where(column[:, None] > row.T, above, get(grid, opposite, whole))
        return lax.dynamic_update_slice(whole, below, (place.j, place.i)), None

    return lax.scan(step, whole, places)[0]
