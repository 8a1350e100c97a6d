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
_EXACT = 64  # sizes up to which the matrix is formed
_EDGE = 0.25  # of the tolerance above the k-th value: nothing beside the locked rows may lie beyond it
_TAU = 0.1  # random part of the start, lest it lies in an invariant subspace
_ROOM = 24  # matvecs that a certificate may take
_GRID = 64  # places at which the limit is looked for


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


class _State(NamedTuple):
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

    A Krylov space of one vector holds one copy of every eigenvalue. When the residuals have converged to ``slack =
    tolerance max|theta|``, a fresh random vector z, orthogonal to the Ritz vectors V that were found, therefore starts
    another Lanczos run on ``A' = (1 - V V^T) A (1 - V V^T)``. Either it brings more eigenvalues, and another one
    follows, or it certifies that nothing is left: with its Ritz values theta_i and norms beta_j (see
    ``extreme_eigenvalues``)

        lambda_max(A') <= x    where    prod_i (x - theta_i) delta = prod_j beta_j.

    By Haynsworth's inertia additivity ``A`` has above y > x as many eigenvalues as ``D - y + E (y - A')^-1 E^T`` is
    positive in directions, D the values of V and E its residuals; hence at most as many as ``D + E E^T / (y - x)`` has
    above y. Rows are locked only while ``sum_i |E_i|^2 / (y - D_i) <= y - x`` (for the wanted ones ``slack`` in place
    of ``y - D_i``) at ``x = values[k-1] + slack / 4``, ``y = values[k-1] + slack``: then no eigenvalue is missed. One
    pair needs no count: no fresh start follows.

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

    def slack(state: _State) -> Array:
        return tolerance * jnp.max(jnp.abs(_finite(state.values)))

    def extend(state: _State) -> _State:
        near = jnp.max(state.residuals) < _NEAR * slack(state)
        stride = jnp.where(near, jnp.where(state.rounds > 0, 2, 1), jnp.maximum(_STRIDE, k - state.count))
        stop = jnp.minimum(jnp.minimum(state.count + stride, m), state.count + most - state.matvecs)
        alive = jax.lax.while_loop(lambda s: (s.count < stop) & (s.beta > 0), lambda s: _expand(matvec, sign, s), state)
        return judge(alive)

    def judge(state: _State) -> _State:
        """Ritz pairs, unless the chain has met nothing above the k-th one; whether to stop or start afresh."""
        edge = jnp.maximum(state.marks[-1], state.values[k - 1]) + _EDGE * slack(state)
        clear, certain = _bounded(state, edge, target)
        quiet = clear & state.whole & jnp.isfinite(state.marks[-1])
        state = jax.lax.cond(quiet, lambda s: s, lambda s: _rayleigh_ritz(s, k), state)
        goal = slack(state) if k == 1 else 0.5**0.5 * slack(state)
        converged, missing = norm(state.residuals) <= goal, ~jnp.isfinite(state.values[k - 1]) & (state.beta == 0)
        entered = jnp.any(state.values[:k] > state.marks + slack(state))
        over = (state.beta == 0) | (state.count == m)
        enough = (k == 1) | (state.count == size) | (quiet & certain) | (~entered & state.whole & over)
        done = (converged & enough) | ~jnp.isfinite(jnp.sum(state.projected))
        return state._replace(done=done, fresh=~done & jnp.where(converged, entered | ~state.whole, missing))

    def going(state: _State) -> Array:
        return ~state.done & (state.matvecs < most)

    def cycle(state: _State) -> _State:  # the branches stand outside the inner loop: there they would copy the basis
        fresh, ended = state.fresh, (state.count == m) | (state.beta == 0)
        state = jax.lax.cond(fresh | ended, lambda s: _rayleigh_ritz(s, k), lambda s: s, state)
        state, images = _left(matvec, sign, state, fresh | ended, slack(state))
        state = jax.lax.cond(fresh, lambda s: _afresh(s, images, k, held, slack(s), key), lambda s: s, state)
        state = jax.lax.cond(ended & ~fresh, lambda s: restart(s, images), lambda s: s, state)
        return jax.lax.while_loop(lambda s: going(s) & ~s.fresh & (s.count < m) & (s.beta > 0), extend, state)

    def restart(state: _State, images: Array) -> _State:
        return jax.lax.cond(
            state.rounds == 0, lambda s: _restart(s, kept), lambda s: _along_residual(s, images, kept), state
        )

    state = jax.lax.while_loop(going, cycle, _first(start, m, k, key))
    vectors = combine(state.rotation[:, :k], state.basis)
    values = jnp.where(jnp.isfinite(state.values), state.values, jnp.nan)[:k]
    limit = _limit(state, k, slack(state), target)
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
    (k, size), dtype = pairs.vectors.shape, pairs.vectors.dtype
    matrix = jax.lax.map(matvec, jnp.eye(size, dtype=dtype)).T
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
    # What a locked row has outside and along q is no longer outside; in the first round nothing is.
    inside = jnp.where((rows < state.locked) & (state.rounds > 0), along, 0)
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


def _left(matvec: Matvec, sign: float, state: _State, leaving: Array, slack: Array) -> tuple[_State, Array]:
    """``A`` times row ``count`` and times the first pair that has not converged, ``[2, P]``, where a round ends.

    The first round needs neither, a fresh start not the second: all residuals of one chain have one direction.
    """
    worst = combine(state.rotation[:, _worst(state, slack)], state.basis)
    vectors = jnp.stack([state.basis[state.count], worst])
    low = jnp.where(state.beta > 0, 0, 1)
    high = jnp.where(leaving & (state.rounds > 0), jnp.where(state.fresh, 1, 2), 0)
    images = jax.lax.fori_loop(low, high, lambda i, x: x.at[i].set(sign * matvec(vectors[i])), jnp.zeros_like(vectors))
    return state._replace(matvecs=state.matvecs + jnp.maximum(high - low, 0)), images


def _worst(state: _State, slack: Array) -> Array:
    """The first pair that has not converged; the worst one where each has, but not their sum."""
    return jnp.where(jnp.any(state.residuals > slack), jnp.argmax(state.residuals > slack), jnp.argmax(state.residuals))


def _abandoned(state: _State, image: Array) -> Array:
    """``outside`` of the Ritz vectors once row ``count`` is given up, by the image of that row."""
    last = state.beta * state.rotation[jnp.maximum(state.count - 1, 0)]
    rows = jnp.arange(last.shape[0])
    across = jnp.outer(jnp.where(rows < state.locked, state.basis[: rows.size] @ image, 0) @ state.rotation, last)
    return state.rotation.T @ state.outside @ state.rotation + jnp.outer(last, last) + across + across.T


def _rayleigh_ritz(state: _State, k: int) -> _State:
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
    """Keeps the best ``kept`` Ritz vectors, or as many as there are, and the residual's direction."""
    m = state.projected.shape[0]
    count = jnp.minimum(kept, state.count)
    here = jnp.arange(m) < count
    rotation = jnp.where(here, state.rotation, 0)
    basis = jnp.zeros_like(state.basis).at[:kept].set(combine(rotation[:, :kept], state.basis))
    return state._replace(
        basis=basis.at[count].set(state.basis[state.count]),
        projected=jnp.diag(jnp.where(here, _finite(state.values), 0)),
        outside=rotation.T @ state.outside @ rotation,
        values=jnp.where(here, state.values, -jnp.inf),
        rotation=jnp.diag(here.astype(basis.dtype)),
        count=count,
        locked=count,
        whole=jnp.bool_(False),
    )


def _along_residual(state: _State, images: Array, kept: int) -> _State:
    """``_restart``, but the next row is the residual of the first pair that has not converged.

    After a fresh start residuals have more than one direction, of which Lanczos would follow only the last one.
    """
    here = jnp.arange(state.projected.shape[0]) < jnp.minimum(kept, state.count)
    outside = jnp.where(here[:, None] & here, _abandoned(state, images[0]), 0)
    state = _restart(state, kept)
    basis = state.basis.at[state.count].set(0)
    r, first, _ = orthogonal(images[1], basis, state.count)
    r, again, _ = orthogonal(r / jnp.where(first > 0, first, 1), basis, state.count)
    return state._replace(
        basis=basis.at[state.count].set(r / jnp.where(again > 0, again, 1)),
        outside=outside,
        beta=jnp.where(again > 0, jnp.ones_like(again), 0),
    )


def _afresh(state: _State, images: Array, k: int, held: int, slack: Array, key: Array) -> _State:
    """Locks Ritz vectors, the wanted ones and those that cannot rise above them, and starts a chain beside them."""
    m, (_, size) = state.projected.shape[0], state.basis.shape
    rows, mark, outside = jnp.arange(m), state.values[k - 1], _abandoned(state, images[0])
    room = jnp.where(rows < k, slack, jnp.maximum(mark + slack - state.values, slack))
    weight = jnp.where(jnp.isfinite(mark), jnp.diagonal(outside) / jnp.where(rows < state.count, room, 1), 0)
    order = jnp.argsort(jnp.where(rows < state.count, jnp.where(rows < k, -1, weight), jnp.inf))
    light = (jnp.cumsum(weight[order]) <= (1 - _EDGE) * slack) & (rows < held)
    keep = (rows < state.count) & ((rows < k) | jnp.zeros(m, bool).at[order].set(light))
    order, locked = jnp.argsort(~keep, stable=True), jnp.sum(keep, dtype=jnp.int32)
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
        projected=jnp.diag(_finite(values)),
        count=locked,
        beta=jnp.ones_like(state.beta),
        outside=outside,
        values=values,
        rotation=jnp.diag(here.astype(basis.dtype)),
        locked=locked,
        marks=state.values[:k],
        whole=jnp.bool_(True),
        rounds=state.rounds + 1,
        began=state.matvecs,
        fresh=jnp.bool_(False),
    )
    return state._replace(residuals=_residuals(state, jnp.sqrt(jnp.maximum(jnp.diagonal(outside), 0)), k))


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


def _limit(state: _State, k: int, slack: Array, target: Array) -> Array:
    """The least y by an x that ``_bounded`` finds certain, to 1 % of its distance to the k-th value."""
    value = state.values[k - 1]
    scale = jnp.max(jnp.abs(state.projected))
    eps, tiny = jnp.finfo(value.dtype).eps, jnp.finfo(value.dtype).tiny
    bracket = (jnp.log(jnp.maximum(eps * scale, tiny)), jnp.log(jnp.maximum(scale, tiny)) + 12)
    afresh = state.rounds > 0
    mark = jnp.where(jnp.isfinite(state.marks[-1]), state.marks[-1], value)
    start = jnp.where(afresh, mark + _EDGE * slack, state.values[0])
    target = target + jnp.where(afresh, 0, jnp.log(1 / _TAU + 1))  # the first start is not all random
    for _ in range(2):
        excess = jnp.linspace(*bracket, _GRID)
        _, certain = jax.vmap(lambda e: _bounded(state, start + jnp.exp(e), target))(excess)
        first = jnp.argmax(certain)
        bracket = (excess[jnp.maximum(first - 1, 0)], excess[first])
    found = start + jnp.exp(bracket[1]) + jnp.where(afresh, (1 - _EDGE) * slack, 0)
    found = jnp.where(jnp.any(certain) & state.whole, found, jnp.inf)
    exact = value + 10 * eps * scale
    return jnp.maximum(jnp.where(state.count == state.basis.shape[1], exact, found), value)
