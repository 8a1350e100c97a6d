"""Complex parameters as real ones: each complex leaf is two real leaves, its real and its imaginary part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from dynamics.types import Array, PyTree


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
