"""Laws exchanged, other ranks, a kernel that depends on the law."""

import numpy as np

from rivals import replaced

CONFIG = {"seeds": 4, "nets": 1000, "depth": (1, 2, 4), "rank": (4,)}


def wrong(result):
    theory, rows = result.records["theory"].values, result.records["networks"].values["length"]
    exchanged = [1, 0, 2, 3]
    yield "orthogonal as Gaussian", replaced(result, "theory", variance=theory["variance"][:, exchanged])
    yield "means exchanged", replaced(result, "theory", mean=theory["mean"][:, exchanged])
    yield "same fluctuations", replaced(result, "theory", variance=np.repeat(theory["variance"][:, :1], 4, 1))
    yield "other kernel", replaced(result, "networks", length=1.2 * np.asarray(rows))
    square = theory["square"].copy()
    square[:, 2] = square[:, 0]
    yield "low rank's raw moment as Gaussian", replaced(result, "theory", square=square)
    yield "orthogonal raw moment", replaced(result, "theory", square=theory["square"] ** 1.5)
