"""Alpha without effect, delay at every alpha, decay that is needed, another clock."""

import dataclasses

from rivals import replaced

CONFIG = {"samples": 60, "level": 0.6}


def wrong(result):
    network = result.records["network"]
    yield "alpha has no effect", replaced(result, "network", **{n: v[:, [0, 0, 0]] for n, v in network.values.items()})
    yield "delay at every alpha", replaced(result, "network", **{n: v[:, [2, 2, 2]] for n, v in network.values.items()})
    late = network.at(alpha=result.config.alpha[-1])
    yield "without decay as with it", result._replace(records={**result.records, "no decay": late})
    chance = network.values["test_accuracy"] * 0 + 0.1
    yield "random labels", replaced(result, "network", test_accuracy=chance)
    for name in ("weight_decay", "learning_rate"):
        other = dataclasses.replace(result.config, **{name: 2 * getattr(result.config, name)})
        yield f"clock of another {name}", result._replace(config=other)
    norm = network.values["weight_norm"]
    yield "the norm stays", replaced(result, "network", weight_norm=0 * norm + norm[0])
