"""Studies in pieces and sweeps: shared by workers, killed, stopped and resumed to the same bits; failures, devices."""

import contextlib
import functools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import types

import jax.numpy as jnp
import numpy as np
import pytest
from devices import run_on_devices

from dynamics.evolve import ode, simulate, study
from dynamics.runs import (
    Interrupted,
    LoadedRun,
    Unusable,
    load,
    open_run,
)
from dynamics.runs.command.experiment import execute
from dynamics.runs.command.folder import run_main
from dynamics.runs.durable import checkpoint, driver
from dynamics.runs.durable.errors import BadInput
from dynamics.runs.durable.journal import Journal
from dynamics.runs.durable.lock import Lock, holder
from dynamics.runs.report import outcome
from dynamics.runs.sweep import cells, specs
from dynamics.runs.sweep.module import module_named
from dynamics.runs.sweep.phase import chosen, final_values, phase_diagram
from dynamics.runs.sweep.worker import work
from dynamics.runs.trackers import Tracker
from dynamics.types import Observable, Record

TOY = pathlib.Path(__file__).parent / "programs" / "toy.py"
toy = module_named(str(TOY))
ABOUT = {"experiment": "toy", "module": str(TOY), "device": None, "command": ["toy"]}


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """Figures are drawn where they are tested."""
    monkeypatch.setattr(outcome, "draw", lambda module, result, run: None)


def program(sweep=(), module=toy, **settings):
    """What is run, and its settings: the toy, or a sweep of it."""
    return cells.program(module, toy.Config(**settings), specs.parse_sweep(toy.Config, tuple(sweep)))


def run(path, sweep=(), workers=1, tracker=None, module=toy, **settings):
    """The run at ``path`` by this process alone, in pieces for ``workers``; claims as JSON objects."""
    module, config = program(sweep, module, **settings)
    with open_run(path, config, workers=workers, tracker=tracker, **ABOUT) as held:
        return outcome.run_to_the_end(module, config, held)


def begun(path, sweep=(), size=None, **settings):
    """A run that has decided what its pieces are, and nothing else."""
    with open_run(path, program(sweep, **settings)[1], **ABOUT) as held:
        if size is not None:
            held.divide("decay", {"lanes": {"decay": size}, "devices": 1})
    return path


def assert_same(mine, theirs):
    assert mine.keys() == theirs.keys()
    for label, record in theirs.items():
        assert list(mine[label].axes) == list(record.axes)
        for field in ("values", "axes", "lengths"):
            for name, value in getattr(record, field).items():
                np.testing.assert_array_equal(getattr(mine[label], field)[name], value, err_msg=name)
        np.testing.assert_array_equal(mine[label].step, record.step)
        np.testing.assert_array_equal(mine[label].time, record.time)


def start_worker(path):
    command = [sys.executable, "-m", "dynamics.runs", "work", str(path)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def test_a_study_in_pieces_has_the_bits_of_the_pure_one(tmp_path):
    """Also its diverged lanes have the numbers of the study's cells, and none harms another."""
    settings = {"eta": (0.1, 9.5), "seeds": 6, "steps": 400}
    run(tmp_path / "run", workers=3, **settings)
    found = load(tmp_path / "run")
    assert_same(found.records, toy.run(toy.Config(**settings)).records)
    assert len(list((tmp_path / "run" / "pieces").glob("*/*/run.sqlite"))) == 3
    lost = found.diverged["decay"]
    assert (lost["lanes"], lost["of"], found.status) == ([6, 7, 8, 9, 10, 11], 12, "finished")
    x = found.records["decay"].values["x"]
    assert np.all(np.isfinite(x[:, 0]))
    assert set(lost["first_step"]) == {int(found.records["decay"].step[np.argmax(~np.isfinite(x[:, 1, 0]))])}


def looped(study, scale=1.0, eta=(0.1, 0.2)):
    """A shape by ``width``, words, and numbers, in an order that is not that of the alphabet."""
    return study(
        {"width": [2, 3], "start": ["one", "two"], "eta": eta},
        draw=lambda lane: jnp.full(lane.width, scale * (1.0 if lane.start == "one" else 2.0)),
        make=lambda lane: ode(lambda x, data: -x, lane.eta),
        read=[lambda x, data: {"all": x}],
        steps=lambda lane: 4 * lane.width,
        data=jnp.zeros(()),
        label="looped",
    )


@pytest.fixture(scope="module")
def looped_run(tmp_path_factory):
    path = tmp_path_factory.mktemp("looped") / "run"
    with open_run(path, {}) as held:
        return path, looped(held.study)


def test_looped_axes_keep_their_order_names_and_lengths(looped_run, monkeypatch):
    """In the run's record, which is then read back without a step."""
    path, record = looped_run
    monkeypatch.setattr(driver._Written, "drive", None)
    assert list(record.axes) == ["width", "start", "eta"]
    assert record.lengths["all"][:, 0, 0].tolist() == [2, 3]
    assert record.lengths["steps"][:, 0, 0].tolist() == [8, 12]
    assert_same({"looped": record}, {"looped": looped(study)})
    with open_run(path, {}) as held:
        assert_same({"looped": looped(held.study)}, {"looped": record})
    assert_same(load(path).records, {"looped": record})


def test_a_study_of_other_data_is_refused_in_words(looped_run, tmp_path):
    """Before its pieces are together, and after; also one of other values."""
    shutil.copytree(looped_run[0], tmp_path / "run")

    def go(**other):
        with open_run(tmp_path / "run", {}) as held:
            looped(held.study, **other)

    for changed, words in (({"scale": 2.0}, "start, key or data"), ({"eta": (0.1, 0.3)}, "axis or value on one")):
        with pytest.raises(Unusable, match=f"'looped' was begun with another {words}"):
            go(**changed)
    with contextlib.closing(Journal(tmp_path / "run" / "run.sqlite")) as journal:
        journal.truncate("looped", 0)
        journal.db.execute("DELETE FROM call")
    with pytest.raises(Unusable, match=r"'looped width=2 start=one' was begun with another start, key or data"):
        go(scale=2.0)


@pytest.mark.parametrize(
    ("sweep", "workers"), [((), 1), ((), 3), (("width=2,3",), 1)], ids=["one piece", "pieces", "sweep"]
)
def test_a_signal_in_the_middle_and_a_resumption_change_no_bit(tmp_path, capsys, sweep, workers):
    settings = {"seeds": 3, "steps": 2000}
    run(tmp_path / "toy" / "whole", sweep, workers, **settings)
    count = []

    def log(label, step, values):
        count.append(label)
        if len(count) == 6 * max(workers, 1 + len(sweep)):  # of 21 readings of a piece: in the first of two, or later
            os.kill(os.getpid(), signal.SIGTERM)

    path = tmp_path / "toy" / "stopped"
    with pytest.raises(Interrupted, match="saved"):
        run(path, sweep, workers, Tracker(log, lambda: None), **settings)
    assert load(path).status == "interrupted"
    capsys.readouterr()
    run_main(["list", str(tmp_path)])
    assert "toy/stopped  interrupted" in capsys.readouterr().out
    assert 0 < len(count) < 21 * max(workers, 1 + len(sweep))
    claims = run(path, sweep, workers, **settings)
    assert [claim["holds"] for claim in claims] == [True, True, None]
    assert_same(load(path).records, load(tmp_path / "toy" / "whole").records)


def test_a_signal_is_heeded_between_two_draws(tmp_path):
    """Where theory is drawn and no step taken, the draws are all of the work."""
    seen = []

    def draw(lane):
        seen.append(lane.seed)
        if len(seen) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"x": np.zeros(2)}

    read = Observable.of_view(lambda view: view.params)
    with pytest.raises(Interrupted, match="while lanes were drawn"), open_run(tmp_path / "a", {}) as one:
        one.study({"seed": range(50)}, draw, None, read, steps=0, data=(), label="theory")
    assert seen == [0, 1, 2]


def test_a_worker_takes_up_pieces_and_the_run_reads_them(tmp_path, monkeypatch):
    """What is there is not computed again, neither for a record nor for a record that was lost."""
    run(tmp_path / "alone", workers=2)
    path = begun(tmp_path / "run", size=5)
    assert work(path) == 0
    monkeypatch.setattr(driver._Written, "drive", None)
    for _ in range(2):
        run(path)
        assert_same(load(path).records, load(tmp_path / "alone").records)
        with contextlib.closing(Journal(path / "run.sqlite")) as journal:
            journal.truncate("decay", 0)
    victim = next((path / "pieces").glob("*/00001/checkpoints/*.ckpt"))
    victim.write_bytes(victim.read_bytes()[:-1])
    monkeypatch.undo()
    monkeypatch.setattr(outcome, "draw", lambda *given: None)
    run(path)
    assert "falling back to its start" in load(victim.parents[1]).events[-1][2]
    assert_same(load(path).records, load(tmp_path / "alone").records)


@pytest.mark.parametrize(
    "sweep",
    [pytest.param((), id="pieces"), pytest.param(("width=1,2,3",), id="sweep", marks=pytest.mark.slow)],
)
def test_a_killed_workers_part_is_done_once_by_the_other(tmp_path, sweep):
    """Two workers on three parts, one killed at work: the bits of a process alone."""
    settings = {"seeds": 3}
    path = begun(tmp_path / "run", sweep, size=2, **settings)
    run(begun(tmp_path / "alone", sweep, size=2, **settings), sweep, **settings)
    workers = [start_worker(path) for _ in range(2)]
    try:
        while not any((holder(lock) or "").startswith(f"PID {workers[0].pid} ") for lock in path.glob("*/**/lock")):
            assert workers[0].poll() is None, workers[0].stderr.read()
            time.sleep(0.01)
        workers[0].send_signal(signal.SIGKILL)
        assert workers[1].wait(timeout=240) == 0, workers[1].stderr.read()
    finally:
        for process in workers:
            process.kill()
            process.wait()
            process.stderr.close()
    assert len(list(path.glob("*/**/run.sqlite"))) == 3
    assert all(load(file.parent).status == "finished" for file in path.glob("*/**/run.sqlite"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver._Written, "drive", None)
        run(path, sweep, **settings)
    assert_same(load(path).records, load(tmp_path / "alone").records)


def test_workers_of_the_command_line_share_a_study(tmp_path, monkeypatch, capsys):
    """It is repeated in the same pieces, and needs their checkpoints no more once it is finished."""
    module, config = program(seeds=6)
    path = tmp_path / "toy" / "run"
    claims, _ = execute(module, config, path, dict(ABOUT), quiet=True, workers=2)
    assert [claim["holds"] for claim in claims] == [True, True, None]
    assert_same(load(path).records, toy.run(config).records)
    assert run_main(["repeat", str(path)]) == 0
    assert "decay: the same bits" in capsys.readouterr().out
    for name in ("run", "run.repeat"):
        assert len(list((tmp_path / "toy" / name / "pieces").glob("*/*"))) == 2
    assert run_main(["gc", str(tmp_path), "--delete"]) == 0
    assert not list(tmp_path.rglob("*.ckpt"))
    monkeypatch.setattr(driver._Written, "drive", None)
    run(path, seeds=6)
    assert_same(load(path).records, toy.run(config).records)


def test_a_worker_beside_no_run_leaves_at_once(tmp_path, capsys):
    """Also one that finds a run which is not under way, or which is over; it says what it found."""
    began = time.monotonic()
    assert work(begun(tmp_path / "idle")) == 0
    assert "is not under way; start or resume it, and workers beside it" in capsys.readouterr().err
    run(tmp_path / "over")
    assert work(tmp_path / "over") == 0
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "grid.json").write_text("{}")
    with open_run(tmp_path / "bare", {}):
        pass
    for name, words in (("none", "no run here"), ("old", "a sweep of dynamics 0.1"), ("bare", "which experiment")):
        with pytest.raises(Unusable, match=words):
            work(tmp_path / name)
    assert time.monotonic() - began < 60  # seconds alone, more beside other tests


def test_workers_through_submitit(tmp_path):
    pytest.importorskip("submitit", reason="the extra slurm is not installed")
    from dynamics.runs.sweep.cluster import submit

    path = begun(tmp_path / "run", size=5)
    jobs = submit(functools.partial(work, path), path / "jobs", 1, "local:timeout_min=2,cpus_per_task=1")
    assert [job.result() for job in jobs] == [0]
    assert len(list((path / "pieces").glob("*/*/run.sqlite"))) == 2
    with pytest.raises(BadInput, match="cluster: got 'pbs'"):
        submit(print, path / "jobs", 1, "pbs")


def test_four_devices_give_what_one_gives(tmp_path, capsys):
    """Seven lanes fill up to eight; the run goes on with one device, with a warning."""
    run_on_devices(
        4,
        f"""
        import pathlib
        from dynamics.runs import open_run
        from dynamics.runs.sweep.module import module_named
        toy = module_named({str(TOY)!r})
        with open_run(pathlib.Path({str(tmp_path)!r}) / "four", {{}}, workers=2) as held:
            toy.run(toy.Config(eta=(0.1, 9.9), seeds=7, steps=400), held.study)
        print("equal")
    """,
    )
    four = load(tmp_path / "four")
    one = toy.run(toy.Config(eta=(0.1, 9.9), seeds=7, steps=400)).records["decay"]
    assert (four.provenance["device_count"], four.diverged["decay"]["of"]) == (4, 14)
    assert four.diverged["decay"]["lanes"] == list(range(7, 14))
    np.testing.assert_allclose(four.records["decay"].values["all"], one.values["all"], rtol=1e-6)
    with contextlib.closing(Journal(tmp_path / "four" / "run.sqlite")) as journal:
        journal.truncate("decay", 0)
    shutil.rmtree(tmp_path / "four" / "pieces" / checkpoint.stem("decay") / "00001")
    with open_run(tmp_path / "four", {}) as held:
        again = toy.run(toy.Config(eta=(0.1, 9.9), seeds=7, steps=400), held.study).records["decay"]
    assert "device_count was 4 and is 1; " in capsys.readouterr().err
    np.testing.assert_allclose(again.values["all"], one.values["all"], rtol=1e-6)


SWEEP = ("width=2,3", "curvature=1,2")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A sweep over a shape and a number, of cells with two axes."""
    path = tmp_path_factory.mktemp("toy") / "swept"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outcome, "draw", lambda *given: None)
        run(path, SWEEP, eta=(0.01, 0.1, 1.0), seeds=2)
    return path


def test_every_cell_follows_its_closed_form(whole):
    """x_k = (1 - eta a)^k x_0 on the axes of the sweep and then those of the cells; padded where cells are smaller."""
    record = load(whole).records["decay"]
    assert {name: list(held) for name, held in record.axes.items()} == {
        "width": [2, 3], "curvature": [1.0, 2.0], "eta": [0.01, 0.1, 1.0], "seed": [0, 1],
    }  # fmt: skip
    expected = (1 - np.outer([1.0, 2.0], [0.01, 0.1, 1.0])) ** 20
    for at in range(4):
        found = record.values["x"][-1, at // 2, :, :, at % 2]
        np.testing.assert_allclose(found, expected, rtol=1e-4)  # 20 float32 steps
    assert np.all(np.isnan(record.values["all"][:, 0, ..., 2]))
    assert np.all(np.isfinite(record.values["all"][..., :2]))
    assert np.all(record.lengths["all"] == np.array([2, 3])[:, None, None, None])
    np.testing.assert_allclose(record.at(eta=0.1).time[-1], 2.0)
    one = load(whole / "cells" / "000003")
    assert (one.status, one.config["width"], one.config["curvature"]) == ("finished", 3, 2.0)
    np.testing.assert_array_equal(one.records["decay"].values["all"], record.values["all"][:, 1, 1])


def test_claims_are_counted_over_cells(whole):
    """And what they measured is a record over the sweep."""
    found = load(whole)
    assert [(claim.measured, claim.holds) for claim in found.claims[:3]] == [("4 of 4 cells", True)] * 3
    assert (found.claims[3].holds, found.claims[3].note) == (None, "in none of 4 cells")
    cell = load(whole / "cells" / "000002").claims[1]
    record = found.records[cells.CLAIMS]
    assert record.at(width=3, curvature=1).values[cell.name].tolist() == [cell.measured]


def test_a_cell_does_not_depend_on_its_neighbours(whole, tmp_path):
    """The same cell in another sweep: the same bits."""
    run(tmp_path / "narrow", ("curvature=2",), width=3, eta=(0.01, 0.1, 1.0), seeds=2)
    narrow, wide = (load(path).records["decay"] for path in (tmp_path / "narrow", whole))
    np.testing.assert_array_equal(narrow.at(curvature=2).values["all"], wide.at(width=3, curvature=2).values["all"])


def test_a_finished_sweep_is_not_computed_again_and_damage_is(whole, tmp_path, monkeypatch):
    path = tmp_path / "swept"
    shutil.copytree(whole, path)
    settings = {"eta": (0.01, 0.1, 1.0), "seeds": 2}
    monkeypatch.setattr(driver._Written, "drive", None)
    run(path, SWEEP, **settings)
    assert_same(load(path).records, load(whole).records)
    monkeypatch.undo()
    monkeypatch.setattr(outcome, "draw", lambda *given: None)
    victim = path / "cells" / "000001"
    shutil.rmtree(victim)
    run(path, SWEEP, **settings)
    assert_same(load(path).records, load(whole).records)
    (victim / "config.json").write_text("{}")
    with contextlib.closing(Journal(path / "run.sqlite")) as journal:
        journal.db.execute("UPDATE meta SET value = '{}' WHERE key = 'config'")
    (path / "config.json").write_text((path / "config.json").read_text().replace("2", "3", 1))
    with pytest.raises(Unusable, match="is damaged"):
        run(path, SWEEP, **settings)


def test_a_diverged_cell_is_said_by_the_sweep(tmp_path):
    run(tmp_path / "run", ("curvature=1,9.5",), eta=(0.1, 0.5), seeds=1, steps=400)
    found = load(tmp_path / "run")
    lost = found.diverged["decay"]
    assert (lost["lanes"], lost["of"], found.status) == ([3], 4, "finished")
    x = found.records["decay"].values["x"]
    assert lost["first_step"] == [int(found.records["decay"].step[np.argmax(~np.isfinite(x[:, 1, 1, 0]))])]
    assert np.all(np.isfinite(np.delete(x.reshape(len(x), 4), 3, axis=1)))


def test_a_failing_cell_is_shown_at_once_and_the_others_go_on(tmp_path, capsys):
    path = tmp_path / "run"
    claims = run(path, ("fail=,run",), seeds=1)
    said = capsys.readouterr().err
    assert "failed: cell {'fail': 'run'}: RuntimeError: the run fails as asked" in said
    assert [claim["holds"] for claim in claims] == [True, True, None, False]
    assert claims[-1]["note"] == "1 failed, first {'fail': 'run'}: RuntimeError: the run fails as asked"
    record = load(path).records["decay"]
    assert np.all(np.isfinite(record.at(fail="").values["x"]))
    assert np.all(np.isnan(record.at(fail="run").values["x"]))
    assert load(path / "cells" / "000001").status == "failed"
    with pytest.raises(RuntimeError, match="all 1 cells failed, the first with: RuntimeError: the run fails"):
        run(tmp_path / "none", ("width=2",), fail="run")


def test_an_experiment_of_single_runs_is_swept_too(tmp_path):
    """One that takes ``simulate``: its records have the axes of the sweep alone."""
    plain = types.ModuleType("plain")
    plain.Config, plain.claims = toy.Config, lambda result: []

    def own(config, simulate=simulate):
        record = simulate(
            toy.decay(config.eta[0], config.curvature), jnp.ones(2), jnp.zeros(()),
            train=lambda x, data: {"x": x}, steps=config.steps, label="one",
        )[1]  # fmt: skip
        return toy.Result(config, {"one": record})

    plain.run = own
    run(tmp_path / "run", ("steps=10,20", "curvature=0.5,1"), module=plain, eta=(0.1,))
    record = load(tmp_path / "run").records["one"]
    assert (list(record.axes), record.step.tolist()) == (["steps", "curvature"], [0, 10, 20])
    np.testing.assert_allclose(
        final_values(record, "x")[:, :, 0], [[0.95**10, 0.9**10], [0.95**20, 0.9**20]], rtol=1e-5
    )
    np.testing.assert_allclose(record.time, [0, 1, 2])
    assert record.lengths["steps"].tolist() == [[10, 10], [20, 20]]


def test_a_part_in_use_makes_a_run_running(whole, tmp_path, capsys):
    path = tmp_path / "toy" / "swept"
    shutil.copytree(whole, path)
    with contextlib.closing(Journal(path / "run.sqlite")) as journal:
        journal.set(status="interrupted")

    def listed():
        run_main(["list", str(tmp_path)])
        return capsys.readouterr().out.split()[1]

    assert listed() == "interrupted"
    with contextlib.closing(Lock(path / "cells" / "000001" / "lock")):
        assert listed() == "running"


def test_sweeps_of_0_1_are_listed_and_refused_in_words(tmp_path, capsys):
    path = tmp_path / "toy" / "old"
    path.mkdir(parents=True)
    (path / "grid.json").write_text("{}")
    assert run_main(["list", str(tmp_path)]) == 0
    assert "toy/old  of 0.1       a sweep" in capsys.readouterr().out
    target = str(tmp_path / "a.npz")
    for words in (["show"], ["compare", str(path)], ["export", target], ["repeat"], ["work"]):
        assert run_main([words[0], str(path), *words[1:]]) == 4
        assert "holds a sweep of dynamics 0.1, which this version does not read" in capsys.readouterr().err
    assert run_main(["gc", str(tmp_path), "--delete"]) == 0
    with pytest.raises(Unusable, match="run it under a new name"):
        run(path)
    assert [file.name for file in path.iterdir()] == ["grid.json"]


def test_phase_diagram_draws_the_median_over_the_rest(whole):
    record = load(whole).records["decay"]
    label, reading = chosen(load(whole).records, None)
    assert (label, reading) == ("decay", "x")
    figure = phase_diagram(record, reading, ["eta", "curvature"])
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_xscale()) == ("eta", "log")
    assert axes.get_ylabel() == "curvature"
    drawn = axes.collections[0].get_array()
    expected = np.median(np.moveaxis(record.values["x"][-1], (2, 1), (0, 1)).reshape(3, 2, -1), axis=-1)
    np.testing.assert_allclose(drawn, expected.T)
    lost = record.values["x"].copy()
    lost[-1, :, 0, 0] = np.nan
    figure = phase_diagram(record._replace(values={"x": lost}), "x", ["eta", "curvature"])
    assert figure.axes[0].get_title() == "20 of 24 cells finite"
    line = phase_diagram(record, "x", ["seed", "eta"])
    assert line.axes[0].get_xlabel() == "eta"
    with pytest.raises(BadInput, match="show: got 'nothing'; allowed: decay/x, claims/error"):
        chosen(load(whole).records, "nothing")


@pytest.mark.parametrize("values", [(0.1, 10.0), (False, True), ("one", "two"), (None, 0.1, 0.2)])
def test_an_axis_of_two_values_or_of_words_is_drawn_as_categories(values):
    axes = {"choice": values, "eta": [0.1, 1.0, 10.0], "seed": range(2)}
    record = Record([0], [0], {"x": np.random.default_rng(0).normal(size=(1, len(values), 3, 2))}, axes)
    names = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
    for shown, which in ((["eta", "choice"], "y"), (["choice"], "x")):
        panel = phase_diagram(record, "x", shown).axes[0]
        assert [label.get_text() for label in getattr(panel, f"get_{which}ticklabels")()] == names
        np.testing.assert_array_equal(getattr(panel, f"get_{which}ticks")(), range(len(values)))
    assert {line.get_linestyle() for line in panel.lines} == {"None"}  # nothing lies between categories
    assert phase_diagram(record, "x", ["choice", "eta"]).axes[0].get_yscale() == "log"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("nothing=1,2", "each FIELD once, of seed, curvature, steps, width, start, fail"),
        ("width", "allowed: FIELD=SPEC"), ("width=", "at least one|of int"), ("width=a", "of int"),
        ("width=1,1", "none twice"), ("curvature=log:0:1:3", "of float"), ("curvature=lin:0:nan:3", "of float"),
        ("seed=3:3", "at least one"), ("seed=0.5", "of int"), ("curvature=log:1:2", "of float"),
        ("seed=0:9999999", "of int"), ("steps=lin:1:1e9:1000001", "of int"),
        ("seeds=1:3", "allowed: --seeds NUMBER, an axis, all of whose values are one program"),
        ("eta=log:.1:1:3", "allowed: --eta log:.1:1:3, an axis, all of whose values are one program"),
    ],
)  # fmt: skip
def test_bad_sweeps_are_refused(spec, words):
    with pytest.raises(BadInput, match=f"sweep: .*({words})"):
        specs.parse_sweep(toy.Config, (spec,))


def test_sweeps_of_too_many_cells_and_fields_given_twice_are_refused():
    with pytest.raises(BadInput, match="got 1001000 cells; allowed: at most 1000000"):
        specs.parse_sweep(toy.Config, ("seed=0:1001", "steps=1:1001"))
    with pytest.raises(BadInput, match="each FIELD once"):
        specs.parse_sweep(toy.Config, ("seed=0:3", "seed=1"))


def test_whole_number_fields_round_log_spacing_and_words_are_words():
    assert specs.parse_sweep(toy.Config, ("width=log:1:64:4", "start=one,two")) == {
        "width": [1, 4, 16, 64],
        "start": ["one", "two"],
    }


def test_cells_are_checked_before_anything_runs():
    values = specs.parse_sweep(toy.Config, ("width=1,99",))
    with pytest.raises(BadInput, match=r"sweep: cell {'width': 99}: width: got 99; allowed: an integer >= 1 and <= 64"):
        specs.cell_config(toy.Config(), values, 1)


def test_another_sweep_under_the_same_name_is_refused(whole):
    with pytest.raises(Unusable, match=r"other settings: sweep: {'width': \[2, 3\], .*} -> {'width': \[2\]}"):
        run(whole, ("width=2",), eta=(0.01, 0.1, 1.0), seeds=2)
    settings = json.loads((whole / "config.json").read_text())
    assert (settings["sweep"], "width" in settings) == ({"width": [2, 3], "curvature": [1.0, 2.0]}, False)


def test_records_of_a_sweep_need_not_have_the_same_axes():
    """Then they have those of the sweep alone, and the rest of each array is its own."""
    record = Record(np.array([0, 5]), np.array([0.0, 0.5]), {"x": np.ones((2, 3))}, {"eta": [1, 2, 3]})
    other = record._replace(values={"x": 2 * np.ones((2, 2))}, axes={"eta": [1, 2]})
    held_cells = {
        at: LoadedRun(pathlib.Path(), "finished", {}, [], {"a": held}, {}, {}, [])
        for at, held in enumerate((record, other))
    }
    whole = cells._records(held_cells, {"width": [7, 8]})["a"]
    assert (list(whole.axes), whole.lengths["x"].tolist()) == (["width"], [3, 2])
    np.testing.assert_array_equal(whole.values["x"][0], [[1, 1, 1], [2, 2, np.nan]])
    assert whole.time.tolist() == [0.0, 0.5]
