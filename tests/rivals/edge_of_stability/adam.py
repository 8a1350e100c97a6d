"""Other thresholds, a curvature that stays, a rate that is not the one said, a flow without its oscillation."""

from unittest.mock import patch

import numpy as np

from dynamics.experiments.edge_of_stability import adam
from rivals import replaced

CONFIG = {"seeds": 2, "eta": (1e-3, 3e-3), "steps": 800, "flow_steps": 120, "width": 30, "depth": 2}


def wrong(result):
    descent = {k: np.asarray(v) for k, v in result.records["descent"].values.items()}
    for name, threshold in (
        ("2/eta", lambda eta, b1=0.9: 2 / eta),
        ("the first moment as heavy ball's", lambda eta, b1=0.9: (2 + 2 * b1) / eta),
    ):
        with patch.object(adam, "adam_threshold", threshold):
            yield name, result
    sharpness = descent["preconditioned_sharpness"]
    yield "frozen kernel", replaced(result, "descent", preconditioned_sharpness=0 * sharpness + sharpness[:1])
    yield "a level that no rate sets", replaced(result, "descent", preconditioned_sharpness=sharpness[:, ::-1])
    yield "a loss that stays at the edge", replaced(result, "descent", loss=np.maximum(descent["loss"], 0.1))
    yield "labels shuffled", replaced(result, "descent", test_loss=descent["test_shuffled"])
    for name in ("params", "sharpness"):
        still = result.records["still"].values[name]
        yield f"oscillation dropped, {name}", replaced(result, "central", **{name: still})
