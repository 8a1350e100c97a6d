"""Theories with a term dropped, shuffled labels, no activation, another learning rate."""

from unittest import mock

import jax

from dynamics.experiments.grokking import random_feature_amplification as experiment
from rivals import replaced

CONFIG = {
    "dimension": 30, "samples": 1000, "test_samples": 400, "width": 60, "steps": 500, "learning_rate": 3e-3, "seeds": 3,
}  # fmt: skip


def wrong(result):
    rivals = result.records["rivals"].values
    for i, name in enumerate(experiment.RIVALS):
        yield name, replaced(result, "theory", **{key: value[:, i] for key, value in rivals.items()})
    draw, descent, committee = experiment.draw, experiment.gradient_descent, experiment.committee

    def shuffled(config, seed):
        setting, weights, data = draw(config, seed)
        y = jax.random.permutation(jax.random.key(seed), data.train.y)
        return setting, weights, data._replace(train=data.train._replace(y=y))

    def linear(width, phi, *, signs):
        return committee(width, lambda h: h, signs=signs)

    patches = {
        "shuffled labels": {"draw": shuffled},
        "no activation": {"committee": linear},
        "twice the rate": {"gradient_descent": lambda L, rate: descent(L, 2 * rate)},
    }
    for name, patch in patches.items():
        with mock.patch.multiple(experiment, **patch):
            yield name, experiment.run(result.config)
