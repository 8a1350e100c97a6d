"""Markov chains to learn values on: reversible, a biased ring, general; stationary law, values, detailed balance."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Float, PRNGKeyArray, Real, Shaped

from dynamics.arguments import BELOW_ONE, PROBABILITY, check_counts, check_numbers, program
from dynamics.types import Array, ArrayLike


class Chain(NamedTuple):
    """A Markov chain, as ``chain`` makes it.

    Attributes:
        transition: ``P_ij``, the probability to go from i to j.
        stationary: ``d``, with ``d^T P = d^T`` and ``sum d = 1``.
    """

    transition: Float[Array, "n n"]
    stationary: Float[Array, " n"]


def chain(transition: Real[ArrayLike, "n n"]) -> Chain:
    """A chain with its stationary distribution, by elimination without subtractions: to relative rounding, entry by
    entry, however weakly its parts are connected.

    Args:
        transition: ``P_ij >= 0``, rows that sum to one.

    Returns:
        A ``Chain``. Differentiable and vmappable. Of a traced ``P`` that would be refused the law is NaN; where rows
        are no distributions, ``P`` too.

    Raises:
        ValueError: for rows that are no distributions, or states that cannot all reach each other.

    Cost: ``n^3`` FLOPs in n steps.

    Reference: Grassmann, Taksar & Heyman 1985, 'Regenerative analysis and steady state distributions'.

    Example:
        >>> [round(float(d), 4) for d in chain(jnp.array([[0.5, 0.5], [0.25, 0.75]])).stationary]
        [0.3333, 0.6667]
    """
    P = jnp.asarray(transition, jnp.result_type(float, jnp.asarray(transition).dtype))
    if P.ndim != 2 or P.shape[0] != P.shape[1] or not P.size:
        raise ValueError(f"transition: got shape {P.shape}; allowed: [n, n]")
    d, off, proper, together = _stationary(P)
    if isinstance(d, Tracer):
        return Chain(jnp.where(proper, P, jnp.nan), jnp.where(proper & together, d, jnp.nan))
    if not proper:
        raise ValueError(
            f"transition: got entries from {np.min(P):g} and row sums off by {off:.1g}; allowed: distributions"
        )
    if not together:
        raise ValueError(f"transition: got {len(P)} states in several classes; allowed: all reach each other")
    return Chain(P, d)


@jax.jit
def _stationary(P: Array) -> tuple[Array, Array, Array, Array]:
    """The law; how far a row's sum is from 1, whether rows are distributions, whether all states reach each other."""
    n, at = P.shape[0], jnp.arange(P.shape[0])

    def eliminate(i, A):
        """The chain watched on the states below k: what enters k leaves to one of them."""
        k = n - 1 - i
        below = at < k
        row = jnp.where(below, A[k], 0)
        column = jnp.where(below, A[:, k] / jnp.sum(row), 0)
        return (A + jnp.outer(column, row)).at[:, k].set(column)

    A = jax.lax.fori_loop(0, n - 1, eliminate, P)
    d = jax.lax.fori_loop(1, n, lambda k, d: d.at[k].set(d @ A[:, k]), jnp.zeros(n, P.dtype).at[0].set(1))
    d = d / jnp.sum(d)
    off = jnp.max(jnp.abs(jnp.sum(P, 1) - 1))
    proper = jnp.all(P >= 0) & (off <= 100 * n * jnp.finfo(P.dtype).eps)
    return d, off, proper, jnp.all(jnp.isfinite(d) & (d > 0))


def reversible(key: PRNGKeyArray, states: int) -> Chain:
    """A walk on the complete graph with symmetric exponential conductances ``c_ij``: ``P_ij = c_ij / sum_j c_ij``.

    Such a chain obeys detailed balance, ``d_i P_ij = d_j P_ji``.

    Raises:
        ValueError: for fewer than 2 states.

    Example:
        >>> bool(irreversibility(reversible(jax.random.key(0), 20)) < 1e-5)
        True
    """
    check_counts(2, states=states)
    return chain(_walk(key, states, symmetric=True))


def general(key: PRNGKeyArray, states: int) -> Chain:
    """Rows drawn uniformly from all distributions; almost surely not reversible for three states or more.

    Raises:
        ValueError: for fewer than 2 states.
    """
    check_counts(2, states=states)
    return chain(_walk(key, states, symmetric=False))


@partial(jax.jit, static_argnames=("states", "symmetric"))
def _walk(key: PRNGKeyArray, states: int, symmetric: bool) -> Array:
    c = jax.random.exponential(key, (states, states))
    c = c + c.T if symmetric else c
    return c / jnp.sum(c, 1, keepdims=True)


def ring(states: int, forward: Real[ArrayLike, ""] = 0.5) -> Chain:
    """Steps to the right with probability ``forward``, else to the left, on a ring; reversible at 1/2 alone.

    Raises:
        ValueError: for fewer than 3 states, or a probability outside [0, 1].

    Example:
        >>> round(float(irreversibility(ring(20, 0.95))), 4)
        0.9
    """
    check_counts(3, states=states)
    check_numbers(forward=(forward, PROBABILITY))
    return chain(_ring(states, forward))


@partial(jax.jit, static_argnames="states")
def _ring(states: int, forward: Array) -> Array:
    right = jnp.roll(jnp.eye(states), 1, axis=1)
    return forward * right + (1 - forward) * right.T


def value(chain: Chain, reward: Shaped[ArrayLike, " n *k"], discount: Real[ArrayLike, ""]) -> Float[Array, " n *k"]:
    """``V* = (I - gamma P)^{-1} r``: the expected discounted sum of rewards from each state on.

    Args:
        reward: of each state, one column for each of several rewards.
        discount: gamma in [0, 1).

    Raises:
        ValueError: for a discount outside, or rewards of another number of states.

    Cost: ``2/3 n^3`` FLOPs.

    Example:
        >>> [round(float(v), 3) for v in value(ring(3, 1.0), jnp.array([1.0, 0.0, 0.0]), 0.5)]
        [1.143, 0.286, 0.571]
    """
    check_numbers(discount=(discount, BELOW_ONE))
    P, reward = chain.transition, jnp.asarray(reward)
    if reward.ndim not in (1, 2) or len(reward) != len(P):
        raise ValueError(f"reward: got shape {reward.shape}; allowed: [{len(P)}] or [{len(P)}, k]")
    return jnp.linalg.solve(jnp.eye(len(P), dtype=P.dtype) - discount * P, reward)


@program
def irreversibility(chain: Chain) -> Float[Array, ""]:
    """``1/2 sum_ij |d_i P_ij - d_j P_ji|``, the share of steps that no step back makes up for: 0 where the chain is
    reversible (detailed balance, Kolmogorov), ``|2 p - 1|`` on a ring, at most 1.

    Example:
        >>> round(float(irreversibility(ring(4, 1.0))), 4)
        1.0
    """
    flow = chain.stationary[:, None] * chain.transition
    return 0.5 * jnp.sum(jnp.abs(flow - flow.T))
