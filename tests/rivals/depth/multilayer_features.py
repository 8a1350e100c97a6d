"""Steeper and flatter spectra, odd degrees where none are, the tangent kernel for the networks."""

import numpy as np

from rivals import replaced

CONFIG = {"seeds": 4, "dimension": (2, 3)}


def wrong(result):
    mu = result.records["spectra"].values["mu"]
    k = np.maximum(np.arange(mu.shape[-1]), 1.0)
    yield "steeper", replaced(result, "spectra", mu=mu / k**0.5)
    yield "flatter", replaced(result, "spectra", mu=mu * k**0.5)
    yield "depths exchanged", replaced(result, "spectra", mu=mu[:, [1, 0, 2, 3, 4]])
    theory = result.records["networks theory"].values
    yield "tangent kernel", replaced(result, "networks theory", power=theory["tangent"])
    yield "depths exchanged in networks", replaced(result, "networks theory", power=theory["power"][:, ::-1])
