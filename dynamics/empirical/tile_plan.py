"""What a kernel will cost, and how to cut it so that its temporaries stay within a memory budget."""

from __future__ import annotations

import math
from typing import NamedTuple

from dynamics.backend import by_backend
from dynamics.empirical.blocks import Work
from dynamics.empirical.gram import upper_share
from dynamics.empirical.memory import backward_bytes, factor_bytes, forward_bytes, transposed_bytes
from dynamics.empirical.one_tile import Network, choose_paths

DEFAULT_BUDGET = 2**30
"""Bytes of temporaries that a kernel may use unless told otherwise; the kernel itself is not counted (nor, where it is
cut into tiles, the array in which they are put together)."""


class Plan(NamedTuple):
    """How a kernel is computed, from shapes alone.

    Attributes:
        paths: 'gram' or 'jacobian' for each block.
        tile: samples in one tile of rows (and of columns).
        resident: the factors of all samples are kept, and tiles only contract; else each tile makes its own.
        scan_outputs: traced and diagonal outputs are taken one at a time.
        flops: floating-point operations of the contraction.
        bytes: estimate, from above, of the temporaries' peak; see ``DEFAULT_BUDGET`` for what is not counted.
    """

    paths: tuple[str, ...]
    tile: int
    resident: bool
    scan_outputs: bool
    flops: float
    bytes: float


def make_plan(net1: Network, net2: Network, work: Work, budget: int, *, symmetric: bool, weighted: bool) -> Plan:
    """The fastest plan whose estimate fits ``budget``; the smallest possible one where none does.

    Args:
        net1, net2: the two sides.
        work: sizes of the whole kernel.
        budget: bytes.
        symmetric: the two sides are the same samples.
        weighted: a weight on parameter space rules the Gram path out.
    """
    tile, scan = max(work.n, work.m), work.t * work.d > 1
    # one output at a time stays in a CPU's cache, and is a launch of every kernel on an accelerator
    ways = by_backend([scan], [False, scan][: 1 + scan])
    tries = [_whole(net1, net2, work, scanned, symmetric=symmetric, weighted=weighted) for scanned in ways]
    while tile > 1 and work.n * work.m:
        tile = -(-tile // 2)
        for resident, scanned in ((True, False), (False, scan)):
            tries.append(_tiled(net1, net2, work, tile, resident, scanned, weighted=weighted))
    fitting = [plan for plan in tries if plan.bytes <= budget]
    return fitting[0] if fitting else min(tries, key=lambda plan: plan.bytes)


def _whole(net1, net2, work: Work, scan: bool, *, symmetric: bool, weighted: bool) -> Plan:
    once = symmetric and not weighted
    share = upper_share(work.n * work.f1) if once else 1.0
    paths, flops, held = _contraction(net1, net2, work._replace(share=share, symmetric=once, scanned=scan), weighted)
    sides = [(net1, work.n, work.f1)] if symmetric else [(net1, work.n, work.f1), (net2, work.m, work.f2)]
    memory = held + _sides_bytes(sides, _at_once(work, scan)) + _kernels_bytes(net1, work, scan)
    return Plan(paths, max(work.n, work.m), False, scan, flops, memory)


def _tiled(net1, net2, work: Work, tile: int, resident: bool, scan: bool, *, weighted: bool) -> Plan:
    small = work._replace(n=min(tile, work.n), m=min(tile, work.m), scanned=scan)
    paths, flops, held = _contraction(net1, net2, small, weighted)
    flops *= math.ceil(work.n / tile) * math.ceil(work.m / tile)
    at_once = _at_once(work, scan)
    memory = held + _kernels_bytes(net1, small, scan)
    memory += _sides_bytes([(net1, small.n, work.f1), (net2, small.m, work.f2)], at_once)
    if resident:
        for net, samples, full in ((net1, work.n, work.f1), (net2, work.m, work.f2)):
            memory += factor_bytes(net, samples, at_once * full)
    return Plan(paths, tile, resident, scan, flops, memory)


def _at_once(work: Work, scan: bool) -> int:
    return 1 if scan else work.t * work.d


def _contraction(net1, net2, work: Work, weighted: bool) -> tuple[tuple[str, ...], float, float]:
    chosen = choose_paths(net1, net2, work, net1.output.dtype.itemsize, weighted=weighted)
    held = max((cost.held for _, cost in chosen), default=0.0)
    return tuple(path for path, _ in chosen), sum(cost.flops for _, cost in chosen), held


def _sides_bytes(sides: list[tuple[Network, int, int]], at_once: int) -> float:
    """Forward passes and factors of the sides ``(network, samples, full outputs)``, and one backward pass at a time."""
    kept = sum(forward_bytes(net, n) + factor_bytes(net, n, at_once * full) for net, n, full in sides)
    turned = sum(transposed_bytes(net, n) for net, n, full in sides if full == 1)
    return kept + turned + max(backward_bytes(net, n * at_once * full) for net, n, full in sides)


def _kernels_bytes(net: Network, work: Work, scan: bool) -> float:
    """Every block's kernel, since compilers add them all at once, and their sum in two layouts."""
    d = 1 if scan else work.d
    return float(net.output.dtype.itemsize * d * work.n * work.f1 * work.m * work.f2 * (len(net.blocks) + 2))
