"""Lanczos tridiagonalisation of a symmetric operator that is only known through its matvec."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from dynamics.arguments import check_counts
from dynamics.precision import full_precision
from dynamics.program.on_cpus import quick_loops
from dynamics.types import Array

Matvec = Callable[[Array], Array]
_ROWS = 8  # basis rows orthogonalised against at once: few enough that a short run touches little memory
_WHOLE = 16  # rows of a basis that is rather read whole than sliced


class Tridiagonal(NamedTuple):
    """``A Q^T = Q^T T + beta_m q_{m+1} e_m^T`` with ``T`` tridiagonal.

    Attributes:
        diagonal: alpha_1 .. alpha_m.
        offdiagonal: beta_1 .. beta_m; the last one is the residual's norm and not part of ``T``.
        basis: ``m + 1`` rows q_1 .. q_{m+1}, orthonormal (rows past a breakdown or past ``steps`` are 0).
        steps: int32, matvecs done. Entries past them, or past a breakdown, are padding: alpha_1 with beta = 0, which
            lies within the Ritz values.
    """

    diagonal: Float[Array, " m"]
    offdiagonal: Float[Array, " m"]
    basis: Float[Array, "_ P"]
    steps: Int[Array, ""]

    @partial(jax.jit, inline=True)
    def matrix(self) -> Float[Array, "m m"]:
        """``T`` as a dense ``[m, m]`` matrix."""
        i = jnp.arange(self.diagonal.shape[0])
        right = jnp.where((i[:, None] + 1 == i) & (i < self.steps), self.offdiagonal[:, None], 0)
        return jnp.where(i[:, None] == i, self.diagonal, 0) + right + right.T

    @partial(jax.jit, inline=True)
    def real(self) -> Bool[Array, " m"]:
        """``[m]`` bool: which entries are not padding."""
        i = jnp.arange(self.diagonal.shape[0])
        return ~jnp.any((i < i[:, None]) & ~(self.offdiagonal > 0), 1) & (i < self.steps)


@full_precision
def tridiagonalize(matvec: Matvec, start: Float[Array, " P"], num_matvecs: int, steps: Any = None) -> Tridiagonal:
    """Lanczos with full reorthogonalisation from ``start``, repeated where it takes much off.

    Args:
        matvec: ``v [P] -> A v [P]``, ``A`` symmetric.
        start: not zero; need not be normalised.
        num_matvecs: m, the size of the buffers; 1 <= m <= P.
        steps: matvecs to do, a traced integer in ``[1, m]``; m unless given.

    Returns:
        ``Tridiagonal``.

    Raises:
        ValueError: when ``num_matvecs`` is not in ``[1, P]``.

    Cost: ``steps`` matvecs and ``2 steps^2 P`` flops of orthogonalisation, up to twice that; memory ``(m + 1) P``.

    Reference: Golub & Van Loan 2013, section 10.3; Daniel, Gragg, Kaufman & Stewart 1976 for the criterion of
    repetition; Giraud et al. 2005 on why twice is enough.

    Example:
        >>> import jax.numpy as jnp
        >>> d = jnp.array([1.0, 2.0, 5.0])
        >>> t = tridiagonalize(lambda v: d * v, jnp.ones(3), 3)
        >>> [round(float(x), 3) for x in jnp.linalg.eigvalsh(t.matrix())]
        [1.0, 2.0, 5.0]
    """
    t = padded_tridiagonal(matvec, start, num_matvecs, steps)
    return t._replace(basis=t.basis[: num_matvecs + 1])


def padded_tridiagonal(matvec: Matvec, start: Float[Array, " P"], num_matvecs: int, steps: Any = None) -> Tridiagonal:
    """``tridiagonalize`` with the basis as it lies in memory, ``[padded_rows(m + 1), P]``: a slice would copy it."""
    size = start.shape[0]
    if not 1 <= num_matvecs <= size:
        raise ValueError(f"num_matvecs: got {num_matvecs!r}; allowed: an integer in [1, {size}]")
    t = padded_start(start, num_matvecs)
    return extended(matvec, t, num_matvecs if steps is None else steps)


@partial(jax.jit, static_argnames="num_matvecs", inline=True)
def padded_start(start: Array, num_matvecs: int) -> Tridiagonal:
    """Buffers for ``num_matvecs``, before the first of them."""
    basis = jnp.zeros((padded_rows(num_matvecs + 1), start.shape[0]), start.dtype).at[0].set(unit(start))
    zeros = jnp.zeros(num_matvecs, start.dtype)
    return Tridiagonal(zeros, zeros, basis, jnp.int32(0))


def extended(matvec: Matvec, t: Tridiagonal, steps: Any) -> Tridiagonal:
    """A padded ``t`` continued until ``steps`` matvecs are done in all, a traced integer within its buffers."""
    steps = jnp.asarray(steps, jnp.int32)
    return _carried_on(matvec, t, t.steps, steps, steps)


def stepped(matvec: Matvec, t: Tridiagonal, more: int) -> Tridiagonal:
    """``extended`` by ``more`` matvecs, an integer: a loop whose length no lane of a vmap decides."""
    return _carried_on(matvec, t, 0, more, t.steps + more, t.steps)


def _carried_on(matvec: Matvec, t: Tridiagonal, low: Any, high: Any, steps: Array, offset: Any = 0) -> Tridiagonal:
    dtype = t.basis.dtype

    def body(i, carry):
        j = offset + i
        basis, alphas, betas, scale = carry
        q, before = basis[j], jnp.maximum(j - 1, 0)
        alive = (j == 0) | (betas[before] > 0)
        w = matvec(q)
        alpha = jnp.vdot(q, w)
        w = w - alpha * q - jnp.where(j > 0, betas[before], 0) * basis[before]
        w, beta, _ = orthogonal(w, basis, j + 1)
        scale = jnp.maximum(scale, jnp.maximum(jnp.abs(alpha), beta))
        alive_next = alive & (beta > 4 * jnp.finfo(dtype).eps * scale)
        beta = jnp.where(alive_next, beta, 0)
        basis = basis.at[j + 1].set(jnp.where(alive_next, w / jnp.where(beta > 0, beta, 1), 0))
        alphas = alphas.at[j].set(jnp.where(alive, alpha, alphas[0]))
        return basis, alphas, betas.at[j].set(beta), scale

    scale = jnp.maximum(jnp.max(jnp.abs(t.diagonal)), jnp.max(t.offdiagonal))
    carry = (t.basis, t.diagonal, t.offdiagonal, scale)
    basis, alphas, betas, _ = jax.lax.fori_loop(low, high, body, carry)
    alphas = jnp.where(jnp.arange(alphas.shape[0]) < steps, alphas, alphas[0])
    return Tridiagonal(alphas, betas, basis, steps)


def orthogonal(w: Array, basis: Array, count: Any) -> tuple[Array, Array, Array]:
    """``w`` less its components along the first ``count`` rows, its norm, and the components ``[rows]``.

    Once more where much was taken off: then orthogonal to rounding. Rows past ``count`` must be 0.
    """

    def project(carry):
        w, size, _, taken, turn = carry
        w, more = orthogonalize(w, basis, count)
        return w, norm(w), size, taken + more, turn + 1

    def again(carry):
        _, size, before, _, turn = carry
        return (turn == 0) | ((turn == 1) & (size < 0.7 * before))

    size, nothing = norm(w), jnp.zeros(basis.shape[0], w.dtype)
    w, size, _, taken, _ = jax.lax.while_loop(again, project, (w, size, size, nothing, jnp.int32(0)))
    return w, size, taken


def orthogonalize(w: Array, basis: Array, count: Any) -> tuple[Array, Array]:
    """One pass of ``orthogonal``: ``w`` without its components, and the components.

    Block Gram-Schmidt over slices of 8 rows, so that the traffic grows with ``count`` and not with the buffer.
    ``basis`` needs a multiple of 8 rows.
    """

    def body(block, carry):
        w, taken = carry
        rows = jax.lax.dynamic_slice_in_dim(basis, block * _ROWS, _ROWS)
        along = rows @ w
        return w - along @ rows, jax.lax.dynamic_update_slice(taken, along, (block * _ROWS,))

    if basis.shape[0] <= _WHOLE:  # without a slice, without its copy
        along = basis @ w
        return w - along @ basis, along

    zeros = jnp.zeros(basis.shape[0], w.dtype)
    return jax.lax.fori_loop(0, (count + _ROWS - 1) // _ROWS, body, (w, zeros))


@partial(jax.jit, inline=True)
def norm(v: Float[Array, "*v"]) -> Float[Array, ""]:
    """``|v|`` over any range: scaled where squares of tiny or huge entries would vanish or overflow."""
    top, finfo = jnp.max(jnp.abs(v), initial=0), jnp.finfo(v.dtype)
    safe = (top > (v.size * finfo.tiny / finfo.eps) ** 0.5) & (top < (finfo.max / v.size) ** 0.5)
    scale = jnp.where(safe | (top == 0) | ~jnp.isfinite(top), 1, top)
    return scale * jnp.linalg.norm(v / scale)


@partial(jax.jit, inline=True)
def key_of(start: Array) -> Array:
    """A PRNG key derived from the bits of ``start``."""
    bits = jax.lax.bitcast_convert_type(start.astype(jnp.float32), jnp.uint32)
    return jax.random.fold_in(jax.random.key(2000), jnp.sum(bits, dtype=jnp.uint32))


def fresh_direction(key: Array, number: Any, size: int, dtype: Any) -> Array:
    """A uniform unit vector, the ``number``-th of ``key``."""
    z = jax.random.normal(jax.random.fold_in(key, number), (size,), dtype)
    return z / jnp.linalg.norm(z)


@partial(jax.jit, inline=True)
def unit(start: Array) -> Array:
    """``start / |start|``; for zero, the direction of Weyl's sequence ``i (sqrt(5) - 1) / 2 mod 1``."""
    weyl = jnp.arange(start.shape[0], dtype=jnp.uint32) * jnp.uint32(2654435769)
    weyl = jax.lax.bitcast_convert_type(weyl + jnp.uint32(1), jnp.int32).astype(start.dtype) * 2.0**-31
    length = norm(start)
    return jnp.where(length == 0, weyl / jnp.linalg.norm(weyl), start / jnp.where(length == 0, 1, length))


def working(matvec: Matvec, start: Array) -> tuple[Matvec, Array]:
    """``matvec`` for a loop and on vectors of at least float32, and ``start`` as one of them.

    Half precision is no place for orthogonality.

    Raises:
        TypeError: for a complex start.
    """
    start, matvec = jnp.asarray(start), quick_loops(matvec, is_body=True)
    if jnp.issubdtype(start.dtype, jnp.complexfloating):
        raise TypeError(
            f"start: got {start.dtype}; allowed: a real vector, (re, im) of a complex one as operators.real_view has it"
        )
    wide = jnp.promote_types(start.dtype, jnp.float32)
    if start.dtype == wide:
        return matvec, start
    narrow = start.dtype if jnp.issubdtype(start.dtype, jnp.floating) else wide
    return lambda v: matvec(v.astype(narrow)).astype(wide), start.astype(wide)


@partial(jax.jit, inline=True)
def combine(coefficients: Array, basis: Array, count: Any = None) -> Array:
    """``coefficients^T basis``: ``[P]`` for ``[m]``, ``[k, P]`` for ``[m, k]``, m at most the rows of ``basis``.

    With ``count`` only the blocks of 8 rows that hold the first ``count`` are read.
    """
    missing = basis.shape[0] - coefficients.shape[0]
    coefficients = jnp.pad(coefficients, [(0, missing)] + [(0, 0)] * (coefficients.ndim - 1))
    if count is None:
        return coefficients.T @ basis

    def body(block, total):
        rows = jax.lax.dynamic_slice_in_dim(basis, block * _ROWS, _ROWS)
        return total + jax.lax.dynamic_slice_in_dim(coefficients, block * _ROWS, _ROWS).T @ rows

    zeros = jnp.zeros((*coefficients.shape[1:], basis.shape[1]), basis.dtype)
    return jax.lax.fori_loop(0, (count + _ROWS - 1) // _ROWS, body, zeros)


def padded_rows(count: int) -> int:
    """``count`` rounded up to the multiple of rows that ``orthogonalize`` needs."""
    return -(-count // _ROWS) * _ROWS


@full_precision
def three_term(
    matvec: Matvec, start: Float[Array, " P"], num_matvecs: int
) -> tuple[Float[Array, " m"], Float[Array, " m-1"]]:
    """Lanczos without reorthogonalisation: ``(diagonal [m], offdiagonal [m - 1])``, in memory ``3 P``.

    The Ritz values repeat once converged, but the quadrature they define (see ``spectral_density``) stays as accurate
    as with full orthogonality (Golub & Strakos 1994; Knizhnerman 1996).

    Args:
        matvec: ``v [P] -> A v [P]``, ``A`` symmetric.
        start: not zero.
        num_matvecs: m >= 1.

    Raises:
        ValueError: when ``num_matvecs < 1``.
    """
    check_counts(num_matvecs=num_matvecs)
    tiny = jnp.finfo(start.dtype).eps

    def body(carry, _):
        previous, q, beta, scale = carry
        w = matvec(q) - beta * previous
        alpha = jnp.vdot(q, w)
        w = w - alpha * q
        beta = norm(w)
        scale = jnp.maximum(scale, jnp.maximum(jnp.abs(alpha), beta))
        beta = jnp.where(beta > 4 * tiny * scale, beta, 0)
        new = jnp.where(beta > 0, w / jnp.where(beta > 0, beta, 1), 0)
        return (q, new, beta, scale), (alpha, beta)

    zero = jnp.zeros((), start.dtype)
    carry = (jnp.zeros_like(start), unit(start), zero, zero)
    _, (alphas, betas) = jax.lax.scan(body, carry, None, length=num_matvecs)
    return alphas, betas[:-1]
