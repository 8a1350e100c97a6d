"""Random labels, no decay, a clock of other decay or scale, the norm at which it does not generalise."""

from dynamics.experiments.grokking.large_init import NAMES
from rivals import replaced

CONFIG = {"seeds": 1, "samples": 180}


def wrong(result):
    records = result.records
    pairs = {
        "random labels": ("large", "random labels"),
        "the decay does nothing": ("twice the decay", "large"),
        "the scale does nothing": ("half the scale", "large"),
        "no weight decay": ("large", "no decay"),
        "generalises without decay": ("no decay", "large"),
        "usual scale delays too": ("usual scale", "large"),
        "strong decay delays too": ("strong decay", "large"),
    }
    for name, (place, control) in pairs.items():
        yield name, result._replace(records={**records, place: records[control]})
    norm = records["large"].values["norm"]
    yield "the norm stays", replaced(result, "large", norm=0 * norm + norm[0])
    assert set(records) == set(NAMES)
