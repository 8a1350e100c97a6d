"""The structured kernel of one tile: data from one replay with taps, cotangents from one vjp, block by block."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr

from dynamics.empirical import block_contraction as contract
from dynamics.empirical.blocks import Block, Cost, Work, blocks_of, gram_cost, jacobian_cost
from dynamics.program import jaxpr
from dynamics.program.tapped_replay import Survey, replay
from dynamics.program.views import rearrange
from dynamics.types import Array, Params, PyTree


class Network(NamedTuple):
    """``f`` for one sample as a surveyed program: parameter leaves and sample leaves in, one output out.

    Attributes:
        program: its arguments are the moving parameter leaves, then the sample's leaves.
        num_leaves: number of moving parameter leaves.
        known: its sites.
        blocks: see ``Block``.
        output: shape and dtype of the output.
    """

    program: ClosedJaxpr
    num_leaves: int
    known: Survey
    blocks: tuple[Block, ...]
    output: jax.ShapeDtypeStruct


def network(
    f: Callable[[Params, PyTree], Array],
    leaves: Sequence[Array],
    merge: Callable[[Sequence[Array]], Params],
    sample: PyTree,
    *,
    structured: bool = True,
) -> Network:
    """Traces and surveys ``f``.

    Args:
        f: ``(params, sample) -> output``, for one sample.
        leaves: the parameter leaves that move.
        merge: ``leaves -> params``.
        sample: one sample, shapes.
        structured: False makes every leaf direct.
    """
    structure = jax.tree.structure(sample)

    def flat(*args):
        moving, rest = args[: len(leaves)], args[len(leaves) :]
        return f(merge(moving), jax.tree.unflatten(structure, rest))

    shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in (*leaves, *jax.tree.leaves(sample))]
    program = jaxpr.trace(flat, *shapes)
    direct = frozenset() if structured else frozenset(range(len(leaves)))
    known, blocks = blocks_of(program, len(leaves), [math.prod(leaf.shape) for leaf in leaves], direct=direct)
    output = jax.ShapeDtypeStruct(program.out_avals[0].shape, program.out_avals[0].dtype)
    return Network(program, len(leaves), known, tuple(blocks), output)


class Opened(NamedTuple):
    """A tile of samples after the forward pass.

    Attributes:
        outputs: ``[n, *output]``.
        data: each site's data ``[n, g, p, a]``.
        transposed: the same as ``[n, g, a, p]``, made once however many outputs follow (row numbers as they are).
        pull: cotangents ``[outputs, *output]``, or one for each sample ``[outputs, n, *output]`` -> (each site's
            ``[outputs, n, g, p, b]``, each direct leaf's gradients ``[outputs, n, *leaf]``).
    """

    outputs: Array
    data: list[Array]
    transposed: list[Array]
    pull: Callable[[Array], tuple[list[Array], dict[int, Array]]]


def open_tile(net: Network, leaves: Sequence[Array], samples: PyTree) -> Opened:
    """Runs the network on samples ``[n, ...]`` and keeps what the cotangents need."""
    flat = jax.tree.leaves(samples)
    n = flat[0].shape[0]
    direct = sorted(net.known.direct)

    def one(taps, moved, sample):
        args = list(leaves)
        for index, leaf in zip(direct, moved):
            args[index] = leaf
        outputs, data = replay(net.program, net.num_leaves, net.known, [*args, *sample], taps)
        return outputs[0], data

    def forward(taps, moved):
        return jax.vmap(one)(taps, moved, flat)

    taps = [jnp.zeros((n, *site.tap.shape), site.tap.dtype) for site in net.known.sites]
    moved = [jnp.broadcast_to(leaves[index], (n, *leaves[index].shape)) for index in direct]
    outputs, pullback, data = jax.vjp(forward, taps, moved, has_aux=True)

    def pull(cotangents):
        def once(cotangent):
            at_taps, gradients = pullback(jnp.broadcast_to(cotangent, outputs.shape))
            columns = [jax.vmap(site.columns)(raw) for site, raw in zip(net.known.sites, at_taps, strict=True)]
            return columns, gradients

        columns, gradients = jax.vmap(once)(cotangents)
        return columns, dict(zip(direct, gradients))

    transposed = [seen if site.indexed else jnp.swapaxes(seen, 2, 3) for site, seen in zip(net.known.sites, data)]
    return Opened(outputs, data, transposed, pull)


class Side(NamedTuple):
    """One side of one block, ready to contract: families by sites, or gradients of a direct leaf."""

    straight: contract.Family | None
    turned: contract.Family | None
    gradients: Array | None


def sides(net: Network, opened: Opened, basis: Array) -> list[Side]:
    """Every block's side for a basis of cotangents ``[t, d, f, *output]`` or ``[t, d, f, n, *output]``."""
    lead = basis.shape[:3]
    columns, gradients = opened.pull(jnp.reshape(basis, (-1, *basis.shape[3:])))
    columns = [jnp.reshape(column, (*lead, *column.shape[1:])) for column in columns]

    def family(indices: Sequence[int]) -> contract.Family | None:
        if not indices:
            return None
        data = jnp.concatenate([opened.data[index] for index in indices], 2)
        transposed = None
        if not net.known.sites[indices[0]].indexed:
            transposed = jnp.concatenate([opened.transposed[index] for index in indices], 3)
        return contract.Family(data, jnp.concatenate([columns[index] for index in indices], 5), transposed)

    found = []
    for block in net.blocks:
        if block.sites:
            found.append(Side(family(block.sites), family(block.turned), None))
        else:
            gradient = gradients[block.leaf]
            found.append(Side(None, None, jnp.reshape(gradient, (*lead, gradient.shape[1], -1))))
    return found


def slim(found: Sequence[Side]) -> list[Side]:
    """The sides without what can be made again from the rest."""

    def bare(family: contract.Family | None) -> contract.Family | None:
        return None if family is None else family._replace(transposed=None)

    return [side._replace(straight=bare(side.straight), turned=bare(side.turned)) for side in found]


def contract_block(net: Network, block: Block, one: Side, two: Side, path: str, weight: Array | None) -> Array:
    """A block's kernel tile ``[d, f, n, h, m]``.

    Args:
        net: the network of the first side (its sites give the layout).
        block: the block.
        one, two: its sides.
        path: 'gram' or 'jacobian'.
        weight: None, or an array of the leaf's shape: the kernel is then ``J diag(weight) J^T``.
    """
    if one.straight is None or two.straight is None:
        assert one.gradients is not None
        assert two.gradients is not None
        flat = None if weight is None else jnp.reshape(weight, -1)
        return contract.by_rows(one.gradients, two.gradients, flat)
    if path == "gram":
        total = contract.by_gram(one.straight, two.straight)
        if one.turned is not None and two.turned is not None:
            total = total + contract.by_gram(one.turned, two.turned)
            total = total + contract.by_turned_gram(one.straight, two.turned)
            swapped = contract.by_turned_gram(two.straight, one.turned)
            total = total + jnp.transpose(swapped, (0, 3, 4, 1, 2))
        return total
    site = net.known.sites[block.sites[0]]
    if weight is not None:
        order = (*site.group_axes, *site.row_axes, *site.column_axes)
        arranged = jnp.transpose(rearrange(site.base, weight), order)
        weight = jnp.reshape(arranged, (site.groups, site.rows, site.width))
    first = contract.Gradients(one.straight, one.turned, site.rows, site.width, weight)
    if two is one:
        return contract.by_gradients(first, first)
    return contract.by_gradients(first, contract.Gradients(two.straight, two.turned, site.rows, site.width))


def choose_paths(net1: Network, net2: Network, work: Work, itemsize: int, *, weighted: bool) -> list[tuple[str, Cost]]:
    """The cheaper way for each block, with its cost."""
    chosen = []
    for block in net1.blocks:
        sites1, sites2 = net1.known.sites, net2.known.sites
        jacobian = jacobian_cost(block, sites1, sites2, work, itemsize)
        if weighted or not block.sites:
            chosen.append(("jacobian", jacobian))
            continue
        gram = gram_cost(block, sites1, sites2, work, itemsize)
        chosen.append(("gram", gram) if gram.time <= jacobian.time else ("jacobian", jacobian))
    return chosen


def alike(net1: Network, net2: Network) -> bool:
    """True when both sides group their sites in the same way, so that blocks can be contracted with one another."""
    if net1.known.direct != net2.known.direct or len(net1.blocks) != len(net2.blocks):
        return False

    def layout(net: Network, block: Block) -> Any:
        sites = [net.known.sites[index] for index in (*block.sites[:1], *block.turned[:1])]
        return block.leaf, block.size, [(s.base, s.group_axes, s.row_axes, s.sizes, s.indexed) for s in sites]

    return all(layout(net1, one) == layout(net2, two) for one, two in zip(net1.blocks, net2.blocks))
