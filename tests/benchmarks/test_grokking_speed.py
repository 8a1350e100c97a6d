"""The flagship's sweep: CPU time a lane against the single run, and FLOP/s against the machine's matrix product."""

import jax
import numpy as np
import pytest
from interleaved import ON_CPUS, spent

from dynamics.evolve import gradient_descent, simulate
from dynamics.evolve.study import planned
from dynamics.losses import mse
from dynamics.models.scaling import scaled
from dynamics.models.two_layer import committee, quadratic
from dynamics.tasks.teachers import quadratic_teacher
from dynamics.types import Objective, Observable

SAMPLES, DIM, WIDTH, STEPS, ALPHAS, SEEDS = 300, 60, 200, 300, (0.1, 0.2, 0.4), 5


def run_of(alphas, seeds):
    """A compiled sweep as a nullary function."""
    model = committee(WIDTH, quadratic(0.1))

    def draw(lane):
        key = jax.random.key(lane.seed)
        return quadratic_teacher(key, SAMPLES, 1, DIM).data.train, model.init(key, (-1, DIM))[1]

    def make(lane):
        objective = Objective(scaled(model, lane.alpha).apply, mse)
        return gradient_descent(objective, 5.0 * WIDTH / lane.alpha**2)

    last = Observable.of_view(lambda view: {"loss": view.state.loss})
    (piece,) = planned({"alpha": alphas, "seed": range(seeds)}, draw, make, [last], steps=STEPS).pieces()
    arguments, _ = piece.call()

    def run():
        return jax.block_until_ready(simulate(**arguments)[1].values["loss"])

    run()
    return run


@pytest.mark.benchmark
@pytest.mark.gpu
def test_a_lane_costs_no_more_than_the_single_run():
    single, sweep, lanes_run = run_of((0.2,), 1), run_of(ALPHAS, SEEDS), len(ALPHAS) * SEEDS
    matrix = jax.random.normal(jax.random.key(0), (1024, 1024))
    product = jax.jit(lambda a: jax.lax.fori_loop(0, 20, lambda i, b: b @ a * 1e-2, a))
    jax.block_until_ready(product(matrix))
    rounds = [(spent(single), spent(sweep), spent(product, matrix)) for _ in range(5)]
    alone, together, multiply = np.median(rounds, axis=0)
    flops = 4 * SAMPLES * DIM * WIDTH * STEPS * lanes_run / together  # forward and weight gradient: 2 P D N each
    rate = 20 * 2 * 1024**3 / multiply
    print(f"\nCPU a lane / single run: {together / lanes_run / alone:.2f}")
    print(f"sweep: {flops / 1e9:.1f} GFLOP/s a core, matrix product {rate / 1e9:.1f}, share {flops / rate:.2f}")
    assert together / lanes_run < 1.1 * alone or not ON_CPUS  # noise of a shared machine
