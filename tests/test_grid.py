"""Sweeps: cells against a loop, chunks claimed by workers, kills, failures, devices, and the local cluster engine."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import types

import jax
import numpy as np
import pytest

from dynamics.runs import cells, cli, grid, worker
from dynamics.runs.commands import run_main
from dynamics.runs.errors import BadInput, Interrupted, Unusable
from dynamics.runs.lock import Lock
from dynamics.runs.phase import final_values, phase_diagram, summary

TOY = pathlib.Path(__file__).parent / "programs" / "toy.py"
toy = cli.module_named(str(TOY))
SWEEP = ("eta=log:0.01:1:4", "curvature=1,2", "width=2,3", "seed=0:3")


def make(path, specs=SWEEP, config=None):
    grid.begin(path, grid.plan(toy, config or toy.Config(), specs, {"module": str(TOY), "x64": False}))
    return path


def environment(**more):
    return {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONWARNINGS": "ignore", **more}


def start_worker(path, **more):
    command = [sys.executable, "-m", "dynamics.runs", "work", str(path)]
    return subprocess.Popen(command, env=environment(**more), stderr=subprocess.PIPE, text=True)


def test_every_cell_follows_its_closed_form(tmp_path):
    """x_k = (1 - eta a)^k x_0, with x_0 from the cell's own seed, whatever shares its program."""
    assert worker.work(make(tmp_path / "run")) == 0
    found = grid.load_grid(tmp_path / "run")
    assert found.done == found.cells == 48
    etas, curvatures, widths, seeds = found.swept.values()
    last = final_values(found, "x")[1]
    assert last.shape == (4, 2, 2, 3)
    for seed in seeds:
        for column, width in enumerate(widths):
            start = 1 + 0.1 * jax.random.normal(jax.random.key(seed), (width,))[0]
            expected = (1 - np.outer(etas, curvatures)) ** 20 * start
            np.testing.assert_allclose(last[:, :, column, seed], expected, rtol=1e-4)  # 20 float32 steps
    assert found.readings["all"].shape == (48, 5, 3)
    assert np.isnan(found.readings["all"][:, :, 2]).sum() == 24 * 5  # half of the cells have width 2
    assert len(list((tmp_path / "run" / "chunks").glob("*.cells"))) == 2  # one program a width
    assert "48 of 48" in summary(found, None)


def test_a_cell_does_not_depend_on_its_neighbours(tmp_path):
    """The same cell in another grid: the same numbers to rounding."""
    worker.work(make(tmp_path / "wide"))
    worker.work(make(tmp_path / "narrow", ("eta=0.1,1.0", "seed=2,1")))
    wide, narrow = (grid.load_grid(tmp_path / name) for name in ("wide", "narrow"))
    one = final_values(narrow, "x")[1][1, 1]  # eta = 1, seed = 1: decays to zero at curvature 1, width 3
    same = final_values(wide, "x")[1][3, 0, 1, 1]
    np.testing.assert_allclose(one, same, atol=1e-7)


def test_a_diverged_cell_is_frozen_and_harms_no_other(tmp_path):
    config = toy.Config(steps=400)
    worker.work(make(tmp_path / "run", ("eta=0.1,0.5,9.5", "curvature=1"), config))
    found = grid.load_grid(tmp_path / "run")
    assert np.all(np.isfinite(found.readings["x"][:2]))
    assert np.isnan(found.readings["x"][2, -1])
    assert np.isfinite(found.readings["x"][2, 0])
    assert "1 cells not finite" in summary(found, None)


def test_a_finished_sweep_is_not_computed_again_and_damage_is(tmp_path, capsys):
    path = make(tmp_path / "run")
    worker.work(path)
    before = {file.name: file.stat().st_mtime_ns for file in (path / "chunks").glob("*.cells")}
    worker.work(path)
    assert {file.name: file.stat().st_mtime_ns for file in (path / "chunks").glob("*.cells")} == before
    whole = grid.load_grid(path)
    victim = path / "chunks" / "000001.cells"
    data = bytearray(victim.read_bytes())
    data[-100] ^= 1
    victim.write_bytes(data)
    assert grid.load_grid(path).done == 24
    worker.work(path)
    assert "damaged; computing it again" in capsys.readouterr().err
    np.testing.assert_array_equal(grid.load_grid(path).readings["x"], whole.readings["x"])
    for name in ("grid.json", "chunks.json"):
        (path / name).write_text((path / name).read_text().replace("2", "3", 1))
        with pytest.raises(Unusable, match=r"digest mismatch|damaged"):
            worker.work(path)
        shutil.rmtree(path)
        worker.work(make(path))


def test_a_killed_workers_chunk_is_done_once_by_the_other(tmp_path):
    """Two workers on six chunks, one killed at work: each chunk is there once, with the bits of a worker alone."""
    specs = ("width=1,2,3,4,5,6", "eta=0.1,0.2")
    path = make(tmp_path / "run", specs)
    workers = [start_worker(path, TOY_SLOW="0.5") for _ in range(2)]
    chunks = path / "chunks"
    try:
        while not list(chunks.glob("*.cells")):
            time.sleep(0.05)
        workers[0].send_signal(signal.SIGKILL)
        workers[0].wait()
        assert workers[1].wait(timeout=120) == 0, workers[1].stderr.read()
    finally:
        for process in workers:
            process.kill()
            process.wait()
            process.stderr.close()
    found = grid.load_grid(path)
    assert found.done == 12
    assert len(list(chunks.glob("*.cells"))) == 6
    worker.work(make(tmp_path / "alone", specs))
    alone = grid.load_grid(tmp_path / "alone")
    np.testing.assert_array_equal(found.readings["all"], alone.readings["all"])


def test_a_failing_chunk_is_shown_at_once_and_the_others_go_on(tmp_path, capsys):
    path = make(tmp_path / "run", ("fail=claim,run", "eta=0.1,0.2"))
    assert worker.work(path) == 1
    said = capsys.readouterr().err
    assert "failed: cell {'fail': 'run', 'eta': 0.1} and 1 more cells of its shape" in said
    assert "the run fails as asked" in said
    found = grid.load_grid(path)
    assert found.done == 2
    assert list(found.failures.values()) == ["RuntimeError: the run fails as asked"]


def test_an_experiment_without_a_program_runs_cell_by_cell(tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "module_named", lambda name: plain)
    plain = types.ModuleType("plain")
    plain.Config, plain.run, plain.claims = toy.Config, toy.run, toy.claims
    path = make(tmp_path / "run", ("eta=0.1,0.5", "curvature=0.5,1"))
    assert worker.work(path) == 0
    found = grid.load_grid(path)
    np.testing.assert_allclose(np.nanmax(found.readings["0.5: x"]), 0.75**20, rtol=1e-4)
    assert len(list((path / "chunks").glob("*.cells"))) == 4


def test_four_devices_give_what_one_gives(tmp_path):
    path = make(tmp_path / "four", ("eta=log:0.01:1:7", "seed=0:3"))
    process = start_worker(path, XLA_FLAGS="--xla_force_host_platform_device_count=4")
    assert process.wait(timeout=120) == 0, process.stderr.read()
    process.stderr.close()
    worker.work(make(tmp_path / "one", ("eta=log:0.01:1:7", "seed=0:3")))
    four, one = grid.load_grid(tmp_path / "four"), grid.load_grid(tmp_path / "one")
    assert four.done == 21  # not a multiple of four: the padding is dropped
    np.testing.assert_allclose(four.readings["all"], one.readings["all"], rtol=1e-6)


def test_workers_through_submitit(tmp_path):
    pytest.importorskip("submitit", reason="the extra slurm is not installed")
    from dynamics.runs.cluster import submit

    path = make(tmp_path / "run")
    jobs = submit(path, 1, "local:timeout_min=2,cpus_per_task=1")
    assert [job.result() for job in jobs] == [0]
    assert grid.load_grid(path).done == 48
    with pytest.raises(BadInput, match="cluster: got 'pbs'"):
        submit(path, 1, "pbs")


def test_a_signal_stops_a_worker_and_loses_one_chunk_at_most(tmp_path, monkeypatch):
    path = make(tmp_path / "run", ("width=1,2,3,4,5,6", "eta=0.1"))

    real, calls = worker._compute, []

    def third_time(sweep, cells):
        calls.append(cells)
        return os.kill(os.getpid(), signal.SIGTERM) if len(calls) == 3 else real(sweep, cells)

    monkeypatch.setattr(worker, "_compute", third_time)
    with pytest.raises(Interrupted, match="finished chunks are saved"):
        worker.work(path)
    monkeypatch.undo()
    assert grid.load_grid(path).done == 2
    assert worker.work(path) == 0
    assert grid.load_grid(path).done == 6


def test_sweeps_in_a_folder_of_runs(tmp_path, capsys):
    """Listed with their cells done, shown, exported on the axes of the sweep, repeated from the directory alone."""
    path = make(tmp_path / "toy" / "swept")

    def looked(*argv):
        code = run_main([str(word) for word in argv])
        return code, capsys.readouterr().out

    assert "toy/swept  interrupted  0/48 cells" in looked("list", tmp_path)[1]
    worker.work(path)
    assert "toy/swept  finished     48/48 cells" in looked("list", tmp_path)[1]
    code, out = looked("show", path)
    assert code == 0
    assert "eta = swept over [0.01" in out
    assert "48 of 48 cells done over eta x curvature x width x seed" in out
    assert looked("export", path, tmp_path / "out.npz")[0] == 0
    held = np.load(tmp_path / "out.npz")
    np.testing.assert_array_equal(held["x"][..., -1], final_values(grid.load_grid(path), "x")[1])
    assert held["swept/width"].tolist() == [2, 3]
    code, out = looked("repeat", path)
    assert code == 0
    assert "x: the same bits" in out
    code, out = looked("compare", path, tmp_path / "toy" / "swept.repeat")
    assert "all: the same bits" in out
    victim = path / "chunks" / "000001.cells"
    victim.unlink()
    with contextlib.closing(Lock(path / "chunks" / "000001.lock")):
        assert "toy/swept         running      24/48 cells" in looked("list", tmp_path)[1]
        assert looked("gc", tmp_path, "--delete")[1] == "0.0 MB freed\n"
    (path / "grid.json").write_text("{}")
    assert "toy/swept         damaged" in looked("list", tmp_path)[1]


def test_phase_diagram_draws_the_median_over_seeds(tmp_path):
    worker.work(make(tmp_path / "run"))
    figure = phase_diagram(grid.load_grid(tmp_path / "run"))
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_xscale()) == ("eta", "log")
    assert axes.get_ylabel() == "curvature"
    drawn = axes.collections[0].get_array()
    values = final_values(grid.load_grid(tmp_path / "run"), "x")[1]
    np.testing.assert_allclose(drawn, np.median(values.reshape(4, 2, -1), axis=-1).T)
    with pytest.raises(BadInput, match="show: got 'nothing'; allowed: x"):
        phase_diagram(grid.load_grid(tmp_path / "run"), "nothing")


@pytest.mark.parametrize(
    "spec",
    ["nothing=1,2", "eta", "eta=", "eta=a", "eta=1,1", "eta=log:0:1:3", "eta=lin:0:nan:3", "seed=3:3", "seed=0.5",
     "seeds=1:3", "eta=log:1:2", "seed=0:9999999"],
)  # fmt: skip
def test_bad_sweeps_are_refused(spec):
    with pytest.raises(BadInput, match="sweep: "):
        grid.plan(toy, toy.Config(), (spec,), {})


def test_cells_are_checked_before_anything_runs(tmp_path):
    with pytest.raises(BadInput, match=r"sweep: cell .*'eta': 20.*eta: got 20.0; allowed: a number > 0 and <= 10"):
        grid.plan(toy, toy.Config(), ("eta=1,20",), {})


def test_whole_number_fields_round_log_spacing():
    assert cells.parse_sweep(toy.Config, ("width=log:1:64:4", "start=one,two")) == {
        "width": [1, 4, 16, 64],
        "start": ["one", "two"],
    }


def test_another_sweep_under_the_same_name_is_refused(tmp_path):
    spec = grid.plan(toy, toy.Config(), ("eta=1",), {"module": str(TOY), "x64": False})
    grid.begin(tmp_path / "later", {**spec, "schema": 2})
    with pytest.raises(Unusable, match="has format 2, and this version reads up to 1"):
        worker.work(tmp_path / "later")
    make(tmp_path / "run")
    with pytest.raises(Unusable, match="another swept"):
        make(tmp_path / "run", ("eta=0.1",))
    assert json.loads((tmp_path / "run" / "config.json").read_text())["sweep"]["seed"] == [0, 1, 2]
