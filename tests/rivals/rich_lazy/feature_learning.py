"""Frozen kernels, missing and late responses, another richness, layers exchanged, another rate, other labels."""

import numpy as np

from rivals import replaced

CONFIG = {"seeds": 24, "gamma": (0.1, 1.0, 3.0), "width": 400, "steps": 10, "samples": 1000, "draws": 12}


def wrong(result):
    theory = result.records["theory"].values
    for name in ("independent gradients", "late response", "frozen kernel"):
        yield name, replaced(result, "theory", **result.records[name].values)
    rich = {name: np.roll(value, 1, axis=1) for name, value in theory.items() if name != "failed"}
    yield "another richness", replaced(result, "theory", **rich)
    yield "layers exchanged", replaced(result, "theory", features=theory["features"][:, :, :, ::-1])
    late = {name: np.concatenate([value[:1], value[:-1]]) for name, value in theory.items() if name != "failed"}
    yield "a step late", replaced(result, "theory", **late)
    yield "other labels", replaced(result, "theory", f=-theory["f"])
    networks = result.records["networks"].values
    still = {name: np.broadcast_to(value[:1], value.shape) for name, value in networks.items()}
    yield "networks that do not learn", replaced(result, "networks", **still)
