"""Theories of other settings, ridges exchanged, labels of noise, theories of other exponents."""

import dataclasses

import numpy as np

from dynamics.experiments.rich_lazy import random_features as experiment
from rivals import replaced

CONFIG = {"seeds": 30, "samples": (32, 64), "features": (16, 32, 64, 128), "modes": 256}


def wrong(result):
    records, config = result.records, result.config
    for name in experiment.RIDGES[:2]:
        ridges = records[f"{name} theory"].values["ridge"][0]
        for title, changed in (
            ("no label noise", experiment.eigenframework(config, ridges, noise=0.0)),
            ("the kernel itself", experiment.eigenframework(config, ridges, many=True)),
            ("other power", experiment.eigenframework(dataclasses.replace(config, a=config.a + 0.3), ridges)),
            ("other kernel", experiment.eigenframework(dataclasses.replace(config, b=config.b + 0.3), ridges)),
            ("ten times the ridge", experiment.eigenframework(config, 10 * ridges)),
        ):
            yield f"{name}: {title}", replaced(result, f"{name} theory", **{k: v[None] for k, v in changed.items()})
    small, best, half = (records[name] for name in experiment.RIDGES)
    yield "ridges exchanged", result._replace(records={**records, "small ridge": best, "best ridge": small})
    yield (
        "no cost",
        replaced(result, experiment.RIDGES[2], test=np.where(half.values["test"] > 0, best.values["test"], 0)),
    )
    yield "train error as large", replaced(result, "best ridge", train=best.values["test"])
    test = small.values["test"]
    yield (
        "labels of noise",
        replaced(result, "small ridge", test=np.broadcast_to(test.mean((1, 2))[:, None, None], test.shape)),
    )
