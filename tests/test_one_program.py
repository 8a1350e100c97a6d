"""Outside of jit a first call compiles a program or two, not one for each operation, of 20 ms and more."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics import models, observe, predict, stax
from dynamics.losses import half_mse
from dynamics.statistics import chain_mean, critical_batch
from dynamics.statistics.alignment import cka, kernel_alignment, label_alignment
from dynamics.statistics.fourier import frequency_share
from dynamics.statistics.rank import effective_rank
from dynamics.tasks.chains import ring
from dynamics.tasks.clusters import xor_clusters
from dynamics.tasks.modular import table_task
from dynamics.tasks.regression_sequences import regression_sequences
from dynamics.tasks.teachers import quadratic_teacher
from dynamics.theory.deep_linear import learning_time
from dynamics.theory.generalisation import linear_student
from dynamics.theory.modular import normalised_margin
from dynamics.theory.regions import crossing_probabilities
from dynamics.theory.scaling_laws import compute_frontier
from dynamics.theory.signal_propagation import (
    correlation_map,
    critical_line,
    critical_point,
    length_map,
    signal_propagation,
)
from dynamics.theory.spectra import marchenko_pastur
from dynamics.types import Batch, Objective, View

N = 23  # a size that no other test has: nothing of it is compiled before
DRAWN = np.random.default_rng(0).random((N, N), np.float32)
GRID = np.linspace(0.1, 1, N, dtype=np.float32)
WEIGHTS = {"w": DRAWN, "v": DRAWN[:, :1]}
L = Objective(lambda params, x: jnp.tanh(x @ params["w"]) @ params["v"], half_mse)
VIEW = View(WEIGHTS, Batch(DRAWN, DRAWN[:, :1]), L)
KERNEL = stax.serial(stax.Dense(N), stax.Erf(), stax.Dense(1, b_std=0.1)).kernel

CALLS = {
    "linear_student": (lambda key: linear_student(GRID, 0.5, noise=0.2), 1),
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
    assert not names


class Scaled:
    """An activation, or a kernel, without a hash, as equinox's modules are."""

    __hash__ = None

    def __call__(self, *args):
        return jnp.tanh(2.0 * args[0]) if len(args) == 1 else KERNEL(*args)


def test_what_has_no_hash_is_taken_too(as_users_meet_it):
    scaled = Scaled()
    for call in (
        lambda phi: critical_line(phi, 1.0).W_std,
        lambda phi: critical_point(phi, 0.1).W_std,
        lambda phi: length_map(phi, 1.2)(1.0),
        lambda phi: correlation_map(phi, 1.2, 0.1)(0.5),
        lambda phi: signal_propagation(phi, 1.2, 0.1).q,
    ):
        np.testing.assert_array_equal(call(scaled), call(lambda x: jnp.tanh(2.0 * x)))
    for call in (critical_point, signal_propagation):
        with pytest.raises(TypeError, match=r"^activation: got list; allowed: a layer of stax, or a function"):
            call([jnp.tanh], 0.1)
    points = jnp.asarray(DRAWN)
    np.testing.assert_array_equal(crossing_probabilities(scaled, points), crossing_probabilities(KERNEL, points))
    for call in (marchenko_pastur, linear_student):
        with pytest.raises(ValueError, match=r"^nodes: got \[3\]; allowed: an integer >= 1"):
            call(0.5, *([] if call is marchenko_pastur else [0.5]), nodes=[3])


def test_a_second_start_of_a_flax_module_compiles_nothing(key):
    linen = pytest.importorskip("flax.linen", reason="needs flax")
    model = models.from_flax(linen.Dense(N))
    keys = jax.random.split(key)
    model.init(keys[0], (-1, N))
    with compilations() as names:
        model.init(keys[1], (-1, N))
    assert set(names) <= {"jit(_squeeze)", "jit(squeeze)", "jit(dynamic_slice)", "jit(_threefry_split)"}, names


MASKED = {
    "trace": chain_mean, "singular_values": effective_rank, "features": lambda x: cka(x, x),
    "y": lambda x: label_alignment(DRAWN, x),
    "times": lambda x: linear_student(x, 0.5), "a0": lambda x: learning_time(x, 0.9, 1.0, 2),
    "params": lambda x: observe.random_direction(jax.random.key(0), {"w": x}),
}  # fmt: skip


@pytest.mark.parametrize("name", MASKED)
def test_a_mask_is_not_dropped(name, as_users_meet_it):
    with pytest.raises(TypeError, match=f"^{name}: got a masked array; allowed: a plain one"):
        MASKED[name](np.ma.masked_array(DRAWN, DRAWN > 0.5))


def test_numbers_of_jax_are_numbers(key, as_users_meet_it):
    table = np.zeros((5, 5), int)
    one, two = (
        table_task(key, table, share, tokens=flag) for share, flag in ((0.5, True), (jnp.float32(0.5), np.True_))
    )
    jax.tree.map(np.testing.assert_array_equal, one, two)
    assert kernel_alignment(DRAWN, DRAWN, centre=jnp.bool_(False)) == kernel_alignment(DRAWN, DRAWN, centre=False)
