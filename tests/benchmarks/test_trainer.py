"""The time loop with recording against a hand-written scan without it, on the flagship's network."""

import jax
import jax.numpy as jnp
import pytest
from interleaved import ON_CPUS, ratio

from dynamics.evolve import gradient_descent, log_steps, simulate
from dynamics.experiments.grokking.lazy_to_rich import Config
from dynamics.losses import mse
from dynamics.models.scaling import scaled
from dynamics.models.two_layer import committee, quadratic
from dynamics.observe import loss
from dynamics.tasks.teachers import quadratic_teacher
from dynamics.types import Objective

STEPS = Config().steps


@pytest.mark.benchmark
@pytest.mark.gpu
def test_recording_costs_at_most_a_tenth_of_a_bare_scan(key):
    model = scaled(committee(200, quadratic(0.1)), 0.1)
    data, _ = quadratic_teacher(key, 300, 1500, 60)
    _, params = model.init(key, (-1, 60))
    eta = 5.0 * 200 / 0.1**2
    run, read = gradient_descent(Objective(model.apply, mse), eta), loss()
    record_at = log_steps(STEPS, 80)

    def recorded():
        return simulate(run, params, data, train=read, test=read, steps=STEPS, record_at=record_at, key=key)

    @jax.jit
    def scan(params, batch):
        def step(params, _):
            gradient = jax.grad(lambda p: mse(model.apply(p, batch.x), batch.y))(params)
            return params - eta * gradient, None

        return jax.lax.scan(step, params, None, STEPS)[0]

    def bare():
        return scan(params, data.train)

    assert jnp.allclose(recorded()[0].params, bare(), rtol=1e-3, atol=1e-3)
    ours, theirs, speed = ratio(recorded, bare)
    print(f"\n{STEPS / ours:.0f} recorded steps/s against {STEPS / theirs:.0f} of a bare scan: {speed:.3f} of it")
    assert speed >= 0.9 or not ON_CPUS
