"""Kernels in tiles: bounded memory, half the work when ``x2`` is None, several devices."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dynamics.arguments import check_counts
from dynamics.mesh import InTurn
from dynamics.stax.kernel.kernel import Kernel
from dynamics.types import Array


def batch(
    kernel_fn: Callable[..., Any], batch_size: int = 0, device_count: int = -1, store_on_device: bool = True
) -> Callable[..., Any]:
    """``kernel_fn`` evaluated in tiles of ``batch_size x batch_size`` inputs and put together.

    Any ``batch_size`` fits any number of inputs. With ``x2=None`` tiles below the diagonal are transposes of those
    above it. Tiles go to the devices in turn; with ``batch_size=0`` each of several devices takes rows of its own. Call
    it outside of ``jax.jit``; each tile shape is compiled once.

    Args:
        kernel_fn: ``(x1, x2, *args, **kwargs)`` to an array, a namedtuple of arrays or a Kernel, analytic or empirical;
            ``x1`` may be a Kernel (or several) if it takes one. A ``pattern=`` is cut with the inputs.
        batch_size: inputs a tile and axis; 0 for all at once.
        device_count: number of local devices to use, -1 for all of them, 0 for the default one.
        store_on_device: False moves finished tiles to host memory.

    Returns:
        A function of the same signature and value. Memory: one tile a device beside the result.

    Raises:
        ValueError: for a negative ``batch_size`` or more devices than there are.

    >>> import jax
    >>> from dynamics import stax
    >>> kernel_fn = stax.serial(stax.Dense(1), stax.Relu(), stax.Dense(1)).kernel
    >>> x = jax.random.normal(jax.random.key(0), (7, 3))
    >>> stax.batch(kernel_fn, batch_size=3)(x, None, 'ntk').shape
    (7, 7)
    """
    devices = jax.local_devices()
    check_counts(0, batch_size=batch_size)
    if not -1 <= device_count <= len(devices):
        raise ValueError(
            f"device_count: got {device_count}; allowed: an integer from -1 to {len(devices)}, the local devices"
        )
    chosen = devices if device_count == -1 else devices[: max(device_count, 1)]
    compiled = _compiled(kernel_fn)

    @functools.wraps(kernel_fn, updated=())
    def batched(x1, x2=None, *args, **kwargs):
        first, same = jax.tree.leaves(x1, is_leaf=_is_kernel)[0], x2 is None
        whole = isinstance(first, Kernel)
        if whole:
            (n1, n2), same = first.gap.shape[:2], first.x1_is_x2
        else:
            n1, n2 = _count(x1), _count(x1 if same else x2)
        share = batch_size or -(-n1 // len(chosen))
        rows, columns = _slices(n1, share), _slices(n2, batch_size)
        if len(rows) == len(columns) == 1:
            return compiled(x1, x2, *args, **kwargs)
        square = same and rows == columns
        place = InTurn(chosen, store_on_device)
        tiles: list[list[Any]] = [[None] * len(columns) for _ in rows]
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                if square and j < i and _mirrors(tiles[j][i]) and "pattern" not in kwargs:
                    continue
                itself = square and i == j
                if whole:
                    pair = jax.tree.map(lambda k, r=row, c=column: k.slice(r, c), x1, is_leaf=_is_kernel), x2
                else:
                    pair = _take(x1, row), None if itself else _take(x1 if x2 is None else x2, column)
                tiles[i][j] = place(compiled, *pair, args, _cut(kwargs, row, column))
        for i in range(len(rows)):
            for j in range(len(columns)):
                if tiles[i][j] is None:
                    tiles[i][j] = _mirror(tiles[j][i])
        return _assemble(tiles, same)

    return batched


def _is_kernel(x) -> bool:
    return isinstance(x, Kernel)


def _cut(kwargs: dict[str, Any], row: slice, column: slice) -> dict[str, Any]:
    """The keyword arguments of a tile: graphs go with their inputs."""
    if kwargs.get("pattern") is None:
        return kwargs
    given = kwargs["pattern"]
    one, two = given if isinstance(given, tuple | list) else (given, given)
    return {**kwargs, "pattern": (_take(one, row), _take(one if two is None else two, column))}


def _compiled(kernel_fn):
    """``kernel_fn`` under jit with every argument that is not a pytree of arrays held fixed."""
    cache: dict[Any, Callable] = {}

    def is_dynamic(x):
        leaves = jax.tree.leaves(x)
        return bool(leaves) and all(hasattr(leaf, "dtype") for leaf in leaves)

    def call(x1, x2, *args, **kwargs):
        dynamic = {i: a for i, a in enumerate(args) if is_dynamic(a)}
        dynamic_named = {k: v for k, v in kwargs.items() if is_dynamic(v)}
        fixed = tuple((i, a) for i, a in enumerate(args) if i not in dynamic)
        fixed_named = tuple(sorted((k, v) for k, v in kwargs.items() if k not in dynamic_named))
        try:
            key = (fixed, fixed_named)
            hash(key)
        except TypeError:
            return kernel_fn(x1, x2, *args, **kwargs)
        if key not in cache:

            def run(x1, x2, dynamic, dynamic_named):
                merged = [dict(fixed).get(i, dynamic.get(i)) for i in range(len(fixed) + len(dynamic))]
                return kernel_fn(x1, x2, *merged, **dict(fixed_named), **dynamic_named)

            cache[key] = jax.jit(run)
        return cache[key](x1, x2, dynamic, dynamic_named)

    return call


def _count(x) -> int:
    return jax.tree.leaves(x)[0].shape[0]


def _slices(n: int, size: int) -> list[slice]:
    size = max(n if size == 0 else min(size, n), 1)
    return [slice(start, min(start + size, n)) for start in range(0, max(n, 1), size)]


def _take(x, part: slice):
    return jax.tree.map(lambda a: a[part], x)


def _mirrors(tile) -> bool:
    """Whether a tile's transpose is known: matrices, and Kernels that say how their axes pair."""
    leaves = jax.tree.leaves(tile, is_leaf=_is_kernel)
    return all(isinstance(leaf, Kernel) or leaf.ndim == 2 for leaf in leaves)


def _mirror(tile):
    def mirror(leaf):
        if not isinstance(leaf, Kernel):
            return leaf.T
        return dataclasses.replace(
            leaf,
            gap=_swap(leaf.gap, leaf.diagonal_spatial),
            ntk=None if leaf.ntk is None else _swap(leaf.ntk, leaf.diagonal_spatial),
            var1=leaf.var2,
            var2=leaf.var1,
            within1=leaf.within2,
            within2=leaf.within1,
            mask1=leaf.mask2,
            mask2=leaf.mask1,
            shape1=leaf.shape2,
            shape2=leaf.shape1,
        )

    return jax.tree.map(mirror, tile, is_leaf=_is_kernel)


def _swap(x: Array, diagonal: bool) -> Array:
    pairs = [a for i in range(2, x.ndim, 2) for a in (i + 1, i)] if not diagonal else list(range(2, x.ndim))
    return jnp.transpose(x, [1, 0, *pairs])


def _assemble(tiles, same: bool):
    """The tiles side by side: arrays along axes 0 and 1, Kernels attribute by attribute."""

    def join(*flat):
        width = len(tiles[0])
        grid = [flat[i : i + width] for i in range(0, len(flat), width)]
        if isinstance(flat[0], Kernel):
            return _join_kernels(grid, same)
        return jnp.concatenate([jnp.concatenate(row, 1) for row in grid], 0)

    return jax.tree.map(join, *[tile for row in tiles for tile in row], is_leaf=_is_kernel)


def _join_kernels(grid, same: bool) -> Kernel:
    def blocks(name):
        if getattr(grid[0][0], name) is None:
            return None
        return jnp.concatenate([jnp.concatenate([getattr(k, name) for k in row], 1) for row in grid], 0)

    def stack(name, kernels, axis=0):
        parts = [getattr(k, name) for k in kernels]
        return None if parts[0] is None else jnp.concatenate(parts, axis)

    first = grid[0][0]
    shape1, shape2 = list(first.shape1), list(first.shape2)
    shape1[first.batch_axis] = sum(row[0].var1.shape[0] for row in grid)
    shape2[first.batch_axis] = sum(k.gap.shape[1] for k in grid[0])
    return dataclasses.replace(
        first,
        gap=blocks("gap"),
        ntk=blocks("ntk"),
        var1=stack("var1", [row[0] for row in grid]),
        within1=stack("within1", [row[0] for row in grid]),
        var2=None if same else stack("var2", grid[0]),
        within2=None if same else stack("within2", grid[0]),
        mask1=stack("mask1", [row[0] for row in grid], first.batch_axis),
        mask2=None if same else stack("mask2", grid[0], first.batch_axis),
        shape1=tuple(shape1),
        shape2=tuple(shape2),
        x1_is_x2=same,
    )
