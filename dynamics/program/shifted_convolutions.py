"""Convolutions that stay fast inside loops: a program's convolutions written as shifts and matrix products."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal

from dynamics.program import jaxpr
from dynamics.types import Array

_F = TypeVar("_F", bound=Callable)
_MOST_SHIFTS = 128  # of one convolution; beyond, the program would grow too long
_COLUMNS = 2**25  # bytes of shifted inputs laid side by side for one product


def shifted_convolutions(apply: _F) -> _F:
    """The same function with every convolution as shifts of its input and one matrix product.

    XLA on CPU runs a convolution inside ``scan``, ``fori_loop`` or ``while_loop`` some ten times slower than outside;
    ``simulate``, ``study``, observables and the Krylov methods of this package therefore do this to their own loops
    there, after differentiation (``dynamics.program.quick_loops``). This function is for one's own loops.

    Args:
        apply: any JAX function, e.g. ``model.apply`` or its gradient. Depthwise convolutions, and those whose filter
            and output both have more than 128 places, stay as they are.

    Returns:
        A function of the same arguments, equal up to rounding; traced anew at each call.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dynamics import stax
        >>> model = stax.Conv(4, (3, 3), None, "SAME")
        >>> _, params = model.init(jax.random.key(0), (2, 5, 5, 3))
        >>> x = jnp.ones((2, 5, 5, 3))
        >>> bool(jnp.allclose(shifted_convolutions(model.apply)(params, x), model.apply(params, x), atol=1e-5))
        True
    """
    return _rewritten(apply, in_loop=True)


def quick_loops(function: _F, *, is_body: bool = False) -> _F:
    """``function`` with ``shifted_convolutions`` in its loops, where JAX runs on CPUs; otherwise as it is.

    Args:
        function: of arrays and trees of them alone.
        is_body: the function itself is called in a loop.
    """

    @functools.wraps(function)
    def call(*args):
        outside = is_body and not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(args))
        if outside or jax.default_backend() != "cpu":  # a loop's body meets traced values alone
            return function(*args)
        return _rewritten(function, in_loop=is_body)(*args)

    return call  # pyright: ignore[reportReturnType]


def _rewritten(function: _F, *, in_loop: bool) -> _F:
    @functools.wraps(function)
    def run(*args, **kwargs):
        program, shapes = jax.make_jaxpr(lambda args: function(*args, **kwargs), return_shape=True)(args)
        leaves = jax.tree.leaves(args)
        changes = jaxpr.has_convolutions(program)
        outputs = _interpret(program, leaves, in_loop=in_loop) if changes else jaxpr.evaluate(program, leaves)
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return run  # pyright: ignore[reportReturnType]


def _interpret(program: ClosedJaxpr, args: Sequence[Any], *, in_loop: bool) -> list[Any]:
    env = dict(zip(program.jaxpr.constvars, program.consts)) | dict(zip(program.jaxpr.invars, args))

    def read(atom):
        return atom.val if isinstance(atom, Literal) else env[atom]

    for equation in program.jaxpr.eqns:
        results = _step(equation, [read(atom) for atom in equation.invars], in_loop=in_loop)
        env.update(zip(equation.outvars, results))
    return [read(atom) for atom in program.jaxpr.outvars]


def _step(equation: JaxprEqn, values: list[Any], *, in_loop: bool) -> list[Any]:
    if in_loop and _shiftable(equation):
        return [_shifted(equation, *values)]
    if not any(jaxpr.has_convolutions(body) for held in equation.params.values() for body in jaxpr.bodies(held)):
        return jaxpr.run(equation, values)
    if (body := jaxpr.called(equation)) is not None:
        return _interpret(body, values, in_loop=in_loop)
    if (body := jaxpr.rematerialised(equation)) is not None:
        return _interpret(body, lax.optimization_barrier(values), in_loop=in_loop)
    if equation.primitive.name == "cond":
        return _cond(equation.params, values, in_loop=in_loop)
    loop = {"scan": _scan, "while": _while}.get(equation.primitive.name, lambda *_: jaxpr.run(equation, values))
    return loop(equation.params, values)


def _scan(settings: dict[str, Any], values: list[Any]) -> list[Any]:
    consts, carried = jaxpr.scan_counts(settings)
    body, fixed = jaxpr.closed(settings["jaxpr"]), values[:consts]

    def one(carry, given):
        found = _interpret(body, [*fixed, *carry, *given], in_loop=True)
        return found[:carried], found[carried:]

    start, rounds = values[consts : consts + carried], values[consts + carried :]
    options = {name: settings[name] for name in ("length", "reverse", "unroll")}
    carry, stacked = lax.scan(one, start, rounds, **options)
    return [*carry, *stacked]


def _while(settings: dict[str, Any], values: list[Any]) -> list[Any]:
    of_cond, of_body = settings["cond_nconsts"], settings["body_nconsts"]
    judged, fixed, start = values[:of_cond], values[of_cond : of_cond + of_body], values[of_cond + of_body :]

    def going(carry):
        return _interpret(jaxpr.closed(settings["cond_jaxpr"]), [*judged, *carry], in_loop=True)[0]

    def body(carry):
        return _interpret(jaxpr.closed(settings["body_jaxpr"]), [*fixed, *carry], in_loop=True)

    return lax.while_loop(going, body, start)


def _cond(settings: dict[str, Any], values: list[Any], *, in_loop: bool) -> list[Any]:
    def branch(body: ClosedJaxpr) -> Callable:
        return lambda *operands: _interpret(body, operands, in_loop=in_loop)

    return lax.switch(values[0], [branch(jaxpr.closed(body)) for body in settings["branches"]], *values[1:])


def _batched(items: Sequence[int], size: int) -> list[Sequence[int]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _shiftable(equation: JaxprEqn) -> bool:
    if equation.primitive.name != "conv_general_dilated":
        return False
    settings = equation.params
    _, rhs, out = settings["dimension_numbers"]
    weight, result = jaxpr.shape(equation.invars[1]), jaxpr.shape(equation.outvars[0])
    shifts = min(math.prod(weight[i] for i in rhs[2:]), math.prod(result[i] for i in out[2:]))
    depthwise = settings["feature_group_count"] > 1 and weight[rhs[1]] == 1
    return 0 < shifts <= _MOST_SHIFTS and not depthwise and 0 not in (*weight, *result)


def _shifted(equation: JaxprEqn, inputs: Array, weight: Array) -> Array:
    """``y[p] = sum_d x[s p + r d] W[d]``: shifts of x by d, or, where the output is smaller than W, by p."""
    settings = equation.params
    lhs, rhs, out = settings["dimension_numbers"]
    features, batches = settings["feature_group_count"], settings["batch_group_count"]
    groups = features * batches  # one of them is 1
    x = jnp.transpose(inputs, (lhs[0], *lhs[2:], lhs[1]))  # [n, ..., c]
    w = jnp.transpose(weight, (*rhs[2:], rhs[1], rhs[0]))  # [d, c, o]
    margins = [(low, high, step - 1) for (low, high), step in zip(settings["padding"], settings["lhs_dilation"])]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *margins, (0, 0, 0)])
    n, spaces, c, o = x.shape[0] // batches, x.shape[1:-1], w.shape[-2], w.shape[-1] // groups
    x = jnp.reshape(x, (batches, n, *spaces, features, c))
    x = jnp.reshape(jnp.moveaxis(x, -2, 1), (groups, n, *spaces, c))  # [g, n, ..., c]
    filters = w.shape[:-2]
    w = jnp.moveaxis(jnp.reshape(w, (*filters, c, groups, o)), -2, 0)  # [g, d, c, o]
    places = [jaxpr.shape(equation.outvars[0])[axis] for axis in out[2:]]
    steps, spreads = settings["window_strides"], settings["rhs_dilation"]
    options = {name: settings[name] for name in ("precision", "preferred_element_type")}
    by_filter = math.prod(filters) <= math.prod(places)
    moved, kept = (filters, places) if by_filter else (places, filters)
    strides, widths = (spreads, steps) if by_filter else (steps, spreads)
    whole = slice(None)

    def window(at: Sequence[int]) -> Array:
        """Of ``x``, what one shift meets: ``[g, n, ..., c]``."""
        cut = (slice(a * s, a * s + (k - 1) * t + 1, t) for a, s, k, t in zip(at, strides, kept, widths))
        return x[(whole, whole, *cut)]

    shifts = list(itertools.product(*map(range, moved)))
    w = jnp.reshape(w, (groups, math.prod(filters), c, o))
    if by_filter:
        bytes_each = groups * n * math.prod(places) * c * x.dtype.itemsize
        parts = []
        for some in _batched(range(len(shifts)), max(_COLUMNS // max(bytes_each, 1), 1)):
            columns = jnp.concatenate([window(shifts[i]) for i in some], -1)
            columns = jnp.reshape(columns, (groups, -1, len(some) * c))  # [g, n p, d c]
            parts.append(jnp.matmul(columns, jnp.reshape(w[:, some[0] : some[-1] + 1], (groups, -1, o)), **options))
        found = functools.reduce(jnp.add, parts)
    else:
        lines = jnp.reshape(w, (groups, -1, o))
        found = jnp.stack([jnp.matmul(jnp.reshape(window(at), (groups, n, -1)), lines, **options) for at in shifts], 2)
    found = jnp.reshape(found, (groups, n, *places, o))
    found = jnp.reshape(jnp.moveaxis(found, 0, -2), (n, *places, groups * o))
    held = {out[0]: 0, out[1]: len(out) - 1, **{axis: i + 1 for i, axis in enumerate(out[2:])}}
    return jnp.transpose(found, [held[axis] for axis in range(len(out))])
