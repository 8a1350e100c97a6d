"""Products with the Jacobian where a custom derivative rules forward mode out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr

from dynamics.program import jaxpr
from dynamics.types import PyTree


def pushed(f: Callable[[PyTree], PyTree], at: PyTree, along: PyTree) -> tuple[Any, Any]:
    """``(f, J along)`` by ``jax.jvp``; where a ``custom_vjp`` rules that out by the transpose of its reverse mode.

    The rule of a ``custom_vjp`` is taken at its word, linear in its cotangent.
    """
    if not _reverse_only(jaxpr.trace(f, at)):
        return jax.jvp(f, (at,), (along,))
    value, pull = jax.vjp(f, at)
    push = jax.vjp(lambda cotangent: pull(cotangent)[0], jax.tree.map(jnp.zeros_like, value))[1]
    return value, push(along)[0]


def linearized(f: Callable[[PyTree], PyTree], at: PyTree) -> tuple[Any, Callable, Callable]:
    """``(f, v -> J v, c -> J^T c)``, the program run once, with ``custom_vjp`` as in ``pushed``."""
    if not _reverse_only(jaxpr.trace(f, at)):
        value, push = jax.linearize(f, at)
        transposed = jax.linear_transpose(push, at)
        return value, push, lambda c: transposed(c)[0]
    value, pull = jax.vjp(f, at)
    push = jax.vjp(lambda cotangent: pull(cotangent)[0], jax.tree.map(jnp.zeros_like, value))[1]
    return value, lambda v: push(v)[0], lambda c: pull(c)[0]


def _reverse_only(program: ClosedJaxpr) -> bool:
    inside = (body for e in program.jaxpr.eqns for held in e.params.values() for body in jaxpr.bodies(held))
    own = any(equation.primitive.name.startswith("custom_vjp") for equation in program.jaxpr.eqns)
    return own or any(map(_reverse_only, inside))
