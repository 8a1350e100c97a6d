"""No activation, labels at random, noise without clusters, large weights whose kernel stays, another readout."""

import dataclasses
from unittest import mock

import jax
import jax.numpy as jnp

from dynamics.experiments.grokking import xor_clusters as experiment
from rivals import replaced

CONFIG = {
    "dimension": 4000, "samples": 100, "test_samples": 100, "width": 400, "steps": 60, "separation": 20.0,
    "learning_rate": 0.03, "seeds": 3,
}  # fmt: skip


def wrong(result):
    values = result.records["network"].values
    still = {name: jnp.broadcast_to(value[1], value.shape) for name, value in values.items()}
    yield "the network of the first step to the end", replaced(result, "network", **still)
    spans, clusters = experiment.spans, experiment.xor_clusters

    def at_random(config, seed):
        found = spans(config, seed)
        y = jax.random.permutation(jax.random.key(seed), found.train.y)
        return found._replace(train=found.train._replace(y=y))

    def without(key, samples, tests, dim, separation, flips):
        return clusters(key, samples, tests, dim, 1e-3, flips)

    patches = {
        "labels at random": {"spans": at_random},
        "noise without clusters": {"xor_clusters": without},
        "no activation": {"jax": mock.Mock(wraps=jax, nn=mock.Mock(relu=lambda h: h))},
    }
    for name, patch in patches.items():
        with mock.patch.multiple(experiment, **patch):
            yield name, experiment.run(result.config)
    yield "large weights", experiment.run(dataclasses.replace(result.config, init=0.1))._replace(config=result.config)
