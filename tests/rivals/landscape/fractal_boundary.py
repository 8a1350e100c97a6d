"""Boundaries of other numbers of data, of noise, and a map that leaves terms out."""

import numpy as np

from rivals import replaced

CONFIG = {"points": 64}


def wrong(result):
    found = result.records["dimension"].values
    order = {"one datum for two": [0, 0, 2], "two for one": [1, 1, 2], "four for one": [2, 1, 2], "no rise": [0, 1, 1]}
    for name, rows in order.items():
        yield name, replaced(result, "dimension", **{kind: values[:, rows] for kind, values in found.items()})
    ones = {kind: np.ones_like(values) for kind, values in found.items()}
    yield "smooth for all", replaced(result, "dimension", **ones)
    yield "noise fills the plane", replaced(result, "dimension", **{kind: 2 * values for kind, values in ones.items()})
    yield "estimators that disagree", replaced(result, "dimension", pair=found["pair"] + 0.3)
    yield "a map to first order", replaced(result, "network", map=result.records["network"].values["first_order"])
    relu = result.records["relu dimension"].values["box"]
    yield "a rough boundary of ReLU", replaced(result, "relu dimension", box=relu + 0.3)
