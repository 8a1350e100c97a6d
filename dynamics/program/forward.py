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


def _reverse_only(program: ClosedJaxpr) -> bool:
    inside = (body for e in program.jaxpr.eqns for held in e.params.values() for body in jaxpr.bodies(held))
    own = any(equation.primitive.name.startswith("custom_vjp") for equation in program.jaxpr.eqns)
    return own or any(map(_reverse_only, inside))
