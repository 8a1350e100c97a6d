"""Ridge regression on random features: the omniscient estimate of its test and train error."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Float, Real

from dynamics.arguments import program
from dynamics.theory.resolvents import effective_ridge
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


@partial(program, static=("iterations",))
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

    gamma is that of ``theory.resolvents.effective_ridge``; ``k = infinity`` gives kernel ridge regression.

    Args:
        eigenvalues: ``lam`` of the kernel, positive, in units where ``K = sum_i lam_i phi_i phi_i^T``.
        target: squared coefficients ``v_i^2`` of the target on the eigenfunctions.
        samples, features: n and k, positive; may be real and traced; k may be infinite.
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
    gamma, z, q, residual = effective_ridge(lam, n, ridge / n, k, multiplicities=multiplicities, iterations=iterations)
    share = lam / (lam + gamma)
    kappa = gamma * (1 - z / k)
    overfit = (q * (1 - 2 * z / k) + z**2 / k) / (n * (1 - q / k))
    bias = jnp.sum((1 - share - kappa * share / (lam + gamma) / (1 - q / k)) * v2 * count)
    test = (bias + noise) / (1 - overfit)
    return FeatureRisk(test, (ridge / (n * kappa)) ** 2 * test, kappa, gamma, residual)
