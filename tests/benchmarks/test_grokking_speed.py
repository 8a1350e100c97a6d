"""The flagship's sweep: CPU time a lane against the single run, and FLOP/s against the machine's matrix product."""

import jax
import numpy as np
import pytest
from interleaved import ON_CPUS, spent

from dynamics.evolve import gradient_descent, simulate
from dynamics.evolve.study import planned
from dynamics.experiments.grokking import lazy_to_rich
from dynamics.experiments.grokking._lazy_to_rich import trained
from dynamics.losses import mse
from dynamics.models.scaling import scaled
from dynamics.models.two_layer import committee, quadratic
from dynamics.record import Record
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


@pytest.mark.benchmark
@pytest.mark.gpu
def test_what_the_flagships_readings_cost():
    """Milliseconds of a step of all its networks, of all their readings, and of the eigenvalues among these."""
    config, found, steps = lazy_to_rich.Config(), {}, 400

    def timed(axes, draw, make, read, *, steps, record_at, key, label):
        for name, readings in {"one": lambda lane: [last], "all": read}.items():
            (piece,) = planned(axes, draw, make, readings, steps=steps, record_at=record_at, key=key).pieces()
            arguments, _ = piece.call()
            run = lambda arguments=arguments: jax.block_until_ready(simulate(**arguments)[1].values)  # noqa: E731
            run()
            found[name] = min(spent(run) for _ in range(3)), len(np.unique(record_at))
        return Record(np.arange(1), np.arange(1.0), {})

    last = Observable.of_view(lambda view: {"loss": view.state.loss})
    axes = {"alpha": config.alpha, "seed": range(config.seeds)}
    trained(config, timed, "network", axes, steps, kernel=True)
    (one, count), (every, _) = found["one"], found["all"]
    matrices = jax.random.normal(
        jax.random.key(0), (len(config.alpha) * config.seeds, config.dimension, config.dimension)
    )
    values = jax.jit(jax.numpy.linalg.eigvalsh)
    spent(values, matrices)
    step, reading, spectra = one / steps, (every - one) / count, min(spent(values, matrices) for _ in range(3))
    print(f"\na step {1e3 * step:.3f} ms, a reading {1e3 * reading:.1f} ms, of it eigenvalues {1e3 * spectra:.1f} ms")
