"""Networks exchanged, too shallow, of another singularity; labels of noise; a neighbour that is consistent."""

from unittest.mock import patch

import numpy as np

from dynamics.experiments.rich_lazy import wide_deep_classifier as experiment
from dynamics.theory.infinite_depth import dual_with_singularity
from rivals import replaced

CONFIG = {"seeds": 6, "depth": (1, 10_000), "samples": (64, 128, 512), "test": 300}


def wrong(result):
    depth, samples = (result.records[name].values for name in ("depth", "samples"))
    rules = ("majority", "nearest", "singular")
    for one, other in (("singular", "nearest"), ("nearest", "singular"), ("majority", "singular")):
        taken = {f"{one}, {rule}": depth[f"{other}, {rule}"] for rule in rules}
        yield f"the {other} network in the place of the {one}", replaced(result, "depth", **taken)
        yield f"errors of the {other} network as the {one}'s", replaced(result, "samples", **{one: samples[other]})
    shallow = {name: np.broadcast_to(values[:, :1], values.shape) for name, values in depth.items()}
    yield "depth has no effect", replaced(result, "depth", **shallow)
    chance = np.random.default_rng(0).normal(0.5, 0.02, samples["singular"].shape)
    yield "noise as labels", replaced(result, "samples", **dict.fromkeys(samples, chance))
    flat = {name: np.broadcast_to(values[:, :1], values.shape) for name, values in samples.items()}
    yield "samples have no effect", replaced(result, "samples", **flat)
    bayes = np.full_like(samples["nearest"], result.config.noise)
    yield "one neighbour is consistent", replaced(result, "samples", nearest=bayes)
    with patch.object(experiment, "dual_with_singularity", lambda alpha: dual_with_singularity(1.5 * alpha)):
        kernel = experiment.kernel_against_distance(result.config)
    yield "another singularity", replaced(result, "kernel", **kernel.values)
