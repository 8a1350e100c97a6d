"""Alpha, eps or P without effect, other rates in theory or network, noise for labels; eigenvectors exchanged, the
kernel frozen, readouts of one sign."""

from unittest import mock

import jax
import numpy as np

from dynamics.evolve import study
from dynamics.experiments.grokking import _eigenvector_labels as labels
from dynamics.experiments.grokking import _lazy_to_rich as shared
from dynamics.experiments.grokking import phase_diagram as experiment
from dynamics.theory import lazy_to_rich as theory
from rivals import replaced
from rivals.grokking.lazy_to_rich import noise

CONFIG = {
    "seeds": 5, "alpha": (0.1, 0.3), "samples": (12, 60, 120), "dimension": 12, "width": 100, "steps": 2500,
    "eta0": 0.8, "eigenvector": (1, 24, 36), "eigenvector_points": 80, "eigenvector_steps": 1500,
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
    yield from wrong_eigenvectors(result)
    with mock.patch.object(shared, "quadratic_teacher", noise):
        yield "labels that are noise", experiment.run(result.config)


def wrong_eigenvectors(result):
    """In the place of the network or of its theory."""
    names = [f"{name}, eigenvectors" for name in ("network", "infinite width", "one sign", "frozen")]
    network, infinite, single, frozen = (result.records[name] for name in names)
    lazily = {loss: shared.at_steps(frozen, loss, network.step) for loss in LOSSES}
    others = {
        "kernel frozen": lazily,
        "readouts of one sign": {loss: single.values[loss] for loss in LOSSES},
        "twice the rate": {loss: shared.at_steps(infinite, loss, 2 * infinite.step) for loss in LOSSES},
        "eigenvectors exchanged": {loss: infinite.values[loss][:, ::-1] for loss in LOSSES},
        "k has no effect": {loss: infinite.values[loss][:, [0] * infinite.values[loss].shape[1]] for loss in LOSSES},
    }
    for name, values in others.items():
        for record in names[:2]:
            yield f"{name} ({record})", replaced(result, record, **values)
    with mock.patch.object(theory, "signed", lambda at, signs: jax.tree.map(lambda leaf: leaf[0], at)):
        yield "theory of the first population alone", again(result)
    with mock.patch.dict(labels.SIGNS, network=(1.0,)):
        yield "network of one sign", again(result)


def again(result):
    """The runs over eigenvectors once more."""
    return result._replace(records=result.records | labels.run(result.config, study))
