"""The paper's lifts and no lift at all in the theory's place; linear and square-root rules; Adam's rule for SGD."""

import numpy as np

from rivals import replaced

CONFIG = {"seeds": 2, "samples": 100, "width": 20, "batch_size": (4, 8, 40, 80), "steps": 150, "rank": 15}


def wrong(result):
    batch = {k: np.asarray(v) for k, v in result.records["batch"].values.items()}
    for name in ("along", "elements", "full"):
        yield f"theory: {name}", replaced(result, "batch", theory=batch[name])
    yield "half of the lift", replaced(result, "batch", theory=0.5 * (batch["theory"] + batch["full"]))
    for name, power in (("linear", 1.0), ("square-root", 0.5)):
        yield f"SGD by the {name} rule", replaced(result, "batch", batch_top=ruled(result, "batch", power))
    yield "Adam by the linear rule", replaced(result, "adam", batch_top=ruled(result, "adam", 1.0))
    yield "Adam without noise", replaced(result, "adam", batch_top=ruled(result, "adam", 0.0))
    yield "no noise", replaced(result, "batch", batch_top=batch["full"])


def ruled(result, name, power):
    """The top eigenvalues of a record as a power of the batch size, from the smallest on."""
    record = result.records[name]
    sizes = np.asarray(record.axes["batch_size"], float)[:, None]
    return np.asarray(record.values["batch_top"])[:, :1] * (sizes / sizes[0]) ** -power
