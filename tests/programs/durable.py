"""A run with one call of each kind, for tests that kill, starve and damage it.

Started as ``python durable.py ERRORS``, it imports once and forks a child for every line ``FOLDER [key=value ...]``
read from stdin (before any computation, so that forking is sound); it answers with the child's PID, and with its exit
code, one of the command line's, when it has ended. What the child says goes to the file ERRORS.
"""

import os
import sys
import traceback

import jax
import jax.numpy as jnp
import optax

from dynamics.evolve import descent, every, gradient_descent, gradient_flow, log_steps, ode
from dynamics.losses import half_mse
from dynamics.observe import loss
from dynamics.runs import RunError, open_run
from dynamics.runs.durable import pacing
from dynamics.types import Batch, Data, Objective, Observable


def network(params, x):
    return jnp.tanh(x @ params["w"]) @ params["v"]


L = Objective(network, half_mse)


def problem(samples=64, dimension=8, width=16):
    kx, ky, kw, kv = jax.random.split(jax.random.key(0), 4)
    batch = Batch(jax.random.normal(kx, (samples, dimension)), jax.random.normal(ky, (samples, 1)))
    params = {"w": jax.random.normal(kw, (dimension, width)) / 3, "v": jax.random.normal(kv, (width, 1)) / 4}
    return Data(batch), params


def counting():
    """An observable with memory: how often it was read, and the largest loss so far."""

    def update(memory, view):
        count, worst = memory
        value = view.objective(view.params, view.batch)
        worst = jnp.maximum(worst, value)
        return (count + 1, worst), {"loss": value, "count": count, "worst": worst}

    return Observable(lambda view: (jnp.zeros((), jnp.int32), jnp.zeros(())), update)


def calls(run, steps, width=16):
    """Full batch with memory, minibatch Adam, gradient flow, and lanes of which one stops and one diverges."""
    data, params = problem(width=width)
    shared = dict(steps=steps, key=jax.random.key(1))

    def call(label, dynamics, read, record_at):
        run.simulate(dynamics, params, data, train=read, record_at=record_at, label=label, **shared)

    call("full batch", gradient_descent(L, 0.1), counting(), log_steps(steps, 30))
    call("minibatch", descent(L, optax.adam(1e-2), batch_size=16), loss(), every(max(steps // 40, 1), steps))
    call("flow", gradient_flow(L, 0.05), loss(), [0, steps // 3])
    run.study(
        {"eta": [0.02, 0.1, 1e4]},
        draw=lambda lane: params,
        make=lambda lane: gradient_descent(L, lane.eta, batch_size=8),
        read=[loss()],
        stop=lambda lane: lambda state, data: (state.loss < 1e-3) & (state.step > 0),
        data=data,
        record_at=every(max(steps // 20, 1), steps),
        label="lanes",
        **shared,
    )


def in_pieces(run, steps, width=16):
    """One study of two shapes and twelve lanes, of which a quarter diverges."""
    data, _ = problem()
    run.study(
        {"width": [width, 4], "seed": range(3), "eta": [0.02, 1e9]},
        draw=lambda lane: jax.tree.map(lambda leaf: (1 + lane.seed) * leaf, problem(width=lane.width)[1]),
        make=lambda lane: gradient_descent(L, lane.eta, batch_size=8),
        read=[loss(), lambda params, batch: {"v": params["v"]}],
        data=data,
        steps=steps,
        record_at=every(max(steps // 20, 1), steps),
        label="pieces",
    )


def ballast(simulate, steps, megabytes):
    """One call whose state is large and whose steps are slow enough to be committed many times."""
    size = int(float(megabytes) * 2**18)
    drift = ode(lambda x, data: -data * x, 1e-3)
    read = lambda x, data: {"x": x[0]}  # noqa: E731
    return simulate(drift, jnp.ones(size, jnp.float32), jnp.float32(1.0), train=read, steps=steps, label="big")


def run(
    folder, steps="300", pace="0.02", commit="0.0", x64="", width="16", ballast_mb="", fork="", seed="0", workers="0"
):
    pacing.PIECE_SECONDS, pacing.COMMIT_SECONDS, pacing.COMMIT_SHARE = float(pace), float(commit), 1.0
    if x64:
        jax.config.update("jax_enable_x64", True)
    config = {"steps": int(steps), "width": int(width), "seed": int(seed)}
    shares = int(workers)
    with open_run(folder, config, fork_of=fork or None, command=["durable"], workers=max(shares, 1)) as held:
        if ballast_mb:
            ballast(held.simulate, int(steps), ballast_mb)
        else:
            (in_pieces if shares else calls)(held, int(steps), int(width))
        held.journal.set(status="finished")


def child(words):
    try:
        run(words[0], **dict(word.split("=", 1) for word in words[1:]))
    except RunError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.code
    except Exception:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    for line in sys.stdin:
        folder, *words = line.split()
        pid = os.fork()
        if pid == 0:
            errors = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(errors, 2)
            os._exit(child([folder, *words]))
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
