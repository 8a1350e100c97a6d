"""The grokking family: its own dynamics against plain references, small runs of the theory-against-measurement kind."""

import dataclasses
import gzip
import hashlib
import io
import struct
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics.evolve import simulate, study
from dynamics.experiments.grokking import (
    _boundary_law,
    _energy_landscape,
    compare,
    feature_emergence,
    images,
    large_init,
    lazy_to_rich,
    max_margin,
    modular_addition,
    modular_gd,
    phase_diagram,
    student_teacher,
)
from dynamics.experiments.grokking import random_feature_amplification as amplification
from dynamics.experiments.grokking import xor_clusters as xor
from dynamics.experiments.grokking._lazy_to_rich import trained
from dynamics.experiments.grokking._mechanism import READINGS, mechanism
from dynamics.losses import half_mse, logistic, mse
from dynamics.models.two_layer import two_layer
from dynamics.observe import accuracy
from dynamics.statistics.groups import irreducible_components
from dynamics.tasks.clusters import xor_clusters
from dynamics.tasks.files import MNIST
from dynamics.tasks.modular import operation_table, table_task
from dynamics.theory.modular import generalisation_fraction
from dynamics.types import Batch, Objective, Record, View


def test_gram_descent_is_descent_on_the_weights(x64):
    config = xor.Config(dimension=30, samples=12, width=8, separation=5.0, test_samples=7, init=0.1, learning_rate=0.3)
    data = jax.jit(xor.spans, static_argnums=(0, 1))(config, 0)
    task_key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 0), 4)[0]
    (train, test), means = jax.jit(lambda key: xor_clusters(key, 12, 7, 30, 5.0, config.flips))(task_key)
    points, start = jnp.concatenate([train.x, test.x, means]), jnp.concatenate([part.start for part in data[:3]])
    base, beside = (
        jnp.linalg.lstsq(points, start)[0].T,
        jnp.linalg.svd(points)[2][-1],
    )  # beside: orthogonal to all points
    rest = data.norms - jnp.sum(base**2, axis=1)
    assert (rest > 0).all()
    weights = base + jnp.sqrt(rest)[:, None] * beside
    step, coefficients = jax.jit(xor.dual_descent(config.learning_rate).step), jnp.zeros((12, 8))

    @jax.jit
    def gradient(weights):
        return jax.grad(lambda w: logistic((jax.nn.relu(train.x @ w.T) @ data.signs)[:, None], train.y))(weights)

    for _ in range(5):
        coefficients = step(None, coefficients, data)
        weights = weights - config.learning_rate * gradient(weights)
    np.testing.assert_allclose(xor.preactivation(coefficients, data.test), test.x @ weights.T, rtol=1e-9, atol=1e-10)
    readings = jax.jit(xor.read)(coefficients, data)
    np.testing.assert_allclose(readings["weight_norm"], jnp.linalg.norm(weights), rtol=1e-9)
    toward = np.asarray(weights @ means.T) ** 2
    own = np.where(np.asarray(data.signs) > 0, toward[:, 0], toward[:, 1])
    np.testing.assert_allclose(readings["own_axis_share"], own.sum() / toward.sum(), rtol=1e-9)


def test_weights_at_the_start_are_standard_normal():
    config = xor.Config(dimension=60, samples=12, width=20_000, separation=5.0, test_samples=7, init=0.1)
    data = jax.jit(xor.spans, static_argnums=(0, 1))(config, 0)
    assert abs(float(data.norms.mean()) / 0.6 - 1) < 4 * (2 / 60 / 20_000) ** 0.5  # four standard errors
    assert abs(float(data.norms.var()) / (0.01**2 * 120) - 1) < 4 * (3 / 20_000) ** 0.5
    np.testing.assert_allclose(data.train.start @ data.train.start.T / 200, data.train.gram, atol=4 * 90 / 20_000**0.5)


def test_amplification_is_the_population_gradient_of_a_small_network(x64, key):
    config = amplification.Config(dimension=5, samples=100_000, test_samples=1, width=4, separation=1.5, init=1e-4,
                                  learning_rate=1.0)  # fmt: skip
    setting, weights, data = jax.jit(amplification.draw, static_argnums=(0, 1))(config, 0)
    predicted = jax.jit(amplification.amplification(config, setting).step)(key, weights, data) - weights
    x, y, weights, readout = (np.asarray(one) for one in (*data.train, weights, setting.readout))
    # d loss/d w_j = -(1/2) a_j E[y x 1(w_j.x > 0)] while f is 0; per-sample terms give the standard error
    terms = 0.5 * readout[:, None] * (y * (x @ weights.T > 0))[:, :, None] * x[:, None, :]
    error = terms.std(axis=0) / config.samples**0.5
    assert (np.abs(terms.mean(axis=0) - predicted) < 5 * error).all()  # 20 entries


@pytest.fixture(scope="module")
def small_lazy_to_rich():
    config = lazy_to_rich.Config(
        seeds=2, alpha=(0.2, 0.4), samples=40, window=(5, 80), aligned=(0.1,), dimension=8, width=50, eta0=1.0,
        steps=60, window_steps=20, fresh=300,
    )  # fmt: skip
    return lazy_to_rich.run(config)


@pytest.mark.slow
def test_exact_reduction_follows_the_network(small_lazy_to_rich):
    network, exact = (small_lazy_to_rich.records[name] for name in ("network", "exact reduction"))
    for name in (
        "train_loss",
        "sampled_test_loss",
        "test_loss",
        "kernel_distance",
        "feature_distance",
        "effective_rank",
    ):
        measured, predicted = np.asarray(network.values[name])[..., :1], np.asarray(exact.values[name])
        np.testing.assert_allclose(measured, predicted, rtol=5e-3, atol=1e-4, err_msg=name)  # float32, 60 steps


@pytest.mark.slow
def test_cells_of_a_window_are_the_runs_on_their_samples_alone(small_lazy_to_rich):
    config = small_lazy_to_rich.config
    alone = trained(config, study, "network", {"samples": (80,), "seed": range(2)}, 20)
    for name in ("train_loss", "test_loss", "kernel_distance"):
        together = np.asarray(small_lazy_to_rich.records["network, window"].values[name])[:, 1:]
        np.testing.assert_allclose(together, alone.values[name], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_lazy_to_rich_reports_every_claim(small_lazy_to_rich):
    names = [claim.name for claim in lazy_to_rich.claims(small_lazy_to_rich)]
    assert len(names) == len(set(names)) == 22
    assert any(claim.holds is None for claim in lazy_to_rich.claims(_window(small_lazy_to_rich, (20, 80))))
    assert len(lazy_to_rich.figure(small_lazy_to_rich).axes) == 8


def _window(result, samples):
    return result._replace(config=dataclasses.replace(result.config, window=samples))


def test_too_few_samples_must_be_fitted_before_they_show_that_it_never_generalises():
    config = lazy_to_rich.Config(seeds=1, alpha=(0.1,), window=(40,), steps=20, window_steps=20)
    fall = np.array([1.0, 0.05, 0.05])[:, None, None]
    main = _still((1, 1), train_loss=fall, test_loss=fall)
    window = _still((1, 1), train_loss=1.0, test_loss=1.0)

    def held(window):
        theory = {"infinite width": main, "infinite width, window": main}
        result = lazy_to_rich.Result(config, {"network": main, "network, window": window, **theory})
        return {c.name[:31]: c.holds for c in lazy_to_rich.sample_window(result)}

    assert held(window) == {"P = 40: final train loss over i": False, "P = 40: final test loss over it": True}
    fitted = _still((1, 1), train_loss=fall, test_loss=1.0)
    assert all(held(fitted).values())


def test_energy_is_the_norm_of_projected_targets(x64, key):
    m = 5
    table = jnp.asarray(operation_table("add", m))
    w = jax.random.normal(key, (3, 2 * m))
    hot = np.eye(m)
    x = np.concatenate([np.repeat(hot, m, 0), np.tile(hot, (m, 1))], axis=1)
    y = hot[np.asarray(table).ravel()] - 1 / m
    expected = 0.5 * ((y.T @ (x @ np.asarray(w).T) ** 2) ** 2).sum(0)
    np.testing.assert_allclose(_energy_landscape.energy(w, table), expected, rtol=1e-10)


def test_energy_ascent_finds_single_frequencies(key):
    config = feature_emergence.Config(modulus=7, starts=40, ascent_steps=500)
    record = _energy_landscape.climb(config, operation_table("add", 7), study)
    np.testing.assert_allclose(record.values["energy"][-1], 7 / 4, rtol=1e-4)
    np.testing.assert_allclose(record.values["share"][-1], 1, rtol=1e-4)
    assert set(np.asarray(record.values["feature"][-1]).tolist()) == {1, 2, 3}


def test_the_boundary_s_law_is_told_from_its_rivals():
    config, rng = feature_emergence.Config.bisect(), np.random.default_rng(0)

    def found(law, muon=1.0):
        def bisected(m, factor):
            sizes = np.array([m, 50.0])
            scale, usual = (np.divide(*LAWS[name](sizes)) for name in (law, "log(M)/M"))
            edge = 2.7 * factor * scale / usual * np.exp(0.02 * rng.normal(size=config.law_seeds))
            (low, high), rows = (np.full(config.law_seeds, end) for end in config.law_bracket), []
            for _ in range(_boundary_law.ROUNDS):
                middle = (low + high) / 2
                rows.append((middle, 1 / (1 + np.exp(40 * (edge - middle))), np.ones(config.law_seeds)))
                low, high = np.where(middle < edge, middle, low), np.where(middle < edge, high, middle)
            values = zip(("c", "test_accuracy", "train_accuracy"), np.stack(rows, 1))
            return Record(np.arange(len(rows)), np.arange(len(rows)), dict(values), {"seed": range(config.law_seeds)})

        cases = _boundary_law.cases(config)
        records = {_boundary_law.name_of(m, by): bisected(m, muon if by == "muon" else 1.0) for m, by in cases}
        return [claim.holds for claim in _boundary_law.law(config, records)]

    LAWS = _boundary_law.LAWS
    assert found("log(M)/M") == [True, True]
    assert found("M^(-2/3)") == [False, True]
    assert found("log(M)/M", muon=0.8) == [True, False]


@pytest.mark.slow
def test_bisection_trains_on_the_first_cells_of_its_split(monkeypatch):
    monkeypatch.setattr(_boundary_law, "ROUNDS", 2)
    m, bracket = 11, (2.2, 3.2)
    config = feature_emergence.Config(
        law_sizes=(m, 23), law_seeds=3, law_width=64, law_steps=600, law_bracket=bracket, learning_rate=5e-3
    )
    descend = partial(feature_emergence.stepped, config, config.law_decay)
    values = _boundary_law.bisect(config, m, "adam", descend, study).values
    np.testing.assert_allclose(values["c"][0], 2.7)
    assert len(set(values["c"][1].tolist())) == 2  # so that rows of no weight are there
    model, key = two_layer(64, m, jnp.square), jax.random.fold_in(jax.random.key(0), m)
    L = Objective(feature_emergence.centred_outputs(model.apply), lambda f, y: half_mse(f, y - 1 / m))
    for seed in range(3):
        split, weights = jax.random.split(jax.random.fold_in(key, seed))
        data = table_task(split, operation_table("add", m), generalisation_fraction(m, float(values["c"][1, seed])))
        params = model.init(weights, (-1, 2 * m))[1]
        _, plain = simulate(descend(L, "adam"), params, data, test=accuracy(), steps=600, record_at=[600])
        np.testing.assert_allclose(values["test_accuracy"][1, seed], plain.values["test_accuracy"][-1], atol=0.05)


def test_penalised_descent_attains_the_margin():
    result = max_margin.run(max_margin.Config(task=("add 5",), width=24, steps=1500, seeds=4))
    assert [claim.holds for claim in max_margin.claims(result)] == [True] * 4


@pytest.mark.slow
def test_mechanism_readings_at_the_start_and_after_scaling(x64, key):
    model = two_layer(6, 4, jnp.square)
    _, params = model.init(key, (-1, 5))
    batch = Batch(jax.random.normal(key, (10, 5)), jnp.eye(10, 4))
    observable, L = mechanism(points=8), Objective(model.apply, mse)
    memory = observable.init(View(params, batch, L))
    update = jax.jit(lambda memory, params: observable.update(memory, View(params, batch, L)))
    _, start = update(memory, params)
    assert set(start) == set(READINGS)
    assert float(start["kernel_distance"]) == pytest.approx(0, abs=1e-12)
    _, doubled = update(memory, jax.tree.map(lambda leaf: 2 * leaf, params))
    assert float(doubled["kernel_distance"]) == pytest.approx(
        15, rel=1e-9
    )  # cubic network: the kernel grows as scale^4
    assert float(doubled["alignment"]) == pytest.approx(float(start["alignment"]), rel=1e-9)
    assert float(doubled["effective_rank"]) == pytest.approx(float(start["effective_rank"]), rel=1e-9)


def _still(shape, **readings) -> Record:
    """A run of three recorded steps that stays at its start."""
    step = np.array([0, 10, 20])
    return Record(step, step, {name: np.full((3, *shape), value) for name, value in readings.items()})


def test_a_run_that_never_fits_holds_no_claim_about_its_delay():
    still = {"train_accuracy": 0.04, "test_accuracy": 0.04, "norm": 1.0, "alignment": 0.1, "kernel_distance": 0.0}
    network = _still((3,), frequency_share=0.2, train_loss=1.0, **still)
    lazy = _still((3,), fall=0.1, twice=0.2, test_accuracy=0.0)
    records = {"network": network, "rich": network, "lazy": lazy}
    assert not any(claim.holds for claim in modular_gd.claims(modular_gd.Result(modular_gd.Config(), records)))
    records = {name: _still((3,), **still) for name in large_init.NAMES}
    digits = large_init.Result(large_init.Config(), records)
    assert not [claim.name for claim in large_init.claims(digits) if claim.holds]
    sums = modular_addition.Config(operation="permute", modulus=4)
    record = _still((2, sums.seeds), frequency_share=0.2, margin=0.0, **still)
    claims = modular_addition.claims(modular_addition.Result(sums, {"square": record}))
    assert not any(claim.holds for claim in claims)


def test_a_run_in_which_nothing_is_reached_can_be_drawn():
    still = _still((3, 3), train_loss=1.0, test_loss=1.0, alignment=0.1, kernel_distance=0.0)
    result = student_teacher.Result(student_teacher.Config(), {"network": still})
    student_teacher.figure(result).savefig(io.BytesIO(), format="png")


def test_change_is_the_reading_after_generalising_over_that_before_fitting():
    mechanism = compare.Mechanism("", "", (1.0,), [""], "accuracy", 0.9, 0.9)
    step, train, test = np.arange(5), np.array([0, 0.5, 1, 1, 1]), np.array([0, 0, 0, 0.95, 1])
    norm = np.array([8.0, 4.0, np.nan, np.nan, 1.0])  # read seldom
    record = Record(step, step, {"train_accuracy": train, "test_accuracy": test, "weight_norm": norm})
    assert compare.change(mechanism, record, "weight_norm") == pytest.approx(1 / 4)
    never = record._replace(values={**record.values, "train_accuracy": 0 * train})
    assert np.isnan(compare.change(mechanism, never, "weight_norm"))


def test_norm_foretells_the_time_at_another_scale_and_decay():
    config = large_init.Config(scale=8.0, weight_decay=0.1, learning_rate=1e-3)
    start, end = 90.0, 40.0  # the norm at scale 8, and that at which it generalises
    time = np.array([np.log(start / end) / 1e-4])
    for scale, decay in ((8.0, 0.1), (4.0, 0.1), (8.0, 0.3), (12.0, 0.5)):
        then = large_init.foretold(config, time, large_init.Setting(scale, decay))
        np.testing.assert_allclose(start * scale / 8 * np.exp(-1e-3 * decay * then), end)


def test_norm_clock_is_exact_for_a_norm_that_decays_alone():
    mechanism = compare.Mechanism("", "", (1.0,), [""], "accuracy", 0.9, 0.9)
    step, rate = np.arange(0, 1001, 10), 2e-3
    norm = 7 * np.exp(-rate * step)
    record = Record(step, step, {"train_accuracy": step >= 20, "test_accuracy": step >= 500, "norm": norm})
    clock = compare.norm_clock(rate, mechanism, record, 500)
    np.testing.assert_allclose(clock.values["weight_norm"], norm)
    np.testing.assert_allclose(clock.values["delay"], 500 / 20)


def write_idx(path, array):
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_mnist_comes_through_the_checked_loader(tmp_path, monkeypatch):
    monkeypatch.setenv("DYNAMICS_DATA", str(tmp_path))
    config = images.Config(dataset="mnist", samples=30)
    with pytest.raises(FileNotFoundError, match=r"train-images-idx3-ubyte\.gz: not there"):
        images.load(config, 0)
    (tmp_path / "mnist").mkdir()
    rng, files = np.random.default_rng(0), {}
    for part, n in (("train", 40), ("t10k", 5000)):
        for name, array in (("images-idx3", rng.integers(0, 256, (n, 28, 28))), ("labels-idx1", np.arange(n) % 10)):
            file = f"{part}-{name}-ubyte.gz"
            files[file] = write_idx(tmp_path / "mnist" / file, array)
    source = MNIST._replace(files=files, mirrors=())
    monkeypatch.setattr(images, "mnist", partial(images.mnist, source=source))
    data = images.load(config, 0)
    assert data.train.x.shape == (30, 784)
    assert data.test.y.shape == (5000, 10)


def test_phase_diagram_claims_where_network_and_theory_disagree():
    config = phase_diagram.Config(seeds=1, alpha=(0.1, 0.2), samples=(30, 300), eps=(0.1,))
    shape = (1, 2, 2, 1)  # eps, alphas, samples, seeds
    fall = np.array([1.0, 0.05, 0.05])[:, None, None, None, None] * np.ones((3, *shape))
    parts = {"sampled_test_loss": 1.0, "test_mean": 0.3, "test_linear": 0.3, "test_power": 0.4}
    learns = _still(shape, train_loss=fall, test_loss=fall)
    stays = _still(shape, train_loss=fall, test_loss=1.0, **parts)
    labelled = [f"{name}, eigenvectors" for name in ("network", "infinite width", "one sign", "frozen")]
    same = dict.fromkeys(labelled, _still((3, 1), train_loss=1.0, test_loss=1.0))
    records = {"network": stays, "infinite width": learns, **same}
    claims = {claim.name: claim for claim in phase_diagram.claims(phase_diagram.Result(config, records))}
    agree = claims["share of cells where network and theory agree on whether it generalises"]
    assert (agree.measured, agree.holds) == (0, False)
    curves = "eigenvectors: train loss over its start against the theory of two populations, root mean square"
    assert (claims[curves].measured, claims[curves].holds) == (0, False)  # as any theory says where nothing moves
    few = "share of cells with P <= D that fit and never generalise"
    assert claims[few].measured == 1
    assert not claims[few].holds  # nor do the others
    idle = {"network": _still(shape, train_loss=1.0, test_loss=1.0, **parts), "infinite width": learns, **same}
    claims = {claim.name: claim for claim in phase_diagram.claims(phase_diagram.Result(config, idle))}
    assert not claims[few].holds
    assert np.isnan(claims["alpha = 0.1: log delay at the largest P"].measured)  # no delay of what is not fitted


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: lazy_to_rich.Config(alpha=(0.1, float("nan"))), "alpha"),
        (lambda: lazy_to_rich.Config(eps=-1.0), "eps"),
        (lambda: lazy_to_rich.Config(window=()), "window"),
        (lambda: phase_diagram.Config(eigenvector=(1, 501)), "eigenvector"),
        (lambda: phase_diagram.Config(eigenvector=(70, 1)), "eigenvector"),
        (lambda: modular_addition.Config(operation="multiply", modulus=9), "size"),
        (lambda: modular_addition.Config(train_fraction=1.0), "train_fraction"),
        (lambda: feature_emergence.Config(modulus=22), "modulus"),
        (lambda: feature_emergence.Config(larger=40), "larger"),
        (lambda: feature_emergence.Config(boundary=(9.0,)), "boundary"),
        (lambda: max_margin.Config(task=("add 8",)), "task"),
        (lambda: max_margin.Config(task=("parity 3 4",)), "task"),
        (lambda: max_margin.Config(task=("permute",)), "task"),
    ],
)
def test_bad_settings_are_named(make, field):
    with pytest.raises(ValueError, match=field):
        make()


def test_a_neuron_that_decayed_to_nothing_has_no_frequency(key):
    """The shares are those of the other neurons; they were NaN."""
    p, keys = 11, jax.random.split(key)
    first, second = jax.random.normal(keys[0], (6, 2 * p)), jax.random.normal(keys[1], (p, 6))
    dead = jnp.concatenate([first, jnp.zeros((1, 2 * p))]), jnp.concatenate([second, jnp.ones((p, 1))], 1)
    batch = Batch(jax.nn.one_hot(jnp.arange(p), 2 * p), jnp.eye(p))
    share = [jax.jit(feature_emergence.features)(params, batch)["share"] for params in ((first, second), dead)]
    np.testing.assert_allclose(*share, rtol=1e-6)
    table = operation_table("add", p)
    read = jax.jit(partial(modular_addition.read, jnp.asarray(table), irreducible_components(table)))
    share = [read(params, batch)["frequency_share"] for params in ((first, second), dead)]
    np.testing.assert_allclose(*share, rtol=1e-6)
