"""Small programs over many lanes with the lanes' axis last: products as multiply-and-sum, rare branches as branches.

Under ``jax.vmap`` the lanes' axis leads, a product of small matrices becomes a batched one, which CPUs run a lane at a
time, and a branch computes both its sides at every step. Here each equation of the program is applied to arrays
``[..., lanes]`` instead, so that the innermost loop is the long one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import eval_jaxpr
from jax.custom_batching import custom_vmap
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal

from dynamics.program import jaxpr
from dynamics.program.sample_axis_rules import MAPPED
from dynamics.types import Array

SMALL = 4096
"""Multiplications of a product, at most: a program with a larger one is left to ``jax.vmap``, whose products are then
the faster ones."""
SAME_PARAMETERS = {"cumsum", "cumprod", "cummax", "cummin", "reduce_sum", "reduce_max", "reduce_min", "reduce_prod"}
SAME_PARAMETERS |= {"reduce_and", "reduce_or", "argmax", "argmin", "rev"}
"""Operations along numbered axes, which a further axis behind them does not concern."""

Held = tuple[Any, bool]
"""A value, and whether its last axis is that of the lanes; without it it is the same for all."""


def lanes_last(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, which under ``jax.vmap`` keeps the lanes' axis last; the same up to the order of sums.

    Args:
        function: of pytrees of arrays, e.g. a loop over many steps of a small network. It may close over traced values.
            It has no derivative.

    Returns:
        A function of the same arguments. Programs with a product of more than ``SMALL`` multiplications, for which
        this layout is the slower one, are mapped as usual.
    """

    def call(*arguments):
        leaves, structure = jax.tree.flatten(arguments)
        shape: Any = None

        def flat(*values):
            nonlocal shape
            out, shape = jax.tree.flatten(function(*jax.tree.unflatten(structure, values)))
            return out

        program = jaxpr.trace(flat, *leaves)
        body = program.jaxpr
        known = ClosedJaxpr(body.replace(constvars=(), invars=[*body.constvars, *body.invars]), ())
        plain = partial(eval_jaxpr, known.jaxpr, ())
        mapped = custom_vmap(lambda *values: plain(*values))

        @mapped.def_vmap
        def rule(lanes, batched, *values):
            if largest_product(known) > SMALL:
                out = jax.vmap(plain, [0 if own else None for own in batched])(*values)
                return out, [True] * len(out)
            held = [
                (jnp.moveaxis(value, 0, -1), True) if own else (value, False) for value, own in zip(values, batched)
            ]
            out = evaluate(known, held, lanes)
            return [jnp.moveaxis(v, -1, 0) if own else v for v, own in out], [own for _, own in out]

        return jax.tree.unflatten(shape, mapped(*program.consts, *leaves))

    return call


def largest_product(program: ClosedJaxpr) -> int:
    """Multiplications of its largest product or convolution (which counts as boundless), inner programs included."""
    found = 0
    for equation in program.jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            return 2**62
        if equation.primitive.name == "dot_general":
            (_, contract), _ = equation.params["dimension_numbers"]
            inner = math.prod(jaxpr.shape(equation.invars[1])[axis] for axis in contract)
            found = max(found, inner * math.prod(jaxpr.shape(equation.outvars[0])))
        for parameter in equation.params.values():
            found = max([found, *map(largest_product, jaxpr.bodies(parameter))])
    return found


def evaluate(program: ClosedJaxpr, values: Sequence[Held], lanes: int) -> list[Held]:
    """The program's results at values, of which some have the lanes' axis."""
    body = program.jaxpr
    env: dict[Any, Held] = {name: (value, False) for name, value in zip(body.constvars, program.consts)}
    env |= dict(zip(body.invars, values))

    def read(atom) -> Held:
        return (atom.val, False) if isinstance(atom, Literal) else env[atom]

    for equation in body.eqns:
        env.update(zip(equation.outvars, step(equation, [read(atom) for atom in equation.invars], lanes)))
    return [read(atom) for atom in body.outvars]


def step(equation: JaxprEqn, values: list[Held], lanes: int) -> list[Held]:
    """One equation."""
    name = equation.primitive.name
    inner = jaxpr.called(equation) or jaxpr.rematerialised(equation)
    if inner is None and name in ("custom_jvp_call", "custom_vjp_call"):
        inner = next(body for parameter in equation.params.values() for body in jaxpr.bodies(parameter))
    if inner is not None:
        return evaluate(inner, values, lanes)
    if not any(own for _, own in values):
        return [(value, False) for value in jaxpr.run(equation, [value for value, _ in values])]
    rule = RULES.get(name)
    found = None if rule is None else rule(equation, values, lanes)
    if found is None:
        axes = [-1 if own else None for _, own in values]
        found = jax.vmap(lambda *v: jaxpr.run(equation, v), axes, -1)(*(value for value, _ in values))
        return [(value, True) for value in found]
    return found


def spread(held: Held, shape: tuple[int, ...], lanes: int) -> Array:
    """A value of the program's shape, or a scalar, as ``[*shape, lanes]``."""
    value, own = held
    if not own:
        return jnp.broadcast_to(jnp.asarray(value)[..., None], (*shape, lanes))
    return value if value.ndim == len(shape) + 1 else jnp.broadcast_to(value, (*shape, lanes))


def elementwise(equation, values, lanes):
    shape = jaxpr.shape(equation.outvars[0])
    if any(jaxpr.shape(atom) not in ((), shape) for atom in equation.invars):
        return None
    return [(v, True) for v in jaxpr.run(equation, [spread(value, shape, lanes) for value in values])]


def along_axes(equation, values, lanes):
    return [(value, True) for value in jaxpr.run(equation, [values[0][0]])]


def broadcast(equation, values, lanes):
    shape, dimensions = equation.params["shape"], equation.params["broadcast_dimensions"]
    if len(values) > 1:
        return None
    return [(lax.broadcast_in_dim(values[0][0], (*shape, lanes), (*dimensions, len(shape))), True)]


def reshape(equation, values, lanes):
    if equation.params["dimensions"] is not None or len(values) > 1:
        return None
    return [(lax.reshape(values[0][0], (*equation.params["new_sizes"], lanes)), True)]


def squeeze(equation, values, lanes):
    return [(lax.squeeze(values[0][0], equation.params["dimensions"]), True)]


def transpose(equation, values, lanes):
    order = equation.params["permutation"]
    return [(lax.transpose(values[0][0], (*order, len(order))), True)]


def concatenate(equation, values, lanes):
    parts = [spread(value, jaxpr.shape(atom), lanes) for value, atom in zip(values, equation.invars)]
    return [(lax.concatenate(parts, equation.params["dimension"]), True)]


def slice_(equation, values, lanes):
    low, high, strides = (equation.params[name] for name in ("start_indices", "limit_indices", "strides"))
    steps = None if strides is None else (*strides, 1)
    return [(lax.slice(values[0][0], (*low, 0), (*high, lanes), steps), True)]


def dynamic_slice(equation, values, lanes):
    (operand, own), *start = values
    if not own or any(moving for _, moving in start) or len(start) != operand.ndim - 1:
        return None
    at = [*(index for index, _ in start), jnp.zeros_like(start[0][0])] if start else [0]
    return [(lax.dynamic_slice(operand, at, (*equation.params["slice_sizes"], lanes)), True)]


def dot_general(equation, values, lanes):
    """``sum_k lhs[b, m, 1, k] rhs[b, 1, n, k]``."""
    contract, batch = equation.params["dimension_numbers"]
    shapes = [jaxpr.shape(atom) for atom in equation.invars]
    free = [[i for i in range(len(s)) if i not in (*c, *b)] for s, c, b in zip(shapes, contract, batch)]
    parts = []
    for side, (value, own) in enumerate(values):
        order = [*contract[side], *batch[side], *free[side]]
        value = jnp.transpose(value, [*order, len(order)] if own else order)
        value = value if own else value[..., None]
        at = len(contract[side]) + len(batch[side]) + (0 if side else len(free[0]))
        parts.append(jnp.expand_dims(value, tuple(range(at, at + len(free[1 - side])))))
    kind = equation.params["preferred_element_type"]
    product = parts[0] * parts[1]
    found = jnp.sum(product, tuple(range(len(contract[0]))))
    return [(found if kind is None else found.astype(kind), True)]


def scan(equation, values, lanes):
    """Carried values that come to differ between lanes are found by tracing the body until none is added."""
    consts, count = jaxpr.scan_counts(equation.params)
    fixed, start, rows = values[:consts], values[consts : consts + count], values[consts + count :]
    body = jaxpr.closed(equation.params["jaxpr"])
    shapes = [jaxpr.shape(atom) for atom in equation.invars[consts : consts + count]]
    moving, of_rows = [own for _, own in start], []

    def once(carry, row):
        held = [*fixed, *zip(carry, moving), *zip(row, (own for _, own in rows))]
        out = evaluate(body, held, lanes)
        after = [own for _, own in out[:count]]
        of_rows[:] = [own for _, own in out[count:]]
        if any(new and not old for new, old in zip(after, moving)):
            raise _More([new or old for new, old in zip(after, moving)])
        carried = [spread(one, shape, lanes) if own else one[0] for one, shape, own in zip(out, shapes, moving)]
        return carried, [value for value, _ in out[count:]]

    while True:
        carry = [spread(one, shape, lanes) if own else one[0] for one, shape, own in zip(start, shapes, moving)]
        try:
            how = {name: equation.params[name] for name in ("length", "reverse", "unroll")}
            carry, out = lax.scan(once, carry, [value for value, _ in rows], **how)
            return [*zip(carry, moving), *zip(out, of_rows)]
        except _More as found:
            moving = found.args[0]


class _More(Exception):
    """Further carried values differ between lanes."""


def cond(equation, values, lanes):
    """A branch that no lane takes is not computed; where some take it, both are, as under ``jax.vmap``."""
    branches = [jaxpr.closed(branch) for branch in equation.params["branches"]]
    (index, moving), *operands = values
    shapes = [jaxpr.shape(atom) for atom in equation.outvars]
    if moving and len(branches) > 2:
        return None
    flags = [own for _, own in operands]

    def branch(program, *given):
        out = evaluate(program, list(zip(given, flags)), lanes)
        return [spread(one, shape, lanes) for one, shape in zip(out, shapes)]

    given = [value for value, _ in operands]
    if not moving:
        return [(v, True) for v in lax.switch(index, [partial(branch, one) for one in branches], *given)]
    chosen = index.astype(bool)

    def both(*given):
        sides = [branch(one, *given) for one in branches]
        return [jnp.where(chosen, yes, no) for no, yes in zip(*sides)]

    found = lax.cond(jnp.any(chosen), both, partial(branch, branches[0]), *given)
    return [(value, True) for value in found]


RULES: dict[str, Callable[[JaxprEqn, list[Held], int], list[Held] | None]] = {
    **dict.fromkeys(MAPPED, elementwise),
    **dict.fromkeys(SAME_PARAMETERS, along_axes),
    "broadcast_in_dim": broadcast,
    "reshape": reshape,
    "squeeze": squeeze,
    "transpose": transpose,
    "concatenate": concatenate,
    "slice": slice_,
    "dynamic_slice": dynamic_slice,
    "dot_general": dot_general,
    "scan": scan,
    "cond": cond,
}
