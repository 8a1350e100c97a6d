"""Net-steps a second of a sweep as one program, against training the nets one after another."""

import json
import os
import subprocess
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from dynamics import stax
from dynamics.evolve import gradient_descent, lanes, simulate
from dynamics.losses import half_mse
from dynamics.types import Batch
from experiments.rich_lazy._hinge import Lane, hinge_sgd

NETS, WIDTH, SAMPLES, DIM = 80, 128, 16, 8
pytestmark = pytest.mark.benchmark


def nothing(state, data):
    """A readout of its own would be compiled anew at every call."""
    return {}


def loop_rate(step, steps=200):
    start = time.perf_counter()
    for _ in range(steps):
        step()
    return steps / (time.perf_counter() - start)


def test_sweep_outruns_a_loop_over_nets():
    """One net of the output-scale sweep: hand-written NumPy (no autograd), and a jitted JAX step called from Python."""
    model = stax.serial(stax.Dense(WIDTH), stax.Erf(), stax.Dense(1))
    keys = jax.random.split(jax.random.key(0), NETS)
    start = jax.vmap(lambda key: model.init(key, (-1, DIM))[1])(keys)
    x, y = jax.random.normal(keys[0], (SAMPLES, DIM)), jnp.ones((SAMPLES, 1))
    data, eta = Batch(x, y), jnp.linspace(0.1, 0.5, NETS)

    single = gradient_descent(model.apply, half_mse, 0.1)
    one_step = jax.jit(single.step)
    state, key = single.init(jax.tree.map(lambda leaf: leaf[0], start)), jax.random.key(1)

    def jax_step():
        nonlocal state
        state = jax.block_until_ready(one_step(key, state, data))

    w1, w2 = (np.array(layer[0][0]) for layer in (start[0], start[2]))
    xs, ys = np.asarray(x), np.asarray(y)

    def numpy_step():
        nonlocal w1, w2
        h = xs @ w1 / DIM**0.5
        a = erf(h)
        r = (a @ w2 / WIDTH**0.5 - ys) / SAMPLES
        back = r @ w2.T / WIDTH**0.5 * (2 / np.pi**0.5) * np.exp(-h * h)
        w1, w2 = w1 - 0.1 * xs.T @ back / DIM**0.5, w2 - 0.1 * a.T @ r / WIDTH**0.5

    runs = lanes(lambda eta: gradient_descent(model.apply, half_mse, eta))
    sweep = runs.dynamics.init((eta, start))

    def together(steps):
        began = time.perf_counter()
        jax.block_until_ready(simulate(runs.dynamics, nothing, sweep, data, steps, key, [steps])[0].state.params)
        return NETS * steps / (time.perf_counter() - began)

    together(100), jax_step()
    rates = np.array([[together(100), loop_rate(jax_step), loop_rate(numpy_step)] for _ in range(5)])
    swept, one, plain = np.median(rates, axis=0)
    print(f"net-steps/s: sweep {swept:.0f}, jitted step in a loop {one:.0f}, NumPy loop {plain:.0f}")
    assert swept > 2 * one
    assert swept > plain


SWEEPS = {
    "output_scale": {"width": WIDTH, "samples": SAMPLES, "dim": DIM},
    "sgd_noise": {"hidden": 32, "batch": 16, "samples": 512, "dim": 64},
}


def output_scale_sweep():
    """``steps -> state`` for 80 nets of ``SWEEPS['output_scale']``, and its net-steps a step."""
    model, key = stax.serial(stax.Dense(WIDTH), stax.Erf(), stax.Dense(1)), jax.random.key(0)
    start = jax.vmap(lambda key: model.init(key, (-1, DIM))[1])(jax.random.split(key, NETS))
    data = Batch(jax.random.normal(key, (NETS, SAMPLES, DIM)), jnp.ones((NETS, SAMPLES, 1)))
    runs = lanes(lambda eta: gradient_descent(model.apply, half_mse, eta), data_axis=0)  # a draw of data for each net
    state = runs.dynamics.init((jnp.linspace(0.1, 0.5, NETS), start))
    return lambda steps: simulate(runs.dynamics, nothing, state, data, steps, key, [steps])[0].state, NETS


def sgd_noise_sweep(nets=288, block=50):
    """The same for 288 nets of ``SWEEPS['sgd_noise']``, as many as the experiment trains at once."""
    shape, key = SWEEPS["sgd_noise"], jax.random.key(0)
    layers = [layer for _ in range(2) for layer in (stax.Dense(shape["hidden"]), stax.Gelu())]
    model = stax.serial(*layers, stax.Dense(1))
    start = jax.vmap(lambda key: model.init(key, (-1, shape["dim"]))[1])(jax.random.split(key, nets))
    x = jax.random.normal(key, (1, shape["samples"], shape["dim"]))
    data = Batch(x, jnp.sign(x[..., :1]))
    full = jnp.full(nets, shape["samples"])
    pool, origin = jnp.zeros(nets, jnp.int32), jax.vmap(lambda params: model.apply(params, x[0]))(start)
    lane = Lane(jnp.ones(nets), jnp.full(nets, 1e-3), full, pool, origin)
    runs = lanes(lambda lane: hinge_sgd(model.apply, lane, shape["batch"], block))
    state = runs.dynamics.init((lane, start))
    return lambda steps: simulate(runs.dynamics, nothing, state, data, steps, key, [steps])[0].state, nets * block


def test_sweeps_outrun_a_pytorch_loop_twentyfold():
    """Net-steps a second against a PyTorch loop over nets, timed before and after in its own interpreter."""
    python = os.environ.get("DYNAMICS_TORCH_PYTHON")
    if not python:
        pytest.skip("set DYNAMICS_TORCH_PYTHON to an interpreter that has PyTorch")
    program = Path(__file__).parents[1] / "programs" / "torch_loop.py"

    def torch_rates():
        call = [python, str(program), json.dumps(SWEEPS), "3"]
        return json.loads(subprocess.run(call, capture_output=True, text=True, check=True).stdout)

    before, swept = torch_rates(), {}
    for name, (run, per_step), steps in (
        ("output_scale", output_scale_sweep(), 400),
        ("sgd_noise", sgd_noise_sweep(), 8),
    ):
        jax.block_until_ready(run(steps))
        found = []
        for _ in range(5):
            began = time.perf_counter()
            jax.block_until_ready(run(steps))
            found.append(per_step * steps / (time.perf_counter() - began))
        swept[name] = float(np.median(found))
    after = torch_rates()
    for name, rate in swept.items():
        loop = max(before[name], after[name])
        print(f"{name}: sweep {rate:.0f}, PyTorch loop {loop:.0f} net-steps/s, ratio {rate / loop:.1f}")
    ratios = {name: rate / max(before[name], after[name]) for name, rate in swept.items()}
    assert min(ratios.values()) > 20, ratios
