"""A large start in the small one's place, other plateaus, two layers, another rate, a target of noise."""

from unittest import mock

import jax
import numpy as np

from dynamics.experiments.rich_lazy import saddle_to_saddle as experiment
from dynamics.types import Batch
from rivals import replaced

CONFIG = {"seeds": 2}


def wrong(result):
    record, levels = result.records["descent"], result.records["saddles"].values["loss"]
    yield "starts exchanged", replaced(result, "descent", **{k: v[:, ::-1] for k, v in record.values.items()})
    yield "energy without its half", replaced(result, "saddles", loss=2 * levels)
    yield "weakest mode first", replaced(result, "saddles", loss=levels[0] - levels[::-1])
    late = record._replace(step=record.step * 3 // 2)
    yield "rate of two layers", result._replace(records={**result.records, "descent": late})
    keep = np.asarray(record.values["effective_rank"])
    yield "rank that never falls", replaced(result, "descent", effective_rank=np.maximum.accumulate(keep[::-1])[::-1])
    normal = jax.random.normal(jax.random.key(7), (30, 30))
    with mock.patch.object(experiment, "Batch", lambda x, y: Batch(x, normal)):
        yield "noise as target", experiment.run(result.config)
