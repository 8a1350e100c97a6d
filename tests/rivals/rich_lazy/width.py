"""Frozen kernels, theories of other kernels or at another rate, networks without activation, widths without effect."""

from functools import cache
from unittest.mock import patch

import jax
import numpy as np

from dynamics import stax
from dynamics.empirical import empirical_ntk_fn
from dynamics.experiments.rich_lazy import width as experiment
from dynamics.theory.predict import gradient_descent_mse_steps
from rivals import replaced

CONFIG = {"seeds": 8, "width": (256, 512, 1024), "steps": 100, "checkpoints": 8}


@cache
def linear(width):
    model = stax.serial(stax.Dense(width), stax.Dense(1))
    return model, jax.jit(empirical_ntk_fn(model.apply))


def wrong(result):
    widths = result.config.width

    def at_every_width(values):
        """``result`` with ``values(width's readings)`` in each record."""
        other = result
        for n in widths:
            other = replaced(other, f"width {n}", **values(result.records[f"width {n}"].values))
        return other

    first = result.records[f"width {widths[0]}"].values
    for name in ("infinite_width", "kernel_change", "kernel_start"):
        yield f"width has no effect: {name}", at_every_width(lambda _, name=name: {name: first[name]})
    yield "frozen kernel", at_every_width(lambda held: {"kernel_change": 0 * held["kernel_change"]})
    for rival in experiment.RIVALS:
        yield f"theory: {rival}", at_every_width(lambda held, rival=rival: {"infinite_width": held[rival]})
    squares = at_every_width(lambda held: {"infinite_width": held["infinite_width"] ** 2})
    yield "a law of 1/n", squares
    with patch.object(experiment, "network", linear):
        yield "no activation", experiment.run(result.config)

    def fast(k, y, eta):
        return gradient_descent_mse_steps(k, y, 1.5 * eta)

    with patch.object(experiment, "gradient_descent_mse_steps", fast):
        yield "theory at another rate", experiment.run(result.config)
    assert np.isfinite(first["train_loss"]).all()
