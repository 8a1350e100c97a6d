"""Another rate, width without effect, a frozen kernel, labels that tell nothing, a network without its ReLU."""

from unittest import mock

import numpy as np

from dynamics import stax
from dynamics.experiments.rich_lazy import benign_lazy as experiment
from rivals import replaced

CONFIG = {"seeds": 4, "width": (64, 256, 1024), "separation": (0.5, 2.0, 16.0), "dim": 100, "samples": 20, "steps": 200}


def wrong(result):
    names = [f"width {n}" for n in result.config.width]
    values = result.records[names[-1]].values
    loss = values["train_loss"]
    yield "twice the rate", replaced(result, names[-1], train_loss=loss**2 / loss[0])
    yield "half the rate", replaced(result, names[-1], train_loss=np.sqrt(loss * loss[0]))
    yield "labels that tell nothing", replaced(result, names[-1], test_error=0.5 + 0 * values["test_error"])
    yield "flips not fitted", replaced(result, names[-1], train_error=values["bayes_train"])
    frozen = result
    for name in names:
        own = result.records[name].values
        frozen = replaced(frozen, name, train_loss=own["frozen_loss"], kernel_distance=0 * own["kernel_distance"])
    yield "kernel that is frozen", frozen
    yield (
        "width has no effect",
        result._replace(records=result.records | dict.fromkeys(names, result.records[names[0]])),
    )
    experiment.network.cache_clear()
    with mock.patch.object(stax, "Relu", stax.Identity):
        yield "no ReLU", experiment.run(result.config)
    experiment.network.cache_clear()
