"""Full-batch descent for SGD, the full-batch sharpness for the batch's, other thresholds, labels shuffled."""

from unittest.mock import patch

import numpy as np

from experiments.edge_of_stability import sgd
from rivals import replaced

CONFIG = {"seeds": 3, "samples": 200, "width": 16, "depth": 1, "steps": 300, "draws": 16, "single_steps": 8000}


def wrong(result):
    descent = {k: np.asarray(v) for k, v in result.records["descent"].values.items()}
    for kind in ("diagonal", "relu"):
        values = {k: np.asarray(v)[:, [1, 1]] for k, v in result.records[kind].values.items()}
        yield f"{kind}: full-batch descent for SGD", replaced(result, kind, **values)
        values = {k: np.asarray(v)[:, [0, 0]] for k, v in result.records[kind].values.items()}
        yield f"{kind}: SGD for full-batch descent", replaced(result, kind, **values)
    with patch.object(sgd, "trace_threshold", lambda eta: 0.5 / eta):
        yield "a quarter of the bound", result
    with patch.object(sgd, "trace_threshold", lambda eta: 8 / eta):
        yield "four times the bound", result
    if "test_loss" in descent:
        swapped = {"batch_sharpness": descent["sharpness"], "sharpness": descent["batch_sharpness"]}
        yield "the full batch at the edge", replaced(result, "descent", **swapped)
