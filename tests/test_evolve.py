"""The time loop and the ways to move: exact trajectories, convergence orders, and recording that changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dynamics.evolve import (
    Carry,
    adam,
    descent,
    every,
    gradient_descent,
    gradient_flow,
    linearized,
    log_steps,
    minibatch,
    ode,
    simulate,
)
from dynamics.evolve.descent import random_subset
from dynamics.evolve.lane import Lanes
from dynamics.evolve.simulate import advance, prepare
from dynamics.losses import half_mse, mse
from dynamics.observe import hessian_trace, joined, loss, ntk, prefixed
from dynamics.taylor import linearize
from dynamics.types import Batch, Data, Objective, Observable


def two_layer(params, x):
    return jnp.tanh(x @ params["w"]) @ params["v"]


LINEAR = Objective(lambda params, x: x @ params, half_mse)
NETWORK = Objective(two_layer, half_mse)
MEAN_SQUARE = Objective(two_layer, mse)


def problem(key, n=12, d=4, width=6):
    kx, ky, kw, kv = jax.random.split(key, 4)
    batch = Batch(jax.random.normal(kx, (n, d)), jax.random.normal(ky, (n, 1)))
    return batch, {"w": jax.random.normal(kw, (d, width)) / 2, "v": jax.random.normal(kv, (width, 1)) / 2}


def path(params, batch):
    return {"theta": params}


def test_linear_model_follows_its_closed_form(precision, key):
    """GD on a quadratic: theta_k - theta* = (1 - eta H)^k (theta_0 - theta*), through the recorded parameters."""
    batch, _ = problem(key)
    theta, eta = jnp.ones((4, 1)), 0.1
    steps = log_steps(100, 20)
    run = gradient_descent(LINEAR, eta)
    _, record = simulate(run, theta, batch, train=[path], steps=100, record_at=steps, key=key)
    hessian = batch.x.T @ batch.x / 12
    best = jnp.linalg.solve(hessian, batch.x.T @ batch.y / 12)
    w, v = jnp.linalg.eigh(hessian)
    predicted = [best + v @ ((1 - eta * w)[:, None] ** k * (v.T @ (theta - best))) for k in steps]
    # one rounding of eps a step, a hundred steps, values of order one
    np.testing.assert_allclose(record.values["theta"], predicted, atol=200 * jnp.finfo(precision).eps)
    np.testing.assert_allclose(record.time, eta * steps)


def test_linearized_dynamics_is_the_linear_models_exact_trajectory(x64, key):
    """f_lin under GD on half mse: f_k = y + (1 - eta K/n)^k (f_0 - y) with the kernel at the start."""
    batch, params = problem(key)
    eta, n = 0.05, 12
    run = linearized(NETWORK, lambda L: gradient_descent(L, eta))
    state, _ = simulate(run, params, batch, steps=50, key=key)
    jacobian = jax.jacobian(lambda p: two_layer(p, batch.x)[:, 0])(params)
    flat = jnp.concatenate([leaf.reshape(n, -1) for leaf in jax.tree.leaves(jacobian)], 1)
    f0 = two_layer(params, batch.x)
    w, v = jnp.linalg.eigh(flat @ flat.T / n)
    predicted = batch.y + v @ ((1 - eta * w)[:, None] ** 50 * (v.T @ (f0 - batch.y)))
    shift = jax.tree.map(jnp.subtract, run.params(state), params)
    measured = f0 + sum(
        jnp.tensordot(j, s, s.ndim)[:, None] for j, s in zip(jax.tree.leaves(jacobian), jax.tree.leaves(shift))
    )
    np.testing.assert_allclose(measured, predicted, atol=1e-12)


def final_params(run, params, batch, steps, key):
    return run.params(simulate(run, params, batch, steps=steps, record_at=[], key=key)[0])


def distance(a, b):
    return float(optax.tree.norm(jax.tree.map(jnp.subtract, a, b)))


def test_gradient_descent_approaches_gradient_flow_at_first_order(x64, key):
    """|GD(eta) - flow| at a fixed time falls as eta^1."""
    batch, params = problem(key)
    flow = final_params(gradient_flow(NETWORK, 0.01), params, batch, 100, key)
    etas = np.array([0.1, 0.05, 0.025, 0.0125])
    errors = [
        distance(final_params(gradient_descent(NETWORK, e), params, batch, round(1 / e), key), flow) for e in etas
    ]
    slope = np.polyfit(np.log(etas), np.log(errors), 1)[0]
    assert abs(slope - 1) < 0.05  # the next order in eta bends the line by a few per cent at these steps


def test_runge_kutta_converges_at_fourth_order(x64, key):
    """A rotation with a nonlinear frequency, whose solution is known: error ~ dt^4."""

    def field(z, data):
        return data * jnp.sum(z**2) * jnp.array([-z[1], z[0]])

    steps = np.array([10, 20, 40, 80])
    errors = []
    for n in steps:
        z, _ = simulate(ode(field, 1 / n), jnp.array([1.0, 0.0]), jnp.array(2.0), steps=int(n), record_at=[], key=key)
        errors.append(np.linalg.norm(z - np.array([np.cos(2.0), np.sin(2.0)])))
    slope = np.polyfit(np.log(1 / steps), np.log(errors), 1)[0]
    assert abs(slope - 4) < 0.15  # the leading error term alone; the next is dt^5


def test_recording_changes_no_bit_of_the_trajectory(precision, key):
    batch, params = problem(key)
    run = gradient_descent(NETWORK, 0.1, batch_size=5)
    ends = []
    for record_at in ([], [30], every(1, 30), log_steps(30, 7)):
        state, _ = simulate(run, params, batch, train=[loss()], steps=30, record_at=record_at, key=key)
        ends.append(state.params)
    for other in ends[1:]:
        jax.tree.map(np.testing.assert_array_equal, ends[0], other)


def test_chunks_give_the_same_bits_as_one_run(precision, key):
    batch, params = problem(key)
    run = descent(NETWORK, optax.adam(1e-2), batch_size=4)
    count = Observable(lambda view: jnp.zeros(()), lambda m, view: (m + 1, {"count": m, "loss": view.state.loss}))
    call = prepare(run, params, batch, train=[count], steps=30, record_at=every(3, 30), key=key)
    carry = call.start()
    whole, values = advance(call, carry, call.targets)
    rows = []
    for chunk in np.split(call.targets, [2, 3, 7]):
        carry, part = advance(call, carry, chunk)
        rows.append(part)
    jax.tree.map(np.testing.assert_array_equal, whole, carry)
    for name, value in values.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in rows]), value)


def test_the_end_is_reached_though_the_last_record_comes_earlier(key):
    batch, params = problem(key)
    run = gradient_descent(NETWORK, 0.1)
    state, record = simulate(run, params, batch, train=[loss()], steps=17, record_at=[0, 5], key=key)
    assert int(state.step) == 17
    assert record.values["loss"].shape == (2,)


def test_a_stopped_lane_stays_frozen_and_harms_no_other(key):
    """Three lanes: one stops, one diverges, one goes on; each ends as it would alone."""
    batch, params = problem(key)
    hyper = {"eta": jnp.array([0.2, 1e4, 1e-4]), "enough": jnp.array([0.3, 0.3, 0.0])}
    lanes = Lanes(
        make=lambda lane: gradient_descent(NETWORK, lane.eta, batch_size=6),
        read=lambda lane: [loss()],
        test=lambda lane: (),
        stop=lambda lane: lambda state, data: (state.loss < lane.enough) | jnp.isnan(state.loss),
        fixed={},
        data_axis=None,
    )
    dynamics, read, stop = lanes.dynamics(), lanes.observable(), lanes.stopping()
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), params)

    def run(chosen):
        mine = jax.tree.map(lambda leaf: leaf[chosen], (hyper, stacked, jnp.arange(3)))
        options = {"steps": 200, "record_at": every(20, 200), "key": key, "stop": stop, "state": lanes.init(*mine)}
        return simulate(dynamics, None, batch, train=read, **options)

    state, record = run(slice(None))
    for lane in range(3):
        one, single = run(slice(lane, lane + 1))
        jax.tree.map(
            lambda a, b, lane=lane: np.testing.assert_allclose(a[lane], b[0], rtol=1e-4),
            state.state.params,
            one.state.params,
        )
        np.testing.assert_allclose(record.values["loss"][:, lane], single.values["loss"][:, 0], rtol=1e-4)
    assert int(state.state.step[2]) == 200
    assert int(state.state.step[0]) < 200
    after_stop = record.step > int(state.state.step[0])
    assert np.all(np.isnan(record.values["loss"][after_stop, 0]))
    assert np.all(np.isfinite(record.values["loss"][:, 2]))


def test_simulate_under_vmap_equals_a_loop(precision, key):
    """Seeds and learning rates mapped over the pure loop; vmapped products round differently: a few eps a step."""
    batch, _ = problem(key)

    def one(key, eta):
        _, params = problem(key)
        run = gradient_descent(NETWORK, eta)
        return simulate(run, params, batch, train=[loss()], steps=20, record_at=[0, 10, 20], key=key)[1].values["loss"]

    keys, etas = jax.random.split(key, 3), jnp.array([0.01, 0.05, 0.1])
    together = jax.vmap(one)(keys, etas)
    for i in range(3):
        np.testing.assert_allclose(together[i], one(keys[i], etas[i]), rtol=2000 * jnp.finfo(precision).eps)


def test_minibatch_draws_without_replacement_unless_told(key):
    batch = Batch(jnp.arange(10.0)[:, None], jnp.arange(10.0)[:, None])
    drawn = minibatch(key, batch, 10)
    np.testing.assert_array_equal(np.sort(drawn.x[:, 0]), np.arange(10.0))
    np.testing.assert_array_equal(drawn.x, drawn.y)
    assert minibatch(key, batch, 50, replace=True).x.shape == (50, 1)
    with pytest.raises(ValueError, match=r"data: got \[\(10, 1\), \(8, 1\)\]; allowed: 10 samples each"):
        minibatch(key, batch._replace(y=batch.y[:8]), 4)


def test_small_subsets_are_distinct_and_uniform(key):
    """Every index equally likely, and every pair: within 5 standard errors of a binomial."""
    n, size, draws = 30, 5, 20_000
    index = np.asarray(jax.vmap(lambda k: random_subset(k, n, size))(jax.random.split(key, draws)))
    ordered = np.sort(index, 1)
    assert np.all(np.diff(ordered, axis=1) > 0)
    assert ordered.min() == 0
    assert ordered.max() == n - 1
    p = size / n
    share = np.bincount(index.ravel(), minlength=n) / draws
    assert np.all(np.abs(share - p) < 5 * np.sqrt(p * (1 - p) / draws))
    both = np.mean([(row == 3).any() and (row == 29).any() for row in index[:5000]])
    q = size * (size - 1) / (n * (n - 1))
    assert abs(both - q) < 5 * np.sqrt(q * (1 - q) / 5000)


@pytest.mark.parametrize(("n", "size"), [(6, 3), (5, 4)])
def test_every_small_subset_is_as_likely_as_any_other(key, n, size):
    """All n-choose-size subsets: chi-square below its mean plus five standard deviations."""
    draws = 20_000
    index = np.asarray(jax.vmap(lambda k: random_subset(k, n, size))(jax.random.split(key, draws)))
    counts = np.bincount(np.sum(1 << index, axis=1), minlength=1 << n)
    allowed = np.array([bin(code).count("1") == size for code in range(1 << n)])
    assert not counts[~allowed].any()
    expected = draws / allowed.sum()
    free = allowed.sum() - 1
    assert np.sum((counts[allowed] - expected) ** 2) / expected <= free + 5 * np.sqrt(2 * free)


def test_minibatch_gradient_is_unbiased(x64, key):
    """The mean update over many draws is the full-batch update, within 4 standard errors."""
    batch, params = problem(key)
    run = gradient_descent(NETWORK, 1.0, batch_size=3)
    full = gradient_descent(NETWORK, 1.0)
    draws = jax.vmap(lambda k: run.step(k, run.init(params), batch).params["v"])(jax.random.split(key, 4000))
    exact = full.step(key, full.init(params), batch).params["v"]
    assert np.all(np.abs(draws.mean(0) - exact) < 4 * draws.std(0) / np.sqrt(4000))


def test_descent_takes_train_from_data(key):
    batch, params = problem(key)
    run = gradient_descent(MEAN_SQUARE, 0.1)
    a = run.step(key, run.init(params), batch)
    b = run.step(key, run.init(params), Data(batch, Batch(None, None)))
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("name", ["step", "time", "cell"])
def test_a_reading_by_the_name_of_a_coordinate_is_refused(key, name):
    motion = ode(lambda x, data: -x, 0.1)
    with pytest.raises(ValueError, match=f"reading: got the name '{name}'; allowed: any but"):
        simulate(motion, jnp.ones(()), None, train=lambda x, data: {name: x}, steps=2, key=key)


@pytest.mark.parametrize("record_at", [[3, 2], [0, 0], [-1], [11], [0.5], [[1]]])
def test_bad_record_steps_are_refused(key, record_at):
    run = ode(lambda s, d: s, 0.1)
    with pytest.raises(ValueError, match="record_at"):
        simulate(run, jnp.ones(2), None, steps=10, record_at=record_at, key=key)


def test_bad_arguments_name_themselves(key):
    batch, params = problem(key)
    with pytest.raises(ValueError, match="batch_size"):
        gradient_descent(MEAN_SQUARE, 0.1, batch_size=0)
    run = gradient_descent(MEAN_SQUARE, 0.1, batch_size=13)
    with pytest.raises(ValueError, match="12 samples"):
        run.step(key, run.init(params), batch)
    with pytest.raises(ValueError, match="steps"):
        simulate(run, jnp.ones(2), None, steps=-1, record_at=[], key=key)
    with pytest.raises(ValueError, match="log_steps"):
        log_steps(0)


def test_carry_is_one_pytree(key):
    batch, params = problem(key)
    run = gradient_descent(MEAN_SQUARE, 0.1)
    carry = prepare(run, params, batch, train=[loss()], steps=1, key=key).start()
    assert isinstance(carry, Carry)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(carry))


def test_test_readings_have_a_prefix_and_their_own_batch(x64, key):
    """The same observables on both batches, plain functions among them; every kind of reading takes the prefix."""
    (train, params), (test, _) = problem(key), problem(jax.random.key(5))

    def size(params, batch):
        return {"size": jnp.sum(batch.x**2)}

    run, data = gradient_descent(NETWORK, 0.1), Data(train, test)
    options = {"steps": 5, "record_at": [0, 2, 5]}
    _, both = simulate(run, params, data, train=[loss(), size], test=(loss(), size, prefixed("far", size)), **options)
    assert set(both.values) == {"loss", "size", "test_loss", "test_size", "test_far_size"}
    _, swapped = simulate(run, params, Data(train, train), train=[], test=loss(), **options)
    assert set(swapped.values) == {"test_loss"}
    np.testing.assert_array_equal(swapped.values["test_loss"], both.values["loss"])
    np.testing.assert_array_equal(both.values["test_far_size"], np.full(3, jnp.sum(test.x**2)))
    np.testing.assert_array_equal(both.values["size"], np.full(3, jnp.sum(train.x**2)))
    assert not np.any(both.values["test_loss"] == both.values["loss"])


CONTINUED = {
    "descent": gradient_descent,
    "adam, minibatches": lambda L, eta: adam(L, eta, batch_size=3),
    "momentum": lambda L, eta: gradient_descent(L, eta, momentum=0.9),
    "linearised, minibatches": lambda L, eta: linearized(L, lambda M: gradient_descent(M, eta, batch_size=3)),
}


@pytest.mark.parametrize("make", CONTINUED.values(), ids=CONTINUED)
def test_a_state_goes_on_bit_for_bit(precision, key, make):
    """17 and 13 updates are 30: optimiser states, parameters and losses; the parameters given then are not used."""
    batch, params = problem(key)
    run = make(NETWORK, 0.01)
    whole, record = simulate(run, params, batch, train=[loss()], steps=30, record_at=[0, 17, 30])
    half, first = simulate(run, params, batch, train=[loss()], steps=17)
    end, second = simulate(run, None, batch, train=[loss()], steps=13, state=half)
    jax.tree.map(np.testing.assert_array_equal, whole, end)
    np.testing.assert_array_equal(
        np.concatenate([first.values["loss"], second.values["loss"][1:]]), record.values["loss"]
    )
    np.testing.assert_array_equal(first.values["loss"][1], second.values["loss"][0])


def test_one_observable_a_list_and_a_plain_function_read_the_same(key):
    batch, params = problem(key)
    run = gradient_descent(NETWORK, 0.1)

    def plain(params, batch):
        return {"loss": half_mse(two_layer(params, batch.x), batch.y)}

    given = (loss(), [loss()], (loss(),), plain, [plain], joined(plain), Observable.of(plain))
    first, *others = (simulate(run, params, batch, train=train, steps=3)[1].values["loss"] for train in given)
    for other in others:
        np.testing.assert_allclose(other, first, rtol=1e-6)
    assert simulate(run, params, batch, steps=3)[1].values == {}


def test_a_view_shows_the_moment(x64, key):
    """Step, readings before, parameters, state, data and a key of its own at each recorded step."""
    batch, params = problem(key)
    run, data = gradient_descent(NETWORK, 0.1), Data(batch, batch)

    @Observable.of_view
    def seen(view):
        assert view.objective is NETWORK
        assert view.dynamics.step is run.step
        return {
            "step": view.step,
            "reading": view.reading,
            "theta": view.params["v"],
            "same": jnp.array_equal(view.state.params["v"], view.params["v"]) & (view.state.step == view.step),
            "data": jnp.sum(view.data.test.y) - jnp.sum(view.batch.y),
            "draw": jax.random.normal(view.key),
        }

    at = [0, 1, 4, 9]
    _, record = simulate(run, params, data, train=prefixed("seen", seen), steps=9, record_at=at, key=key)
    values = record.values
    assert values["seen_step"].tolist() == at
    assert values["seen_reading"].tolist() == [0, 1, 2, 3]
    assert values["seen_same"].all()
    assert not values["seen_data"].any()
    assert len(np.unique(values["seen_draw"])) == 4
    _, again = simulate(run, params, data, train=prefixed("seen", seen), steps=9, record_at=[4], key=key)
    assert again.values["seen_draw"][0] == values["seen_draw"][2]  # of the step, whatever else is recorded


def test_a_linearised_run_is_read_on_the_linear_model(x64, key):
    """Its NTK stands still, its loss is that of the expansion, its Hessian is J^T J / n."""
    batch, params = problem(key)
    run = linearized(NETWORK, lambda L: gradient_descent(L, 0.1))
    read = [loss(), ntk(gram=True), hessian_trace(probes=4)]
    state, record = simulate(run, params, batch, train=read, steps=20)
    np.testing.assert_allclose(record.values["ntk"][1], record.values["ntk"][0], rtol=1e-12)
    np.testing.assert_allclose(*record.values["hessian_trace"], rtol=1e-12)
    f = linearize(two_layer, params)(run.params(state), batch.x)
    np.testing.assert_allclose(record.values["loss"][1], half_mse(f, batch.y), rtol=1e-12)
    assert abs(record.values["loss"][1] / half_mse(two_layer(run.params(state), batch.x), batch.y) - 1) > 1e-3


def test_a_second_run_with_the_same_observables_compiles_nothing(key, caplog):
    batch, params = problem(key)
    run, read = gradient_descent(NETWORK, 0.1), [loss(), ntk()]

    def compiled(steps):
        caplog.clear()
        with jax.log_compiles():
            simulate(run, params, batch, train=read, steps=steps, key=key)
        return sum("Compiling jit(_advance)" in record.getMessage() for record in caplog.records)

    assert (compiled(3), compiled(3), compiled(5)) == (1, 0, 0)


@pytest.mark.parametrize("make", [gradient_descent, adam])
def test_a_schedule_is_a_rate_and_time_is_steps(x64, key, make):
    """A rate that falls to 0 in ten steps: the first step is that of its first value, and nothing moves after ten."""
    batch, params = problem(key)
    run = make(NETWORK, optax.linear_schedule(0.1, 0.0, 10))
    leaves = lambda params, batch: params  # noqa: E731
    _, record = simulate(run, params, batch, train=[leaves], steps=15, record_at=[0, 1, 10, 15])
    np.testing.assert_array_equal(record.time, record.step)
    _, first = simulate(make(NETWORK, 0.1), params, batch, train=[leaves], steps=1)
    for leaf in ("w", "v"):
        theta = record.values[leaf]
        np.testing.assert_allclose(theta[1], first.values[leaf][1], rtol=1e-6)  # a schedule is float32
        np.testing.assert_allclose(theta[2], theta[3], rtol=1e-6)
        assert not np.any(theta[1] == theta[2])
