"""Theories of other kernels, rates or labels; labels without effect; falls and rises that are not there."""

import numpy as np

from dynamics.experiments.influence import coherence as experiment
from rivals import replaced

CONFIG = {"seeds": 4, "samples": 60, "width": (64, 1024), "steps": 60, "images": 200, "eta": (0.1, 0.8)}


def wrong(result):
    regression, start, classes = (result.records[name].values for name in ("regression", "start", "classes"))
    for name, label in experiment.RIVALS.items():
        yield f"lazy: {label}", replaced(result, "regression", lazy=regression[name])
    yield "lazy: labels exchanged", replaced(result, "regression", lazy=regression["lazy"][:, :, ::-1])
    still = np.broadcast_to(regression["lazy"][:1], regression["lazy"].shape)
    yield "lazy: coherence of the start", replaced(result, "regression", lazy=still)
    widths = {name: regression[name][:, -1:] + 0 * regression[name] for name in ("coherence", "lazy")}
    yield "width without effect", replaced(result, "regression", **widths)
    yield "f that does not start at 0", replaced(result, "start", zero=start["plain"])
    yield "labels alike", replaced(result, "classes", coherence=classes["coherence"][:, :, [1, 1, 1]])
    absent = np.isnan(classes["loss"])
    best = np.where(absent, np.nan, np.fmax.accumulate(classes["test_accuracy"]))
    yield "no fall of test accuracy", replaced(result, "classes", test_accuracy=best)
    falling = np.where(absent, np.nan, np.fmin.accumulate(classes["coherence"]))
    yield "coherence that only falls", replaced(result, "classes", coherence=falling)
    edge = classes["sharpness"][:, -1:] * result.config.eta[-1] / result.config.eta[0]
    edge = np.broadcast_to(np.nanmax(edge, 0), classes["sharpness"].shape)
    yield "the edge of stability at every rate", replaced(result, "classes", sharpness=edge)
    yield "rates exchanged", replaced(result, "classes", **{name: held[:, ::-1] for name, held in classes.items()})
