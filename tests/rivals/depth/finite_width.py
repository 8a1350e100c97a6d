"""Classes exchanged, signs and powers of 1/n changed."""

import numpy as np

from rivals import replaced

CONFIG = {"seeds": 8, "nets": 1500, "solver_depth": 2000}


def wrong(result):
    tanh, relu = result.records["tanh theory"].values, result.records["ReLU theory"].values
    yield "twice the variance", replaced(result, "tanh theory", V=2 * tanh["V"])
    yield "no shift", replaced(result, "tanh theory", G1=0 * tanh["G1"])
    yield "one width for all", replaced(result, "ReLU theory", variance=relu["variance"][:, ::-1])
    yield "means of another width", replaced(result, "ReLU theory", mean=relu["mean"][:, ::-1])
    yield "first order", replaced(result, "ReLU theory", variance=1.08 * relu["variance"])
    yield "half the excess", replaced(result, "ReLU theory", square=relu["square"] ** 0.5)
    slopes = result.records["slopes"].values["V"]
    yield "classes exchanged", replaced(result, "slopes", V=np.roll(slopes, 2, 1))
