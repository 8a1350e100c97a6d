"""Linear maps of positions, ``f'(P) = sum_p A[P, p] f(p)``: each sample's own, or the same for all."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax.numpy as jnp

from dynamics.stax.kernel.algebra import diagonal_of, own_sides, where_kept, within_sides
from dynamics.stax.kernel.kernel import Kernel, deviations
from dynamics.stax.kernel.spatial import gap_of, half_distance
from dynamics.types import Array

Map = Callable[[Array], Array]
"""``[n, *S, r]`` to ``[n, *S', r]``, linear in the positions and the same for every ``r``."""


def map_positions(k: Kernel, one: Map, two: Map) -> Kernel:
    """``k' = A1 k A2^T`` of full spatial covariances, ``A1`` said by ``one`` and ``A2`` by ``two``.

    With ``E`` the same map of half squared distances ``D`` and ``a, b`` the row sums of ``A1, A2``,
    ``D'[P, Q] = E12[P, Q] - (E11[P, P] + E22[Q, Q]) / 2 - (b - a) (A1 q1 - A2 q2) / 2``: 0 where two inputs agree.
    """
    s = deviations(k)
    maps, variances = (one, two), (k.var1, k.other(k.var1, k.var2))
    weights = [_own(map, jnp.ones_like(var)) for map, var in zip(maps, variances, strict=True)]
    moved = [_own(map, var) for map, var in zip(maps, variances, strict=True)]

    def own(within, i):
        row, column = within_sides(s[i])
        distances = _both(half_distance(within, row, column), 1, maps[i], maps[i])
        return jnp.maximum(diagonal_of(_both(row * column - within, 1, maps[i], maps[i])), 0), distances

    var1, inner1 = own(k.within1, 0)
    var2, inner2 = (None, inner1) if k.within2 is None else own(k.within2, 1)
    inner = inner1, inner2
    out = k.replace(var1=var1, var2=var2)
    after = deviations(out)

    def gap(distance, i, j, sides):
        first, second = (diagonal_of(each) for each in (inner[i], inner[j]))
        row, column = sides(first, second)
        a, b = sides(weights[i], weights[j])
        left, right = sides(moved[i], moved[j])
        distance = 0.5 * ((distance - row) + (distance - column)) - 0.5 * (b - a) * (left - right)
        return gap_of(distance, *sides(after[i], after[j]))

    return out.replace(
        gap=gap(_both(half_distance(k.gap, *k.sides(*s)), 2, one, two), 0, 1, k.sides),
        ntk=where_kept(lambda ntk: _both(ntk, 2, one, two), k.ntk),
        within1=gap(inner1, 0, 0, own_sides),
        within2=None if k.within2 is None else gap(inner2, 1, 1, own_sides),
    )


def select_positions(k: Kernel, chosen: Map) -> Kernel:
    """``k' [P, P]`` of a diagonal ``k`` for ``f'(P) = f(p(P))``."""

    def pairs(x):
        moved = chosen(jnp.moveaxis(x, 1, -1))
        return jnp.moveaxis(moved, -1, 1)

    return k.replace(
        gap=pairs(k.gap),
        ntk=where_kept(pairs, k.ntk),
        var1=_own(chosen, k.var1),
        var2=where_kept(lambda var: _own(chosen, var), k.var2),
    )


def in_layout(apply: Map, before: tuple[int, int], after: tuple[int, int]) -> Map:
    """``apply`` on arrays with other axes for samples and channels, before and after, as a Map."""

    def moved(x):
        return jnp.moveaxis(apply(jnp.moveaxis(x, (0, -1), before)), after, (0, -1))

    return moved


def _own(map: Map, x: Array) -> Array:
    return map(x[..., None])[..., 0]


def _both(x: Array, start: int, one: Map, two: Map) -> Array:
    """Both positions of covariances ``x`` mapped; ``start`` 1 for those within an input."""
    ndim = (x.ndim - start) // 2
    rows, columns = ([start + 2 * i + side for i in range(ndim)] for side in (0, 1))
    if start == 1:
        x = _side(x, 0, rows, columns, one)
        # the rows stand first now, and their number of axes may have changed
        ndim_out = x.ndim - 1 - ndim
        x = _side(x, 0, [1 + ndim_out + i for i in range(ndim)], [1 + i for i in range(ndim_out)], two)
        return _zipped(x, 1)
    x = _side(x, 0, rows, [1, *columns], one)  # [n1, *S1', n2, *S2]
    ndim_out = x.ndim - 2 - ndim
    x = _side(
        x, 1 + ndim_out, [2 + ndim_out + i for i in range(ndim)], range(1 + ndim_out), two
    )  # [n2, *S2', n1, *S1']
    x = jnp.moveaxis(x, 1 + ndim_out, 0)  # [n1, n2, *S2', *S1']
    return _zipped(x, 2)


def _side(x: Array, samples: int, positions: Sequence[int], rest: Sequence[int], map: Map) -> Array:
    """``map`` along ``samples`` and ``positions``, which come first in the result, then ``rest``."""
    rest = list(rest)
    x = jnp.transpose(x, [samples, *positions, *rest])
    sizes = x.shape[1 + len(positions) :]
    x = map(x.reshape(*x.shape[: 1 + len(positions)], math.prod(sizes)))
    return x.reshape(*x.shape[:-1], *sizes)


def _zipped(x: Array, start: int) -> Array:
    """``[..., *columns, *rows]`` to ``[..., h, h', w, w', ...]``."""
    ndim = (x.ndim - start) // 2
    return jnp.transpose(x, [*range(start), *(start + i + side for i in range(ndim) for side in (ndim, 0))])
