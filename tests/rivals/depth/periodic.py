"""Activations exchanged, a feature fit that extrapolates, networks that all do or none."""

import numpy as np

from rivals import replaced

CONFIG = {"seeds": 8, "steps": 3000}


def wrong(result):
    for name, keys in (("features", ("outside", "first", "second")), ("trained", ("outside", "inside"))):
        values = {key: np.asarray(result.records[name].values[key]) for key in keys}
        yield (
            f"{name}: activations exchanged",
            replaced(result, name, **{k: v[:, [2, 0, 1]] for k, v in values.items()}),
        )
    outside = np.asarray(result.records["features"].values["outside"])
    yield "features extrapolate", replaced(result, "features", outside=1e-3 * outside)
    second = np.asarray(result.records["features"].values["second"])
    yield "ReLU bends", replaced(result, "features", second=second + 0.1)
    outside = np.asarray(result.records["trained"].values["outside"])
    yield "none extrapolates", replaced(result, "trained", outside=0 * outside + outside[:, :1])
