"""One layer, other rates, one start for the other, imbalance without effect, a closed form that forgets it."""

import numpy as np

from dynamics.experiments.rich_lazy import deep_linear as experiment
from rivals import replaced

CONFIG = {
    "seeds": 2, "size": 8, "learning_rate": (2e-2, 4e-3), "depth": (2, 8, 32), "deep": (4, 16), "patience": 400,
    "imbalance": (-4.0, -1.0, 0.0, 1.0, 4.0), "imbalance_seeds": 4,
}  # fmt: skip


def wrong(result):
    modes, depth, starts, imbalance = (result.records[name] for name in ("modes", "depth", "starts", "imbalance"))
    for name, curve in experiment.other_modes(result.config, modes.time).items():
        yield name, replaced(result, "modes theory", strength=curve)
    yield "rates exchanged", replaced(result, "modes", strength=modes.values["strength"][:, ::-1])
    deep = np.asarray(result.config.depth)
    yield "rate not over K", replaced(result, "depth", quadrature=depth.values["quadrature"] / deep)
    yield (
        "one depth for all",
        replaced(result, "depth", steps=np.broadcast_to(depth.values["steps"][:, :1], (1, len(deep)))),
    )
    yield "starts exchanged", replaced(result, "starts", steps=starts.values["steps"][:, ::-1])
    yield (
        "starts alike",
        replaced(result, "starts", steps=np.broadcast_to(starts.values["steps"][:, :1], starts.values["steps"].shape)),
    )
    yield "closed form of balance", replaced(result, "imbalance", error=imbalance.values["balanced"])
    alignment = imbalance.values["kernel_alignment"]
    yield (
        "imbalance has no effect",
        replaced(result, "imbalance", kernel_alignment=np.broadcast_to(alignment[:, :1], alignment.shape)),
    )
