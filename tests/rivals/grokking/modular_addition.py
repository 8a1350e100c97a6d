"""No weight decay, answers at random, no activation, plain descent, a network that memorises only."""

from unittest import mock

import numpy as np
import optax

from dynamics.experiments.grokking import modular_addition as experiment
from rivals import replaced

CONFIG = {"modulus": 23, "train_fraction": 0.5, "seeds": 3, "steps": 1500}


def wrong(result):
    values = result.records["square"].values
    yield "weight decay has no effect", replaced(result, "square", **{key: v[:, [1, 1]] for key, v in values.items()})
    seeds = np.roll(values["test_accuracy"], 1, axis=1)
    yield "generalises without, memorises with decay", replaced(result, "square", test_accuracy=seeds)
    yield "no delay", replaced(result, "square", test_accuracy=values["train_accuracy"])
    shares = np.broadcast_to(values["frequency_share"][:1], values["frequency_share"].shape)
    yield "features as at the start", replaced(result, "square", frequency_share=shares)
    rng = np.random.default_rng(0)
    patches = {
        "answers at random": {"table_task": _shuffled(rng)},
        "no activation": {"ACTIVATIONS": {"square": lambda h: h}},
        "plain descent": {"optax": mock.Mock(adamw=lambda rate, **_: optax.sgd(rate))},
    }
    for name, patch in patches.items():
        with mock.patch.multiple(experiment, **patch):
            yield name, experiment.run(result.config)


def _shuffled(rng):
    task = experiment.table_task

    def shuffled(key, table, fraction):
        return task(key, rng.permutation(table.ravel()).reshape(table.shape), fraction)

    return shuffled
