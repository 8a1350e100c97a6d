"""Theories without noise, without the frozen subspace or at another rate; students that do not learn or overtrain."""

import numpy as np

from dynamics.experiments.rich_lazy import generalisation_dynamics as experiment
from rivals import replaced

CONFIG = {
    "seeds": 200, "size": 100, "aspect": (0.5, 1.0, 2.0), "steps": 100,
    "network_samples": (40, 160, 640), "network_seeds": 4, "network_steps": 400,
}  # fmt: skip


def wrong(result):
    theory, late, network = (result.records[name].values for name in ("theory", "late", "network"))
    for name, curves in experiment.wrong_theories(result).items():
        yield name, replaced(result, "theory", **curves)
    yield "another aspect", replaced(result, "theory", **{side: curve[:, ::-1] for side, curve in theory.items()})
    yield "train error for test error", replaced(result, "theory", test=theory["train"])
    yield "no peak", replaced(result, "late", late=np.sort(late["late"], axis=1)[:, ::-1])
    yield (
        "no peak in theory",
        replaced(result, "late theory", late=result.records["late theory"].values["early_stopped"]),
    )
    student = result.records["student"].values["test"]
    yield "students that learn nothing", replaced(result, "student", test=np.broadcast_to(student[:1], student.shape))
    yield "noise as data", replaced(result, "network", test=np.broadcast_to(network["test"][:1], network["test"].shape))
