"""Durable runs driven by two processes: ``python durable_hosts.py PROCESS PORT FOLDER [steps]``.

Without ``steps``: the computation of ``hosts.py``, a whole run, one that a signal to the second process stops and that
is then continued, a fork, and refusals.
With it, one run, to be killed. Each process writes the record that it was given to FOLDER/PROCESS.npz.
"""

import functools
import os
import signal
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hosts import compute_split, draws, save
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dynamics.evolve import every, gradient_descent
from dynamics.losses import half_mse
from dynamics.runs import Interrupted, Unusable, driver, open_run, pacing
from dynamics.types import Batch, Data


def network(params, x):
    return jnp.tanh(x @ params["w"]) @ params["v"]


@functools.cache
def problem():
    """Samples split over the devices, and the hidden layer too; descent on minibatches, compiled once."""
    mesh = jax.make_mesh((jax.device_count(),), ("all",), axis_types=(AxisType.Auto,))

    def place(leaf, *axes):
        split = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.make_array_from_callback(leaf.shape, split, lambda at: leaf[at])

    x, y, params = draws()
    data = Data(Batch(place(x, "all"), place(y, "all")))
    training = gradient_descent(network, half_mse, 0.1, momentum=0.9, batch_size=16)
    return data, training, training.init({"w": place(params["w"], None, "all"), "v": place(params["v"], "all")})


def read(state, data):
    return {"loss": half_mse(network(state.params, data.train.x), data.train.y), "w": state.params["w"]}


def go(folder, steps, fork_of=None):
    data, training, state = problem()
    with open_run(folder, {"steps": steps}, command=["hosts"], fork_of=fork_of) as run:
        end, record = run.simulate(training, read, state, data, steps, jax.random.key(1), every(7, steps), label="big")
        run.journal.set(status="finished")
    assert not end.params["w"].is_fully_addressable
    return record


def stopped(folder, steps, process):
    """A signal to the second process alone, after the third piece, stops both with everything saved."""
    keep, count = driver._Call._keep, []

    def keep_and_stop(call, piece, values):
        count.append(piece)
        if process == 1 and len(count) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return keep(call, piece, values)

    driver._Call._keep = keep_and_stop
    try:
        go(folder, steps)
    except Interrupted:
        driver._Call._keep = keep
        return
    raise AssertionError("not interrupted")


def refused(folder, config, words):
    with pytest.raises(Unusable, match=words), open_run(folder, config):
        pass


def main(process, port, folder, steps=""):
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", 2, process)
    pacing.COMMIT_SECONDS, pacing.COMMIT_SHARE = 0.0, 1.0
    out = Path(folder) / f"{process}.npz"
    place = Path(folder)
    if steps:
        record = go(place / "run", int(steps))
    else:
        found = compute_split()
        if process == 0:
            save(place / "split.npz", found)
        record = go(place / "whole", 300)
        stopped(place / "stopped", 300, process)
        record = go(place / "stopped", 300)
        longer = go(place / "forked", 350, fork_of=place / "whole")
        np.testing.assert_array_equal(longer.values["loss"][:43], record.values["loss"][:43])
        assert np.all(np.isfinite(longer.values["loss"]))
        refused(place / "whole", {"steps": 301}, "steps: 300 -> 301")
        refused(place / "whole", {"process": process}, "not the same on all 2 processes")
    np.savez(out, step=record.step, **record.values)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
