"""Curves exchanged, one count for all, deeper layers as the first."""

import numpy as np

from rivals import replaced

CONFIG = {"nets": 60, "points": 500}


def wrong(result):
    theory = result.records["theory"].values["breakpoints"]
    yield "curves exchanged", replaced(result, "theory", breakpoints=theory[:, ::-1])
    yield "as many on any curve", replaced(result, "theory", breakpoints=theory.mean(1, keepdims=True) + 0 * theory)
    yield "as many in every layer", replaced(result, "theory", breakpoints=theory[..., :1] + 0 * theory)
    rows = np.asarray(result.records["networks"].values["breakpoints"])
    yield "more on the tractrix", replaced(result, "networks", breakpoints=rows[:, [1, 0, 2]])
