"""Predictions in discrete steps: against training of the linearised network, all draws of batches, and the flow."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics import stax
from dynamics.empirical import empirical_ntk_fn
from dynamics.taylor import linearize
from dynamics.theory import predict

MODEL = stax.serial(stax.Dense(16), stax.Erf(), stax.Dense(2))


@pytest.fixture
def network(x64):
    """Inputs and targets of 5 training and 3 test points, parameters, and a stable learning rate."""
    x, x_test, y = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate(((5, 3), (3, 3), (5, 2))))
    params = MODEL.init(jax.random.key(3), (-1, 3))[1]
    return x, x_test, y, params, 2.0


def loss(f, y):
    return 0.5 * jnp.mean((f - y) ** 2)


def trained(apply_fn, params, x, y, eta, momentum, steps):
    """Parameters after 0, 1, ..., steps heavy-ball steps."""
    slope = jax.grad(lambda p: loss(apply_fn(p, x), y))

    def step(carry, _):
        p, v = carry
        v = jax.tree.map(lambda v, g: momentum * v - eta * g, v, slope(p))
        p = jax.tree.map(jnp.add, p, v)
        return (p, v), p

    rest = jax.tree.map(jnp.zeros_like, params)
    path = jax.lax.scan(step, (params, rest), None, steps)[1]
    return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), params, path)


@pytest.mark.parametrize("momentum", [pytest.param(None, marks=pytest.mark.slow), 0.9])
def test_steps_are_those_of_the_linearised_network(momentum, network):
    x, x_test, y, params, eta = network
    both = jnp.concatenate([x, x_test])

    @jax.jit
    def linearized(params, x, both):
        linear = linearize(MODEL.apply, params)
        path = trained(linear, params, x, y, eta, momentum or 0.0, 60)
        return jax.vmap(lambda p: linear(p, both))(path), empirical_ntk_fn(MODEL.apply, trace_axes=())(both, x, params)

    exact, k = linearized(params, x, both)
    predict_fn = predict.gradient_descent_mse_steps(k[:5], y, eta, momentum, trace_axes=())
    train, test = predict_fn(jnp.arange(61), exact[0, :5], exact[0, 5:], k[5:])
    np.testing.assert_allclose(train, exact[:, :5], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(test, exact[:, 5:], rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("momentum", [None, 0.6])
def test_small_steps_tend_to_the_flow(momentum, x64):
    """At fixed time eta t / (1 - m) the gap to the flow halves with eta; singular kernels grow linearly."""
    x, y = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate(((4, 3), (4, 1))))
    k, time = x @ x.T, 3.0
    flow = predict.gradient_descent_mse(k, y)(time, 0.1, 0.2, k)
    gaps = []
    for steps in (4000, 8000):
        eta = time * (1 - (momentum or 0.0)) / steps
        found = predict.gradient_descent_mse_steps(k, y, eta, momentum)(steps, 0.1, 0.2, k)
        gaps.append(max(np.max(np.abs(a - b)) for a, b in zip(found, flow, strict=True)))
    assert 1.95 < gaps[0] / gaps[1] < 2.05
    flat = predict.gradient_descent_mse_steps(jnp.zeros((2, 2)), jnp.ones((2, 1)), 0.5)
    np.testing.assert_allclose(flat(6, None, 0.0, jnp.ones((3, 2))), 3.0, rtol=1e-12)


def test_slow_modes_keep_their_digits():
    """float32: (1 - r)^t with r = 1e-7 after a million steps, against double precision."""
    rates = np.array([1e-7, 1e-4, 0.5], np.float32)
    t = np.array([10, 1000, 1_000_000])
    with jax.enable_x64(False):
        found = predict.steps.step_gain(jnp.asarray(rates), jnp.asarray(t))
    exact = -np.expm1(t[:, None] * np.log1p(-rates.astype(float))) / rates
    np.testing.assert_allclose(found, exact, rtol=3e-6)


@pytest.mark.parametrize(
    ("momentum", "replace"),
    [
        (None, False),
        (0.5, True),
        *[pytest.param(*pair, marks=pytest.mark.slow) for pair in ((None, True), (0.5, False))],
    ],
)
def test_minibatch_moments_are_those_of_every_draw(momentum, replace, x64):
    """All sequences of batches of a linear model, each trained in its parameters: exact mean and variance."""
    n, size, steps, eta, m = 3, 2, 3, 0.7, momentum or 0.0
    x, x_test, y = (np.asarray(jax.random.normal(jax.random.key(i), (n, 4 if i < 2 else 2))) for i in range(3))
    start = np.asarray(jax.random.normal(jax.random.key(9), (4, 2)))
    draws = list(itertools.product(range(n), repeat=size) if replace else itertools.combinations(range(n), size))
    ends = []
    for sequence in itertools.product(draws, repeat=steps):
        w, v = start, np.zeros_like(start)
        for batch in map(list, sequence):
            v = m * v - eta * x[batch].T @ (x[batch] @ w - y[batch]) / (size * 2)
            w = w + v
        ends.append(np.concatenate([x, x_test]) @ w)
    predict_fn = predict.stochastic_gradient_descent_mse(x @ x.T, y, eta, size, momentum, replace)
    train, test = predict_fn(jnp.array([steps, 0]), x @ start, x_test @ start, x_test @ x.T)
    for part, rows in ((train, slice(0, n)), (test, slice(n, None))):
        np.testing.assert_allclose(part.mean[0], np.mean(ends, 0)[rows], rtol=1e-9)
        np.testing.assert_allclose(part.variance[0], np.var(ends, 0)[rows], rtol=1e-9)
        np.testing.assert_array_equal(part.variance[1], 0)


def test_full_batches_have_no_noise(x64):
    x, y = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate(((4, 3), (4, 2))))
    k, t = x @ x.T, jnp.array([5, 1])
    found = predict.stochastic_gradient_descent_mse(k, y, 0.4, 4, 0.3)(t)
    np.testing.assert_allclose(found.mean, predict.gradient_descent_mse_steps(k, y, 0.4, 0.3)(t), rtol=1e-10)
    np.testing.assert_allclose(found.variance, 0, atol=1e-15)


@pytest.mark.slow
def test_refreshed_at_every_step_is_training_and_never_is_lazy(network):
    x, x_test, y, params, eta = network
    both = jnp.concatenate([x, x_test])
    network_path = jax.vmap(lambda p: MODEL.apply(p, both))(trained(MODEL.apply, params, x, y, eta, 0.0, 24))
    t = jnp.array([24, 7, 0])

    def predicted(refresh, flow=False):
        fn = predict.refreshed_gradient_descent_mse(MODEL.apply, params, x, y, eta, refresh, flow)
        return jnp.concatenate(fn(t, x_test), axis=1)

    np.testing.assert_allclose(predicted(1), network_path[t], rtol=1e-9, atol=1e-10)
    k = empirical_ntk_fn(MODEL.apply, trace_axes=())(both, x, params)
    lazy = predict.gradient_descent_mse_steps(k[:5], y, eta, trace_axes=())
    lazy = jnp.concatenate(lazy(t, network_path[0, :5], network_path[0, 5:], k[5:]), axis=1)
    np.testing.assert_allclose(predicted(None), lazy, rtol=1e-9, atol=1e-10)
    errors = [float(jnp.max(jnp.abs(predicted(refresh)[0] - network_path[24]))) for refresh in (2, 8, None)]
    assert 0 < errors[0] < errors[1] < errors[2]


def test_flow_refreshed_at_every_step_is_a_step_to_second_order(network):
    x, _, y, params, _ = network
    gaps = []
    for eta in (0.02, 0.01):
        after = trained(MODEL.apply, params, x, y, eta, 0.0, 1)
        exact = MODEL.apply(jax.tree.map(lambda p: p[1], after), x)
        fn = predict.refreshed_gradient_descent_mse(MODEL.apply, params, x, y, eta, 1, flow=True)
        gaps.append(np.max(np.abs(fn(1) - exact)))
    assert 3.9 < gaps[0] / gaps[1] < 4.1


def test_leave_one_out_is_a_fit_without_each_sample(x64):
    x, y = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate(((6, 3), (6, 2))))
    k = jnp.exp(x @ x.T)
    found = predict.leave_one_out(k, y, 0.1, diag_reg_absolute_scale=True)
    for i in (0, 4):
        others = np.delete(np.arange(6), i)
        fit = predict.gp_inference(k[others][:, others], y[others], 0.1, diag_reg_absolute_scale=True)
        np.testing.assert_allclose(found[i : i + 1], fit("ntk", k[i : i + 1, others]), rtol=1e-10)


K, Y = jnp.eye(2), jnp.ones((2, 1))


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: predict.gradient_descent_mse_steps(K, Y, momentum=1.0), "momentum: got"),
        (lambda: predict.gradient_descent_mse_steps(K, Y)(1.5), "t: got 1.5; allowed: whole numbers"),
        (lambda: predict.gradient_descent_mse_steps(K, Y)(-1), "t: got -1; allowed: whole numbers"),
        (lambda: predict.gradient_descent_mse_steps(K, jnp.ones((3, 1))), "k_train_train: got shape"),
        (lambda: predict.gradient_descent_mse_steps(K, Y)(1, 0.0, 0.0), "k_test_train: got None"),
        (lambda: predict.stochastic_gradient_descent_mse(K, Y, 1.0, 3), "batch_size: got 3"),
        (lambda: predict.stochastic_gradient_descent_mse(K, Y, 1.0, 0), "batch_size: got 0"),
        (lambda: predict.stochastic_gradient_descent_mse(jnp.eye(3), Y, 1.0, 1), "k_train_train, y_train: got"),
        (lambda: predict.leave_one_out(jnp.ones((2, 2, 1, 1)), Y, trace_axes=()), "k_train_train: got"),
        (lambda: predict.refreshed_gradient_descent_mse(lambda w, x: x @ w, K, K, Y), "y_train: got"),
        (lambda: predict.refreshed_gradient_descent_mse(lambda w, x: x @ w, K, K, K, refresh=0), "refresh: got 0"),
    ],
)
def test_bad_input_is_named(call, named):
    with pytest.raises(ValueError, match=named):
        call()
