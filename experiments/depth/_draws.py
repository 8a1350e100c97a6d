"""Networks at initialisation, drawn in law: given one layer's activations the next preactivations are Gaussian, so that
a layer costs n normals a network and not n^2; and statistics of such ensembles."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from dynamics.stax import Haar, LowRank
from dynamics.types import Observable, Record


def drawn(study, axes, draw, label: str) -> Record:
    """A study whose readings are what ``draw(lane)`` gives, a dictionary of arrays: nothing is trained."""
    read = Observable.of_view(lambda view: view.params)
    return study(axes, draw, None, read, steps=0, data=(), label=label)


def merged(values: np.ndarray) -> np.ndarray:
    """``[1, ..., seed, nets, k]`` as ``[..., k, nets of all seeds]``."""
    array = np.moveaxis(np.asarray(values, float)[0], -1, -3)
    return array.reshape(*array.shape[:-2], -1)


@partial(jax.jit, static_argnames=("width", "depth", "nets", "phi", "weights"))
def lengths(key, width, depth, nets, phi=jax.nn.relu, W_variance=2.0, weights=None):
    """``G_1, ..., G_depth [nets, depth]`` of one input at ``G_0 = 1``; the first layer's weights are Gaussian."""
    n = width

    def layer(G, scanned):
        key, first = scanned
        one, two = jax.random.split(key)
        z = jax.random.normal(one, (nets, n))
        if isinstance(weights, Haar):  # a Haar image of a vector is uniform on its sphere
            z = jnp.where(first, z, z * jnp.sqrt(n / jnp.sum(z**2, -1, keepdims=True)))
        if isinstance(weights, LowRank):  # |P phi|^2 / |phi|^2 ~ Beta(r/2, (n-r)/2)
            u, r = jax.random.normal(two, (nets, n)) ** 2, weights.rank
            kept = n / r * jnp.sum(u[:, :r], -1) / jnp.sum(u, -1)
            G = jnp.where(first, G, G * kept)
        G = W_variance * jnp.mean(phi(jnp.sqrt(G)[:, None] * z) ** 2, -1)
        return G, G

    keys = jax.random.split(key, depth), jnp.arange(depth) == 0
    return jax.lax.scan(layer, jnp.ones(nets), keys)[1].T


def variance_z(rows: np.ndarray, theory: np.ndarray, allowed=0.0) -> np.ndarray:
    """``(s^2 - theory) / error`` over the last axis, finite entries alone; ``allowed`` is added to the error.

    The error of a sample variance is ``sqrt((m_4 - s^4) / N)``.
    """
    found, error = variance(rows)
    return (found - theory) / np.hypot(error, allowed)


def variance(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sample variance over the last axis and its standard error."""
    rows = np.where(np.isfinite(rows), rows, np.nan)
    n = np.isfinite(rows).sum(-1)
    centred = rows - np.nanmean(rows, -1, keepdims=True)
    square = np.nanmean(centred**2, -1)
    fourth = np.nanmean(centred**4, -1)
    return square * n / (n - 1), np.sqrt(np.maximum(fourth - square**2, 1e-300) / n)


def mean(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the last axis and its standard error, of finite entries."""
    rows = np.where(np.isfinite(rows), rows, np.nan)
    n = np.isfinite(rows).sum(-1)
    return np.nanmean(rows, -1), np.nanstd(rows, -1, ddof=1) / np.sqrt(n)


def mean_z(rows: np.ndarray, theory: np.ndarray, allowed=0.0) -> np.ndarray:
    """``(mean - theory) / error`` over the last axis."""
    found, error = mean(rows)
    return (found - theory) / np.hypot(error, allowed)
