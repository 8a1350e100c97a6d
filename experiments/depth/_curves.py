"""Curves in the plane, with their derivatives."""

from __future__ import annotations

import numpy as np

CURVES = ("circle", "tractrix", "segment")


def curve(name: str, points: int) -> tuple[np.ndarray, np.ndarray]:
    """``x(s), x'(s) [points, 2]`` at equal steps of s, ends included.

    The unit circle; the tractrix ``(t - tanh t, sech t)``, |t| <= 3; the segment ``(s, 1/2)``, |s| <= 1.
    """
    if name == "circle":
        s = np.linspace(0, 2 * np.pi, points)
        return np.stack([np.cos(s), np.sin(s)], -1), np.stack([-np.sin(s), np.cos(s)], -1)
    if name == "tractrix":
        t = np.linspace(-3, 3, points)
        cosh = np.cosh(t)
        return np.stack([t - np.tanh(t), 1 / cosh], -1), np.stack([np.tanh(t) ** 2, -np.sinh(t) / cosh**2], -1)
    s = np.linspace(-1, 1, points)
    return np.stack([s, 0 * s + 0.5], -1), np.stack([0 * s + 1, 0 * s], -1)
