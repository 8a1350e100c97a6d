"""Predictions from a kernel: against explicit integration, limits, and an ensemble of linear models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics import stax
from dynamics.theory import predict

KERNEL = stax.serial(stax.Dense(64, 1.5, 0.1), stax.Erf(), stax.Dense(1, 1.0, 0.1)).kernel


@pytest.fixture
def problem(x64):
    x, x_test, y = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate(((7, 3), (5, 3), (7, 2))))
    return x, x_test, y


def test_mse_solves_its_differential_equation(problem):
    x, x_test, y = problem
    k, k_test = KERNEL(x, None, "ntk"), KERNEL(x_test, x, "ntk")
    predict_fn = predict.gradient_descent_mse(k, y, learning_rate=0.7)

    def at(t):
        return predict_fn(t, 0.3, 0.1, k_test)

    (train, _), (d_train, d_test) = jax.jvp(at, (2.0,), (1.0,))
    np.testing.assert_allclose(d_train, -0.7 * k @ (train - y) / y.size, rtol=1e-10)
    np.testing.assert_allclose(d_test, -0.7 * k_test @ (train - y) / y.size, rtol=1e-10)
    np.testing.assert_allclose(at(0.0)[0], 0.3 + 0 * y)
    assert at(jnp.ones((2, 3)))[1].shape == (2, 3, 5, 2)


def test_infinite_time_is_the_limit(problem):
    x, x_test, y = problem
    k, k_test = KERNEL(x, None, "ntk"), KERNEL(x_test, x, "ntk")
    predict_fn = predict.gradient_descent_mse(k, y, diag_reg=1e-3)
    np.testing.assert_allclose(predict_fn(1e9, 0.3, 0.1, k_test)[1], predict_fn(None, 0.3, 0.1, k_test)[1], rtol=1e-8)


def test_untraced_axes(problem):
    x, _, y = problem
    k = KERNEL(x, None, "ntk")
    full = jnp.einsum("ij,ab->ijab", k, jnp.eye(2))
    traced = predict.gradient_descent_mse(k, y)(3.0, 0.2, 0.1, k)
    untraced = predict.gradient_descent_mse(full, y, trace_axes=())(3.0, 0.2, 0.1, full)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), traced, untraced)


@pytest.mark.parametrize("get", ["nngp", "ntk"])
def test_ensemble_covariance_is_that_of_trained_linear_models(get, problem):
    # Outputs f0 ~ N(0, K) trained by gradient flow move linearly: their covariance is exact algebra.
    x, x_test, y = problem
    both = jnp.concatenate([x, x_test])
    prior, theta = KERNEL(both, None, "nngp"), KERNEL(both, None, get)
    t, n = 50.0, len(x)
    values, vectors = np.linalg.eigh(theta[:n, :n])
    work = vectors @ np.diag(-np.expm1(-values * t / y.size) / values) @ vectors.T
    move = np.eye(len(both)) - np.pad(theta[:, :n] @ work, ((0, 0), (0, len(x_test))))
    expected = move @ prior @ move.T
    predict_fn = predict.gradient_descent_mse_ensemble(KERNEL, x, y)
    found = predict_fn(t, x_test, get, True)
    np.testing.assert_allclose(found.mean, theta[n:, :n] @ work @ y, rtol=1e-8)
    if get == "ntk":
        np.testing.assert_allclose(found.covariance, expected[n:, n:], rtol=1e-8)
    train = predict_fn(t, None, get, True)
    np.testing.assert_allclose(train.covariance, expected[:n, :n], rtol=1e-6, atol=1e-12)
    final = predict_fn(None, x_test, get, True)
    late = predict_fn(1e12, x_test, get, True)
    np.testing.assert_allclose(final.covariance, late.covariance, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("momentum", [None, 0.9])
def test_any_loss_agrees_with_squared_loss_and_small_steps(momentum, problem):
    x, x_test, y = problem
    k, k_test = KERNEL(x, None, "ntk"), KERNEL(x_test, x, "ntk")

    def loss(f, y):
        return 0.5 * jnp.mean((f - y) ** 2)

    predict_fn = predict.gradient_descent(loss, k, y, 1e-4, momentum)
    train, test = predict_fn(3000.0, 0.3, 0.1, k_test)
    f, g, v, u = jnp.full_like(y, 0.3), jnp.full((5, 2), 0.1), jnp.zeros_like(y), jnp.zeros((5, 2))

    def step(state, _):
        f, g, v, u = state
        slope = jax.grad(loss)(f, y)
        v, u = (momentum or 0.0) * v - 1e-4 * k @ slope, (momentum or 0.0) * u - 1e-4 * k_test @ slope
        return (f + v, g + u, v, u), None

    f, g, _, _ = jax.lax.scan(step, (f, g, v, u), None, 3000)[0]
    # First order in sqrt(learning rate) with momentum, in the rate without.
    np.testing.assert_allclose(train, f, atol=2e-2 if momentum else 1e-4)
    np.testing.assert_allclose(test, g, atol=2e-2 if momentum else 1e-4)


def test_max_learning_rate_is_the_threshold(problem):
    x, _, y = problem
    k = KERNEL(x, None, "ntk")
    limit = predict.max_learning_rate(k, y.size)
    for factor, stable in ((0.99, True), (1.01, False)):
        move = np.eye(len(x)) - factor * limit / y.size * k
        assert bool(np.max(np.abs(np.linalg.eigvalsh(move))) < 1) == stable


def test_predictions_inside_jit_leave_no_tracers(problem):
    x, x_test, y = problem
    predict_fn = predict.gradient_descent_mse_ensemble(KERNEL, x, y)
    inside = jax.jit(lambda t: predict_fn(t, x_test, "ntk"))(2.0)
    np.testing.assert_allclose(inside, predict_fn(2.0, x_test, "ntk"), rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: predict.gradient_descent_mse(jnp.eye(3), jnp.ones((2, 1))), "k_train_train"),
        (lambda: predict.gradient_descent_mse(jnp.eye(2), jnp.ones((2, 1)), trace_axes=(4,)), "trace_axes"),
        (lambda: predict.gradient_descent_mse(jnp.eye(2), jnp.ones((2, 1)), diag_reg=-1.0), "diag_reg"),
        (lambda: predict.gradient_descent_mse(jnp.eye(2), jnp.ones((2, 1)))(1.0, 0.0, 0.0), "k_test_train"),
        (lambda: predict.gradient_descent_mse(jnp.eye(2), jnp.ones((2, 1)), -1.0), "learning_rate: got -1.0"),
        (lambda: predict.gradient_descent_mse(jnp.eye(2), jnp.ones((2, 1)))(1.0, 0.0, 0.0, jnp.ones((2, 3))), "k_test"),
        (lambda: predict.gradient_descent_mse(jnp.eye(2), jnp.ones((2, 1)))(1.0, jnp.ones((3, 1))), "fx_train_0"),
        (lambda: predict.gradient_descent(jnp.subtract, jnp.eye(2), jnp.ones((2, 1))), "loss: got a value of shape"),
        (lambda: predict.max_learning_rate(jnp.ones(3)), "ntk_train_train: got"),
        (lambda: predict.gp_inference(jnp.eye(2), jnp.ones((2, 1)))("ntk", jnp.ones((2, 3))), "k_test_train: got"),
        (lambda: predict.gradient_descent(jnp.sum, jnp.eye(2), jnp.ones((2, 1)), momentum=2.0), "momentum"),
        (lambda: predict.gp_inference(jnp.eye(2), jnp.ones((2, 1)))("ntkk"), "get"),
    ],
)
def test_bad_input_is_named(call, named):
    with pytest.raises(ValueError, match=named):
        call()
