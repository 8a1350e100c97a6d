"""Convolutions that stay fast inside loops: a program's convolutions written as shifts and matrix products."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal

from dynamics.program import jaxpr
from dynamics.types import Array


def shifted_convolutions(apply: Callable[..., Any]) -> Callable[..., Any]:
    """The same function with every plain convolution as ``sum_d x[p + d] W[d]``, one matrix product a filter offset.

    XLA on CPU runs a convolution inside ``scan``, ``fori_loop`` or ``while_loop`` some ten times slower than outside;
    ``simulate`` and every Krylov method are such loops. On GPU and TPU leave the network as it is.

    Args:
        apply: any JAX function, e.g. ``model.apply``. Grouped and transposed (input-dilated) convolutions stay as they
            are, and so do those inside the function's own loops, branches and checkpoints.

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

    def run(*args, **kwargs):
        program, shapes = jax.make_jaxpr(lambda args: apply(*args, **kwargs), return_shape=True)(args)
        outputs = _interpret(program, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return run


def _interpret(program: ClosedJaxpr, args: Sequence[Any]) -> list[Any]:
    env = dict(zip(program.jaxpr.constvars, program.consts)) | dict(zip(program.jaxpr.invars, args))

    def read(atom):
        return atom.val if isinstance(atom, Literal) else env[atom]

    for equation in program.jaxpr.eqns:
        values = [read(atom) for atom in equation.invars]
        body = jaxpr.called(equation)
        if _plain(equation):
            results = [_shifted(equation, *values)]
        elif body is not None:
            results = _interpret(body, values)
        else:
            results = jaxpr.run(equation, values)
        env.update(zip(equation.outvars, results))
    return [read(atom) for atom in program.jaxpr.outvars]


def _plain(equation: JaxprEqn) -> bool:
    if equation.primitive.name != "conv_general_dilated":
        return False
    settings = equation.params
    groups = settings["feature_group_count"], settings["batch_group_count"]
    return groups == (1, 1) and all(step == 1 for step in settings["lhs_dilation"])


def _shifted(equation: JaxprEqn, inputs: Array, weight: Array) -> Array:
    settings, (result,) = equation.params, equation.outvars
    lhs, rhs, out = settings["dimension_numbers"]
    x = jnp.transpose(inputs, (lhs[0], *lhs[2:], lhs[1]))
    w = jnp.transpose(weight, (*rhs[2:], rhs[1], rhs[0]))
    margins = [(0, 0), *settings["padding"], (0, 0)]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(low, high, 0) for low, high in margins])
    sizes = [jaxpr.shape(result)[axis] for axis in out[2:]]
    total = None
    for offset in itertools.product(*(range(size) for size in w.shape[:-2])):
        window = tuple(
            slice(at * spread, at * spread + (size - 1) * step + 1, step)
            for at, spread, size, step in zip(offset, settings["rhs_dilation"], sizes, settings["window_strides"])
        )
        part = jnp.matmul(
            x[(slice(None), *window)],
            w[offset],
            precision=settings["precision"],
            preferred_element_type=settings["preferred_element_type"],
        )
        total = part if total is None else total + part
    assert total is not None  # a filter has at least one offset
    held = {out[0]: 0, out[1]: len(out) - 1, **{axis: i + 1 for i, axis in enumerate(out[2:])}}
    return jnp.transpose(total, [held[axis] for axis in range(len(out))])
