"""Growth of the ten main jobs: CPU seconds against each size that a user turns, with fitted exponents.

``pytest -m benchmark tests/benchmarks/test_growth.py -s`` prints the table of docs/performance.md. The exponent is the
slope of log seconds over the three largest sizes, with its standard error over them; the first call tells the seconds
of tracing and compilation.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interleaved import ON_CPUS, matmul, spent

from dynamics import linalg, observe, operators, stax
from dynamics.empirical import empirical_ntk_fn
from dynamics.evolve import central_flow, every, gradient_descent, simulate, study
from dynamics.losses import half_mse
from dynamics.runs import open_run, write_report
from dynamics.theory.dmft import deep
from dynamics.types import Batch, Objective

pytestmark = [pytest.mark.benchmark, pytest.mark.gpu]


class Job(NamedTuple):
    """One job in one size.

    Attributes:
        make: ``size -> function`` without arguments, whose first call compiles.
        sizes: increasing.
        power: of the operations in the size. Half a power more is allowed, for what leaves the cache on the way
            (kernels above 32 MB) and for other work on the machine.
    """

    make: Callable[[int], Callable[[], Any]]
    sizes: Sequence[int]
    power: int


def net(width: int = 128, samples: int = 256, outputs: int = 10):
    """A tanh network of two hidden layers on 64 inputs, its landscape and data."""
    layers = [layer for _ in range(2) for layer in (stax.Dense(width), stax.Tanh())]
    model = stax.serial(*layers, stax.Dense(outputs))
    params = model.init(jax.random.key(0), (-1, 64))[1]
    x = jax.random.normal(jax.random.key(1), (samples, 64))
    y = jax.nn.one_hot(jnp.arange(samples) % outputs, outputs)
    return model, params, Objective(model.apply, half_mse), Batch(x, y)


def training(steps: int = 200, readings: int = 10, **sizes):
    _, params, L, batch = net(**sizes)
    read, at = [observe.loss(), observe.weight_ranks()], every(max(steps // readings, 1), steps)
    run = gradient_descent(L, 0.1)
    return lambda: simulate(run, params, batch, train=read, steps=steps, record_at=at)[1].values


def ntk(**sizes):
    model, params, _, batch = net(**sizes)
    kernel = jax.jit(lambda params: empirical_ntk_fn(model.apply, ())(batch.x, None, params))
    return lambda: kernel(params)


def analytic(samples: int = 1000, depth: int = 3):
    layers = [layer for _ in range(depth) for layer in (stax.Dense(1, 1.4, 0.1), stax.Relu())]
    kernel = stax.serial(*layers, stax.Dense(1))[2]
    x = jax.random.normal(jax.random.key(0), (samples, 64))
    return lambda: kernel(x, None, "ntk")


def convolutional(side: int):
    layers = [layer for _ in range(3) for layer in (stax.Conv(1, (3, 3), None, "SAME"), stax.Relu())]
    kernel = stax.serial(*layers, stax.GlobalAvgPool(), stax.Dense(1))[2]
    x = jax.random.normal(jax.random.key(0), (8, side, side, 3))
    return lambda: kernel(x, None, "ntk")


def hessian(**sizes):
    _, params, L, batch = net(**sizes)
    operator = operators.hessian(L, params, batch)
    return operator, jax.random.normal(jax.random.key(2), (operator.size,))


def sharpness(**sizes):
    operator, start = hessian(**sizes)
    top = jax.jit(lambda v: linalg.extreme_eigenvalues(operator.matvec, v, 12)[0].value)
    return lambda: top(start)


def top(k: int):
    operator, start = hessian(width=32)
    pairs = jax.jit(lambda v: linalg.eigenpairs(operator.matvec, v, k, tolerance=1e-3).values)
    return lambda: pairs(start)


def density(products: int = 256, **sizes):
    operator, _ = hessian(**sizes)
    made = jax.jit(
        lambda key: linalg.spectral_density(operator.matvec, key, operator.size, probes=8, steps=products // 8)
    )
    return lambda: made(jax.random.key(3))


def flow(k: int = 1, steps: int = 10, **sizes):
    _, params, L, batch = net(**{"width": 32, "samples": 64, **sizes})
    dynamics, read = central_flow(L, 0.5, k=k), observe.loss()
    return lambda: simulate(dynamics, params, batch, train=read, steps=steps)[1].values


def mean_field(T: int = 16, P: int = 3, S: int = 4000):
    x, y = jax.random.normal(jax.random.key(0), (P, 20)), jnp.asarray((-1.0) ** np.arange(P))
    options = {"depth": 2, "gamma": 1.0, "eta": 0.02, "samples": S, "draws": 1, "key": jax.random.key(1)}
    return lambda: deep(jnp.tanh, x, y, steps=T - 1, **options)


def sweep(lanes: int):
    model, _, L, batch = net(width=32, samples=64)
    run, read = gradient_descent(L, 0.1), observe.loss()

    def draw(lane):
        return model.init(jax.random.key(lane.seed), (-1, 64))[1]

    def make(lane):
        return run

    options = {"steps": 100, "record_at": [0, 50, 100], "data": batch}
    return lambda: study({"seed": range(lanes)}, draw=draw, make=make, read=read, **options).values


JOBS = {
    "training, 200 steps, 10 readings": {
        "width": Job(lambda n: training(width=n), (64, 128, 256, 512), 2),
        "samples": Job(lambda n: training(samples=n), (128, 256, 512, 1024), 1),
        "steps": Job(lambda n: training(n), (100, 200, 400, 800), 1),
    },
    "empirical NTK, all outputs": {
        "samples": Job(lambda n: ntk(samples=n), (256, 512, 1024), 2),
        "outputs": Job(lambda n: ntk(outputs=n, samples=64), (40, 80, 160), 2),
        "width": Job(lambda n: ntk(width=n, samples=64), (64, 128, 256, 512), 2),
    },
    "analytic NTK": {
        "samples": Job(lambda n: analytic(n), (2000, 4000, 8000), 2),
        "depth": Job(lambda n: analytic(depth=n), (2, 4, 8, 16), 1),
        "image side (convolutional)": Job(convolutional, (6, 8, 12, 16), 4),
    },
    "sharpness, 12 products": {
        "width": Job(lambda n: sharpness(width=n), (64, 128, 256, 512), 2),
        "samples": Job(lambda n: sharpness(samples=n), (128, 256, 512, 1024), 1),
    },
    "top k eigenpairs to 1e-3": {"k": Job(top, (2, 4, 8, 16), 1)},
    "density, 256 products": {
        "products": Job(density, (128, 256, 512), 1),
        "width": Job(lambda n: density(width=n), (64, 128, 256), 2),
    },
    "central flow, 10 steps": {
        "k": Job(lambda k: flow(k), (1, 2, 4, 8), 2),
        "samples": Job(lambda n: flow(samples=n), (64, 128, 256, 512), 1),
    },
    "deep mean-field theory, L = 2": {
        "times T": Job(lambda n: mean_field(T=n), (16, 32, 64), 2),
        "points P": Job(lambda n: mean_field(P=n), (3, 6, 12), 2),
        "samples S": Job(lambda n: mean_field(S=n), (4000, 8000, 16_000), 1),
    },
    "sweep, 100 steps": {"lanes": Job(sweep, (16, 64, 256, 1024), 1)},
}


def exponent(sizes: Sequence[int], seconds: Sequence[float]) -> tuple[float, float]:
    """Slope of log seconds over the three largest sizes, and its standard error."""
    x, y = np.log(np.array(sizes[-3:], float)), np.log(seconds[-3:])
    slope, offset = np.polyfit(x, y, 1)
    spread = np.sum((y - slope * x - offset) ** 2) / (len(x) - 2)
    return slope, np.sqrt(spread / np.sum((x - x.mean()) ** 2))


@pytest.fixture(scope="module")
def rate():
    """GFLOP/s of a float32 product, beside which the seconds are read."""
    a_flop = matmul()
    return 1e-9 / min(a_flop() for _ in range(7))


def told(name: str, size: str, job: Job, rate: float) -> float:
    """Measures, prints a row of the table, and returns the exponent."""
    first, again = [], []
    for n in job.sizes:
        run = job.make(n)
        first.append(spent(run))
        again.append(min(spent(run) for _ in range(3)))
        jax.clear_caches()
    slope, error = exponent(job.sizes, again)
    times = ", ".join(f"{one:.3g}" for one in again)
    compiling = max(np.array(first) - again)
    sizes = ", ".join(map(str, job.sizes))
    print(
        f"\n| {name} | {size} | {sizes} | {times} | {slope:.2f} +- {error:.2f} | {compiling:.1f} | {rate:.0f} |", end=""
    )
    return slope


@pytest.mark.parametrize(("name", "size"), [(name, size) for name, sizes in JOBS.items() for size in sizes])
def test_growth(name, size, rate):
    job = JOBS[name][size]
    assert told(name, size, job, rate) < job.power + 0.5 or not ON_CPUS


def test_growth_of_a_report(tmp_path, rate):
    """A run's page by its recorded points: the page holds what its panels show, not the record."""

    def make(points: int):
        _, params, L, batch = net(width=16, samples=32)
        path, options = tmp_path / str(points), {"steps": points, "record_at": every(1, points)}
        with open_run(path, {"points": points}) as run:
            run.simulate(gradient_descent(L, 0.1), params, batch, train=[observe.loss()], **options)
        return lambda: write_report(path) and None

    assert told("report", "recorded points", Job(make, (64, 256, 1024, 4096), 1), rate) < 1.5
