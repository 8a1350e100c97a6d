"""The empirical NTK against neural-tangents' Jacobian contraction: time, memory, rate and in-loop cost.

Interleaved, jitted, one process. Time is this process's CPU time, since machines are shared, so ratios only; on an
accelerator it is wall time.
``pytest -m benchmark tests/benchmarks/test_empirical_speed.py -s`` prints the whole table.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from empirical_cases import CASES, GEOMETRIC, mlp, reals
from interleaved import ON_CPUS, matmul, spent

from dynamics.empirical import (
    empirical_ntk_fn,
    empirical_ntk_plan,
    ntk_effective_dimension,
    ntk_eigenpairs,
    ntk_label_alignment,
    ntk_operator,
    ntk_trace,
)
from dynamics.evolve import every, gradient_descent, kernel_descent, simulate
from dynamics.interop import neural_tangents
from dynamics.losses import half_mse
from dynamics.observe import ntk_of_state
from dynamics.types import Batch, Objective, Observable

pytestmark = [pytest.mark.benchmark, pytest.mark.gpu]
ROUNDS = 5
HEADER = "case | ms | reference/ours (least..most) | MB (estimate) | reference/ours MB | GFLOP | of matmul rate"


def compiled(function, *args):
    return jax.jit(function).lower(*args).compile()


@pytest.fixture(autouse=True)
def full_precision():
    """neural-tangents, too, without a GPU's TF32."""
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def table():
    rows = {}
    yield rows
    print("\n" + HEADER + "".join(f"\n{name} | {row['text']}" for name, row in rows.items()))


@pytest.fixture(scope="module")
def a_flop():
    return matmul()


@pytest.mark.parametrize("name", CASES)
def test_against_jacobian_contraction(name, table, a_flop):
    case = CASES[name]
    (f, params), x = case.make(), case.inputs()
    reference_fn = neural_tangents.load().empirical_ntk_fn(f, case.trace, vmap_axes=0, implementation=1)
    new = compiled(lambda p, x: empirical_ntk_fn(f, case.trace)(x, None, p), params, x)
    old = compiled(lambda p, x: reference_fn(x, None, p), params, x)
    kernel, expected = new(params, x), old(params, x)
    off = float(jnp.abs(kernel - expected).max() / jnp.abs(expected).max())
    times = np.array([(spent(new, params, x), spent(old, params, x), a_flop()) for _ in range(ROUNDS)])
    ratios = times[:, 1] / times[:, 0]
    used, theirs = (program.memory_analysis().temp_size_in_bytes for program in (new, old))
    plan = empirical_ntk_plan(f, x, None, params, case.trace)
    ratio, rate = np.median(ratios), np.median(plan.flops * times[:, 2] / times[:, 0])
    table[name] = {
        "ratio": ratio,
        "text": f"{1e3 * np.median(times[:, 0]):.1f} | {ratio:.2f} ({ratios.min():.2f}..{ratios.max():.2f}) | "
        f"{used / 1e6:.1f} ({plan.bytes / 1e6:.1f}) | {theirs / used:.2f} | {plan.flops / 1e9:.2f} | {rate:.2f}",
    }
    print(f"\n{name} | {table[name]['text']} | off by {off:.1e}")
    assert off < 1e-5
    if not ON_CPUS:
        return
    assert used <= plan.bytes  # the estimate that a budget is held to
    assert ratio >= case.least
    assert case.least_memory is None or theirs / used >= case.least_memory
    assert case.most_bytes is None or used <= case.most_bytes


def test_geometric_mean_of_convolutions_and_attention(table):
    ratios = [table[name]["ratio"] for name in GEOMETRIC if name in table]
    if len(ratios) < len(GEOMETRIC):
        pytest.skip("needs the table's rows in the same session")
    mean = float(np.exp(np.mean(np.log(ratios))))
    table["geometric mean of cnn and transformer"] = {"ratio": mean, "text": f"{mean:.2f}"}
    assert mean >= 2 or not ON_CPUS


def test_reading_everything_at_every_step_costs_at_most_half_the_training(key, table):
    f, params = mlp(1)
    batch = Batch(reals(128, 784), jnp.sign(reals(128, 1)))
    L = Objective(f, half_mse)
    bare_run, logged_run = gradient_descent(L, 0.01), kernel_descent(L, optax.sgd(0.01), dt=0.01)
    steps, last = 200, Observable.of_view(lambda view: {"loss": view.state.loss})

    def program(run, read, state):
        def whole(state, batch):
            options = {"steps": steps, "record_at": every(1, steps), "key": key, "state": state}
            return simulate(run, None, batch, train=read, **options)

        return compiled(whole, state, batch)

    states = bare_run.init(params), jax.jit(logged_run.init)((params, batch))
    bare = program(bare_run, last, states[0])
    logged = program(logged_run, ntk_of_state(spectrum=3, modes=5, interval=0.01), states[1])
    bare(states[0], batch), logged(states[1], batch)
    pairs = [(spent(logged, states[1], batch), spent(bare, states[0], batch)) for _ in range(9)]
    ratios = np.divide(*np.array(pairs).T)
    cost = np.median(ratios)
    table["logging at every step / training alone"] = {
        "ratio": cost,
        "text": f"{cost:.2f} ({ratios.min():.2f}..{ratios.max():.2f})",
    }
    assert cost <= 1.5 or not ON_CPUS


def test_matrix_free_readings_of_100000_outputs_fit_a_gigabyte(key, table):
    f, params = mlp(10)
    x, y = jax.ShapeDtypeStruct((10_000, 784), jnp.float32), jax.ShapeDtypeStruct((10_000, 10), jnp.float32)

    def readings(params, x, y):
        operator = ntk_operator(f, params, x, batch_size=500)
        return (
            ntk_eigenpairs(f, params, x, 3, key, method="matrix-free", batch_size=500),
            ntk_trace(operator, key),
            ntk_label_alignment(operator, y, key),
            ntk_effective_dimension(operator, 1.0, key),
        )

    memory = compiled(readings, params, x, y).memory_analysis()
    total = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
    table["matrix-free, N O = 100000"] = {"ratio": total, "text": f"{total / 1e6:.0f} MB, arguments included"}
    assert total < 1e9
