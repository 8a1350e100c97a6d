"""The machine's speed: the rate of its float32 matrix product, to which stated run times are scaled."""

from __future__ import annotations

import time

import numpy as np

REFERENCE = 200.0
"""GFLOP/s of the two cores on which experiments state their ``SECONDS``."""

_ROWS = 1024


def matmul_rate() -> float:
    """GFLOP/s of a float32 product of two matrices of 1024 rows, the best of a tenth of a second, at least three."""
    square = np.full((_ROWS, _ROWS), 0.5, np.float32)
    best, begin, rounds = np.inf, time.perf_counter(), 0
    while rounds < 3 or time.perf_counter() - begin < 0.1:
        start = time.perf_counter()
        np.matmul(square, square)
        best, rounds = min(best, time.perf_counter() - start), rounds + 1
    return 2e-9 * _ROWS**3 / best


def here(seconds: float, rate: float) -> float:
    """Seconds stated at ``REFERENCE`` as they are at another rate, to two digits.

    Example:
        >>> here(80, REFERENCE / 3)
        240.0
    """
    return float(f"{seconds * REFERENCE / rate:.2g}")
