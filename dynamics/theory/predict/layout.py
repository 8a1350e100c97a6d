"""Kernels and targets as matrices: which axes are samples, which are traced over."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Float, Shaped

from dynamics.arguments import NOT_NEGATIVE, POSITIVE, check_numbers
from dynamics.precision import full_precision
from dynamics.types import Array, ArrayLike

Axes = int | Sequence[int]
_F = TypeVar("_F", bound=Callable[..., Any])


def broadcasting(fn: _F) -> _F:
    """``fn``, and what function it returns, whose broadcasts are meant whatever ``jax_numpy_rank_promotion`` says.

    Its products are at full precision.
    """

    @full_precision
    @functools.wraps(fn)
    def call(*args, **kwargs):
        with jax.numpy_rank_promotion("allow"):
            found = fn(*args, **kwargs)
        return broadcasting(found) if callable(found) else found

    return call  # pyright: ignore[reportReturnType]


class Layout(NamedTuple):
    """How kernels and targets become matrices: ``Theta [P, P]`` and ``y [P, T]`` with traced axes last."""

    trace_axes: tuple[int, ...]
    y_shape: tuple[int, ...]

    @property
    def traced(self) -> tuple[int, ...]:
        return tuple(self.y_shape[a] for a in self.trace_axes)

    def flatten(self, y: Array) -> Array:
        """``y`` as ``[positions, traced entries]``."""
        count = len(self.trace_axes)
        y = jnp.moveaxis(y, self.trace_axes, range(y.ndim - count, y.ndim))
        return y.reshape(-1, math.prod(self.traced))

    def restore(self, flat: Array, positions: Sequence[int], lead: Sequence[int] = ()) -> Array:
        """``[*lead, positions, traced]`` in the axis order of ``y``."""
        full = flat.reshape(*lead, *positions, *self.traced)
        count, ndim = len(self.traced), len(self.y_shape)
        return jnp.moveaxis(full, range(full.ndim - count, full.ndim), [a - ndim for a in self.trace_axes])


def layout_of(y_train: Shaped[Array, ...], trace_axes: Axes, k_train_train: Shaped[Array, ...]) -> Layout:
    """The layout, after checking that the kernel has two axes for each axis of ``y_train`` that is not traced."""
    axes = (trace_axes,) if isinstance(trace_axes, int) else tuple(trace_axes)
    for axis in axes:
        if not -y_train.ndim <= axis < y_train.ndim:
            raise ValueError(f"trace_axes: got {trace_axes}; allowed: axes of y_train, of shape {y_train.shape}")
    layout = Layout(tuple(sorted(a % y_train.ndim for a in axes)), tuple(y_train.shape))
    kept = [s for a, s in enumerate(y_train.shape) if a not in layout.trace_axes]
    if k_train_train.ndim % 2 or list(k_train_train.shape[::2]) != kept or list(k_train_train.shape[1::2]) != kept:
        raise ValueError(
            f"k_train_train: got shape {k_train_train.shape}; allowed: {[s for s in kept for _ in (0, 1)]}, two axes "
            f"for each axis of y_train {y_train.shape} outside trace_axes {trace_axes}"
        )
    return layout


def matrix(k: Shaped[Array, ...]) -> Shaped[Array, "rows columns"]:
    """``[a, a', b, b', ...]`` as ``[a b ..., a' b' ...]``."""
    order = [*range(0, k.ndim, 2), *range(1, k.ndim, 2)]
    return jnp.transpose(k, order).reshape(math.prod(k.shape[::2]), -1)


def unmatrix(k: Shaped[Array, ...], rows: Sequence[int], lead: Sequence[int] = ()) -> Shaped[Array, ...]:
    """``[*lead, P, P]`` as ``[*lead, a, a, b, b, ...]``."""
    start, count = len(lead), len(rows)
    k = k.reshape(*lead, *rows, *rows)
    pairs = [axis for i in range(count) for axis in (start + i, start + count + i)]
    return jnp.transpose(k, [*range(start), *pairs])


def across(k_test_train, k_train_train: Shaped[Array, ...]) -> tuple[Any, tuple[int, ...]]:
    """``k_test_train`` as a matrix, and its test axes, after checking that its train axes are those of the other."""
    k = jnp.asarray(k_test_train)
    if k.ndim != k_train_train.ndim or k.shape[1::2] != k_train_train.shape[1::2]:
        raise ValueError(
            f"k_test_train: got shape {k.shape}; allowed: [test, train, ...] to fit k_train_train {k_train_train.shape}"
        )
    return matrix(k), k.shape[::2]


def start_of(name: str, value: Any, shape: Sequence[int], dtype: Any) -> Shaped[Array, ...]:
    """Initial outputs as an array of ``shape``."""
    value = jnp.asarray(value, dtype)
    if value.ndim > len(shape) or any(a not in (1, b) for a, b in zip(value.shape[::-1], tuple(shape)[::-1])):
        raise ValueError(
            f"{name}: got shape {value.shape}; allowed: {tuple(shape)}, that of the outputs, or what broadcasts to it"
        )
    return jnp.broadcast_to(value, shape)


def shape_on_tests(layout: Layout, positions: Sequence[int]) -> tuple[int, ...]:
    """Shape of the outputs on the test set, whose kernel has rows ``positions``."""
    sizes = iter(positions)
    return tuple(s if a in layout.trace_axes else next(sizes) for a, s in enumerate(layout.y_shape))


def check_rate(learning_rate: ArrayLike) -> None:
    check_numbers(many=True, learning_rate=(learning_rate, POSITIVE))


def regularised(k: Float[Array, "P P"], diag_reg: ArrayLike, absolute: bool) -> Float[Array, "P P"]:
    """``k + diag_reg I``, in units of the mean of the diagonal unless ``absolute``."""
    return _regularised(k, diag_reg, bool(absolute))


@functools.partial(jax.jit, static_argnames="absolute")
def _regularised(k: Array, diag_reg: ArrayLike, absolute: bool) -> Array:
    scale = 1.0 if absolute else jnp.trace(k) / k.shape[0]
    return k + diag_reg * scale * jnp.eye(k.shape[0], dtype=k.dtype)


def check_reg(diag_reg: ArrayLike) -> None:
    check_numbers(many=True, diag_reg=(diag_reg, NOT_NEGATIVE))


def check_start(fx_train_0, fx_test_0, k_test_train) -> None:
    if fx_train_0 is None and fx_test_0 is None:
        raise ValueError("fx_train_0, fx_test_0: got None for both; allowed: one or both of them")
    if fx_test_0 is not None and k_test_train is None:
        raise ValueError("k_test_train: got None; allowed: the kernel, to predict on the test set")


def outputs(train, test):
    """The pair, or the one of the two that is there."""
    if train is None or test is None:
        return test if train is None else train
    return train, test
