"""Chains exchanged, starts exchanged, errors that rise, features that stay or learn other rewards."""

import numpy as np

from rivals import replaced

CONFIG = {
    "seeds": 20, "forward": (0.5, 0.95), "steps": 100,
    "heads": (8, 128), "head_seeds": 16, "times": (1.0, 2.0, 5.0, 20.0),
}  # fmt: skip


def wrong(result):
    error, rewards, theory = (result.records[name].values for name in ("error", "rewards", "theory"))
    energy, overlap, right = error["energy"], rewards["overlap"], theory["overlap"]
    order = np.arange(energy.shape[1])
    order[[2, 3]] = order[[3, 2]]
    yield "rings exchanged", replaced(result, "error", energy=energy[:, order])
    yield "starts exchanged", replaced(result, "error", energy=energy[:, :, ::-1])
    yield "the value error", replaced(result, "error", energy=error["squared"])
    yield "errors that never rise", replaced(result, "error", energy=np.minimum.accumulate(energy, 0))
    noise = 1e-9 * energy[:1] * (-1.0) ** np.arange(len(energy))[:, None, None, None]
    yield "rounding of float32", replaced(result, "error", energy=energy + noise)
    yield "chains exchanged", replaced(result, "rewards", overlap=overlap[:, ::-1])
    yield "rewards exchanged", replaced(result, "rewards", overlap=overlap[:, :, ::-1])
    yield "heads exchanged", replaced(result, "rewards", overlap=overlap[:, :, :, ::-1])
    yield "features that stay", replaced(result, "rewards", overlap=np.broadcast_to(overlap[:1], overlap.shape))
    yield "theory of features that stay", replaced(result, "theory", overlap=np.broadcast_to(right[:1], right.shape))
    yield "theory at the next time", replaced(result, "theory", overlap=np.concatenate([right[1:], right[-1:]]))
