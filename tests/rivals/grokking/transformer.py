"""Other frequencies than the key ones, no weight decay, features that stay."""

from unittest import mock

import jax.numpy as jnp
import numpy as np

from dynamics.experiments.grokking import transformer as experiment
from rivals import replaced

CONFIG = {
    "modulus": 23, "train_fraction": 0.65, "learning_rate": 1e-2, "key_frequencies": 4, "steps": 600, "seeds": 4,
}  # fmt: skip


def wrong(result):
    values = result.records["network"].values
    random = {"excluded_train_loss": values["random_excluded_train_loss"]}
    yield "random frequencies", replaced(result, "network", **random)
    yield "restricted loss with the test loss", replaced(result, "network", restricted_loss=values["test_loss"])
    yield "features stay", replaced(result, "network", gini=np.broadcast_to(values["gini"][:1], values["gini"].shape))
    control = result.records["no weight decay"]
    yield "no weight decay", result._replace(records=result.records | {"network": control})
    top = mock.Mock(wraps=experiment.jax)
    top.lax.top_k = lambda power, count: (None, jnp.arange(count))
    with mock.patch.object(experiment, "jax", top):
        yield "frequencies 1 to 5", experiment.run(result.config)
