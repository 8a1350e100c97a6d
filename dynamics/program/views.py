"""A parameter seen through scale, cast, transpose, reshape and slice: still one parameter, linearly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn

from dynamics.types import Array

Step = tuple[Any, ...]


class View(NamedTuple):
    """A value that is ``scale`` times a rearrangement of one parameter leaf.

    Attributes:
        value: the value itself.
        leaf: index of the parameter leaf.
        scale: scalar factor between the rearranged leaf and the value.
        base: how the leaf became the array whose axes ``order`` names: a tuple of steps ``('reshape', order, shape)``,
            ``('slice', order, start, limit, strides)`` and ``('scan',)`` (the leading axis is taken by a loop).
        order: axis ``i`` of the value is axis ``order[i]`` of the base.
    """

    value: Any
    leaf: int
    scale: Any
    base: tuple[Step, ...]
    order: tuple[int, ...]

    @property
    def base_shape(self) -> tuple[int, ...]:
        """Sizes of the base's axes."""
        shape = [0] * len(self.order)
        for axis, place in enumerate(self.order):
            shape[place] = self.value.shape[axis]
        return tuple(shape)


def whole_leaf(value: Any, leaf: int) -> View:
    """The leaf itself."""
    return View(value, leaf, 1.0, (), tuple(range(jnp.ndim(value))))


def reshaped(view: View, value: Any) -> View:
    """The view after its value was reshaped to that of ``value``."""
    step = ("reshape", view.order, tuple(value.shape))
    return View(value, view.leaf, view.scale, (*view.base, step), tuple(range(value.ndim)))


def looked_through(equation: JaxprEqn, values: Sequence[Any], result: Any) -> View | None:
    """The view that ``equation`` makes of its one view operand, or None where the use is of another kind.

    Args:
        equation: the equation.
        values: its operands, one of them a ``View``.
        result: the equation's first result.
    """
    name, params = equation.primitive.name, equation.params
    place = next(index for index, value in enumerate(values) if isinstance(value, View))
    view = values[place]
    if name in ("copy", "copy_p", "name", "sharding_constraint"):
        return view._replace(value=result)
    if name == "convert_element_type" and jnp.issubdtype(result.dtype, jnp.floating):
        return view._replace(value=result)
    if name == "neg":
        return view._replace(value=result, scale=-view.scale)
    if name in ("mul", "div") and result.shape == view.value.shape:
        return _scaled(name, view, values, place, result)
    if name == "transpose":
        return view._replace(value=result, order=tuple(view.order[axis] for axis in params["permutation"]))
    if name == "squeeze" or (name == "reshape" and params["dimensions"] is None):
        return reshaped(view, result)
    if name == "broadcast_in_dim" and math.prod(result.shape) == math.prod(view.value.shape):
        kept = params["broadcast_dimensions"]
        return reshaped(view, result) if list(kept) == sorted(kept) else None
    if name == "slice":
        strides = params["strides"] or (1,) * view.value.ndim
        step = ("slice", view.order, tuple(params["start_indices"]), tuple(params["limit_indices"]), tuple(strides))
        return View(result, view.leaf, view.scale, (*view.base, step), tuple(range(result.ndim)))
    return None


def _scaled(name: str, view: View, values: Sequence[Any], place: int, result: Any) -> View | None:
    other = values[1 - place]
    if isinstance(other, View) or jnp.size(other) != 1 or (name == "div" and place == 1):
        return None
    factor = jnp.reshape(other, ())
    return view._replace(value=result, scale=view.scale * factor if name == "mul" else view.scale / factor)


def rearrange(base: tuple[Step, ...], leaf: Array) -> Array:
    """The base's array made from the leaf's: what ``View.base`` did, done to another array of the leaf's shape.

    A loop's axis stays in front: after a ``('scan',)`` step everything applies to the rest.
    """
    for index, step in enumerate(base):
        if step[0] == "scan":
            return jax.vmap(lambda rest, after=base[index + 1 :]: rearrange(after, rest))(leaf)
        if step[0] == "reshape":
            leaf = jnp.reshape(jnp.transpose(leaf, step[1]), step[2])
        else:
            leaf = jax.lax.slice(jnp.transpose(leaf, step[1]), *step[2:])
    return leaf


def disjoint(base1: tuple[Step, ...], base2: tuple[Step, ...]) -> bool:
    """True when the two bases hold different entries of the leaf for certain."""
    for step1, step2 in zip(base1, base2):
        if step1 == step2:
            continue
        if not step1[0] == step2[0] == "slice" or step1[1] != step2[1]:
            return False
        return any(
            limit1 <= start2 or limit2 <= start1
            for start1, limit1, start2, limit2 in zip(step1[2], step1[3], step2[2], step2[3])
        )
    return False
