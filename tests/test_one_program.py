"""Outside of jit a first call compiles a program or two, not one for each operation, of 20 ms and more."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics import observe, predict, stax
from dynamics.losses import half_mse
from dynamics.statistics import chain_mean, critical_batch
from dynamics.statistics.alignment import cka, label_alignment
from dynamics.statistics.fourier import frequency_share
from dynamics.statistics.rank import effective_rank
from dynamics.tasks.chains import ring
from dynamics.tasks.clusters import xor_clusters
from dynamics.tasks.modular import table_task
from dynamics.tasks.regression_sequences import regression_sequences
from dynamics.tasks.teachers import quadratic_teacher
from dynamics.theory.generalisation import linear_student
from dynamics.theory.modular import normalised_margin
from dynamics.theory.regions import crossing_probabilities
from dynamics.theory.scaling_laws import compute_frontier
from dynamics.theory.signal_propagation import correlation_map, critical_line
from dynamics.types import Batch, Objective, View

N = 23  # a size that no other test has: nothing of it is compiled before
DRAWN = np.random.default_rng(0).random((N, N), np.float32)
GRID = np.linspace(0.1, 1, N, dtype=np.float32)
WEIGHTS = {"w": DRAWN, "v": DRAWN[:, :1]}
L = Objective(lambda params, x: jnp.tanh(x @ params["w"]) @ params["v"], half_mse)
VIEW = View(WEIGHTS, Batch(DRAWN, DRAWN[:, :1]), L)
KERNEL = stax.serial(stax.Dense(N), stax.Erf(), stax.Dense(1, b_std=0.1)).kernel

CALLS = {
    "critical_line": (lambda key: critical_line(stax.Erf(), GRID), 1),
    "correlation_map": (lambda key: correlation_map(stax.Erf(), 1.5, 0.1, q=1.0)(GRID), 2),
    "linear_student": (lambda key: linear_student(GRID, 0.5, noise=0.2), 1),
    "crossing_probabilities": (lambda key: crossing_probabilities(KERNEL, DRAWN), 1),
    "normalised_margin": (lambda key: normalised_margin(DRAWN[:, :-1], DRAWN[:11], np.zeros((11, 11), int)), 1),
    "compute_frontier": (lambda key: compute_frontier(GRID, GRID, DRAWN, GRID), 1),
    "cka": (lambda key: cka(DRAWN, DRAWN), 2),
    "label_alignment": (lambda key: label_alignment(DRAWN, GRID), 1),
    "critical_batch": (lambda key: critical_batch(WEIGHTS), 3),
    "chain_mean": (lambda key: chain_mean(DRAWN), 1),
    "frequency_share": (lambda key: frequency_share(DRAWN), 1),
    "effective_rank": (lambda key: effective_rank(GRID), 1),
    "random_direction": (lambda key: observe.random_direction(key, WEIGHTS), 1),
    "xor_clusters": (lambda key: xor_clusters(key, N, N, N, 2.0, 0.1), 1),
    "quadratic_teacher": (lambda key: quadratic_teacher(key, N, N, N), 1),
    "regression_sequences": (lambda key: regression_sequences(key, N, N, N, noise=0.1), 1),
    "table_task": (lambda key: table_task(key, np.zeros((N, N), int), 0.5), 1),
    "ring": (lambda key: ring(N, 0.7), 2),
    "sharpness": (lambda key: observe.sharpness().init(VIEW), 8),  # scalars and zeros
    "step_gain": (lambda key: predict.steps.step_gain(GRID, np.arange(3)), 2),
}


@contextlib.contextmanager
def compilations():
    """The names of what is compiled within."""
    names = []

    def heard(event, *_, **about):
        if "backend_compile" in event:
            names.append(about.get("fun_name"))

    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(heard)


@pytest.mark.parametrize("name", CALLS)
def test_a_first_call_compiles_few_programs(name, key, as_users_meet_it):
    call, most = CALLS[name]
    with compilations() as names:
        call(key)
    assert len(names) <= most, names
    with compilations() as names:
        call(key)
    assert not names or name in ("critical_line", "correlation_map")  # of a new layer
