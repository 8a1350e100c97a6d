"""Dimensions of sets and boundaries on a grid of pixels: by boxes, and by pairs of points that differ."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Shaped

from dynamics.arguments import check_counts
from dynamics.record import Estimate
from dynamics.types import Array


def boundary(label: Shaped[Array | np.ndarray, "r c"]) -> Bool[np.ndarray, "r-1 c-1"]:
    """Where two labels meet: the 2 x 2 blocks of pixels that are not of one label.

    Args:
        label: of each pixel, any dtype that compares (booleans, integers).

    Raises:
        ValueError: unless it has two axes of two pixels or more, and for NaN.

    Example:
        >>> import numpy as np
        >>> boundary(np.array([[0, 0, 1], [0, 0, 1]])).tolist()
        [[False, True]]
    """
    label = _pixels("label", label)
    corner = label[:-1, :-1]
    return (label[1:, :-1] != corner) | (label[:-1, 1:] != corner) | (label[1:, 1:] != corner)


def box_dimension(inside: Bool[Array | np.ndarray, "r c"], *, base: int = 2) -> Estimate:
    """The box-counting dimension of a set of pixels: ``N(s) ~ s^-D`` boxes of side s hold some of it.

    D is the median over ``s = 1, base, base^2, ...`` of the slopes between neighbouring sizes, up to boxes of a quarter
    of the picture. Sizes at which boxes are full, or the set is but a few pixels, bias it: a fractal seen from afar
    reads about 1, and one that fills its coarse boxes about 2.

    Args:
        inside: whether a pixel belongs to the set; ``boundary(label)`` for the boundary of a map.
        base: ratio of neighbouring box sizes; that of the set's own similarity where it has one.

    Returns:
        ``Estimate``: the median slope, its standard error from the spread of the slopes (``1.2533 sd / sqrt(n)``, so
        of how far one exponent describes the set, not of pixels), and their number n. NaN for an empty set.

    Raises:
        ValueError: for a base below 2, or a picture without two box sizes.

    Cost: O(r c).

    Reference: Falconer 2003, 'Fractal geometry', definition 3.1.

    Example:
        >>> import numpy as np
        >>> float(box_dimension(np.eye(64, dtype=bool)).value)
        1.0
    """
    inside = _pixels("inside", inside).astype(bool)
    sizes = _sizes(inside.shape, base, 4)
    counts = [_boxes(inside, size) for size in sizes]
    return _median_slope(counts, base, 0.0)


def pair_dimension(label: Shaped[Array | np.ndarray, "r c"], *, base: int = 2) -> Estimate:
    """The dimension of the boundary between labels from pairs of pixels: a share ``f(e) ~ e^(2 - D)`` of those e apart
    differ (the uncertainty exponent).

    Pairs lie along both axes, at ``e = 1, base, base^2, ...`` up to an eighth of the picture, with middles that are the
    same at every distance; D is 2 minus the median slope between neighbouring distances. It weighs the boundary by the
    area beside it, where boxes weigh it by its own extent, so that the two agree for a set of one dimension and differ
    for a mixture.

    Args:
        label: of each pixel, any dtype that compares.
        base: ratio of neighbouring distances.

    Returns:
        ``Estimate``, as that of ``box_dimension``; NaN where all labels are one.

    Raises:
        ValueError: for a base below 2, or a picture without two distances.

    Cost: O(r c) a distance.

    Reference: McDonald, Grebogi, Ott & Yorke 1985, 'Fractal basin boundaries', section 3.

    Example:
        >>> import numpy as np
        >>> round(float(pair_dimension(np.indices((64, 64))[0] > 30).value), 6)
        1.0
    """
    label = _pixels("label", label)
    sizes, shares = _sizes(label.shape, base, 8), []
    for e in sizes:
        differ = [one != other for one, other in _pairs(label, e, sizes[-1])]
        shares.append(0.5 * (differ[0].mean() + differ[1].mean()))
    return _median_slope(shares, base, 2.0)


def _pixels(name: str, given: Any) -> np.ndarray:
    array = np.asarray(given)
    if array.ndim != 2 or min(array.shape) < 2:
        raise ValueError(f"{name}: got shape {array.shape}; allowed: [r, c] with two pixels or more along each")
    if np.any(array != array):  # NaN, which would differ from its like
        raise ValueError(f"{name}: got NaN; allowed: values that equal themselves")
    return array


def _pairs(label: np.ndarray, e: int, most: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pixels e apart along each axis, around the pixels that are ``most/2`` from the picture's ends."""
    pairs = []
    for axis in range(2):
        first, count = most // 2 - e // 2, label.shape[axis] - most
        pairs.append(tuple(np.take(label, np.arange(at, at + count), axis) for at in (first, first + e)))
    return pairs


def _sizes(shape: tuple[int, ...], base: int, part: int) -> list[int]:
    """Powers of the base up to a part of the shorter side (rounded up by a pixel, that a boundary lacks)."""
    check_counts(2, base=base)
    sizes, most = [1], (min(shape) + 1) // part
    while sizes[-1] * base <= most:
        sizes.append(sizes[-1] * base)
    if len(sizes) < 2:
        raise ValueError(f"base: got {base} for a picture of {shape}; allowed: a side of {part * base} or more")
    return sizes


def _boxes(inside: np.ndarray, size: int) -> int:
    rows, columns = (-(-n // size) * size for n in inside.shape)
    padded = np.zeros((rows, columns), bool)
    padded[: inside.shape[0], : inside.shape[1]] = inside
    return int(padded.reshape(rows // size, size, columns // size, size).any((1, 3)).sum())


def _median_slope(values: Any, base: int, offset: float) -> Estimate:
    """``offset - slope`` of ``log values`` by ``log size``, for each pair of neighbours; their median."""
    values = np.asarray(values, float)
    if not np.all(values > 0):
        return Estimate(np.nan, np.nan, len(values) - 1)
    slopes = offset - np.diff(np.log(values)) / np.log(base)
    n = slopes.size
    error = 1.2533 * slopes.std(ddof=1) / n**0.5 if n > 1 else np.nan
    return Estimate(float(np.median(slopes)), float(error), n)
