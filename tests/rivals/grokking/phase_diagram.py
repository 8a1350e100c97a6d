"""Alpha, eps or P without effect, other rates in theory or network, noise for labels."""

from unittest import mock

import jax
import numpy as np

from dynamics.types import Batch, Data
from experiments.grokking import _lazy_to_rich as shared
from experiments.grokking import phase_diagram as experiment
from rivals import replaced

CONFIG = {"seeds": 2, "alpha": (0.1, 0.3), "samples": (12, 60, 120), "dimension": 12, "width": 100, "steps": 1500}
LOSSES = ("train_loss", "test_loss")


def wrong(result):
    network, infinite = (result.records[name] for name in experiment.NAMES)
    for name, index in {
        "eps has no effect": np.s_[:, [0, 0]],
        "alpha has no effect": np.s_[:, :, [0, 0]],
        "P has no effect": np.s_[:, :, :, [2, 2, 2]],
    }.items():
        for of, record in {"network": network, "infinite width": infinite}.items():
            yield f"{name} ({of})", replaced(result, of, **{loss: record.values[loss][index] for loss in LOSSES})
        both = {one: result.records[one].values for one in experiment.NAMES}
        other = result
        for of, values in both.items():  # in network and theory alike
            other = replaced(other, of, **{loss: values[loss][index] for loss in LOSSES})
        yield f"{name} (both)", other
    for factor in (0.5, 2):
        theory = {loss: shared.at_steps(infinite, loss, factor * infinite.step) for loss in LOSSES}
        yield f"theory at {factor} times the rate", replaced(result, "infinite width", **theory)
    for term in shared.TERMS:
        kept = {"test_loss": network.values["test_loss"] - network.values[f"test_{term}"]}
        yield f"loss without its {term}", replaced(result, "network", **kept)
    with mock.patch.object(shared, "quadratic_teacher", noise):
        yield "labels that are noise", experiment.run(result.config)


def noise(key, *arguments):
    task = teacher(key, *arguments)
    return task._replace(data=Data(*(Batch(x, jax.random.permutation(key, y)) for x, y in task.data)))


teacher = shared.quadratic_teacher
