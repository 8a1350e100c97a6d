"""The lazy rate in the catapult's place and the other way round, a curvature that stays.

Recursions without a term are rejected by the identity itself: no other claim holds them against the network."""

from unittest.mock import patch

import numpy as np

from dynamics.experiments.edge_of_stability import catapult
from rivals import replaced

CONFIG = {"seeds": 4, "steps": 100, "width": 128, "samples": 40}


def wrong(result):
    for kind in ("digits", "linear"):
        values = {k: np.asarray(v) for k, v in result.records[kind].values.items()}
        lazy, thrown = ({k: v[:, [i] * v.shape[1]] for k, v in values.items()} for i in (0, 2))
        yield f"{kind}: no catapult", replaced(result, kind, **lazy)
        yield f"{kind}: a catapult at the lazy rate", replaced(result, kind, **thrown)
        yield (
            f"{kind}: curvature that stays",
            replaced(result, kind, edge=np.broadcast_to(values["edge"][:1], values["edge"].shape)),
        )
    linear = result.records["linear"]
    yield "a loss that grows by eta lambda_0 - 1", replaced(result, "linear", loss=linear.values["loss"] ** 0.5)
    recursion = catapult.recursion_claim(result)
    assert recursion.holds
    assert {"without feedback", "without second order"} < set(recursion.rivals)
    yield "stable beyond 4", replaced(result, "linear", loss=np.nan_to_num(linear.values["loss"], nan=0.0, posinf=0.0))
    with patch.object(catapult, "rate", lambda lane: 0.5 * lane.ratio / lane.curvature):
        yield "half of the rate", catapult.run(result.config)
