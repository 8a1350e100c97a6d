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
import numpy as np
import pytest
from hosts import L, compute_split, draws, save
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dynamics.evolve import every, gradient_descent
from dynamics.observe import loss
from dynamics.runs import Interrupted, Unusable, open_run
from dynamics.runs.durable import driver, pacing
from dynamics.types import Batch, Data


@functools.cache
def problem():
    """Samples split over the devices, and the hidden layer too; descent on minibatches, compiled once."""
    mesh = jax.make_mesh((jax.device_count(),), ("all",), axis_types=(AxisType.Auto,))

    def place(leaf, *axes):
        split = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.make_array_from_callback(leaf.shape, split, lambda at: leaf[at])

    x, y, params = draws()
    data = Data(Batch(place(x, "all"), place(y, "all")))
    training = gradient_descent(L, 0.1, momentum=0.9, batch_size=16)
    return data, training, {"w": place(params["w"], None, "all"), "v": place(params["v"], "all")}


READ = (loss(), lambda params, batch: {"w": params["w"]})


def go(folder, steps, fork_of=None):
    data, training, params = problem()
    asked = dict(train=READ, steps=steps, record_at=every(7, steps), key=jax.random.key(1), label="big")
    with open_run(folder, {"steps": steps}, command=["hosts"], fork_of=fork_of) as run:
        end, record = run.simulate(training, params, data, **asked)
        run.journal.set(status="finished")
    assert not end.params["w"].is_fully_addressable
    return record


def stopped(folder, steps, process):
    """A signal to the second process alone, after the third piece, stops both with everything saved."""
    keep, count = driver._Written.keep, []

    def keep_and_stop(call, rows):
        count.append(rows)
        if process == 1 and len(count) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return keep(call, rows)

    driver._Written.keep = keep_and_stop
    try:
        go(folder, steps)
    except Interrupted:
        driver._Written.keep = keep
        return
    raise AssertionError("not interrupted")


def in_pieces(folder):
    """Two shapes are two pieces, which the processes of one run do not share."""
    with open_run(folder, {}) as run:
        run.study({"width": [2, 3]}, lambda lane: (np.zeros(lane.width),) * 2, None, steps=0, label="two")


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
        with pytest.raises(Unusable, match="'two' is a study of 2 pieces on 2 processes"):
            in_pieces(place / "pieces")
    np.savez(out, step=record.step, **record.values)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
