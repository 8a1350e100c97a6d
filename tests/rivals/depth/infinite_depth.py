"""Drifts of other widths, other variances, signs exchanged."""

import numpy as np

from rivals import replaced

CONFIG = {"width": (2, 3, 4, 16), "depth": 100}


def wrong(result):
    theory, rows = result.records["theory"].values, np.asarray(result.records["networks"].values["log_ratio"])
    yield "infinite width", replaced(result, "theory", mean=0 * theory["mean"] + 0.25)
    yield "no condition", replaced(result, "theory", mean=0.25 - theory["variance"] / 1.048)
    yield "signs exchanged", replaced(result, "networks", log_ratio=rows[:, [0, 2, 1, 3]])
    mean = np.nanmean(rows, axis=(2, 3), keepdims=True)
    yield "1.5 times the noise", replaced(result, "networks", log_ratio=mean + 1.5 * (rows - mean))
