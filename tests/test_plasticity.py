"""Tasks that change: the loop over them, its layout over lanes, remedies, streams and their theories."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dynamics import observe
from dynamics.evolve import (
    Drawn,
    continual_backprop,
    descent,
    every,
    gradient_descent,
    over_tasks,
    shrink_and_perturb,
    simulate,
    study,
    task_readings,
)
from dynamics.losses import half_mse, mse
from dynamics.program.lanes_last import lanes_last
from dynamics.tasks.streams import label_flips, new_labels, permuted_inputs, slow_bits
from dynamics.theory.online_regression import Moments, online_regression
from dynamics.theory.plasticity import aged, relearning_steps
from dynamics.types import Batch, Data, Objective, Stream, View


def features(params, x):
    return [jax.nn.relu(x @ params[0]["w"] + params[0]["b"])]


def network(params, x):
    return features(params, x)[0] @ params[1]["w"] + params[1]["b"]


L = Objective(network, mse)


def dead(h):
    return observe.dead_units(lambda params, x: params).update((), View(h, Batch(1.0, None)))


def start(key, inputs=20, width=5):
    one, two = jax.random.split(key)
    first, second = jax.random.normal(one, (inputs, width)) / 4, jax.random.normal(two, (width, 1))
    return [{"w": first, "b": jnp.zeros(width)}, {"w": second, "b": jnp.zeros(1)}]


# ---------------------------------------------------------------- lanes last


def gram(x, w):
    y = jnp.tanh(x @ w)
    return {"gram": y.T @ y, "both": jnp.einsum("ij,kj->ik", x, y @ w.T), "sum": jnp.max(y) + w[0, 0]}


def walk(key, x, w):
    def one(carry, row):
        w, total, i = carry
        far = jnp.sum(w) > 1.0
        w = jax.lax.cond(far, lambda w: w / 2 + jnp.sort(w), lambda w: w + 0.1 * jax.random.normal(key, w.shape), w)
        return (w, total + row @ w[:, 0], i + 1), (row[0], i)

    return jax.lax.scan(one, (w, 0.0, 0), x)


def shapes(x, w):
    y = jnp.concatenate([x[:, ::2], jnp.broadcast_to(w[0], (4, 3))], 1).reshape(2, -1).T[1:, None]
    z = jnp.pad(jnp.cumsum(y, 0), ((1, 0), (0, 0), (0, 0)))
    turned = jax.lax.fori_loop(0, jnp.argmax(w[:, 0]), lambda i, z: z + i, z)
    return turned[jnp.argmax(x[0])], jnp.where(x > 0, x, 0.0)[:, 1], jax.nn.softmax(x), z.squeeze(1), x[::-1]


@pytest.mark.parametrize("name", ["gram", "walk", "shapes"])
@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0)])
def test_lanes_last_is_vmap(name, axes, key):
    function = {"gram": gram, "walk": partial(walk, key), "shapes": shapes}[name]
    kx, kw = jax.random.split(key)
    x, w = jax.random.normal(kx, (7, 4, 5)), jax.random.normal(kw, (7, 5, 3))
    given = x if axes[0] == 0 else x[0], w if axes[1] == 0 else w[0]
    found = jax.jit(jax.vmap(lanes_last(function), axes))(*given)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, jax.vmap(function, axes)(*given)
    )


def test_many_lanes_go_in_blocks(key):
    x = jax.random.normal(key, (71, 3, 4))
    for function in (lambda x: (x @ x.T, 2.0), partial(walk, key)):
        given = (x, jnp.swapaxes(x, 1, 2)) if isinstance(function, partial) else (x,)
        found = jax.jit(jax.vmap(lanes_last(function)))(*given)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), found, jax.vmap(function)(*given))


def test_lanes_last_sees_what_the_function_closes_over(key):
    x = jax.random.normal(key, (6, 3, 3))

    def outer(scale, x):
        return lanes_last(lambda x: scale * x @ x.T)(x)

    scales = jnp.arange(6.0)
    np.testing.assert_allclose(jax.vmap(outer)(scales, x), jax.vmap(lambda s, x: s * x @ x.T)(scales, x), rtol=1e-5)
    np.testing.assert_allclose(outer(2.0, x[0]), 2 * x[0] @ x[0].T, rtol=1e-6)


def test_a_rare_branch_is_not_taken_in_lanes():
    """Under vmap a branch is a selection; here the loop of 10^9 steps in it would be noticed."""

    def long(x):
        return jax.lax.fori_loop(0, 10**9, lambda i, x: jnp.sin(x) + i, x)

    run = jax.jit(jax.vmap(lanes_last(lambda x: jax.lax.cond(x > 10, long, jnp.negative, x))))
    np.testing.assert_array_equal(run(jnp.arange(3.0)), -jnp.arange(3.0))


# ---------------------------------------------------------------- over tasks


def test_a_task_is_what_simulate_does_on_its_data(key):
    """Bit for bit: parameters, optimiser's state, and errors along the way."""
    batch = Batch(jax.random.normal(key, (8, 20)), jnp.ones((8, 1)))
    stream, method = permuted_inputs(key, batch), descent(L, optax.adam(1e-2))
    tasks = over_tasks(method, stream, steps=30, before=observe.loss(), after=observe.loss(), fit=0.3, forgetting=True)
    state, record = simulate(tasks, start(key), None, train=task_readings(), steps=3, record_at=every(1, 3))
    alone, ends = method.init(start(key)), []
    for task in range(3):
        data = stream.data(task)
        alone, own = simulate(method, None, data, train=observe.loss(), steps=30, record_at=every(1, 30), state=alone)
        losses = own.values["loss"]
        at = {name: float(rows[task + 1]) for name, rows in record.values.items()}
        np.testing.assert_allclose(at["online_error"], losses[:-1].mean(), rtol=1e-5)
        np.testing.assert_allclose([at["before_loss"], at["end_error"]], [losses[0], losses[-1]], rtol=1e-5)
        assert at["after_loss"] == pytest.approx(at["end_error"])
        below = np.nonzero(losses <= 0.3)[0]
        np.testing.assert_array_equal(at["time_to_fit"], below[0] if below.size else np.nan)
        before = np.nan if task == 0 else float(L(alone.params, stream.data(task - 1))) - ends[-1]
        np.testing.assert_allclose(at["forgetting"], before, rtol=1e-5)
        ends.append(at["end_error"])
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), state.state.params, alone.params)
    assert np.isnan(record.values["online_error"][0])
    assert int(state.step) == 3


def test_an_online_task_sees_each_sample_once(key):
    stream = slow_bits(key, 20).stream
    tasks = over_tasks(gradient_descent(L, 0.01), stream, forgetting=True)
    state, record = simulate(tasks, start(key), None, train=task_readings(), steps=2, record_at=[1, 2])
    params, method = start(key), gradient_descent(L, 0.01)
    move, at = jax.jit(method.step), jax.jit(lambda params, batch: L(params, batch))
    for task in range(2):
        data, errors, inner = stream.data(task), [], method.init(params)
        for x, y in zip(data.x, data.y):
            errors.append(float(at(params, Batch(x, y))))
            inner = move(key, inner, Batch(x, y))
            params = inner.params
        np.testing.assert_allclose(record.values["online_error"][task], np.mean(errors), rtol=1e-4)
        whole = float(mse(network(params, data.x[:, 0]), data.y[:, 0]))
        np.testing.assert_allclose(record.values["end_error"][task], whole, rtol=1e-4)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), state.state.params, params)


@pytest.mark.parametrize("kind", ["renewed", *(pytest.param(k, marks=pytest.mark.slow) for k in ("plain", "shaken"))])
def test_lanes_of_tasks_are_single_runs(kind, key):
    """In a study the lanes' axis is last; alone it is not there."""

    def make(lane):
        method = optax.sgd(0.02)
        if kind == "renewed":
            method = continual_backprop(method, features, rate=0.02, maturity=5, seed=lane.seed)
        if kind == "shaken":
            method = optax.chain(method, shrink_and_perturb(0.9, 0.01, interval=7, seed=lane.seed))
        stream = slow_bits(jax.random.fold_in(key, lane.seed), 40).stream
        return over_tasks(descent(L, method), stream, after=observe.dead_units(lambda p, x: features(p, x)[0]))

    def run(seeds):
        return study(
            {"seed": seeds}, lambda lane: Drawn(start(jax.random.fold_in(key, lane.seed))), make, task_readings(),
            steps=3, record_at=[1, 2, 3],
        ).values  # fmt: skip

    together = run(range(3))
    for seed in (0, 2):
        tasks = make(type("lane", (), {"seed": seed}))
        params = start(jax.random.fold_in(key, seed))
        _, alone = simulate(tasks, params, None, train=task_readings(), steps=3, record_at=[1, 2, 3])
        for name, rows in alone.values.items():
            np.testing.assert_allclose(together[name][:, seed], rows, rtol=2e-4, atol=1e-5)


def test_a_flip_is_left_when_it_is_learned():
    """One weight: ``f <- f + eta (s - f)`` reaches ``s`` up to tol after a number of steps that is known."""
    one = Objective(lambda w, x: x * w, half_mse)
    stream = label_flips(Batch(jnp.ones((1, 1)), jnp.ones((1, 1))))
    tasks = over_tasks(
        gradient_descent(one, 0.1), stream, steps=500, fit=1e-2, leave=True,
        error=lambda w, batch: jnp.abs(w - batch.y[0, 0]),
    )  # fmt: skip
    _, record = simulate(tasks, jnp.zeros(()), None, train=task_readings(), steps=4, record_at=[1, 2, 3, 4])
    known = [np.ceil(np.log(1e-2 / apart) / np.log(0.9)) for apart in (1.0, 1.99, 1.99, 1.99)]
    np.testing.assert_array_equal(record.values["time_to_fit"], known)
    short = over_tasks(gradient_descent(one, 0.1), stream, steps=5, fit=1e-2, leave=True)
    _, record = simulate(short, jnp.zeros(()), None, train=task_readings(), steps=1, record_at=[1])
    assert np.isnan(record.values["time_to_fit"][0])
    _, record = simulate(short, jnp.full((), 0.95), None, train=task_readings(), steps=1, record_at=[1])
    assert record.values["time_to_fit"][0] == 0  # as it is
    np.testing.assert_allclose(record.values["online_error"][0], 0.05**2 / 2, rtol=1e-4)


def test_an_observable_keeps_its_memory_over_tasks(key):
    batch = Batch(jax.random.normal(key, (4, 20)), jnp.ones((4, 1)))
    moved = observe.movement()
    tasks = over_tasks(gradient_descent(L, 0.01), label_flips(batch), steps=3, after=moved)
    _, record = simulate(tasks, start(key), None, train=[task_readings(), moved], steps=3, record_at=[1, 2, 3])
    np.testing.assert_allclose(record.values["after_weight_change"], record.values["weight_change"], rtol=1e-5)


ONE = Batch(jnp.ones((1, 1)), jnp.ones((1, 1)))
SIGNS = label_flips(ONE)
STEP = gradient_descent(L, 0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: over_tasks(L, SIGNS, steps=3), "dynamics: got Objective"),
        (lambda: over_tasks(STEP, lambda t: None, steps=3), "stream: got function; allowed: a Stream"),
        (lambda: over_tasks(STEP, SIGNS), "steps: got None; allowed: an integer >= 1"),
        (lambda: over_tasks(STEP, Stream(SIGNS.data, 5), steps=3), "steps: got 3; allowed: 5"),
        (lambda: over_tasks(STEP, SIGNS, steps=3, leave=True), "leave: got True with fit=None"),
        (lambda: over_tasks(STEP, SIGNS, steps=3, fit=float("nan")), "fit: got nan"),
        (
            lambda: simulate(
                STEP,
                start(jax.random.key(0)),
                Batch(jnp.ones((1, 20)), jnp.ones((1, 1))),
                train=task_readings(),
                steps=0,
            ),
            "task_readings: got",
        ),
        (lambda: shrink_and_perturb(interval=0), "interval: got 0"),
        (lambda: shrink_and_perturb(0.5).update(1.0, shrink_and_perturb(0.5).init(1.0)), "params: got None"),
        (lambda: continual_backprop(optax.sgd, features), "optimizer: got the function sgd"),
        (lambda: continual_backprop(optax.sgd(0.1), features, rate=2.0), "rate: got 2.0"),
        (lambda: over_tasks(STEP, SIGNS, steps=3, fit="a"), "fit: got 'a'; allowed: a finite number"),
        (lambda: over_tasks(STEP, SIGNS, steps=True), "steps: got True; allowed: an integer >= 1"),
        (lambda: slow_bits(jax.random.key(0), random=13), "random: got 13; allowed: from 0 to 12"),
        (lambda: slow_bits(jax.random.key(0), steps=10.5), "steps: got 10.5; allowed: an integer >= 1"),
        (lambda: label_flips(Batch(1.0, np.array([0, 1], np.uint8))), "y: got uint8; allowed: numbers with a sign"),
        (lambda: label_flips(Batch(1.0, np.array([True]))), "y: got bool; allowed: numbers with a sign"),
        (lambda: new_labels(jax.random.key(0), Data(ONE, ONE)), r"batch: got Data; allowed: Batch\(x, y\)"),
        (lambda: permuted_inputs(jax.random.key(0), tuple(ONE)), "batch: got tuple; allowed: Batch"),
        (lambda: observe.dead_units(features, threshold=-1.0), "threshold: got -1.0"),
        (lambda: dead(jnp.ones(())), r"features: got shape \(\) from it; allowed: \[n, ..., w\]"),
        (lambda: dead(jnp.ones((0, 3))), r"features: got shape \(0, 3\) from it"),
        (lambda: online_regression(Moments.at([0.0]), [[1.0]], [1.0], 0.1, 3.0), "steps: got 3.0"),
        (lambda: online_regression(Moments.at([0.0]), [[1.0]], [[1.0]], 0.1, 3), r"x: got shape .* with y \(1, 1\)"),
        (lambda: relearning_steps(1.0, 0.1, 1.0), "tolerance: got 1.0; allowed: above 0, below the target"),
        (lambda: relearning_steps(1.0, 0.1, 0.0), "tolerance: got 0.0"),
        (lambda: aged(1.0, 0.1, 0.0), "target: got 0.0; allowed: a number > 0"),
        (lambda: online_regression(Moments.at([0.0]), [[1.0]], [1.0], 0.1, 0), "steps: got 0"),
    ],
)
@pytest.mark.usefixtures("as_users_meet_it")
def test_what_does_not_fit_is_said(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_continual_backprop_says_what_it_needs(key):
    method = continual_backprop(optax.sgd(0.1), lambda p, x: [x])
    params = start(key)
    with pytest.raises(ValueError, match="batch: got NoneType"):
        method.update(params, method.init(params), params)
    with pytest.raises(ValueError, match=r"features: got shapes \[\(1, 20\)\]; allowed: \[\(1, 5\)\]"):
        method.update(params, method.init(params), params, batch=Batch(jnp.ones((1, 20)), None))


# ---------------------------------------------------------------- remedies


def test_shrink_and_perturb_is_a_normal_about_the_shrunk_weights(key):
    params = {"a": 3.0 * jnp.ones(4000), "b": jnp.ones(())}
    method = optax.chain(optax.sgd(1.0), shrink_and_perturb(0.5, 0.1, seed=3))
    update, state = method.update({"a": jnp.ones(4000), "b": jnp.zeros(())}, method.init(params), params)
    new = optax.apply_updates(params, update)["a"]
    assert abs(float(new.mean()) - 1.0) < 4 * 0.1 / 4000**0.5
    assert abs(float(new.std()) - 0.1) < 4 * 0.1 / 8000**0.5
    again, _ = method.update({"a": jnp.ones(4000), "b": jnp.zeros(())}, state, params)
    assert float(jnp.abs(again["a"] - update["a"]).max()) > 0.1


def reference(params, batches, eta, rate, decay, maturity):
    """Continual backpropagation of one hidden layer in numpy, up to the new weights, which are NaN."""
    (w, b), (v, a) = [[np.array(layer[k], float) for k in "wb"] for layer in params]
    width = len(b)
    age, mean, utility, weight, due, renewed = np.zeros(width), np.zeros(width), np.zeros(width), np.zeros(width), 0, []
    for x, y in batches:
        z = x @ w + b
        h = np.maximum(z, 0)
        g = 2 * (h @ v + a - y) / len(x)
        gh = (g @ v.T) * (z > 0)
        weight = decay * weight + 1 - decay
        mean = decay * mean + (1 - decay) * h.mean(0)
        size = np.abs(v).mean(1) / np.abs(w).mean(0)
        utility = decay * utility + (1 - decay) * np.abs(h - mean / weight).mean(0) * size
        age += 1
        w, b, v, a = w - eta * x.T @ gh, b - eta * gh.sum(0), v - eta * h.T @ g, a - eta * g.sum(0)
        due += rate * np.sum(age > maturity)
        if due >= 1:
            unit = np.argmin(np.where(age > maturity, utility / weight, np.inf))
            a = a + mean[unit] / weight[unit] * v[unit]
            w[:, unit], b[unit], v[unit], due = 0.1, 0, 0, due - 1
            age[unit] = mean[unit] = utility[unit] = weight[unit] = 0
            renewed.append(int(unit))
    return (w, b, v, a), renewed


def test_continual_backprop_is_the_algorithm(key, x64):
    kx, ky, ks = jax.random.split(key, 3)
    xs, ys = jax.random.normal(kx, (60, 4, 20)), jax.random.normal(ky, (60, 4, 1))
    params = jax.tree.map(lambda leaf: leaf.astype(float), start(ks))
    (w, b, v, a), renewed = reference(params, list(zip(np.asarray(xs), np.asarray(ys))), 0.01, 0.02, 0.9, 10)
    assert len(renewed) >= 3
    method = continual_backprop(
        optax.sgd(0.01), features, rate=0.02, decay=0.9, maturity=10, initializer=jax.nn.initializers.constant(0.1)
    )
    tasks = over_tasks(descent(L, method), Stream(lambda task: Batch(xs, ys), 60))
    state, _ = simulate(tasks, params, None, steps=1)
    for leaf, known in zip(jax.tree.leaves(state.state.params), (b, w, a, v)):
        np.testing.assert_allclose(leaf, known, rtol=1e-8, atol=1e-10)


def test_a_new_unit_starts_without_momentum_and_changes_f_little(key):
    method = continual_backprop(optax.sgd(0.01, momentum=0.9), features, rate=0.5, decay=0.5, maturity=3)
    x = jnp.tile(jax.random.normal(key, (1, 20)), (6, 1))  # one input: its activation is its mean
    params, state = start(key), None
    state = method.init(params)
    batch = Batch(x, jnp.ones((6, 1)))
    gradient, updated = jax.jit(jax.grad(L)), jax.jit(method.update)
    for step in range(4):
        slope = gradient(params, batch)
        update, new = updated(slope, state, params, batch=batch)
        if step < 3:
            params, state = optax.apply_updates(params, update), new
    plain, _ = optax.sgd(0.01, momentum=0.9).update(slope, state.inner, params)
    old, now = optax.apply_updates(params, plain), optax.apply_updates(params, update)
    fresh = np.asarray(new.hidden[0].age) == 0
    assert fresh.sum() == 2  # two and a half were due
    trace = new.inner[0].trace
    assert not np.asarray(trace[0]["w"])[:, fresh].any()
    assert not np.asarray(trace[1]["w"])[fresh].any()
    assert np.asarray(trace[1]["w"])[~fresh].all()
    np.testing.assert_array_equal(np.asarray(now[1]["w"])[fresh], 0)
    np.testing.assert_allclose(network(now, x), network(old, x), atol=0.05)


# ---------------------------------------------------------------- streams


def test_streams_change_what_they_say(key):
    batch = Batch(jnp.arange(12.0).reshape(4, 3), jnp.arange(4.0)[:, None])
    for stream in (permuted_inputs(key, batch), new_labels(key, batch), label_flips(batch)):
        assert jax.tree.map(jnp.shape, jax.jit(stream.data)(5)) == jax.tree.map(jnp.shape, batch)
    tasks = [permuted_inputs(key, Data(batch, batch)).data(t) for t in range(3)]
    np.testing.assert_array_equal(tasks[0].train.x, batch.x)
    np.testing.assert_array_equal(tasks[2].train.x, tasks[2].test.x)
    assert {tuple(np.sort(np.asarray(t.train.x), 1).ravel()) for t in tasks} == {tuple(np.asarray(batch.x).ravel())}
    y = [np.asarray(new_labels(key, batch).data(t).y)[:, 0] for t in range(4)]
    assert all(sorted(one) == [0, 1, 2, 3] for one in y)
    assert len({tuple(one) for one in y}) > 1
    np.testing.assert_array_equal(label_flips(batch).data(3).y, -batch.y)


@pytest.mark.parametrize("flip_one", [False, True])
def test_slow_bits_are_as_defined(flip_one, key):
    bits = slow_bits(key, 400, flip_one=flip_one)
    tasks = [bits.stream.data(t) for t in range(6)]
    slow = np.stack([np.asarray(task.x[0, 0, :15]) for task in tasks])
    assert all(np.all(np.asarray(task.x)[:, 0, :15] == own) for task, own in zip(tasks, slow))
    changes = np.abs(np.diff(slow, axis=0)).sum(1)
    assert np.all(changes == 1) if flip_one else changes.mean() > 4
    table, task = bits.table(2), tasks[2]
    number = np.asarray(task.x[:, 0, 15:] @ 2.0 ** np.arange(5)).astype(int)
    np.testing.assert_array_equal(np.asarray(table.y)[number], task.y[:, 0])
    assert set(number) == set(range(32))
    counts = np.bincount(number, minlength=32)
    assert np.sum((counts - 12.5) ** 2 / 12.5) < 75  # chi-square, 31 degrees: 1e-5


# ---------------------------------------------------------------- theory


def test_relearning_steps_is_its_integral(x64):
    from scipy.integrate import quad

    for c, tol, s in [(0.5, 1e-2, 1.0), (1e-3, 1e-2, 2.0), (1e-6, 0.1, 0.5), (0.9, 1e-5, 1.0)]:
        known = quad(
            lambda a, c=c, s=s: 1 / ((s - a) * np.hypot(2 * a, c)), tol - s, s - tol, points=[0.0], limit=2000
        )[0]
        np.testing.assert_allclose(relearning_steps(-np.log(c), 0.02, tol, s), known / 0.02, rtol=1e-8)
    far = relearning_steps(jnp.array([600.0, 601.0]), 0.02, 1e-2)
    np.testing.assert_allclose(0.02 * float(far[1] - far[0]), 1.0, rtol=1e-6)
    limit = 100 + np.log(16 * 0.99**2 / (0.01 * 1.99)) / 2  # eta times it for s = 1, c -> 0
    with jax.enable_x64(False):  # e^-100 is none of float32
        np.testing.assert_allclose(relearning_steps(100, 0.02, 1e-2), limit / 0.02, rtol=1e-6)


def test_ageing_is_the_sum_over_steps(x64):
    """``-sum ln(1 - eta^2 e^2)`` from -s to s, at a small eta, by iteration of u and v."""
    eta, c, s = 1e-3, 0.2, 1.5
    both = np.hypot(c, 2 * s * (1 - 1e-6))
    u, v, age = np.sqrt((both + c) / 2), -np.sqrt((both - c) / 2), -np.log(c)
    for _ in range(30_000):
        e = u * v - s
        u, v = u - eta * e * v, v - eta * e * u
    np.testing.assert_allclose(-np.log(u**2 - v**2) - age, float(aged(age, eta, s)) - age, rtol=3 * eta)


def test_online_regression_is_its_recursion_and_monte_carlo():
    rng = np.random.default_rng(0)
    x, y, w, eta, steps = rng.integers(0, 2, (6, 5)) * 1.0, rng.normal(size=6), rng.normal(size=5), 0.03, 37
    x[:, 0], x[:, 1] = 1, 0
    m, M, C, r, total = w.copy(), np.outer(w, w), x.T @ x / 6, x.T @ y / 6, 0
    for _ in range(steps):
        q = np.einsum("ni,ij,nj->n", x, M, x) - 2 * y * (x @ m) + y**2
        total += q.mean() / steps
        mixed = 2 * eta * (np.outer(m, r) + np.outer(r, m))
        M = M - 2 * eta * (C @ M + M @ C) + mixed + 4 * eta**2 * np.einsum("n,ni,nj->ij", q, x, x) / 6
        m = m - 2 * eta * (C @ m - r)
    error, after = online_regression(Moments.at(w), x, y, eta, steps)
    np.testing.assert_allclose(
        [error, *after.mean, *after.second.ravel()], [total, *m, *M.ravel()], rtol=1e-9, atol=1e-9
    )
    again, _ = online_regression(Moments.at(np.stack([w, w])), np.stack([x, x]), np.stack([y, y]), eta, steps)
    np.testing.assert_allclose(again, [error, error])
    W, squares = np.tile(w, (4000, 1)), 0
    for _ in range(steps):
        i = rng.integers(0, 6, 4000)
        off = np.sum(W * x[i], 1) - y[i]
        squares, W = squares + off**2 / steps, W - 2 * eta * off[:, None] * x[i]
    apart = squares.std() / 4000**0.5
    assert abs(squares.mean() - error) < 4 * apart
    averaged, _ = online_regression(Moments.at(w), x, y, eta, steps, fluctuations=False)
    assert abs(squares.mean() - averaged) > 10 * apart


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_adds_up_thousands_of_steps(dtype):
    """The error is 1 at each of 3000 steps, and at the end; with forgetting the state keeps its dtypes."""
    ones = Batch(jnp.ones((1, 1), dtype), jnp.ones((1, 1), dtype))
    still = gradient_descent(Objective(lambda w, x: x @ w, mse), 0.0)
    tasks = over_tasks(still, Stream(lambda task: ones), steps=3000, forgetting=True)
    _, record = simulate(tasks, jnp.zeros((1, 1), dtype), None, train=task_readings(), steps=2)
    assert [record.values[name][-1] for name in ("online_error", "forgetting")] == [1, 0]


def test_single_precision_with_forgetting_under_x64(x64):
    one = Batch(jnp.ones((1, 1), jnp.float32), jnp.ones((1, 1), jnp.float32))
    tasks = over_tasks(
        gradient_descent(Objective(lambda w, x: x @ w, mse), 0.1), Stream(lambda task: one), steps=3, forgetting=True
    )
    _, record = simulate(tasks, jnp.zeros((1, 1), jnp.float32), None, train=task_readings(), steps=2)
    assert record.values["forgetting"][-1] < 0  # the same task, learnt further


def test_continual_backprop_in_half_precision_replaces_as_often():
    """10 units at 1e-4 a step: one is due after 1000 steps of maturity 1, whatever the weights' dtype."""
    kind, features = jnp.bfloat16, lambda p, x: [x @ p[0]]
    params = [jnp.ones((1, 10), kind), jnp.ones((10, 1), kind)]
    method = continual_backprop(optax.sgd(0.0), features, rate=1e-4, maturity=1)
    L = Objective(lambda p, x: features(p, x)[0] @ p[1], mse)
    state, _ = simulate(descent(L, method), params, Batch(jnp.ones((1, 1), kind), jnp.ones((1, 1), kind)), steps=1100)
    assert int(jnp.sum(state.params[1] == 0)) == 1
    assert state.params[1].dtype == kind


def test_inputs_of_lower_rank_in_a_batch_of_moments():
    """One member sees both directions, the other one: each is as it is by itself; without inputs nothing moves."""
    x, y = np.array([[[1, 0], [0, 1]], [[1, 0], [1, 0]]], float), np.ones((2, 2))
    together = online_regression(Moments.at([0.0, 0.0]), x, y, 0.1, 3)
    for i in range(2):
        error, after = online_regression(Moments.at([0.0, 0.0]), x[i], y[i], 0.1, 3)
        np.testing.assert_allclose(together[0][i], error)
        np.testing.assert_allclose(together[1].second[i], after.second, atol=1e-14)
    error, after = online_regression(Moments.at([0.5, 0.0]), 0 * x, y, 0.1, 3)
    np.testing.assert_allclose(error, 1)
    np.testing.assert_allclose(after.mean, [[0.5, 0], [0.5, 0]])


def test_ageing_ends_where_the_numbers_do(x64):
    """After some ninety tasks with weight decay a weight is below the smallest double: no age is read there."""
    from dynamics.experiments.plasticity import solvable

    config = solvable.Config(tasks=100, seeds=2, noise=(0.0, 0.001), decay=(0.0, 0.01))
    record = solvable.run_remedies(config, study)
    age = record.values["after_age"][1:, 1, 0, 0]
    assert not np.isfinite(age[-1])
    assert 600 < np.nanmax(age) < 700
    assert abs((solvable.growth(record)[1, 0, 0] - 1) / 0.07 - 1) < 0.1
