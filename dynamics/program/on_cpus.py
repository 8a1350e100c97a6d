"""Programs as XLA on CPUs needs them: convolutions in loops as shifts, factorisations and transforms one at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal

from dynamics.backend import by_backend
from dynamics.program import jaxpr
from dynamics.program.one_matrix_at_a_time import in_turn, of_several_matrices
from dynamics.program.one_row_at_a_time import of_several_rows, rows_in_turn
from dynamics.program.shifted_convolutions import shiftable, shifted

_F = TypeVar("_F", bound=Callable)


class Rule(NamedTuple):
    """Which equations are written otherwise, in loops or everywhere, and how."""

    applies: Callable[[JaxprEqn], bool]
    instead: Callable[..., list[Any]]
    in_loops: bool


CONVOLUTIONS = Rule(shiftable, lambda equation, *values: [shifted(equation, *values)], True)
FACTORISATIONS = Rule(of_several_matrices, in_turn, False)
TRANSFORMS = Rule(of_several_rows, rows_in_turn, False)
Rules = tuple[Rule, ...]


def shifted_convolutions(apply: _F) -> _F:
    """The same function with every convolution as shifts of its input and one matrix product.

    XLA on CPU runs a convolution inside ``scan``, ``fori_loop`` or ``while_loop`` some ten times slower than outside;
    ``simulate``, ``study``, observables and the Krylov methods of this package therefore do this to their own loops
    there, after differentiation (``quick_loops``). This function is for one's own loops.

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
    return _rewritten(apply, (CONVOLUTIONS,), in_loop=True)


def quick_loops(function: _F, *, is_body: bool = False) -> _F:
    """``function`` as XLA on CPUs needs it, where JAX runs there; otherwise as it is.

    After differentiation and after ``vmap``: the convolutions in its loops are written as ``shifted_convolutions`` has
    them, and factorisations of several matrices and Fourier transforms of several rows (those of the lanes of a vmap)
    take one at a time: see the modules ``one_matrix_at_a_time`` and ``one_row_at_a_time``. What stands in a
    ``custom_vmap`` or ``shard_map`` of the function stays as it is.

    Args:
        function: of arrays and trees of them alone.
        is_body: the function itself is called in a loop.
    """

    @functools.wraps(function)
    def call(*args):
        outside = is_body and not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(args))
        if outside or by_backend(False, True):  # a loop's body meets traced values alone
            return function(*args)
        return _rewritten(function, (CONVOLUTIONS, FACTORISATIONS, TRANSFORMS), in_loop=is_body)(*args)

    return call  # pyright: ignore[reportReturnType]


def _rewritten(function: _F, rules: Rules, *, in_loop: bool) -> _F:
    @functools.wraps(function)
    def run(*args, **kwargs):
        program, shapes = jax.make_jaxpr(lambda args: function(*args, **kwargs), return_shape=True)(args)
        leaves = jax.tree.leaves(args)
        changes = _concerns(program, rules)
        outputs = _interpret(program, leaves, rules, in_loop=in_loop) if changes else jaxpr.evaluate(program, leaves)
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return run  # pyright: ignore[reportReturnType]


def _concerns(program: ClosedJaxpr, rules: Rules) -> bool:
    """Whether a rule applies anywhere in the program."""
    return jaxpr.has(program, lambda equation: any(rule.applies(equation) for rule in rules))


def _interpret(program: ClosedJaxpr, args: Sequence[Any], rules: Rules, *, in_loop: bool) -> list[Any]:
    env = dict(zip(program.jaxpr.constvars, program.consts)) | dict(zip(program.jaxpr.invars, args))

    def read(atom):
        return atom.val if isinstance(atom, Literal) else env[atom]

    for equation in program.jaxpr.eqns:
        results = _step(equation, [read(atom) for atom in equation.invars], rules, in_loop=in_loop)
        env.update(zip(equation.outvars, results))
    return [jnp.asarray(atom.val) if isinstance(atom, Literal) else env[atom] for atom in program.jaxpr.outvars]


def _step(equation: JaxprEqn, values: list[Any], rules: Rules, *, in_loop: bool) -> list[Any]:
    for rule in rules:
        if (in_loop or not rule.in_loops) and rule.applies(equation):
            return rule.instead(equation, *values)
    if not any(_concerns(body, rules) for held in equation.params.values() for body in jaxpr.bodies(held)):
        return jaxpr.run(equation, values)
    if (body := jaxpr.called(equation)) is not None:
        return _interpret(body, values, rules, in_loop=in_loop)
    if (body := jaxpr.rematerialised(equation)) is not None:
        return _interpret(body, lax.optimization_barrier(values), rules, in_loop=in_loop)
    if jaxpr.with_own_derivative(equation, values) is not None:
        return _with_its_derivative(equation, values, rules, in_loop=in_loop)
    if equation.primitive.name == "cond":
        return _cond(equation.params, values, rules, in_loop=in_loop)
    loop = {"scan": _scan, "while": _while}.get(equation.primitive.name, lambda *_: jaxpr.run(equation, values))
    return loop(equation.params, values, rules)


def _with_its_derivative(equation: JaxprEqn, values: list[Any], rules: Rules, *, in_loop: bool) -> list[Any]:
    """The value as the rules write it, derivatives as the equation has them."""

    def plain(*values):
        return jaxpr.run(equation, values)

    def value(*values):
        body, operands = jaxpr.with_own_derivative(equation, values)  # pyright: ignore[reportGeneralTypeIssues]
        return _interpret(body, operands, rules, in_loop=in_loop)

    if equation.primitive.name.startswith("custom_vjp"):
        call = jax.custom_vjp(value)
        call.defvjp(lambda *values: jax.vjp(plain, *values), lambda pull, along: pull(along))
    else:
        call = jax.custom_jvp(value)
        call.defjvp(lambda at, along: jax.jvp(plain, at, along))
    return call(*values)


def _scan(settings: dict[str, Any], values: list[Any], rules: Rules) -> list[Any]:
    consts, carried = jaxpr.scan_counts(settings)
    body, fixed = jaxpr.closed(settings["jaxpr"]), values[:consts]

    def one(carry, given):
        found = _interpret(body, [*fixed, *carry, *given], rules, in_loop=True)
        return found[:carried], found[carried:]

    start, rounds = values[consts : consts + carried], values[consts + carried :]
    options = {name: settings[name] for name in ("length", "reverse", "unroll")}
    carry, stacked = lax.scan(one, start, rounds, **options)
    return [*carry, *stacked]


def _while(settings: dict[str, Any], values: list[Any], rules: Rules) -> list[Any]:
    """Under ``vmap`` the condition is one for each lane: the loop goes on while any holds, and moves those lanes."""
    of_cond, of_body = settings["cond_nconsts"], settings["body_nconsts"]
    judged, fixed, start = values[:of_cond], values[of_cond : of_cond + of_body], values[of_cond + of_body :]
    each = bool(jaxpr.shape(jaxpr.closed(settings["cond_jaxpr"]).jaxpr.outvars[0]))

    def goes(carry):
        return _interpret(jaxpr.closed(settings["cond_jaxpr"]), [*judged, *carry], rules, in_loop=True)[0]

    def moved(carry):
        return _interpret(jaxpr.closed(settings["body_jaxpr"]), [*fixed, *carry], rules, in_loop=True)

    def some_moved(carry):
        lanes = goes(carry)

        def of_lanes(new, old):
            return jnp.where(jnp.reshape(lanes, lanes.shape + (1,) * (new.ndim - lanes.ndim)), new, old)

        return [of_lanes(new, old) for new, old in zip(moved(carry), carry)]

    if each:
        return lax.while_loop(lambda carry: jnp.any(goes(carry)), some_moved, start)
    return lax.while_loop(goes, moved, start)


def _cond(settings: dict[str, Any], values: list[Any], rules: Rules, *, in_loop: bool) -> list[Any]:
    def branch(body: ClosedJaxpr) -> Callable:
        return lambda *operands: _interpret(body, operands, rules, in_loop=in_loop)

    return lax.switch(values[0], [branch(jaxpr.closed(body)) for body in settings["branches"]], *values[1:])
