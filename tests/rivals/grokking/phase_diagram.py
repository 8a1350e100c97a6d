"""Alpha, eps or P without effect, other rates in theory or network, noise for labels."""

from unittest import mock

import numpy as np

from dynamics.experiments.grokking import _lazy_to_rich as shared
from dynamics.experiments.grokking import phase_diagram as experiment
from rivals import replaced
from rivals.grokking.lazy_to_rich import noise

CONFIG = {
    "seeds": 5, "alpha": (0.1, 0.3), "samples": (12, 60, 120), "dimension": 12, "width": 100, "steps": 2500,
    "eta0": 0.8,
}  # fmt: skip
LOSSES = ("train_loss", "test_loss")


def wrong(result):
    network, infinite = (result.records[name] for name in experiment.NAMES)
    for axis, name in enumerate(("eps", "alpha", "P"), start=1):
        last = -1 if name == "P" else 0

        def same(record, axis=axis, last=last):
            return {loss: np.repeat(np.take(record.values[loss], [last], axis), record.values[loss].shape[axis], axis)
                    for loss in LOSSES}  # fmt: skip

        both = result
        for of, record in {"network": network, "infinite width": infinite}.items():
            yield f"{name} has no effect ({of})", replaced(result, of, **same(record))
            both = replaced(both, of, **same(record))
        yield f"{name} has no effect (both)", both
    for factor in (0.5, 2):
        theory = {loss: shared.at_steps(infinite, loss, factor * infinite.step) for loss in LOSSES}
        yield f"theory at {factor} times the rate", replaced(result, "infinite width", **theory)
    for term in shared.TERMS:
        kept = {"test_loss": network.values["test_loss"] - network.values[f"test_{term}"]}
        yield f"loss without its {term}", replaced(result, "network", **kept)
    with mock.patch.object(shared, "quadratic_teacher", noise):
        yield "labels that are noise", experiment.run(result.config)
