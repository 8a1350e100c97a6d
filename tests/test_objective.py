"""The landscape said once: penalties, losses of any batch, models with state; and who refuses what has no f."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from matrices import dense_of
from test_properties import OBSERVABLES

from dynamics import observe, operators
from dynamics.evolve import adam, descent, gradient_descent, gradient_flow, kernel_descent, linearized, simulate
from dynamics.losses import half_mse
from dynamics.types import Batch, Data, Objective, Observable, StatefulModel, View


def network(params, x):
    return jnp.tanh(x @ params["w"]) @ params["v"]


def ridge(params):
    return 0.3 * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params)) + 0.1 * jnp.sum(params["w"] ** 4)


PLAIN, PENALISED = Objective(network, half_mse), Objective(network, half_mse, ridge)


@pytest.fixture
def problem(x64):
    keys = jax.random.split(jax.random.key(0), 4)
    params = {"w": jax.random.normal(keys[0], (3, 4)), "v": jax.random.normal(keys[1], (4, 2))}
    return params, Batch(jax.random.normal(keys[2], (6, 3)), jax.random.normal(keys[3], (6, 2)))


def hessian_of(function, params):
    """The dense Hessian of ``function(params)``."""
    theta, unravel = ravel_pytree(params)
    return np.asarray(jax.jit(jax.hessian(lambda v: function(unravel(v))))(theta))


def read(observable, params, batch, objective, **view):
    @jax.jit
    def values(params, batch):
        now = View(params, batch, objective, **view)
        return observable.update(observable.init(now), now)[1]

    return values(params, batch)


EXACT = {"num_matvecs": 30, "certified_matvecs": 30}
"""More products than parameters: Lanczos has found every eigenvalue there is."""


def test_a_penalty_is_in_the_loss_and_its_hessian(problem):
    params, batch = problem
    expected = half_mse(network(params, batch.x), batch.y) + ridge(params)
    np.testing.assert_allclose(PENALISED(params, batch), expected, rtol=1e-12)
    np.testing.assert_allclose(read(observe.loss(), params, batch, PENALISED)["loss"], expected, rtol=1e-12)
    h = hessian_of(lambda p: half_mse(network(p, batch.x), batch.y), params) + hessian_of(ridge, params)
    for size in (None, 2):
        np.testing.assert_allclose(
            dense_of(operators.hessian, PENALISED, params, batch, batch_size=size), h, atol=1e-12
        )
    found = read(observe.sharpness(**EXACT), params, batch, PENALISED)["sharpness"]
    np.testing.assert_allclose(found, np.linalg.eigvalsh(h)[-1], rtol=1e-9)


def test_a_penalty_is_in_no_kernel_and_no_gauss_newton_matrix(problem):
    params, batch = problem
    for operator in (operators.ntk, operators.gauss_newton, operators.fisher):
        with_penalty, without = (dense_of(operator, L, params, batch) for L in (PENALISED, PLAIN))
        np.testing.assert_array_equal(with_penalty, without)
    for observable in (observe.ntk(gram=True), observe.ntk_density(probes=2, steps=4), observe.end_to_end()):
        with_penalty, without = (read(observable, params, batch, L) for L in (PENALISED, PLAIN))
        jax.tree.map(np.testing.assert_array_equal, with_penalty, without)


def test_a_penalty_shifts_every_samples_gradient(problem):
    """So it is not in their covariance, and is in their second moment."""
    params, batch = problem
    centred = [dense_of(operators.gradient_covariance, L, params, batch) for L in (PENALISED, PLAIN)]
    np.testing.assert_allclose(*centred, atol=1e-12)
    g = ravel_pytree(jax.grad(PENALISED)(params, batch))[0]
    second = dense_of(operators.gradient_covariance, PENALISED, params, batch, centred=False)
    np.testing.assert_allclose(second, centred[1] + np.outer(g, g), atol=1e-12)


def test_descent_and_flow_follow_the_penalty(problem):
    """Ridge regression in closed form: flow by the exponential, descent by the power of ``1 - eta (H + lambda)``."""
    _, batch = problem
    ridged = Objective(lambda w, x: x @ w, half_mse, lambda w: 0.15 * jnp.sum(w**2))
    start, dt, steps = jnp.ones((3, 2)), 0.01, 50
    values, u = np.linalg.eigh(np.asarray(batch.x.T @ batch.x / 6 + 0.3 * jnp.eye(3)))
    best = u @ (u.T @ np.asarray(batch.x.T @ batch.y / 6) / values[:, None])
    flow, _ = simulate(gradient_flow(ridged, dt), start, batch, steps=steps)
    expected = best + u @ (np.exp(-values * dt * steps)[:, None] * (u.T @ (start - best)))
    np.testing.assert_allclose(flow, expected, atol=1e-9)  # the method's global error, dt^4 max(values)^5
    state, record = simulate(gradient_descent(ridged, 0.2), start, batch, train=[observe.loss()], steps=steps)
    expected = best + u @ ((1 - 0.2 * values)[:, None] ** steps * (u.T @ (start - best)))
    np.testing.assert_allclose(state.params, expected, atol=1e-12)
    np.testing.assert_allclose(record.values["loss"][-1], ridged(state.params, batch), rtol=1e-12)


# A masked loss per token, contrastive pairs and a physics residual: batches without x and y.
def masked(params, batch):
    """Cross entropy of the next token where the mask is 1; a mean over sequences."""
    logits = jnp.tanh(params["embed"][batch["tokens"]]) @ params["out"]  # [n, t, c]
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), batch["next"][..., None], -1)[..., 0]
    return -jnp.mean(jnp.sum(picked * batch["mask"], 1))


def contrastive(params, batch):
    """InfoNCE without negatives of other samples: margins of pairs, so that it is a mean over samples."""
    one, (two, label) = batch
    apart = jnp.tanh(one @ params["embed"].T) - jnp.tanh(two @ params["embed"].T)
    return jnp.mean(jax.nn.softplus(label * jnp.sum((apart @ params["out"]) ** 2, -1)))


def physics(params, batch):
    """The residual of ``u' = -u`` at points, u a network."""

    def u(t):
        return jnp.sum(jnp.tanh(t * params["embed"][0]) @ params["out"])

    return jnp.mean(jax.vmap(lambda t: (jax.grad(u)(t) + u(t)) ** 2)(batch))


def odd_batches():
    keys = jax.random.split(jax.random.key(1), 5)
    tokens = {
        "tokens": jax.random.randint(keys[0], (6, 5), 0, 4),
        "next": jax.random.randint(keys[1], (6, 5), 0, 2),
        "mask": jax.random.bernoulli(keys[2], 0.6, (6, 5)).astype(float),
    }
    pairs = (jax.random.normal(keys[3], (6, 4)), (jax.random.normal(keys[4], (6, 4)), jnp.sign(jnp.arange(6) - 2.5)))
    return {"tokens": (masked, tokens), "pairs": (contrastive, pairs), "points": (physics, jnp.linspace(0.0, 1.0, 6))}


@pytest.mark.parametrize(
    ("name", "penalty"),
    [
        ("tokens", None),
        pytest.param("pairs", lambda p: 0.1 * jnp.sum(p["embed"] ** 2), marks=pytest.mark.slow),
        pytest.param("points", None, marks=pytest.mark.slow),
    ],
)
def test_any_scalar_of_any_batch_is_a_landscape(x64, name, penalty):
    """Curvature, noise and training of ``Objective.of`` against dense derivatives, single samples by indexing."""
    loss, batch = odd_batches()[name]
    keys = jax.random.split(jax.random.key(2), 2)
    params = {"embed": jax.random.normal(keys[0], (4, 4)), "out": jax.random.normal(keys[1], (4, 2))}
    L = Objective.of(loss, penalty)
    theta, unravel = ravel_pytree(params)

    def whole(v, batch=batch):
        return loss(unravel(v), batch) + (0.0 if penalty is None else penalty(unravel(v)))

    h, slope = np.asarray(jax.jit(jax.hessian(whole))(theta, batch)), jax.jit(jax.grad(whole))
    ones = (jax.tree.map(lambda leaf, i=i: np.asarray(leaf)[i : i + 1], batch) for i in range(6))
    g = np.stack([slope(theta, one) for one in ones])
    sigma = np.cov(g.T, ddof=0)
    np.testing.assert_allclose(dense_of(operators.hessian, L, params, batch, batch_size=3), h, atol=1e-10)
    np.testing.assert_allclose(
        dense_of(operators.gradient_covariance, L, params, batch, batch_size=3), sigma, atol=1e-10
    )
    observed = observe.joined(
        observe.sharpness(**EXACT),
        observe.hessian_trace(probes=100),
        observe.gradient_noise(2, 0.1, k=1, probes=100),
        observe.batch_sharpness(6, draws=2),
    )
    found, mean = jax.jit(lambda p, batch: read(observed, p, batch, L))(params, batch), g.mean(0)
    np.testing.assert_allclose(found["sharpness"], np.linalg.eigvalsh(h)[-1], rtol=1e-8)
    assert abs(found["hessian_trace"] - np.trace(h)) <= 4 * found["hessian_trace_error"]
    assert abs(found["noise_trace"] - np.trace(sigma)) <= 4 * found["noise_trace_error"]
    np.testing.assert_allclose(found["batch_sharpness"], mean @ h @ mean / (mean @ mean), rtol=1e-8)
    state, record = simulate(
        gradient_descent(L, 0.1), params, Data(batch, batch), train=[observe.loss()], test=[observe.loss()], steps=1
    )
    np.testing.assert_allclose(ravel_pytree(state.params)[0], theta - 0.1 * mean, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(record.values["test_loss"], record.values["loss"], rtol=1e-12)
    np.testing.assert_allclose(record.values["loss"][0], whole(theta), rtol=1e-12)


def test_minibatches_of_any_batch_are_unbiased(x64):
    """The mean update over 2000 draws of two of six sequences is the full batch's, within 4 standard errors."""
    loss, batch = odd_batches()["tokens"]
    params = {"embed": jnp.sin(jnp.arange(16.0)).reshape(4, 4), "out": jnp.cos(jnp.arange(8.0)).reshape(4, 2)}
    run, full = (gradient_descent(Objective.of(loss), 1.0, batch_size=size) for size in (2, None))
    keys = jax.random.split(jax.random.key(0), 2000)
    drawn = jax.jit(jax.vmap(lambda key: run.step(key, run.init(params), batch).params["out"]))
    draws = np.asarray(drawn(keys))
    exact = jax.jit(full.step)(keys[0], full.init(params), batch).params["out"]
    assert np.all(np.abs(draws.mean(0) - exact) < 4 * draws.std(0) / np.sqrt(2000))


def without_f(observable):
    """Reads where there is no f, abstractly."""
    loss, batch = odd_batches()["points"]
    L, params = Objective.of(loss), {"embed": jnp.ones((4, 4)), "out": jnp.ones((4, 2))}
    run = gradient_descent(L, 0.1)
    return jax.eval_shape(lambda p: simulate(run, p, batch, train=[observable], steps=1)[1].values, params)


@pytest.mark.parametrize("name", sorted(OBSERVABLES.keys() - {"ntk_of_state"}))  # of a dynamics that refuses itself
def test_an_observable_reads_without_f_or_says_so(name):
    if getattr(getattr(observe, name), "needs_f", False):
        with pytest.raises(TypeError) as caught:
            without_f(OBSERVABLES[name]())
        has_none = "objective: got Objective.of(...), which has no f; allowed for {}: Objective(apply, loss)"
        assert str(caught.value) == has_none.format(name)
    else:
        assert without_f(OBSERVABLES[name]())


@pytest.mark.usefixtures("as_users_meet_it")
@pytest.mark.parametrize("name", ["gauss_newton", "fisher", "ntk"])
def test_operators_that_need_f_say_so(name):
    with pytest.raises(TypeError, match=f"objective: got Objective.of.*which has no f; allowed for {name}: Objective"):
        getattr(operators, name)(Objective.of(masked), {}, None)


@pytest.mark.parametrize("make", [lambda L: linearized(L, lambda L: L), lambda L: kernel_descent(L, optax.sgd(0.1))])
def test_dynamics_that_need_f_say_so(make):
    with pytest.raises(
        TypeError, match=r"got Objective.of\(...\), which has no f; allowed for (linearized|kernel_desc)"
    ):
        make(Objective.of(masked))


def normalised():
    """A network whose hidden layer is shifted by a running mean: ``m' = m/2 + mean(h)/2``, evaluated at m."""

    def hidden(params, x):
        return x @ params["w"]

    def apply(params, state, x, key):
        mean = jnp.mean(hidden(params, x), 0)
        f = jnp.tanh(hidden(params, x) - mean) @ params["v"]
        return f, {"mean": 0.5 * state["mean"] + 0.5 * jax.lax.stop_gradient(mean)}

    def evaluate(params, state, x):
        return jnp.tanh(hidden(params, x) - state["mean"]) @ params["v"]

    return StatefulModel(lambda key, shape: None, apply, evaluate)


@pytest.mark.parametrize("penalty", [None, ridge], ids=["plain", "penalised"])
def test_curvature_of_a_stateful_model_is_that_at_the_statistics_of_the_moment(problem, penalty):
    """Readings along a run against dense references at the frozen state of each step; descent itself is in training
    mode."""
    params, batch = problem
    model, L = normalised(), Objective(normalised(), half_mse, penalty)
    start = (params, {"mean": jnp.zeros(4)})
    observed = [observe.sharpness(**EXACT), observe.loss(), observe.ntk(gram=True, outputs="full", labels=False)]
    observed += [observe.scores(error=half_mse), lambda p, batch: {"theta": ravel_pytree(p)[0]}]
    _, record = simulate(gradient_descent(L, 0.05), start, batch, train=observed, steps=4, record_at=[0, 1, 4])
    state = {"mean": jnp.zeros(4)}
    theta, unravel = ravel_pytree(params)

    def penalised(f, v):
        return half_mse(f, batch.y) + (0.0 if penalty is None else penalty(unravel(v)))

    @jax.jit
    def dense(theta, state):
        def f(v):
            return model.evaluate(unravel(v), state, batch.x)

        h = jax.hessian(lambda v: penalised(f(v), v))(theta)
        return penalised(f(theta), theta), half_mse(f(theta), batch.y), h, jax.jacobian(f)(theta).reshape(12, -1)

    @jax.jit
    def slope_and_state(theta, state):
        def training(v):
            f, after = model.apply(unravel(v), state, batch.x, None)
            return penalised(f, v), after

        return jax.grad(training, has_aux=True)(theta)

    for step in range(5):
        if step in record.step:
            now = {name: value[list(record.step).index(step)] for name, value in record.values.items()}
            np.testing.assert_allclose(now["theta"], theta, rtol=1e-9)
            loss, error, h, jacobian = dense(theta, state)
            np.testing.assert_allclose(now["sharpness"], np.linalg.eigvalsh(h)[-1], rtol=1e-8)
            np.testing.assert_allclose(now["loss"], loss, rtol=1e-9)
            np.testing.assert_allclose(now["error"], error, rtol=1e-9)
            np.testing.assert_allclose(now["ntk"], jacobian @ jacobian.T, rtol=1e-8, atol=1e-10)
        slope, state = slope_and_state(theta, state)
        theta = theta - 0.05 * slope


def test_a_stateful_model_s_landscape_needs_its_statistics(problem):
    params, batch = problem
    L, statistics = Objective(normalised(), half_mse), {"mean": jnp.ones(4)}
    frozen = L.at(statistics)
    expected = half_mse(normalised().evaluate(params, statistics, batch.x), batch.y)
    np.testing.assert_allclose(frozen(params, batch), expected, rtol=1e-12)
    assert frozen.at(None) is frozen
    assert PLAIN.at(None) is PLAIN
    with pytest.raises(TypeError, match=r"objective: got a StatefulModel's; allowed for L: L.at\(model_state\)"):
        L(params, batch)
    for name in ("sharpness", "ntk", "scores"):
        with pytest.raises(TypeError, match=r"objective: got a StatefulModel's; allowed for \w+: L.at\(model_state\)"):
            read(OBSERVABLES[name](), params, batch, L)


def test_preconditioned_sharpness_reads_adams_own_preconditioner(problem):
    """At several steps of Adam, with its b1, b2 and eps, penalty included: the eigenvalues of ``P^-1 H``, dense."""
    params, batch = problem
    b1, b2, eps = 0.8, 0.95, 1e-3
    observed = [
        observe.preconditioned_sharpness(**EXACT),
        Observable.of_view(lambda view: {"nu": ravel_pytree(view.state.opt_state[0].nu)[0]}),
        lambda p, batch: {"theta": ravel_pytree(p)[0]},
    ]
    run = adam(PENALISED, 0.02, b1=b1, b2=b2, eps=eps)
    _, record = simulate(run, params, batch, train=observed, steps=7, record_at=[1, 4, 7])
    unravel = ravel_pytree(params)[1]
    for i, t in enumerate(record.step):
        h = hessian_of(lambda p: PENALISED(p, batch), unravel(record.values["theta"][i]))
        p = (1 - b1**t) * (np.sqrt(record.values["nu"][i] / (1 - b2**t)) + eps)
        expected = np.linalg.eigvals(h / p[:, None]).real.max()
        np.testing.assert_allclose(record.values["preconditioned_sharpness"][i], expected, rtol=1e-8)


def test_the_preconditioner_of_plain_descent_is_one(problem):
    params, batch = problem
    for run in (
        gradient_descent(PLAIN, 0.1, momentum=0.9),
        descent(PLAIN, optax.sgd(0.1), preconditioner=lambda _: 1.0),
    ):
        observed = [observe.sharpness(**EXACT), observe.preconditioned_sharpness(**EXACT)]
        _, record = simulate(run, params, batch, train=observed, steps=3)
        values = record.values
        np.testing.assert_allclose(values["preconditioned_sharpness"], values["sharpness"], rtol=1e-9)
