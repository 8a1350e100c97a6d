"""Full-batch descent in the place of SGD, a frozen kernel, labels of noise, samples without effect, other data."""

import numpy as np

from rivals import replaced

CONFIG = {
    "seeds": 4,
    "alpha": (2.0**15,),
    "temperature": (2.0**-5, 2.0**-2, 2.0),
    "samples": (128, 256, 512),
    "updates": 1500,
    "perceptron_samples": (128, 512, 2048),
    "uniform_samples": (64, 128, 256),
    "perceptron_dim": (32,),
}


def wrong(result):
    values = result.records["samples"].values  # [1, P, T, seeds]
    t = np.asarray(result.config.temperature)[:, None]

    def no_effect(axis, *names):
        return {name: np.broadcast_to(values[name].take([0], axis), values[name].shape) for name in names}

    yield "gradient flow: T has no effect", replaced(result, "samples", **no_effect(2, "weight_change"))
    yield "the time does not grow with T", replaced(result, "samples", updates=values["updates"][:, :, :1] * t[0] / t)
    yield "noise adds up at random", replaced(result, "samples", weight_change=values["weight_change"] / t**0.5)
    yield "P has no effect", replaced(result, "samples", **no_effect(1, "weight_change", "updates"))
    yield "frozen kernel", replaced(result, "samples", kernel_distance=0 * values["kernel_distance"])
    control = result.records["shuffled"].values["test_error"]
    control = np.broadcast_to(control, values["test_error"].shape)
    yield "shuffled parity", replaced(result, "samples", test_error=control)
    linear = np.full_like(values["test_error"], result.records["linear"].values["test_error"][0])
    yield "a linear classifier", replaced(result, "samples", test_error=linear)
    names = [f"perceptron, chi = {chi:g}" for chi in result.config.chi]
    swapped = {name: result.records[other] for name, other in zip(names, names[1:] + names[:1])}
    yield "data of another density", result._replace(records=result.records | swapped)
    for name in names:
        ratio = result.records[name].values["ratio"]  # [1, d, P, draws]
        factor = 4.0 ** (0.25 * np.arange(ratio.shape[2]))
        yield f"{name}, a factor P^(1/4)", replaced(result, name, ratio=ratio * factor[:, None])
    yield "nothing fits", replaced(result, "samples", **{name: np.full_like(v, np.nan) for name, v in values.items()})
