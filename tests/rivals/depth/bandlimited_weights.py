"""Bands exchanged, errors that fall with the number of features alone."""

import numpy as np

from rivals import replaced

CONFIG = {"seeds": 8, "features": (50, 400), "band": (1.0, 10.0), "points": 600}


def wrong(result):
    error = np.asarray(result.records["fits"].values["error"])
    yield "bands exchanged", replaced(result, "fits", error=error[:, ::-1])
    n = np.asarray(result.config.features, float)[:, None, None]
    yield (
        "1/sqrt n for every band",
        replaced(result, "fits", error=error[:, :, :1, :1] * 0 + 1 / np.sqrt(n) + 0 * error),
    )
    yield "no effect of the number", replaced(result, "fits", error=error[:, :1] * 0 + error[:, :, :1])
    rank = np.asarray(result.records["fits"].values["rank"])
    yield "one direction", replaced(result, "fits", rank=0 * rank + 1)
    yield "full rank", replaced(result, "fits", rank=0 * rank + n[..., 0])
