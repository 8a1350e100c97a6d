"""Neural scaling laws of gradient flow on random features: the bottlenecks of time, size and data.

A linear model with ``n`` random features of inputs with covariance eigenvalues ``lam_k`` learns ``w*`` by gradient
flow. Its mean error along mode k has the Laplace transform ``1/(s + lam_k R(s))``, where the response ``R`` tells how
much of the gradient passes the bottleneck; ``c_k = lam_k w*_k^2`` weighs the modes in the loss.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Complex, Float, Inexact, Num, Real

from dynamics.arguments import program
from dynamics.types import Array, ArrayLike


class Loss(NamedTuple):
    """``loss`` at the times asked for, and ``residual``: the largest error of the response equation met on the way;
    of samples ``train`` too, the mean squared error on them (label noise included)."""

    loss: Float[Array, " T"]
    residual: Float[Array, ""]
    train: Float[Array, " T"] | None = None


class Exponents(NamedTuple):
    """Powers with which the loss falls: with ``time``, with features (``size``), with samples (``data``), each where
    the others are plenty, and with ``compute`` at its best ``best_time``, the power of the compute with which the time
    grows."""

    time: float
    size: float
    data: float
    compute: float
    best_time: float


def power_law_spectrum(modes: int, a: float, b: float) -> tuple[Float[Array, " modes"], Float[Array, " modes"]]:
    """``lam_k = k^-b`` and ``c_k = lam_k w*_k^2 = k^-a``: Bordelon et al. 2024, eq. 15."""
    k = jnp.arange(1, modes + 1, dtype=jnp.result_type(float))
    return k**-b, k**-a


def exponents(a: float, b: float) -> Exponents:
    """The scaling exponents of ``power_law_spectrum``: time (a-1)/b, size min(a-1, b), data min(a-1, 2b).

    Size and data differ. With ``sum_k lam_k/(lam_k + kappa) = n``
    and hence ``kappa ~ n^-b``, n random features that have learnt all they can leave the residual of a projection,

        L = sum_k c_k kappa/(lam_k + kappa) ~ sum_{k > n} k^-a + kappa sum_{k < n} k^(b-a) ~ n^-(a-1) + n^-b,

    where P samples leave ``sum_k c_k kappa^2/(lam_k + kappa)^2/(1 - gamma) ~ P^-(a-1) + P^-2b``: features act on the
    target once, samples on the error and its transpose. The paper states min(a-1, 2b) for both, which is the same only
    where ``a - 1 <= b``.

    The compute exponent is that of the frontier over size and time, ``C = n t``, where time and size balance: it is the
    harmonic combination of the two, (a-1)/(1+b) where ``a - 1 < b``, at ``t ~ C^(size/(size + time))``, which is
    ``C^(b/(1+b))`` there.

    Reference: Bordelon, Atanasov & Pehlevan 2024, 'A dynamical model of neural scaling laws', section 4; the size
    exponent above, derived here, departs from it where ``a - 1 > b``.

    Raises:
        ValueError: unless ``a > 1`` and ``b > 0``.
    """
    if a <= 1 or b <= 0:
        raise ValueError(f"a, b: got {a!r}, {b!r}; allowed: a > 1 and b > 0")
    time, size = (a - 1) / b, min(a - 1, b)
    return Exponents(time, size, min(a - 1, 2 * b), time * size / (time + size), size / (time + size))


def response(
    s: Num[ArrayLike, "*s"], eigenvalues: Real[ArrayLike, " m"], count: ArrayLike, *, iterations: int = 60
) -> tuple[Inexact[Array, "*s"], Float[Array, "*s"]]:
    """``R(s) = 1 - (R/n) sum_k lam_k/(s + lam_k R)``: the share of the gradient that ``n`` features (or samples) pass.

    Solved for ``u = s/R``, which obeys ``u (1 - (1/n) sum lam/(u + lam)) = s``, by Newton steps from the root at large
    ``|s|``, moved inwards along the ray to ``s``.

    Args:
        s: complex Laplace variable, off the negative real axis.
        eigenvalues: ``lam``.
        count: n, the number of features (or of samples P); ``inf`` gives 1.
        iterations: stations on the ray, with three Newton steps each.

    Returns:
        ``(R, residual)``; residual is ``|left - right|`` of the first equation.

    Cost: ``3 iterations`` sums over m modes an entry.

    Reference: Bordelon, Atanasov & Pehlevan 2024, eqs. 9-10.
    """
    s, lam = jnp.asarray(s), jnp.asarray(eigenvalues)
    inverse = 1.0 / jnp.asarray(count, lam.dtype)

    def newton(u, at):
        gap = u[..., None] + lam
        value = u * (1 - inverse * jnp.sum(lam / gap, -1)) - at
        slope = 1 - inverse * jnp.sum(lam**2 / gap**2, -1)
        return u - value / slope

    reach = 1e3 * (1 + inverse) * jnp.sum(lam) / jnp.minimum(jnp.abs(s), jnp.sum(lam))

    def station(u, fraction):
        at = s * reach ** (1 - fraction)
        for _ in range(3):
            u = newton(u, at)
        return u, None

    fractions = jnp.linspace(0.0, 1.0, iterations, dtype=lam.dtype)
    far = s * reach + inverse * jnp.sum(lam)
    u, _ = jax.lax.scan(station, far, fractions)
    r = s / u
    residual = jnp.abs(1 - inverse * jnp.sum(lam / (u[..., None] + lam), -1) - r)
    return r, residual


@partial(program, static=("nodes", "iterations"))
def feature_loss(
    times: Real[ArrayLike, " T"],
    eigenvalues: Real[ArrayLike, " m"],
    weights: Real[ArrayLike, " m"],
    features: Real[ArrayLike, ""],
    *,
    nodes: int = 32,
    iterations: int = 60,
) -> Loss:
    """Population loss of ``n`` random features with unlimited data: ``L(t) = sum_k c_k h_k(2t)``.

    ``h_k`` is the inverse Laplace transform of ``1/(s + lam_k R(s))``, taken on Talbot's contour.

    Args:
        times: ``t > 0``; gradient flow of ``dw/dt = -(A^T A/n) Lambda (w - w*)``.
        eigenvalues, weights: ``lam`` and ``c = lam w*^2``.
        features: n; ``inf`` gives ``sum c e^{-2 lam t}``.
        nodes: points on the contour (12 suffice in float32).
        iterations: see ``response`` (30 suffice in float32).

    Returns:
        A ``Loss``. Differentiable and vmappable.

    Assumptions: Gaussian features ``A [n, m]`` of unit variance, zero start, n large: corrections are O(1/n).

    Cost: ``T nodes`` responses.

    Reference: Bordelon, Atanasov & Pehlevan 2024, section 3; Weideman 2006, 'Optimizing Talbot's contours'.
    """
    s, quadrature = talbot(2.0 * jnp.asarray(times), nodes)
    r, residual = response(s, eigenvalues, features, iterations=iterations)
    transform = jnp.sum(weights / (s[..., None] + eigenvalues * r[..., None]), -1)
    return Loss(jnp.sum((quadrature * transform).real, -1), jnp.max(residual))


@partial(program, static=("nodes", "iterations"))
def sample_loss(
    times: Real[ArrayLike, " T"],
    eigenvalues: Real[ArrayLike, " m"],
    weights: Real[ArrayLike, " m"],
    samples: Real[ArrayLike, ""],
    noise: Real[ArrayLike, ""] = 0.0,
    *,
    nodes: int = 24,
    iterations: int = 60,
) -> Loss:
    """Population and training loss of the full linear model trained on ``P`` samples.

    The two-time correlation has the double transform ``sum_k c_k G_k G_k'/(1 - gam)``, ``G_k = 1/(s + lam_k R)``,
    ``gam = (R R'/P) sum_k lam_k^2 G_k G_k'``; the loss is its inverse at ``(t, t)``. Label noise of variance ``se^2``
    adds ``se^2 gam/((1 - gam) s s')``. The errors on the samples are those on fresh ones passed through the response:
    the training loss has the transform of the two together, label noise included, times ``R R'``.

    Args:
        times: ``t > 0``; gradient flow of ``dw/dt = -(X^T X/P)(w - w*) + X^T e/P``.
        eigenvalues, weights: ``lam`` and ``c = lam w*^2``.
        samples: P.
        noise: variance ``se^2`` of the label noise (not itself part of the loss).
        nodes: points on each of the two contours (12 suffice in float32).
        iterations: see ``response`` (30 suffice in float32).

    Returns:
        A ``Loss``. Differentiable and vmappable.

    Assumptions: Gaussian inputs of covariance diag(lam), zero start, P large.

    Cost: ``T nodes`` responses and ``T nodes^2`` sums over modes.

    Reference: Bordelon, Atanasov & Pehlevan 2024, section 3 and appendix C.
    """
    lam, weights, p = jnp.asarray(eigenvalues), jnp.asarray(weights), jnp.asarray(samples)

    def at(t):
        s, quadrature = talbot(t, nodes)
        r, residual = response(s, lam, p, iterations=iterations)
        s2, r2, q2 = (jnp.concatenate([v, v.conj()]) for v in (s, r, 0.5 * quadrature))  # the whole contour
        g, g2 = 1.0 / (s[:, None] + lam * r[:, None]), 1.0 / (s2[:, None] + lam * r2[:, None])  # [nodes, m]
        gam = r[:, None] * r2 / p * ((lam**2 * g) @ g2.T)
        steady = noise / (s[:, None] * s2)
        transform = ((weights * g) @ g2.T + gam * steady) / (1 - gam)
        train = r[:, None] * r2 * (transform + steady)
        loss, train = (jnp.sum((quadrature @ one @ q2).real) for one in (transform, train))
        return loss, jnp.max(residual), train

    loss, residual, train = jax.lax.map(at, jnp.asarray(times))
    return Loss(loss, jnp.max(residual), train)


class Frontier(NamedTuple):
    """The least ``loss`` at each compute, and the ``size`` that attains it, between sizes by a parabola in logarithms
    (NaN where the best is the smallest or the largest size that covers the compute)."""

    loss: Float[Array, " C"]
    size: Float[Array, " C"]


@program
def compute_frontier(
    times: Real[ArrayLike, " T"],
    features: Real[ArrayLike, " S"],
    loss: Real[ArrayLike, "S T"],
    compute: Real[ArrayLike, " C"],
) -> Frontier:
    """The best of all sizes n at each compute ``C = n t``; each size's curve is interpolated between logarithms.

    Args:
        times: ascending.
        features: sizes n.

    Returns:
        A ``Frontier``; loss inf where no size covers that compute.

    Cost: S interpolations of C values.
    """
    log_times, log_n = jnp.log(jnp.asarray(times)), jnp.log(jnp.asarray(features, jnp.result_type(float)))
    compute, order = jnp.asarray(compute), jnp.argsort(log_n)
    log_n, loss = log_n[order], jnp.asarray(loss)[order]

    def curve(log_n, row):
        t = jnp.log(compute) - log_n
        covered = (t >= log_times[0]) & (t <= log_times[-1])
        return jnp.where(covered, jnp.interp(t, log_times, jnp.log(row)), jnp.inf)

    log_loss = jax.vmap(curve)(log_n, loss)  # [S, C]
    least = jnp.min(log_loss, axis=0)
    if len(log_n) < 3:
        return Frontier(jnp.exp(least), jnp.full_like(least, jnp.nan))
    at = jnp.clip(jnp.argmin(log_loss, axis=0), 1, len(log_n) - 2) + jnp.arange(-1, 2)[:, None]  # [3, C]
    (x0, x1, x2), (y0, y1, y2) = log_n[at], jnp.take_along_axis(log_loss, at, axis=0)
    left, right = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    vertex = 0.5 * (x0 + x1) - left * (x2 - x0) / (2 * (right - left))
    inside = jnp.isfinite(left) & jnp.isfinite(right) & (left < 0) & (right > 0)
    return Frontier(jnp.exp(least), jnp.where(inside, jnp.exp(vertex), jnp.nan))


def talbot(times: Real[ArrayLike, "*t"], nodes: int) -> tuple[Complex[Array, "*t half"], Complex[Array, "*t half"]]:
    """Weideman's modified Talbot contour: ``f(t) = Re sum_j weight_j F(s_j)`` for real ``f`` with transform ``F``.

    Args:
        times: > 0.
        nodes: points on the whole contour, even; the error falls as ``3.89^-nodes`` until rounding.

    Returns:
        ``(s, weight)``, ``half`` being ``nodes/2``: the upper half plane; the lower one is folded into the real part.

    Raises:
        ValueError: unless ``nodes`` is even and >= 2.

    Reference: Weideman 2006, 'Optimizing Talbot's contours for the inversion of the Laplace transform'; Trefethen,
    Weideman & Schmelzer 2006, 'Talbot quadratures and rational approximations', eq. 3.2.

    Example:
        >>> import jax.numpy as jnp
        >>> s, weight = talbot(jnp.array(2.0), 12)
        >>> bool(abs(jnp.sum((weight / (s + 1.0)).real) - jnp.exp(-2.0)) < 1e-5)
        True
    """
    if nodes < 2 or nodes % 2:
        raise ValueError(f"nodes: got {nodes!r}; allowed: even integers >= 2")
    theta = (2 * np.arange(nodes // 2) + 1) * np.pi / nodes
    cot = 1 / np.tan(0.6407 * theta)
    z = nodes * (0.5071 * theta * cot - 0.6122 + 0.2645j * theta)
    dz = nodes * (0.5071 * (cot - theta * 0.6407 / np.sin(0.6407 * theta) ** 2) + 0.2645j)
    weight = 2 * np.exp(z) * dz / (1j * nodes)
    t = jnp.asarray(times)[..., None]
    dtype = jnp.result_type(t.dtype, jnp.complex64)
    return jnp.asarray(z, dtype) / t, jnp.asarray(weight, dtype) / t
