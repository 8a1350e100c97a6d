"""Correlation and response of a few coherent vectors: the linear recursion that every cavity theory here shares."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from dynamics.theory.dmft.draws import mirrored
from dynamics.types import Array


class Order(NamedTuple):
    """Order parameters of c vectors at steps ``0 .. T``; entries at later steps than the present are zero.

    Attributes:
        C: ``C(t, s) = <y_i(t) y_j(s)>``, ``[T+1, c, T+1, c]``.
        R: ``R(t, s) = d y_i(t)/d y_j(s)``, ``[T+1, c, T+1, c]``, one at equal times.
    """

    C: Float[Array, "t c t c"]
    R: Float[Array, "t c t c"]


def start(steps: int, gram: Float[Array, "c c"]) -> Order:
    """The order parameters at step 0, with room for ``steps`` more."""
    c = gram.shape[0]
    zero = jnp.zeros((steps + 1, c, steps + 1, c), gram.dtype)
    return Order(zero.at[0, :, 0].set(gram), zero.at[0, :, 0].set(jnp.eye(c, dtype=gram.dtype)))


def after(R_row: Float[Array, "c t c"], t: Any) -> Float[Array, "c past c"]:
    """``R(t, s + 1)`` for ``s < t``, zero beyond: how a kick at step s is remembered at step t."""
    moved = R_row[:, 1:]
    return jnp.where((jnp.arange(moved.shape[1]) < t)[:, None], moved, 0)


def advance(order: Order, t: Any, K: Float[Array, "c past c"], N: Float[Array, "c past c"], decay: Any = 1.0) -> Order:
    """``y(t+1) = decay y(t) - sum_{s<=t} K(t, s) y(s) + n(t)`` with ``<n n> = N``, in its second moments.

        R(t+1, s) = decay R(t, s) - sum_u K(t, u) R(u, s),                    R(t+1, t+1) = 1
        C(t+1, s) = decay C(t, s) - sum_u K(t, u) C(u, s) + sum_{u<s} N(t, u) R(s, u+1)^T

    Args:
        order: up to step t.
        t: the present step.
        K, N: rows ``K(t, s)`` and ``N(t, s)``, zero for ``s > t``.
        decay: one, less learning rate times ridge.

    Returns:
        The order parameters up to step t + 1. Cost: ``T^2 c^3``.
    """
    C, R = order
    steps = K.shape[1]
    known = (jnp.arange(steps + 1) <= t)[None, :, None]
    response = decay * R[t] - jnp.einsum("iuj,ujsl->isl", K, R[:-1])
    response = response.at[:, t + 1].set(jnp.eye(K.shape[0], dtype=R.dtype))
    kicked = jax.vmap(after)(R, jnp.arange(steps + 1))  # R(s, u + 1): [T+1, c, T, c]
    row = decay * C[t] - jnp.einsum("iuj,ujsl->isl", K, C[:-1]) + jnp.einsum("iul,sjul->isj", N, kicked)
    row = jnp.where(known, row, 0)
    column = jnp.transpose(row, (1, 2, 0))  # C(s, t + 1): [T+1, c, c]
    last = decay * column[t] - jnp.einsum("iuj,ujl->il", K, column[:-1])
    last = last + jnp.einsum("iul,jul->ij", N, after(response, t + 1))
    C = C.at[t + 1].set(row).at[:, :, t + 1].set(column).at[t + 1, :, t + 1].set((last + last.T) / 2)
    return Order(C, R.at[t + 1].set(response))


def injected(
    omega: Float[Array, "half n"], weights: Float[Array, " n"], g: Float[Array, "n c"]
) -> Float[Array, "both c"]:
    """Gaussian noise of covariance ``sum_n w_n g_i(t) g_j(s)`` over all steps so far, in antithetic pairs.

    ``n_a(t) = sum_n Omega_an sqrt(w_n) g_n(t)`` with Omega held for the whole run: no covariance is factorised, so
    nearly singular ones cost no accuracy. Samples are ordered as (first halves, their mirrors).
    """
    return mirrored(omega @ (jnp.sqrt(weights)[:, None] * g))
