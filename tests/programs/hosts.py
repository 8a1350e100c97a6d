"""One big computation on several devices: ``python hosts.py FOLDER``.

Data are split by samples over all devices; gradient descent, a Hessian product and rows of the NTK are computed, and
written to FOLDER/split.npz; from one of the devices alone, to FOLDER/one.npz. ``durable_hosts.py`` does it on two
processes.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dynamics.evolve import every, gradient_descent, simulate
from dynamics.losses import half_mse
from dynamics.observe import loss
from dynamics.operators import hessian
from dynamics.types import Batch, Data, Objective


def network(params, x):
    return jnp.tanh(x @ params["w"]) @ params["v"]


L = Objective(network, half_mse)


def draws():
    """Samples, their labels and a network; by NumPy, which compiles nothing."""
    rng = np.random.default_rng(0)
    x, y, w, v = (rng.normal(size=size).astype(np.float32) for size in ((64, 8), (64, 1), (8, 16), (16, 1)))
    return x, y, {"w": w / 3, "v": v / 4}


def compute(place):
    x, y, params = draws()
    data = Data(jax.tree.map(place, Batch(x, y)))
    asked = dict(train=loss(), steps=100, record_at=every(10, 100), key=jax.random.key(1))
    state, record = simulate(gradient_descent(L, 0.1), params, data, **asked)

    @jax.jit
    def product(params, batch):
        return hessian(L, params, batch).matvec(jnp.ones(8 * 16 + 16))

    @jax.jit
    def rows(params, x, columns):
        def jacobian(x):
            parts = jax.jacrev(lambda p: network(p, x)[:, 0])(params)
            return jnp.concatenate([leaf.reshape(len(x), -1) for leaf in jax.tree.leaves(parts)], axis=1)

        return jacobian(x) @ jacobian(columns).T

    return {
        "w": state.params["w"],
        "loss": record.values["loss"],
        "product": product(params, data.train),
        "ntk": rows(params, data.train.x, jnp.asarray(x[:8])),
    }


def compute_split():
    """``compute`` with samples over all devices; on several processes, gathered."""
    mesh = jax.make_mesh((jax.device_count(),), ("samples",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec("samples"))
    found = compute(lambda leaf: jax.make_array_from_callback(leaf.shape, split, lambda at: leaf[at]))
    assert len(found["ntk"].sharding.device_set) == jax.device_count()
    if jax.process_count() > 1:
        found = {name: multihost_utils.process_allgather(value, tiled=True) for name, value in found.items()}
    return found


def save(path, found):
    np.savez(path, devices=jax.device_count(), processes=jax.process_count(), **found)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    save(folder / "one.npz", compute(jnp.asarray))
    save(folder / "split.npz", compute_split())
