"""Exact learning dynamics of deep linear networks on whitened inputs: mode by mode, at any depth, and in closed form.

The network is ``f(x) = W_K ... W_1 x`` with loss ``1/2 |S - W_K ... W_1|_F^2``, ``S`` the input-output correlation, and
learning is gradient flow, ``time = learning_rate * step``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Float, PRNGKeyArray

from dynamics.arguments import program
from dynamics.types import Array, ArrayLike

_NODES = 64


@program
def mode_strength(times: ArrayLike, s: ArrayLike, a0: ArrayLike) -> Float[Array, "*shape"]:
    """The strength of one mode of a two-layer linear net, ``a(t) = s e^{2st} / (e^{2st} - 1 + s/a0)``.

    Args:
        times: ``t``, any shape; gradient-flow time.
        s: the target's singular value, > 0; broadcast against ``times``.
        a0: the strength at the start, > 0.

    Returns:
        ``a(t)``, of the broadcast shape. Differentiable in all three.

    Assumptions: balanced weights whose singular vectors are those of the target; whitened inputs.

    Cost: O(1) an entry.

    Reference: Saxe, McClelland & Ganguli 2013, eq. 9.

    Example:
        >>> float(mode_strength(0.0, 2.0, 0.5)), float(mode_strength(50.0, 2.0, 0.5))
        (0.5, 2.0)
    """
    times, s, a0 = jnp.asarray(times), jnp.asarray(s), jnp.asarray(a0)
    return s / (1.0 + (s / a0 - 1.0) * jnp.exp(-2.0 * s * times))


@program
def learning_time(a0: ArrayLike, a1: ArrayLike, s: ArrayLike, depth: ArrayLike) -> Float[Array, "*shape"]:
    """Time for a mode to go from ``a0`` to ``a1``, times the depth: ``K t = int da / (a^{2-2/K} (s - a))``.

    With the learning rate ``c/K`` the number of steps is ``learning_time / c`` at any depth, infinity included. The
    substitution ``a = s / (1 + e^{-u})`` turns the integral into ``(1/s) int a^{2/K-1} du``, which 64 Gauss-Legendre
    nodes take to rounding error for ``s/a0`` up to about 1e6.

    Args:
        a0: the strength at the start, in ``(0, s)``.
        a1: the strength at the end, in ``(0, s)``.
        s: the target's singular value, > 0.
        depth: number of weight matrices ``K >= 1``; ``inf`` is allowed.

    Returns:
        ``K t``, of the broadcast shape; negative when ``a1 < a0``. Differentiable.

    Assumptions: every layer carries the same singular value ``a^{1/K}`` along the target's singular vectors.

    Cost: 64 nodes an entry.

    Reference: Saxe, McClelland & Ganguli 2013, eqs. 12-13.

    Example:
        >>> import math
        >>> round(float(learning_time(0.1, 0.9, 1.0, 2)), 4) == round(math.log(81), 4)
        True
    """
    a0, a1, s, depth = (jnp.asarray(value, _float()) for value in (a0, a1, s, depth))
    u0, u1 = jnp.log(a0 / (s - a0)), jnp.log(a1 / (s - a1))
    return _scaled_time(u0, u1, s, depth)


@program
def deep_mode_strength(times: ArrayLike, s: ArrayLike, a0: ArrayLike, depth: ArrayLike) -> Float[Array, "*shape"]:
    """The strength of one mode at any depth: the solution of ``da/dT = a^{2-2/K} (s - a)`` with ``T = K t``.

    ``learning_time`` is inverted by bisection in ``u = log(a/(s-a))``, then one Newton step, which also carries the
    derivative. Depth 2 gives ``mode_strength(T/2)``.

    Args:
        times: depth-scaled time ``T = K t >= 0``.
        s: the target's singular value, > 0.
        a0: the strength at the start, in ``(0, s)``.
        depth: number of weight matrices ``K >= 2``; ``inf`` is allowed.

    Returns:
        ``a(T)``, of the broadcast shape. Differentiable and vmappable.

    Assumptions: as for ``learning_time``, whose range ``s/a0 < 1e6`` holds here too.

    Cost: 60 quadratures of 64 nodes an entry.

    Reference: Saxe, McClelland & Ganguli 2013, eqs. 12-13.
    """
    times, s, a0, depth = jnp.broadcast_arrays(*(jnp.asarray(value, _float()) for value in (times, s, a0, depth)))
    u0 = jnp.log(a0 / (s - a0))
    low = u0 + s * times * a0 ** (1.0 - 2.0 / depth)
    high = u0 + s * times * s ** (1.0 - 2.0 / depth)

    def halve(_, bracket):
        low, high = bracket
        middle = 0.5 * (low + high)
        early = _scaled_time(u0, middle, s, depth) < times
        return jnp.where(early, middle, low), jnp.where(early, high, middle)

    low, high = jax.lax.fori_loop(0, 60, halve, (low, high))
    u = jax.lax.stop_gradient(0.5 * (low + high))
    slope = (s / (1.0 + jnp.exp(-u))) ** (2.0 / depth - 1.0) / s
    u = u - (_scaled_time(u0, u, s, depth) - times) / slope
    return s / (1.0 + jnp.exp(-u))


class LinearNet(NamedTuple):
    """What a two-layer linear net is up to rotations of its hidden layer.

    Attributes:
        function: ``W2 W1``.
        inputs: ``W1^T W1``, the similarity of the input representations.
        outputs: ``W2 W2^T``.
    """

    function: Float[Array, "... N_o N_i"]
    inputs: Float[Array, "... N_i N_i"]
    outputs: Float[Array, "... N_o N_o"]


def lambda_balanced(
    times: Any,
    w1: Float[Array, "h N_i"],
    w2: Float[Array, "N_o h"],
    correlation: Float[Array, "N_o N_i"],
    *,
    substeps: int | None = None,
) -> LinearNet:
    """The exact solution of a two-layer linear net from a lambda-balanced start, of any shape.

    With ``Q = [W1^T; W2]``, ``F = [[-lam/2 I, S^T], [S, lam/2 I]]`` the flow is ``Q' = F Q - Q Q^T Q / 2`` and
    ``P = Q Q^T`` obeys a Riccati equation with the solution

        P(t) = e^{Ft} P0 [I + (e^{2Ft} - I) (2F)^{-1} P0]^{-1} e^{Ft}.

    Each interval between times is taken in ``substeps`` pieces: over one with ``|F| t > 15`` the inverse loses digits.

    Args:
        times: increasing times >= 0, ``[T]``, concrete.
        w1, w2: the start, ``W2^T W2 - W1 W1^T = lam I`` (``lambda_balanced_init``); lam is read off the trace.
        correlation: the target map S.
        substeps: pieces an interval; None takes as many as ``|F|`` needs, which only concrete weights can tell (give
            a number under ``jit``, ``grad`` or ``vmap``).

    Returns:
        A ``LinearNet`` whose arrays lead with ``[T]``. Differentiable in the weights and ``correlation`` where the
        eigenvalues of ``F`` are distinct.

    Raises:
        ValueError: when shapes disagree, times are not increasing from >= 0, the (concrete) start is not balanced, or
            ``substeps`` is None under a transformation.

    Assumptions: whitened inputs, gradient flow, a lambda-balanced start.

    Cost: one ``eigh`` and, a time, one solve of size ``N_i + N_o``.

    Reference: Domine et al. 2024, 'From lazy to rich', theorem 5.1 (Fukumizu 1998 at lam = 0).
    """
    (h, n_in), (n_out, h2), times = w1.shape, w2.shape, np.asarray(times, float)
    if h != h2 or correlation.shape != (n_out, n_in):
        raise ValueError(f"correlation: got {correlation.shape} for {w1.shape}, {w2.shape}; allowed: [N_o, N_i]")
    if times.ndim != 1 or np.any(np.diff(times, prepend=0.0) < 0):
        raise ValueError(f"times: got {times.tolist()[:6]}; allowed: increasing, >= 0, one axis")
    longest = _longest_piece(w1, w2, correlation) if substeps is None else math.inf
    intervals = np.diff(times, prepend=0.0)
    counts = [0 if interval == 0 else substeps or math.ceil(interval / longest) for interval in intervals]
    pieces = np.repeat(intervals / np.maximum(counts, 1), counts)
    return _closed_form(w1, w2, correlation, jnp.asarray(pieces, w1.dtype), jnp.asarray(np.cumsum(counts)))


def lambda_balanced_init(
    key: PRNGKeyArray, shape: tuple[int, int, int], lam: float, scale: float
) -> tuple[Float[Array, "h N_i"], Float[Array, "N_o h"]]:
    """Random weights with ``W2^T W2 - W1 W1^T = lam I`` whose product is ``scale`` times a Gaussian matrix.

    Args:
        key: PRNG key.
        shape: ``(N_i, h, N_o)``; a positive lam needs ``h <= N_o``, a negative one ``h <= N_i``.
        lam: the imbalance.
        scale: standard deviation of the product's entries times ``sqrt(max(N_i, N_o))``.

    Raises:
        ValueError: when no such weights exist.

    Cost: one singular value decomposition of ``[N_o, N_i]`` and one QR of ``[h, h]``.
    """
    n_in, h, n_out = shape
    if (lam > 0 and h > n_out) or (lam < 0 and h > n_in):
        raise ValueError(f"shape: got {shape} with lam={lam}; allowed: h <= N_o for lam > 0, h <= N_i for lam < 0")
    return _balanced_pair(key, shape, lam, scale)


def linear_net_ntk(
    net: LinearNet, x1: Float[Array, "n1 N_i"], x2: Float[Array, "n2 N_i"]
) -> Float[Array, "... n1 n2 N_o N_o"]:
    """The tangent kernel of a two-layer linear net, ``(W2 W2^T)_ij x.x' + delta_ij x^T W1^T W1 x'``.

    Args:
        net: from ``lambda_balanced`` or from weights.
        x1, x2: inputs.

    Returns:
        The kernel, two axes for the outputs last. Differentiable and vmappable.

    Cost: ``O(n1 n2 (N_i + N_o^2))`` a net.
    """
    gram = jnp.einsum("ai,bi->ab", x1, x2)
    hidden = jnp.einsum("ai,...ij,bj->...ab", x1, net.inputs, x2)
    eye = jnp.eye(net.outputs.shape[-1], dtype=hidden.dtype)
    return gram[:, :, None, None] * net.outputs[..., None, None, :, :] + hidden[..., None, None] * eye


def imbalance(weights: Sequence[Float[Array, "_ _"]]) -> list[Float[Array, "_ _"]]:
    """``W_{l+1}^T W_{l+1} - W_l W_l^T`` between neighbouring layers: conserved by gradient flow of any linear net.

    Args:
        weights: ``W_1 [n_1, n_0]``, ``W_2 [n_2, n_1]``, ...; ``f(x) = ... W_2 W_1 x``.

    Reference: Saxe, McClelland & Ganguli 2013; Arora, Cohen & Hazan 2018, theorem 1.
    """
    return [after.T @ after - before @ before.T for before, after in itertools.pairwise(weights)]


def saddle_losses(s: Any) -> Float[Array, " _"]:
    """Losses of the plateaus a small start passes: ``L_i = 1/2 sum_{j > i} s_j^2``, ``i`` modes learnt.

    Args:
        s: the target's singular values, ``[r]``, in any order.

    Returns:
        ``[r + 1]``, from no mode learnt to all.

    Assumptions: the limit of a vanishing start, distinct singular values, whitened inputs.

    Reference: Jacot et al. 2021, 'Saddle-to-saddle dynamics in deep linear networks'; Li, Luo & Lyu 2021.
    """
    energy = 0.5 * jnp.sort(jnp.asarray(s)) ** 2
    return jnp.concatenate([jnp.zeros(1, energy.dtype), jnp.cumsum(energy)])[::-1]


def _float():
    return jnp.result_type(float)


def _scaled_time(u0: Array, u1: Array, s: Array, depth: Array) -> Array:
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    u0, u1, s, depth = (value[..., None] for value in jnp.broadcast_arrays(u0, u1, s, depth))
    middle, half = 0.5 * (u0 + u1), 0.5 * (u1 - u0)
    u = middle + half * jnp.asarray(nodes, u0.dtype)
    log_a = jnp.log(s) - jnp.logaddexp(0.0, -u)
    integrand = jnp.exp((2.0 / depth - 1.0) * log_a) / s
    return jnp.sum(half * jnp.asarray(weights, u0.dtype) * integrand, axis=-1)


@partial(jax.jit, static_argnums=(1, 2))
def _balanced_pair(key: Array, shape: tuple[int, int, int], lam: float, scale: ArrayLike) -> tuple[Array, Array]:
    n_in, h, n_out = shape
    product_key, rotation_key = jax.random.split(key)
    gaussian = scale / math.sqrt(max(n_in, n_out)) * jax.random.normal(product_key, (n_out, n_in))
    left, strength, right = jnp.linalg.svd(gaussian)
    count = min(n_in, n_out, h)
    root = jnp.sqrt(lam**2 + 4 * strength[:count] ** 2)
    s1 = jnp.pad(jnp.sqrt((root - lam) / 2), (0, h - count), constant_values=math.sqrt(max(-lam, 0.0)))
    s2 = jnp.pad(jnp.sqrt((root + lam) / 2), (0, h - count), constant_values=math.sqrt(max(lam, 0.0)))
    rotation = jnp.linalg.qr(jax.random.normal(rotation_key, (h, h)))[0]
    k1, k2 = min(h, n_in), min(h, n_out)
    return (rotation[:, :k1] * s1[:k1]) @ right[:k1], (left[:, :k2] * s2[:k2]) @ rotation[:, :k2].T


@jax.jit
def _closed_form(w1: Array, w2: Array, correlation: Array, pieces: Array, read: Array) -> LinearNet:
    (h, n_in), n_out = w1.shape, w2.shape[0]
    lam = jnp.trace(imbalance([w1, w2])[0]) / h
    f = jnp.block([[-lam / 2 * jnp.eye(n_in), correlation.T], [correlation, lam / 2 * jnp.eye(n_out)]]).astype(w1.dtype)
    w, v = jnp.linalg.eigh(f)
    q = v.T @ jnp.concatenate([w1.T, w2])

    def advance(p, t):
        small = jnp.abs(w) * t < 1e-6
        area = jnp.where(small, t * (1.0 + w * t), jnp.expm1(2 * w * t) / jnp.where(small, 1.0, 2 * w))
        solved = jnp.linalg.solve(jnp.eye(len(w), dtype=p.dtype) + p * area[None, :], p)
        grow = jnp.exp(w * t)
        p = grow[:, None] * 0.5 * (solved + solved.T) * grow[None, :]
        return p, p

    start = q @ q.T
    _, passed = jax.lax.scan(advance, start, pieces)
    p = v @ jnp.concatenate([start[None], passed])[read] @ v.T
    return LinearNet(p[:, n_in:, :n_in], p[:, :n_in, :n_in], p[:, n_in:, n_in:])


def _longest_piece(w1: Array, w2: Array, correlation: Array) -> float:
    if any(isinstance(value, Tracer) for value in (w1, w2, correlation)):
        raise ValueError("substeps: got None with traced weights; allowed: a number of pieces under jit, grad or vmap")
    first, second = np.asarray(w1), np.asarray(w2)
    off = second.T @ second - first @ first.T
    lam = np.trace(off) / len(off)
    size = np.linalg.norm(off - lam * np.eye(len(off))) / (np.sum(first**2) + np.sum(second**2))
    allowed = 1e3 * float(np.finfo(first.dtype).eps)
    if size > allowed:
        raise ValueError(
            f"w1, w2: got W2^T W2 - W1 W1^T off lam I by {size:.1e} of |W|^2; allowed: up to {allowed:.0e}"
        )
    return 15.0 / math.hypot(float(np.linalg.norm(np.asarray(correlation), 2)), lam / 2)
