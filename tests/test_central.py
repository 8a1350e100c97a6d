"""Central flows: the complementarity solve, third derivatives, and flow = average of the optimiser."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from dynamics.evolve import CentralStart, adaptive_central_flow, central_flow, descent, gradient_descent, gradient_flow
from dynamics.evolve.central_equations import complementarity, third_derivatives
from dynamics.evolve.simulate import simulate
from dynamics.experiments.edge_of_stability._central import smooth
from dynamics.experiments.edge_of_stability._digits import digits, network
from dynamics.losses import half_mse
from dynamics.types import Batch, Objective, Observable

DATA = Batch(jnp.zeros((1, 1)), jnp.zeros((1, 1)))


def of(function):
    """The landscape of a function of the parameters alone."""
    return Objective.of(lambda params, batch: function(params))


def states(read):
    """What ``read(state) -> {name: array}`` says of the dynamics' state."""
    return Observable.of_view(lambda view: read(view.state))


@pytest.mark.parametrize("k", [1, 2, 3])
def test_complementarity_conditions(x64, k):
    """X >= 0, beta[X] - target >= 0, <X, beta[X] - target> = 0, for definite and indefinite targets."""
    rng = np.random.default_rng(k)
    for sign in (1.0, -1.0, 0.0):
        t = rng.normal(size=(k, k, 40))
        t = t + t.transpose(1, 0, 2)
        beta = np.einsum("ijp,klp->ijkl", t, t) / 40
        target = rng.normal(size=(k, k))
        target = target + target.T + sign * 4 * np.eye(k)
        x = np.asarray(complementarity(jnp.asarray(beta), jnp.asarray(target), jnp.zeros((k, k)), iterations=20_000))
        slack = np.einsum("ijkl,kl->ij", beta, x) - target
        scale = np.abs(target).max()
        assert np.linalg.eigvalsh(x).min() >= -1e-9
        assert np.linalg.eigvalsh(slack).min() >= -1e-4 * scale
        assert abs(np.sum(x * slack)) <= 1e-4 * scale * max(1, np.trace(x))


@pytest.mark.parametrize("k", [1, 2, 3])
def test_complementarity_without_resistance(precision, k):
    """beta = 0 (a quadratic): X = 0 at or below the threshold, whatever the guess; above it huge, yet finite."""
    beta, eye = jnp.zeros((k, k, k, k)), jnp.eye(k)
    for scale in (1.0, 1e-6, 0.0):
        np.testing.assert_array_equal(complementarity(beta, -scale * eye, 3 * eye), 0)
        above = complementarity(beta, scale * eye, jnp.zeros((k, k)))
        assert np.all(np.isfinite(above))
        assert np.trace(above) < 1e6 / np.finfo(above.dtype).eps


@pytest.mark.parametrize("k", [1, 2])
def test_central_flow_on_a_stable_quadratic(k):
    """No oscillation, and the tracked directions relax by exp(-eta lambda) a step."""
    curvature, eta, w = jnp.array([3.0, 1.0, 0.4, 0.2, 0.1, 0.0, -0.1, -0.2]), 0.5, jnp.ones(8)
    flow = central_flow(of(lambda w: 0.5 * jnp.sum(curvature * w**2)), eta, k=k)
    state = jax.jit(flow.step)(jax.random.key(0), flow.init(w), DATA)
    np.testing.assert_array_equal(state.covariance, 0)
    expected = jnp.where(jnp.arange(8) < k, jnp.exp(-eta * curvature), 1 - eta * curvature)
    np.testing.assert_allclose(state.params, expected, rtol=1e-4)  # the residual of the first refinement


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_central_flow_of_a_linear_loss(momentum):
    """All eigenvalues 0: the tracked direction moves as the mean does at rest, by ``eta g / (1 - beta)``."""
    slope, eta = jnp.array([1.0]), 0.1
    options = {"momentum": momentum, "depth": 1, "oscillation": "balanced"}
    flow = central_flow(of(lambda w: jnp.sum(slope * w)), eta, **options)
    state = jax.jit(flow.step)(jax.random.key(0), flow.init(jnp.zeros(1)), DATA)
    np.testing.assert_allclose(state.params, -eta / (1 - momentum), rtol=1e-6)


@pytest.mark.parametrize("k", [1, 2])
def test_adaptive_flow_with_a_dead_input(k):
    """A column of zeros never has a gradient: its weight stays, and the rest moves as if it were not there."""
    x = jax.random.normal(jax.random.key(1), (6, 3))
    y, w = jnp.ones((6, 1)), {"w": jnp.full((3, 2), 0.4), "v": jnp.full((2, 1), 0.3) * jnp.array([[1.0], [-2.0]])}

    def apply(params, x):
        return jnp.tanh(x @ params["w"]) @ params["v"]

    flow = adaptive_central_flow(Objective(apply, lambda f, y: 0.5 * jnp.mean((f - y) ** 2)), 0.01, k=k)
    ends = []
    for rows, columns in ((3, x), (4, jnp.concatenate([x, jnp.zeros((6, 1))], 1))):
        state = flow.init({**w, "w": jnp.concatenate([w["w"], jnp.full((1, 2), 0.7)])[:rows]})
        step = jax.jit(flow.step)
        for _ in range(5):
            state = step(jax.random.key(0), state, Batch(columns, y))
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state.params))
        ends.append(state.params)
    np.testing.assert_allclose(ends[1]["w"][:3], ends[0]["w"], atol=1e-5)  # float32, 5 steps, another random start
    np.testing.assert_allclose(ends[1]["w"][3], 0.7, atol=1e-6)  # the random start leaves some eps in the vectors


def test_third_derivatives_against_finite_differences(x64):
    def objective(w):
        return jnp.sum(jnp.tanh(w) * jnp.roll(w, 1) ** 2) + jnp.sum(w**4)

    w = jnp.array([0.3, -0.2, 0.5, 0.1])
    u = jnp.eye(4)[:2] + 0.1
    found = third_derivatives(objective, w, u)
    h = jax.hessian(objective)
    for c in range(4):
        e = 1e-5 * jnp.eye(4)[c]
        change = (u @ (h(w + e) - h(w - e)) @ u.T) / 2e-5
        np.testing.assert_allclose(found[:, :, c], change, atol=1e-7)


@of
def valley(params):
    """L(w) = s(b) a^2 / 2 - b with curvature s(b) = 2 + b: progressive sharpening along b."""
    a, b = params
    return 0.5 * (2 + b) * a**2 - 0.05 * b


def test_stable_central_flow_is_gradient_flow(x64):
    """Below the threshold X = 0 and the flow is gradient flow, up to the error of Euler's method."""
    params = (jnp.array(0.5), jnp.array(0.0))
    errors = []
    for eta in (0.02, 0.01):
        steps = round(0.4 / eta)
        ends = []
        for dynamics in (
            central_flow(valley, eta, depth=2),
            gradient_flow(valley, eta),
            central_flow(valley, eta, depth=2, oscillation="none"),
        ):
            state, _ = simulate(dynamics, params, DATA, steps=steps)
            ends.append(np.asarray(dynamics.params(state)))
        errors.append(np.abs(ends[0] - ends[1]).max())
        np.testing.assert_allclose(ends[2], ends[0], atol=1e-12)
    assert errors[1] < errors[0] < 1e-4


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_central_flow_holds_the_threshold_of_the_valley(x64, momentum):
    """On s(b) a^2/2 - g b the oscillation's variance is 2 g at the edge, and b stays where s(b) = (2 + 2 beta)/eta."""
    eta = 0.5
    threshold = (2 + 2 * momentum) / eta
    params = (jnp.array(0.2), jnp.array(threshold - 2.05))

    read = states(lambda state: {"b": state.params[1], "x": state.covariance[0, 0]})
    flow = central_flow(valley, eta, momentum=momentum, depth=2, oscillation="balanced")
    _, central = simulate(flow, params, DATA, train=read, steps=300, record_at=np.arange(301))
    np.testing.assert_allclose(central.values["b"][-50:] + 2, threshold, rtol=1e-6)
    np.testing.assert_allclose(central.values["x"][-50:], 0.1, rtol=1e-6)


def test_gradient_descent_in_the_valley_averages_to_the_flow(x64):
    """Near its period-2 orbit gradient descent has the flow's covariance and sharpness on average."""
    eta = 0.5
    discrete = gradient_descent(valley, eta)
    start = (jnp.array(0.1**0.5 * 1.05), jnp.array(2.0))

    def read(params, batch):
        return {"a": params[0], "b": params[1]}

    _, path = simulate(discrete, start, DATA, train=read, steps=200, record_at=np.arange(201))
    np.testing.assert_allclose(np.mean(path.values["a"] ** 2), 0.1, rtol=0.05)
    np.testing.assert_allclose(np.mean(path.values["b"]) + 2, 2 / eta, rtol=0.01)


def test_adaptive_flow_holds_rmsprop_s_threshold(x64):
    """RMSProp on the valley: lambda_max(P^-1 H) stays at 2/eta in flow and in training, and nu agrees on average."""
    eta, b2 = 0.05, 0.95
    params = (jnp.array(0.1), jnp.array(1.0))
    discrete = descent(valley, optax.rmsprop(eta, decay=b2, eps=1e-12))

    @states
    def read(state):
        nu = state.opt_state[0].nu
        return {"nu": jnp.stack(nu), "b": state.params[1], "s": (2 + state.params[1]) / jnp.sqrt(nu[0])}

    _, path = simulate(discrete, params, DATA, train=read, steps=600, record_at=np.arange(601))
    flow = adaptive_central_flow(valley, eta, b2=b2, eps=0.0, depth=2)
    begin, _ = simulate(discrete, params, DATA, steps=200)
    start = CentralStart(begin.params, begin.opt_state[0].nu)
    read_flow = states(lambda state: {"b": state.params[1], "s": state.eigenvalues[0], "nu": state.nu})
    _, central = simulate(flow, start, DATA, train=read_flow, steps=400, record_at=np.arange(401))
    np.testing.assert_allclose(central.values["s"][-100:], 2 / eta, rtol=0.03)
    np.testing.assert_allclose(np.mean(path.values["s"][-200:]), 2 / eta, rtol=0.1)
    np.testing.assert_allclose(central.values["b"][-1], path.values["b"][-1], rtol=0.05)


def optimisers():
    """``{name: (optax transformation, flow, its start from the state of the descent)}`` in the valley."""
    plain = {"k": 2, "depth": 1, "oscillation": "carried"}
    adaptive = {"b2": 0.95, "eps": 1e-6} | plain

    def adam(b1):  # the flow leaves out the correction of the bias, and its P is that before the step
        def update(g, state, params=None):
            mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state[0], g)
            nu = jax.tree.map(lambda n, g: 0.95 * n + 0.05 * g**2, state[1], g)
            return jax.tree.map(lambda m, n: -0.05 * m / (jnp.sqrt(n) + 1e-6), mu, state[1]), (mu, nu)

        return optax.GradientTransformation(
            lambda p: (jax.tree.map(jnp.zeros_like, p), jax.tree.map(jnp.ones_like, p)), update
        )

    return {
        "descent": (optax.sgd(0.5), central_flow(valley, 0.5, **plain), lambda s: (s.params,)),
        "momentum": (
            optax.sgd(0.5, momentum=0.5),
            central_flow(valley, 0.5, momentum=0.5, k=2, depth=1),
            lambda s: (s.params, None, s.opt_state[0].trace),
        ),
        "rmsprop": (
            adam(0.0),
            adaptive_central_flow(valley, 0.05, **adaptive),
            lambda s: (s.params, s.opt_state[1]),
        ),
        "adam": (
            adam(0.5),
            adaptive_central_flow(valley, 0.05, b1=0.5, **adaptive),
            lambda s: (s.params, s.opt_state[1], s.opt_state[0]),
        ),
    }


@pytest.mark.parametrize("name", ["descent", "momentum", "rmsprop", "adam"])
def test_carried_oscillation_of_a_cubic_loss_is_the_optimiser_s(x64, name):
    """The valley is cubic and both its directions may oscillate: nothing is left out."""
    optimizer, flow, start = optimisers()[name]
    discrete = descent(valley, optimizer)
    begin, _ = simulate(discrete, (jnp.array(0.3), jnp.array(1.7)), DATA, steps=10)

    def read(params, batch):
        return {"w": jnp.stack(params)}

    at, iterate = np.arange(81), states(lambda state: {"w": state.iterate})
    _, path = simulate(discrete, None, DATA, train=read, steps=80, record_at=at, state=begin)
    _, found = simulate(flow, CentralStart(*start(begin)), DATA, train=iterate, steps=80, record_at=at)
    np.testing.assert_allclose(found.values["w"], path.values["w"], atol=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5])
def test_growth_of_a_disturbed_balance(beta):
    """On s a^2/2 - g s the balanced orbit's disturbances grow by (omega^2/2) (1 + beta)/(1 - beta) a step."""
    eta, rise = 0.1, 1e-3
    amplitude = np.sqrt(2 * rise)

    def step(z):  # heavy ball, mirrored in a, so that the orbit of period 2 stands still
        a, m_a, s, m_s = z
        m_a, m_s = beta * m_a + s * a, beta * m_s + 0.5 * a**2 - rise
        return np.array([-(a - eta * m_a), -m_a, s - eta * m_s, m_s])

    orbit = np.array([amplitude, -2 * amplitude / eta, (2 + 2 * beta) / eta, 0])
    np.testing.assert_allclose(step(orbit), orbit, atol=1e-12)
    jacobian = np.stack([(step(orbit + e) - step(orbit - e)) / 2e-6 for e in 1e-6 * np.eye(4)], 1)
    omega = eta / (1 - beta) * np.sqrt(2 * rise)
    growth = np.abs(np.linalg.eigvals(jacobian)).max() - 1
    np.testing.assert_allclose(growth, omega**2 / 2 * (1 + beta) / (1 - beta), rtol=0.02)


def test_heavy_ball_bursts_and_only_the_carried_flow_follows(x64):
    """Momentum .9 in the valley from a balance disturbed by a fifth: the sharpness swings ever wider, then collapses.

    The balanced flow holds it at the edge.
    """
    eta, beta, steps, amplitude = 0.05, 0.9, 300, 1.2 * 0.1**0.5
    params = (jnp.array(amplitude), jnp.array((2 + 2 * beta) / eta - 2))
    trace = (jnp.array(-2 * amplitude / eta), jnp.array(0.0))
    discrete = gradient_descent(valley, eta, momentum=beta)
    start = discrete.init(params)
    start = start._replace(opt_state=(start.opt_state[0]._replace(trace=trace), *start.opt_state[1:]))

    def ratio(dynamics, state):
        def read(params, batch):
            return {"b": params[1]}

        options = {"steps": steps, "record_at": np.arange(steps + 1), "state": state}
        _, record = simulate(dynamics, None, DATA, train=read, **options)
        return (record.values["b"] + 2) * eta / (2 + 2 * beta)

    def flow(oscillation):
        made = central_flow(valley, eta, momentum=beta, depth=2, oscillation=oscillation)
        return ratio(made, made.init(CentralStart(params, trace=trace)))

    found = ratio(discrete, start)
    assert found.max() > 1.01
    assert found[100:].min() < 0.85
    np.testing.assert_allclose(flow(None), found, atol=2e-3)
    np.testing.assert_allclose(flow("balanced")[100:], 1, atol=1e-3)


DIGITS = [("descent", 0.4, 200), ("momentum", 0.35, 60), ("momentum", 0.5, 60), ("rmsprop", 1e-3, 300)]
DIGITS += [("adam", 1e-3, 300), ("adam", 3e-3, 300)]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("kind", "eta", "begin"), DIGITS)
def test_flow_is_the_running_mean_of_training_on_digits(kind, eta, begin, seed):
    """At most .1 apart per unit that the running mean travels, over 400 steps at the edge."""
    data, model, window = digits(300, seed), network(50, 3), 10
    _, first = model.init(jax.random.fold_in(jax.random.key(seed), 0), (-1, 64))
    landscape = Objective(model.apply, half_mse)
    if kind in ("descent", "momentum"):
        beta = 0.9 if kind == "momentum" else 0.0
        discrete = gradient_descent(landscape, eta, momentum=beta)
        flow = central_flow(landscape, eta, momentum=beta, k=3)
    else:
        b1 = 0.9 if kind == "adam" else 0.0
        optimizer = optax.adam(eta, b1, 0.99) if b1 else optax.rmsprop(eta, 0.99, 1e-12)
        discrete = descent(landscape, optimizer)
        flow = adaptive_central_flow(landscape, eta, b1=b1, k=3)
    state, _ = simulate(discrete, first, data, steps=begin)
    held = state.opt_state[0]
    start = CentralStart(state.params, getattr(held, "nu", None), getattr(held, "mu", getattr(held, "trace", None)))

    def path(dynamics, state):
        def read(params, batch):
            return {"w": ravel_pytree(params)[0]}

        return simulate(dynamics, None, data, train=read, steps=400, record_at=np.arange(401), state=state)[1].values[
            "w"
        ]

    mean = smooth(path(discrete, state), window)
    apart = np.linalg.norm((path(flow, flow.init(start)) - mean)[window:-window], axis=1).max()
    travelled = np.linalg.norm(np.diff(mean, axis=0), axis=1).sum()
    print(f"{kind}, eta {eta:g}, seed {seed}: {apart / travelled:.3f} apart per unit of {travelled:.3g} travelled")
    assert apart <= 0.1 * travelled


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"^momentum: got 1\.0"):
        central_flow(valley, 0.1, momentum=1.0)
    with pytest.raises(ValueError, match=r"^k: got 0"):
        central_flow(valley, 0.1, k=0)
    with pytest.raises(ValueError, match=r"^oscillation: got 'free'"):
        central_flow(valley, 0.1, oscillation="free")
    with pytest.raises(ValueError, match=r"^b2: got 1.0"):
        adaptive_central_flow(valley, 0.1, b2=1.0)
    params = {"w": jnp.ones(2)}
    for start, said in (
        (CentralStart(params, trace={"w": jnp.ones(3)}), r"^CentralStart\.trace: got leaves of shapes {'w': \(3,\)}"),
        (CentralStart(params, nu={"v": jnp.ones(2)}), r"^CentralStart\.nu: got leaves"),
        (params, r"^k, depth: got 1, 4; allowed: a product of at most P = 2"),
    ):
        with pytest.raises(ValueError, match=said):
            adaptive_central_flow(valley, 0.1, depth=2 if start is not params else 4).init(start)
    with pytest.raises(ValueError, match=r"^CentralStart\.nu: got second moments"):
        central_flow(valley, 0.1, depth=2).init(CentralStart(params, nu=params))
    for rate in (0.0, -0.1):
        with pytest.raises(ValueError, match=r"^learning_rate: got"):
            central_flow(valley, rate)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_carried_path_is_the_centre(x64, momentum):
    """On a quadratic at its threshold the carried path stands at the minimum and X is the oscillation's square.

    On a linear loss, where nothing oscillates, it is the iterate.
    """
    eta, w = 1.0, jnp.array([1.0])
    curvature = (2 + 2 * momentum) / eta
    options = {"momentum": momentum, "depth": 1, "oscillation": "carried"}
    flow = central_flow(of(lambda w: 0.5 * curvature * jnp.sum(w**2)), eta, **options)
    state = flow.init(CentralStart(w, trace=-2 * w / eta if momentum else None))
    for _ in range(6):
        state = jax.jit(flow.step)(jax.random.key(0), state, DATA)
        np.testing.assert_allclose(state.params, 0, atol=1e-9)
        np.testing.assert_allclose(state.covariance, 1, rtol=1e-9)
    flow = central_flow(of(jnp.sum), eta, **options)
    state = jax.jit(flow.step)(jax.random.key(0), flow.init(w), DATA)
    np.testing.assert_allclose(state.params, 1 - eta, atol=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_steep_downward_curvature_stays_finite(momentum):
    """A maximum has no minimum to relax to: the path moves by the effective rate, it does not overflow."""
    flow = central_flow(of(lambda w: -5e3 * jnp.sum(w**2)), 0.1, momentum=momentum, depth=2)
    state = jax.jit(flow.step)(jax.random.key(0), flow.init(jnp.ones(6)), DATA)
    assert np.all(np.isfinite(state.params))
