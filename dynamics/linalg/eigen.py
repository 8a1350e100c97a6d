"""Several extreme eigenpairs of a symmetric operator by thick-restart Lanczos, counted with multiplicity."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from dynamics.linalg.count_certificate import bounded, limit_of
from dynamics.linalg.extreme import log_inverse_delta
from dynamics.linalg.lanczos import (
    Matvec,
    combine,
    key_of,
    norm,
    working,
)
from dynamics.linalg.thick_restart import (
    EDGE,
    SMALL,
    State,
    afresh,
    along_residual,
    expand,
    finite,
    first,
    left,
    rayleigh_ritz,
    restarted,
)
from dynamics.precision import full_precision
from dynamics.types import Array

_STRIDE = 4  # matvecs between two checks of convergence while it is far, then 1
_NEAR = 10.0  # residuals within this factor of the goal are near
_EXACT = 64  # sizes up to which the matrix is formed
_PATIENCE = 8  # matvecs after which a chain that met something between x and the k-th value is left
_ROOM = 24  # matvecs that a certificate may take


class Eigenpairs(NamedTuple):
    """Eigenvalue estimates, wanted end first.

    Attributes:
        vectors: orthonormal rows.
        residuals: ``|A v - value v|`` or a bound on it; an eigenvalue of ``A`` lies within it of ``value``.
        matvecs: int32, matvecs spent.
        limit: but for a small probability, the i-th eigenvalue of ``A``, counted with multiplicity, lies not beyond
            ``limit`` or not beyond ``values[i]`` by more than the tolerance: near ``values[-1]`` the count is complete.
            Infinite where nothing is known, None where none was asked.
    """

    values: Float[Array, " k"]
    vectors: Float[Array, "k P"]
    residuals: Float[Array, " k"]
    matvecs: Int[Array, ""]
    limit: Float[Array, ""] | None = None


@full_precision
def eigenpairs(
    matvec: Matvec,
    start: Float[Array, " P"],
    k: int,
    *,
    which: str = "largest",
    tolerance: float = 1e-3,
    max_matvecs: int | None = None,
    basis_size: int | None = None,
    p: float = 1e-2,
) -> Eigenpairs:
    """The k largest (or smallest) eigenpairs with multiplicity: thick-restart Lanczos, then fresh starts that count.

    A Krylov space of one vector holds one copy of every eigenvalue. When the residuals have converged to ``slack =
    tolerance max|theta|``, a fresh random vector z, orthogonal to the Ritz vectors V that were found, therefore starts
    another Lanczos run on ``A' = (1 - V V^T) A (1 - V V^T)``. Either it brings more eigenvalues, and another one
    follows, or it certifies that nothing is left: with its Ritz values theta_i and norms beta_j (see
    ``extreme_eigenvalues``)

        lambda_max(A') <= x    where    prod_i (x - theta_i) delta = prod_j beta_j.

    By Haynsworth's inertia additivity ``A`` has above y > x as many eigenvalues as ``D - y + E (y - A')^-1 E^T`` is
    positive in directions, D the values of V and E its residuals; hence at most as many as ``D + E E^T / (y - x)`` has
    above y. With ``y = values[k-1] + slack`` and ``y - x = sum_i |E_i|^2 / (y - D_i)`` over the locked rows (for wanted
    ones ``slack`` in place of ``y - D_i``) no eigenvalue is missed. Rows are locked so that x lies far above the rest;
    where that was wrong, once more, and then only as many as leave ``x = values[k-1] + slack / 4``. One pair needs no
    count: no fresh start follows.

    Where P is at most 64 or ``4 k``, ``max_matvecs`` allows it and ``basis_size`` is not given, P products form the
    matrix at once: all pairs are exact, and ``limit`` is the k-th value.

    Args:
        matvec: ``v [P] -> A v [P]``, ``A`` symmetric.
        start: any vector, a random part of a tenth is added; or the sum of earlier eigenvectors and a random
            one. Fresh vectors are derived from it. Half precision is widened to float32.
        k: how many, ``1 <= k <= P``.
        which: "largest" or "smallest", algebraically.
        tolerance: relative residual to reach, >= 0; copies this much (times ``max|theta|``) above the k-th are found.
        max_matvecs: limit; ``20 k + 60`` unless given, and P more where P is at most that and the count is not certain:
            then the matrix is formed after all.
        basis_size: vectors kept at once; ``max(3 k + 20, k + 46)`` unless given (at most P).
        p: probability, per fresh start, that ``limit`` is violated.

    Returns:
        ``Eigenpairs``; read ``residuals`` and ``limit`` to know whether ``max_matvecs`` or the basis were enough.

    Raises:
        ValueError: when an argument is out of range.

    Cost: ``matvecs`` products, ``2 m P`` flops each to orthogonalise (m = basis size), memory ``(m + 1) P``. For simple
    spectra the count takes some 10 products; a multiplicity takes a round for each copy, with one product more.

    Reference: Wu & Simon 2000, 'Thick-restart Lanczos method for large symmetric eigenvalue problems', algorithm 2;
    van Dorsselaer, Hochstenbach & van der Vorst 2000, section 3.

    Example:
        >>> import jax.numpy as jnp
        >>> pairs = eigenpairs(lambda v: jnp.repeat(jnp.arange(25.0), 2) * v, jnp.ones(50), 3)
        >>> [round(float(x), 2) for x in pairs.values], round(float(pairs.limit), 1)
        ([24.0, 24.0, 23.0], 23.0)
    """
    matvec, start = working(matvec, start)
    size = start.shape[0]
    m, most = _checked_sizes(size, k, which, tolerance, max_matvecs, basis_size)
    last_resort = basis_size is None and size <= (most if max_matvecs is None else most // 2)
    sign = 1.0 if which == "largest" else -1.0
    target = log_inverse_delta(start, 1.0, p)
    if basis_size is None and size <= min(max(_EXACT, 4 * k), most):
        return _dense(matvec, _nothing(start, k), sign)
    most = min(size, most) if last_resort and max_matvecs is None else most - size if last_resort else most
    kept = min(k + (m - k) // 2, m - 1)
    held = m - 1 if m == size else max(k, m - _ROOM)
    tolerance = max(tolerance, 20 * k**0.5 * float(jnp.finfo(start.dtype).eps))
    key = key_of(start)

    def slack(state: State) -> Array:
        return tolerance * jnp.max(jnp.abs(finite(state.values)))

    def extend(state: State) -> State:
        near = jnp.max(state.residuals) < _NEAR * slack(state)
        stride = jnp.where(near, 1, jnp.maximum(_STRIDE, k - state.count))
        stop = jnp.minimum(jnp.minimum(state.count + stride, m), state.count + most - state.matvecs)
        alive = jax.lax.while_loop(lambda s: (s.count < stop) & (s.beta > 0), lambda s: expand(matvec, sign, s), state)
        return judge(alive)

    def judge(state: State) -> State:
        """Ritz pairs, unless the chain has met nothing above the k-th one; whether to stop or start afresh."""
        edge = jnp.maximum(state.marks[-1], state.values[k - 1]) + slack(state) - state.margin
        clear, certain = bounded(state, edge, target)
        quiet = clear & state.whole & jnp.isfinite(state.marks[-1])
        state = jax.lax.cond(quiet, lambda s: s, lambda s: rayleigh_ritz(s, k), state)
        goal = slack(state) if k == 1 else (1 - EDGE) ** 0.5 * slack(state)
        converged, missing = norm(state.residuals) <= goal, ~jnp.isfinite(state.values[k - 1]) & (state.beta == 0)
        entered = jnp.any(state.values[:k] > state.marks + slack(state))
        over = (state.beta == 0) | (state.count == m)
        enough = (k == 1) | (state.count == size) | (quiet & certain) | (~entered & state.whole & over)
        done = (converged & enough) | ~jnp.isfinite(jnp.sum(state.projected))
        stray = (state.rounds == 1) & state.whole & ~clear & ~entered
        fresh = ~done & jnp.where(converged, entered | ~state.whole | stray, missing)
        stray = stray & ~fresh & (state.count >= state.locked + _PATIENCE)
        return state._replace(done=done, fresh=fresh, stray=stray)

    def going(state: State) -> Array:
        return ~state.done & (state.matvecs < most)

    def cycle(state: State) -> State:  # the branches stand outside the inner loop: there they would copy the basis
        fresh, ended = state.fresh, state.stray | (state.count == m) | (state.beta == 0)
        state = jax.lax.cond(fresh | ended, lambda s: rayleigh_ritz(s, k), lambda s: s, state)
        state, images = left(matvec, sign, state, fresh | ended, slack(state))
        state = jax.lax.cond(fresh, lambda s: afresh(s, images, k, held, slack(s), key), lambda s: s, state)
        state = jax.lax.cond(ended & ~fresh, lambda s: restart(s, images), lambda s: s, state)
        return jax.lax.while_loop(
            lambda s: going(s) & ~s.fresh & ~s.stray & (s.count < m) & (s.beta > 0), extend, state
        )

    def restart(state: State, images: Array) -> State:
        return jax.lax.cond(
            state.rounds == 0, lambda s: restarted(s, kept), lambda s: along_residual(s, images, kept), state
        )

    state = jax.lax.while_loop(going, cycle, first(start, m, k, key))
    vectors = combine(state.rotation[:, :k], state.basis)
    values = jnp.where(jnp.isfinite(state.values), state.values, jnp.nan)[:k]
    limit = limit_of(state, k, slack(state), target)
    pairs = Eigenpairs(sign * values, vectors, state.residuals, state.matvecs, sign * limit)
    if not last_resort:
        return pairs
    sure = state.done & ((k == 1) | (limit <= state.values[k - 1] + 1.1 * slack(state)))
    return jax.lax.fori_loop(0, jnp.where(sure, 0, 1), lambda _, pairs: _dense(matvec, pairs, sign), pairs)


def _nothing(start: Array, k: int) -> Eigenpairs:
    values = jnp.full(k, jnp.nan, start.dtype)
    return Eigenpairs(values, jnp.zeros((k, start.size), start.dtype), values, jnp.int32(0), values[0])


def _dense(matvec: Matvec, pairs: Eigenpairs, sign: float) -> Eigenpairs:
    """All pairs exactly, from the products with the unit vectors."""
    size, dtype = pairs.vectors.shape[1], pairs.vectors.dtype
    return _exactly(jax.lax.map(matvec, jnp.eye(size, dtype=dtype)).T, pairs, sign)


@partial(jax.jit, static_argnames="sign", inline=True)
def _exactly(matrix: Array, pairs: Eigenpairs, sign: float) -> Eigenpairs:
    (k, size), dtype = pairs.vectors.shape, pairs.vectors.dtype
    scale = jnp.max(jnp.abs(matrix))
    scale = jnp.where(scale > 0, scale, 1)  # lest tiny ones vanish
    matrix = matrix / scale
    theta, s = jnp.linalg.eigh(sign * 0.5 * (matrix + matrix.T))
    theta, s = sign * theta[::-1][:k], s[:, ::-1][:, :k]
    floor = 10 * jnp.finfo(dtype).eps * jnp.max(jnp.abs(theta))
    residuals = scale * jnp.maximum(jnp.linalg.norm(matrix @ s - s * theta, axis=0), floor)
    return Eigenpairs(scale * theta, s.T, residuals, pairs.matvecs + size, scale * theta[-1])


def _checked_sizes(size, k, which, tolerance, max_matvecs, basis_size) -> tuple[int, int]:
    """``(basis size, largest number of matvecs)``."""
    if not 1 <= k <= size:
        raise ValueError(f"k: got {k!r}; allowed: an integer in [1, {size}]")
    if which not in ("largest", "smallest"):
        raise ValueError(f"which: got {which!r}; allowed: 'largest' or 'smallest'")
    if not tolerance >= 0:
        raise ValueError(f"tolerance: got {tolerance!r}; allowed: a number >= 0")
    usual = size if size <= SMALL else 3 * k + 20 if k == 1 else max(3 * k + 20, k + 22 + _ROOM)
    m = min(usual if basis_size is None else basis_size, size)
    if not k <= m or (m == k and k < size):
        raise ValueError(f"basis_size: got {basis_size!r}; allowed: more than k = {k}")
    most = 20 * k + 60 if max_matvecs is None else max_matvecs
    if most < k:
        raise ValueError(f"max_matvecs: got {max_matvecs!r}; allowed: at least k = {k}")
    return m, most
