"""Whole kernels from the tiles of a plan: every pair of samples once, upper triangle where symmetric."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dynamics.empirical.axes import OutputAxes
from dynamics.empirical.blocks import Work
from dynamics.empirical.one_tile import Network, Side, contract_block, open_tile, sides, slim
from dynamics.empirical.tile_plan import Plan
from dynamics.mesh import tiles
from dynamics.program.jaxpr import has_convolutions
from dynamics.types import Array, PyTree

Kernels = dict[str, Array]


class Task(NamedTuple):
    """One kernel to compute, everything but the samples.

    Attributes:
        net1, net2: the network at the shapes of either side.
        leaves: parameter leaves that move.
        axes: roles of one sample's output axes.
        groups: name of the part that each block belongs to.
        weights: None, or for each leaf an array of its shape.
        plan: how.
    """

    net1: Network
    net2: Network
    leaves: Sequence[Array]
    axes: OutputAxes
    groups: Sequence[str]
    weights: Sequence[Array] | None
    plan: Plan


def work_of(net1: Network, net2: Network, n: int, m: int, axes: OutputAxes) -> Work:
    """Sizes of a kernel."""

    def size(net: Network, roles: Sequence[int]) -> int:
        return math.prod(net.output.shape[axis] for axis in roles)

    return Work(n, m, size(net1, axes.trace), size(net1, axes.diagonal), size(net1, axes.full), size(net2, axes.full))


def pairs_kernel(task: Task, x1: PyTree, x2: PyTree | None) -> Kernels:
    """All pairs: ``{group: [d, f, n, h, m]}``, summed over traced outputs."""
    n = _count(x1)
    m = n if x2 is None else _count(x2)
    if task.plan.tile >= max(n, m):
        one = open_tile(task.net1, task.leaves, x1)
        two = None if x2 is None else open_tile(task.net2, task.leaves, x2)
        return from_opened(task, one, two)
    return _tiled(task, x1, x2)


def diagonal_kernel(task: Task, x1: PyTree, x2: PyTree | None) -> Kernels:
    """Each sample with its own: ``{group: [n, d, f, h]}``."""

    def single(samples) -> Kernels:
        first, second = (jax.tree.map(lambda leaf: leaf[None], sample) for sample in samples)
        one = open_tile(task.net1, task.leaves, first)
        two = None if x2 is None else open_tile(task.net2, task.leaves, second)
        return {name: kernel[:, :, 0, :, 0] for name, kernel in from_opened(task, one, two).items()}

    return jax.lax.map(single, (x1, x1 if x2 is None else x2), batch_size=max(min(task.plan.tile, _count(x1)), 1))


def _count(x: PyTree) -> int:
    return jax.tree.leaves(x)[0].shape[0]


def unit_cotangents(net: Network, axes: OutputAxes) -> Array:
    """Unit cotangents ``[t, d, f, *output]``."""
    shape = net.output.shape
    size = math.prod(shape)
    unit = jnp.reshape(jnp.eye(size, dtype=net.output.dtype), (*shape, *shape))
    order = (*axes.trace, *axes.diagonal, *axes.full, *range(len(shape), 2 * len(shape)))
    sizes = [math.prod(shape[axis] for axis in roles) for roles in axes]
    return jnp.reshape(jnp.transpose(unit, order), (*sizes, *shape))


def from_opened(task: Task, one, two, units: Sequence[Side] | None = None) -> Kernels:
    """The tile of two opened sides (``two`` None: the same), outputs at once or one by one.

    ``units``: the sides of the unit cotangents, where they are at hand already.
    """
    if units is not None and two is None:
        return _contracted(task, units, units)
    basis1 = unit_cotangents(task.net1, task.axes)
    basis2 = basis1 if two is None else unit_cotangents(task.net2, task.axes)

    def part(units) -> Kernels:
        first = sides(task.net1, one, units[0])
        second = first if two is None else sides(task.net2, two, units[1])
        return _contracted(task, first, second)

    if not task.plan.scan_outputs:
        return part((basis1, basis2))

    def diagonal(units) -> Kernels:
        start = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), jax.eval_shape(traced, units, 0))
        rounds = jnp.arange(basis1.shape[0])

        def add(total, t):
            return jax.tree.map(jnp.add, total, traced(units, t)), None

        return jax.lax.scan(add, start, rounds, unroll=has_convolutions(task.net1.program))[0]

    def traced(units, t) -> Kernels:
        return part(tuple(unit[t][None, None] for unit in units))

    by_diagonal = tuple(jnp.swapaxes(basis, 0, 1) for basis in (basis1, basis2))
    if basis1.shape[1] == 1:
        return diagonal(tuple(basis[0] for basis in by_diagonal))
    return {name: kernel[:, 0] for name, kernel in jax.lax.map(diagonal, by_diagonal).items()}


def _contracted(task: Task, first: Sequence[Side], second: Sequence[Side]) -> Kernels:
    total: Kernels = {}
    for block, one, two, path, name in zip(task.net1.blocks, first, second, task.plan.paths, task.groups, strict=True):
        weight = None if task.weights is None else task.weights[block.leaf]
        kernel = contract_block(task.net1, block, one, two, path, weight)
        total[name] = kernel if name not in total else total[name] + kernel
    return total


def _tiled(task: Task, x1: PyTree, x2: PyTree | None) -> Kernels:
    tile, symmetric = task.plan.tile, x2 is None
    n = _count(x1)
    m = n if x2 is None else _count(x2)
    rows = tiles(x1, tile)
    columns = rows if x2 is None else tiles(x2, tile)
    count1, count2 = _count(rows), _count(columns)
    pairs = [(i, j) for i in range(count1) for j in range(i if symmetric else 0, count2)]
    compute = _pair_function(task, rows, columns, symmetric)
    shapes = jax.eval_shape(compute, jnp.array([0, 0]))

    def place(kernels: Kernels, pair: Array):
        i, j = pair
        for name, kernel in compute(pair).items():
            whole = jax.lax.dynamic_update_slice(kernels[name], kernel, (0, 0, i * tile, 0, j * tile))
            if symmetric:
                mirrored = jnp.transpose(kernel, (0, 3, 4, 1, 2))
                whole = jax.lax.dynamic_update_slice(whole, mirrored, (0, 0, j * tile, 0, i * tile))
            kernels = {**kernels, name: whole}
        return kernels, None

    start = {
        name: jnp.zeros((*shape.shape[:2], count1 * tile, shape.shape[3], count2 * tile), shape.dtype)
        for name, shape in shapes.items()
    }
    kernels, _ = jax.lax.scan(place, start, jnp.array(pairs))
    return {name: kernel[:, :, :n, :, :m] for name, kernel in kernels.items()}


def _pair_function(task: Task, rows: PyTree, columns: PyTree, symmetric: bool) -> Callable[[Array], Kernels]:
    """``(i, j) -> kernels`` of row tile i with column tile j, from kept factors or from scratch."""
    if not task.plan.resident:

        def fresh(pair: Array) -> Kernels:
            first, second = _tile_at(rows, pair[0]), _tile_at(columns, pair[1])
            one = open_tile(task.net1, task.leaves, first)
            return from_opened(task, one, open_tile(task.net2, task.leaves, second))

        return fresh

    def factors(net: Network, cut: PyTree) -> list[Side]:
        basis = unit_cotangents(net, task.axes)
        return jax.lax.map(lambda samples: slim(sides(net, open_tile(net, task.leaves, samples), basis)), cut)

    kept1 = factors(task.net1, rows)
    kept2 = kept1 if symmetric else factors(task.net2, columns)

    def contracted(pair: Array) -> Kernels:
        return _contracted(task, _tile_at(kept1, pair[0]), _tile_at(kept2, pair[1]))

    return contracted


def _tile_at(cut: PyTree, index: Array) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[index], cut)
