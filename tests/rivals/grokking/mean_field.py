"""The spike inside the bath, no seed, labels of another training set, a delay without D, samples without effect."""

import numpy as np

from rivals import replaced

CONFIG = {"seeds": 6, "dimension": (60, 240), "steps": 50, "few": (1.0,), "limit": (60, 240)}


def wrong(result):
    theory, data = result.records["theory"].values, result.records["data"].values
    bath, seedless = (result.records[name].values for name in ("bath", "seedless"))

    def last(name, values):
        """The theory, with other values at the last dimension."""
        return np.concatenate([theory[name][:, :-1], np.broadcast_to(values, theory[name][:, -1].shape)[:, None]], 1)

    def tiled(half):
        """Of half the seeds, for all of them."""
        return np.concatenate([half, half], 1)

    losses = ("train_loss", "test_loss")
    yield "spike in the bath", replaced(result, "theory", **{name: last(name, tiled(bath[name])) for name in losses})
    yield "no seed", replaced(result, "theory", **{name: last(name, seedless[name][:, None]) for name in losses})
    other = {name: np.roll(theory[name], 1, axis=-1) for name in losses}
    yield "labels of another training set", replaced(result, "theory", **other)
    early = last("test_loss", result.records["large seed"].values["test_loss"])
    yield "the seed of the smallest D", replaced(result, "theory", test_loss=early)
    few = result.records["few data"].values["test_loss"]  # of half the seeds
    yield (
        "kappa has no effect",
        replaced(result, "few data", test_loss=0 * few + data["test_loss"][:, -1:, : few.shape[-1]]),
    )
