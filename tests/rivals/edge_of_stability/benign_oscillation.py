"""The small rate in the large one's place, other growth laws for the weak feature, labels that no feature carries."""

from unittest.mock import patch

import jax
import numpy as np

from dynamics.experiments.edge_of_stability import benign_oscillation
from rivals import replaced

CONFIG = {"seeds": 3, "steps": 2000}


def wrong(result):
    training, theory = (result.records[name].values for name in ("training", "theory"))
    yield (
        "no oscillation",
        replaced(result, "training", **{k: np.asarray(v)[:, [0, 0]] for k, v in training.items()}),
    )
    yield "gradient flow", replaced(result, "theory", weak=theory["flow"])
    yield "half of the growth rate", replaced(result, "theory", weak=(theory["weak"] * theory["weak"][:1]) ** 0.5)
    yield "untrained networks", replaced(result, "training", **{k: v[:1] + 0 * v for k, v in training.items()})

    def shuffled(config, key, of=benign_oscillation.draw):
        data, weights = of(config, key)
        return data._replace(train=data.train._replace(y=jax.random.permutation(key, data.train.y))), weights

    with patch.object(benign_oscillation, "draw", shuffled):
        yield "shuffled labels", benign_oscillation.run(result.config)
