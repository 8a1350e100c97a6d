"""The SGD panel against enumeration and dense references."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from dynamics.losses import half_mse
from dynamics.observe import batch_sharpness, gradient_noise, hessian_trace
from dynamics.types import Batch, Objective, View


def apply(params, x):
    return jnp.tanh(x @ params[0]) @ params[1]


L = Objective(apply, half_mse)


@pytest.fixture
def problem(x64):
    keys = jax.random.split(jax.random.key(0), 4)
    params = (jax.random.normal(keys[0], (3, 4)), jax.random.normal(keys[1], (4, 1)))
    return params, Batch(jax.random.normal(keys[2], (6, 3)), jax.random.normal(keys[3], (6, 1)))


def objective(params, batch):
    theta, unravel = ravel_pytree(params)
    return theta, lambda v, rows: half_mse(apply(unravel(v), batch.x[rows]), batch.y[rows])


def test_batch_sharpness_is_the_mean_over_all_batches(problem):
    """Against all 15 batches of 2 from 6, within 4 standard errors (400 draws)."""
    params, batch = problem
    theta, loss = objective(params, batch)
    ratios, products, squares = [], [], []
    for rows in itertools.combinations(range(6), 2):
        rows = np.array(rows)
        g = np.asarray(jax.grad(loss)(theta, rows))
        h = np.asarray(jax.hessian(loss)(theta, rows))
        products.append(g @ h @ g)
        squares.append(g @ g)
        ratios.append(g @ h @ g / (g @ g))
    read, view = batch_sharpness(2, draws=400), View(params, batch, L)
    memory, first = read.update(read.init(view), view)
    assert abs(first["batch_sharpness"] - np.mean(ratios)) <= 4 * first["batch_sharpness_error"]
    of_means = np.mean(products) / np.mean(squares)
    assert abs(first["batch_sharpness_of_means"] - of_means) <= 4 * first["batch_sharpness_of_means_error"]
    _, second = read.update(memory, view)
    assert first["batch_sharpness"] != second["batch_sharpness"]  # fresh draws


def test_batch_sharpness_of_the_full_batch_is_exact(problem):
    params, batch = problem
    theta, loss = objective(params, batch)
    rows = np.arange(6)
    g, h = np.asarray(jax.grad(loss)(theta, rows)), np.asarray(jax.hessian(loss)(theta, rows))
    read, view = batch_sharpness(6, draws=2), View(params, batch, L)
    _, found = read.update(read.init(view), view)
    np.testing.assert_allclose(found["batch_sharpness"], g @ h @ g / (g @ g), rtol=1e-9)


def test_trace_and_frobenius(problem):
    params, batch = problem
    theta, loss = objective(params, batch)
    h = np.asarray(jax.hessian(loss)(theta, np.arange(6)))
    _, found = hessian_trace(probes=200).update((), View(params, batch, L))
    assert abs(found["hessian_trace"] - np.trace(h)) <= 4 * found["hessian_trace_error"]
    assert abs(found["hessian_frobenius"] - np.linalg.norm(h)) <= 4 * found["hessian_frobenius_error"]


def test_gradient_noise_in_the_eigenbasis(problem):
    params, batch = problem
    theta, loss = objective(params, batch)
    g = np.stack([np.asarray(jax.grad(loss)(theta, np.array([i]))) for i in range(6)])
    sigma = np.cov(g.T, ddof=0)
    values, vectors = np.linalg.eigh(np.asarray(jax.hessian(loss)(theta, np.arange(6))))
    _, found = gradient_noise(2, 0.1, k=2, probes=200, tolerance=1e-9).update((), View(params, batch, L))
    expected = vectors[:, ::-1][:, :2].T @ sigma @ vectors[:, ::-1][:, :2]
    np.testing.assert_allclose(np.diag(found["noise_in_eigenbasis"]), np.diag(expected), rtol=1e-5)
    np.testing.assert_allclose(found["noise_eigenvalues"], values[::-1][:2], rtol=1e-8)
    assert abs(found["noise_trace"] - np.trace(sigma)) <= 4 * found["noise_trace_error"]
    np.testing.assert_allclose(
        found["noise_temperature"], 0.1 * found["noise_trace"] / (2 * 2 * theta.size), rtol=1e-12
    )


def test_stationary_loss_of_sgd_on_a_quadratic(x64):
    """T = eta Tr Sigma / (2 B P): the excess loss of SGD with additive noise is P T / 2 to first order in eta."""
    eta, size, h = 0.02, 4, jnp.array([0.5, 1.0, 1.5, 2.0])

    def step(w, key):
        w = w - eta * (h * w + jax.random.normal(key, (size,)))
        return w, 0.5 * jnp.sum(h * w**2)

    _, losses = jax.lax.scan(step, jnp.zeros(size), jax.random.split(jax.random.key(0), 200_000))
    temperature = eta * size / (2 * size)
    # Correlation time 1/(2 eta h) = 50 steps at most: 4000 independent samples, relative error .02.
    np.testing.assert_allclose(losses[2000:].mean(), size * temperature / 2, rtol=0.08)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"^batch_size: got 0"):
        batch_sharpness(0)
    with pytest.raises(ValueError, match=r"^draws: got 1"):
        batch_sharpness(2, draws=1)
