"""Spectral density of a symmetric operator by stochastic Lanczos quadrature, with its error between probes."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, PRNGKeyArray

from dynamics.arguments import check_counts
from dynamics.linalg.lanczos import Matvec, padded_tridiagonal, three_term, working
from dynamics.linalg.trace import Estimate, mean_and_error
from dynamics.precision import full_precision
from dynamics.types import Array


class Density(NamedTuple):
    """The quadrature ``(1/P) sum_i delta(x - lambda_i) ~ mean over probes of sum_j weight_j delta(x - node_j)``.

    Attributes:
        nodes: Ritz values.
        weights: non-negative, each probe's sum to 1.
        size: P, the number of eigenvalues that the density stands for.
    """

    nodes: Float[Array, "probes steps"]
    weights: Float[Array, "probes steps"]
    size: int


@full_precision
def spectral_density(
    matvec: Matvec,
    key: PRNGKeyArray,
    size: int,
    *,
    probes: int = 5,
    steps: int = 50,
    dtype=None,
    batch_size: int = 1,
    reorthogonalize: bool = True,
) -> Density:
    """Stochastic Lanczos quadrature: each probe's Lanczos matrix is a Gauss quadrature of its spectral measure.

    For a random Gaussian direction z, ``E z^T f(A) z / P = Tr f(A) / P``; with ``T = S Theta S^T`` the rule is
    ``sum_j S_1j^2 f(theta_j)``, exact for polynomials up to degree ``2 steps - 1``.

    Args:
        matvec: ``v [P] -> A v [P]``, ``A`` symmetric.
        key: a PRNG key.
        size: P.
        probes: number of probes; 5 for a figure, 10 for a paper.
        steps: Lanczos steps a probe; they buy resolution, and matter more than probes.
        dtype: of the vectors; the default float unless given. Half precision is widened to float32.
        batch_size: probes mapped side by side.
        reorthogonalize: False keeps three vectors instead of ``steps + 1``. Repeated Ritz values then share the weight
            of one eigenvalue, which takes steps from the others: with a few eigenvalues far out, as networks have, some
            twice as many are needed.

    Returns:
        ``Density``; see ``moments``, ``cumulative`` and ``smoothed``.

    Raises:
        ValueError: when ``probes < 2`` or ``steps < 1``.

    Cost: ``probes * steps`` matvecs and ``2 steps^2 P`` flops a probe, up to twice that; memory
    ``batch_size (steps + 1) P``. Without reorthogonalisation no flops beside the matvecs, memory ``3 batch_size P``.

    Reference: Ubaru, Chen & Saad 2017, section 3; Ghorbani, Krishnan & Xiao 2019 for networks.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> density = spectral_density(lambda v: 2 * v, jax.random.key(0), 10, probes=2, steps=1)
        >>> density.nodes.tolist(), density.weights.tolist()
        ([[2.0], [2.0]], [[1.0], [1.0]])
    """
    check_counts(2, probes=probes)
    dtype = jnp.result_type(float) if dtype is None else dtype

    check_counts(steps=steps)

    def probe(key):
        product, start = working(matvec, jax.random.normal(key, (size,), dtype))
        if reorthogonalize:
            matrix = padded_tridiagonal(product, start, min(steps, size)).matrix()
        else:
            alphas, betas = three_term(product, start, steps)
            matrix = jnp.diag(alphas) + jnp.diag(betas, 1) + jnp.diag(betas, -1)
        theta, s = jnp.linalg.eigh(matrix)
        missing = (0, steps - theta.shape[0])
        return jnp.pad(theta, missing, mode="edge"), jnp.pad(s[0] ** 2, missing)

    nodes, weights = jax.lax.map(probe, jax.random.split(key, probes), batch_size=batch_size)
    return Density(nodes, weights, size)


class Moments(NamedTuple):
    """Integrals of a density, each with its standard error between probes.

    ``trace`` = sum lambda; ``frobenius_squared`` = sum lambda^2; ``negative_mass`` = share of eigenvalues below 0.
    """

    trace: Estimate
    frobenius_squared: Estimate
    negative_mass: Estimate


def moments(density: Density, *, threshold: float | Float[Array, ""] = 0.0) -> Moments:
    """Trace, squared Frobenius norm and the share of eigenvalues below ``-threshold``.

    Args:
        density: from ``spectral_density``.
        threshold: width of the zone around 0 that counts as zero, >= 0 (rounding puts half a null space below 0).
    """
    nodes, weights = density.nodes, density.weights
    integral = [density.size * nodes, density.size * nodes**2, jnp.where(nodes < -threshold, 1.0, 0.0)]
    return Moments(*(mean_and_error(jnp.sum(weights * f, -1)) for f in integral))


def cumulative(density: Density, x: Float[Array, "*x"]) -> Estimate:
    """Share of eigenvalues <= x, ``[...]`` for ``x [...]``, with its standard error between probes."""
    below = density.nodes[..., None] <= jnp.ravel(x)
    shares = mean_and_error(jnp.sum(density.weights[..., None] * below, axis=1))
    return Estimate(jnp.reshape(shares.value, jnp.shape(x)), jnp.reshape(shares.error, jnp.shape(x)), shares.n)


def smoothed(density: Density, x: Float[Array, "*x"], width: float | Float[Array, ""]) -> Estimate:
    """The density convolved with a Gaussian of standard deviation ``width``, at ``x [...]``, with its error."""
    z = (jnp.ravel(x) - density.nodes[..., None]) / width
    bumps = jnp.exp(-0.5 * z**2) / (width * (2 * jnp.pi) ** 0.5)
    heights = mean_and_error(jnp.sum(density.weights[..., None] * bumps, axis=1))
    return Estimate(jnp.reshape(heights.value, jnp.shape(x)), jnp.reshape(heights.error, jnp.shape(x)), heights.n)
