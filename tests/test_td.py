"""TD learning and its chains: closed forms, fixed points, detailed balance, flows; data drawn afresh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics import observe
from dynamics.evolve import Transitions, fresh_batches, gradient_descent, gradient_flow, simulate, td
from dynamics.losses import half_mse
from dynamics.tasks import chains
from dynamics.tasks.denoising import Noised, denoising, noise, noised
from dynamics.types import Batch, Data, Objective, View

GAMMA = 0.9


def weighted(d):
    """Half the squared error with weights d."""
    return lambda f, y: 0.5 * jnp.sum(d[:, None] * (f - y) ** 2)


def linear(params, x):
    return x @ params["Phi"] @ params["w"]


def problem(make, key, k=3):
    one = make(key)
    n = len(one.stationary)
    keys = jax.random.split(key, 3)
    reward = jax.random.normal(keys[0], (n, 1))
    params = {"Phi": jax.random.normal(keys[1], (n, k)), "w": jax.random.normal(keys[2], (k, 1))}
    return one, Transitions(jnp.eye(n), reward, jnp.eye(n), one.transition), params


MAKERS = {
    "reversible": lambda key: chains.reversible(key, 7),
    "general": lambda key: chains.general(key, 7),
    "ring": lambda key: chains.ring(7, 0.8),
}


@pytest.mark.parametrize("name", MAKERS)
def test_stationary_law_and_values_solve_their_equations(precision, key, name):
    one = MAKERS[name](key)
    eps = jnp.finfo(precision).eps
    np.testing.assert_allclose(one.stationary @ one.transition, one.stationary, rtol=30 * eps)
    np.testing.assert_allclose(one.stationary.sum(), 1, rtol=10 * eps)
    reward = jax.random.normal(key, (7, 2))
    v = chains.value(one, reward, GAMMA)
    np.testing.assert_allclose(v, reward + GAMMA * one.transition @ v, atol=200 * eps)
    assert (chains.irreversibility(one) < 10 * eps) == (name == "reversible")


def test_stationary_law_of_weakly_joined_parts_keeps_every_digit():
    """Two pairs of states joined by 1e-9, in float32: the law of each direction of the joint is the ratio 1:2."""
    e = 1e-9
    P = np.array([[0.5, 0.5, 0, 0], [0.5, 0.5 - 2 * e, 2 * e, 0], [0, e, 0.5 - e, 0.5], [0, 0, 0.5, 0.5]], np.float32)
    np.testing.assert_allclose(chains.chain(P).stationary, np.array([1, 1, 2, 2]) / 6, rtol=1e-6)


def test_irreversibility_is_the_net_flow():
    """A ring steps forward by ``p - (1-p)`` more often than back; two states have no cycle."""
    for p in (0.0, 0.3, 0.5, 0.95):
        np.testing.assert_allclose(chains.irreversibility(chains.ring(6, p)), abs(2 * p - 1), atol=1e-6)
    assert chains.irreversibility(chains.general(jax.random.key(3), 2)) < 1e-6


def test_chains_in_a_trace(key):
    """vmapped and differentiated: a two-state law ``(b, a)/(a + b)``."""

    def first(a, b):
        return chains.chain(jnp.array([[1 - a, a], [b, 1 - b]])).stationary[0]

    a, b = jnp.array([0.2, 0.5]), jnp.array([0.3, 0.1])
    np.testing.assert_allclose(jax.vmap(first)(a, b), b / (a + b), rtol=1e-5)
    np.testing.assert_allclose(jax.grad(first)(0.2, 0.3), -0.3 / 0.25, rtol=1e-4)
    law = jax.jit(lambda P: chains.chain(P))
    for P in ([[1, 0], [0, 1]], [[1, 0], [0.5, 0.5]], [[0.5, 0.5], [0, 1]]):  # states that do not all reach each other
        assert jnp.isnan(law(jnp.array(P, float)).stationary).all()
    for P in ([[0.5, 0.4], [0.5, 0.5]], [[1.5, -0.5], [0.5, 0.5]]):  # rows that are no distributions: no values either
        assert jnp.isnan(law(jnp.array(P)).transition).all()
    flow = jax.jit(lambda p: chains.irreversibility(chains.ring(4, p)))
    np.testing.assert_allclose([flow(0.7), flow(1.5)], [0.4, np.nan], rtol=1e-5)


REFUSED = {
    "rows": (lambda: chains.chain([[0.5, 0.4], [0.5, 0.5]]), "row sums off by 0.1; allowed: distributions"),
    "negative": (lambda: chains.chain([[1.5, -0.5], [0.5, 0.5]]), "entries from -0.5"),
    "nan": (lambda: chains.chain([[np.nan, 0.5], [0.5, 0.5]]), "allowed: distributions"),
    "oblong": (lambda: chains.chain(np.ones((2, 3)) / 3), "transition"),
    "classes": (lambda: chains.chain(np.eye(3)), "3 states in several classes; allowed: all reach each other"),
    "transient": (lambda: chains.chain([[0.5, 0.5], [0.0, 1.0]]), "several classes"),
    "absorbing first": (lambda: chains.chain([[1.0, 0.0], [0.5, 0.5]]), "several classes"),
    "states": (lambda: chains.ring(2), "states: got 2; allowed: an integer >= 3"),
    "forward": (lambda: chains.ring(5, 1.5), "forward: got 1.5"),
    "discount": (
        lambda: chains.value(chains.ring(5), np.ones(5), 1.0),
        "discount: got 1.0; allowed: a number >= 0",
    ),
    "reward": (lambda: chains.value(chains.ring(5), np.ones(4), 0.5), r"reward: got shape \(4,\); allowed: \[5\]"),
    "td discount": (lambda: td(Objective(linear, half_mse), 1.5, lambda L: L), "discount: got 1.5; allowed: a number"),
    "draw": (lambda: fresh_batches(gradient_descent(Objective(linear, half_mse), 0.1), 3), "draw: got int"),
    "make": (lambda: td(Objective(linear, half_mse), 0.5, lambda L: L), "dynamics: got Objective"),
    "sigma": (lambda: denoising(lambda w, y: y, 0.0), "sigma: got 0.0; allowed: a number > 0"),
    "bytes": (lambda: noised(jax.random.key(0), np.ones((3, 2), np.uint8)), "x: got uint8; allowed: real floating"),
    "noised": (lambda: noised(jax.random.key(0), np.ones(3)), r"x: got shape \(3,\); allowed: \[n, ...\]"),
}


@pytest.mark.usefixtures("as_users_meet_it")
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name):
    call, message = REFUSED[name]
    with pytest.raises((ValueError, TypeError), match=message):
        call()


@pytest.mark.parametrize("name", MAKERS)
def test_one_step_is_the_semi_gradient(x64, key, name):
    """``dPhi = (D td) w^T, dw = Phi^T D td`` with ``td = r + gamma P V - V`` (Tang & Munos 2023)."""
    one, data, params = problem(MAKERS[name], key)
    run = td(Objective(linear, weighted(one.stationary)), GAMMA, lambda L: gradient_descent(L, 0.1))
    moved = run.params(run.step(key, run.init(params), data))
    V = params["Phi"] @ params["w"]
    error = one.stationary[:, None] * (data.reward + GAMMA * one.transition @ V - V)
    np.testing.assert_allclose(moved["Phi"], params["Phi"] + 0.1 * error @ params["w"].T, rtol=1e-12)
    np.testing.assert_allclose(moved["w"], params["w"] + 0.1 * params["Phi"].T @ error, rtol=1e-12)


def test_samples_average_to_the_expectation(x64, key):
    """Every pair of states, weighted by ``d_i P_ij``, moves as the expectation over next states does."""
    one, data, params = problem(MAKERS["general"], key)
    n = len(one.stationary)
    i, j = np.divmod(np.arange(n * n), n)
    pairs = Transitions(data.x[i], data.reward[i], data.x[j])
    weight = (one.stationary[:, None] * one.transition).reshape(-1)
    ends = []
    for batch, d in ((data, one.stationary), (pairs, weight)):
        run = td(Objective(linear, weighted(d)), GAMMA, lambda L: gradient_descent(L, 0.3))
        ends.append(simulate(run, params, batch, steps=1)[0].params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), *ends)


def test_a_table_of_values_flows_by_the_matrix_exponential(x64, key):
    """``dV/dt = L (V* - V)``, ``L = D (I - gamma P)``; fixed-step Runge-Kutta of order four."""
    one, data, _ = problem(MAKERS["general"], key)
    L = one.stationary[:, None] * (jnp.eye(7) - GAMMA * one.transition)
    exact = chains.value(one, data.reward, GAMMA)
    run = td(Objective(lambda v, x: x @ v, weighted(one.stationary)), GAMMA, lambda L: gradient_flow(L, 0.05))
    v, record = simulate(
        run,
        jnp.zeros((7, 1)),
        Data(data, Batch(data.x, exact)),
        train=[observe.loss()],
        test=[observe.loss()],
        steps=40,
    )
    np.testing.assert_allclose(v, exact - jax.scipy.linalg.expm(-2.0 * L) @ exact, atol=1e-9)
    left = data.reward + GAMMA * one.transition @ v - v
    np.testing.assert_allclose(record.values["loss"][-1], 0.5 * one.stationary @ left[:, 0] ** 2, rtol=1e-9)
    np.testing.assert_allclose(record.values["test_loss"][-1], 0.5 * one.stationary @ (exact - v)[:, 0] ** 2, rtol=1e-9)


def test_a_network_learns_the_values_of_an_episode(key):
    """Any model and optimiser: a walk to the right that ends, whose values are powers of gamma."""
    n = 5
    x = jnp.linspace(-1, 1, n)[:, None]
    ends = jnp.eye(n, k=1)  # the last row is empty: there the episode ends
    data = Transitions(x, jnp.zeros((n, 1)).at[-1].set(1.0), x, ends)

    def network(params, x):
        return jnp.tanh(x @ params["w"] + params["b"]) @ params["v"]

    keys = jax.random.split(key, 3)
    params = {name: jax.random.normal(k, s) for name, k, s in zip("wbv", keys, [(1, 16), (16,), (16, 1)])}
    run = td(Objective(network, half_mse), 0.5, lambda L: gradient_descent(L, 0.1, momentum=0.9))
    state, _ = simulate(run, params, data, steps=3000)
    np.testing.assert_allclose(network(state.params, x)[:, 0], 0.5 ** np.arange(n)[::-1], atol=0.02)


def test_rewards_that_would_broadcast_are_refused(key):
    """A reward ``[n]`` beside values ``[n, 1]`` would make targets ``[n, n]``."""
    _, data, params = problem(MAKERS["ring"], key)
    run = td(Objective(linear, lambda f, y: jnp.mean((f - y) ** 2)), GAMMA, lambda L: gradient_descent(L, 0.1))
    for reward in (data.reward[:, 0], jnp.arange(7)):  # integers are no class labels here
        with pytest.raises(ValueError, match=r"reward: got shape \(7,\); allowed: that of the values, \(7, 1\)"):
            run.step(key, run.init(params), data._replace(reward=reward))
    with pytest.raises(ValueError, match=r"next_x: got values \(3, 1\) at it; allowed: those at x, \(7, 1\)"):
        run.step(key, run.init(params), data._replace(next_x=jnp.eye(7)[:3], expected=None))
    with pytest.raises(TypeError, match="data: got tuple; allowed for td: Transitions"):
        run.step(key, run.init(params), tuple(data))


def test_expected_steps_are_of_the_full_batch(key):
    """A minibatch of rows would take the columns of ``expected`` for other states, with no shape to tell of it."""
    _, data, params = problem(MAKERS["ring"], key)
    for size in (3, 7):
        run = td(Objective(linear, half_mse), GAMMA, lambda L, size=size: gradient_descent(L, 0.1, batch_size=size))
        with pytest.raises(ValueError, match=f"batch_size: got {size}, of Transitions with expected; allowed: None"):
            run.step(key, run.init(params), data)
        run.step(key, run.init(params), data._replace(expected=None))  # samples
    run = td(Objective(linear, half_mse), GAMMA, lambda L: gradient_descent(L, 0.1))
    for wrong in (data.expected[:, :3], data.expected[:3], data.expected[0]):
        with pytest.raises(ValueError, match=r"expected: got shape \(.*\); allowed: \(7, 7\), of states and next ones"):
            run.step(key, run.init(params), data._replace(expected=wrong))


def test_fresh_noise_moves_by_the_expected_gradient_on_average(x64, key):
    """A linear denoiser: ``E dL/dW = W (C + s^2) - C``, within 4 standard errors of 4000 draws."""
    x, sigma = jax.random.normal(key, (6, 3)), 0.7
    L = denoising(lambda W, y: y @ W.T, sigma)
    run = fresh_batches(gradient_descent(L, 1.0), lambda key, batch: noised(key, batch.x))
    W, data = jnp.arange(9.0).reshape(3, 3) / 9, noised(key, x)
    draws = jax.jit(jax.vmap(lambda key: W - run.step(key, run.init(W), data).params))(jax.random.split(key, 4000))
    C = x.T @ x / 6
    expected = W @ (C + sigma**2 * jnp.eye(3)) - C
    assert np.all(np.abs(draws.mean(0) - expected) < 4 * draws.std(0) / np.sqrt(4000))
    assert draws.std(0).min() > 0.05


def test_readings_keep_their_noise_and_minibatches_are_batches(key):
    """The landscape of a run is that of its own keys at every step; a part of a batch has the noise it had."""
    x = jax.random.normal(key, (8, 2, 2, 1))
    L, data = denoising(lambda w, y: w * y, 0.5), noised(key, x)
    run = fresh_batches(gradient_descent(L, 0.0), lambda key, batch: noised(key, batch.x))
    _, record = simulate(run, jnp.float32(0.3), data, train=[observe.loss()], steps=3, record_at=range(4))
    np.testing.assert_allclose(record.values["loss"], np.full(4, L(jnp.float32(0.3), data)), rtol=1e-6)
    part = jax.tree.map(lambda leaf: leaf[2:5], data)
    np.testing.assert_array_equal(noise(part), noise(data)[2:5])
    halves = [L(jnp.float32(0.3), jax.tree.map(lambda leaf, i=i: leaf[i : i + 4], data)) for i in (0, 4)]
    np.testing.assert_allclose(np.mean(halves), L(jnp.float32(0.3), data), rtol=1e-6)


def test_denoising_in_half_precision_adds_up_pixels(key):
    """A sum of 3000 squares of 10 is above what float16 holds."""
    found = denoising(lambda w, y: 0 * y, 0.5)(1.0, noised(key, jnp.full((2, 3000), 10, jnp.float16)))
    assert float(found) == pytest.approx(150_000)
    with pytest.raises(TypeError, match="x: got int32; allowed: real floating samples"):
        denoising(lambda w, y: y, 0.5)(1.0, Noised(jnp.ones((2, 2), int), jax.random.split(key, 2)))


def test_the_best_denoiser_gives_the_score(x64, key):
    """Tweedie on one Gaussian mode: (D(y) - y)/s^2 = -y/(1 + s^2), the smoothed density's score."""
    x, sigma = jax.random.normal(key, (40_000, 1)), 0.5
    L, data = denoising(lambda w, y: w * y, sigma), noised(key, x)
    best = simulate(gradient_flow(L, 0.5), jnp.zeros(()), data, steps=100)[0]
    np.testing.assert_allclose((best - 1) / sigma**2, -1 / (1 + sigma**2), atol=0.05)


def test_a_batch_of_another_kind_is_told(key):
    L = denoising(lambda w, y: w * y, 0.5)
    with pytest.raises(TypeError, match=r"data: got Batch; allowed: noised\(key, x\)"):
        L(1.0, Batch(jnp.ones((2, 2)), None))
    with pytest.raises(ValueError, match=r"apply: got \(2, 1\) from it; allowed: the shape of x, \(2, 2\)"):
        denoising(lambda w, y: y[:, :1], 0.5)(1.0, noised(key, jnp.ones((2, 2))))


def test_jacobian_reads_every_sample(key):
    """Symmetric, antisymmetric and oblong maps; images; against ``jax.jacobian``."""
    x = jax.random.normal(key, (5, 2, 2, 1))

    def net(W, x):
        return jnp.tanh(x.reshape(len(x), -1) @ W).reshape(len(x), *([2, 2, 1] if W.shape[1] == 4 else [-1]))

    def read(f, W, x, **options):
        jacobian = observe.jacobian(**options)
        return jax.jit(lambda W, x: jacobian.update((), View(W, Batch(x, None), Objective(f, half_mse)))[1])(W, x)

    W = jax.random.normal(key, (4, 4))
    found = read(net, W, x, matrix=True, batch_size=2)
    dense = jax.jacobian(lambda v: net(W, v))(x).reshape(5, 4, 5, 4)
    for i, J in enumerate(np.einsum("icid->icd", dense)):
        np.testing.assert_allclose(found["jacobian"][i], J, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found["jacobian_norm"][i], np.linalg.norm(J), rtol=1e-5)
        apart = np.linalg.norm(J - J.T) / np.linalg.norm(J) / 2**0.5
        np.testing.assert_allclose(found["jacobian_asymmetry"][i], apart, rtol=1e-4)
        own = np.linalg.eigvalsh((J + J.T) / 2)[::-1]
        np.testing.assert_allclose(found["jacobian_eigenvalues"][i], own, atol=1e-5)
    narrow = W[:, :3]
    less = read(net, narrow, x)
    assert less.keys() == {"jacobian_norm", "jacobian_singular_values"}
    oblong = np.einsum("icid->icd", jax.jacobian(net, 1)(narrow, x).reshape(5, 3, 5, 4))
    np.testing.assert_allclose(less["jacobian_singular_values"], np.linalg.svd(oblong)[1], rtol=1e-3, atol=1e-5)
    flat = x.reshape(5, 4)
    for M, asymmetry in ((W + W.T, 0.0), (W - W.T, 2**0.5)):
        np.testing.assert_allclose(read(lambda M, x: x @ M, M, flat)["jacobian_asymmetry"], asymmetry, atol=1e-6)
    assert np.isnan(read(lambda M, x: 0 * x, W, flat)["jacobian_asymmetry"]).all()
    small = read(lambda M, x: 1e-25 * (x @ M), W, flat)  # squares would underflow
    for name, value in read(lambda M, x: x @ M, W, flat).items():
        factor = 1 if name == "jacobian_asymmetry" else 1e25
        np.testing.assert_allclose(factor * small[name], value, rtol=1e-4, atol=1e-5)
    half = read(lambda M, x: 2 * x, W, flat.astype(jnp.bfloat16))
    np.testing.assert_array_equal(half["jacobian_eigenvalues"], np.full((5, 4), 2.0))
    with pytest.raises(TypeError, match="x: got int32; allowed: one real floating array"):
        read(lambda M, x: M[x], W, jnp.zeros((3,), jnp.int32))
    for empty in (flat[:, :0], flat[:0]):
        with pytest.raises(ValueError, match=r"x: got shape .*; allowed: \[n, ...\] of one sample and entry or more"):
            read(lambda M, x: x, W, empty)
    with pytest.raises(ValueError, match="batch_size: got 0"):
        observe.jacobian(batch_size=0)
