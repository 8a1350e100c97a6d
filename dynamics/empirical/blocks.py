"""Blocks: the sites of one leaf that have cross terms with one another, and what each way to contract them costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from jax.extend.core import ClosedJaxpr

from dynamics.empirical.block_contraction import chunk_limit
from dynamics.program.meetings import Site
from dynamics.program.tapped_replay import Survey, survey
from dynamics.program.views import disjoint

FLOPS_PER_BYTE = 8.0  # machine balance: matmul FLOPs done in the time one byte travels


class Block(NamedTuple):
    """One leaf's sites that see the same entries of it; a leaf without sites is one direct block.

    Attributes:
        leaf: index of the leaf.
        sites: indices of the sites that see rows by data, columns by cotangents.
        turned: indices of sites that see the same rows by cotangents and columns by data (tied embeddings).
        size: number of entries of the leaf that the block covers.
    """

    leaf: int
    sites: tuple[int, ...]
    turned: tuple[int, ...]
    size: int


class Work(NamedTuple):
    """Sizes of a kernel: ``n``, ``m`` samples; ``t`` traced, ``d`` diagonal, ``f1`` and ``f2`` full outputs.

    ``share`` is the part of all pairs that is computed where the kernel is ``symmetric``; ``scanned``: traced and
    diagonal outputs are taken one at a time.
    """

    n: int
    m: int
    t: int
    d: int
    f1: int
    f2: int
    share: float = 1.0
    symmetric: bool = False
    scanned: bool = False

    @property
    def passes(self) -> int:
        """How often the contraction runs."""
        return self.t * self.d if self.scanned else 1


def blocks_of(
    program: ClosedJaxpr, num_leaves: int, sizes: Sequence[int], *, direct: frozenset[int] = frozenset()
) -> tuple[Survey, list[Block]]:
    """Surveys a program and groups its sites; a leaf whose sites overlap in different ways becomes direct.

    Args:
        program: for one sample, parameter leaves first.
        num_leaves: number of parameter leaves.
        sizes: number of entries of each leaf.
        direct: leaves to leave direct.
    """
    known = survey(program, num_leaves, direct=direct)
    while True:
        grouped = {leaf: _group(leaf, known.sites) for leaf in range(num_leaves) if leaf not in known.direct}
        mixed = frozenset(leaf for leaf, found in grouped.items() if found is None)
        if not mixed:
            break
        known = survey(program, num_leaves, direct=known.direct | mixed)
    blocks = [Block(leaf, (), (), sizes[leaf]) for leaf in sorted(known.direct)]
    return known, blocks + [block for found in grouped.values() for block in found or ()]


def _group(leaf: int, sites: Sequence[Site]) -> list[Block] | None:
    by_base: dict[tuple, list[int]] = {}
    for index, site in enumerate(sites):
        if site.leaf == leaf:
            by_base.setdefault(site.base, []).append(index)
    bases = list(by_base)
    if not all(disjoint(one, two) for place, one in enumerate(bases) for two in bases[:place]):
        return None
    blocks = []
    for indices in by_base.values():
        first = sites[indices[0]]
        same = [index for index in indices if _axes(sites[index]) == _axes(first)]
        turned = [index for index in indices if index not in same and _axes(sites[index]) == _axes(first, turn=True)]
        alike = all(len({sites[index].indexed for index in family}) <= 1 for family in (same, turned))
        if len(same) + len(turned) < len(indices) or not alike:
            return None
        if turned and sites[turned[0]].indexed:
            same, turned = turned, same
        blocks.append(Block(leaf, tuple(same), tuple(turned), math.prod(first.sizes)))
    return blocks


def _axes(site: Site, *, turn: bool = False):
    rows, columns = (site.column_axes, site.row_axes) if turn else (site.row_axes, site.column_axes)
    return site.group_axes, rows, columns


class Cost(NamedTuple):
    """Work of one way to contract a block: operations, bytes that travel, and bytes that are held at once."""

    flops: float
    bytes: float
    held: float

    @property
    def time(self) -> float:
        """In units of one matmul FLOP."""
        return self.flops + FLOPS_PER_BYTE * self.bytes


def gram_cost(block: Block, sites1: Sequence[Site], sites2: Sequence[Site], work: Work, itemsize: int) -> Cost:
    """Grams of data and of cotangents, their product summed over positions; nothing of the leaf's size is formed."""
    pairs = work.n * work.m
    flops = bytes_ = held = 0.0
    outputs = work.d * work.f1 * work.f2
    at_once = work.f1 * work.f2 * (1 if work.scanned else work.d)
    for family1 in (block.sites, block.turned):
        for family2 in (block.sites, block.turned):
            if not family1 or not family2:
                continue
            first = sites1[family1[0]]
            p1 = sum(sites1[index].positions for index in family1)
            p2 = sum(sites2[index].positions for index in family2)
            positions = pairs * first.groups * p1 * p2
            if family1 is family2:
                share = work.share if p1 == p2 == first.groups == 1 else 1.0
                products = (1 if first.indexed else first.rows) + outputs * work.t * first.width
                flops += 2 * positions * (share * products + outputs)
                bytes_ += 3 * itemsize * positions * work.passes * (1 + at_once)
                held += itemsize * positions * (1 + 2 * at_once)
            else:
                flops += 2 * positions * outputs * work.t * (first.rows + first.width + 1)
                bytes_ += 3 * itemsize * positions * 2 * outputs * work.t
                held += itemsize * positions * 4 * at_once * (1 if work.scanned else work.t)
    return Cost(flops, bytes_, held)


def jacobian_cost(block: Block, sites1: Sequence[Site], sites2: Sequence[Site], work: Work, itemsize: int) -> Cost:
    """Gradients of the block formed for each sample and output, then one Gram."""
    flops = 2.0 * work.share * work.n * work.m * work.t * work.d * work.f1 * work.f2 * block.size
    bytes_ = 0.0
    both = ((work.n, work.f1, sites1), (work.m, work.f2, sites2))
    for samples, outputs, sites in both[: 1 if work.symmetric else 2]:
        count = samples * outputs * work.t * work.d
        for index in (*block.sites, *block.turned):
            flops += 2.0 * count * (1 if sites[index].indexed else sites[index].positions) * block.size
        bytes_ += 3.0 * itemsize * count * block.size
    held = bytes_ / 3 / work.passes
    return Cost(flops, bytes_, 2 * (min(held, chunk_limit()) if block.sites and not block.turned else held))
