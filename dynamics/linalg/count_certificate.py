"""The certificate of ``eigenpairs``: that no eigenvalue above the k-th one, counted with multiplicity, was missed."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dynamics.linalg.thick_restart import TAU, State
from dynamics.types import Array

_GRID = 64  # places at which the limit is looked for


def bounded(state: State, x: Array, target: Array) -> tuple[Array, Array]:
    """Whether the chain's Ritz values lie below x, and whether all eigenvalues beside the locked rows do for certain.

    ``prod_i (u - theta_i) = det(u - T)`` is the product of the pivots ``d_j = u - alpha_j - beta_{j-1}^2 / d_{j-1}``.
    """
    rows, values = jnp.arange(state.projected.shape[0]), jnp.diagonal(state.projected)
    betas = jnp.where(rows == state.count - 1, state.beta, jnp.append(jnp.diagonal(state.projected, 1), 0))
    floor = jnp.finfo(values.dtype).eps * jnp.max(jnp.abs(state.projected))
    u = x - 10 * floor

    def pivot(carry, row):
        before, coupled, total, clear = carry
        alpha, beta, here = row
        d = u - alpha - coupled * (coupled / before)
        clear = clear & (~here | (d > 0))
        d = jnp.where(here & (d > 0), d, 1)
        total = total + jnp.where(here, jnp.log(d) - jnp.log(jnp.maximum(beta, floor)), 0)
        return (d, jnp.where(here, beta, 0), total, clear), None

    chain = (jnp.roll(values, -state.locked), jnp.roll(betas, -state.locked), rows < state.count - state.locked)
    first = (jnp.ones_like(u), jnp.zeros_like(u), jnp.zeros_like(u), state.count > state.locked)
    (_, _, total, clear), _ = jax.lax.scan(pivot, first, chain)
    return clear, clear & (total >= target)


def limit_of(state: State, k: int, slack: Array, target: Array) -> Array:
    """The least y by an x that ``bounded`` finds certain, to 1 % of its distance to the k-th value."""
    value = state.values[k - 1]
    scale = jnp.max(jnp.abs(state.projected))
    eps, tiny = jnp.finfo(value.dtype).eps, jnp.finfo(value.dtype).tiny
    bracket = (jnp.log(jnp.maximum(eps * scale, tiny)), jnp.log(jnp.maximum(scale, tiny)) + 12)
    afresh = state.rounds > 0
    mark = jnp.where(jnp.isfinite(state.marks[-1]), state.marks[-1], value)
    start = jnp.where(afresh, mark + slack - state.margin, state.values[0])
    target = target + jnp.where(afresh, 0, jnp.log(1 / TAU + 1))  # the first start is not all random
    for _ in range(2):
        excess = jnp.linspace(*bracket, _GRID)
        _, certain = jax.vmap(lambda e: bounded(state, start + jnp.exp(e), target))(excess)
        first = jnp.argmax(certain)
        bracket = (excess[jnp.maximum(first - 1, 0)], excess[first])
    found = start + jnp.exp(bracket[1]) + state.margin
    found = jnp.where(jnp.any(certain) & state.whole, found, jnp.inf)
    exact = value + 10 * eps * scale
    return jnp.maximum(jnp.where(state.count == state.basis.shape[1], exact, found), value)
