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


def test_reduction_is_the_networks_descent(x64, key):
    task = quadratic_teacher(key, SAMPLES, 50, DIM)
    model = scaled(committee(WIDTH, quadratic(EPS)), ALPHA)
    weights = model.init(key, (-1, DIM))[1]
    apply = centred(model.apply, weights)
    descent = gradient_descent(Objective(apply, mse), ETA0 * WIDTH / ALPHA**2)
    reduced = theory.reduction(ALPHA, EPS, ETA0)
    options = {"steps": 40, "record_at": [0, 1, 10, 40], "key": key}

    def read(weights, batch):
        return dict(zip(("m", "M"), theory.moments(weights))) | {"f": apply(weights, batch.x)[:, 0]}

    @Observable.of_view
    def read_reduced(view):
        f = theory.output(theory.change(view.state), view.batch.x, ALPHA, EPS)
        return dict(zip(("m", "M"), view.state.moments)) | {"f": f}

    _, measured = simulate(descent, weights, task.data, test=read, **options)
    _, predicted = simulate(reduced, theory.moments(weights), task.data, test=read_reduced, **options)
    for name, value in measured.values.items():
        np.testing.assert_allclose(value, predicted.values[name], rtol=1e-9, atol=1e-10)  # float64 after 40 steps


def test_kernel_is_the_empirical_ntk(x64, network, key):
    model, weights, task = network
    x = task.data.train.x
    ntk = empirical_ntk_fn(model.apply)(x, None, weights)
    expected = ALPHA**2 / WIDTH * theory.kernel(theory.moments(weights), x, x, EPS)
    np.testing.assert_allclose(np.squeeze(ntk), expected, rtol=1e-10)


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
