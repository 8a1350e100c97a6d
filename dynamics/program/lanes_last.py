"""Small programs over many lanes with the lanes' axis last: products as multiply-and-sum, rare branches as branches.

Under ``jax.vmap`` the lanes' axis leads, a product of small matrices becomes a batched one, which CPUs run a lane at a
time, and a branch computes both its sides at every step. Here each equation of the program is applied to arrays
``[..., lanes]`` instead, so that the innermost loop is the long one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import eval_jaxpr
from jax.custom_batching import custom_vmap
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from dynamics.program import jaxpr
from dynamics.program.sample_axis_rules import MAPPED
from dynamics.types import Array

FEW = 8
"""Smallest size of a product (rows, columns, terms of a sum), at most, for which it is a multiply-and-sum: a larger one
reads each number so often that a matrix product is the faster, and its lanes must lead."""
BLOCK = 32
"""Lanes side by side, at most: more leave the cache, and a step of them is divided among threads, which then wait for
one another at every one."""
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
        A function of the same arguments. Programs whose loops hold matrix products of more than ``FEW`` rows, columns
        and terms, or convolutions, are mapped as usual: for them this layout is the slower one.
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
            if multiplies_matrices(known):
                out = jax.vmap(plain, [0 if own else None for own in batched])(*values)
                return out, [True] * len(out)
            return in_blocks(known, lanes, batched, values)

        return jax.tree.unflatten(shape, mapped(*program.consts, *leaves))

    return call


def in_blocks(program: ClosedJaxpr, lanes: int, batched: Sequence[bool], values: Sequence[Any]):
    """``(results, whether they lead with the lanes' axis)``, of at most ``BLOCK`` lanes at a time."""
    blocks = -(-lanes // BLOCK)
    size = -(-lanes // blocks)
    flags: list[bool] = []

    def block(rows):
        left = iter(rows)
        held = [(jnp.moveaxis(next(left), 0, -1), True) if own else (v, False) for v, own in zip(values, batched)]
        out = evaluate(program, held, size)
        flags[:] = [own for _, own in out]
        return [jnp.moveaxis(v, -1, 0) if own else v for v, own in out]

    rows = [value for value, own in zip(values, batched) if own]
    if blocks == 1:
        return block(rows), flags
    places = jnp.minimum(jnp.arange(blocks * size), lanes - 1).reshape(blocks, size)
    out = lax.map(block, [value[places] for value in rows])
    return [v.reshape(-1, *v.shape[2:])[:lanes] if own else v[0] for v, own in zip(out, flags)], flags


def multiplies_matrices(program: ClosedJaxpr, within: bool = False) -> bool:
    """Whether a loop of the program (or the program, ``within`` one) holds a convolution or a product of matrices."""
    for equation in program.jaxpr.eqns:
        name = equation.primitive.name
        if within and (name == "conv_general_dilated" or (name == "dot_general" and smallest_size(equation) > FEW)):
            return True
        inside = within or name in ("scan", "while")
        if any(multiplies_matrices(body, inside) for held in equation.params.values() for body in jaxpr.bodies(held)):
            return True
    return False


def smallest_size(product: JaxprEqn) -> int:
    """The least of rows, columns and terms of a product."""
    (contract, _), (batch, _) = product.params["dimension_numbers"]
    left, out = (jaxpr.shape(atom) for atom in (product.invars[0], product.outvars[0]))
    terms, batches = (math.prod(left[axis] for axis in axes) for axes in (contract, batch))
    rows = math.prod(left) // max(terms * batches, 1)
    return min(terms, rows, math.prod(out) // max(rows * batches, 1))


def evaluate(program: ClosedJaxpr, values: Sequence[Held], lanes: int) -> list[Held]:
    """The program's results at values, of which some have the lanes' axis."""
    body = program.jaxpr
    env: dict[Any, Held] = dict(zip(body.constvars, ((value, False) for value in program.consts)))
    env |= dict(zip(body.invars, values))

    def read(atom) -> Held:
        return (atom.val, False) if isinstance(atom, Literal) else env[atom]

    turned = transposed_products(body)
    for equation in body.eqns:
        given = [read(atom) for atom in equation.invars]
        product = next((turned[name] for name in equation.outvars if name in turned), None)
        if product is not None and any(own for _, own in given):
            out = multiply_and_sum(equation, given, product)
        elif equation.primitive.name == "transpose" and equation.invars[0] in turned and given[0][1]:
            out = given
        else:
            out = step(equation, given, lanes)
        env.update(zip(equation.outvars, out))
    return [read(atom) for atom in body.outvars]


def transposed_products(body: Jaxpr) -> dict[Any, tuple[int, ...]]:
    """Products, by their variable, that are only read transposed, as gradients of weights are: they are made so."""
    uses = Counter(atom for equation in body.eqns for atom in equation.invars if not isinstance(atom, Literal))
    uses.update(atom for atom in body.outvars if not isinstance(atom, Literal))
    named = [equation for equation in body.eqns if equation.primitive.name == "dot_general"]
    products = {equation.outvars[0] for equation in named if smallest_size(equation) <= FEW}
    return {
        equation.invars[0]: equation.params["permutation"]
        for equation in body.eqns
        if equation.primitive.name == "transpose" and equation.invars[0] in products and uses[equation.invars[0]] == 1
    }


def step(equation: JaxprEqn, values: list[Held], lanes: int) -> list[Held]:
    """One equation."""
    name = equation.primitive.name
    inner = jaxpr.called(equation) or jaxpr.rematerialised(equation) or jaxpr.with_own_rule(equation)
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
    return None if smallest_size(equation) > FEW else multiply_and_sum(equation, values)


def multiply_and_sum(equation: JaxprEqn, values: list[Held], order: Sequence[int] | None = None) -> list[Held]:
    """``sum_k lhs[k, b, m, 1] rhs[k, b, 1, n]``, the axes of the result in another ``order`` where one is given."""
    contract, batch = equation.params["dimension_numbers"]
    shapes = [jaxpr.shape(atom) for atom in equation.invars]
    free = [[i for i in range(len(s)) if i not in (*c, *b)] for s, c, b in zip(shapes, contract, batch)]
    summed, ndim = len(contract[0]), len(jaxpr.shape(equation.outvars[0]))
    order = range(ndim) if order is None else order
    parts = []
    for side, (value, own) in enumerate(values):
        axes = [*contract[side], *batch[side], *free[side]]
        value = jnp.transpose(value, [*axes, len(axes)]) if own else jnp.transpose(value, axes)[..., None]
        at = summed + len(batch[side]) + (0 if side else len(free[0]))
        value = jnp.expand_dims(value, tuple(range(at, at + len(free[1 - side]))))
        parts.append(jnp.transpose(value, [*range(summed), *(summed + i for i in order), summed + ndim]))
    kind = equation.params["preferred_element_type"]
    found = jnp.sum(parts[0] * parts[1], tuple(range(summed)))
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
