"""Does output sample i depend on input sample i alone? Read off the program, so it holds for every value.

Each value in the program is in one of four states: it follows the samples along one of its axes; it is the same for
every batch (with the axes along which it is constant); it has mixed samples; or nobody knows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal

from dynamics.program import jaxpr
from dynamics.program.sample_axis_rules import after_operation
from dynamics.program.sample_axis_states import (
    Follows,
    Known,
    Mixed,
    Mixes,
    Round,
    Same,
    State,
    Undecided,
    Unknown,
    inside,
    join,
    outside,
    same,
)
from dynamics.types import Params, PyTree

_LARGE = 4096
_REARRANGED = frozenset(("broadcast_in_dim", "reshape", "squeeze", "transpose", "jit", "pjit", "copy", "copy_p"))


def splits_into_samples(f: Callable[[Params, PyTree], PyTree], params: Params, x: PyTree, mixing: str) -> bool:
    """True when ``f(params, x)[i] = f(params, x[i:i+1])[0]`` for certain, along the leading axis of every leaf.

    Args:
        f: ``(params, x) -> outputs``, any pytrees.
        params: parameters, arrays or shapes.
        x: inputs.
        mixing: 'refuse' or 'exact'.

    Returns:
        False where there is no common batch axis or the rules cannot decide (the kernel is then taken from the whole
        batch at once, which is always exact and slower); also for a function that mixes samples with 'exact'.

    Raises:
        ValueError: for a function of a batch that certainly mixes its samples, with 'refuse'.
    """
    if mixing not in ("refuse", "exact"):
        raise ValueError(f"mixing: got {mixing!r}; allowed: 'refuse' or 'exact'")
    inputs = jax.tree.leaves(x)
    outputs = jax.tree.leaves(jax.eval_shape(f, params, x))
    counts = {leaf.shape[0] if leaf.ndim else None for leaf in (*inputs, *outputs)}
    if len(counts) != 1 or counts == {None}:
        return False
    states = _states_at(f, params, x, inputs[0].shape[0])
    mixed = [state for state in states if isinstance(state, Mixed)]
    if mixed and mixing == "refuse":
        raise ValueError(
            f"f: got one that mixes the samples of a batch (by {mixed[0].where}, as batch statistics do); "
            "allowed: a function of each sample alone (evaluation mode, or frozen statistics), or mixing='exact' for "
            "the exact kernel of the whole-batch function"
        )
    return all(state == Follows(0) for state in states)


def _states_at(f: Callable, params: Params, x: PyTree, n: int) -> list[State]:
    """States of the outputs at the batch's own size, and whether the same program serves other sizes and size 1."""
    fixed = len(jax.tree.leaves(params))
    states: list[State] = []
    constants: list[Any] = []
    per_sample: list[int] = []
    for count in dict.fromkeys((max(n, 2), max(n, 2) + 1, 1)):
        resized = jax.tree.map(lambda leaf, count=count: jax.ShapeDtypeStruct((count, *leaf.shape[1:]), leaf.dtype), x)
        try:
            program = jaxpr.trace(f, params, resized)
        except Exception as error:  # whatever f raises at a batch size it was not written for
            return [Unknown(type(error).__name__)]
        constants.append(_written(program))
        if constants[-1] != constants[0]:
            return [Unknown("a constant or an operation that depends on the batch's size")]
        sizes = [math.prod(aval.shape) for aval in program.out_avals]
        if count == 1:
            return states if sizes == per_sample else [Unknown("outputs that change with the batch's size")]
        per_sample = [size // count for size in sizes]
        given: list[State] = [same(len(aval.shape), ()) for aval in program.in_avals[:fixed]]
        states = _follow(program, [*given, *(Follows(0) for _ in program.in_avals[fixed:])])
        if any(state != Follows(0) for state in states):
            return states
    return states


def _written(program: ClosedJaxpr) -> tuple[list[str], set[str]]:
    """Every constant of a program, and the names of its operations (those that only rearrange aside), bodies too."""
    constants = [_value(constant) for constant in program.consts]
    names: set[str] = set()
    for equation in program.jaxpr.eqns:
        names.add(equation.primitive.name)
        constants += [_value(atom.val) for atom in equation.invars if isinstance(atom, Literal)]
        for parameter in equation.params.values():
            for body in jaxpr.bodies(parameter):
                more = _written(body)
                constants += more[0]
                names |= more[1]
    return sorted(constants), names - _REARRANGED


def _value(constant: Any) -> str:
    """A constant by value; what is large or traced by its identity, which a value made anew has not."""
    if isinstance(constant, Tracer) or np.size(constant) > _LARGE:
        return str(id(constant))
    if jnp.issubdtype(jnp.result_type(constant), jax.dtypes.prng_key):
        constant = jax.random.key_data(constant)
    return f"{np.shape(constant)} {np.asarray(constant).tobytes().hex()}"


def _follow(program: ClosedJaxpr, given: Sequence[State]) -> list[State]:
    env: dict[Any, State] = dict(zip(program.jaxpr.invars, given))
    for variable in program.jaxpr.constvars:
        env[variable] = same(len(jaxpr.shape(variable)), ())

    def read(atom) -> State:
        return same(jnp.ndim(atom.val), range(jnp.ndim(atom.val))) if isinstance(atom, Literal) else env[atom]

    for equation in program.jaxpr.eqns:
        states = [read(atom) for atom in equation.invars]
        env.update(zip(equation.outvars, _apply(equation, states)))
    return [read(atom) for atom in program.jaxpr.outvars]


def _apply(equation: JaxprEqn, states: list[State]) -> list[State]:
    name = equation.primitive.name
    for kind in (Mixed, Unknown):
        worst = [state for state in states if isinstance(state, kind)]
        if worst:
            return [worst[0]] * len(equation.outvars)
    if any(isinstance(state, Round) for state in states):
        alone = all(isinstance(state, Round | Same) for state in states)
        return [Round() if alone else Unknown(name)] * len(equation.outvars)
    if name == "iota":
        shape = jaxpr.shape(equation.outvars[0])
        return [same(len(shape), [axis for axis in range(len(shape)) if axis != equation.params["dimension"]])]
    try:
        return _rule(equation, name, [state for state in states if isinstance(state, Follows | Same)])
    except Mixes:
        return [Mixed(name)] * len(equation.outvars)
    except Undecided:
        if any(isinstance(state, Follows) for state in states):
            return [Unknown(name)] * len(equation.outvars)
        return [same(len(jaxpr.shape(variable)), ()) for variable in equation.outvars]


def _rule(equation: JaxprEqn, name: str, states: list[Known]) -> list[State]:
    params = equation.params
    body = jaxpr.called(equation) or jaxpr.rematerialised(equation) or jaxpr.with_own_rule(equation)
    if body is not None:
        return _follow(body, states)
    if name == "scan":
        return _scan_rule(params, states)
    if name == "cond":
        return _cond_rule(params, states)
    return [after_operation(equation, states)] * len(equation.outvars)


def _scan_rule(params: dict[str, Any], states: list[Known]) -> list[State]:
    body = jaxpr.closed(params["jaxpr"])
    consts, carried = jaxpr.scan_counts(params)
    fixed, carry, per_round = states[:consts], states[consts : consts + carried], states[consts + carried :]
    if any(isinstance(state, Follows) and state.axis == 0 for state in per_round):
        alike = all(state == Follows(0) if isinstance(state, Follows) else 0 in state.constant for state in per_round)
        if carried or not alike or not all(isinstance(state, Same) for state in fixed):
            raise Undecided
    entering = [inside(state) for state in per_round]
    while True:
        results = _follow(body, [*fixed, *carry, *entering])
        joined = [join(old, new) for old, new in zip(carry, results[:carried])]
        if joined == carry:
            return [*carry, *(outside(state) for state in results[carried:])]
        carry = joined


def _cond_rule(params: dict[str, Any], states: list[Known]) -> list[State]:
    if isinstance(states[0], Follows):
        raise Undecided
    branches = [_follow(jaxpr.closed(branch), states[1:]) for branch in params["branches"]]
    results = branches[0]
    for branch in branches[1:]:
        results = [join(one, two) for one, two in zip(results, branch)]
    return results
