"""Width without effect, theories at another scale or of half the size, shuffled labels, nothing learnt."""

from unittest.mock import patch

import jax
import numpy as np

from dynamics.experiments.rich_lazy import output_scale as experiment
from dynamics.tasks.sphere import sphere_quadratic
from rivals import replaced

CONFIG = {"width": (64, 256, 1024)}


def shuffled(key, *sizes):
    data = sphere_quadratic(key, *sizes)
    return data._replace(train=data.train._replace(y=jax.random.permutation(key, data.train.y)))


def wrong(result):
    widths = result.config.width
    names = [f"{side} {n}" for side in ("width", "theory") for n in widths]
    held = {name: result.records[name].values for name in names}

    def at_every_width(side, values):
        """``result`` with ``values(width's readings)`` in each record of a side."""
        other = result
        for n in widths:
            other = replaced(other, f"{side} {n}", **values(held[f"{side} {n}"]))
        return other

    first = held[f"width {widths[0]}"]["kernel_distance"]
    yield "width has no effect", at_every_width("width", lambda _: {"kernel_distance": first})
    for name in ("weight_change", "kernel_distance", "loss", "test"):
        half = at_every_width("theory", lambda values, name=name: {name: 0.5 * values[name]})
        yield f"theory: half of the {name}", half
    rich = at_every_width("theory", lambda values: {name: np.roll(v, 1, 1) for name, v in values.items()})
    yield "theory of the next smaller output scale", rich
    power = at_every_width("width", lambda values: {"kernel_distance": values["kernel_distance"] ** 0.5})
    yield "kernel change ~ alpha^(-1/2)", power
    nothing = at_every_width("width", lambda values: {"test": values["untrained"]})
    yield "nothing learnt", nothing
    with patch.object(experiment, "sphere_quadratic", shuffled):
        yield "shuffled labels", experiment.run(result.config)
