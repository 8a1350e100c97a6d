"""Theories of other potentials, of no shrinkage and of first order; descent that ends elsewhere."""

import numpy as np

from dynamics.experiments.geometry import weight_law as experiment
from rivals import replaced

CONFIG = {"seeds": 40, "weights": 200, "alpha": (0.1, 0.3), "start": ("log-normal",), "descent_steps": 10_000}


def wrong(result):
    law, ends, descent = (result.records[name].values for name in ("law", "ends", "descent"))
    turned = {key: np.roll(law[key], 1, axis=1) for key in ("moments", "residues", "slope")}
    yield "potentials exchanged in the law", replaced(result, "law", **turned)
    yield "potentials exchanged in the weights", replaced(result, "ends", slope=np.roll(ends["slope"], 1, axis=1))
    gaussian = law["moments"].copy()
    gaussian[..., 3] = gaussian[..., 2]  # of |w|^2/2: dtheta independent of the start
    yield "no shrinkage", replaced(result, "law", moments=gaussian)
    yield "more noise in the targets", replaced(result, "law", moments=1.3 * law["moments"])
    first = np.array([experiment.FIRST_ORDER[name] for name in result.config.potential])
    yield "slopes of first order", replaced(result, "law", slope=first[:, None, None] + 0 * law["slope"])
    yield "h depends on the start", replaced(result, "ends", residues=ends["residues"] + [0.0, 0.1, 0.0, 0.0])
    yield "h has heavy tails", replaced(result, "ends", residues=ends["residues"] + [0.0, 0.0, 1.0, 0.0])
    gap = descent["gap"].copy()
    gap[-1] = np.roll(gap[-1], 1, axis=-1)
    yield "descent ends at another's projection", replaced(result, "descent", gap=gap)
