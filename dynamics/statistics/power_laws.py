"""Exponents from repeated measurements: a power law fitted seed by seed, with the interval that the seeds allow."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from dynamics.arguments import POSITIVE, SHARE, check_numbers

PRIOR = 0.5
"""Standard deviation of a correction's logarithm at the smallest x: it is a factor of 1.6 there, or of 1/1.6."""


class PowerLaw(NamedTuple):
    """``y = prefactor * x^exponent``.

    Attributes:
        exponent: mean over seeds of the least-squares slope of ``log y`` on ``log x``.
        low, high: its 95 % interval (Student's t over seeds); NaN for one seed.
        error: its standard error; NaN for one seed.
        prefactor: geometric mean over seeds.
        used: number of seeds with finite, positive data throughout.
        seeds: number of seeds given.
        slopes: ``[used]`` each used seed's own exponent; one NaN where there is no fit.
    """

    exponent: float
    low: float
    high: float
    prefactor: float
    used: int
    seeds: int
    error: float = np.nan
    slopes: Any = (np.nan,)

    def __str__(self) -> str:
        return f"{self.exponent:.3f} [{self.low:.3f}, {self.high:.3f}]"


def power_law(x: Any, y: Any, *, share: float = 0.9, correction: float | None = None) -> PowerLaw:
    """Fits ``y = c x^p`` to each seed by least squares in the logarithms, and gives the mean with its interval.

    A seed with a value that is not finite and positive is left out whole: a diverged run never counts as fitted. When
    fewer than ``share`` of the seeds are left, the survivors are no fair sample, and there is no fit.

    A law that is only approached, ``c x^p sqrt(1 + a/x)`` say, as a large and a smaller term make it that add up at
    random, has a slope that is off p by ``a/(2x)``. With ``correction = r`` the fit is of ``c x^p exp(q x^-r)``, whose
    q takes up the first order of that, with weights ``x^r``: the scatter over seeds falls as that of a mean of ``x^r``
    terms. Where scatter hides q, the fit goes over to the pure power: q is taken to be normal, with the deviation
    ``PRIOR`` at the smallest x. The error holds both, scatter and what is not known of q.

    Args:
        x: ``[n]`` positive abscissae, at least three distinct ones.
        y: ``[seeds, n]`` or ``[n]``.
        share: smallest share of seeds, in (0, 1], that must be usable.
        correction: r > 0, the order of what vanishes at large x; None, or a single seed, fits a pure power.

    Returns:
        A ``PowerLaw``; its numbers are NaN when too few seeds can be used.

    Raises:
        ValueError: when shapes disagree, fewer than three abscissae are given, one is not positive, or the share
            lies outside (0, 1], or the correction is not positive.

    Assumptions: seeds are independent and their slopes about normal.

    Example:
        >>> import numpy as np
        >>> fit = power_law([1.0, 2.0, 4.0], [[3.0, 1.5, 0.75], [1.0, 0.5, 0.25]])
        >>> round(fit.exponent, 6), fit.used
        (-1.0, 2)
    """
    x, y = np.asarray(x, float), np.atleast_2d(np.asarray(y, float))
    if x.ndim != 1 or y.shape[-1] != x.size or y.ndim != 2:
        raise ValueError(f"y: got shape {y.shape}; allowed: [seeds, {x.size}] to match x {x.shape}")
    if np.unique(x).size < 3 or np.any(x <= 0):
        raise ValueError(f"x: got {x.tolist()}; allowed: at least three distinct positive values")
    check_numbers(share=(share, SHARE))
    if correction is not None:
        check_numbers(correction=(correction, (POSITIVE[0], "None, or a finite number > 0")))
    good = np.all(np.isfinite(y) & (y > 0), axis=-1)
    if not good.any() or good.mean() < share:
        return PowerLaw(np.nan, np.nan, np.nan, np.nan, int(good.sum()), good.size)
    if correction is not None and good.sum() > 1:
        return _corrected(x, np.log(y[good]), (x / x.min()) ** -correction, good.size)
    slopes, offsets = np.polyfit(np.log(x), np.log(y[good]).T, 1)
    low, high = mean_interval(slopes)
    error = slopes.std(ddof=1) / slopes.size**0.5 if slopes.size > 1 else np.nan
    return PowerLaw(
        float(slopes.mean()), low, high, float(np.exp(offsets.mean())), slopes.size, good.size, float(error), slopes
    )


def _corrected(x: np.ndarray, logs: np.ndarray, vanishing: np.ndarray, seeds: int) -> PowerLaw:
    """Of ``logs [seeds, n]`` on ``log x``, 1 and what vanishes, by least squares with a row for the prior."""
    from scipy.special import stdtrit

    used, weight, freedom = len(logs), (len(logs) / vanishing) ** 0.5, (len(logs) - 1) * x.size
    scatter = np.sqrt(np.sum(weight**2 * (logs - logs.mean(0)) ** 2) / used / freedom)
    rows = np.stack([np.log(x), np.ones_like(x), vanishing], 1) * weight[:, None]
    inverse = np.linalg.pinv(np.vstack([rows, [0, 0, scatter / PRIOR]]))
    slopes, offsets = (inverse[:2, :-1] * weight) @ logs.T
    exponent, error = slopes.mean(), scatter * np.linalg.norm(inverse[0])
    half = stdtrit(freedom, 0.975) * error
    return PowerLaw(float(exponent), float(exponent - half), float(exponent + half), float(np.exp(offsets.mean())),
                    used, seeds, float(error), slopes)  # fmt: skip


def mean_interval(values: Any) -> tuple[float, float]:
    """The 95 % interval of a mean, ``mean +- t_{.975, n-1} s / sqrt(n)``; NaN for fewer than two values.

    Args:
        values: ``[n]`` independent, about normal.
    """
    from scipy.special import stdtrit

    values = np.asarray(values, float)
    if values.size < 2:
        return np.nan, np.nan
    half = stdtrit(values.size - 1, 0.975) * values.std(ddof=1) / np.sqrt(values.size)
    return float(values.mean() - half), float(values.mean() + half)
