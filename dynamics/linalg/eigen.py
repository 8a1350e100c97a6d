"""Several extreme eigenpairs of a symmetric operator by thick-restart Lanczos, counted with multiplicity."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from dynamics.linalg.certificate import log_inverse_delta
from dynamics.linalg.lanczos import (
    Matvec,
    combine,
    fresh_direction,
    key_of,
    norm,
    orthogonal,
    padded_rows,
    unit,
    working,
)
from dynamics.types import Array

_STRIDE = 4  # matvecs between two checks of convergence while it is far, then 1
_NEAR = 10.0  # residuals within this factor of the goal are near
_SMALL = 64  # LAPACK's eigh on a CPU starts threads above this size, which then spin for tens of milliseconds
_TAU = 0.1  # random part of the start, lest it lies in an invariant subspace
_ROOM = 24  # matvecs that a certificate may take
_GRID = 64  # places at which the limit is looked for


class Eigenpairs(NamedTuple):
    """Eigenvalue estimates, wanted end first.

    Attributes:
        vectors: orthonormal rows.
        residuals: ``|A v - value v|`` or a bound on it; an eigenvalue of ``A`` lies within it of ``value``.
        matvecs: int32, matvecs spent.
        limit: no eigenvector orthogonal to all that was found, so no missed copy, has an eigenvalue beyond it, except
            with a small probability: near ``values[-1]`` the count is complete; infinite where nothing is known. None
            where none was asked. Without a fresh start (k = 1) a bound on the extreme eigenvalue itself.
    """

    values: Float[Array, " k"]
    vectors: Float[Array, "k P"]
    residuals: Float[Array, " k"]
    matvecs: Int[Array, ""]
    limit: Float[Array, ""] | None = None


class _State(NamedTuple):
    basis: Array  # [rows, P]; row `count` is the next vector
    projected: Array  # [m, m], Q A Q^T of the first `count` rows
    count: Array
    beta: Array  # norm of the residual along row `count`; 0 where the chain has ended
    matvecs: Array
    outside: Array  # [m, m], Gram matrix of the parts of A q_i that are neither in the basis nor along row `count`
    values: Array  # [m], Ritz values of sign * A, descending; -inf where there is none
    rotation: Array  # [m, m], their coordinates as columns
    residuals: Array  # [k]
    locked: Array  # rows before the chain of this round
    marks: Array  # [k], the best Ritz values then, -inf where there was none
    whole: Array  # bool, the chain was not restarted: it certifies
    rounds: Array  # fresh starts so far
    began: Array  # matvecs before this round
    fresh: Array  # bool, a fresh start is due
    done: Array  # bool


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

    A Krylov space of one vector holds one copy of every eigenvalue. When all k residuals are at most ``tolerance *
    max|theta|``, a fresh random vector z, orthogonal to the Ritz vectors V that were found, therefore starts another
    Lanczos run on ``A' = (1 - V V^T) A (1 - V V^T)``. Either it brings more eigenvalues, and another one follows, or it
    certifies that nothing is left: with its Ritz values theta_i and norms beta_j (see ``extreme_eigenvalues``)

        lambda_max(A') <= x    where    prod_i (x - theta_i) delta = prod_j beta_j.

    Copies that V misses are eigenvectors of A' too. One pair needs no count: no fresh start follows.

    Args:
        matvec: ``v [P] -> A v [P]``, ``A`` symmetric.
        start: any vector, a random part of a tenth is added; or the sum of earlier eigenvectors and a random
            one. Fresh vectors are derived from it. Half precision is widened to float32.
        k: how many, ``1 <= k <= P``.
        which: "largest" or "smallest", algebraically.
        tolerance: relative residual to reach, >= 0; copies this much (times ``max|theta|``) above the k-th are found.
        max_matvecs: limit; ``20 k + 60`` unless given.
        basis_size: vectors kept at once; ``3 k + 20`` unless given (at most P).
        p: probability, per fresh start, that ``limit`` is violated.

    Returns:
        ``Eigenpairs``; read ``residuals`` and ``limit`` to know whether ``max_matvecs`` or the basis were enough.

    Raises:
        ValueError: when an argument is out of range.

    Cost: ``matvecs`` products, ``2 m P`` flops each to orthogonalise (m = basis size), memory ``(m + 1) P``. For simple
    spectra the certificate takes some 20 % of the products, and at most 24; a multiplicity takes a round for each copy.

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
    sign = 1.0 if which == "largest" else -1.0
    kept = min(k + (m - k) // 2, m - 1)
    held = m - 1 if m == size else max(k, m - _ROOM)
    tolerance = max(tolerance, 20 * float(jnp.finfo(start.dtype).eps))
    target = log_inverse_delta(start, 1.0, p)
    key = key_of(start)

    def slack(state: _State) -> Array:
        return tolerance * jnp.max(jnp.abs(_finite(state.values)))

    def extend(state: _State) -> _State:
        near = jnp.max(state.residuals) < _NEAR * slack(state)
        stride = jnp.where(near, jnp.where(state.rounds > 0, 2, 1), jnp.maximum(_STRIDE, k - state.count))
        stop = jnp.minimum(jnp.minimum(state.count + stride, m), state.count + most - state.matvecs)
        alive = jax.lax.while_loop(lambda s: (s.count < stop) & (s.beta > 0), lambda s: _expand(matvec, sign, s), state)
        return judge(alive)

    def judge(state: _State) -> _State:
        """Ritz pairs, unless the chain has met nothing above the k-th locked one; whether to stop or start afresh."""
        clear, certain = _bounded(state, state.marks[-1] + slack(state), target)
        quiet = clear & state.whole & jnp.isfinite(state.marks[-1])
        state = jax.lax.cond(quiet, lambda s: s, lambda s: _rayleigh_ritz(s, k), state)
        converged, missing = (
            jnp.all(state.residuals <= slack(state)),
            ~jnp.isfinite(state.values[k - 1]) & (state.beta == 0),
        )
        entered = jnp.any(state.values[:k] > state.marks + slack(state))
        broken, tired = state.beta == 0, state.matvecs - state.began >= _ROOM
        enough = (k == 1) | (state.count == size) | (quiet & certain) | (~entered & (broken | tired))
        done = (converged & enough) | ~jnp.isfinite(jnp.sum(state.projected))
        return state._replace(done=done, fresh=~done & jnp.where(converged, entered, missing))

    def going(state: _State) -> Array:
        return ~state.done & (state.matvecs < most)

    def cycle(state: _State) -> _State:  # the branches stand outside the inner loop: there they would copy the basis
        state = jax.lax.cond(state.fresh, lambda s: _afresh(s, k, held, slack(s), key), lambda s: s, state)
        ended = (state.count == m) | (state.beta == 0)
        state = jax.lax.cond(ended, restart, lambda s: s, state)
        return jax.lax.while_loop(lambda s: going(s) & ~s.fresh & (s.count < m) & (s.beta > 0), extend, state)

    def restart(state: _State) -> _State:
        return jax.lax.cond(
            state.rounds == 0,
            lambda s: _restart(s, kept),
            lambda s: _along_residual(matvec, sign, s, k, kept, slack(s)),
            state,
        )

    state = jax.lax.while_loop(going, cycle, _first(start, m, k, key))
    vectors = combine(state.rotation[:, :k], state.basis)
    values = jnp.where(jnp.isfinite(state.values), state.values, jnp.nan)[:k]
    return Eigenpairs(sign * values, vectors, state.residuals, state.matvecs, sign * _limit(state, k, target))


def _checked_sizes(size, k, which, tolerance, max_matvecs, basis_size) -> tuple[int, int]:
    """``(basis size, largest number of matvecs)``."""
    if not 1 <= k <= size:
        raise ValueError(f"k: got {k!r}; allowed: an integer in [1, {size}]")
    if which not in ("largest", "smallest"):
        raise ValueError(f"which: got {which!r}; allowed: 'largest' or 'smallest'")
    if not tolerance >= 0:
        raise ValueError(f"tolerance: got {tolerance!r}; allowed: a number >= 0")
    usual = size if size <= _SMALL else 3 * k + 20 if k == 1 else max(3 * k + 20, k + 22 + _ROOM)
    m = min(usual if basis_size is None else basis_size, size)
    if not k <= m or (m == k and k < size):
        raise ValueError(f"basis_size: got {basis_size!r}; allowed: more than k = {k}")
    most = 20 * k + 60 if max_matvecs is None else max_matvecs
    if most < k:
        raise ValueError(f"max_matvecs: got {max_matvecs!r}; allowed: at least k = {k}")
    return m, most


def _first(start: Array, m: int, k: int, key: Array) -> _State:
    size, dtype = start.shape[0], start.dtype
    zeros, none, no = jnp.zeros((m, m), dtype), jnp.full(m, -jnp.inf, dtype), jnp.bool_(False)
    first = unit(start, key) + _TAU * fresh_direction(key, 0, size, dtype)
    return _State(
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
        whole=jnp.bool_(True),
        rounds=jnp.int32(0),
        began=jnp.int32(0),
        fresh=no,
        done=no,
    )


def _finite(values: Array) -> Array:
    return jnp.where(jnp.isfinite(values), values, 0)


def _expand(matvec: Matvec, sign: float, state: _State) -> _State:
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
    # What a locked row has outside and along q is no longer outside; the first row after a restart is no such part.
    inside = jnp.where((rows < state.locked) & (state.whole | (j > state.locked)), along, 0)
    outside = state.outside - jnp.outer(inside, inside)
    return state._replace(
        basis=basis, projected=projected, count=j + 1, beta=beta, matvecs=state.matvecs + 1, outside=outside
    )


def _spilled(state: _State) -> tuple[Array, Array]:
    """Norms ``[m]`` of the residuals of all Ritz pairs: along row ``count``, and outside."""
    along = state.beta * jnp.abs(state.rotation[jnp.maximum(state.count - 1, 0)])
    outside = jnp.sum(state.rotation * (state.outside @ state.rotation), 0)
    everything = state.count == state.basis.shape[1]
    return along, jnp.where(everything, 0, jnp.sqrt(jnp.maximum(outside, 0)))


def _abandoned(state: _State, rotation: Array, k: int) -> Array:
    """``outside`` of the rotated rows once row ``count`` is given up: a bound on the Gram matrix of a + b.

    ``|a + b|^2 <= (1 + 1/c) |a|^2 + (1 + c) |b|^2``, with c such that the k wanted pairs are best off.
    """
    last = state.beta * rotation[jnp.maximum(state.count - 1, 0)]
    along, outside = _spilled(state)
    tiny = jnp.finfo(last.dtype).tiny
    c = jnp.clip(jnp.max(outside[:k]) / jnp.maximum(jnp.max(along[:k]), tiny), 1 / 30, 30)
    return (1 + 1 / c) * rotation.T @ state.outside @ rotation + (1 + c) * jnp.outer(last, last)


def _rayleigh_ritz(state: _State, k: int) -> _State:
    """Ritz values of the first ``count`` vectors, descending; what is not there yet comes last, as -inf."""
    here = jnp.arange(state.projected.shape[0]) < state.count
    matrix = jnp.where(here[:, None] & here[None, :], state.projected, 0)
    padding = -1.1 * jnp.max(jnp.sum(jnp.abs(matrix), 0)) - jnp.finfo(matrix.dtype).tiny  # below all (Gershgorin)
    theta, rotation = _eigh(matrix + jnp.diag(jnp.where(here, 0, padding)), state.count)
    order = jnp.argsort(-theta)
    theta = jnp.where(here, theta[order], -jnp.inf)
    state = state._replace(values=theta, rotation=jnp.where(here, rotation[:, order], 0))
    return state._replace(residuals=_residuals(state, sum(_spilled(state)), k))


def _residuals(state: _State, spilled: Array, k: int) -> Array:
    floor = 10 * jnp.finfo(spilled.dtype).eps * jnp.max(jnp.abs(_finite(state.values)))
    return jnp.where(jnp.isfinite(state.values), jnp.maximum(spilled, floor), jnp.inf)[:k]


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
    rotation = jnp.where(jnp.arange(m) < kept, state.rotation, 0)
    basis = jnp.zeros_like(state.basis).at[:kept].set(combine(rotation[:, :kept], state.basis))
    return state._replace(
        basis=basis.at[kept].set(state.basis[m]),
        projected=jnp.diag(_finite(state.values) * (jnp.arange(m) < kept)),
        outside=rotation.T @ state.outside @ rotation,
        count=jnp.int32(kept),
        locked=jnp.int32(kept),
        whole=jnp.bool_(False),
    )


def _along_residual(matvec: Matvec, sign: float, state: _State, k: int, kept: int, slack: Array) -> _State:
    """``_restart``, but the next row is the residual of the first pair that has not converged, by one more matvec.

    After a fresh start residuals have more than one direction, of which Lanczos would follow only the last one.
    """
    worst = jnp.argmax(state.residuals > slack)
    rows = jnp.arange(state.projected.shape[0])
    outside = _abandoned(state, jnp.where(rows < kept, state.rotation, 0), k)
    state = _restart(state, kept)
    basis = state.basis.at[kept].set(0)
    r, first, _ = orthogonal(sign * matvec(basis[worst]), basis, kept)
    r, again, _ = orthogonal(r / jnp.where(first > 0, first, 1), basis, kept)
    return state._replace(
        basis=basis.at[kept].set(r / jnp.where(again > 0, again, 1)),
        outside=jnp.where((rows[:, None] == worst) | (rows == worst), 0, outside),
        beta=jnp.where(again > 0, jnp.ones_like(again), 0),
        matvecs=state.matvecs + 1,
    )


def _afresh(state: _State, k: int, held: int, slack: Array, key: Array) -> _State:
    """Locks the Ritz vectors that cannot rise above the k-th, at most ``held``, and starts a chain beside them."""
    m, (_, size) = state.projected.shape[0], state.basis.shape
    rows, mark, spilled = jnp.arange(m), state.values[k - 1], sum(_spilled(state))
    settled = ~jnp.isfinite(mark) | (spilled <= 0.5 * (mark + slack - state.values))
    keep = (rows < state.count) & ((rows < k) | settled)
    keep = keep & (jnp.cumsum(keep) <= held)
    order, locked = jnp.argsort(~keep, stable=True), jnp.sum(keep, dtype=jnp.int32)
    here = rows < locked
    rotation = jnp.where(here, state.rotation[:, order], 0)
    basis = jnp.zeros_like(state.basis).at[:held].set(combine(rotation[:, :held], state.basis))
    z = fresh_direction(key, state.rounds + 1, size, basis.dtype)
    for _ in range(2):
        z, length, _ = orthogonal(z, basis, locked)
        z = z / length
    values, spilled = jnp.where(here, state.values[order], -jnp.inf), jnp.where(here, spilled[order], 0)
    state = state._replace(
        basis=basis.at[locked].set(z),
        projected=jnp.diag(_finite(values)),
        count=locked,
        beta=jnp.ones_like(state.beta),
        outside=_abandoned(state, rotation, k),
        values=values,
        rotation=jnp.diag(here.astype(basis.dtype)),
        locked=locked,
        marks=state.values[:k],
        whole=jnp.bool_(True),
        rounds=state.rounds + 1,
        began=state.matvecs,
        fresh=jnp.bool_(False),
    )
    return state._replace(residuals=_residuals(state, spilled, k))


def _bounded(state: _State, x: Array, target: Array) -> tuple[Array, Array]:
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


def _limit(state: _State, k: int, target: Array) -> Array:
    """The least x that ``_bounded`` finds certain, to 1 % of its distance to the k-th value."""
    value, (m, _) = state.values[k - 1], state.projected.shape
    scale = jnp.max(jnp.abs(state.projected))
    eps, tiny = jnp.finfo(value.dtype).eps, jnp.finfo(value.dtype).tiny
    bracket = (jnp.log(jnp.maximum(eps * scale, tiny)), jnp.log(jnp.maximum(scale, tiny)) + 12)
    start = jnp.where(
        state.rounds > 0, jnp.where(jnp.isfinite(state.marks[-1]), state.marks[-1], value), state.values[0]
    )
    for _ in range(2):
        excess = jnp.linspace(*bracket, _GRID)
        _, certain = jax.vmap(lambda e: _bounded(state, start + jnp.exp(e), target))(excess)
        first = jnp.argmax(certain)
        bracket = (excess[jnp.maximum(first - 1, 0)], excess[first])
    found = jnp.where(jnp.any(certain) & state.whole, start + jnp.exp(bracket[1]), jnp.inf)
    exact = state.values[min(k, m - 1)] + 10 * eps * scale
    return jnp.maximum(jnp.where(state.count == state.basis.shape[1], exact, found), value)
