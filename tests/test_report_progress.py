"""A progress bar changes no bit of a run, and its time left counts no compiling."""

import io
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics import observe
from dynamics.evolve import gradient_descent, simulate, study
from dynamics.losses import half_mse
from dynamics.runs.durable.bar import step_bar
from dynamics.runs.durable.pacing import Pace
from dynamics.runs.progress import simulate_with_progress, study_with_progress
from dynamics.types import Batch, Objective


def apply(params, x):
    return jnp.tanh(x @ params["in"]) @ params["out"]


@pytest.mark.parametrize("record_at", [[], [0], list(range(0, 200, 3)), [0, 1, 199, 200]])
def test_same_bits_as_the_plain_loop(key, record_at):
    training = gradient_descent(Objective(apply, half_mse), 0.3, batch_size=3)
    batch = Batch(jax.random.normal(key, (6, 2)), jnp.ones((6, 1)))
    start = {"in": jax.random.normal(key, (2, 5)), "out": jnp.ones((5, 1))}
    asked = dict(train=[observe.loss(), observe.movement()], steps=200, record_at=record_at, key=key)
    asked["stop"] = lambda state, data: state.step >= 150
    ends = [loop(training, start, batch, **asked) for loop in (simulate, simulate_with_progress)]
    for plain, shown in zip(jax.tree.leaves(ends[0]), jax.tree.leaves(ends[1]), strict=True):
        np.testing.assert_array_equal(plain, shown)


def test_a_study_has_a_bar_and_the_same_bits(capsys):
    L = Objective(lambda w, x: x @ w, half_mse)
    asked = dict(
        axes={"eta": [0.1, 0.2]},
        draw=lambda lane: (Batch(jnp.eye(2), jnp.ones((2, 1))), jnp.zeros((2, 1))),
        make=lambda lane: gradient_descent(L, lane.eta),
        read=[observe.loss(), lambda params, batch: {"w": params}],
        steps=50,
        label="a",
    )
    plain, shown = study(**asked), study_with_progress(**asked)
    for name, value in plain.values.items():
        np.testing.assert_array_equal(value, shown.values[name])
    assert "a: 100%" in capsys.readouterr().err


def test_the_bar_shows_the_label_and_reaches_its_end(capsys):
    training = gradient_descent(Objective(lambda w, x: x @ w, half_mse), 0.1)
    batch = Batch(jnp.eye(2), jnp.ones((2, 1)))
    asked = dict(train=observe.loss(), steps=50, record_at=[50], label="descent")
    simulate_with_progress(training, jnp.zeros((2, 1)), batch, **asked)
    shown = capsys.readouterr().err
    assert "descent: 100%" in shown
    assert "50/50" in shown


def test_time_left_counts_no_compiling(monkeypatch):
    """Ten seconds of compiling, then steps of a second each: 90 s are left after ten of a hundred, not 190 s."""
    clock, text = [0.0], io.StringIO()
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    monkeypatch.setattr("tqdm.std.time", lambda: clock[0])
    with step_bar("descent", 101, file=text, mininterval=0.0, ncols=100) as tell:
        clock[0] += 10.0
        tell(1)
        for step in range(2, 12):
            clock[0] += 1.0
            tell(step)
            left = re.findall(r"<(\S+), +(\S+)step/s", text.getvalue())[-1]
            assert left == (f"{(101 - step) // 60:02d}:{(101 - step) % 60:02d}", "1.00")
    first, after = text.getvalue().split("\r")[1:3]
    assert "compiling" in first
    assert "1/101 [00:00<?, ?step/s, compiled in 10.0 s]" in after


def test_the_first_piece_is_a_single_step():
    """It compiles, and is the measure of nothing; the second has the usual size."""
    pace = Pace()
    ends = np.array([0, 100])
    assert pace.piece(0, ends, 2).targets.max() == 0
    assert pace.piece(0, ends[1:], 1).targets.max() == 1
    pace.learn(60.0)
    assert pace.piece(0, ends[1:], 1).targets.max() == 64


def test_a_bar_that_goes_on_starts_where_it_was(capsys):
    with step_bar("a", 100, 40) as tell:
        tell(41)
    shown = capsys.readouterr().err
    assert "40/100" in shown
    assert "41/100 [00:00<?" in shown
