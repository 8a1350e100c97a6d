"""Deep linear theory against ODE solvers, its own limits and its conservation laws."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics.theory import deep_linear as dl

SHAPES = [(3, 2, 5, 0.7), *(pytest.param(shape, marks=pytest.mark.slow) for shape in ((5, 7, 3, 0.0), (4, 4, 4, -0.8)))]


def integrate(field, start, times):
    @jax.jit
    def solve(start, times):
        return diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, _: field(y)),
            diffrax.Tsit5(),
            times[0],
            times[-1],
            None,
            start,
            saveat=diffrax.SaveAt(ts=times),
            stepsize_controller=diffrax.PIDController(rtol=1e-11, atol=1e-12),
            max_steps=20_000,
        ).ys

    return solve(start, times)


@pytest.mark.parametrize("depth", [2, 5])
def test_modes_solve_their_equation(x64, depth):
    """Closed form (depth 2) and inverted quadrature against an adaptive ODE solver."""
    times = jnp.linspace(0.0, 12.0, 25)
    oracle = integrate(lambda a: a ** (2 - 2 / depth) * (1.3 - a), jnp.asarray(0.05), times)
    np.testing.assert_allclose(dl.deep_mode_strength(times, 1.3, 0.05, depth), oracle, atol=1e-10)
    if depth == 2:
        np.testing.assert_allclose(dl.mode_strength(times / 2, 1.3, 0.05), oracle, atol=1e-10)


def test_learning_time_has_its_infinite_depth_limit(x64):
    """K t -> int da/(a^2 (s - a)) = [log(a/(s-a))/s^2 - 1/(s a)], with a correction linear in 1/K."""

    def primitive(a, s):
        return np.log(a / (s - a)) / s**2 - 1 / (s * a)

    exact = primitive(0.9, 1.2) - primitive(0.1, 1.2)
    np.testing.assert_allclose(dl.learning_time(0.1, 0.9, 1.2, jnp.inf), exact, rtol=1e-12)
    gaps = np.abs(dl.learning_time(0.1, 0.9, 1.2, np.array([100.0, 200.0])) - exact)
    assert 1.9 < gaps[0] / gaps[1] < 2.1


def test_mode_derivatives_match_finite_differences(x64):
    def f(s):
        return dl.deep_mode_strength(2.0, s, 0.1, 5)

    finite = (f(1.0 + 1e-6) - f(1.0 - 1e-6)) / 2e-6
    np.testing.assert_allclose(jax.grad(f)(1.0), finite, rtol=1e-6)


def test_learning_time_has_the_inverse_rate_as_its_derivative(x64):
    """d(K t)/da = 1/(a^(2-2/K) (s - a)), at every depth in one vmap."""
    depths = jnp.array([1.0, 2.0, 5.0, jnp.inf])
    slopes = jax.vmap(jax.grad(lambda a, depth: dl.learning_time(0.1, a, 1.3, depth)), (None, 0))(0.7, depths)
    np.testing.assert_allclose(slopes, 1 / (0.7 ** (2 - 2 / depths) * 0.6), rtol=1e-10)


def test_modes_in_single_precision():
    times = jnp.linspace(0.0, 10.0, 11, dtype=jnp.float32)
    got = dl.deep_mode_strength(times, 1.0, 0.1, 2)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, dl.mode_strength(times / 2, 1.0, 0.1), rtol=2e-5)


def start(key, shape, scale=0.5):
    weights_key, target_key = jax.random.split(key)
    w1, w2 = dl.lambda_balanced_init(weights_key, shape[:3], shape[3], scale)
    return w1, w2, jax.random.normal(target_key, (shape[2], shape[0]))


@pytest.mark.parametrize("shape", SHAPES)
def test_lambda_balanced_closed_form_matches_gradient_flow(x64, key, shape):
    """Closed form against an adaptive solver of the weights' own flow, to 1e-6 (solver tolerance 1e-11)."""
    w1, w2, s = start(key, shape)
    balance = dl.imbalance([w1, w2])[0]
    np.testing.assert_allclose(balance, shape[3] * np.eye(shape[1]), atol=1e-12)

    def field(w):
        error = s - w[1] @ w[0]
        return w[1].T @ error, error @ w[0].T

    times = jnp.linspace(0.0, 8.0, 9)
    v1, v2 = integrate(field, (w1, w2), times)
    net = dl.lambda_balanced(times, w1, w2, s)
    np.testing.assert_allclose(net.function, v2 @ v1, atol=1e-9)
    np.testing.assert_allclose(net.inputs, jnp.swapaxes(v1, 1, 2) @ v1, atol=1e-9)
    np.testing.assert_allclose(net.outputs, v2 @ jnp.swapaxes(v2, 1, 2), atol=1e-9)


def test_lambda_balanced_survives_long_times_and_single_precision(key):
    """At t -> infinity the net is the target; float32 loses at most a few hundred eps on the way."""
    w1, w2, s = start(key, (4, 4, 4, 0.3))
    net = dl.lambda_balanced([0.0, 1000.0], w1, w2, s)
    np.testing.assert_allclose(net.function[-1], s, atol=300 * float(np.finfo(np.float32).eps))


@pytest.mark.slow
def test_lambda_balanced_is_differentiable_and_vmappable(x64, key):
    w1, w2, s = start(key, (3, 3, 3, 0.4))

    def f(c):
        return jnp.sum(dl.lambda_balanced([1.0], w1, w2, c, substeps=2).function ** 2)

    direction = jax.random.normal(key, s.shape)
    finite = (f(s + 1e-6 * direction) - f(s - 1e-6 * direction)) / 2e-6
    np.testing.assert_allclose(jnp.vdot(jax.grad(f)(s), direction), finite, rtol=1e-6)
    many = jax.vmap(lambda c: dl.lambda_balanced([1.0], w1, w2, c, substeps=2).function)(jnp.stack([s, 2 * s]))
    np.testing.assert_allclose(many[1], dl.lambda_balanced([1.0], w1, w2, 2 * s).function, atol=1e-12)


@pytest.mark.slow
def test_large_lambda_is_lazy(x64, key):
    """The relative kernel change falls as 1/lam^2 or faster: the net becomes linear in one layer."""
    x = jnp.eye(4)

    def change(lam):
        w1, w2, s = start(key, (4, 4, 4, lam), scale=0.1)
        k = dl.linear_net_ntk(dl.lambda_balanced([0.0, 40.0], w1, w2, s), x, x)
        return float(jnp.linalg.norm(k[1] - k[0]) / jnp.linalg.norm(k[0]))

    near, far = change(20.0), change(40.0)
    assert far < 0.02
    assert near / far > 3.5


def test_linear_net_ntk_is_the_jacobian_gram(x64, key):
    w1, w2, _ = start(key, (3, 3, 3, 0.4))
    x = jax.random.normal(key, (5, 3))
    jacobian = jax.jacobian(lambda w: x @ w[0].T @ w[1].T)((w1, w2))
    flat = jnp.concatenate([j.reshape(5, 3, -1) for j in jacobian], axis=-1)
    net = dl.LinearNet(w2 @ w1, w1.T @ w1, w2 @ w2.T)
    np.testing.assert_allclose(dl.linear_net_ntk(net, x, x), jnp.einsum("aip,bjp->abij", flat, flat), atol=1e-12)


def test_saddle_losses_sum_the_modes_not_yet_learnt():
    np.testing.assert_allclose(dl.saddle_losses([1.0, 5.0, 3.0, 2.0, 4.0]), [27.5, 15.0, 7.0, 2.5, 0.5, 0.0])


@pytest.mark.usefixtures("as_users_meet_it")
def test_bad_input_is_named(x64, key):
    w1, w2, s = start(key, (3, 3, 3, 0.4))
    with pytest.raises(ValueError, match="correlation"):
        dl.lambda_balanced([0.0], w1, w2, s[:2])
    with pytest.raises(ValueError, match="times"):
        dl.lambda_balanced([1.0, 0.0], w1, w2, s)
    with pytest.raises(ValueError, match="w1, w2"):
        dl.lambda_balanced([0.0], w1.at[0, 0].add(1.0), w2, s)
    with pytest.raises(ValueError, match="shape"):
        dl.lambda_balanced_init(key, (3, 4, 3), 1.0, 0.1)
