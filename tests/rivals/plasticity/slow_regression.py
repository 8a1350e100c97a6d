"""Learners exchanged, learners that stay as they are, and the averaged equation for the exact one."""

import numpy as np

from rivals import replaced

CONFIG = {"seeds": 30, "eta": (0.01, 0.003), "decay": (0.01,), "tasks": 60, "steps": 5000}


def wrong(result):
    network, linear, renewed, averaged = (
        result.records[name].values for name in ("network", "linear", "renewed", "averaged")
    )
    yield "the averaged equation", replaced(result, "theory", error=averaged["error"])
    yield "another stream's theory", replaced(result, "theory", error=result.records["theory"].values["error"][::-1])
    first = {name: np.broadcast_to(rows[1:2], rows.shape) for name, rows in network.items()}
    yield "a network that does not age", replaced(result, "network", **first)
    yield "eta the other way", replaced(result, "network", **{name: rows[:, ::-1] for name, rows in network.items()})
    plain = {name: rows[:, 0] for name, rows in network.items()}
    yield "continual backpropagation as backpropagation", replaced(result, "renewed", **plain)
    yield "decay without effect", replaced(result, "decay", **{name: rows[:, None] for name, rows in plain.items()})
    yield "noise without effect", replaced(result, "shaken", **plain)
    yield (
        "a linear learner for the network",
        replaced(result, "network", online_error=np.stack([linear["online_error"]] * 2, 1)),
    )
    yield (
        "units that do not die",
        replaced(result, "network", after_dead_units=np.stack([renewed["after_dead_units"]] * 2, 1)),
    )
