"""Other thresholds, a rate that is not the one said, a flow without its oscillation, labels shuffled."""

from unittest.mock import patch

import numpy as np

from dynamics.experiments.edge_of_stability import momentum
from rivals import replaced

CONFIG = {"seeds": 2, "steps": 650}


def wrong(result):
    descent = {k: np.asarray(v) for k, v in result.records["descent"].values.items()}
    for name, threshold in (
        ("gradient descent's threshold", lambda eta, beta, **_: 2 / eta),
        ("Nesterov's threshold", lambda eta, beta, **_: (2 + 2 * beta) / (eta * (1 + 2 * beta))),
        ("the rest's rate, eta / (1 - beta)", lambda eta, beta, **_: 2 * (1 - beta) / eta),
    ):
        with patch.object(momentum, "momentum_threshold", threshold):
            yield name, result
    yield "frozen kernel", replaced(result, "descent", sharpness=0 * descent["sharpness"] + descent["sharpness"][:1])
    yield "a loss that stays at the edge", replaced(result, "descent", loss=np.maximum(descent["loss"], 0.1))
    yield "labels shuffled", replaced(result, "descent", test_loss=descent["test_shuffled"])
    for name in ("params", "loss"):
        still = result.records["still"].values[name]
        yield f"oscillation dropped, {name}", replaced(result, "central", **{name: still})
