"""Gaussians of the single sites: whitened Monte Carlo, and Gauss-Hermite nodes for one hidden layer."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from dynamics.theory.dmft.deep_pass import Draws
from dynamics.theory.dmft.draws import whitened


def counts(depth: int, times: int, points: int) -> list[tuple[int, int, int]]:
    """How many Gaussians e, n and of the bias each layer has."""
    n = times * points
    return [(points if layer == 0 else n, 1 if layer == depth - 1 else n, int(layer > 0)) for layer in range(depth)]


def monte_carlo(key, samples: int, depth: int, times: int, points: int) -> Draws:
    """Draws whose means, variances and correlations within a layer are exactly those of standard Gaussians."""
    e, n, bias = [], [], []
    for layer, sizes in enumerate(counts(depth, times, points)):
        z = whitened(jax.random.fold_in(key, layer), samples, sum(sizes), centred=True)
        parts = jnp.split(z, np.cumsum(sizes)[:-1], axis=1)
        for held, part in zip((e, n, bias), parts, strict=True):
            held.append(part)
    return Draws(tuple(e), tuple(n), tuple(bias), jnp.full(samples, 1 / samples))


def quadrature(nodes: int, points: int) -> Draws:
    """The product rule of ``nodes`` Gauss-Hermite nodes in each of the P + 1 Gaussians of one hidden layer."""
    x, w = np.polynomial.hermite_e.hermegauss(nodes)
    grid = np.stack(np.meshgrid(*[x] * (points + 1), indexing="ij"), -1).reshape(-1, points + 1)
    weight = np.prod(np.stack(np.meshgrid(*[w / w.sum()] * (points + 1), indexing="ij"), -1), -1).reshape(-1)
    z = jnp.asarray(grid, jnp.result_type(float))
    return Draws((z[:, :points],), (z[:, points:],), (z[:, :0],), jnp.asarray(weight, z.dtype))
