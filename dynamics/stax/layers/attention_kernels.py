"""Kernels of attention: deterministic, bilinear and random attention matrices, on covariances ``[..., P, P]``."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dynamics.stax.kernel.algebra import where_kept
from dynamics.types import Array


class Covariances(NamedTuple):
    """``cov1 [n1, P, P]``, ``cov2 [n2, P, P]`` (None when ``x2`` is ``x1``), ``nngp`` and ``ntk [n1, n2, P, P]``."""

    cov1: Any
    cov2: Any
    nngp: Any
    ntk: Any


class Scales(NamedTuple):
    """``scores`` = W_query_std W_key_std, ``values`` = W_value_std W_out_std, ``b_std`` (None for no bias)."""

    scores: float
    values: float
    b_std: float | None


def deterministic(
    plain: Covariances, embedded: Covariances, one: Array, two: Array | None, scales: Scales, val_pos_emb: bool
) -> Covariances:
    """Scores over ``d``: attention matrices ``G`` without noise, ``k' = G1 k G2^T``, ``Theta' = G1 Theta G2^T + 2 k'``.

    ``plain`` are the covariances of the inputs and ``embedded`` those with positional embeddings; ``one [n1, P, P]``
    and ``two`` (None when ``x2`` is ``x1``) are ``G1`` and ``G2``.
    """
    cov1, cov2, nngp, ntk = embedded if val_pos_emb else plain
    two = one if two is None else two

    def weigh(cov, left, right, equation) -> Any:
        return where_kept(lambda c: _affine(jnp.einsum(equation, left, c, right), scales.values, scales.b_std), cov)

    inside, across = "nap,npq,nbq->nab", "nap,nmpq,mbq->nmab"
    new, new_ntk = weigh(nngp, one, two, across), weigh(ntk, one, two, across)
    if new_ntk is not None:
        new_ntk = new_ntk + 2 * (new - _bias(scales))
    return Covariances(weigh(cov1, one, one, inside), weigh(cov2, two, two, inside), new, new_ntk)


def bilinear(plain: Covariances, embedded: Covariances, scales: Scales, val_pos_emb: bool) -> Covariances:
    """Scores over ``sqrt(d)`` without a nonlinearity: ``k' = k <k, k>`` up to scales."""
    std, values = scales.scores * scales.values, embedded if val_pos_emb else plain

    def dot(left, right):
        return jnp.sum(left * right, (-2, -1), keepdims=True)

    def new(scores, values) -> Any:
        return where_kept(lambda k: _affine(dot(k, values) * k, std, scales.b_std), scores)

    nngp, ntk, new_ntk = embedded.nngp, embedded.ntk, None
    if ntk is not None:
        mixed = dot(nngp, values.ntk) + dot(values.nngp, ntk)
        new_ntk = _affine(mixed * nngp + dot(nngp, values.nngp) * (ntk + 4 * nngp), std, scales.b_std)
    cov1, cov2, new_nngp = map(new, embedded[:3], values[:3])
    return Covariances(cov1, cov2, new_nngp, new_ntk)


class Estimate(NamedTuple):
    """Means over sampled heads and their standard errors, both as ``Covariances``."""

    mean: Covariances
    standard_error: Covariances


def sampled(
    plain: Covariances, embedded: Covariances, zeta, scales: Scales, val_pos_emb: bool, key, n_samples: int
) -> Estimate:
    """Scores over ``sqrt(d)``: the attention matrices stay random, and the limit averages over infinitely many heads.

    Scores are Gaussian, ``E G_ac G'_bd = scores^2 k_ab k_cd``. With ``A = zeta(G)`` (by rows) and ``J`` its derivative,
    ``k'_ab = values^2 sum_cd k_cd E[A_ac A'_bd] + b_std^2`` and ``Theta'_ab = 2 (k'_ab - b_std^2) + b_std^2 +
    values^2 sum_cd Theta_cd E[A_ac A'_bd] + values^2 scores^2 sum_cdef k_cd E[J_a,ce J'_b,df]
    (2 k_ab k_ef + k_ab Theta_ef + Theta_ab k_ef)``.

    Args:
        key, n_samples: one head is drawn ``n_samples`` times, the same noise for every pair of inputs.

    Returns:
        Unbiased means and standard errors ``sqrt(var / n_samples)``, up to the jitter of the Cholesky factor (1e-5
        relative in float32). Cost: ``n_samples`` times ``P^5`` for the NTK, ``P^4`` for the NNGP, a pair of inputs.

    Reference: Hron, Bahri, Sohl-Dickstein & Novak 2020, theorems 3 and 4.
    """
    values = embedded if val_pos_emb else plain
    same = plain.cov2 is None

    def own(k, v):
        return where_kept(lambda k: _Pairs(k[:, None], v[:, None], None, None, k[:, None], k[:, None]), k)

    one, two = embedded.cov1[:, None], (embedded.cov1 if same else embedded.cov2)[None]
    cross = _Pairs(embedded.nngp, values.nngp, embedded.ntk, values.ntk, one, two)
    sets = own(embedded.cov1, values.cov1), own(embedded.cov2, values.cov2), cross
    factors = jax.tree.map(_factor, sets, is_leaf=lambda x: isinstance(x, _Pairs))

    def head(key):
        cov1, cov2, (nngp, ntk) = (
            (None, None) if pairs is None else _head(pairs, factor, zeta, scales, key)
            for pairs, factor in zip(sets, factors, strict=True)
        )
        inside = [where_kept(lambda c: c[:, 0], c[0]) for c in (cov1, cov2)]
        found = Covariances(inside[0], inside[1], nngp, ntk)
        if not same:
            return found
        return found._replace(**{n: where_kept(_symmetric, getattr(found, n)) for n in ("nngp", "ntk")})

    def accumulate(state, key):
        count, mean, spread = state
        new = head(key)
        delta = jax.tree.map(jnp.subtract, new, mean)
        mean = jax.tree.map(lambda m, d: m + d / (count + 1), mean, delta)
        spread = jax.tree.map(lambda s, d, x, m: s + d * (x - m), spread, delta, new, mean)
        return (count + 1, mean, spread), None

    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(head, key))
    (_, mean, spread), _ = jax.lax.scan(accumulate, (0, zero, zero), jax.random.split(key, n_samples))
    return Estimate(mean, jax.tree.map(lambda s: jnp.sqrt(s / (n_samples * max(n_samples - 1, 1))), spread))


class _Pairs(NamedTuple):
    """``[n1, n2, P, P]`` covariances of pairs: ``k`` and ``ntk`` of scores, ``k_value`` and ``ntk_value`` of values."""

    k: Any
    k_value: Any
    ntk: Any
    ntk_value: Any
    cov1: Any
    cov2: Any


def _factor(pairs: _Pairs) -> Array:
    """``[n1, n2, 2 P, 2 P]`` Cholesky factors of the covariance of both inputs of a pair."""
    k, shape = pairs.k, pairs.k.shape
    one, two = (jnp.broadcast_to(c, shape) for c in (pairs.cov1, pairs.cov2))
    whole = jnp.concatenate([jnp.concatenate([one, k], -1), jnp.concatenate([k.swapaxes(-1, -2), two], -1)], -2)
    size = whole.shape[-1]
    jitter = 80 * float(jnp.finfo(k.dtype).eps) * jnp.trace(whole, axis1=-2, axis2=-1) / size
    return jnp.linalg.cholesky(whole + jitter[..., None, None] * jnp.eye(size, dtype=k.dtype))


def _head(pairs: _Pairs, factor: Array, zeta, scales: Scales, key) -> tuple[Array, Array | None]:
    """One head's ``k'`` and ``Theta'`` (None without an NTK)."""
    size = factor.shape[-1]
    noise = jax.random.normal(key, (size, size), factor.dtype)
    halves = factor[..., : size // 2, :], factor[..., size // 2 :, :]
    scores = [scales.scores * jnp.einsum("...pi,ij,...qj->...pq", half, noise, half) for half in halves]
    one, two = map(zeta, scores)

    def weigh(k):
        return scales.values**2 * jnp.einsum("...ac,...cd,...bd->...ab", one, k, two)

    new = weigh(pairs.k_value)
    if pairs.ntk is None:
        return new + _bias(scales), None
    slopes = [_row_jacobian(zeta, s) for s in scores]

    def through_scores(k):
        shared = jnp.einsum("...ace,...cd->...ade", slopes[0], pairs.k_value)
        shared = jnp.einsum("...ade,...ef->...adf", shared, k)
        return (scales.values * scales.scores) ** 2 * jnp.einsum("...adf,...bdf->...ab", shared, slopes[1])

    k, ntk = through_scores(pairs.k), through_scores(pairs.ntk)
    moved = pairs.k * (2 * k + ntk) + pairs.ntk * k
    return new + _bias(scales), 2 * new + _bias(scales) + weigh(pairs.ntk_value) + moved


def _row_jacobian(zeta, scores: Array) -> Array:
    """``[..., a, c, e]`` derivative of ``zeta(G)_ac`` in ``G_ae``."""
    units = jnp.eye(scores.shape[-1], dtype=scores.dtype)

    def along(unit):
        return jax.jvp(zeta, (scores,), (jnp.broadcast_to(unit, scores.shape),))[1]

    return jax.vmap(along, out_axes=-1)(units)


def _symmetric(x: Array) -> Array:
    return 0.5 * (x + jnp.transpose(x, (1, 0, 3, 2)))


def _affine(cov: Array, std, b_std) -> Array:
    return std**2 * cov + (0 if b_std is None else b_std**2)


def _bias(scales: Scales):
    return 0 if scales.b_std is None else scales.b_std**2


def position_covariance(shape, p_norm, decay_fn, dtype) -> Array:
    """``[P, P]`` covariance of positional embeddings."""
    size = math.prod(shape)
    if decay_fn is None:
        return jnp.eye(size, dtype=dtype)
    grid = jnp.stack(jnp.meshgrid(*(jnp.arange(s) for s in shape), indexing="ij"), -1).reshape(size, -1)
    distance = jnp.sum(jnp.abs(grid[:, None] - grid[None]).astype(dtype) ** p_norm, -1)
    return decay_fn(distance)
