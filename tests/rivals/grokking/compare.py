"""No delay, a kernel that keeps still, norms the other way round, decays that do nothing."""

import numpy as np

CONFIG = {
    "alpha": (0.1, 0.2), "decay": (1.0, 2.0), "norm_decay": (0.4, 0.8), "gd_alpha": (0.5,), "separation": (30.0,),
    "dimension": 10_000, "pace": 0.6,
}  # fmt: skip


def wrong(result):
    def changed(change):
        records = {key: record._replace(values=change(key, record.values)) for key, record in result.records.items()}
        return result._replace(records=records)

    def together(key, values):
        return {name: values.get(name.replace("test_", "train_"), value) for name, value in values.items()}

    yield "no delay", changed(together)
    for name in ("kernel_distance", "weight_norm"):

        def still(key, values, name=name):
            value = values.get(name, np.ones(2))
            return {**values, name: np.where(np.isfinite(value), 1.0, np.nan)}

        yield f"{name} keeps still", changed(still)

    def backwards(key, values):
        return {**values, "weight_norm": 1 / values["weight_norm"]} if "weight_norm" in values else values

    yield "norms the other way round", changed(backwards)
    foretold = [key for key in result.records if key.endswith(", theory")]
    records = {key: result.records[foretold[0]] for key in foretold}
    yield "decays that do nothing", result._replace(records={**result.records, **records})
