"""Several extreme eigenpairs of a symmetric operator by thick-restart Lanczos, each with its residual."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dynamics.linalg.lanczos import Matvec, combine, orthogonalize, padded_rows
from dynamics.types import Array

_STRIDE = 4  # matvecs between two checks of convergence while it is far, then 1
_NEAR = 10.0  # residuals within this factor of the goal are near
_SMALL = 64  # LAPACK's eigh on a CPU starts threads above this size, which then spin for tens of milliseconds


class Eigenpairs(NamedTuple):
    """Eigenvalue estimates, wanted end first.

    Attributes:
        values: ``[k]``.
        vectors: ``[k, P]``, orthonormal rows.
        residuals: ``[k]``, ``|A v - value v|``; an eigenvalue of ``A`` lies within this of ``value``.
        matvecs: int32, matvecs spent.
    """

    values: Array
    vectors: Array
    residuals: Array
    matvecs: Array


class _State(NamedTuple):
    basis: Array  # [rows, P]; row `count` is the next vector
    projected: Array  # [m, m], Q A Q^T of the first `count` rows
    count: Array
    beta: Array  # norm of the residual along row `count`
    matvecs: Array
    restarted: Array  # bool, the next vector couples to all kept ones
    values: Array  # [m], Ritz values of sign * A, descending; -inf where there is none
    rotation: Array  # [m, m], their coordinates as columns
    residuals: Array  # [k]


def eigenpairs(
    matvec: Matvec,
    start: Array,
    k: int,
    *,
    which: str = "largest",
    tolerance: float = 1e-3,
    max_matvecs: int | None = None,
    basis_size: int | None = None,
) -> Eigenpairs:
    """The k largest (or smallest) eigenpairs: Lanczos with full orthogonality and thick restarts.

    Stops when every residual is at most ``tolerance * max|theta|``, or after ``max_matvecs``; read ``residuals`` to
    know which. At a restart the best Ritz vectors stay in the basis (Wu & Simon 2000), so memory never grows.

    Args:
        matvec: ``v [P] -> A v [P]``, ``A`` symmetric.
        start: ``[P]``, not zero: a random vector, or the sum of earlier eigenvectors and a random one.
        k: how many, ``1 <= k <= P``.
        which: "largest" or "smallest", algebraically.
        tolerance: relative residual to reach, >= 0.
        max_matvecs: limit; ``20 k + 40`` unless given.
        basis_size: vectors kept at once; ``3 k + 20`` unless given (at most P).

    Returns:
        ``Eigenpairs``; pairs that breakdown leaves without a vector have an infinite residual.

    Raises:
        ValueError: when an argument is out of range.

    Cost: ``matvecs`` products, ``2 m P`` flops each to orthogonalise (m = basis size), memory ``(m + 1) P``.

    Reference: Wu & Simon 2000, 'Thick-restart Lanczos method for large symmetric eigenvalue problems', algorithm 2.

    Example:
        >>> import jax.numpy as jnp
        >>> pairs = eigenpairs(lambda v: jnp.arange(50.0) * v, jnp.ones(50), 2)
        >>> [round(float(x), 2) for x in pairs.values]
        [49.0, 48.0]
    """
    size = start.shape[0]
    m, limit = _checked_sizes(size, k, which, tolerance, max_matvecs, basis_size)
    sign = 1.0 if which == "largest" else -1.0
    kept = min(k + (m - k) // 2, m - 1)
    tolerance = max(tolerance, 20 * float(jnp.finfo(start.dtype).eps))

    def excess(state: _State) -> Array:
        """The largest residual over the goal."""
        return jnp.max(state.residuals) / (tolerance * jnp.max(jnp.abs(_finite(state.values))))

    def going(state: _State):
        unfinished = (state.matvecs == 0) | (excess(state) > 1)
        exhausted = (state.beta == 0) & (state.matvecs > 0)
        return unfinished & ~exhausted & (state.matvecs < limit)

    def extend(state: _State) -> _State:
        stride = jnp.where(excess(state) < _NEAR, 1, jnp.maximum(_STRIDE, k - state.count))
        stop = jnp.minimum(jnp.minimum(state.count + stride, m), state.count + limit - state.matvecs)
        state = jax.lax.fori_loop(state.count, stop, lambda _, s: _expand(matvec, sign, s), state)
        return _rayleigh_ritz(state, k)

    def cycle(state: _State) -> _State:  # the restart stands outside the inner loop: a branch there copies the basis
        state = jax.lax.cond(state.count == m, lambda s: _restart(s, kept), lambda s: s, state)
        return jax.lax.while_loop(lambda s: going(s) & (s.count < m), extend, state)

    state = jax.lax.while_loop(going, cycle, _first(start, m, k))
    return Eigenpairs(
        sign * state.values[:k], combine(state.rotation[:, :k], state.basis), state.residuals, state.matvecs
    )


def _checked_sizes(size, k, which, tolerance, max_matvecs, basis_size) -> tuple[int, int]:
    """``(basis size, largest number of matvecs)``."""
    if not 1 <= k <= size:
        raise ValueError(f"k: got {k!r}; allowed: an integer in [1, {size}]")
    if which not in ("largest", "smallest"):
        raise ValueError(f"which: got {which!r}; allowed: 'largest' or 'smallest'")
    if not tolerance >= 0:
        raise ValueError(f"tolerance: got {tolerance!r}; allowed: a number >= 0")
    m = min(3 * k + 20 if basis_size is None else basis_size, size)
    if not k <= m or (m == k and k < size):
        raise ValueError(f"basis_size: got {basis_size!r}; allowed: more than k = {k}")
    limit = 20 * k + 40 if max_matvecs is None else max_matvecs
    if limit < k:
        raise ValueError(f"max_matvecs: got {max_matvecs!r}; allowed: at least k = {k}")
    return m, limit


def _first(start: Array, m: int, k: int) -> _State:
    zeros, one = jnp.zeros((m, m), start.dtype), jnp.ones((), start.dtype)
    basis = jnp.zeros((padded_rows(m + 1), start.shape[0]), start.dtype).at[0].set(start / jnp.linalg.norm(start))
    nothing = jnp.full(k, jnp.inf, start.dtype)
    return _State(basis, zeros, jnp.int32(0), one, jnp.int32(0), jnp.bool_(False), zeros[0], zeros, nothing)


def _finite(values: Array) -> Array:
    return jnp.where(jnp.isfinite(values), values, 0)


def _expand(matvec: Matvec, sign: float, state: _State) -> _State:
    """One matvec and one new basis vector."""
    j, basis = state.count, state.basis
    q, previous = basis[j], basis[jnp.maximum(j - 1, 0)]
    image = sign * matvec(q)
    alpha = jnp.vdot(q, image)
    coupling = jnp.where(j > 0, state.projected[jnp.maximum(j - 1, 0), j], 0)
    w = orthogonalize(image - alpha * q - coupling * previous, basis, j + 1)
    # After a restart w couples to every kept vector, so that one pass leaves too much: do it twice.
    w = orthogonalize(w, basis, jnp.where(state.restarted, j + 1, 0))
    beta = jnp.linalg.norm(w)
    scale = jnp.maximum(jnp.max(jnp.abs(state.projected)), jnp.maximum(jnp.abs(alpha), beta))
    alive = (beta > 4 * jnp.finfo(w.dtype).eps * scale) & jnp.any(q != 0)
    beta = jnp.where(alive, beta, 0)
    basis = basis.at[j + 1].set(jnp.where(alive, w / jnp.where(alive, beta, 1), 0))
    projected = state.projected.at[j, j].set(alpha)
    projected = projected.at[j, j + 1].set(beta, mode="drop").at[j + 1, j].set(beta, mode="drop")
    return state._replace(
        basis=basis,
        projected=projected,
        count=j + 1,
        beta=beta,
        matvecs=state.matvecs + 1,
        restarted=jnp.bool_(False),
    )


def _rayleigh_ritz(state: _State, k: int) -> _State:
    """Ritz values of the first ``count`` vectors, descending; what is not there yet comes last, as -inf."""
    m = state.projected.shape[0]
    alive = jnp.any(state.projected != 0, axis=0) & (jnp.arange(m) < state.count)
    both = alive[:, None] & alive[None, :]
    padding = -1.5 * jnp.max(jnp.abs(state.projected))  # away from 0, lest it mixes with a null vector
    theta, rotation = _eigh(jnp.where(both, state.projected, 0) + jnp.diag(jnp.where(alive, 0, padding)), state.count)
    real = jnp.where(alive, 1, 0).astype(theta.dtype) @ rotation**2 > 0.5
    theta = jnp.where(real, theta, -jnp.inf)
    order = jnp.argsort(-theta)
    theta, rotation = theta[order], jnp.where(real, rotation, 0)[:, order]
    last = rotation[state.count - 1]
    floor = 10 * jnp.finfo(theta.dtype).eps * jnp.max(jnp.abs(_finite(theta)))
    residuals = jnp.where(jnp.isfinite(theta), jnp.maximum(state.beta * jnp.abs(last), floor), jnp.inf)
    return state._replace(values=theta, rotation=rotation, residuals=residuals[:k])


def _eigh(matrix: Array, count: Array) -> tuple[Array, Array]:
    """``eigh`` of a matrix that is diagonal past its first ``count`` rows; only their block where it is small."""
    m = matrix.shape[0]
    if m <= _SMALL:
        return jnp.linalg.eigh(matrix)

    def leading(matrix):
        theta, rotation = jnp.linalg.eigh(matrix[:_SMALL, :_SMALL])
        rest = jnp.diagonal(matrix)[_SMALL:]
        return jnp.concatenate([theta, rest]), jnp.eye(m, dtype=matrix.dtype).at[:_SMALL, :_SMALL].set(rotation)

    return jax.lax.cond(count <= _SMALL, leading, lambda matrix: tuple(jnp.linalg.eigh(matrix)), matrix)


def _restart(state: _State, kept: int) -> _State:
    """Keeps the best ``kept`` Ritz vectors and the residual's direction."""
    m = state.projected.shape[0]
    following = state.basis[m]
    ritz = combine(state.rotation[:, :kept], state.basis)
    basis = jnp.zeros_like(state.basis).at[:kept].set(ritz).at[kept].set(following)
    theta = _finite(state.values[:kept])
    arrow = state.beta * state.rotation[m - 1, :kept]
    projected = jnp.zeros_like(state.projected).at[jnp.arange(kept), jnp.arange(kept)].set(theta)
    projected = projected.at[:kept, kept].set(arrow).at[kept, :kept].set(arrow)
    return state._replace(basis=basis, projected=projected, count=jnp.int32(kept), restarted=jnp.bool_(True))
