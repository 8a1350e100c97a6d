"""Roots of scalar equations, entry by entry, with derivatives by the implicit function theorem."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Float, Shaped

from dynamics.types import Array


def bisect(
    fn: Callable[[Array], Array], low: Float[Array, "*n"], high: Float[Array, "*n"], iterations: int = 64
) -> Float[Array, "*n"]:
    """A root of ``fn`` between ``low`` and ``high``, both positive, by halving their logarithmic distance.

    Args:
        fn: entry by entry; at least 0 at ``low``, at most 0 at ``high``.
        iterations: halvings.

    Returns:
        The root, not differentiable: see ``implicit``. Where ``fn`` keeps its sign, the end that it points to.
    """

    def halve(_, bracket):
        low, high = bracket
        middle = jnp.sqrt(low) * jnp.sqrt(high)
        right = fn(middle) > 0
        return jnp.where(right, middle, low), jnp.where(right, high, middle)

    low, high = jax.lax.stop_gradient((low, high))
    low, high = jax.lax.fori_loop(0, iterations, halve, (low, high))
    return jax.lax.stop_gradient(jnp.sqrt(low) * jnp.sqrt(high))


def implicit(fn: Callable[..., Array], root: Float[Array, "*n"], *args: Shaped[Array, ...]) -> Float[Array, "*n"]:
    """``root`` with the derivative ``-(dfn/dargs) / (dfn/droot)`` of the solution of ``fn(root, *args) = 0``.

    The derivative is 0 where ``dfn/droot`` vanishes, and there does not exist.
    """
    root = jax.lax.stop_gradient(root)
    fixed = jax.lax.stop_gradient(args)
    slope = jax.jvp(lambda x: fn(x, *fixed), (root,), (jnp.ones_like(root),))[1]
    usable = jnp.isfinite(slope) & (slope != 0)
    value = fn(root, *args)
    moved = (value - jax.lax.stop_gradient(value)) / jnp.where(usable, slope, 1.0)
    return root - jnp.where(usable, moved, 0.0)
