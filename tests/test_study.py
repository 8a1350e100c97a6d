"""A study: every cell is its own run, whatever runs beside it, in whatever pieces, on whatever devices."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from devices import run_on_devices

from dynamics.evolve import Drawn, LaneState, descent, every, gradient_descent, ode, simulate, study
from dynamics.evolve.study import MOST, lane_bytes, planned
from dynamics.losses import half_mse, mse
from dynamics.observe import hessian_eigenvalues, loss, movement, seldom, sharpness
from dynamics.types import Batch, Data, Dynamics, Objective, Observable


def network(params, x):
    return jnp.tanh(x @ params["w"]) @ params["v"]


L = Objective(network, half_mse)


def batch_of(number, n=8):
    kx, ky = jax.random.split(jax.random.key(100 + number))
    return Batch(jax.random.normal(kx, (n, 3)), jax.random.normal(ky, (n, 1)))


def params_of(number, width=4):
    kw, kv = jax.random.split(jax.random.key(number))
    return {"w": jax.random.normal(kw, (3, width)) / 2, "v": jax.random.normal(kv, (width, 1)) / 2}


def path(params, batch):
    return {"v": params["v"][:, 0]}


def noisy(axes, **options):
    """Minibatch descent, read by an observable that draws random numbers too; start by seed, data shared."""
    return study(
        axes,
        draw=lambda lane: params_of(lane.seed),
        make=lambda lane: gradient_descent(L, lane.eta, momentum=lane.beta, batch_size=3),
        read=[loss(), Observable.of_view(lambda view: {"draw": jax.random.normal(view.key)})],
        **{"steps": 6, "record_at": [0, 2, 6], "data": batch_of(0), "key": jax.random.key(3)} | options,
    )


def test_each_cell_is_its_own_run(x64):
    """Deterministic descent of three axes, data and start by seed: readings and time of every single run."""
    axes = {"alpha": [0.5, 2.0], "eta": [0.05, 0.1], "seed": [3, 1, 4]}

    def scaled(alpha):
        return Objective(lambda params, x: alpha * network(params, x), half_mse)

    record = study(
        axes,
        draw=lambda lane: (batch_of(lane.seed), params_of(lane.seed)),
        make=lambda lane: gradient_descent(scaled(lane.alpha), lane.eta),
        read=lambda lane: [loss(), path, lambda params, batch: {"scale": lane.alpha}],
        steps=9,
        record_at=every(3, 9),
    )  # fmt: skip
    assert list(record.axes) == list(axes)
    assert record.values["v"].shape == (4, 2, 2, 3, 4)
    for alpha, eta, seed in ((0.5, 0.05, 3), (0.5, 0.1, 1), (2.0, 0.05, 4)):
        options = {"train": [loss(), path], "steps": 9, "record_at": every(3, 9)}
        _, single = simulate(gradient_descent(scaled(alpha), eta), params_of(seed), batch_of(seed), **options)
        cell = record.at(alpha=alpha, eta=eta, seed=seed)
        for name in ("loss", "v"):
            np.testing.assert_allclose(cell.values[name], single.values[name], rtol=1e-9)
        np.testing.assert_array_equal(cell.values["scale"], alpha)
        np.testing.assert_allclose(cell.time, single.time, rtol=1e-12)


def test_a_cell_s_noise_is_that_of_its_stream(x64):
    """``stream`` numbers fold into every step's key: a run with such keys is the cell, its minibatches included."""

    def number(index):
        return 2 * index["seed"] + 1

    axes = {"eta": [0.05, 0.1], "beta": [0.5], "seed": [0, 1, 2]}
    record = noisy(axes, stream=number)
    inner, own = gradient_descent(L, 0.1, momentum=0.5, batch_size=3), number({"seed": 2})
    run = inner._replace(step=lambda key, state, data: inner.step(jax.random.fold_in(key, own), state, data))
    options = {"steps": 6, "record_at": [0, 2, 6], "key": jax.random.key(3)}
    _, single = simulate(run, params_of(2), batch_of(0), train=[loss()], **options)
    cell = record.at(eta=0.1, beta=0.5, seed=2)
    np.testing.assert_allclose(cell.values["loss"], single.values["loss"], rtol=1e-9)
    draws = record.values["draw"]
    np.testing.assert_array_equal(draws[:, 0], draws[:, 1])  # one number, one stream
    assert len(np.unique(draws)) == 9


@functools.cache
def few_cells():
    return noisy({"eta": [0.05, 0.1], "beta": [0.5], "seed": [0, 1]})


GROWN = {
    "another rate before": {"eta": [0.07, 0.05, 0.1]},
    "whole rates": {"eta": [0.05, 0.1, 1]},
    "another axis value and more seeds": {"beta": [0.0, 0.5, 0.9], "seed": [7, 0, 5, 1]},
    "more than FEW lanes": {"seed": [*range(5), 7], "eta": [0.05, 0.1, 0.2], "beta": [0.1 * i for i in range(6)]},
}


@pytest.mark.parametrize("grown", GROWN)
def test_more_values_of_any_axis_change_no_cell(x64, grown):
    """Start, minibatches and the readings' own draws depend on a cell's own values alone."""
    axes = {"eta": [0.05, 0.1], "beta": [0.5], "seed": [0, 1]}
    few, many = few_cells(), noisy(axes | GROWN[grown])
    for eta, seed in itertools.product([0.05, 0.1], [0, 1]):
        one, same = (record.at(eta=eta, beta=0.5, seed=seed) for record in (few, many))
        np.testing.assert_array_equal(same.values["draw"], one.values["draw"])
        np.testing.assert_allclose(same.values["loss"], one.values["loss"], rtol=1e-9)
    assert len(np.unique(many.values["draw"])) == many.values["draw"].size  # all streams differ


def test_the_order_of_axes_changes_no_cell(x64):
    record, turned = few_cells(), noisy({"seed": [0, 1], "beta": [0.5], "eta": [0.05, 0.1]})
    for name, value in record.values.items():
        np.testing.assert_allclose(np.moveaxis(turned.values[name], (1, 2, 3), (3, 2, 1)), value, rtol=1e-9)


def by_shape(axes, **options):
    return study(
        axes,
        draw=lambda lane: (batch_of(lane.seed, lane.samples), params_of(lane.seed, lane.width)),
        make=lambda lane: gradient_descent(L, lane.eta),
        read=[loss(), path],
        steps=3,
        **options,
    )


def test_axes_that_change_a_shape_are_looped_and_padded(x64):
    """Width pads a reading with NaN, samples do not; both stand on the record like any axis."""
    axes = {"width": [2, 5], "eta": [0.05, 0.1], "samples": [4, 9], "seed": [0, 1]}
    record = by_shape(axes)
    assert record.values["v"].shape == (2, 2, 2, 2, 2, 5)
    assert list(record.lengths) == ["v"]
    np.testing.assert_array_equal(record.lengths["v"][:, 0, 0, 0], axes["width"])
    for width, eta, samples, seed in ((2, 0.05, 9, 1), (5, 0.1, 4, 0)):
        run, data = gradient_descent(L, eta), batch_of(seed, samples)
        _, single = simulate(run, params_of(seed, width), data, train=[loss(), path], steps=3)
        cell = record.at(width=width, eta=eta, samples=samples, seed=seed)
        np.testing.assert_allclose(cell.values["loss"], single.values["loss"], rtol=1e-9)
        assert cell.lengths["v"] == width
        np.testing.assert_allclose(cell.values["v"][:, :width], single.values["v"], rtol=1e-9)
        assert np.all(np.isnan(cell.values["v"][:, width:]))


def test_words_are_looped(x64):
    """Words and pairs reach ``make`` and ``read`` as they are."""
    losses, shifts = {"whole": mse, "half": half_mse}, [(0.0, 1.0), (2.0, 3.0)]
    record = study(
        {"loss_name": list(losses), "seed": [0, 1], "shift": shifts},
        draw=lambda lane: params_of(lane.seed),
        make=lambda lane: gradient_descent(Objective(network, losses[lane.loss_name]), 0.1),
        read=lambda lane: [loss(), lambda params, batch: {lane.loss_name: jnp.float32(sum(lane.shift))}],
        steps=2,
        data=batch_of(0),
    )
    for seed, shift in itertools.product([0, 1], shifts):
        whole, half = (record.at(loss_name=name, seed=seed, shift=shift).values for name in losses)
        np.testing.assert_allclose(whole["loss"][0], 2 * half["loss"][0], rtol=1e-12)
        np.testing.assert_array_equal(whole["whole"], sum(shift))
        assert np.all(np.isnan(whole["half"]))  # that cell reads no such thing
        assert np.all(np.isnan(half["whole"]))


def test_an_axis_that_python_needs_is_named_in_loop(x64):
    def deep(depth, power):
        def apply(params, x):
            for _ in range(depth):
                x = jnp.tanh(x @ params["w"])
            return power * x

        return Objective(apply, half_mse)

    def run(loop):
        return study(
            {"depth": [1, 3], "power": [1.0, 2.0]},
            draw=lambda lane: (Batch(jnp.eye(3), jnp.eye(3)), {"w": jnp.eye(3)}),
            make=lambda lane: gradient_descent(deep(lane.depth, lane.power), 0.1),
            read=[loss()],
            steps=0,
            loop=loop,
        )

    record = run(("depth",))
    for i, depth in enumerate([1, 3]):
        expected = deep(depth, 2.0)({"w": jnp.eye(3)}, Batch(jnp.eye(3), jnp.eye(3)))
        np.testing.assert_allclose(record.values["loss"][0, i, 1], expected, rtol=1e-12)
    with pytest.raises(
        TypeError, match=r"study: got make or read needing in Python .* of depth, power; allowed: loop=\("
    ):
        run(())


def test_steps_may_differ_by_lane(x64):
    """``steps`` and ``record_at`` of the lane: its axis is looped; where another cell has a step, its own is NaN."""
    axes = {"steps_of": [2, 6], "seed": [0, 1]}
    record = study(
        axes,
        draw=lambda lane: params_of(lane.seed),
        make=lambda lane: gradient_descent(L, 0.1),
        read=[loss()],
        steps=lambda lane: lane.steps_of,
        record_at=lambda lane: [0, lane.steps_of // 2, lane.steps_of],
        data=batch_of(0),
    )
    assert record.step.tolist() == [0, 1, 2, 3, 6]
    np.testing.assert_array_equal(record.lengths["steps"], [[2, 2], [6, 6]])
    options = {"train": [loss()], "steps": 6, "record_at": record.step}
    _, single = simulate(gradient_descent(L, 0.1), params_of(1), batch_of(0), **options)
    short, long = (record.at(steps_of=steps, seed=1).values["loss"] for steps in (2, 6))
    expected = np.asarray(single.values["loss"])
    np.testing.assert_allclose(short[:3], expected[:3], rtol=1e-9)
    assert np.all(np.isnan(short[3:]))
    np.testing.assert_allclose(long[[0, 3, 4]], expected[[0, 3, 4]], rtol=1e-9)
    assert np.all(np.isnan(long[1:3]))


def test_draw_is_called_once_a_distinct_combination():
    called = []

    def draw(lane):
        called.append((lane.seed, "wide" if lane["samples"] == 6 else "narrow"))
        return batch_of(lane.seed, lane.samples), params_of(lane.seed)

    axes = {"eta": [0.05, 0.1, 0.2], "samples": [4, 6], "seed": [0, 1], "beta": [0.0, 0.9]}
    study(axes, draw, lambda lane: gradient_descent(L, lane.eta, momentum=lane.beta), [loss()], steps=1)
    assert sorted(called) == [(0, "narrow"), (0, "wide"), (1, "narrow"), (1, "wide")]
    called.clear()

    def two_kinds(lane):  # looks at the width only where the task needs it
        called.append(lane.task)
        return params_of(lane.seed) if lane.task == 0 else params_of(lane.seed + round(10 * lane.eta))

    record = study(
        {"task": [0, 1], "eta": [0.1, 0.2, 0.3], "seed": [0, 1]},
        draw=two_kinds,
        make=None,
        read=[path],
        steps=0,
        data=batch_of(0),
    )
    assert (called.count(0), called.count(1)) == (2, 6)
    np.testing.assert_array_equal(record.at(task=1, eta=0.3, seed=1).values["v"][0], path(params_of(4), None)["v"])


def test_small_memory_cuts_pieces_of_one_program(x64, caplog):
    """The same readings from one lane at a time; compiled once for each shape and size of a piece."""
    axes = {"width": [2, 4], "eta": [0.05, 0.1], "seed": range(3)}

    def counted(**options):
        caplog.clear()
        with jax.log_compiles():
            record = by_shape(axes | {"samples": [4]}, **options)
        compiled = [r for r in caplog.records if "Compiling jit(_advance)" in r.getMessage()]
        finished = [
            r for r in caplog.records if "Finished XLA compilation" in r.getMessage() and "_advance" in r.getMessage()
        ]
        return record, len(compiled), len(finished)

    whole, *at_once = counted()
    single, *one_by_one = counted(memory=1.0)
    assert at_once[0] == one_by_one[0] == 2  # two widths
    assert at_once[1] == one_by_one[1] == 2
    for name, value in whole.values.items():
        np.testing.assert_allclose(single.values[name], value, rtol=1e-9)
    pieces = noisy({"eta": [0.05, 0.1], "beta": [0.5], "seed": [0, 1]}, memory=1.0)
    np.testing.assert_array_equal(pieces.values["draw"], few_cells().values["draw"])
    np.testing.assert_allclose(pieces.values["loss"], few_cells().values["loss"], rtol=1e-9)


def test_pieces_hold_what_the_memory_lets_them():
    """All of one size, which times the estimated bytes of a lane stays within ``memory``; MOST lanes at most."""

    def plan(lanes, memory):
        draw, make = lambda lane: params_of(0), lambda lane: gradient_descent(L, 0.1, batch_size=3)
        return planned({"seed": range(lanes)}, draw, make, [loss()], steps=1, data=batch_of(0), memory=memory)

    (whole,) = plan(12, None).pieces()
    assert whole.size == 12
    one = whole._replace(cells=whole.cells[:1], size=1)
    needed = lane_bytes(whole.group, *one.start(), whole.plan.key)
    for room, size in ((1.0, 1), (5.5 * needed, 4), (12 * needed, 12), (1e12, 12)):
        pieces = plan(12, room).pieces()
        assert {piece.size for piece in pieces} == {size}
        np.testing.assert_array_equal(np.concatenate([piece.cells for piece in pieces]), np.arange(12))
    pieces = plan(2 * MOST + 1, 1e12).pieces()
    assert [piece.size for piece in pieces] == [-(-(2 * MOST + 1) // 3)] * 3


def test_a_lane_that_stops_is_frozen_and_harms_no_other(x64):
    """``stop`` of the lane: its later readings are NaN; every cell is the study of that cell alone."""

    def run(axes):
        return study(
            axes,
            draw=lambda lane: params_of(lane.seed),
            make=lambda lane: gradient_descent(L, lane.eta),
            read=[loss()],
            steps=40,
            record_at=every(5, 40),
            stop=lambda lane: lambda state, data: state.loss < lane.enough,
            data=batch_of(0),
        )

    axes = {"eta": [0.05, 0.3], "enough": [0.0, 0.2], "seed": [0, 1]}
    record = run(axes)
    assert np.all(np.isfinite(record.at(enough=0.0).values["loss"]))
    stopped = np.isnan(record.at(enough=0.2).values["loss"])
    assert stopped[-1].any()
    assert np.all(np.diff(stopped.astype(int), axis=0) >= 0)  # for good
    for eta, enough, seed in ((0.3, 0.2, 0), (0.3, 0.2, 1), (0.05, 0.2, 1)):
        alone = run({"eta": [eta], "enough": [enough], "seed": [seed]}).values["loss"][:, 0, 0, 0]
        np.testing.assert_allclose(record.at(eta=eta, enough=enough, seed=seed).values["loss"], alone, rtol=1e-9)


def test_draws_hand_values_to_make_read_and_stop(x64):
    """A teacher, a start and a rate found from the start, as ``lane.name``; nothing else of ``draw`` is read."""

    def draw(lane):
        params, data = params_of(lane.seed), batch_of(lane.seed)
        top = np.linalg.eigvalsh(np.asarray(data.x.T @ data.x / 8))[-1]
        return Drawn(params, data, {"start": params, "rate": 0.1 / top, "goal": {"v": params["v"][:, 0] + 1.0}})

    record = study(
        {"seed": [0, 1, 2], "factor": [0.5, 1.0]},
        draw,
        make=lambda lane: gradient_descent(L, lane.factor * lane.rate),
        read=lambda lane: [
            movement(),
            lambda params, batch: {
                "moved": optax.tree.norm(jax.tree.map(jnp.subtract, params, lane.start)) / optax.tree.norm(lane.start),
                "apart": jnp.max(jnp.abs(params["v"][:, 0] - lane.goal["v"])),
                "rate": lane.rate,
            },
        ],
        steps=5,
        stop=lambda lane: lambda state, data: state.step > 100 * lane.rate,
    )
    np.testing.assert_allclose(record.values["moved"][1], record.values["weight_change"][1], rtol=1e-9)
    np.testing.assert_allclose(record.values["apart"][0], 1.0, rtol=1e-9)
    np.testing.assert_allclose(record.time[1], 5 * record.values["rate"][0] * np.array([0.5, 1.0]), rtol=1e-6)


def test_seldom_is_a_real_branch_under_a_study():
    """Three lanes, seven readings, every third: the costly function is evaluated nine times, not twenty-one."""
    evaluated = []

    def costly(params, batch):
        jax.debug.callback(evaluated.append, params["v"][0, 0])
        return {"costly": params["v"][0, 0]}

    record = study(
        {"seed": [0, 1, 2]},
        draw=lambda lane: params_of(lane.seed),
        make=lambda lane: gradient_descent(L, 0.1),
        read=[loss(), seldom(costly, 3)],
        steps=12,
        record_at=every(2, 12),
        data=batch_of(0),
    )
    jax.effects_barrier()
    assert len(evaluated) == 9
    finite = np.isfinite(record.values["costly"])
    assert finite.tolist() == [[t % 3 == 0] * 3 for t in range(7)]
    assert np.all(np.isfinite(record.values["loss"]))


def test_seldom_reads_what_a_reading_at_each_step_reads(x64):
    """Also an observable with memory, which between is left as it was."""
    options = dict(steps=12, record_at=every(2, 12), data=batch_of(0))
    axes, draw = {"seed": [0, 1]}, lambda lane: params_of(lane.seed)
    made = lambda lane: gradient_descent(L, 0.1)  # noqa: E731
    exact = {"num_matvecs": 16, "certified_matvecs": 16}
    dense = study(axes, draw, made, [hessian_eigenvalues(1)], **options).values["hessian_eigenvalues"]
    few = study(axes, draw, made, [seldom(sharpness(**exact), 3), loss()], **options).values["sharpness"]
    np.testing.assert_allclose(few[::3], dense[::3, :, 0], rtol=1e-5)  # the relative residual asked of the pairs: 1e-3
    assert np.all(np.isnan(few[[1, 2, 4, 5]]))


def test_what_stands_still_is_read_once(x64):
    """``make=None, steps=0``: draws alone."""
    axes = {"width": [3, 5], "seed": [0, 1]}
    record = study(axes, lambda lane: (batch_of(0), params_of(lane.seed, lane.width)), None, [path], steps=0)
    assert record.step.tolist() == [0]
    for width, seed in itertools.product(*axes.values()):
        found = record.at(width=width, seed=seed).values["v"][0, :width]
        np.testing.assert_array_equal(found, path(params_of(seed, width), None)["v"])


def test_a_study_without_axes_is_a_run(x64):
    data = Data(batch_of(0), batch_of(1))
    options = {"train": [loss(), path], "test": [loss()], "steps": 4, "record_at": [0, 1, 4]}
    _, single = simulate(gradient_descent(L, 0.1), params_of(0), data, **options)
    options["read"] = options.pop("train")
    record = study({}, lambda lane: (data, params_of(0)), lambda lane: gradient_descent(L, 0.1), **options)
    assert record.axes == {}
    assert set(record.values) == {"loss", "v", "test_loss"}
    for name, value in single.values.items():
        assert record.values[name].shape == value.shape
        np.testing.assert_allclose(record.values[name], value, rtol=1e-9)
    np.testing.assert_allclose(record.time, single.time, rtol=1e-9)


def test_time_has_the_axes_where_the_time_of_a_step_differs():
    axes = {"eta": [0.1, 0.25], "seed": [0, 1]}
    draw, options = lambda lane: params_of(lane.seed), {"steps": 4, "data": batch_of(0)}
    record = study(axes, draw, lambda lane: gradient_descent(L, lane.eta), **options)
    np.testing.assert_allclose(record.time, np.array([[[0, 0], [0, 0]], [[0.4, 0.4], [1.0, 1.0]]]), rtol=1e-6)
    shared = study(axes, draw, lambda lane: gradient_descent(L, 0.5), **options)
    np.testing.assert_array_equal(shared.time, [0, 2])
    schedule = optax.linear_schedule(0.1, 0.0, 10)
    steps = study(axes, draw, lambda lane: descent(L, optax.sgd(schedule), dt=schedule), **options)
    np.testing.assert_array_equal(steps.time, [0, 4])


def test_values_of_jax_are_numbers():
    """An axis from ``jnp.linspace`` is traced, as one from NumPy or of floats: one program."""
    made = []

    def make(lane):
        made.append(lane.eta)
        return gradient_descent(L, lane.eta)

    for values in (jnp.linspace(0.1, 0.3, 3), np.linspace(0.1, 0.3, 3, dtype=np.float32), [jnp.float32(0.1), 0.2, 0.3]):
        record = study({"eta": values}, lambda lane: params_of(0), make, [loss()], steps=2, data=batch_of(0))
        assert record.at(eta=0.1).values["loss"].shape == (2,)
    assert all(isinstance(eta, jax.core.Tracer) for eta in made)


def test_order_parameters_have_no_objective(x64):
    """An ``ode`` of traced settings: exponential decay at each rate."""
    record = study(
        {"rate": [0.5, 1.0], "start": [1.0, 3.0]},
        draw=lambda lane: Drawn(jnp.array(lane.start)),
        make=lambda lane: ode(lambda x, data: -lane.rate * x, 0.01),
        read=[lambda x, data: {"x": x}],
        steps=100,
    )
    expected = np.array([1.0, 3.0]) * np.exp(-np.array([[0.5], [1.0]]))
    np.testing.assert_allclose(record.values["x"][1], expected, rtol=1e-9)


FOUR = """
import jax, jax.numpy as jnp, numpy as np, sys
sys.path.insert(0, "tests")
from dynamics.evolve import Drawn, gradient_descent, study
from dynamics.losses import half_mse
from dynamics.mesh import split_lanes
from dynamics.observe import loss, sharpness
from dynamics.types import Batch, Objective

jax.config.update("jax_enable_x64", True)
assert jax.device_count() == 4
L = Objective(lambda p, x: jnp.tanh(x @ p) @ jnp.ones((4, 1)), half_mse)
def draw(lane):
    key = jax.random.key(lane.seed)
    x = jax.random.normal(key, (8, 3))
    return Drawn(jax.random.normal(key, (3, 4)), Batch(x, x[:, :1]), {"start": jax.random.normal(key, (3, 4))})
def run(**options):
    return study(
        {"eta": [.05, .1, .2], "seed": range(3)}, draw,
        lambda lane: gradient_descent(L, lane.eta, batch_size=4),
        lambda lane: [loss(), sharpness(), lambda p, b: {"moved": jnp.sum((p - lane.start) ** 2)}],
        steps=5, **options)
four, pieces = run(), run(memory=1.)
assert len(split_lanes(jnp.zeros((12, 2))).sharding.device_set) == 4
for one in (four, pieces):
    for name, value in one.values.items():
        assert value.shape[:3] == (2, 3, 3)
found = {name: np.asarray(value) for name, value in four.values.items()}
real = jax.local_device_count, jax.local_devices
jax.local_device_count, jax.local_devices = lambda: 1, lambda: real[1]()[:1]
one = run()
for name, value in found.items():
    np.testing.assert_allclose(value, one.values[name], rtol=1e-9, err_msg=name)
    np.testing.assert_allclose(pieces.values[name], one.values[name], rtol=1e-9, err_msg=name)
print("equal")
"""


ALONE = """
import jax, jax.numpy as jnp, numpy as np
from dynamics.evolve import gradient_descent, study
from dynamics.evolve.simulate import advance, prepare
from dynamics.evolve.study import planned
from dynamics.losses import half_mse
from dynamics.observe import loss
from dynamics.types import Batch, Objective

jax.config.update("jax_enable_x64", True)
L = Objective(lambda p, x: x @ p, half_mse)
def spectrum(p, b):
    return {"spectrum": jnp.linalg.eigvalsh(p.T @ p + jnp.eye(3))}
asked = dict(
    axes={"eta": [.1, .2, .4, .8, 1.6]}, draw=lambda lane: jnp.eye(3), make=lambda lane: gradient_descent(L, lane.eta),
    read=[loss(), spectrum], steps=9, record_at=range(10), data=Batch(jnp.eye(3), jnp.zeros((3, 3))),
    stop=lambda lane: lambda state, data: jnp.sum(state.params**2) < .5)
piece, = planned(**asked).pieces()
arguments, _ = piece.call()
call = prepare(**{name: value for name, value in arguments.items() if name != "label"})
assert call.split.mesh.size == 2 and not call.split.data
compiled = jax.jit(lambda carry: advance(call, carry, call.targets)).lower(call.start()).compile().as_text()
assert "eigh" in compiled or "syevd" in compiled, compiled
for word in ("all-reduce", "all-gather", "all-to-all", "collective-permute"):
    assert word not in compiled, word
two = study(**asked).values
jax.local_device_count, devices = lambda: 1, jax.local_devices
jax.local_devices = lambda: devices()[:1]
one = study(**asked).values
assert np.isnan(one["loss"]).any() and not np.isnan(one["loss"]).all()
for name in one:
    np.testing.assert_allclose(two[name], one[name], rtol=1e-12, err_msg=name)
print("equal")
"""


def test_a_drawn_python_number_takes_the_precision_of_what_it_meets():
    """As in a single run: 0.1 leaves bfloat16 weights in bfloat16."""
    batch = Batch(jnp.ones((2, 3), jnp.bfloat16), jnp.ones((2, 1), jnp.bfloat16))
    record = study(
        {"seed": [0, 1]},
        draw=lambda lane: Drawn(jnp.full((3, 1), lane.seed, jnp.bfloat16), batch, {"eta": 0.1}),
        make=lambda lane: gradient_descent(Objective(lambda w, x: x @ w, half_mse), lane.eta),
        read=lambda lane: [lambda w, batch: {"moves": lane.eta * w}],
        steps=2,
    )
    assert record.values["moves"].dtype == jnp.bfloat16


def test_no_device_waits_for_another():
    """Lanes that stop apart, with factorisations in the loop: each device moves its own, and nothing is exchanged."""
    run_on_devices(2, ALONE)


@pytest.mark.slow
def test_four_devices_give_what_one_gives():
    """Nine lanes on four devices, filled up to twelve; and in pieces of one lane."""
    run_on_devices(4, FOUR)


DRAW = lambda lane: params_of(0)  # noqa: E731
MAKE = lambda lane: gradient_descent(L, 0.1)  # noqa: E731


def called(axes=None, draw=DRAW, make=MAKE, read=(), **options):
    return study(
        {"seed": [0, 1]} if axes is None else axes, draw, make, read, **{"steps": 1, "data": batch_of(0)} | options
    )


WRONG = {
    "axes a list": (lambda: called(["seed"]), r"axes: got list; allowed: a dictionary \{name: values\}"),
    "reserved name": (lambda: called({"step": [1]}), "axes: got the name 'step'; allowed: an identifier"),
    "no identifier": (lambda: called({"learning rate": [1]}), "axes: got the name 'learning rate'; allowed: an"),
    "a name of mappings": (lambda: called({"values": [1]}), "axes: got the name 'values'; allowed: an id"),
    "no values": (lambda: called({"seed": []}), "axes: got no values for 'seed'; allowed: one or more"),
    "values a word": (lambda: called({"kind": "mse"}), "axes: got 'mse' for 'kind'; allowed: a sequence of values"),
    "values a number": (lambda: called({"eta": 0.1}), "axes: got 0.1 for 'eta'; allowed: a sequence of values"),
    "read a plain function": (
        lambda: called(read=lambda params, batch: {}),
        r"read: got a function of \(params, batch\); allowed: lane -> observables, or a list",
    ),
    "loop of no axis": (lambda: called(loop=("depth",)), "loop: got 'depth'; allowed: seed"),
    "draw gives no pair": (lambda: called(data=None), r"draw: got dict from it; allowed: \(data, params\), a Drawn"),
    "data twice": (
        lambda: called(draw=lambda lane: Drawn(params_of(0), batch_of(0))),
        "draw: got data from it beside data=; allowed: one of the two",
    ),
    "a value named as an axis": (
        lambda: called(draw=lambda lane: Drawn(params_of(0), None, {"seed": 1.0})),
        "draw: got the value 'seed', the name of an axis; allowed: any other",
    ),
    "a reading named as an axis": (
        lambda: called(read=[lambda params, batch: {"seed": jnp.zeros(())}]),
        "reading: got the name 'seed', that of an axis; allowed: any other",
    ),
    "a reading named as a coordinate": (
        lambda: called(read=[lambda params, batch: {"time": jnp.zeros(())}]),
        "reading: got the name 'time'; allowed: any but step, time, cell",
    ),
    "a value that is not there": (
        lambda: called(make=lambda lane: gradient_descent(L, lane.eta)),
        "lane: got 'eta'; allowed: seed",
    ),
    "a factory": (lambda: called(read=[loss]), r"got the factory loss; allowed: what it makes, observe.loss\("),
    "make gives no dynamics": (lambda: called(make=lambda lane: L), "make: got Objective from it; allowed: a Dynamics"),
    "steps": (lambda: called(steps=-1), "steps: got -1; allowed: an integer >= 0"),
    "no test set": (lambda: called(test=[loss()]), r"test: got Batch; allowed: Data\(train, test\)"),
    "readings of two ranks": (
        lambda: called({"kind": ["a", "bb"]}, read=lambda lane: [lambda p, b: {"x": jnp.zeros((2,) * len(lane.kind))}]),
        r"reading: got 'x' with .* in different cells; allowed: one rank",
    ),
}  # fmt: skip


@pytest.mark.usefixtures("as_users_meet_it")
@pytest.mark.parametrize("case", WRONG)
def test_the_message_says_what_to_change(case):
    wrong, words = WRONG[case]
    with pytest.raises((TypeError, ValueError, AttributeError), match=words) as caught:
        wrong()
    assert "\n" not in str(caught.value)


def test_lane_state_is_one_pytree_with_a_leading_axis():
    """What a durable driver stores: every leaf leads with the lanes."""
    seen = []

    def keep(view):
        seen.append(view.dynamics)
        return {"v": view.params["v"][0, 0]}

    called(read=[Observable.of_view(keep)])
    assert all(isinstance(dynamics, Dynamics) for dynamics in seen)
    state = LaneState(jnp.arange(2), {"eta": jnp.ones(2)}, {"v": jnp.zeros((2, 3))})
    assert all(leaf.shape[0] == 2 for leaf in jax.tree.leaves(state))
