"""What the curvature benchmarks share: a 64-256-256-256-10 tanh network (150 794 parameters) trained on digits."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from dynamics.evolve import gradient_descent, simulate
from dynamics.losses import half_mse
from dynamics.tasks import images
from dynamics.types import Batch, Objective

SIZES, SAMPLES, STEPS = (64, 256, 256, 256, 10), 1000, 300


def apply(params, x):
    for weight, bias in params[:-1]:
        x = jnp.tanh(x @ weight + bias)
    return x @ params[-1][0] + params[-1][1]


L = Objective(apply, half_mse)


@functools.cache
def problem():
    """``(params, batch)`` after 300 steps of gradient descent at eta = .2, when the sharpness is near 2/eta."""
    rng = np.random.default_rng(0)
    params = [
        (jnp.asarray(rng.uniform(-(a**-0.5), a**-0.5, (a, b)), jnp.float32), jnp.zeros(b, jnp.float32))
        for a, b in itertools.pairwise(SIZES)
    ]
    data = images.digits(SAMPLES, seed=0, scale="standard", epsilon=1e-2 / 16).train
    batch = Batch(jnp.asarray(data.x), jnp.asarray(data.y))
    state, _ = simulate(gradient_descent(L, 0.2), params, batch, steps=STEPS)
    return state.params, batch


@jax.jit
def gradient(params, batch):
    return jax.grad(L)(params, batch)
