"""The exact reduction: it is the network's own descent, and its closed forms are expectations and kernel regression."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics.empirical import empirical_ntk_fn
from dynamics.evolve import gradient_descent, simulate
from dynamics.losses import mse
from dynamics.models.scaling import centred, scaled
from dynamics.models.two_layer import committee, quadratic
from dynamics.observe import loss
from dynamics.statistics import kernel_alignment, label_alignment
from dynamics.tasks.teachers import quadratic_teacher
from dynamics.theory import lazy_to_rich as theory
from dynamics.types import Batch, Objective, Observable

ALPHA, EPS, ETA0, WIDTH, DIM, SAMPLES = 0.3, 0.2, 1.0, 15, 6, 20


@pytest.fixture
def network(key):
    """A small network with its task; use under x64."""
    task = quadratic_teacher(key, SAMPLES, 50, DIM)
    model = scaled(committee(WIDTH, quadratic(EPS)), ALPHA)
    return model, model.init(key, (-1, DIM))[1], task


@pytest.mark.parametrize("signs", [None, np.array([1.0, -1.0, 0.5])], ids=["ones", "three readouts"])
def test_reduction_is_the_networks_descent(signs, x64, key):
    task = quadratic_teacher(key, SAMPLES, 50, DIM)
    units = None if signs is None else np.repeat(signs, WIDTH // len(signs))
    model = scaled(committee(WIDTH, quadratic(EPS), signs=units), ALPHA)
    weights = model.init(key, (-1, DIM))[1]
    apply = centred(model.apply, weights)
    descent = gradient_descent(Objective(apply, mse), ETA0 * WIDTH / ALPHA**2)
    reduced = theory.reduction(ALPHA, EPS, ETA0, signs)
    options = {"steps": 40, "record_at": [0, 1, 10, 40], "key": key}

    def by_population(weights):
        return theory.moments(weights if signs is None else weights.reshape(len(signs), -1, DIM))

    def read(weights, batch):
        return dict(zip(("m", "M"), by_population(weights))) | {"f": apply(weights, batch.x)[:, 0]}

    @Observable.of_view
    def read_reduced(view):
        moved = theory.change(view.state)
        f = theory.output(moved if signs is None else theory.signed(moved, signs), view.batch.x, ALPHA, EPS)
        return dict(zip(("m", "M"), view.state.moments)) | {"f": f}

    _, measured = simulate(descent, weights, task.data, test=read, **options)
    _, predicted = simulate(reduced, by_population(weights), task.data, test=read_reduced, **options)
    for name, value in measured.values.items():
        np.testing.assert_allclose(value, predicted.values[name], rtol=1e-9, atol=1e-10)  # float64 after 40 steps


def test_reduction_refuses_moments_of_other_populations():
    with pytest.raises(ValueError, match=r"signs: got shape \(0,\); allowed: \(K,\)"):
        theory.reduction(ALPHA, EPS, ETA0, np.ones(0))
    with pytest.raises(ValueError, match=r"at: got a mean of shape \(6,\); allowed: \(2,\)"):
        theory.reduction(ALPHA, EPS, ETA0, np.array([1.0, -1.0])).init(theory.infinite_width(DIM))


def test_larger_weights_are_another_output_scale_and_eps(x64, network, key):
    """``(alpha, eps)`` with weights sigma times larger is ``(alpha sigma, eps sigma)``, at one eta0."""
    _, weights, task = network
    sigma, curves = 1.7, []
    for alpha, eps, start in ((ALPHA, EPS, sigma * weights), (ALPHA * sigma, EPS * sigma, weights)):
        apply = centred(scaled(committee(WIDTH, quadratic(eps)), alpha).apply, start)
        descent = gradient_descent(Objective(apply, mse), ETA0 * WIDTH / alpha**2)
        _, record = simulate(descent, start, task.data, test=[loss()], steps=40, key=key)
        curves.append(record.values["test_loss"])
    np.testing.assert_allclose(*curves, rtol=1e-10)
    assert abs(curves[0][-1] / curves[0][0] - 1) > 0.1


def test_kernel_is_the_empirical_ntk(x64, network, key):
    model, weights, task = network
    x = task.data.train.x
    ntk = empirical_ntk_fn(model.apply)(x, None, weights)
    expected = ALPHA**2 / WIDTH * theory.kernel(theory.moments(weights), x, x, EPS)
    np.testing.assert_allclose(np.squeeze(ntk), expected, rtol=1e-10)
    both = scaled(committee(WIDTH, quadratic(EPS), signs=(-1.0) ** np.arange(WIDTH)), ALPHA)
    np.testing.assert_allclose(np.squeeze(empirical_ntk_fn(both.apply)(x, None, weights)), expected, rtol=1e-10)


def test_population_loss_is_the_expectation(x64, network, key):
    model, start, _ = network
    weights = start + 0.3 * jax.random.normal(key, start.shape)
    fresh = quadratic_teacher(key, 1, 400_000, DIM)
    f = centred(model.apply, start)(weights, fresh.data.test.x)
    squares = np.asarray((f - fresh.data.test.y) ** 2)
    loss = theory.population_loss(theory.moments(weights), theory.moments(start), fresh.beta, ALPHA, EPS)
    assert abs(squares.mean() - loss["test_loss"]) < 4 * squares.std() / len(squares) ** 0.5  # four standard errors
    terms = loss["test_mean"] + loss["test_power"] + loss["test_linear"]
    np.testing.assert_allclose(loss["test_loss"], terms)


def test_finite_width_approaches_infinite_width(x64, key):
    task = quadratic_teacher(key, SAMPLES, 1, DIM)
    reduced = theory.reduction(ALPHA, EPS, ETA0)

    def final(start):
        state, _ = simulate(reduced, start, task.data, steps=30, key=key)
        return theory.output(theory.change(state), task.data.train.x, ALPHA, EPS)

    limit = final(theory.infinite_width(DIM, jnp.float64))
    model, widths, errors = committee, (100, 10_000), []
    for width in widths:
        draws = [model(width, jnp.square).init(jax.random.key(i), (-1, DIM))[1] for i in range(4)]
        errors.append(np.mean([np.linalg.norm(final(theory.moments(w)) - limit) for w in draws]))
    slope = np.log(errors[1] / errors[0]) / np.log(widths[1] / widths[0])
    assert -0.75 < slope < -0.3  # 1/sqrt(N) fluctuations of the moments; four draws


def test_lazy_moments_are_kernel_descent(x64, key):
    (train, _), _ = quadratic_teacher(key, SAMPLES, 1, DIM)
    start = theory.infinite_width(DIM, jnp.float64)
    k = theory.kernel(start, train.x, train.x, EPS)
    f = jnp.zeros(SAMPLES)
    for _ in range(25):
        f = f - 2 * ETA0 / SAMPLES * k @ (f - train.y[:, 0])
    at = theory.lazy_moments(train.x, train.y, ALPHA, EPS, ETA0, jnp.array([0.0, 25.0]))
    lazy = [theory.Moments(at.mean[i] - start.mean, at.second[i] - start.second) for i in range(2)]
    np.testing.assert_allclose(theory.output(lazy[0], train.x, ALPHA, EPS), 0, atol=1e-12)
    np.testing.assert_allclose(theory.output(lazy[1], train.x, ALPHA, EPS), f, rtol=1e-8)


def test_large_alpha_is_lazy(x64, key):
    (train, _), beta = quadratic_teacher(key, SAMPLES, 1, DIM)
    gaps = []
    for alpha in (10.0, 100.0):
        reduced = theory.reduction(alpha, EPS, ETA0)
        start = theory.infinite_width(DIM, jnp.float64)
        state, _ = simulate(reduced, start, train, steps=20, key=key)
        at = theory.lazy_moments(train.x, train.y, alpha, EPS, ETA0, jnp.array([20.0]))
        lazy = theory.population_loss(theory.Moments(at.mean[0], at.second[0]), start, beta, alpha, EPS)
        rich = theory.population_loss(state.moments, start, beta, alpha, EPS)
        gaps.append(abs(rich["test_loss"] - lazy["test_loss"]))
    assert gaps[1] < gaps[0] / 5  # the gap falls as 1/alpha


def test_both_signs_have_the_same_lazy_limit(x64, key):
    (train, _), _ = quadratic_teacher(key, SAMPLES, 1, DIM)
    start, signs, alpha = theory.infinite_width(DIM, jnp.float64), np.array([1.0, -1.0]), 1e4
    both = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), start)
    state, _ = simulate(theory.reduction(alpha, EPS, ETA0, signs), both, train, steps=20, key=key)
    at = theory.lazy_moments(train.x, train.y, alpha, EPS, ETA0, jnp.array([20.0]))
    lazy = theory.Moments(at.mean[0] - start.mean, at.second[0] - start.second)
    f = theory.output(theory.signed(theory.change(state), signs), train.x, alpha, EPS)
    np.testing.assert_allclose(f, theory.output(lazy, train.x, alpha, EPS), rtol=1e-3, atol=1e-3)


def test_teacher_share_at_random_is_one_over_dimension(precision, key):
    beta = jax.random.normal(key, (DIM,))
    assert float(theory.teacher_share(theory.infinite_width(DIM), beta)) == pytest.approx(1 / DIM, rel=1e-5)


def test_label_alignment_is_centred_kernel_alignment(x64, key):
    x = jax.random.normal(key, (30, 4))
    y = jnp.stack([x[:, 0], x[:, 1] ** 2], axis=1)
    gram = jnp.exp(x @ x.T)
    np.testing.assert_allclose(label_alignment(gram, y), kernel_alignment(gram, y @ y.T), rtol=1e-10)


def test_padded_rows_change_nothing_but_the_normalisation(x64, network, key):
    model, weights, task = network
    train = task.data.train
    padded = Batch(*(jnp.concatenate([leaf, jnp.zeros((10, leaf.shape[1]))]) for leaf in train))
    whole = jax.grad(lambda w: mse(model.apply(w, train.x), train.y))(weights)
    part = jax.grad(lambda w: mse(model.apply(w, padded.x), padded.y))(weights)
    np.testing.assert_allclose(whole, part * 30 / 20, rtol=1e-10)
