"""Studies of small nets (64-32-32-1 gelu, batch 16): speed against loops, memory against single nets."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from interleaved import ratio

from dynamics import stax
from dynamics.evolve import descent, simulate
from dynamics.evolve.study import Plan, planned
from dynamics.losses import half_mse
from dynamics.types import Batch, Objective, Observable

NETS, STEPS, BATCH, SAMPLES = 64, 200, 16, 512
pytestmark = pytest.mark.benchmark


def network(width=32):
    layers = [layer for _ in range(2) for layer in (stax.Dense(width), stax.Gelu())]
    return stax.serial(*layers, stax.Dense(1))


def data():
    kx, ky = jax.random.split(jax.random.key(0))
    return Batch(jax.random.normal(kx, (SAMPLES, 64)), jax.random.rademacher(ky, (SAMPLES, 1)).astype(jnp.float32))


def scaled(apply, alpha):
    return lambda params, x: alpha * apply(params, x)


LAST = Observable.of_view(lambda view: {"loss": view.state.loss})


def plan(count, steps=STEPS, record_at=(), width=32) -> Plan:
    """A study of ``count`` nets, a power of two: as many rates alpha, eta and seeds as there is room for, in turn."""
    model = network(width)
    alphas, etas = min(count, 8), min(-(-count // 8), 4)
    axes = {
        "seed": range(-(-count // 32)),
        "eta": np.geomspace(1e-3, 1e-1, 4, dtype=np.float32)[:etas],
        "alpha": np.geomspace(0.1, 10, 8, dtype=np.float32)[:alphas],
    }

    def make(lane):
        objective = Objective(scaled(model.apply, lane.alpha), half_mse)
        return descent(objective, optax.sgd(lane.eta), batch_size=BATCH)

    def draw(lane):
        return model.init(jax.random.key(lane.seed), (-1, 64))[1]

    return planned(axes, draw, make, [LAST], steps=steps, record_at=list(record_at), data=data())


def python_loop_of_steps(steps=STEPS):
    """Each net in turn, one jitted step at a time: what a user writes first."""
    model, batch, made = network(), data(), plan(NETS)

    @jax.jit
    def step(key, params, alpha, eta, number):
        key = jax.random.fold_in(key, number)
        rows = jax.random.randint(key, (BATCH,), 0, SAMPLES)
        gradient = jax.grad(lambda p: half_mse(alpha * model.apply(p, batch.x[rows]), batch.y[rows]))(params)
        return jax.tree.map(lambda p, g: p - eta * g, params, gradient)

    def run():
        ends = []
        for seed, eta, alpha in (made.cell(i).values() for i in range(NETS)):
            key = jax.random.key(seed)
            params = model.init(key, (-1, 64))[1]
            for number in range(steps):
                params = step(key, params, alpha, eta, number)
            ends.append(params)
        return ends

    return run


def arguments(made):
    """Those of ``simulate`` that run a plan as one piece."""
    (piece,) = made.pieces(lambda label, count: count)
    return piece.call()[0]


def sweep(made):
    """A plan's run as a nullary function."""
    whole = arguments(made)
    return lambda: simulate(**whole)


def test_a_sweep_against_a_python_loop_of_jitted_steps():
    ours, theirs, speed = ratio(sweep(plan(NETS)), python_loop_of_steps(), rounds=3)
    rates = [NETS * STEPS / seconds for seconds in (ours, theirs)]
    print(f"\n{rates[0]:.0f} net-steps/s against {rates[1]:.0f} of a loop of jitted steps: {speed:.1f} times")
    assert speed >= 2.5


def test_a_sweep_against_a_pytorch_loop():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    torch.set_num_threads(1)  # quicker than several for nets this small
    steps, few = 50, 8
    batch, made = data(), plan(few)
    x, y = (torch.tensor(np.asarray(leaf)) for leaf in batch)

    def loop():
        for seed, eta, alpha in (made.cell(i).values() for i in range(few)):
            torch.manual_seed(seed)
            layers = [torch.nn.Linear(64, 32), torch.nn.GELU(), torch.nn.Linear(32, 32), torch.nn.GELU()]
            net = torch.nn.Sequential(*layers, torch.nn.Linear(32, 1))
            optimizer = torch.optim.SGD(net.parameters(), lr=float(eta))
            for _ in range(steps):
                rows = torch.randint(SAMPLES, (BATCH,))
                optimizer.zero_grad()
                loss = 0.5 * ((float(alpha) * net(x[rows]) - y[rows]) ** 2).sum() / BATCH
                loss.backward()
                optimizer.step()
        return np.zeros(())

    ours, theirs, speed = ratio(sweep(plan(NETS)), loop, rounds=5)
    speed *= NETS * STEPS / (few * steps)
    rates = NETS * STEPS / ours, few * steps / theirs
    print(f"\n{rates[0]:.0f} net-steps/s against {rates[1]:.0f} of a PyTorch loop: {speed:.0f} times")
    assert speed >= 20


def memory(made):
    """Bytes that the compiler reports for a plan's nets, without the shared data."""
    whole = arguments(made)
    state, data = whole.pop("state"), whole.pop("data")

    def run(state, data):
        return simulate(**whole, state=state, data=data)

    found = jax.jit(run).lower(state, data).compile().memory_analysis()
    shared = sum(leaf.nbytes for leaf in data)
    return found.temp_size_in_bytes + found.argument_size_in_bytes + found.output_size_in_bytes - shared


def test_a_sweep_takes_the_memory_of_its_nets():
    share = memory(plan(NETS)) / (NETS * memory(plan(1)))
    print(f"\n{NETS} nets take {share:.3f} of the memory of {NETS} single ones")
    assert share <= 1.1
