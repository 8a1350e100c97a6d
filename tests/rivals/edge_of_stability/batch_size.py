"""The paper's lifts and no lift at all in the theory's place; linear and square-root rules; Adam's rule for SGD."""

import numpy as np

from rivals import replaced

CONFIG = {"seeds": 2, "samples": 100, "width": 20, "batch_size": (4, 8, 40, 80), "steps": 150, "rank": 15}


def wrong(result):
    batch, adam = ({k: np.asarray(v) for k, v in result.records[name].values.items()} for name in ("batch", "adam"))
    for name in ("along", "elements", "full"):
        yield f"theory: {name}", replaced(result, "batch", theory=batch[name])
    yield "half of the lift", replaced(result, "batch", theory=0.5 * (batch["theory"] + batch["full"]))
    sizes = np.asarray(result.config.batch_size, float)[:, None]
    for name, power in (("linear", 1.0), ("square-root", 0.5)):
        ruled = batch["batch_top"][:, :1] * (sizes / sizes[0]) ** -power
        yield f"SGD by the {name} rule", replaced(result, "batch", batch_top=ruled)
        ruled = adam["batch_top"][:, :1] * (sizes / sizes[0]) ** -power
        yield f"Adam by the {name} rule", replaced(result, "adam", batch_top=ruled)
    yield "no noise", replaced(result, "batch", batch_top=batch["full"])
