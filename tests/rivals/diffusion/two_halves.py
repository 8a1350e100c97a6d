"""The ridge itself for the effective one, other sample counts and noises, no peak, other laws at many samples."""

import dataclasses

import numpy as np

from dynamics.experiments.diffusion import two_halves as experiment
from rivals import replaced

CONFIG = {
    "seeds": 20, "decay": (1.0,), "noise": (0.1,), "network_samples": (25, 200),
    "samples": (2, 5, 10, 20, 50, 100, 200, 400, 1000, 4000, 20000),
}  # fmt: skip


def wrong(result):
    config, measured = result.config, result.records["measured"].values
    theories = {
        name: experiment.theory_grid(config, config.samples, change) for name, change in experiment.WRONG.items()
    }
    theories["twice the noise"] = experiment.theory_grid(
        dataclasses.replace(config, noise=tuple(2 * noise for noise in config.noise)), config.samples
    )
    theories["another spectrum"] = experiment.theory_grid(
        dataclasses.replace(config, decay=tuple(decay + 0.2 for decay in config.decay)), config.samples
    )
    for name, values in theories.items():
        for side in experiment.SIDES:
            yield f"{side}: {name}", replaced(result, "theory", **{side: values[side]})
    images = config.network_samples
    for name, change in experiment.WRONG.items():
        values = experiment.digit_theory(config, images, change)
        for side in experiment.SIDES:
            yield f"digits, {side}: {name}", replaced(result, "digits theory", **{side: values[side][None]})
    distance, N = measured["distance"], np.asarray(config.samples, float)[:, None]
    yield "1/N at every N", replaced(result, "measured", distance=distance[:, :, -1:] * N[-1] / N)
    yield "1/sqrt(N)", replaced(result, "measured", distance=distance * np.sqrt(N))
    yield "no fall", replaced(result, "measured", distance=np.sort(distance, axis=2))
    yield "one half", replaced(result, "measured", distance=distance / 2)
