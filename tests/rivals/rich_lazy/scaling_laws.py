"""Responses without their bottleneck, other time scales and exponents, features in the place of samples."""

from unittest.mock import patch

import numpy as np

from dynamics.experiments.rich_lazy import scaling_laws as experiment
from dynamics.theory import scaling_laws as theory
from rivals import replaced

CONFIG = {"seeds": 12, "size": (32, 64, 128), "modes": 2048, "a": (2.0, 3.2), "b": (1.5, 1.5), "times": 25}


def wrong(result):
    records = result.records
    t, unlimited = records["features"].time, records["unlimited"].values["loss"][..., None]
    for name in ("features", "samples"):
        curve = records[f"{name} theory"].values["loss"]
        yield (
            f"{name} are no bottleneck",
            replaced(result, f"{name} theory", loss=np.broadcast_to(unlimited, curve.shape)),
        )
        twice = np.apply_along_axis(lambda row: np.interp(np.log(2 * t), np.log(t), row), 0, curve)
        yield f"{name}: twice as fast", replaced(result, f"{name} theory", loss=twice)
        yield f"{name}: a factor 2", replaced(result, f"{name} theory", loss=2 * curve)
        measured = records[name].values["loss"]
        yield f"{name}: none learns", replaced(result, name, loss=np.broadcast_to(measured[:1], measured.shape))
    yield "train is test", replaced(result, "samples", train=records["samples"].values["loss"])
    yield "samples as features", replaced(result, "samples", loss=records["features"].values["loss"])
    yield "features as samples", replaced(result, "features", loss=records["samples"].values["loss"])
    exponents = theory.exponents
    for name, other in (
        ("the paper's size exponent", lambda a, b: exponents(a, b)._replace(size=exponents(a, b).data)),
        ("samples rest as features", lambda a, b: exponents(a, b)._replace(data=exponents(a, b).size)),
        ("time without the spectrum", lambda a, b: exponents(a, b)._replace(time=a - 1)),
    ):
        with patch.object(experiment.theory, "exponents", other):
            yield name, result
