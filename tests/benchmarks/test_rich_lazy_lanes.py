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
from dynamics.evolve import Drawn, gradient_descent, simulate
from dynamics.evolve.study import planned
from dynamics.experiments.rich_lazy._hinge import hinge_sgd
from dynamics.losses import half_mse
from dynamics.types import Batch, Objective

NETS, WIDTH, SAMPLES, DIM = 80, 128, 16, 8
pytestmark = pytest.mark.benchmark


def as_one(*study, **options):
    """``steps -> state`` of a study as one program, its lanes drawn once."""
    (piece,) = planned(*study, steps=1, **options).pieces(lambda label, count: count)
    arguments, _ = piece.call()
    return lambda steps: simulate(**arguments | {"steps": steps, "record_at": []})[0].state


def loop_rate(step, steps=200):
    start = time.perf_counter()
    for _ in range(steps):
        step()
    return steps / (time.perf_counter() - start)


def test_sweep_outruns_a_loop_over_nets():
    """One net of the output-scale sweep: hand-written NumPy (no autograd), and a jitted JAX step called from Python."""
    model = stax.serial(stax.Dense(WIDTH), stax.Erf(), stax.Dense(1))
    keys = jax.random.split(jax.random.key(0), NETS)
    x, y = jax.random.normal(keys[0], (SAMPLES, DIM)), jnp.ones((SAMPLES, 1))
    data, L = Batch(x, y), Objective(model.apply, half_mse)
    start = model.init(keys[0], (-1, DIM))[1]

    single = gradient_descent(L, 0.1)
    one_step = jax.jit(single.step)
    state, key = single.init(start), jax.random.key(1)

    def jax_step():
        nonlocal state
        state = jax.block_until_ready(one_step(key, state, data))

    w1, w2 = (np.array(layer[0]) for layer in (start[0], start[2]))
    xs, ys = np.asarray(x), np.asarray(y)

    def numpy_step():
        nonlocal w1, w2
        h = xs @ w1 / DIM**0.5
        a = erf(h)
        r = (a @ w2 / WIDTH**0.5 - ys) / SAMPLES
        back = r @ w2.T / WIDTH**0.5 * (2 / np.pi**0.5) * np.exp(-h * h)
        w1, w2 = w1 - 0.1 * xs.T @ back / DIM**0.5, w2 - 0.1 * a.T @ r / WIDTH**0.5

    run = as_one(
        {"net": range(NETS)},
        draw=lambda lane: Drawn(model.init(keys[lane.net], (-1, DIM))[1], values={"eta": 0.1 + 0.4 * lane.net / NETS}),
        make=lambda lane: gradient_descent(L, lane.eta),
        data=data,
    )

    def together(steps):
        began = time.perf_counter()
        jax.block_until_ready(run(steps).params)
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
    model = stax.serial(stax.Dense(WIDTH), stax.Erf(), stax.Dense(1))
    L = Objective(model.apply, half_mse)

    def draw(lane):  # a draw of data for each net
        key = jax.random.key(lane.net)
        batch = Batch(jax.random.normal(key, (SAMPLES, DIM)), jnp.ones((SAMPLES, 1)))
        return Drawn(model.init(key, (-1, DIM))[1], batch, {"eta": 0.1 + 0.4 * lane.net / NETS})

    return as_one({"net": range(NETS)}, draw, lambda lane: gradient_descent(L, lane.eta)), NETS


def sgd_noise_sweep(nets=288, block=50):
    """The same for 288 nets of ``SWEEPS['sgd_noise']``, as many as the experiment trains at once."""
    shape, key = SWEEPS["sgd_noise"], jax.random.key(0)
    layers = [layer for _ in range(2) for layer in (stax.Dense(shape["hidden"]), stax.Gelu())]
    model = stax.serial(*layers, stax.Dense(1))
    x = jax.random.normal(key, (shape["samples"], shape["dim"]))
    data, sizes = Batch(x, jnp.sign(x[:, :1])), {"batch": shape["batch"], "block": block}

    def draw(lane):
        params = model.init(jax.random.fold_in(key, lane.net), (-1, shape["dim"]))[1]
        return Drawn(params, values={"origin": model.apply(params, x)})

    def make(lane):
        return hinge_sgd(model.apply, 1.0, 1e-3, shape["samples"], lane.origin, **sizes)

    return as_one({"net": range(nets)}, draw, make, data=data), nets * block


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
