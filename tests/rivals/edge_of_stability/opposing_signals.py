"""Controls in the digits' place, groups found blindly or in stable descent, a toy without outliers."""

import numpy as np

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
