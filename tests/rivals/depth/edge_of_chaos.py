"""Other powers of depth, the map off the edge, activations exchanged."""

import numpy as np

from rivals import replaced

CONFIG = {"width": 500, "depth": (10, 30)}


def wrong(result):
    step, rows = np.maximum(result.records["map"].step, 1.0)[:, None], result.records["map"].values["versine"]
    yield "exponential decay", replaced(result, "map", versine=result.records["off"].values["versine"])
    yield "activations exchanged", replaced(result, "map", versine=np.roll(rows, 1, 1))
    yield "another half power", replaced(result, "map", versine=rows / step**0.5)
    deviation = result.records["length"].values["deviation"]
    yield "a stable edge", replaced(result, "length", deviation=np.roll(deviation, 2, 1))
    yield "twice the coefficient", replaced(result, "map", versine=2 * rows)
