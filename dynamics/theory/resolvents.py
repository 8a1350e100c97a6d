"""Deterministic equivalents of sample covariances' resolvents: one fixed point for ridge, features and denoisers."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Real

from dynamics.arguments import OR_INFINITE, POSITIVE, check_counts, check_numbers
from dynamics.types import Array, ArrayLike


class EffectiveRidge(NamedTuple):
    """What few samples make of a ridge.

    Attributes:
        kappa: the effective ridge; a mode of variance l is learnt by the share ``l/(l + kappa)``.
        df1, df2: ``sum l/(l + kappa)`` and ``sum (l/(l + kappa))^2``, degrees of freedom.
        residual: of the defining equation, relative to the number of samples.
    """

    kappa: Float[Array, ""]
    df1: Float[Array, ""]
    df2: Float[Array, ""]
    residual: Float[Array, ""]


def effective_ridge(
    eigenvalues: Real[ArrayLike, " m"],
    samples: Real[ArrayLike, ""],
    ridge: Real[ArrayLike, ""],
    features: Real[ArrayLike, ""] = jnp.inf,
    *,
    multiplicities: Real[ArrayLike, "*m"] = 1.0,
    iterations: int = 100,
) -> EffectiveRidge:
    """``kappa`` of n samples, and of k random features of them: with ``df1 = sum_i l_i/(l_i + kappa)``,

        n = df1 + (n ridge/kappa) / (1 - df1/k).

    One monotone equation, solved by bisection in the logarithm and two Newton steps, which carry derivatives up to the
    third.

    Args:
        eigenvalues: ``l``, variances of the modes, >= 0.
        samples, features: n and k, positive; may be real and traced; k is infinite for none.
        ridge: > 0, added to the sample covariance ``X^T X/n``: that of the Gram matrix ``X X^T`` is ``n ridge``.
        multiplicities: how many modes share each eigenvalue.
        iterations: bisections; each halves the bracket of ``log kappa``.

    Returns:
        An ``EffectiveRidge``. Differentiable and vmappable. NaN for a traced ridge of 0.

    Raises:
        ValueError: for samples, features or a ridge that are no numbers above 0.

    Cost: ``iterations`` sums over m modes.

    Reference: Silverstein & Bai 1995; Simon, Karkada, Ghosh & Belkin 2023, section 4.1, for features.

    Example:
        >>> found = effective_ridge(jnp.ones(50), 100, 0.1)  # kappa - kappa (50/100)/(1 + kappa) = .1
        >>> round(float(found.kappa), 4), round(float(found.kappa - 0.5 * found.kappa / (1 + found.kappa)), 4)
        (0.1742, 0.1)
    """
    check_numbers(samples=(samples, POSITIVE), ridge=(ridge, POSITIVE), features=(features, OR_INFINITE))
    check_counts(iterations=iterations)
    return _effective_ridge(eigenvalues, samples, ridge, features, multiplicities, iterations)


@partial(jax.jit, static_argnames="iterations")
def _effective_ridge(
    eigenvalues: ArrayLike,
    samples: ArrayLike,
    ridge: ArrayLike,
    features: ArrayLike,
    multiplicities: ArrayLike,
    iterations: int,
) -> EffectiveRidge:
    dtype = jnp.result_type(float)
    lam = jnp.asarray(eigenvalues, dtype)
    count = jnp.broadcast_to(jnp.asarray(multiplicities, dtype), lam.shape)
    n, k, ridge = (jnp.asarray(value, dtype) for value in (samples, features, ridge))

    unit = jax.lax.stop_gradient(jnp.max(lam, initial=0.0) + ridge)  # kappa has the units of the eigenvalues
    lam, ridge = lam / unit, ridge / unit

    def learnt(kappa):
        return jnp.sum(count * lam / (lam + kappa))

    def excess(kappa):
        """Samples that the modes and the ridge ask for, less n: falls with kappa where ``learnt < k``.

        Modes above kappa count as one less what they miss, so that n of them leave no rounding behind.
        """
        df1, large = learnt(kappa), lam > kappa
        small = jnp.sum(jnp.where(large, 0, count * lam / (lam + kappa)))
        missed = jnp.sum(jnp.where(large, count * kappa / (lam + kappa), 0))
        modes = (jnp.sum(jnp.where(large, count, 0)) - n) + small - missed
        return jnp.where(df1 < k, modes + n * ridge / (kappa * jnp.maximum(1 - df1 / k, 1e-30)), jnp.inf)

    def rise(log_kappa):
        return excess(jnp.exp(log_kappa))

    total = jnp.sum(count * lam)
    low, high = jnp.log(ridge), jnp.log(2 * total * (1 / n + 1 / k) + 4 * ridge)

    def halve(_, bracket):
        low, high = bracket
        middle = 0.5 * (low + high)
        above = rise(middle) > 0
        return jnp.where(above, middle, low), jnp.where(above, high, middle)

    log_kappa = jax.lax.stop_gradient(jax.lax.fori_loop(0, iterations, halve, (low, high))[1])
    for _ in range(2):
        log_kappa = log_kappa - rise(log_kappa) / jax.grad(rise)(log_kappa)
    kappa = jnp.exp(log_kappa)
    residual = jnp.abs(excess(kappa)) / n
    share = lam / (lam + kappa)
    return EffectiveRidge(unit * kappa, jnp.sum(count * share), jnp.sum(count * share**2), residual)


class Resolvent(NamedTuple):
    """``R = ridge (C + ridge I)^{-1}`` of a sample covariance ``C = X^T X/n``, rows of X with the population covariance
    ``L = diag(eigenvalues)``; ``I - R`` is ridge regression's smoother and the best linear denoiser.

    Matrices are given in the population's eigenbasis, a diagonal one as ``[m]``.

    Attributes:
        eigenvalues: l.
        samples: n.
        kappa: the effective ridge.
        ridge: that of the definition.
    """

    eigenvalues: Float[Array, " m"]
    samples: Float[Array, ""]
    kappa: Float[Array, ""]
    ridge: Float[Array, ""]

    @property
    def mean(self) -> Float[Array, " m"]:
        """Diagonal of ``E R``, ``kappa/(l + kappa)``."""
        return self.kappa / (self.eigenvalues + self.kappa)

    def trace(self, M: Real[ArrayLike, "*s m"]) -> Float[Array, ""]:
        """``tr(M R) = tr(M E R)``."""
        return jnp.sum(_diagonal(M) * self.mean)

    def trace_pair(
        self, M: Real[ArrayLike, "*s m"], S: Real[ArrayLike, "*t m"], other: Resolvent | None = None
    ) -> Float[Array, ""]:
        """``tr(M R S R)``, or ``tr(M R S R')`` with the resolvent R' of ``other``, of independent samples.

            tr(M R S R') = tr(M Rb S Rb'),                      Rb = E R,
            tr(M R S R)  = tr(M Rb S Rb) + tr(M Rb L Rb) tr(S L (L + kappa)^-2) / (n - df2).

        Reference: Bach 2024, 'High-dimensional analysis of double descent for linear regression with random
        projections', proposition 1.
        """
        apart = _pair(M, S, self.mean, (self if other is None else other).mean)
        if other is not None:
            return apart
        lam, share = self.eigenvalues, 1 - self.mean
        seen = jnp.sum(_diagonal(M) * lam * self.mean**2) * jnp.sum(_diagonal(S) * lam / (lam + self.kappa) ** 2)
        return apart + seen / (self.samples - jnp.sum(share**2))


def resolvent(
    eigenvalues: Real[ArrayLike, " m"], samples: Real[ArrayLike, ""], ridge: Real[ArrayLike, ""]
) -> Resolvent:
    """Deterministic equivalents of ``R = ridge (C + ridge I)^{-1}``, C of n samples. See ``Resolvent``.

    Args:
        eigenvalues: l of the population covariance, >= 0, one a mode.
        samples: n > 0; may be real and traced.
        ridge: > 0, in the units of the eigenvalues.

    Returns:
        A ``Resolvent``, with methods ``trace`` and ``trace_pair``. Differentiable and vmappable.

    Raises:
        ValueError: for samples or a ridge that are no numbers above 0.

    Assumptions: rows ``x = L^{1/2} z`` with independent z of unit variance; errors of traces are of relative order 1/n.

    Example:
        >>> R, one = resolvent(jnp.ones(50), 100, 0.1), jnp.ones(50)  # isotropic data: Marchenko-Pastur
        >>> round(float(R.trace(one)), 3), round(float(R.trace_pair(one, one)), 3)
        (7.417, 1.726)
    """
    kappa = effective_ridge(eigenvalues, samples, ridge).kappa
    lam, n, ridge = (jnp.asarray(value, kappa.dtype) for value in (eigenvalues, samples, ridge))
    return Resolvent(lam, n, kappa, ridge)


def _diagonal(M: ArrayLike) -> Array:
    M = jnp.asarray(M)
    return jnp.diagonal(M) if M.ndim == 2 else M


def _pair(M: ArrayLike, S: ArrayLike, one: Array, two: Array) -> Array:
    """``tr(M diag(one) S diag(two))``."""
    M, S = jnp.asarray(M), jnp.asarray(S)
    if M.ndim == 2 and S.ndim == 2:
        return jnp.sum(M * S.T * two[:, None] * one)
    return jnp.sum(_diagonal(M) * one * _diagonal(S) * two)
