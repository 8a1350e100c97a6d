"""Extreme eigenvalues with a lower and an upper bound from one short Lanczos run, warm or cold."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, PRNGKeyArray

from dynamics.arguments import INSIDE, check_numbers
from dynamics.linalg.lanczos import (
    Matvec,
    Tridiagonal,
    combine,
    norm,
    padded_start,
    padded_tridiagonal,
    stepped,
    working,
)
from dynamics.precision import full_precision
from dynamics.types import Array


class Bound(NamedTuple):
    """A certified extreme eigenvalue.

    Attributes:
        value: Ritz value: a lower bound on lambda_max (an upper bound on lambda_min) up to rounding.
        residual: ``|A v - value v|``: SOME eigenvalue lies this near to ``value``.
        limit: lambda_max <= limit (lambda_min >= limit) except with probability at most p.
        vector: the unit Ritz vector, NaN where ``value`` is; the next warm start.
        matvecs: int32.
    """

    value: Float[Array, ""]
    residual: Float[Array, ""]
    limit: Float[Array, ""]
    vector: Float[Array, " P"]
    matvecs: Int[Array, ""]


def warm_start(
    key: PRNGKeyArray, previous: Float[Array, " P"], tau: float
) -> tuple[Float[Array, " P"], Float[Array, ""]]:
    """``u = previous + tau z`` with ``z`` a fresh uniform unit vector, and the ratio ``tau / |u|`` of the certificate.

    Args:
        key: a key used for nothing else; the certificate needs ``z`` independent of the matrix and of ``previous``.
        previous: a unit vector; zeros, or what is not finite, for a cold start (the ratio is then 1).
        tau: size of the random part, > 0.
    """
    z = jax.random.normal(key, previous.shape, previous.dtype)
    z = z / jnp.linalg.norm(z)
    u = jnp.where(jnp.all(jnp.isfinite(previous)), previous, 0) + tau * z
    return u, tau / jnp.linalg.norm(u)


@full_precision
def extreme_eigenvalues(
    matvec: Matvec,
    start: Float[Array, " P"],
    num_matvecs: int,
    *,
    random_share: Any = 1.0,
    p: float = 1e-4,
    steps: Any = None,
) -> tuple[Bound, Bound]:
    """Lambda_max and lambda_min of a symmetric operator with two-sided bounds.

    Lanczos from ``u = u_prev + tau z`` gives the monic polynomial ``chi(x) = prod_i (x - theta_i)`` of the Ritz
    values with ``|chi(A) u/|u|| = beta_1 ... beta_m``. The component along the top eigenvector x_1 of that vector is
    ``chi(lambda_1) gamma`` with ``gamma = <u, x_1>/|u|``, so that

        prod_i (lambda_1 - theta_i) |gamma| <= prod_j beta_j.

    The left side grows with lambda_1 > theta_1; hence, for any ``delta <= |gamma|``, ``lambda_1 <= x`` where

        sum_i log(x - theta_i) = sum_j log beta_j + log(1/delta).

    It remains to bound gamma from below. For z uniform on the sphere of R^P and independent of x_1 and u_prev,
    ``<z, x_1>`` has a density of at most ``sqrt(P / 2 pi)``; so ``a + tau <z, x_1>`` falls into ``[-e, e]`` with
    probability at most ``(2 e / tau) sqrt(P / 2 pi)``, whatever the overlap ``a = <u_prev, x_1>``. Setting this to p
    gives ``delta = p sqrt(pi / 2P) tau / |u|``. A multiple eigenvalue only helps. Rounding is covered by
    ``10 eps max|theta|``.

    Args:
        matvec: ``v [P] -> A v [P]``, ``A`` symmetric.
        start: u above, or any random vector that is isotropic.
        num_matvecs: m, buffer size; 6-10 follow a slowly moving matrix, 30 certify.
        random_share: ``tau / |u|`` from ``warm_start``; 1 for a start that is all random.
        p: probability, per bound, that the limit is violated.
        steps: matvecs to do, traced, at most ``num_matvecs``.

    Returns:
        ``(top, bottom)``, two ``Bound``. The bottom's warm start is the top's: its limit stays valid, but is wider.

    Raises:
        ValueError: unless ``0 < p < 1``.

    Cost: ``steps`` matvecs, ``4 steps^2 P`` flops.

    Reference: van Dorsselaer, Hochstenbach & van der Vorst 2000, 'Computing probabilistic bounds for extreme
    eigenvalues of symmetric matrices with the Lanczos method', section 3, for random starts.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> d = jnp.linspace(0.0, 1.0, 100).at[-1].set(2.0)
        >>> top, bottom = extreme_eigenvalues(lambda v: d * v, jax.random.normal(jax.random.key(0), (100,)), 30)
        >>> bool(top.value <= 2.00001) and bool(top.limit >= 2.0) and bool(bottom.limit <= 0.0)
        True
    """
    matvec, start = working(matvec, start)
    target = log_inverse_delta(start, random_share, p)
    t = padded_tridiagonal(matvec, start, num_matvecs, steps)
    return _bound(t, target), _bound(t, target, -1.0)


@full_precision
def certified_eigenvalue(
    matvec: Matvec,
    start: Float[Array, " P"],
    num_matvecs: int,
    certify: Any,
    certified_matvecs: int,
    *,
    interval: float = 1e-3,
    random_share: Any = 1.0,
    p: float = 1e-4,
) -> Bound:
    """The top of ``extreme_eigenvalues`` in ``num_matvecs`` products, continued where ``certify`` to a close bound.

    The bound of ``extreme_eigenvalues`` fails only if ``|gamma| < delta``, which the start alone decides: it holds
    after every number of products at once, so that stopping as soon as it is close costs no probability.

    Args:
        matvec, start, num_matvecs, random_share, p: as there.
        certify: traced bool.
        certified_matvecs: at most so many products where ``certify``, at least ``num_matvecs``.
        interval: ``(limit - value) / |value|`` at which to stop, looked at every ``g`` products, the greatest
            common divisor of both numbers; 0 never stops early.

    Raises:
        ValueError: unless ``0 < p < 1``.

    Cost: ``2 matvecs^2 P`` flops besides; one copy of the product in the program.

    Reference: as there.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> d = jnp.linspace(0.0, 1.0, 1000).at[-1].set(2.0)
        >>> top = certified_eigenvalue(lambda v: d * v, jax.random.normal(jax.random.key(0), (1000,)), 6, True, 30)
        >>> bool(2.0 <= top.limit <= 1.001 * top.value), bool(top.matvecs < 30)
        (True, True)
    """
    matvec, start = working(matvec, start)
    target = log_inverse_delta(start, random_share, p)
    if certified_matvecs == num_matvecs:
        return _bound(padded_tridiagonal(matvec, start, num_matvecs), target)
    stride = math.gcd(num_matvecs, certified_matvecs)
    asked = jnp.where(certify, 1, 0)  # turns of a loop: a branch would run in every lane of a vmap

    def short(t: Tridiagonal) -> Ritz:
        ritz = _ritz(Tridiagonal(t.diagonal[:num_matvecs], t.offdiagonal[:num_matvecs], t.basis, t.steps))
        return jax.tree.map(lambda a: jnp.pad(a, (0, certified_matvecs - num_matvecs)), ritz)

    def step(carry):
        t = stepped(matvec, carry[0], stride)
        found = _extreme(jax.lax.fori_loop(0, asked, lambda *_: _ritz(t), short(t)), t.offdiagonal, target)
        far = (t.steps < certified_matvecs) & (found.limit - found.value > interval * jnp.abs(found.value))
        return t, found, (t.steps < num_matvecs) | (far & (asked > 0))

    t, zero = padded_start(start, certified_matvecs), jnp.zeros((), start.dtype)
    nothing = Extreme(zero, zero, zero, jnp.zeros_like(t.diagonal))
    t, found, _ = jax.lax.while_loop(lambda carry: carry[2], step, (t, nothing, jnp.bool_(True)))
    return _with_vector(found, t)


def log_inverse_delta(start: Float[Array, " P"], random_share: Any, p: float) -> Float[Array, ""]:
    """``log(1/delta)`` of ``extreme_eigenvalues``."""
    check_numbers(p=(p, INSIDE))
    return -jnp.log(jnp.asarray(p * (jnp.pi / (2 * start.shape[0])) ** 0.5, start.dtype) * random_share)


class Ritz(NamedTuple):
    """Ritz values; 1 for one of them and 0 for padding; ``Tridiagonal.real``; coordinates, ``[m, m]``."""

    theta: Array
    share: Array
    real: Array
    s: Array


class Extreme(NamedTuple):
    """``Bound`` with the coordinates ``[m]`` of its vector in the basis."""

    value: Array
    residual: Array
    limit: Array
    coordinates: Array


def _ritz(t: Tridiagonal) -> Ritz:
    theta, s = jnp.linalg.eigh(t.matrix())
    real = t.real()
    return Ritz(theta, jnp.where(real, 1, 0).astype(theta.dtype) @ s**2, real, s)


@partial(jax.jit, static_argnames="sign", inline=True)
def _bound(t: Tridiagonal, log_inverse_delta: Array, sign: float = 1.0) -> Bound:
    return _with_vector(_extreme(_ritz(t), t.offdiagonal, log_inverse_delta, sign), t)


@partial(jax.jit, inline=True)
def _with_vector(found: Extreme, t: Tridiagonal) -> Bound:
    vector = combine(found.coordinates, t.basis, t.steps)
    size = jnp.where(jnp.isnan(found.value), jnp.nan, norm(vector))  # of no eigenvalue there is no eigenvector
    return Bound(found.value, found.residual, found.limit, vector / size, t.steps)


@partial(jax.jit, static_argnames="sign", inline=True)
def _extreme(ritz: Ritz, betas: Array, log_inverse_delta: Array, sign: float = 1.0) -> Extreme:
    """The top Ritz value and its limit: the x of ``extreme_eigenvalues`` by bisection on ``log(x - max theta)``."""
    theta, share, real, s = ritz
    theta, finfo = sign * theta, jnp.finfo(theta.dtype)
    found = jnp.where(share > 0.5, theta, -jnp.inf)
    index, last, top = jnp.argmax(found), jnp.sum(real) - 1, jnp.max(found)
    size = jnp.max(jnp.abs(theta))
    residual = jnp.maximum(betas[last] * jnp.abs(s[last, index]), 10 * finfo.eps * size)
    floor = finfo.eps * jnp.maximum(size, finfo.tiny / finfo.eps)
    target = jnp.sum(jnp.where(real, jnp.log(jnp.maximum(betas, floor)), 0)) + log_inverse_delta
    gaps = jnp.maximum(top - theta, 0)

    def halve(_, bracket):
        low, high = bracket
        middle = 0.5 * (low + high)
        above = jnp.sum(share * jnp.log(jnp.exp(middle) + gaps)) > target
        return jnp.where(above, low, middle), jnp.where(above, middle, high)

    # prod (x - theta_i) >= (x - top)^rank bounds x from above.
    high = jnp.maximum(target / jnp.sum(share), jnp.log(floor))
    _, excess = jax.lax.fori_loop(0, 40, halve, (jnp.minimum(jnp.log(floor), high), high))
    limit = top + jnp.exp(excess) + 10 * floor
    return Extreme(sign * top, residual, sign * limit, s[:, index])
