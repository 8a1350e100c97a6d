"""Other thresholds, a frozen kernel, a level that no rate sets, a flow without its oscillation, shuffled labels."""

from unittest.mock import patch

import numpy as np

from dynamics.experiments.edge_of_stability import gradient_descent
from rivals import replaced

CONFIG = {"seeds": 2, "eta": (0.2, 0.4), "steps": 2000}


def wrong(result):
    descent = {k: np.asarray(v) for k, v in result.records["descent"].values.items()}
    for name, factor in (("1/eta", 0.5), ("3/eta", 1.5)):
        with patch.object(gradient_descent, "gradient_descent_threshold", lambda eta, c=factor: 2 * c / eta):
            yield f"a threshold of {name}", result
    yield "frozen kernel", replaced(result, "descent", sharpness=0 * descent["sharpness"] + descent["sharpness"][:1])
    yield "a level that no rate sets", replaced(result, "descent", sharpness=descent["sharpness"][:, ::-1])
    yield "a loss that stays at the edge", replaced(result, "descent", loss=np.maximum(descent["loss"], 0.05))
    yield "labels shuffled", replaced(result, "descent", test_loss=descent["test_shuffled"])
    yield "a loss that falls monotonically", replaced(result, "descent", loss=np.minimum.accumulate(descent["loss"], 0))
    yield "bounds without a certificate", replaced(result, "descent", sharpness_upper=2 * descent["sharpness_upper"])
    for name in ("params", "loss", "sharpness"):
        still = result.records["still"].values[name]
        yield f"oscillation dropped, {name}", replaced(result, "central", **{name: still})
