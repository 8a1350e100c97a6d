"""Alpha without effect, a kernel that keeps still, random labels, another decay."""

import dataclasses

from rivals import replaced

CONFIG = {"width": 100, "steps": 6000, "learning_rate": 1e-3, "seeds": 3, "alpha": (1.0, 8.0)}


def wrong(result):
    values = result.records["network"].values
    yield "alpha has no effect", replaced(result, "network", **{name: v[:, -1:] + 0 * v for name, v in values.items()})
    yield "no delay", replaced(result, "network", test_loss=values["train_loss"])
    yield "random labels", replaced(result, "network", test_loss=0 * values["test_loss"] + 1)
    still = 0 * values["kernel_distance"] + values["kernel_distance"][4]
    yield "kernel frozen after the first steps", replaced(result, "network", kernel_distance=still)
    yield "no decay", replaced(result, "network", weight_norm=0 * values["weight_norm"] + values["weight_norm"][0])
    for name in ("weight_decay", "learning_rate"):
        other = dataclasses.replace(result.config, **{name: 2 * getattr(result.config, name)})
        yield f"twice the {name}", result._replace(config=other)
