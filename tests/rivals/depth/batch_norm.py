"""Other rates, gradients that vanish or explode, laws exchanged."""

import numpy as np

from rivals import replaced

CONFIG = {"depths": (25, 50, 100), "depth": 80, "size": (8, 16)}


def wrong(result):
    ratio = np.asarray(result.records["contraction"].values["ratio"])
    yield "half the rate", replaced(result, "contraction", ratio=ratio**0.5)
    square = np.asarray(result.records["gradients"].values["square"])
    k = np.arange(square.shape[-1])
    yield "vanishing", replaced(result, "gradients", square=square * 0.97**k)
    yield "exploding", replaced(result, "gradients", square=square * 1.03**k)
    growth = np.asarray(result.records["growth"].values["growth"])
    yield "laws exchanged", replaced(result, "growth", growth=growth[:, ::-1])
