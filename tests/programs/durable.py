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

from dynamics.evolve import descent, every, gradient_descent, gradient_flow, lanes, log_steps, ode
from dynamics.losses import half_mse
from dynamics.runs import RunError, open_run, pacing
from dynamics.types import Batch, Data, Readout


def network(params, x):
    return jnp.tanh(x @ params["w"]) @ params["v"]


def problem(samples=64, dimension=8, width=16):
    kx, ky, kw, kv = jax.random.split(jax.random.key(0), 4)
    batch = Batch(jax.random.normal(kx, (samples, dimension)), jax.random.normal(ky, (samples, 1)))
    params = {"w": jax.random.normal(kw, (dimension, width)) / 3, "v": jax.random.normal(kv, (width, 1)) / 4}
    return Data(batch), params


def counting(read):
    """A readout with memory: how often it was read, and the largest loss so far."""

    def update(memory, state, data):
        count, worst = memory
        values = read(state, data)
        worst = jnp.maximum(worst, values["loss"])
        return (count + 1, worst), {**values, "count": count, "worst": worst}

    return Readout(lambda state, data: (jnp.zeros((), jnp.int32), jnp.zeros(())), update)


def loss_of(params, data):
    return {"loss": half_mse(network(params, data.train.x), data.train.y)}


def calls(simulate, steps, width=16):
    """Full batch with memory, minibatch Adam, gradient flow, and lanes of which one stops and one diverges."""
    data, params = problem(width=width)
    key = jax.random.key(1)
    done = {}

    def call(label, dynamics, readout, start, record_at, stop=None):
        state = dynamics.init(start)
        done[label] = simulate(dynamics, readout, state, data, steps, key, record_at, stop, label=label)

    read = lambda state, data: loss_of(state.params, data)  # noqa: E731
    call("full batch", gradient_descent(network, half_mse, 0.1), counting(read), params, log_steps(steps, 30))
    adam = descent(network, half_mse, optax.adam(1e-2), batch_size=16)
    call("minibatch", adam, read, params, every(max(steps // 40, 1), steps))
    flow = gradient_flow(network, half_mse, 0.05)
    call("flow", flow, lambda state, data: loss_of(flow.params(state), data), params, [0, steps // 3])
    runs = lanes(
        lambda eta: gradient_descent(network, half_mse, eta, batch_size=8),
        lambda eta: read,
        lambda eta: lambda state, data: (state.loss < 1e-3) & (state.step > 0),
    )
    etas, many = jnp.array([0.02, 0.1, 1e4]), jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), params)
    call("lanes", runs.dynamics, runs.readout, (etas, many), every(max(steps // 20, 1), steps), runs.stop)
    return done


def ballast(simulate, steps, megabytes):
    """One call whose state is large and whose steps are slow enough to be committed many times."""
    size = int(float(megabytes) * 2**18)
    drift = ode(lambda x, data: -data * x, 1e-3)
    state = jnp.ones(size, jnp.float32)
    return simulate(
        drift, lambda x, d: {"x": x[0]}, state, jnp.float32(1.0), steps, jax.random.key(0), [0, steps], label="big"
    )


def run(folder, steps="300", pace="0.02", commit="0.0", x64="", width="16", ballast_mb="", fork="", seed="0"):
    pacing.PIECE_SECONDS, pacing.COMMIT_SECONDS, pacing.COMMIT_SHARE = float(pace), float(commit), 1.0
    if x64:
        jax.config.update("jax_enable_x64", True)
    config = {"steps": int(steps), "width": int(width), "seed": int(seed)}
    with open_run(folder, config, fork_of=fork or None, command=["durable"]) as held:
        if ballast_mb:
            ballast(held.simulate, int(steps), ballast_mb)
        else:
            calls(held.simulate, int(steps), int(width))
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
