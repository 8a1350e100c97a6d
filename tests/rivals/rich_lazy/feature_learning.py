"""Frozen kernels, missing and late responses, another richness or rate, layers exchanged, other labels; gradient
flow in place of steps, a tangent kernel of another size, a second layer that stays Gaussian, another activation."""

import dataclasses
from unittest import mock

import numpy as np

from dynamics import stax
from dynamics.evolve import study
from dynamics.experiments.rich_lazy import feature_learning as experiment
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
    yield "tangent kernel of another size", replaced(result, "theory", ntk=1.2 * theory["ntk"])
    cfg = result.config
    fine = dataclasses.replace(cfg, eta=cfg.eta / 4, steps=4 * cfg.steps, samples=1600)
    flow = experiment.limit(fine, experiment.data(cfg), "theory", study).values
    yield "gradient flow", replaced(result, "theory", **{name: flow[name][::4] for name in ("f", "features", "ntk")})
    yield "Gaussian second layer", replaced(result, "theory", features=gaussian(theory["features"]))
    with mock.patch.object(experiment.stax, "Tanh", return_value=stax.Erf(1.0, np.pi**0.5 / 2)):
        other = experiment.limit(cfg, experiment.data(cfg), "theory", study).values
    yield (
        "erf of the same slope",
        replaced(result, "theory", **{name: other[name] for name in ("f", "features", "ntk")}),
    )


def gaussian(features):
    """The second layer's kernel moves as it would for Gaussian fields, by the kernel below and not by what W learnt."""
    below = features[:, :, :, 0].astype(float)
    root = np.linalg.cholesky(below + 1e-9 * np.eye(below.shape[-1]))
    phi = np.tanh(np.random.default_rng(0).standard_normal((4000, below.shape[-1])) @ np.swapaxes(root, -1, -2))
    kernel = np.swapaxes(phi, -1, -2) @ phi / len(phi[0, 0, 0])
    return np.stack([below, features[:1, :, :, 1] + kernel - kernel[:1]], 3)
