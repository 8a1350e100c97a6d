"""Directions of other normalisations, twins exchanged, curvatures by the trace or of other filters."""

import numpy as np

from dynamics.experiments.landscape.filter_normalisation import RESCALED
from rivals import replaced

CONFIG = {"seeds": 3, "directions": 1000, "steps": 50, "points": 5}


def wrong(result):
    values = result.records["slices"].values
    yield (
        "raw directions",
        replaced(result, "slices", **{f"filter {name}": values[f"none {name}"] for name in RESCALED}),
    )
    yield "by weight", replaced(result, "slices", **{f"filter {name}": values[f"weight {name}"] for name in RESCALED})
    twins = {"filter layers": values["filter units"], "filter units": values["filter layers"]}
    yield "units for layers", replaced(result, "slices", **twins)
    yield "no twin changes", replaced(result, "slices", **{"filter units": values["filter same"]})
    yield "curvature by the trace", replaced(result, "slices", theory=values["trace"])
    yield "twice the curvature", replaced(result, "slices", theory=2 * values["theory"])
    yield "a tenth more curvature", replaced(result, "slices", theory=1.1 * values["theory"])
    mean = np.full_like(values["theory"], values["theory"].mean())
    yield "one curvature for all networks", replaced(result, "slices", theory=mean)
