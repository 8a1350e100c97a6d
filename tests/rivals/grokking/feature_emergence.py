"""Other landscapes and theories of their maxima, answers at random, boundaries of another law, records exchanged."""

from unittest import mock

import jax.numpy as jnp
import numpy as np

from dynamics.evolve import study
from dynamics.experiments.grokking import _energy_landscape as landscape
from dynamics.experiments.grokking import feature_emergence as experiment
from dynamics.tasks.modular import operation_table
from rivals import replaced

CONFIG = {
    "modulus": 13, "larger": 23, "width": 256, "steps": 1500, "starts": 64, "ascent_steps": 500, "seeds": 2,
}  # fmt: skip


def wrong(result):
    cfg, records = result.config, result.records
    adam, larger = records["adam"].values, records["larger group"].values
    yield "memorises wherever it is", replaced(result, "adam", **{k: v[:, [0, 0, 0]] for k, v in adam.items()})
    yield "generalises wherever it is", replaced(result, "adam", **{k: v[:, [2, 2, 2]] for k, v in adam.items()})
    constant = {"test_accuracy": np.stack([adam["test_accuracy"][:, 0], larger["test_accuracy"][:, 1]], 1)}
    yield "boundary at a constant fraction", replaced(result, "larger group", **constant)
    yield "no delay", replaced(result, "adam", test_accuracy=adam["train_accuracy"])
    still = np.broadcast_to(adam["feature_direction"][:1], adam["feature_direction"].shape)
    yield "G_F as at the start", replaced(result, "adam", feature_direction=still)
    theories = {
        "a factor 2": lambda order, dimension=1, real=True: order / dimension,
        "d^2 for d": lambda order, dimension=1, real=True: order / ((2 if real else 4) * dimension**2),
        "blind to complex pairs": lambda order, dimension=1, real=True: order / (2 * dimension),
    }
    for name, theory in theories.items():
        with mock.patch.object(landscape, "feature_energy", theory):
            yield name, result

    def cubed(w, table):
        m = table.shape[0]
        h = (w[..., :m, None] + w[..., None, m:]) ** 3
        sums = jnp.zeros((*h.shape[:-2], m)).at[..., table].add(h)
        return 0.5 * jnp.sum((sums - jnp.mean(sums, axis=-1, keepdims=True)) ** 2, axis=-1)

    with mock.patch.object(landscape, "energy", cubed):
        ascent = landscape.climb(cfg, operation_table("add", cfg.modulus), study)
        yield "cubes for squares", result._replace(records=records | {"ascent": ascent})
    fractions, task = experiment.generalisation_fraction, experiment.table_task

    def trained():
        parts = tuple(fractions(cfg.modulus, c) for c in cfg.boundary)
        record = experiment.train(cfg, cfg.modulus, parts, ("adam",), study).at(optimizer="adam")
        return result._replace(records=records | {"adam": record})

    def at_random(key, table, fraction):
        return task(key, np.random.default_rng(0).permutation(table.ravel()).reshape(table.shape), fraction)

    with mock.patch.object(experiment, "table_task", at_random):
        yield "answers at random", trained()
    network = experiment.two_layer
    with mock.patch.object(experiment, "two_layer", lambda width, m, phi: network(width, m, lambda h: h)):
        yield "no activation", trained()
