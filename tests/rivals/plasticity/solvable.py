"""Networks that do not age, age linearly, at another rate or all modes alike; remedies exchanged."""

import numpy as np

from rivals import replaced

CONFIG = {"seeds": 3, "eta": (0.1, 0.05)}


def wrong(result):
    flips, fine, modes, random, remedies = (
        result.records[name].values for name in ("flips", "fine", "modes", "linear", "remedies")
    )

    def first(rows):
        return np.broadcast_to(rows[1:2], rows.shape)

    yield "an imbalance that is conserved", replaced(result, "flips", after_age=first(flips["before_age"]))
    start, second = flips["before_age"][1], flips["after_age"][1]
    linear = start + (second - start) * np.arange(len(flips["after_age"]))[:, None]
    yield "linear ageing", replaced(result, "flips", after_age=np.where(np.isnan(flips["after_age"]), np.nan, linear))
    yield "steps that stay", replaced(result, "flips", time_to_fit=first(flips["time_to_fit"]))
    yield "half the steps", replaced(result, "flips", time_to_fit=flips["time_to_fit"] / 2)
    age = fine["before_age"][1] + 1.05 * (fine["after_age"] - fine["before_age"][1])
    yield "an error that does not vanish with eta", replaced(result, "fine", after_age=age)
    for name, axis in (("decay", 1), ("noise", 2)):
        turned = {key: np.flip(rows, axis) for key, rows in remedies.items()}
        yield f"{name} the other way", replaced(result, "remedies", **turned)
    mean = {key: np.broadcast_to(modes[key].mean(-1, keepdims=True), modes[key].shape) for key in modes if "age" in key}
    yield "modes that age alike", replaced(result, "modes", **mean)
    yield "networks that do not age", replaced(result, "linear", **{key: first(rows) for key, rows in random.items()})
