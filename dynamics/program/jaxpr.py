"""Everything that depends on how a JAX version writes a program down: tracing, running one equation, finding bodies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.core import eval_jaxpr
from jax.extend.core import ClosedJaxpr, DebugInfo, Jaxpr, JaxprEqn, Literal

_OWN_RULE = {"custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr", "custom_vjp_call_jaxpr": "fun_jaxpr"}
_INLINED = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr"}


def trace(function: Callable, *args: Any) -> ClosedJaxpr:
    """The program of ``function`` at ``args`` (arrays or shapes), a function from flat arrays to flat arrays."""
    return jax.make_jaxpr(function)(*args)


def run(equation: JaxprEqn, values: Sequence[Any]) -> list[Any]:
    """One equation applied to values, custom derivative rules included."""
    variables = [atom for atom in equation.invars if not isinstance(atom, Literal)]
    unique = list(dict.fromkeys(variables))
    info = DebugInfo("equation", equation.primitive.name, ("",) * len(unique), ("",) * len(equation.outvars))
    single = Jaxpr((), unique, equation.outvars, [equation], equation.effects, info)
    given = {atom: value for atom, value in zip(equation.invars, values) if not isinstance(atom, Literal)}
    return list(eval_jaxpr(single, (), *[given[variable] for variable in unique]))


def evaluate(program: ClosedJaxpr, args: Sequence[Any]) -> list[Any]:
    """The program at flat arguments."""
    return list(eval_jaxpr(program.jaxpr, program.consts, *args))


def called(equation: JaxprEqn) -> ClosedJaxpr | None:
    """The body of a plain call (jit and its kin), which may be written in its caller's place; None for others."""
    name = _INLINED.get(equation.primitive.name)
    return None if name is None else closed(equation.params[name])


def rematerialised(equation: JaxprEqn) -> ClosedJaxpr | None:
    """The body of a ``jax.checkpoint``; None for other equations."""
    return closed(equation.params["jaxpr"]) if equation.primitive.name in ("remat2", "checkpoint", "remat") else None


def with_own_rule(equation: JaxprEqn) -> ClosedJaxpr | None:
    """The body of a ``custom_jvp`` or ``custom_vjp``; None for other equations."""
    name = _OWN_RULE.get(equation.primitive.name)
    return None if name is None else closed(equation.params[name])


def with_own_derivative(equation: JaxprEqn, values: Sequence[Any]) -> tuple[ClosedJaxpr, list[Any]] | None:
    """The body and operands of the value of a ``custom_jvp``, ``custom_vjp`` or ``custom_linear_solve``; else None.

    None too for a rule that asks which of its tangents are symbolic zeros.
    """
    held = equation.params
    if (body := with_own_rule(equation)) is not None:
        return None if held.get("symbolic_zeros") else (body, list(values))
    if equation.primitive.name != "custom_linear_solve":
        return None
    counts = held["const_lengths"]
    before, constants = counts.matvec + counts.vecmat, sum(counts)
    return closed(held["jaxprs"].solve), [*values[before : before + counts.solve], *values[constants:]]


def scan_counts(equation_params: dict[str, Any]) -> tuple[int, int]:
    """Numbers of a scan's constants and of its carried values, the first of its operands in this order."""
    if "num_consts" in equation_params:
        return equation_params["num_consts"], equation_params["num_carry"]
    consts, carried, _ = equation_params["ft_in"].unpack()  # from jax 0.12 on
    return len(list(consts)), len(list(carried))


def closed(jaxpr: Any) -> ClosedJaxpr:
    """``jaxpr`` with its constants."""
    return jaxpr if isinstance(jaxpr, ClosedJaxpr) else ClosedJaxpr(jaxpr, ())


def shape(atom: Any) -> tuple[int, ...]:
    """Shape of a program's variable or literal; () for what has none."""
    return tuple(getattr(atom.aval, "shape", ()))


def has(program: ClosedJaxpr, wanted: Callable[[JaxprEqn], bool]) -> bool:
    """True when a wanted equation stands anywhere in the program."""
    return any(
        wanted(equation)
        or any(has(body, wanted) for parameter in equation.params.values() for body in bodies(parameter))
        for equation in program.jaxpr.eqns
    )


def has_convolutions(program: ClosedJaxpr) -> bool:
    """True when a convolution stands anywhere in the program."""
    return has(program, lambda equation: equation.primitive.name == "conv_general_dilated")


def bodies(parameter: Any) -> list[ClosedJaxpr]:
    """The programs held in one parameter of an equation."""
    held = parameter if isinstance(parameter, tuple | list) else (parameter,)
    return [closed(item) for item in held if isinstance(item, ClosedJaxpr | Jaxpr)]
