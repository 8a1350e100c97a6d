"""Rules for single operations: where the samples' axis goes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from jax.extend.core import JaxprEqn

from dynamics.program import jaxpr
from dynamics.program.sample_axis_states import Follows, Known, Mixes, Same, Undecided, carry, same

MAPPED = frozenset(
    """
    abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e bitcast_convert_type cbrt
    ceil clamp clz complex conj convert_element_type copy copy_p cos cosh digamma div eq erf erf_inv erfc exp exp2
    expm1 floor ge gt igamma igammac imag integer_pow is_finite le lgamma log log1p logistic lt max min mul name ne
    neg nextafter not or polygamma population_count pow real reduce_precision regularized_incomplete_beta rem round
    rsqrt select_n sharding_constraint shift_left shift_right_arithmetic shift_right_logical sign sin sinh sqrt
    square stop_gradient sub tan tanh xor
    """.split()  # noqa: SIM905
)
_REDUCED = frozenset(
    """
    reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor argmax argmin reduce
    """.split()  # noqa: SIM905
)
_ALONG_AXIS = frozenset(
    """
    cumsum cumprod cummax cummin cumlogsumexp
    """.split()  # noqa: SIM905
)
_WINDOWED = frozenset(
    """
    reduce_window_sum reduce_window_max reduce_window_min reduce_window select_and_gather_add
    """.split()  # noqa: SIM905
)


def after_operation(equation: JaxprEqn, states: Sequence[Known]) -> Known:
    """The state of an operation's results (they share one) from those of its operands.

    Raises:
        Mixes: when an entry of the result holds several samples.
        Undecided: when the rules do not cover the operation.
    """
    name, params = equation.primitive.name, equation.params
    shapes = [jaxpr.shape(atom) for atom in equation.invars]
    result = jaxpr.shape(equation.outvars[0])
    if name in MAPPED:
        return _together(states, shapes, result)
    if name == "dot_general":
        return _dot_rule(params, states, shapes)
    if name == "conv_general_dilated":
        return _conv_rule(params, states, shapes)
    if name == "concatenate":
        return _concatenate_rule(params, states, result)
    if name == "gather":
        return _gather_rule(params, states, shapes, result)
    if not states or any(isinstance(state, Follows) for state in states[1:]):
        raise Undecided
    first = states[0]
    if isinstance(first, Follows):  # sorted or reduced along with it: alike for every sample
        beside = [state for state, shape in zip(states[1:], shapes[1:]) if shape == shapes[0]]
        if any(isinstance(state, Same) and first.axis not in state.constant for state in beside):
            raise Undecided
    return _moved(name, params, first, shapes[0], result)


def _together(states: Sequence[Known], shapes: Sequence[tuple[int, ...]], result: tuple[int, ...]) -> Known:
    """An elementwise operation; axes of size 1 and scalars spread."""
    following = {state for state in states if isinstance(state, Follows)}
    if len(following) > 1:
        raise Undecided
    ndim = len(result)

    def constant(state: Same, shape: tuple[int, ...]) -> set[int]:
        if len(shape) != ndim:  # a scalar; a bitcast may add or drop an axis
            return set() if shape else set(range(ndim))
        return {axis for axis in range(ndim) if axis in state.constant or shape[axis] == 1}

    sames = [constant(state, shape) for state, shape in zip(states, shapes) if isinstance(state, Same)]
    if not following:
        return same(ndim, set.intersection(*sames) if sames else ())
    tag = following.pop()
    if tag.axis >= ndim or any(tag.axis not in axes for axes in sames):
        raise Undecided
    return tag


def _moved(name: str, params: dict[str, Any], state: Known, shape: tuple[int, ...], result: tuple[int, ...]) -> Known:
    """Operations on one array that keep, drop or carry axes."""
    if name == "transpose":
        order = list(params["permutation"])
        return carry(state, {old: new for new, old in enumerate(order)}, len(result))
    if name == "broadcast_in_dim":
        places = dict(enumerate(params["broadcast_dimensions"]))
        if isinstance(state, Follows):
            return carry(state, places, len(result))
        new = [axis for axis in range(len(result)) if axis not in places.values()]
        grown = [place for axis, place in places.items() if shape[axis] != result[place]]
        return same(len(result), [*new, *grown, *(places[axis] for axis in state.constant)])
    if name == "squeeze":
        kept = [axis for axis in range(len(shape)) if axis not in params["dimensions"]]
        return carry(state, {old: new for new, old in enumerate(kept)}, len(result))
    if name == "reshape" and params["dimensions"] is None:
        return _reshaped(state, shape, result)
    if name in _REDUCED:
        gone = params["axes"] if "axes" in params else params["dimensions"]
        kept = [axis for axis in range(len(shape)) if axis not in gone]
        if isinstance(state, Follows) and state.axis in gone:
            raise Mixes
        return carry(state, {old: new for new, old in enumerate(kept)}, len(result))
    if isinstance(state, Same):
        raise Undecided
    if name in _ALONG_AXIS or name in ("sort", "split"):
        along = params["dimension" if name == "sort" else "axis"]
        if state.axis == along:
            raise Undecided if name == "split" else Mixes
        return state
    if name in _WINDOWED:
        if params["window_dimensions"][state.axis] != 1:
            raise Mixes
        if not _in_place(params, state.axis, ("window_strides", "base_dilation")):
            raise Undecided
    elif name == "rev":
        if state.axis in params["dimensions"]:
            raise Mixes
    elif name == "top_k":
        if state.axis == params.get("axis", len(shape) - 1) % len(shape):
            raise Mixes
    elif name == "fft":
        if state.axis >= len(shape) - len(params["fft_lengths"]):
            raise Mixes
    elif name == "pad":
        if tuple(params["padding_config"][state.axis]) != (0, 0, 0):
            raise Undecided
    elif name not in ("slice", "dynamic_slice"):
        raise Undecided
    if shape[state.axis] != result[state.axis]:
        raise Undecided
    return state


def _reshaped(state: Known, shape: tuple[int, ...], result: tuple[int, ...]) -> Known:
    if isinstance(state, Same):
        if all(axis in state.constant or shape[axis] == 1 for axis in range(len(shape))):
            return same(len(result), range(len(result)))
        raise Undecided
    before = math.prod(shape[: state.axis])
    after = state.inner * math.prod(shape[state.axis + 1 :])  # row-major distance between two samples
    count = shape[state.axis] // state.inner
    for axis, size in enumerate(result):
        left, right = math.prod(result[:axis]), math.prod(result[axis + 1 :])
        if left == before and right and after % right == 0 and size == count * (after // right) and size:
            return Follows(axis, after // right)
    raise Undecided


def _dot_rule(params: dict[str, Any], states: Sequence[Known], shapes: Sequence[tuple[int, ...]]) -> Known:
    (summed, batch) = params["dimension_numbers"]
    found = []
    for side, state in enumerate(states):
        free = [axis for axis in range(len(shapes[side])) if axis not in (*summed[side], *batch[side])]
        offset = len(batch[0]) + (len(shapes[0]) - len(batch[0]) - len(summed[0]) if side else 0)
        places = {axis: offset + index for index, axis in enumerate(free)}
        places |= {axis: index for index, axis in enumerate(batch[side])}
        if isinstance(state, Same):
            found.append(Same(frozenset(places[axis] for axis in state.constant if axis in places)))
            continue
        if state.axis in summed[side]:
            raise Mixes
        found.append(state._replace(axis=places[state.axis]))
    following = [state for state in found if isinstance(state, Follows)]
    if not following:
        shared = frozenset(range(len(batch[0])))
        one, two = (state.constant for state in found)
        return Same((one | two) - shared | (one & two & shared))
    if len(following) == 2:
        if following[0] != following[1]:
            raise Mixes
        return following[0]
    tag = following[0]
    other = next(state for state in found if isinstance(state, Same))
    if tag.axis < len(batch[0]) and tag.axis not in other.constant:
        raise Undecided
    return tag


def _in_place(params: dict[str, Any], axis: int, steps: Sequence[str]) -> bool:
    """Whether a window of one moves along ``axis`` entry by entry."""
    return all(params[step][axis] == 1 for step in steps) and tuple(params["padding"][axis]) == (0, 0)


def _conv_rule(params: dict[str, Any], states: Sequence[Known], shapes: Sequence[tuple[int, ...]]) -> Known:
    data, kernel = states
    numbers = params["dimension_numbers"]
    if isinstance(kernel, Follows) or params["batch_group_count"] != 1 or isinstance(data, Same):
        raise Undecided
    place = numbers.lhs_spec.index(data.axis)
    if place == 1:
        raise Mixes if data.inner == params["feature_group_count"] == 1 else Undecided
    if place > 1:
        if shapes[1][numbers.rhs_spec[place]] > 1:
            raise Mixes
        if not _in_place(params, place - 2, ("window_strides", "lhs_dilation")):
            raise Undecided
    return data._replace(axis=numbers.out_spec[place])


def _concatenate_rule(params: dict[str, Any], states: Sequence[Known], result: tuple[int, ...]) -> Known:
    following = {state for state in states if isinstance(state, Follows)}
    if len(following) != 1 or next(iter(following)).axis == params["dimension"]:
        raise Undecided
    (tag,) = following
    if any(tag.axis not in state.constant for state in states if isinstance(state, Same)):
        raise Undecided
    return tag


def _gather_rule(params: dict[str, Any], states: Sequence[Known], shapes, result: tuple[int, ...]) -> Known:
    operand, indices = states
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    positions = [axis for axis in range(len(result)) if axis not in numbers.offset_dims]
    if isinstance(indices, Follows):
        pairs = dict(zip(numbers.start_indices_batching_dims, numbers.operand_batching_dims))
        paired = pairs.get(indices.axis)
        if indices.axis == len(shapes[1]) - 1:  # a sample is a coordinate of the places
            raise Undecided
        if isinstance(operand, Follows) and (paired != operand.axis or operand.inner != indices.inner):
            raise Undecided
        if isinstance(operand, Same) and paired is not None and paired not in operand.constant:
            raise Undecided
        return indices._replace(axis=positions[indices.axis])
    if isinstance(operand, Follows):
        kept = [
            axis
            for axis in range(len(shapes[0]))
            if axis not in (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
        ]
        whole = operand.axis in kept and sizes[operand.axis] == shapes[0][operand.axis]
        if not whole or operand.axis in numbers.start_index_map:
            raise Undecided
        return operand._replace(axis=numbers.offset_dims[kept.index(operand.axis)])
    raise Undecided
