"""Rank without effect, a task whose direction has none, networks that were never trained."""

import numpy as np

from rivals import replaced

CONFIG = {"units": 16, "rank": (1, 16), "seeds": 4, "iterations": 300, "linear_rank": (2, 20), "tasks": 16}


def wrong(result):
    linear, recurrent = (result.records[name].values for name in ("linear", "recurrent"))
    ka = linear["kernel_alignment"]  # [2, ranks + 1, tasks]
    yield "rank has no effect", replaced(result, "linear", kernel_alignment=np.broadcast_to(ka[:, :1], ka.shape))
    yield "labels along no direction", replaced(result, "linear", kernel_alignment=ka[:, [0, 1, 0]])
    untrained = {name: np.stack([values[0]] * 2) for name, values in recurrent.items()}
    yield "untrained networks", replaced(result, "recurrent", **untrained)
    theory = result.records["linear theory"].values
    exact = theory["kernel_alignment"]  # [1, ranks + 1, tasks]
    yield "blind to each task's share", replaced(result, "linear theory", kernel_alignment=theory["blind"])
    yield "theory of other tasks", replaced(result, "linear theory", kernel_alignment=exact[:, :, ::-1])
    yield "theory of other ranks", replaced(result, "linear theory", kernel_alignment=exact[:, ::-1])
    yield "tasks exchanged", replaced(result, "linear", kernel_alignment=ka[..., ::-1])
