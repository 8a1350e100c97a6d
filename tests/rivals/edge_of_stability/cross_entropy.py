"""A level that no rate sets, the square loss's sharpness, a frozen kernel, half of the rate."""

from unittest.mock import patch

import numpy as np

from dynamics.experiments.edge_of_stability import cross_entropy
from rivals import replaced

CONFIG = {"seeds": 2, "samples": 900, "width": 40, "steps": 3500, "eta": (0.2, 0.27)}


def wrong(result):
    descent = {k: np.asarray(v) for k, v in result.records["descent"].values.items()}
    sharpness = descent["sharpness"]
    yield "frozen kernel", replaced(result, "descent", sharpness=0 * sharpness + sharpness[:1])
    yield "a level that no rate sets", replaced(result, "descent", sharpness=sharpness[:, ::-1])
    stays = np.maximum.accumulate(sharpness, 0)
    yield "it stays at the edge, as under the square loss", replaced(result, "descent", sharpness=stays)
    yield "a loss that stays there", replaced(result, "descent", loss=np.maximum(descent["loss"], 1.5))
    for name, factor in (("1/eta", 1.0), ("4/eta", 4.0)):
        with patch.object(cross_entropy, "gradient_descent_threshold", lambda eta, c=factor: c / eta):
            yield f"a threshold of {name}", result
