"""The kernel frozen, random labels, weight decay, another rate, alpha without effect."""

import numpy as np

from rivals import replaced

CONFIG = {"seeds": 1}


def wrong(result):
    values, lazy = result.records["network"].values, result.records["lazy"].values
    chance = 0 * values["test_accuracy"] + 1 / result.config.modulus
    yield (
        "the kernel frozen",
        replaced(result, "network", test_accuracy=chance, alignment=0 * values["alignment"] + 0.4),
    )
    yield "random labels", replaced(result, "network", test_accuracy=chance)
    yield "no delay", replaced(result, "network", test_accuracy=values["train_accuracy"])
    yield (
        "features of the start",
        replaced(result, "network", frequency_share=0 * values["frequency_share"] + values["frequency_share"][0]),
    )
    falling = values["norm"][::-1]
    yield "a norm that falls", replaced(result, "network", norm=falling, weight_norm=falling)
    still = np.where(np.isfinite(values["kernel_distance"]), 1.0, np.nan)
    yield "the kernel moves before it fits", replaced(result, "network", kernel_distance=still)
    yield "twice the rate", replaced(result, "lazy", fall=lazy["twice"])
    yield "half the rate", replaced(result, "lazy", fall=lazy["fall"] / 2)
