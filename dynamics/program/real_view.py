"""Parameters and outputs as real numbers, leaf by leaf or as one vector: a complex leaf is two real ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Float

from dynamics.program.forward import linearized
from dynamics.types import Array, Params, PyTree

Where = Callable[[Any, Array], bool]


def is_complex(leaf: Any) -> bool:
    """Whether a leaf, array or shape, is complex."""
    return jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating)


def split(leaf: Array) -> list[Array]:
    """``[leaf]``, or ``[re, im]`` of a complex one."""
    return [jnp.real(leaf), jnp.imag(leaf)] if is_complex(leaf) else [leaf]


def merge(parts: Sequence[Array]) -> Array:
    """What ``split`` took apart."""
    return lax.complex(*parts) if len(parts) == 2 else parts[0]


def gradient(jax_gradient: PyTree) -> PyTree:
    """``dL/dRe + i dL/dIm``, along which L rises steepest, from what ``jax.grad`` gives, its conjugate."""
    return jax.tree.map(jnp.conj, jax_gradient)


def wide(array: Array) -> Array:
    """At least float32: half precision has no linear algebra."""
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def real_view(tree: Any) -> tuple[Float[Array, " P"], Callable[[Array], Any]]:
    """All real numbers of a pytree as one vector, and its inverse.

    A complex leaf is two real ones: all its real parts, then all its imaginary ones. Half precision is widened to
    float32 in the vector, and narrowed again by the inverse. Integer and boolean leaves do not move: they are left out,
    and None in what the inverse gives. Differentiating ``L(unravel(v))`` is right for complex leaves: v is real.

    Args:
        tree: a pytree; leaves without inexact dtype are left out.

    Returns:
        ``(vector, unravel)``; unravel is linear over the reals, and takes tangents as well as points.

    Raises:
        TypeError: when no leaf is a floating or complex array.

    Example:
        >>> import jax.numpy as jnp
        >>> v, unravel = real_view({"w": jnp.array([1 + 2j, 3]), "n": jnp.array(7)})
        >>> v.tolist(), unravel(v)["n"]
        ([1.0, 3.0, 2.0, 0.0], None)
    """
    moving = jax.tree.map(lambda leaf: leaf if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) else None, tree)
    leaves, structure = jax.tree.flatten(moving)
    if not leaves:
        got = sorted({str(jnp.result_type(leaf)) for leaf in jax.tree.leaves(tree)})
        raise TypeError(f"params: got leaves of {', '.join(got) or 'nothing'}; allowed: a floating or complex one")
    dtypes = [jnp.result_type(leaf) for leaf in leaves]
    if min(jnp.finfo(dtype).bits for dtype in dtypes) >= 32 and not any(jnp.iscomplexobj(leaf) for leaf in leaves):
        return ravel_pytree(moving)

    def real(leaf):
        return jnp.stack([jnp.real(leaf), jnp.imag(leaf)]) if jnp.iscomplexobj(leaf) else jnp.asarray(leaf)

    vector, split = ravel_pytree(
        [real(leaf).astype(jnp.promote_types(real(leaf).dtype, jnp.float32)) for leaf in leaves]
    )

    def unravel(v):
        parts = [
            jax.lax.complex(part[0], part[1]) if jnp.issubdtype(dtype, jnp.complexfloating) else part.astype(dtype)
            for part, dtype in zip(split(v), dtypes, strict=True)
        ]
        return jax.tree.unflatten(structure, parts)

    return vector, unravel


def flat(params: Params, where: Where | None = None):
    """``(theta [P], unravel, merge)``: the chosen leaves flat, and ``merge: v -> whole params``."""
    chosen = params
    if where is not None:
        chosen = jax.tree.map_with_path(lambda path, leaf: leaf if where(path, leaf) else None, params)
        if not jax.tree.leaves(chosen):
            raise ValueError(
                f"where: got one that chooses none of the {len(jax.tree.leaves(params))} leaves; allowed: at least one"
            )
    theta, unravel = real_view(chosen)

    def merge(v):
        return jax.tree.map(
            lambda new, old: old if new is None else new, unravel(v), params, is_leaf=lambda leaf: leaf is None
        )

    return theta, unravel, merge


def linearized_outputs(outputs: Callable[[Array], Any], theta: Array):
    """``(f, push, pull, shaped)``: outputs in the real view, ``J``, ``J^T`` and the inverse of that view."""
    _, shaped = real_view(jax.tree.map(jnp.zeros_like, jax.eval_shape(outputs, theta)))
    return *linearized(lambda v: real_view(outputs(v))[0], theta), shaped


def is_function(value: Any) -> bool:
    """Whether ``value`` is a function rather than a tree of numbers; an equinox module can be called and is a tree."""
    whole = isinstance(value, jax.tree_util.Partial) or jax.tree_util.all_leaves([value])
    return callable(value) and whole
