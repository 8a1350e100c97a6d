"""Fixed linear maps of positions: graphs, dot products with constants, resizing, indexing."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Shaped

from dynamics.stax.kernel.kernel import Kernel
from dynamics.stax.kernel.positions import Map, in_layout, map_positions, select_positions
from dynamics.stax.layers.checks import AggregateImplementation, check_axes, choice
from dynamics.stax.layers.layer import Needs, layer
from dynamics.types import Array, Model

Slice = np.s_
"""``Slice[1:3, :, ::2]``: the index that ``x[1:3, :, ::2]`` takes, for ``Index``."""

_FULL = "needs full spatial covariances: leave out diagonal_spatial=True"


def Aggregate(
    aggregate_axis: int | Sequence[int] | None = None,
    batch_axis: int = 0,
    channel_axis: int = -1,
    to_dense: Callable[[Array], Array] | None = lambda pattern: pattern,
    implementation: Any = "DENSE",
) -> Model:
    """Sums over a graph's edges, each input's own graph: ``f'(P) = sum_p A[p, P] f(p)``, ``k' = A1^T k A2``.

    ``apply_fn(params, x, pattern=A)`` and ``kernel_fn(x1, x2, pattern=(A1, A2))``; without a pattern an identity.

    Args:
        aggregate_axis: axes of the nodes, all but batch and channels when None; ``K`` of them, of sizes ``V``.
        batch_axis, channel_axis: axes of the input.
        to_dense: for 'DENSE': makes ``[n, *V, *V]`` of a pattern.
        implementation: 'DENSE' for patterns ``A [n, *V, *V]`` (sender, receiver), 'SPARSE' for integer edges
            ``[n, edges, K, 2]`` (or ``[n, edges, 2]`` where ``K`` is 1) of senders and receivers; an edge with a
            negative index is none.

    Raises:
        ValueError: for patterns of other shapes, and kernels without full spatial covariances.

    Cost: ``O(V^3)`` a pair of inputs (dense), ``O(V edges)`` (sparse).

    Reference: Du et al. 2019, 'Graph neural tangent kernel'.
    """
    sparse = choice("implementation", implementation, AggregateImplementation) == "SPARSE"

    def nodes(ndim: int) -> list[int]:
        """The nodes' axes among the positions."""
        positions = [i for i in range(ndim) if i not in (batch_axis % ndim, channel_axis % ndim)]
        if aggregate_axis is None:
            return list(range(len(positions)))
        chosen = [aggregate_axis] if isinstance(aggregate_axis, int) else list(aggregate_axis)
        check_axes("aggregate_axis", chosen, ndim)
        if any(a % ndim not in positions for a in chosen):
            raise ValueError(f"aggregate_axis: got {aggregate_axis}; allowed: axes {positions} of nodes")
        return [positions.index(a % ndim) for a in chosen]

    def aggregated(pattern, ndim: int, x: Array) -> Array:
        """``x [n, *S, r]``."""
        axes = [1 + i for i in nodes(ndim)]
        first = list(range(1, 1 + len(axes)))
        y = jnp.moveaxis(x, axes, first)
        shape, sizes = y.shape, y.shape[1 : 1 + len(axes)]
        y = y.reshape(y.shape[0], math.prod(sizes), -1)
        y = (_send if sparse else _multiply)(y, pattern if sparse or to_dense is None else to_dense(pattern), sizes)
        return jnp.moveaxis(y.reshape(shape), first, axes)

    def apply(params, inputs, pattern=None, **kwargs):
        if pattern is None:
            return inputs
        axes = batch_axis % inputs.ndim, channel_axis % inputs.ndim
        x = jnp.moveaxis(inputs, axes, (0, -1))
        return jnp.moveaxis(aggregated(pattern, inputs.ndim, x), (0, -1), axes)

    def propagate(k: Kernel, pattern=(None, None), **kwargs):
        if not isinstance(pattern, tuple | list) or len(pattern) != 2:
            raise ValueError(f"pattern: got {type(pattern).__name__}; allowed: a pair (pattern1, pattern2)")
        one, two = pattern
        if one is None and two is None:
            return k
        if one is None or (two is None and not k.x1_is_x2):
            raise ValueError("pattern: got one of two patterns; allowed: both, or neither")
        _need_full("Aggregate", k)
        if k.x1_is_x2 and not (two is None or two is one or _equal(one, two)):
            k = k.replace(x1_is_x2=False, var2=k.var1, within2=k.within1, mask2=k.mask1)
        ndim = len(k.shape1)
        maps = [functools.partial(aggregated, one if p is None else p, ndim) for p in (one, two)]
        return map_positions(k, *maps)

    needs = Needs(batch_axis, channel_axis, lambda full: True, pairs=False)
    return layer(lambda rng, shape: (shape, ()), apply, propagate, needs)


def _equal(one, two) -> bool:
    if isinstance(one, Tracer) or isinstance(two, Tracer):
        return False
    return one.shape == two.shape and bool(jnp.all(jnp.asarray(one == two)))


def _multiply(x: Array, pattern, sizes: Sequence[int]) -> Array:
    """``sum_p A[n, p, q] x[n, p, r]``."""
    expected = (x.shape[0], *sizes, *sizes)
    if tuple(pattern.shape) != expected:
        raise ValueError(f"pattern: got shape {tuple(pattern.shape)}; allowed: {expected}")
    dense = jnp.asarray(pattern).astype(x.dtype).reshape(x.shape[0], x.shape[1], x.shape[1])
    return jnp.einsum("npr,npq->nqr", x, dense, precision=lax.Precision.HIGHEST)


def _send(x: Array, pattern, sizes: Sequence[int]) -> Array:
    """Sums of what the senders of ``x [n, V, r]`` hold at their receivers."""
    edges = jnp.asarray(pattern)
    edges = edges[:, :, None] if edges.ndim == 3 and len(sizes) == 1 else edges
    if edges.ndim != 4 or edges.shape[0] != x.shape[0] or edges.shape[2:] != (len(sizes), 2):
        raise ValueError(
            f"pattern: got shape {tuple(edges.shape)}; allowed: edges ({x.shape[0]}, edges, {len(sizes)}, 2)"
        )
    strides = jnp.asarray([math.prod(sizes[i + 1 :]) for i in range(len(sizes))])
    place = jnp.sum(edges % jnp.asarray(sizes)[:, None] * strides[:, None], 2)  # [n, edges, 2]
    exists = jnp.all(edges >= 0, (2, 3))

    def one(x, place, exists):
        messages = jnp.where(exists[:, None], x[place[:, 0]], 0)
        return jnp.zeros_like(x).at[place[:, 1]].add(messages)

    return jax.vmap(one)(x, place, exists)


def DotGeneral(
    *,
    lhs: Shaped[Array, ...] | float | None = None,
    rhs: Shaped[Array, ...] | float | None = None,
    dimension_numbers: tuple = (((), ()), ((), ())),
    precision: Any = None,
    batch_axis: int = 0,
    channel_axis: int = -1,
) -> Model:
    """``lax.dot_general(x, rhs)`` or ``lax.dot_general(lhs, x)`` with a constant; without one an identity.

    Args:
        lhs, rhs: the constant, on one side at most. dimension_numbers, precision: as in ``lax.dot_general``.
        batch_axis, channel_axis: axes of the input. Neither may be contracted in ``kernel_fn``, nor channels be a batch
            dimension.

    Raises:
        ValueError: for two constants; from ``kernel_fn`` for contracted samples or channels.
    """
    if lhs is not None and rhs is not None:
        raise ValueError("lhs, rhs: got both; allowed: one constant, the other factor is the input")
    constant = jnp.asarray(rhs if lhs is None else lhs) if (lhs is not None or rhs is not None) else None
    contracted, batched = (tuple(map(tuple, each))[0 if lhs is None else 1] for each in dimension_numbers)

    def dot(x):
        if constant is None:
            return x
        factors = (x, constant.astype(x.dtype)) if lhs is None else (constant.astype(x.dtype), x)
        return lax.dot_general(*factors, dimension_numbers, precision)

    def place(axis: int, ndim: int) -> int:
        """Where ``axis`` of the input goes."""
        batch, gone = [a % ndim for a in batched], [a % ndim for a in contracted]
        if axis in batch:
            return batch.index(axis)
        free = [a for a in range(ndim) if a not in (*batch, *gone)]
        before = 0 if lhs is None or constant is None else constant.ndim - len(batch) - len(gone)
        return len(batch) + before + free.index(axis)

    def propagate(k: Kernel, **kwargs):
        if constant is None:
            return k
        ndim = len(k.shape1)
        if k.channel_axis in [a % ndim for a in (*contracted, *batched)] or k.batch_axis in [
            a % ndim for a in contracted
        ]:
            raise ValueError(
                f"dimension_numbers: got {dimension_numbers}; allowed in kernel_fn: neither channels (axis "
                f"{k.channel_axis}) nor contracted samples (axis {k.batch_axis}), whose covariances are not kept"
            )
        shapes = [jax.eval_shape(dot, jax.ShapeDtypeStruct(s, k.gap.dtype)).shape for s in (k.shape1, k.shape2)]
        after = place(k.batch_axis, ndim), place(k.channel_axis, ndim)
        if constant.ndim == 0:
            out = k * constant.astype(k.gap.dtype)
        else:
            _need_full("DotGeneral", k)
            moved = in_layout(dot, (k.batch_axis, k.channel_axis), after)
            out = map_positions(k, moved, moved)
        out = out.replace(shape1=shapes[0], shape2=shapes[1], batch_axis=after[0], channel_axis=after[1])
        return out.replace(diagonal_spatial=out.diagonal_spatial or out.spatial_ndim == 0)

    def output_mask(mask, shape):
        full = [mask.shape[i] if i == channel_axis % len(shape) else size for i, size in enumerate(shape)]
        counts = jnp.broadcast_to(~mask, full).astype(float)
        reached = counts if constant is None else _magnitude(dot, counts, constant)
        return reached == 0

    def _magnitude(dot, counts, constant):
        used = (constant != 0).astype(counts.dtype)
        factors = (counts, used) if lhs is None else (used, counts)
        return lax.dot_general(*factors, dimension_numbers)

    def init(rng, input_shape):
        return jax.eval_shape(dot, jax.ShapeDtypeStruct(tuple(input_shape), jnp.result_type(float))).shape, ()

    spatial = bool if constant is None or constant.ndim == 0 else lambda full: True
    needs = Needs(batch_axis, channel_axis, spatial, pairs=False)
    return layer(init, lambda params, x, **kwargs: dot(x), propagate, needs, output_mask, clears=False)


def ImageResize(
    shape: Sequence[int],
    method: Any,
    antialias: bool = True,
    precision: Any = lax.Precision.HIGHEST,
    batch_axis: int = 0,
    channel_axis: int = -1,
) -> Model:
    """``jax.image.resize`` of the positions.

    Args:
        shape: sizes of all axes of the output, -1 to keep one. method, antialias, precision: as in
            ``jax.image.resize``; ``kernel_fn`` takes linear interpolation and nearest neighbours.
        batch_axis, channel_axis: axes of the input, of size -1 in ``shape``.

    Raises:
        ValueError: from ``kernel_fn`` for other methods, and where samples or channels are resized.
    """
    shape = tuple(shape)
    axes = batch_axis % len(shape), channel_axis % len(shape)

    def resized(x, precision=precision):
        sizes = [n if asked == -1 else asked for n, asked in zip(x.shape, shape, strict=True)]
        return jax.image.resize(x, sizes, method, antialias, precision)

    def sizes(input_shape):
        return tuple(n if asked == -1 else asked for n, asked in zip(input_shape, shape, strict=True))

    def propagate(k: Kernel, **kwargs):
        kind = jax.image.ResizeMethod.from_string(method) if isinstance(method, str) else method
        if kind not in (jax.image.ResizeMethod.LINEAR, jax.image.ResizeMethod.NEAREST):
            raise ValueError(f"method: got {method!r}; allowed in kernel_fn: 'linear', 'nearest'")
        if shape[axes[0]] != -1 or shape[axes[1]] != -1:
            raise ValueError(f"shape: got {shape}; allowed in kernel_fn: -1 at axes {axes} of samples and channels")
        if all(asked == -1 for asked in shape):
            return k
        _need_full("ImageResize", k)
        moved = in_layout(resized, axes, axes)
        return map_positions(k, moved, moved).replace(shape1=sizes(k.shape1), shape2=sizes(k.shape2))

    def output_mask(mask, input_shape):
        return jnp.logical_not(resized((~mask).astype(float)) != 0)

    still = all(asked == -1 for i, asked in enumerate(shape) if i not in axes)
    needs = Needs(batch_axis, channel_axis, bool if still else lambda full: True, pairs=False)
    return layer(lambda rng, s: (sizes(s), ()), lambda params, x, **kwargs: resized(x), propagate, needs, output_mask)


def Index(idx: Any, batch_axis: int = 0, channel_axis: int = -1) -> Model:
    """``x[idx]``.

    Args:
        idx: integers and slices, such as ``Slice[:, 0, ::2]``. batch_axis, channel_axis: axes of the input.

    Raises:
        ValueError: for indices that are not integers, slices or ``...``; from ``kernel_fn`` where channels are indexed,
            or samples by an integer.
    """

    def parts(ndim: int) -> tuple[Any, ...]:
        given = idx if isinstance(idx, tuple) else (idx,)
        if (
            any(not (isinstance(i, int | np.integer | slice) or i is Ellipsis) for i in given)
            or given.count(Ellipsis) > 1
        ):
            raise ValueError(f"idx: got {idx!r}; allowed: integers, slices and one ...")
        where = given.index(Ellipsis) if Ellipsis in given else len(given)
        missing = (slice(None),) * (ndim - len(given) + (Ellipsis in given))
        return (*given[:where], *missing, *given[where + 1 :])

    def output_shape(shape):
        return jax.eval_shape(lambda x: x[idx], jax.ShapeDtypeStruct(tuple(shape), jnp.result_type(float))).shape

    def propagate(k: Kernel, **kwargs):
        ndim, axes = len(k.shape1), (k.batch_axis, k.channel_axis)
        chosen = list(parts(ndim))
        if chosen[axes[1]] != slice(None) or not isinstance(chosen[axes[0]], slice):
            raise ValueError(
                f"idx: got {idx!r}; allowed in kernel_fn: all channels (axis {axes[1]}), a slice of samples"
            )
        after = [axis - sum(not isinstance(i, slice) for i in chosen[:axis]) for axis in axes]
        samples, chosen[axes[0]] = chosen[axes[0]], slice(None)
        shapes = output_shape(k.shape1), output_shape(k.shape2)
        k = k if samples == slice(None) else k.slice(samples, samples)
        moved: Map = in_layout(lambda x: x[tuple(chosen)], axes, (after[0], after[1]))
        if all(i == slice(None) for i in chosen):
            out = k
        else:
            out = select_positions(k, moved) if k.diagonal_spatial else map_positions(k, moved, moved)
        out = out.replace(shape1=shapes[0], shape2=shapes[1], batch_axis=after[0], channel_axis=after[1])
        return _without_positions(out) if out.spatial_ndim == 0 else out

    needs = Needs(batch_axis, channel_axis, bool, pairs=False)
    return layer(
        lambda rng, shape: (output_shape(shape), ()),
        lambda params, x, **kwargs: x[idx],
        propagate,
        needs,
        lambda mask, shape: jnp.broadcast_to(mask, _with_channels(shape, mask, channel_axis))[idx],
        clears=False,
    )


def _with_channels(shape, mask: Array, axis: int) -> tuple[int, ...]:
    axis %= len(shape)
    return (*shape[:axis], mask.shape[axis], *shape[axis + 1 :])


def _without_positions(k: Kernel) -> Kernel:
    return k.replace(within1=None, within2=None, diagonal_spatial=True)


def _need_full(name: str, k: Kernel) -> None:
    if k.spatial_ndim and k.within1 is None:
        raise ValueError(f"diagonal_spatial: got True; allowed: False, for {name} {_FULL}")
