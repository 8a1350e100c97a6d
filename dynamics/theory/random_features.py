"""Ridge regression on random features: the omniscient estimate of its test and train error."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Real

from dynamics.types import Array, ArrayLike


class FeatureRisk(NamedTuple):
    """Mean errors of random-feature ridge regression.

    Attributes:
        test, train: mean squared errors, label noise included in the test error.
        kappa, gamma: the two effective regularisations; mode i is learnt by the share ``lam_i/(lam_i + gamma)``.
        residual: of the defining equation, relative to n.
    """

    test: Float[Array, ""]
    train: Float[Array, ""]
    kappa: Float[Array, ""]
    gamma: Float[Array, ""]
    residual: Float[Array, ""]


@partial(jax.jit, static_argnames="iterations")
def random_feature_risk(
    eigenvalues: Real[ArrayLike, " m"],
    target: Real[ArrayLike, " m"],
    samples: Real[ArrayLike, ""],
    features: Real[ArrayLike, ""],
    ridge: Real[ArrayLike, ""],
    noise: Real[ArrayLike, ""] = 0.0,
    *,
    multiplicities: Real[ArrayLike, "*m"] = 1.0,
    iterations: int = 100,
) -> FeatureRisk:
    """The eigenframework of random-feature ridge regression: n samples, k features, ``(K_hat + ridge I)^{-1}``.

    kappa and gamma solve, with ``L_i = lam_i/(lam_i + gamma)``,

        sum_i L_i + ridge/kappa = n,        sum_i L_i + k kappa/gamma = k,

    and with ``z = sum L``, ``q = sum L^2``, ``x = (q (k - 2z) + z^2) / (n (k - q))``

        E_te = [ sum_i (1 - L_i - kappa L_i/(lam_i + gamma) k/(k - q)) v_i^2 + s^2 ] / (1 - x),
        E_tr = (ridge/(n kappa))^2 E_te.

    The pair reduces to one monotone equation in gamma, solved by bisection in its logarithm and one Newton step, which
    carries the derivative. ``k -> infinity`` gives kernel ridge regression.

    Args:
        eigenvalues: ``lam`` of the kernel, positive, in units where ``K = sum_i lam_i phi_i phi_i^T``.
        target: squared coefficients ``v_i^2`` of the target on the eigenfunctions.
        samples, features: n and k, positive; may be real and traced; ``inf`` is not allowed, a large number is.
        ridge: > 0 (the ridgeless limit is that of a small one).
        noise: variance ``s^2`` of the label noise.
        multiplicities: how many modes share each eigenvalue; ``target`` is then the power on each one of them.
        iterations: bisections; each halves the bracket of ``log gamma``.

    Returns:
        A ``FeatureRisk``. Differentiable and vmappable.

    Assumptions: Gaussian features ("universality"); k features give ``K_hat = F F^T`` with entries of variance 1/k.

    Cost: ``iterations`` sums over m modes.

    Reference: Simon, Karkada, Ghosh & Belkin 2023, 'More is better in modern machine learning', section 4.1.
    """
    dtype = jnp.result_type(float)
    lam, v2 = jnp.asarray(eigenvalues, dtype), jnp.asarray(target, dtype)
    count = jnp.broadcast_to(jnp.asarray(multiplicities, dtype), lam.shape)
    n, k, ridge, noise = (jnp.asarray(value, dtype) for value in (samples, features, ridge, noise))

    def learnt(gamma):
        return jnp.sum(count * lam / (lam + gamma))

    def excess(gamma):
        """Samples the modes and the ridge ask for, less n: falls with gamma where ``learnt < k``."""
        z = learnt(gamma)
        return jnp.where(z < k, z + ridge * k / (gamma * jnp.maximum(k - z, 1e-30)) - n, jnp.inf)

    total = jnp.sum(count * lam)
    low, high = jnp.log(jnp.min(lam)) - 60.0, jnp.log(2 * total * (1 / n + 1 / k) + 4 * ridge / n)

    def halve(_, bracket):
        low, high = bracket
        middle = 0.5 * (low + high)
        return jnp.where(excess(jnp.exp(middle)) > 0, middle, low), jnp.where(excess(jnp.exp(middle)) > 0, high, middle)

    low, high = jax.lax.fori_loop(0, iterations, halve, (low, high))
    log_gamma = jax.lax.stop_gradient(high)
    slope = jax.lax.stop_gradient(jax.grad(lambda u: excess(jnp.exp(u)))(log_gamma))
    gamma = jnp.exp(log_gamma - excess(jnp.exp(log_gamma)) / slope)
    share = lam / (lam + gamma)
    z, q = jnp.sum(count * share), jnp.sum(count * share**2)
    kappa = gamma * (k - z) / k
    overfit = (q * (k - 2 * z) + z**2) / (n * (k - q))
    bias = jnp.sum((1 - share - kappa * share / (lam + gamma) * k / (k - q)) * v2 * count)
    test = (bias + noise) / (1 - overfit)
    return FeatureRisk(test, (ridge / (n * kappa)) ** 2 * test, kappa, gamma, jnp.abs(excess(gamma)) / n)
