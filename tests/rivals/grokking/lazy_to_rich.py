"""The kernel frozen, alpha or eps without effect, another rate, a term dropped, labels that are noise."""

from unittest import mock

import jax
import numpy as np

from dynamics.evolve import study
from dynamics.experiments.grokking import _lazy_to_rich as shared
from dynamics.types import Batch, Data
from rivals import replaced

CONFIG = {
    "seeds": 4, "alpha": (0.25, 0.5), "samples": 110, "window": (20, 220), "aligned": (0.12,), "dimension": 20,
    "width": 100, "steps": 1500, "window_steps": 600, "fresh": 1000,
}  # fmt: skip


def wrong(result):
    network, infinite, lazy = (result.records[name] for name in ("network", "infinite width", "lazy"))
    losses = ("train_loss", "test_loss")
    frozen = {name: shared.at_steps(lazy, name, network.step)[:, :1] * np.ones((1, 2, 1)) for name in losses}
    yield "kernel frozen", replaced(result, "network", **frozen)
    yield "alpha has no effect", replaced(result, "network", **{n: v[:, [0, 0]] for n, v in network.values.items()})
    yield "eps has no effect", replaced(result, "network, eps", **same_eps(result, "network"))
    for factor in (0.5, 2):
        theory = {name: shared.at_steps(infinite, name, factor * infinite.step) for name in losses}
        yield f"theory at {factor} times the rate", replaced(result, "infinite width", **theory)
    for term in shared.TERMS:
        kept = {"test_loss": network.values["test_loss"] - network.values[f"test_{term}"]}
        yield f"loss without its {term}", replaced(result, "network", **kept)
    still = {"feature_distance": np.ones_like(network.values["feature_distance"])}
    yield "features that move before", replaced(result, "network", **still)
    axes = {"alpha": CONFIG["alpha"], "seed": range(CONFIG["seeds"])}
    with mock.patch.object(shared, "quadratic_teacher", noise):
        record = shared.trained(result.config, study, "network", axes, CONFIG["steps"], kernel=True)
    yield "labels that are noise", result._replace(records={**result.records, "network": record})


def same_eps(result, name):
    """The readings at the smallest alpha, as if they were those at the other eps."""
    there, here = result.records[f"{name}, eps"], result.records[name]
    return {one: shared.at_steps(here, one, there.step)[:, :1] for one in there.values if one != "alignment"}


def noise(key, *arguments):
    task = teacher(key, *arguments)
    return task._replace(data=Data(*(Batch(x, jax.random.permutation(key, y)) for x, y in task.data)))


teacher = shared.quadratic_teacher
