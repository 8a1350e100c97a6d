"""Another length, another power of n, depth in the variance."""

import numpy as np

from rivals import replaced

CONFIG = {"depth": (4, 16, 64)}


def wrong(result):
    theory, gram = result.records["theory"].values, np.asarray(result.records["residual"].values["gram"])
    yield "branches of variance 1/(2L)", replaced(result, "theory", q=theory["q"] ** 0.5)
    yield "no finite L", replaced(result, "theory", q=0 * theory["q"] + np.exp(0.5))
    yield "depth counts", replaced(result, "theory", log_variance=theory["log_variance"] * [1, 4, 16])
    n = np.sqrt(np.asarray(result.config.width, float))[None, :, None, None, None, None]
    p = theory["p"][0][:, None, None, None]
    yield "1/n", replaced(result, "residual", gram=p + (gram - p) / n)
    grown = np.array([1.0, 2.0, 4.0])[:, None, None, None]
    yield "an error that grows with depth", replaced(result, "residual", gram=p + (gram - p) * grown)
