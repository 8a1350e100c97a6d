"""Other rates, modes exchanged, biases that change nothing, other kernels."""

import numpy as np

from rivals import replaced

CONFIG = {"seeds": 4, "width": 512, "modes": (1, 2, 3, 4), "steps": 800}


def wrong(result):
    mu = result.records["theory"].values["mu"]
    yield "twice the rate", replaced(result, "theory", mu=2 * mu)
    yield "modes exchanged", replaced(result, "theory", mu=mu[..., ::-1])
    amplitude = np.asarray(result.records["trained"].values["amplitude"])
    yield "biases change nothing", replaced(result, "trained", amplitude=amplitude[:, :, [1, 1]])
    yield "targets exchanged", replaced(result, "trained", amplitude=amplitude[:, ::-1])
    front = result.records["front"].values["mu"]
    yield "kernels exchanged", replaced(result, "front", mu=front[:, ::-1])
