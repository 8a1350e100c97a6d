"""Bytes that passes through a network hold, from its program's shapes: estimates from above."""

from __future__ import annotations

import math
from typing import Any

from jax.extend.core import ClosedJaxpr

from dynamics.empirical.one_tile import Network
from dynamics.program import jaxpr
from dynamics.program.meetings import Site

_WINDOW_EXTREMA = frozenset(("reduce_window_max", "reduce_window_min", "reduce_window", "select_and_gather_add"))
_LIVE = 3  # values of the largest size that a backward pass holds at once: a cotangent in, its factor, a cotangent out
_ALIGNMENT = 64  # bytes to a multiple of which a compiler rounds every value


def forward_bytes(net: Network, samples: int) -> float:
    """Every value of the forward pass, and what rounding the sizes of all values up costs."""
    return samples * _produced(net.program) + 2 * _ALIGNMENT * _count(net.program)


def backward_bytes(net: Network, cotangents: int) -> float:
    """What a backward pass of that many samples times outputs holds beside its results."""
    return cotangents * max(_LIVE * _largest(net.program), _search(net.program))


def factor_bytes(net: Network, samples: int, outputs: int) -> float:
    """Data and cotangents of all sites, gradients of direct leaves in two layouts."""
    item = net.output.dtype.itemsize
    data = sum(_data_size(site) for site in net.known.sites)
    cotangents = sum(site.groups * site.positions * site.width for site in net.known.sites)
    cotangents += 2 * sum(block.size for block in net.blocks if not block.sites)
    return float(item * samples * (data + outputs * cotangents))


def transposed_bytes(net: Network, samples: int) -> float:
    """The data once more, transposed."""
    return float(net.output.dtype.itemsize * samples * sum(_data_size(site) for site in net.known.sites))


def _data_size(site: Site) -> int:
    return site.groups * site.positions * (1 if site.indexed else site.rows)


def _produced(program: ClosedJaxpr, times: int = 1) -> float:
    """Bytes of everything that a program's equations produce, loops counted by their rounds."""
    total = 0.0
    for equation, inner in _equations(program):
        rounds = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        if inner:
            total += sum(_produced(body, times * rounds) for body in inner)
        else:
            total += times * sum(_bytes(variable.aval) for variable in equation.outvars)
    return total


def _count(program: ClosedJaxpr) -> int:
    """Number of values."""
    return sum(len(equation.outvars) + sum(map(_count, inner)) for equation, inner in _equations(program))


def _largest(program: ClosedJaxpr) -> float:
    """Bytes of the largest value."""
    return max(
        (
            max([_bytes(variable.aval) for variable in equation.outvars] + [_largest(body) for body in inner])
            for equation, inner in _equations(program)
        ),
        default=0.0,
    )


def _search(program: ClosedJaxpr) -> float:
    """Bytes that a backward pass needs to look up where the extrema of windows stood: indices along every axis."""
    needed = 0.0
    for equation, inner in _equations(program):
        if equation.primitive.name in _WINDOW_EXTREMA:
            rank = len(equation.outvars[0].aval.shape) + 2  # samples and outputs in front
            needed = max(needed, 3 * rank * max(_bytes(atom.aval) for atom in (*equation.invars, *equation.outvars)))
        needed = max([needed] + [_search(body) for body in inner])
    return needed


def _equations(program: ClosedJaxpr) -> list[tuple[Any, list[ClosedJaxpr]]]:
    """Equations with the programs inside them."""
    return [
        (equation, [body for value in equation.params.values() for body in jaxpr.bodies(value)])
        for equation in program.jaxpr.eqns
    ]


def _bytes(aval) -> float:
    return math.prod(aval.shape) * getattr(aval.dtype, "itemsize", 8) if hasattr(aval, "shape") else 0.0
