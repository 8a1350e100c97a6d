"""The mean of correlated draws from several Markov chains, its standard error, and whether the chains agree."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from dynamics.arguments import program
from dynamics.types import Array


class ChainMean(NamedTuple):
    """``value`` with its standard error ``error``, worth ``n`` independent draws (the effective sample size).

    ``r_hat``: spread over all chains over the spread within one; 1 where they agree, above 1.01 draw longer.
    """

    value: Float[Array, ""]
    error: Float[Array, ""]
    n: Float[Array, ""]
    r_hat: Float[Array, ""]


@program
def chain_mean(trace: Float[Array, "chains draws"]) -> ChainMean:
    """The mean of a quantity along Markov chains. With W the variance within and B/d that between means of d draws,

        V = (1 - 1/d) W + B/d,   r_hat = sqrt(V / W),   n = chains draws / tau,   error = sqrt(V / n),
        tau = -1 + 2 sum_k P_k,   P_k = rho_2k + rho_{2k+1},   rho_t = 1 - (W - c_t) / V,

    ``c_t`` the mean autocovariance, each chain cut into two halves, the sum ended at the first ``P_k < 0`` and each P_k
    at most the one before (Geyer's initial monotone sequence).

    Args:
        trace: draws in order, warm-up cut off; at least 4 a chain. NaN or infinity gives NaN.

    Raises:
        ValueError: for fewer draws.

    Cost: one FFT a chain. Chains that never moved have no spread: n and r_hat are NaN.

    Reference: Gelman et al. 2013, 'Bayesian data analysis', equations 11.4-11.8; Geyer 1992, section 3.3.
    """
    chains, draws = trace.shape
    if draws < 4:
        raise ValueError(f"trace: got {draws} draws; allowed: at least 4 a chain")
    d = draws // 2
    halves = jnp.concatenate([trace[:, :d], trace[:, -d:]])  # [2 chains, d]
    apart = halves - jnp.mean(halves, -1, keepdims=True)
    power = jnp.abs(jnp.fft.rfft(apart, 2 * d)) ** 2
    c = jnp.mean(jnp.fft.irfft(power, 2 * d)[:, :d], 0) / d  # [d]
    within = c[0] * d / (d - 1)
    total = c[0] + jnp.var(jnp.mean(halves, -1), ddof=1)
    rho = 1 - (within - c) / total
    rho = rho.at[0].set(1)
    pairs = jnp.sum(rho[: d // 2 * 2].reshape(-1, 2), -1)
    pairs = jnp.where(jnp.cumsum(pairs < 0) == 0, pairs, 0)
    tau = 2 * jnp.sum(jax.lax.cummin(pairs)) - 1
    size = chains * draws
    tau = jnp.maximum(tau, 1 / jnp.log10(size))  # draws that alternate: no more than size log10(size), as in Stan
    n = size / tau
    return ChainMean(jnp.mean(trace), jnp.sqrt(total / n), n, jnp.sqrt(total / within))
