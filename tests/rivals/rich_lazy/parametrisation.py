"""Parametrisations exchanged, labels of noise, no activation, widths without effect, a wrong formula."""

from unittest.mock import patch

import jax
import numpy as np

from dynamics.experiments.rich_lazy import parametrisation as experiment
from dynamics.tasks.sphere import sphere_quadratic
from rivals import replaced

CONFIG = {"seeds": 4, "width": (32, 64, 128), "rate": tuple(2.0**p for p in range(-1, 6))}


def shuffled(key, *sizes):
    data = sphere_quadratic(key, *sizes)
    return data._replace(train=data.train._replace(y=jax.random.permutation(key, data.train.y)))


def wrong(result):
    fixed, rates = (result.records[name].values for name in ("fixed", "rates"))
    kinds = list(experiment.KINDS)
    for one, other in ((2, 1), (2, 0), (0, 2), (1, 2)):
        name = f"{kinds[other]} networks in the place of {kinds[one]}"

        def exchanged(values, one=one, other=other):
            return np.concatenate([values[:, :one], values[:, other : other + 1], values[:, one + 1 :]], axis=1)

        yield f"{name}: features", replaced(result, "fixed", feature_change=exchanged(fixed["feature_change"]))
        if 0 in (one, other):  # the best rate of the two others does not depend on width
            yield f"{name}: rates", replaced(result, "rates", loss=exchanged(rates["loss"]))
    output = fixed["output_change"]
    control = np.broadcast_to(output[:, -1:], output.shape)
    yield "outputs of one rate for all widths", replaced(result, "fixed", output_change=control)
    change = fixed["feature_change"]
    yield (
        "width has no effect",
        replaced(result, "fixed", feature_change=np.broadcast_to(change[:, :, :1], change.shape)),
    )
    for name, value in (("every parametrisation is lazy", 0.5), ("every parametrisation learns features", 0.0)):
        with patch.object(experiment.abc, "feature_exponent", lambda _, value=value: value):
            yield name, result
    with patch.object(experiment, "sphere_quadratic", shuffled):
        yield "shuffled labels", experiment.run(result.config)
    least = result.records["linear"].values["loss"][0]
    yield "no activation", replaced(result, "rates", loss=np.maximum(rates["loss"], least))
