"""Laws exchanged, other powers of n, a residual network that accumulates L."""

import numpy as np

from rivals import replaced

CONFIG = {"seeds": 4, "width": (32, 64), "ratio": (1 / 16, 1 / 8, 1 / 4), "residual_depth": (8, 64)}


def wrong(result):
    theory = result.records["lengths theory"].values
    mean, variance = theory["mean"], theory["variance"]
    yield "laws exchanged", replaced(result, "lengths theory", variance=np.roll(variance, 1, 1))
    yield "means exchanged", replaced(result, "lengths theory", mean=np.roll(mean, 1, 1))
    yield "one width for all", replaced(result, "lengths theory", variance=variance[:, :, ::-1])
    other = variance.copy()
    other[:, 3] *= 7.5
    yield "tanh as ReLU", replaced(result, "lengths theory", variance=other)
    flat = result.records["residual theory"].values["variance"]
    yield "depth counts", replaced(result, "residual theory", variance=flat * np.array([1.0, 8.0]))
    yield "1/n^2", replaced(result, "residual theory", variance=flat * np.array([1.0, 0.5])[:, None])
