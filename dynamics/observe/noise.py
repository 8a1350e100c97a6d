"""The noise of SGD beside the curvature it meets: batch sharpness, trace, noise covariance and temperature."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from dynamics import linalg, operators
from dynamics.arguments import check_counts
from dynamics.observe.sharpness import hessian_at
from dynamics.program.real_view import gradient
from dynamics.types import Array, Observable, factory


@factory("batch_sharpness(batch_size)")
def batch_sharpness(
    batch_size: int,
    *,
    draws: int = 128,
    parallel: int = 16,
    replace: bool = False,
    seed: int = 0,
) -> Observable:
    """The batch sharpness ``E_B [g_B . H_B g_B / |g_B|^2]``: the curvature of a batch's loss along its own gradient.

    Args:
        batch_size: B, as in the training; the objective is a mean over samples.
        draws: batches drawn, >= 2; fresh ones at each reading.
        parallel: draws evaluated side by side.
        replace: draw samples with replacement.
        seed: of the draws.

    Returns:
        An observable with ``batch_sharpness`` (mean of ratios) and ``batch_sharpness_error`` (its standard error, 95
        % within twice it), ``batch_sharpness_of_means`` (``E[g.Hg] / E[|g|^2]``) and its ``_error`` (delta method).

    Raises:
        ValueError: when ``batch_size < 1`` or ``draws < 2``; at tracing when ``batch_size`` exceeds the sample count.

    Cost: 3 gradients of batch size B a draw.

    Reference: Andreyev & Beneventano 2024, 'Edge of stochastic stability', definition 1.
    """
    check_counts(batch_size=batch_size)
    check_counts(2, draws=draws)

    def update(memory, view):
        key, count = memory
        params, batch, objective = view.params, view.batch, view.loss("batch_sharpness")
        n = jax.tree.leaves(batch)[0].shape[0]
        if batch_size > n and not replace:
            raise ValueError(f"batch_size: got {batch_size}; allowed: at most the {n} samples")

        def draw(key):
            rows = jax.random.choice(key, n, (batch_size,), replace=replace)
            part = jax.tree.map(lambda leaf: leaf[rows], batch)

            def slope(p):
                return gradient(jax.grad(lambda q: objective(q, part))(p))

            g = slope(params)
            _, hg = jax.jvp(slope, (params,), (g,))
            return _dot(g, hg), _dot(g, g)

        keys = jax.random.split(jax.random.fold_in(key, count), draws)
        curvature, square = jax.lax.map(draw, keys, batch_size=parallel)
        ratio = linalg.mean_and_error(curvature / jnp.where(square > 0, square, 1))
        mean = jnp.mean(curvature) / jnp.mean(square)
        spread = linalg.mean_and_error(curvature - mean * square).error / jnp.mean(square)
        readings = {
            "batch_sharpness": ratio.value,
            "batch_sharpness_error": ratio.error,
            "batch_sharpness_of_means": mean,
            "batch_sharpness_of_means_error": spread,
        }
        return (key, count + 1), readings

    return Observable(lambda view: (jax.random.key(seed), jnp.int32(0)), update)


@factory("hessian_trace()")
def hessian_trace(*, probes: int = 30, seed: int = 0) -> Observable:
    """``Tr H`` and ``|H|_F`` by Hutchinson's estimator: ``hessian_trace``, ``hessian_frobenius``, each with ``_error``.

    Args:
        probes: Hessian products, >= 2; about 3 % error at 30 on networks.
        seed: of the probes, the same at every reading.
    """

    operator = hessian_at("hessian_trace")

    def read(view):
        matvec, size, dtype, _ = operator(view)
        estimate = linalg.trace(matvec, jax.random.key(seed), size, probes, dtype=dtype)
        return {
            "hessian_trace": estimate.trace.value,
            "hessian_trace_error": estimate.trace.error,
            "hessian_frobenius": estimate.frobenius.value,
            "hessian_frobenius_error": estimate.frobenius.error,
        }

    return Observable.of_view(read)


@factory("gradient_noise(batch_size, learning_rate)")
def gradient_noise(
    batch_size: int,
    learning_rate: Any,
    *,
    k: int = 5,
    probes: int = 30,
    tolerance: float = 1e-3,
    seed: int = 0,
) -> Observable:
    """The covariance Sigma of single-sample gradients in the Hessian's top eigenbasis, and the noise temperature.

    SGD with batches of B has gradient noise ``Sigma / B``. On a quadratic its stationary excess loss is
    ``(eta / 4B) Tr Sigma``, which P modes at ``T/2`` each hold at ``T = eta Tr Sigma / (2 B P)``.

    Args:
        batch_size: B; the objective is a mean over samples. learning_rate: eta.
        k: eigenvectors. tolerance: their relative residual.
        probes: of the trace of Sigma.
        seed: of the random parts.

    Returns:
        An observable with ``noise_in_eigenbasis`` ``[k, k]`` (``U^T Sigma U``), ``noise_eigenvalues`` ``[k]`` (of H)
        and ``noise_eigenvalues_residual`` ``[k]``, ``noise_trace`` and ``noise_trace_error`` (``Tr Sigma``),
        ``noise_temperature`` and ``noise_temperature_error``.

    Reference: Mandt, Hoffman & Blei 2017, equation 12, for the stationary covariance.
    """

    operator = hessian_at("gradient_noise")

    def read(view):
        matvec, size, dtype, _ = operator(view)
        key, probe_key = jax.random.split(jax.random.key(seed))
        pairs = linalg.eigenpairs(matvec, jax.random.normal(key, (size,), dtype), k, tolerance=tolerance)
        sigma = operators.gradient_covariance(view.objective, view.params, view.batch).matvec
        images = jax.lax.map(sigma, pairs.vectors)
        total = linalg.trace(sigma, probe_key, size, probes, dtype=dtype).trace
        scale = learning_rate / (2 * batch_size * size)
        return {
            "noise_in_eigenbasis": pairs.vectors @ images.T,
            "noise_eigenvalues": pairs.values,
            "noise_eigenvalues_residual": pairs.residuals,
            "noise_trace": total.value,
            "noise_trace_error": total.error,
            "noise_temperature": scale * total.value,
            "noise_temperature_error": scale * total.error,
        }

    return Observable.of_view(read)


def _dot(a, b) -> Array:
    return sum(jax.tree.leaves(jax.tree.map(lambda u, v: jnp.real(jnp.vdot(u, v)), a, b)), start=jnp.zeros(()))
