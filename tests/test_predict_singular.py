"""Duplicate inputs without a ridge: predictions are those of the pseudo-inverse, the limit of a vanishing ridge."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics.theory import predict

Kernels = collections.namedtuple("Kernels", "nngp ntk")
X = np.array([[0.6, 0.8], [0.6, 0.8], [-0.8, 0.6], [1.0, 0.2]])
Y = np.array([[0.0], [0.4], [1.0], [-0.3]])
TEST = np.array([[0.6, 0.8], [0.1, -0.7], [2.0, 1.0]])


def kernel_fn(x1, x2=None, get=None, **_):
    x1, x2 = (jnp.asarray(x) for x in (x1, x1 if x2 is None else x2))
    product = x1 @ x2.T
    both = Kernels(product + 0.3 * product**3, jnp.exp(product) - 0.9)
    return getattr(both, get) if isinstance(get, str) else both


def reference(ridge):
    k_dd, k_td = (np.asarray(kernel_fn(x, X).nngp, float) for x in (X, TEST))
    inverse = np.linalg.inv(k_dd + ridge * np.eye(len(X)))
    prior = np.asarray(kernel_fn(TEST).nngp, float)
    return k_td @ inverse @ Y, prior - k_td @ inverse @ k_td.T


@pytest.mark.parametrize(
    "t", [pytest.param(None, marks=pytest.mark.slow), pytest.param(np.inf, marks=pytest.mark.slow), 1e9]
)
def test_a_posterior_at_duplicates_is_the_limit_of_a_vanishing_ridge(precision, t):
    fn = predict.gradient_descent_mse_ensemble(kernel_fn, jnp.asarray(X, float), jnp.asarray(Y, float), diag_reg=0.0)
    tolerance = 2e-3 if precision == "float32" else 1e-5  # condition number times rounding; the ridge's own bias
    with jax.enable_x64(True):
        mean, covariance = reference(1e-7)
    found = fn(t=t, x_test=jnp.asarray(TEST, float), get="nngp", compute_cov=True)
    np.testing.assert_allclose(found.mean, mean, atol=tolerance)
    np.testing.assert_allclose(found.covariance, covariance, atol=tolerance)
    trained = fn(t=t, get="nngp", compute_cov=True)
    np.testing.assert_allclose(trained.mean, [[0.2], [0.2], [1.0], [-0.3]], atol=tolerance)
    np.testing.assert_allclose(trained.covariance, np.zeros((4, 4)), atol=tolerance)
    assert np.all(np.isfinite(fn(t=t, x_test=jnp.asarray(TEST, float), get="ntk", compute_cov=True).covariance))


def test_variances_stay_between_zero_and_the_prior_at_every_time(precision):
    fn = predict.gradient_descent_mse_ensemble(kernel_fn, jnp.asarray(X, float), jnp.asarray(Y, float), diag_reg=0.0)
    times = jnp.concatenate([jnp.zeros(1), 10.0 ** jnp.arange(-2, 20), jnp.array([jnp.inf])])
    for x in (None, jnp.asarray(TEST, float)):
        prior = np.diagonal(kernel_fn(X if x is None else x).nngp)
        found = fn(t=times, x_test=x, get=("nngp", "ntk"), compute_cov=True)
        variances = np.diagonal(found.nngp.covariance, axis1=-2, axis2=-1)
        assert np.all(variances >= 0)
        assert np.all(variances <= prior)
        assert np.all(np.diff(variances, axis=0) <= 1e-5)
        assert np.all(np.diagonal(found.ntk.covariance, axis1=-2, axis2=-1) >= 0)
        assert np.all(np.isfinite(found.ntk.mean))


def test_leaving_one_of_two_duplicates_out_leaves_the_other(x64):
    k = np.asarray(kernel_fn(X).ntk)
    found = predict.leave_one_out(jnp.asarray(k), jnp.asarray(Y))
    expected = []
    for i in range(4):
        rest = np.arange(4) != i
        expected.append(k[i, rest] @ np.linalg.pinv(k[np.ix_(rest, rest)], rcond=1e-10) @ Y[rest])
    np.testing.assert_allclose(found, expected, atol=1e-7)
    np.testing.assert_allclose(found[:2, 0], [0.4, 0.0], atol=1e-7)


@pytest.mark.slow
def test_steps_and_flow_agree_with_the_limit_and_regular_kernels_change_nothing(x64):
    k_dd, k_td = kernel_fn(X).ntk, kernel_fn(TEST, X).ntk
    args = dict(fx_train_0=0.0, fx_test_0=0.0, k_test_train=k_td)
    flow = predict.gradient_descent_mse(k_dd, jnp.asarray(Y))
    steps = predict.gradient_descent_mse_steps(k_dd, jnp.asarray(Y), 0.5)
    for one, two in zip(flow(t=None, **args), flow(t=jnp.inf, **args), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-8)
    for one, two in zip(flow(t=None, **args), steps(2**30, **args), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-8)
    ridge = predict.gradient_descent_mse(k_dd, jnp.asarray(Y), diag_reg=0.1)(t=None, **args)
    np.testing.assert_allclose(ridge[0], Y)
    dense = k_dd + 0.1 * jnp.trace(k_dd) / 4 * jnp.eye(4)
    np.testing.assert_allclose(ridge[1], k_td @ jnp.linalg.solve(dense, jnp.asarray(Y)), atol=1e-9)
