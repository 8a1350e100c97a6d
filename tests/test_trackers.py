"""Trackers: every finite reading arrives, a broken one never stops a run, and none waits for a network."""

import os
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest

from dynamics.evolve import gradient_descent, simulate, study
from dynamics.losses import half_mse
from dynamics.runs import open_run
from dynamics.runs.trackers import MAKERS, Tracker, log_record, tensorboard, tracked
from dynamics.types import Batch, Objective, Record

L = Objective(lambda params, x: x * params, half_mse)
BATCH = Batch(jnp.ones((2, 1)), jnp.zeros((2, 1)))


def listener():
    seen = []
    return seen, Tracker(lambda label, step, values: seen.append((label, step, dict(values))), lambda: None)


def run(loop, steps=3):
    read = lambda params, batch: {"loss": params**2, "pair": jnp.stack([params, -params])}  # noqa: E731
    asked = dict(train=read, steps=steps, record_at=range(steps + 1), label="a")
    return loop(gradient_descent(L, 0.1), jnp.array(1.0), BATCH, **asked)


def lanes(loop, **more):
    return loop(
        {"eta": [0.1, 0.2]},
        draw=lambda lane: jnp.array(1.0),
        make=lambda lane: gradient_descent(L, lane.eta),
        read=[lambda params, batch: {"w": params}],
        data=BATCH,
        steps=2,
        label="b",
        **more,
    )


def test_every_finite_entry_arrives():
    seen, tracker = listener()
    values = {"loss": np.array([1.0, np.nan]), "lanes": np.array([[1.0, 2.0], [3.0, np.inf]]), "big": np.ones((2, 99))}
    values["turned"] = np.array([1j, 1.0])
    log_record(tracker, Record(np.array([0, 5]), np.array([0.0, 0.5]), values), "a")
    assert seen == [("a", 0, {"loss": 1.0, "lanes/0": 1.0, "lanes/1": 2.0}), ("a", 5, {"lanes/0": 3.0})]


def test_tracking_changes_no_bit_of_a_run():
    seen, tracker = listener()
    state, record = run(tracked(simulate, tracker))
    plain_state, plain = run(simulate)
    np.testing.assert_array_equal(record.values["loss"], plain.values["loss"])
    np.testing.assert_array_equal(state.params, plain_state.params)
    assert [step for _, step, _ in seen] == [0, 1, 2, 3]
    assert seen[2][2]["loss"] == pytest.approx(float(plain.values["loss"][2]))


def test_a_study_is_tracked_by_lane_pure_or_durable(tmp_path):
    """At its end by ``tracked``, as it goes by the run, under the names of its pieces."""
    w = lanes(study).values["w"]
    for loop in (study, None):
        seen, tracker = listener()
        with open_run(tmp_path / "run", {}, tracker=None if loop else tracker) as run:
            lanes(tracked(study, tracker) if loop else run.study)
        assert seen == [("b", step, {"w/eta=0.1": w[at, 0], "w/eta=0.2": w[at, 1]}) for at, step in enumerate((0, 2))]
    seen, tracker = listener()
    with open_run(tmp_path / "shared", {}, tracker=tracker, workers=2) as run:
        lanes(run.study)
    assert seen == [
        (f"b {i + 1} of 2", step, {f"w/eta=0.{i + 1}": w[at, i]}) for i in range(2) for at, step in enumerate((0, 2))
    ]


def test_of_many_lanes_the_mean_arrives():
    """Over the finite ones; of few, each under its own name; what fills a piece up is no lane."""
    seen, tracker = listener()
    values = {"loss": np.arange(130.0).reshape(1, 130), "pair": np.ones((1, 130, 2))}
    values["loss"][0, :2] = np.nan
    log_record(tracker, Record(np.array([3]), None, values), "a", cells=[f"seed={i}" for i in range(129)])
    assert seen == [("a", 3, {"loss/mean": np.arange(2.0, 129).mean(), "pair/mean/0": 1.0, "pair/mean/1": 1.0})]
    log_record(tracker, Record(np.array([3]), None, {"w": np.ones((1, 4))}), "a", cells=["seed=0", "seed=1"])
    assert seen[1:] == [("a", 3, {"w/seed=0": 1.0, "w/seed=1": 1.0})]


@pytest.mark.parametrize("durable", [False, True])
def test_a_failing_tracker_is_dropped_with_one_warning(tmp_path, durable, capsys):
    """Also in an open run, whose bits are those without one."""
    calls = []

    def log(*arguments):
        calls.append(arguments)
        raise OSError("disk full")

    if durable:
        with open_run(tmp_path / "run", {}, tracker=Tracker(log, lambda: None)) as held:
            np.testing.assert_array_equal(lanes(held.study).values["w"], lanes(study).values["w"])
            run(held.simulate)
        assert capsys.readouterr().err == "warning: tracker dropped: OSError: disk full\n"
    else:
        loop = tracked(simulate, Tracker(log, lambda: None))
        with pytest.warns(UserWarning, match="tracker dropped: OSError: disk full"):
            run(loop)
        run(loop)
    assert len(calls) == 1


def test_tensorboard_files_hold_the_readings(tmp_path):
    pytest.importorskip("tensorboardX", reason="needs the extra `trackers`")
    from tensorboardX.proto.event_pb2 import Event

    tracker = tensorboard(tmp_path)
    _, record = run(tracked(simulate, tracker))
    tracker.close()
    raw = next(tmp_path.glob("events.*")).read_bytes()
    found, position = {}, 0
    while position < len(raw):
        size = int.from_bytes(raw[position : position + 8], "little")
        event = Event.FromString(raw[position + 12 : position + 12 + size])
        position += 16 + size
        for value in event.summary.value:
            found[value.tag, event.step] = value.simple_value
    np.testing.assert_allclose([found["a/loss", step] for step in range(4)], record.values["loss"])
    assert ("a/pair/1", 0) in found


def test_wandb_writes_offline_and_never_waits(tmp_path):
    pytest.importorskip("wandb", reason="needs the extra `trackers`")
    script = (
        "import sys, time; from dynamics.runs.trackers import wandb; tracker = wandb(sys.argv[1], name='n')\n"
        "for label in 'ab':\n    for step in range(3): tracker.log(label, step, {'loss': 1.0 / (1 + step)})\n"
        "tracker.close()"
    )
    # every way out leads to a port where nobody listens
    environment = {"HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9", "JAX_PLATFORMS": "cpu"}
    environment |= {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, timeout=60, env=environment)
    assert time.monotonic() - start < 45.0
    stored = list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(stored) == 1
    assert b"b/loss" in stored[0].read_bytes()


@pytest.mark.parametrize("name", [name for name, (needs, _) in MAKERS.items() if needs not in sys.stdlib_module_names])
def test_a_missing_tracker_names_the_extra(name, tmp_path, monkeypatch):
    needs, make = MAKERS[name]
    monkeypatch.setitem(sys.modules, needs, None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[trackers\]'"):
        make(tmp_path)


def test_the_command_line_tracks_into_the_runs_folder(tmp_path, monkeypatch, capsys):
    """Lanes by their settings; a tracker that is not installed is refused before any file is made."""
    import pathlib

    from dynamics.runs import cli, trackers

    toy, told = str(pathlib.Path(__file__).parent / "programs" / "toy.py"), listener()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(trackers.MAKERS, "tensorboard", ("json", lambda folder: told[1]))
    monkeypatch.setitem(trackers.MAKERS, "wandb", ("no_such_package", None))
    flags = ["--quiet", "--eta", "0.1", "--seeds", "2", "--name", "a", "--track"]
    for kind, code in (("wandb", 2), ("tensorboard", 0)):
        with pytest.raises(SystemExit, match=str(code)):
            cli.main(toy, [*flags, kind])
        assert (tmp_path / "runs").exists() == (kind == "tensorboard")
    assert "pip install -e '.[trackers]'" in capsys.readouterr().err
    assert told[0][0][:2] == ("decay", 0)
    assert {"x/eta=0.1 seed=0", "x/eta=0.1 seed=1", "all/eta=0.1 seed=1/2"} <= told[0][0][2].keys()
