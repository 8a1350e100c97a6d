"""Spectra of weight matrices: a Marchenko-Pastur bulk, the spikes above it, and the exponent of a heavy tail."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

_TRACY_WIDOM = {0.05: 0.9793, 0.01: 2.0234, 0.005: 2.4224, 0.001: 3.2712}  # upper quantiles, beta = 1


class SpectralTail(NamedTuple):
    """What the eigenvalues ``lambda`` of ``W^T W / rows`` say.

    Attributes:
        exponent: alpha of the tail's density ``lambda^-alpha``, by Hill's estimator.
        low, high: its 95 % interval, for independent values beyond ``start``; eigenvalues repel, which narrows their
            spread: the interval is then on the safe side.
        start: smallest eigenvalue of the tail. tail: how many lie in it.
        distance: Kolmogorov-Smirnov distance between the tail and the power law.
        sigma: standard deviation of the noise whose Marchenko-Pastur law has the spectrum's median.
        edge: the largest eigenvalue that such noise reaches, but for the chosen probability.
        spikes: eigenvalues beyond it.
        bulk_distance: Kolmogorov-Smirnov distance between the eigenvalues up to the edge and the law; NaN without any.
    """

    exponent: float
    low: float
    high: float
    start: float
    tail: int
    distance: float
    sigma: float
    edge: float
    spikes: int
    bulk_distance: float


def spectral_tail(weight: Any, *, tail: int | None = None, p: float = 0.01) -> SpectralTail:
    """Heavy tail or bulk with spikes: both descriptions of a weight matrix's spectrum, each with its misfit.

    Tail: with the k largest eigenvalues beyond ``lambda_0``, ``alpha = 1 + k / sum_i log(lambda_i / lambda_0)``; ``2 k
    (alpha_0 - 1) / (alpha - 1)`` is chi-square with 2k degrees of freedom. k minimises the Kolmogorov-Smirnov distance
    unless given. Bulk: noise of standard deviation sigma has a Marchenko-Pastur spectrum, whose median gives sigma; its
    largest eigenvalue has mean ``mu = (sqrt(N - 1) + sqrt(M))^2`` and scale ``(sqrt(N - 1) + sqrt(M)) (1/sqrt(N - 1) +
    1/sqrt(M))^(1/3)`` times a Tracy-Widom variable.

    Args:
        weight: ``[..., outputs]``, axes but the last flattened, N x M with N >= M after transposing if need be.
        tail: k, in [2, M - 1]. p: how often noise alone shows a spike: .05, .01, .005 or .001.

    Returns:
        ``SpectralTail``, of floats. Cost: one SVD, and ``M^2`` flops for the choice of k.

    Raises:
        ValueError: for what is no finite real matrix of at least 8 by 8, or an option out of range.

    Reference: Hill 1975; Clauset, Shalizi & Newman 2009, section 3.3, for the choice of k; Johnstone 2001, theorem 1.1,
    for the edge; Gavish & Donoho 2014, section III.B, for sigma; Martin & Mahoney 2021 on weights.

    Example:
        >>> import numpy as np
        >>> found = spectral_tail(np.random.default_rng(0).normal(size=(200, 100)))
        >>> found.spikes, round(found.sigma, 1)
        (0, 1.0)
    """
    matrix = np.asarray(weight)
    if matrix.ndim < 2 or np.iscomplexobj(matrix):
        raise ValueError(f"weight: got {matrix.dtype} {matrix.shape}; allowed: a real matrix [..., outputs]")
    matrix = matrix.astype(float)
    matrix = matrix.reshape(-1, matrix.shape[-1])
    if min(matrix.shape) < 8 or not np.isfinite(matrix).all():
        raise ValueError(
            f"weight: got shape {matrix.shape}, finite {np.isfinite(matrix).all()}; allowed: 8 x 8, finite"
        )
    n, m = max(matrix.shape), min(matrix.shape)
    if tail is not None and not 2 <= tail <= m - 1:
        raise ValueError(f"tail: got {tail!r}; allowed: an integer in [2, {m - 1}]")
    if p not in _TRACY_WIDOM:
        raise ValueError(f"p: got {p!r}; allowed: {', '.join(map(str, _TRACY_WIDOM))}")
    values = np.linalg.svd(matrix, compute_uv=False)  # descending
    values = np.where(values > values[0] * n * np.finfo(float).eps, values, 0.0) ** 2 / n  # less is rounding
    return SpectralTail(*_hill(values, tail), *_bulk(values, n, m, p))


def _hill(values: np.ndarray, tail: int | None) -> tuple[float, float, float, float, int, float]:
    from scipy.special import chdtri

    positive = values[values > 0]
    if positive.size < 3 or (tail is not None and tail >= positive.size):  # a matrix of such a rank has no tail
        return np.nan, np.nan, np.nan, np.nan, 0, np.nan
    logs = np.log(positive)
    sizes = np.arange(2, positive.size) if tail is None else np.array([tail])
    means = np.cumsum(logs)[sizes - 1] / sizes - logs[sizes]  # mean of log(lambda_i / lambda_0)
    usable = means > 0
    sizes, means = sizes[usable], means[usable]
    if not sizes.size:
        return np.nan, np.nan, np.nan, np.nan, 0, np.nan

    def distance(k, mean):
        law = np.exp(-(logs[:k] - logs[k]) / mean)  # share beyond each value, descending values
        rank = np.arange(1, k + 1)
        return max(np.max(np.abs(law - rank / k)), np.max(np.abs(law - (rank - 1) / k)))

    distances = np.array([distance(k, mean) for k, mean in zip(sizes, means)])
    best = int(np.argmin(distances))
    k, mean = int(sizes[best]), float(means[best])
    low, high = (chdtri(2 * k, 1 - share) / (2 * k * mean) for share in (0.025, 0.975))
    return 1 + 1 / mean, 1 + float(low), 1 + float(high), float(positive[k]), k, float(distances[best])


def _bulk(values: np.ndarray, n: int, m: int, p: float) -> tuple[float, float, int, float]:
    theta = (np.arange(4000) + 0.5) * np.pi / 4000
    ratio = m / n
    law = (1 - ratio**0.5) ** 2 + 4 * ratio**0.5 * np.sin(theta / 2) ** 2  # ascending
    mass = np.cumsum(2 * np.sin(theta) ** 2 / law / 4000)
    median = np.interp(0.5 * mass[-1], mass, law)
    variance = float(np.median(values) / median)
    roots = (n - 1) ** 0.5, m**0.5
    scale = sum(roots) * (1 / roots[0] + 1 / roots[1]) ** (1 / 3)
    edge = variance * (sum(roots) ** 2 + _TRACY_WIDOM[p] * scale) / n
    spikes = int(np.sum(values > edge))
    if variance == 0:  # more than half of the values are 0: no noise, all others are spikes
        return 0.0, 0.0, spikes, np.nan
    bulk = np.sort(values[spikes:]) / variance
    expected, rank = np.interp(bulk, law, mass / mass[-1]), np.arange(bulk.size + 1) / bulk.size
    off = max(np.max(np.abs(expected - rank[1:])), np.max(np.abs(expected - rank[:-1])))
    return variance**0.5, edge, spikes, float(off)
