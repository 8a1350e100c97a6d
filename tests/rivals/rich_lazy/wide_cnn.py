"""Kernels without their tangent part or activation, networks without locality, targets of another scale or of noise."""

from unittest.mock import patch

import jax.numpy as jnp
import numpy as np

from dynamics.experiments.rich_lazy import wide_cnn
from dynamics.theory.hierarchical import arc_cosine
from rivals import replaced

CONFIG = {"seeds": 3, "samples": (32, 64, 128, 256), "test": 100}


def exchanged(result, record, names):
    values = result.records[record].values
    return replaced(result, record, **{one: values[other] for one, other in names.items()})


def wrong(result):
    local, dense = ([f"{name}, scale {s}" for s in wide_cnn.SCALES] for name in wide_cnn.STUDENTS)
    for record in ("learning", "spectrum", "theory"):
        yield f"no locality: {record}", exchanged(result, record, dict(zip(local, dense)))
    for record in ("learning", "theory"):
        yield f"targets of one scale: {record}", exchanged(result, record, {name: local[0] for name in local})
    learned = result.records["learning"].values
    flat = {name: np.broadcast_to(values[:, :1], values.shape) for name, values in learned.items()}
    yield "samples teach nothing", replaced(result, "learning", **flat)

    def readout(overlaps, depth):
        """Random features: no layer but the last learns."""
        sigma = overlaps
        for layer in range(depth):
            sigma = arc_cosine(sigma)[0]
            size = 2 if layer < depth - 1 else sigma.shape[-1]
            sigma = jnp.mean(sigma.reshape(*sigma.shape[:-1], -1, size), -1)
        return sigma[..., 0]

    with patch.object(wide_cnn, "hierarchical_ntk", readout), patch.object(wide_cnn, "learning", lambda *_: None):
        frozen = wide_cnn.run(result.config).records
    for record in ("spectrum", "theory"):
        yield f"only the readout learns: {record}", replaced(result, record, **frozen[record].values)
