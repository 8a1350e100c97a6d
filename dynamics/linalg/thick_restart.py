"""The rounds of ``eigenpairs``: one matvec, Ritz pairs, restarts and fresh starts."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dynamics.linalg.lanczos import Matvec, combine, fresh_direction, norm, orthogonal, padded_rows, unit
from dynamics.types import Array

SMALL = 64  # LAPACK's eigh on a CPU starts threads above this size, which then spin for tens of milliseconds
EDGE = 0.25  # of the tolerance above the k-th value: after the first fresh start all beside the locked rows lies below
TAU = 0.1  # random part of the start, lest it lies in an invariant subspace


class State(NamedTuple):
    basis: Array  # [rows, P]; row `count` is the next vector
    projected: Array  # [m, m], Q A Q^T of the first `count` rows
    count: Array
    beta: Array  # norm of the residual along row `count`; 0 where the chain has ended
    matvecs: Array
    outside: Array  # [m, m], Gram matrix of the parts of A q_i that are not in the basis, for rows before the chain
    values: Array  # [m], Ritz values of sign * A, descending; -inf where there is none
    rotation: Array  # [m, m], their coordinates as columns
    residuals: Array  # [k]
    locked: Array  # rows before the chain of this round
    marks: Array  # [k], the best Ritz values then, -inf where there was none
    margin: Array  # between y, the tolerance above the k-th value, and x: the locked rows' residuals allow no less
    whole: Array  # bool, the chain was not restarted: it certifies
    rounds: Array  # fresh starts so far
    began: Array  # matvecs before this round
    fresh: Array  # bool, a fresh start is due
    stray: Array  # bool, the chain met something between x and the k-th value
    done: Array  # bool


def first(start: Array, m: int, k: int, key: Array) -> State:
    size, dtype = start.shape[0], start.dtype
    zeros, none, no = jnp.zeros((m, m), dtype), jnp.full(m, -jnp.inf, dtype), jnp.bool_(False)
    first = unit(start) + TAU * fresh_direction(key, 0, size, dtype)
    return State(
        basis=jnp.zeros((padded_rows(m + 1), size), dtype).at[0].set(first / norm(first)),
        projected=zeros,
        count=jnp.int32(0),
        beta=jnp.ones((), dtype),
        matvecs=jnp.int32(0),
        outside=zeros,
        values=none,
        rotation=zeros,
        residuals=jnp.full(k, jnp.inf, dtype),
        locked=jnp.int32(0),
        marks=none[:k],
        margin=jnp.zeros((), dtype),
        whole=jnp.bool_(True),
        rounds=jnp.int32(0),
        began=jnp.int32(0),
        fresh=no,
        stray=no,
        done=no,
    )


def finite(values: Array, otherwise: Any = 0) -> Array:
    return jnp.where(jnp.isfinite(values), values, otherwise)


def expand(matvec: Matvec, sign: float, state: State) -> State:
    """One matvec and one new basis vector."""
    j, basis, (m, _) = state.count, state.basis, state.projected.shape
    rows, before = jnp.arange(m), jnp.maximum(j - 1, 0)
    q = basis[j]
    image = sign * matvec(q)
    alpha = jnp.vdot(q, image)
    coupling = jnp.where(j > state.locked, state.projected[before, j], 0)
    w, beta, along = orthogonal(image - alpha * q - coupling * basis[before], basis, j + 1)
    along = along[:m].at[j].add(alpha).at[before].add(coupling)  # Q A q
    scale = jnp.maximum(jnp.max(jnp.abs(state.projected)), jnp.maximum(jnp.max(jnp.abs(along)), beta))
    alive = (beta > 4 * jnp.finfo(w.dtype).eps * scale) & (j + 1 < basis.shape[1])
    beta = jnp.where(alive, beta, jnp.where(jnp.isnan(beta), jnp.nan, 0))
    basis = basis.at[j + 1].set(jnp.where(alive, w / jnp.where(alive, beta, 1), 0))
    projected = state.projected.at[:, j].set(along).at[j].set(along)
    projected = projected.at[j, j + 1].set(beta, mode="drop").at[j + 1, j].set(beta, mode="drop")
    # What a locked row has outside and along q is no longer outside; in the first round nothing is.
    inside = jnp.where((rows < state.locked) & (state.rounds > 0), along, 0)
    outside = state.outside - jnp.outer(inside, inside)
    return state._replace(
        basis=basis, projected=projected, count=j + 1, beta=beta, matvecs=state.matvecs + 1, outside=outside
    )


def _spilled(state: State) -> tuple[Array, Array]:
    """Norms ``[m]`` of the residuals of all Ritz pairs: along row ``count``, and outside."""
    along = state.beta * jnp.abs(state.rotation[jnp.maximum(state.count - 1, 0)])
    outside = jnp.sum(state.rotation * (state.outside @ state.rotation), 0)
    everything = state.count == state.basis.shape[1]
    return along, jnp.where(everything, 0, jnp.sqrt(jnp.maximum(outside, 0)))


def left(matvec: Matvec, sign: float, state: State, leaving: Array, slack: Array) -> tuple[State, Array]:
    """``A`` times row ``count`` and times the first pair that has not converged, ``[2, P]``, where a round ends.

    The first round needs neither, a fresh start not the second: all residuals of one chain have one direction.
    """
    worst = combine(state.rotation[:, _worst(state, slack)], state.basis)
    vectors = jnp.stack([state.basis[state.count], worst])
    low = jnp.where(state.beta > 0, 0, 1)
    high = jnp.where(leaving & (state.rounds > 0), jnp.where(state.fresh, 1, 2), 0)
    images = jax.lax.fori_loop(low, high, lambda i, x: x.at[i].set(sign * matvec(vectors[i])), jnp.zeros_like(vectors))
    return state._replace(matvecs=state.matvecs + jnp.maximum(high - low, 0)), images


def _worst(state: State, slack: Array) -> Array:
    """The first pair that has not converged; the worst one where each has, but not their sum."""
    return jnp.where(jnp.any(state.residuals > slack), jnp.argmax(state.residuals > slack), jnp.argmax(state.residuals))


def _abandoned(state: State, image: Array) -> Array:
    """``outside`` of the Ritz vectors once row ``count`` is given up, by the image of that row."""
    last = state.beta * state.rotation[jnp.maximum(state.count - 1, 0)]
    rows = jnp.arange(last.shape[0])
    across = jnp.outer(jnp.where(rows < state.locked, state.basis[: rows.size] @ image, 0) @ state.rotation, last)
    return state.rotation.T @ state.outside @ state.rotation + jnp.outer(last, last) + across + across.T


def rayleigh_ritz(state: State, k: int) -> State:
    """Ritz values of the first ``count`` vectors, descending; what is not there yet comes last, as -inf."""
    here = jnp.arange(state.projected.shape[0]) < state.count
    matrix = jnp.where(here[:, None] & here[None, :], state.projected, 0)
    padding = -1.1 * jnp.max(jnp.sum(jnp.abs(matrix), 0)) - jnp.finfo(matrix.dtype).tiny  # below all (Gershgorin)
    theta, rotation = _eigh(matrix + jnp.diag(jnp.where(here, 0, padding)), state.count)
    order = jnp.argsort(-theta)
    theta = jnp.where(here, theta[order], -jnp.inf)
    state = state._replace(values=theta, rotation=jnp.where(here, rotation[:, order], 0))
    along, outside = _spilled(state)
    return state._replace(residuals=_residuals(state, along + outside, k))


def _residuals(state: State, spilled: Array, k: int) -> Array:
    floor = 10 * jnp.finfo(spilled.dtype).eps * jnp.max(jnp.abs(finite(state.values)))
    return jnp.where(jnp.isfinite(state.values), jnp.maximum(spilled, floor), jnp.inf)[:k]


def _eigh(matrix: Array, count: Array) -> tuple[Array, Array]:
    """``eigh`` of a matrix that is diagonal past its first ``count`` rows; only their block where it is small."""
    m = matrix.shape[0]
    if m <= SMALL:
        return jnp.linalg.eigh(matrix)

    def leading(matrix):
        theta, rotation = jnp.linalg.eigh(matrix[:SMALL, :SMALL])
        rest = jnp.diagonal(matrix)[SMALL:]
        return jnp.concatenate([theta, rest]), jnp.eye(m, dtype=matrix.dtype).at[:SMALL, :SMALL].set(rotation)

    return jax.lax.cond(count <= SMALL, leading, lambda matrix: tuple(jnp.linalg.eigh(matrix)), matrix)


def restarted(state: State, kept: int) -> State:
    """Keeps the best ``kept`` Ritz vectors, or as many as there are, and the residual's direction."""
    m = state.projected.shape[0]
    count = jnp.minimum(kept, state.count)
    here = jnp.arange(m) < count
    rotation = jnp.where(here, state.rotation, 0)
    basis = jnp.zeros_like(state.basis).at[:kept].set(combine(rotation[:, :kept], state.basis))
    return state._replace(
        basis=basis.at[count].set(state.basis[state.count]),
        projected=jnp.diag(jnp.where(here, finite(state.values), 0)),
        outside=rotation.T @ state.outside @ rotation,
        values=jnp.where(here, state.values, -jnp.inf),
        rotation=jnp.diag(here.astype(basis.dtype)),
        count=count,
        locked=count,
        whole=jnp.bool_(False),
        stray=jnp.bool_(False),
    )


def along_residual(state: State, images: Array, kept: int) -> State:
    """``restarted``, but the next row is the residual of the first pair that has not converged.

    After a fresh start residuals have more than one direction, of which Lanczos would follow only the last one.
    """
    here = jnp.arange(state.projected.shape[0]) < jnp.minimum(kept, state.count)
    outside = jnp.where(here[:, None] & here, _abandoned(state, images[0]), 0)
    state = restarted(state, kept)
    basis = state.basis.at[state.count].set(0)
    r, first, _ = orthogonal(images[1], basis, state.count)
    r, again, _ = orthogonal(r / jnp.where(first > 0, first, 1), basis, state.count)
    return state._replace(
        basis=basis.at[state.count].set(r / jnp.where(again > 0, again, 1)),
        outside=outside,
        beta=jnp.where(again > 0, jnp.ones_like(again), 0),
    )


def afresh(state: State, images: Array, k: int, held: int, slack: Array, key: Array) -> State:
    """Locks Ritz vectors beside the wanted ones and starts a chain that is orthogonal to them.

    ``weight`` is what a row's residual adds to ``y - x``. The first time as many rows are locked as bring x farthest
    above the Ritz values that stay outside, later those that leave x above the k-th value.
    """
    m, (_, size) = state.projected.shape[0], state.basis.shape
    rows, mark, outside = jnp.arange(m), state.values[k - 1], _abandoned(state, images[0])
    room = jnp.where(rows < k, slack, jnp.maximum(mark + slack - state.values, slack))
    weight = jnp.where(jnp.isfinite(mark), jnp.diagonal(outside) / jnp.where(rows < state.count, room, 1), 0)
    order = jnp.argsort(jnp.where(rows < state.count, jnp.where(rows < k, -1, weight), jnp.inf))
    total, allowed = jnp.cumsum(weight[order]), (rows < held) & (rows < state.count)
    bulk = state.values[state.count // 2]
    beyond = jnp.append(jax.lax.cummax(finite(state.values, bulk)[order], reverse=True)[1:], bulk)
    gap = jnp.where(allowed & (rows >= jnp.minimum(k, state.count) - 1), -total - jnp.maximum(beyond, bulk), -jnp.inf)
    strict = jnp.sum(allowed & ((total <= (1 - EDGE) * slack) | (rows < k)), dtype=jnp.int32)
    first = (state.rounds == 0) & jnp.isfinite(mark)
    locked = jnp.where(first, jnp.argmax(gap).astype(jnp.int32) + 1, strict)
    margin = jnp.where(first, total[locked - 1], (1 - EDGE) * slack)
    order = jnp.argsort(jnp.where(jnp.argsort(order) < locked, rows, rows + m))
    here = rows < locked
    rotation = jnp.where(here, state.rotation[:, order], 0)
    basis = jnp.zeros_like(state.basis).at[:held].set(combine(rotation[:, :held], state.basis))
    z = fresh_direction(key, state.rounds + 1, size, basis.dtype)
    for _ in range(2):
        z, length, _ = orthogonal(z, basis, locked)
        z = z / length
    values = jnp.where(here, state.values[order], -jnp.inf)
    outside = jnp.where(here[:, None] & here, outside[order][:, order], 0)
    state = state._replace(
        basis=basis.at[locked].set(z),
        projected=jnp.diag(finite(values)),
        count=locked,
        beta=jnp.ones_like(state.beta),
        outside=outside,
        values=values,
        rotation=jnp.diag(here.astype(basis.dtype)),
        locked=locked,
        marks=state.values[:k],
        margin=margin,
        whole=jnp.bool_(True),
        rounds=state.rounds + 1,
        began=state.matvecs,
        fresh=jnp.bool_(False),
    )
    return state._replace(residuals=_residuals(state, jnp.sqrt(jnp.maximum(jnp.diagonal(outside), 0)), k))
