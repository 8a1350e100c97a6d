"""Full-batch descent for SGD and the other way round, other bounds; the quick preset's long run is not tried here."""

from unittest.mock import patch

import numpy as np

from dynamics.experiments.edge_of_stability import sgd
from rivals import replaced

CONFIG = {"seeds": 3, "samples": 200, "width": 16, "depth": 1, "eta": (0.3,), "steps": 300, "draws": 16}


def wrong(result):
    for kind in ("diagonal", "relu"):
        values = {k: np.asarray(v)[:, [1, 1]] for k, v in result.records[kind].values.items()}
        yield f"{kind}: full-batch descent for SGD", replaced(result, kind, **values)
        values = {k: np.asarray(v)[:, [0, 0]] for k, v in result.records[kind].values.items()}
        yield f"{kind}: SGD for full-batch descent", replaced(result, kind, **values)
    with patch.object(sgd, "trace_threshold", lambda eta: 0.5 / eta):
        yield "a quarter of the bound", result
    with patch.object(sgd, "trace_threshold", lambda eta: 8 / eta):
        yield "four times the bound", result
