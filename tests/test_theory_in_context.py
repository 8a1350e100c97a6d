"""In-context regression: moments against sequences, descent against its steps, estimators against their posteriors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics.tasks.regression_sequences import regression_sequences
from dynamics.theory import in_context

S = jnp.array([[1.0, 0.3, 0.0], [0.3, 2.0, 0.0], [0.0, 0.0, 0.5]])
TASKS = jnp.array([[1.0, 0.0, 0.5], [0.0, -1.0, 0.5]])


def context(x):
    return jnp.mean(x[:, :-1, :-1] * x[:, :-1, -1:], 1)


@pytest.mark.parametrize("covariance", [None, S])
def test_risk_is_that_of_sequences(covariance, key, x64):
    """Moments and risk within 4.5 standard errors of 20000 sequences: 9 + 2 numbers, 1e-4 to be wrong by chance."""
    batch = regression_sequences(key, 20_000, 4, TASKS, noise=0.3, covariance=covariance)
    R, h = in_context.second_moment(TASKS), context(batch.x)
    products = h[:, :, None] * h[:, None, :]
    A = in_context.context_moment(R, 4, 0.3, covariance)
    z = (products.mean(0) - A) / (products.std(0) / len(h) ** 0.5)
    assert float(jnp.abs(z).max()) < 4.5
    random = jax.random.normal(key, (3, 3))
    for Gamma in (random, in_context.optimum(R, 4, 0.3, covariance)):
        errors = (jnp.einsum("sd,de,se->s", batch.x[:, -1, :-1], Gamma, h) - batch.y[:, 0]) ** 2
        exact = in_context.risk(Gamma, R, 4, 0.3, covariance)
        assert abs(float((errors.mean() - exact) / (errors.std() / len(h) ** 0.5))) < 4.5


@pytest.mark.parametrize("covariance", [None, S])
def test_descent_is_gradient_descent_on_half_the_risk(covariance, key, x64):
    R, start = in_context.second_moment(TASKS), jax.random.normal(key, (3, 3))

    def half(Gamma):
        return 0.5 * in_context.risk(Gamma, R, 4, 0.3, covariance)

    Gamma = start
    for _ in range(7):
        Gamma = Gamma - 0.4 * jax.grad(half)(Gamma)
    found = in_context.descent(jnp.array([0, 7]), R, 4, 0.3, covariance, learning_rate=0.4, start=start)
    np.testing.assert_allclose(found[0], start, rtol=1e-10)
    np.testing.assert_allclose(found[1], Gamma, rtol=1e-10)
    best = in_context.optimum(R, 4, 0.3, covariance)
    np.testing.assert_allclose(jax.grad(half)(best), 0, atol=1e-12)
    np.testing.assert_allclose(in_context.risk(found, R, 4, 0.3, covariance)[1], 2 * half(Gamma), rtol=1e-10)


def test_steps_beyond_half_the_stable_rate_alternate(x64):
    R = jnp.eye(2) / 2  # A = 0.875 I without noise at n = 4, of stability below 2 / 0.875
    path = in_context.descent(jnp.array([1, 2, 3]), R, 4, learning_rate=2.0)
    np.testing.assert_allclose(path[:, 0, 0], 0.5 / 0.875 * (1 - (1 - 2 * 0.875) ** jnp.array([1, 2, 3])), rtol=1e-12)


def test_isotropic_optimum(x64):
    """Fresh tasks: ``Gamma = c I``, ``c = 1 / (1 + 1/n + (1 + s2) d/n)``, its risk ``1 - c``."""
    n, d, s2 = 8, 5, 0.2
    c = 1 / (1 + 1 / n + (1 + s2) * d / n)
    Gamma = in_context.optimum(jnp.eye(d) / d, n, s2)
    np.testing.assert_allclose(Gamma, c * jnp.eye(d), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(in_context.risk(Gamma, jnp.eye(d) / d, n, s2), 1 - c, rtol=1e-12)


def test_estimators_are_posterior_means(key, x64):
    """The ridge against the posterior over a grid of tasks as prior, which is what ``discrete_bayes`` takes."""
    x, y = jax.random.normal(key, (2, 6, 1)), jnp.array([[1.0, 0.5, -0.3, 0.8, 0.1, -1.0]] * 2)
    grid = jnp.linspace(-6, 6, 2001)
    prior = jnp.exp(-(grid**2) / 2)  # N(0, 1/d), d = 1, by weights: repeated tasks would do the same
    found = in_context.ridge(x, y, 0.4)
    log = -jnp.sum((y[..., None] - x * grid) ** 2, 1) / 0.8
    weight = prior * jnp.exp(log - log.max(-1, keepdims=True))
    np.testing.assert_allclose(found[:, 0], (weight * grid).sum(-1) / weight.sum(-1), rtol=1e-8)
    flat = jnp.exp(log - log.max(-1, keepdims=True))
    bayes = in_context.discrete_bayes(x, y, grid[:, None], 0.4)
    np.testing.assert_allclose(bayes[:, 0], (flat * grid).sum(-1) / flat.sum(-1), rtol=1e-8)


def test_sequences_are_of_their_tasks(key):
    for tasks in (TASKS, 3):
        batch = regression_sequences(key, 6, 5, tasks)
        for x, y in zip(batch.x, batch.y, strict=True):
            w = jnp.linalg.lstsq(x[:-1, :-1], x[:-1, -1])[0]
            np.testing.assert_allclose(x[-1, :-1] @ w, y[0], rtol=1e-3, atol=1e-5)
            assert tasks is not TASKS or float(jnp.abs(TASKS - w).max(1).min()) < 1e-3
        np.testing.assert_array_equal(batch.x[:, -1, -1], 0)


@pytest.mark.usefixtures("as_users_meet_it")
def test_misuse(key):
    for given, message in (
        ((0, 5, 3), "samples: got 0; allowed: an integer >= 1"),
        ((2, 5, 3.0), "tasks: got 3.0; allowed: an integer >= 1"),
        ((2, 5, jnp.ones(3)), r"tasks: got shape \(3,\); allowed: an integer d, or an array \[K, d\]"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            regression_sequences(key, *given)
    with pytest.raises(ValueError, match="noise: got -1; allowed: a number >= 0"):
        regression_sequences(key, 2, 5, 3, noise=-1)
    for covariance, message in (
        (jnp.eye(2), r"got shape \(2, 2\); allowed: \(3, 3\)"),
        (jnp.eye(3) - 2, "got least eigenvalue -5; allowed: a positive definite matrix"),
        (jnp.triu(jnp.ones((3, 3))), "got one 1 from its transpose; allowed: a symmetric matrix"),
    ):
        with pytest.raises(ValueError, match=f"covariance: {message}"):
            regression_sequences(key, 2, 5, 3, covariance=covariance)
    same = [regression_sequences(key, 2, 5, d).x for d in (3, np.int64(3))]
    np.testing.assert_array_equal(*same)
    assert regression_sequences(key, 2, 5, np.eye(3, dtype=int)).x.dtype == jnp.float32
    for estimator in (in_context.ridge, lambda x, y, noise: in_context.discrete_bayes(x, y, TASKS, noise)):
        with pytest.raises(ValueError, match=r"noise: got 0.0; allowed: a number > 0"):
            estimator(jnp.ones((4, 3)), jnp.ones(4), 0.0)
    with pytest.raises(ValueError, match=r"tasks: got shape \(0, 3\); allowed: \[K, d\], one task or more"):
        in_context.second_moment(TASKS[:0])
    with pytest.raises(ValueError, match=r"Gamma: got shape \(2,\); allowed: \[..., d, d\]"):
        in_context.risk(jnp.ones(2), jnp.eye(2), 4)
    with pytest.raises(ValueError, match=r"^covariance: got shape \(3, 3\)"):
        in_context.risk(jnp.eye(2), jnp.eye(2), 4, 0.0, jnp.ones((3, 3)))
