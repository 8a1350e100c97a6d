"""Arithmetic on the arrays of a Kernel: roots, sides that broadcast, gaps of affine maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from dynamics.types import Array


def where_kept(fn: Callable[..., Any], *arrays: Any) -> Any:
    """``fn(*arrays)``, or None where the first array is None: the rule of a Kernel's optional attributes."""
    return None if arrays[0] is None else fn(*arrays)


@partial(jax.jit, inline=True)
def safe_sqrt(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """``sqrt(max(x, 0))`` whose derivative at 0 is 0, so that gradients at coincident points stay finite.

    The compiler may round ``x`` differently where it is compared and where it is used, so what stands in for a
    non-positive ``x`` is itself negligible: ``sqrt`` of the root of the smallest normal number.
    """
    negligible = float(jnp.finfo(x.dtype).tiny) ** 0.5
    return jnp.where(x > 0, jnp.sqrt(jnp.maximum(x, negligible)), 0)


@partial(jax.jit, inline=True)
def safe_reciprocal(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """``1 / x``, and 0 where ``x`` is 0."""
    nonzero = x != 0
    return jnp.where(nonzero, 1 / jnp.where(nonzero, x, 1), 0)


@jax.custom_jvp
def root(x: Array) -> Array:
    """``safe_sqrt`` for quantities of one input rather than of a pair.

    Its last operation is the square root, so XLA stores the result; what follows one it computes again for every pair.
    """
    return jnp.sqrt(jnp.maximum(x, 0))


@root.defjvp
def _(primals, tangents):
    y = root(primals[0])
    return y, 0.5 * tangents[0] * safe_reciprocal(y)


def pair_indices(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices ``i <= j`` of the pairs of ``n`` inputs."""
    return np.triu_indices(n)


def rows(x: Array, index: np.ndarray) -> Array:
    return x if x.shape[0] == 1 else x[index]


def interleave(x: Array, column: bool = False) -> Array:
    """``[n, h, w]`` to ``[n, h, 1, w, 1]``, or ``[n, 1, h, 1, w]`` for the column side."""
    shape = [x.shape[0]]
    for size in x.shape[1:]:
        shape += [1, size] if column else [size, 1]
    return x.reshape(shape)


def within_sides(x: Array) -> tuple[Array, Array]:
    """``[n, *S]`` shaped to broadcast against a within-sample covariance ``[n, h, h, w, w, ...]``."""
    return interleave(x), interleave(x, column=True)


def own_sides(one: Array, two: Array) -> tuple[Array, Array]:
    """``one`` as rows and ``two`` as columns of a within-sample covariance."""
    return within_sides(one)[0], within_sides(two)[1]


class Rapidity(NamedTuple):
    """``e^(t/2)`` and ``e^(-t/2)`` up to a factor, for ``sqrt(A) s = sqrt(B) sinh t`` and ``s' = sqrt(B) cosh t``."""

    plus: Array
    minus: Array


@partial(jax.jit, inline=True)
def rapidity(var: Array, after: Array, scale: Any) -> Rapidity:
    """The rapidity of variances ``var`` that the map ``A q + B`` (``A = scale``) takes to deviations ``after``."""
    plus = root(after + root(scale * var))
    return Rapidity(plus, 1 / jnp.maximum(plus, 1e-9))


@partial(jax.jit, inline=True)
def affine_gap(gap: Array, scale: Any, shift: Any, plus: Sequence[Array], minus: Sequence[Array]) -> Array:
    """Gap of ``A k + B`` (``A = scale, B = shift >= 0``) without cancellation, from the sides' rapidities.

    ``s1' s2' - A s1 s2 - B = B (cosh(t1 - t2) - 1) = B (e^((t1 - t2) / 2) - e^((t2 - t1) / 2))^2 / 2``.
    With ``p = e^(t/2)`` the difference is ``(p1 - p2) (p1 + p2) / (p1 p2)``.
    """
    apart, together = plus[0] - plus[1], plus[0] + plus[1]
    # Exactly 0 at coincident points, however the compiler rounds each side: the angle has a square root of the gap.
    apart = jnp.where(jnp.abs(apart) > 4 * jnp.finfo(apart.dtype).eps * together, apart, 0)
    apart = apart * together * (minus[0] * minus[1])
    return scale * gap + 0.5 * shift * apart * apart


def diagonal_of(cov: Array) -> Array:
    """``[n, h, h, w, w, ...]`` to its diagonal ``[n, h, w, ...]``."""
    for axis in range(1, (cov.ndim - 1) // 2 + 1):
        cov = jnp.moveaxis(jnp.diagonal(cov, axis1=axis, axis2=axis + 1), -1, axis)
    return cov
