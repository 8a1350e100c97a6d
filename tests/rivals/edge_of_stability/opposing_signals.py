"""Controls in the digits' place, groups found blindly or in stable descent, others left out, another rule in Adam's
place, a toy without outliers."""

import numpy as np

from dynamics.experiments.edge_of_stability._opposing import RULES
from rivals import replaced

CONFIG = {"seeds": 3, "steps": 300, "window": 20}


def wrong(result):
    approach, spike, toy = (result.records[name].values for name in ("approach", "spike", "toy"))
    for i, kind in ((1, "shuffled labels"), (2, "white noise")):
        other = replaced(result, "spike", **{k: np.asarray(v)[:, [i, i, i]] for k, v in spike.items()})
        yield f"{kind} in the digits' place", other
        yield (
            f"training on {kind}",
            replaced(result, "approach", **{k: np.asarray(v)[:, [i, i, i]] for k, v in approach.items()}),
        )
    yield "stable descent", replaced(result, "edge", losses=result.records["stable"].values["losses"])
    order = np.random.default_rng(0).permuted(np.asarray(spike["order"]), axis=-1)
    blindly = {"order": order, "removed": spike["removed_at_random"]}
    yield "groups at random", replaced(result, "spike", **blindly)
    yield "no outlier in the toy", replaced(result, "toy", alignment=np.asarray(toy["alignment"])[:, [1, 1]])
    yield "the readout's share dropped", replaced(result, "toy", readout=0 * np.asarray(toy["readout"]))
    without, after = (
        np.asarray(result.records[name].values[key]) for name, key in (("without", "loss"), ("after", "test_loss"))
    )
    yield "others left out from the start", replaced(result, "without", loss=without[:, [1, 1, 2, 3, 4]])
    yield "others left out from the spike on", replaced(result, "after", test_loss=after[:, [1, 1, 2, 3]])
    losses = np.asarray(result.records["rules"].values["losses"])  # [T, memory, eps, seeds, n]
    for rule, at in RULES.items():
        if rule != "Adam":
            other = losses.copy()
            other[:, 1, 0] = losses[:, *at]
            yield f"{rule} in Adam's place", replaced(result, "rules", losses=other)
    for rule in ("Adam", "first moment alone"):
        other = losses.copy()
        other[:, 0, 1] = losses[:, *RULES[rule]]
        yield f"{rule} in gradient descent's place", replaced(result, "rules", losses=other)
    alike = losses.mean(-1, keepdims=True) + 0 * losses
    yield "all losses move alike", replaced(result, "rules", losses=alike)
