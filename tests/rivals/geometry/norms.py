"""Norms exchanged, bounds of other curvatures, ends in other balls, an exact Newton-Schulz."""

import numpy as np

from rivals import replaced

CONFIG = {"seeds": 4, "decay_steps": 2000, "size": (32,), "directions": 50}


def wrong(result):
    schulz, descent, decay = (result.records[name].values for name in ("newton_schulz", "descent", "decay"))
    yield "Newton-Schulz is exact", replaced(result, "newton_schulz", optax_smallest=schulz["exact_smallest"])
    yield "another iteration", replaced(result, "newton_schulz", optax_off=schulz["exact_off"])
    yield "a smaller Lambda", replaced(result, "descent", Lambda=descent["smaller"])
    loss = descent["loss"]
    yield "norms exchanged", replaced(result, "descent", loss=np.roll(loss, 1, axis=1))
    yield "half the decrease", replaced(result, "descent", loss=(loss + loss[:1]) / 2)
    for kind, name in (("", "decay is ridge"), ("excess, ", "decay's loss is that of ridge")):
        ends = {f"{kind}ball of {norm}": decay[f"{kind}ridge"] for norm in ("spectral", "max", "frobenius")}
        yield name, replaced(result, "decay", **ends)
    yield "another's ball", replaced(result, "decay", **{"ball of spectral": decay["ball of max"]})
    exact = decay["ball of spectral"].copy()
    exact[:, 3] = exact[:, 0]
    yield "Newton-Schulz ends in the ball too", replaced(result, "decay", **{"ball of spectral": exact})
