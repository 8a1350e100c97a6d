"""Runs as files, read back by other libraries: the same numbers, on named axes."""

import contextlib
import json
import os
import pathlib
import py_compile
import re
import shutil
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from dynamics import evolve
from dynamics.evolve import every, ode
from dynamics.runs import LoadedRun, Unusable, cli, load, open_run, result
from dynamics.runs.command.export import _netcdf
from dynamics.runs.command.folder import run_main
from dynamics.runs.durable.journal import Journal
from dynamics.runs.durable.modules import module_in
from dynamics.runs.report.overlay import shared_readings, side_by_side
from dynamics.types import Record

xarray = pytest.importorskip("xarray", reason="the extra xarray is not installed")
pandas = pytest.importorskip("pandas", reason="the extra xarray is not installed")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Readings of every kind of type and name, and one that is not finite."""
    path = tmp_path_factory.mktemp("runs") / "toy" / "a"
    decay = ode(lambda x, rate: -rate * x, 0.1)

    def read(x, rate):
        values = {"x": x, "a/b": 2 * x, "a_b": 3 * x, "x_1": x[0], "small": x.astype(jnp.bfloat16)}
        return {**values, "turned": x[0] * jnp.exp(1j * x), "odd": jnp.where(x > 0.5, x, jnp.nan), "big": x[0] > 0.5}

    with open_run(path, {"rate": 1.0}) as held:
        for label in ("first / second", "first _ second"):
            asked = dict(train=read, steps=10, record_at=every(5, 10), label=label)
            held.simulate(decay, jnp.ones(3), jnp.array(1.0), **asked)
    return path


def test_a_run_in_npz(run, tmp_path):
    assert run_main(["export", str(run), str(tmp_path / "a.npz")]) == 0
    held = dict(np.load(tmp_path / "a.npz"))
    for label, record in load(run).records.items():
        for name, value in {**record.values, "time": record.time, "step": record.step}.items():
            np.testing.assert_array_equal(held[f"{label.replace('/', '%2F')}/{name}"], np.asarray(value))
    assert held["first %2F second/small"].dtype == np.float32


def test_a_run_in_netcdf(run, tmp_path):
    """Two records of the same axes: one dataset, opened without a group, by ``source``."""
    assert run_main(["export", str(run), str(tmp_path / "a.nc")]) == 0
    records = load(run).records
    with xarray.open_dataset(tmp_path / "a.nc") as whole:
        assert whole["source"].values.tolist() == ["first / second", "first _ second"]
        for label, record in records.items():
            found, values = whole.sel(source=label), record.values
            np.testing.assert_array_equal(found["step"], [0, 5, 10])
            np.testing.assert_array_equal(found["time"], record.time)
            for name, of in {"x": "x", "a_b": "a/b", "a_b_": "a_b", "odd": "odd", "big": "big"}.items():
                np.testing.assert_array_equal(found[name], values[of])
                assert found[name].attrs.get("long_name", name) == of
            for part, of in (("turned_real", np.real), ("turned_imag", np.imag)):
                np.testing.assert_array_equal(found[part], of(values["turned"]))
            np.testing.assert_array_equal(found["small"], values["small"].astype(np.float32))
            assert found["x"].dims == ("step", "x_1")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Axes of numbers, of words, and one that changes a shape: in pieces, padded; a time step by cell."""
    path = tmp_path_factory.mktemp("studies") / "toy" / "a"
    with open_run(path, {"rate": 1.0}) as held:
        held.study(
            {"width": [2, 3], "rate": [0.1, 0.2], "start": ["one", "two"]},
            draw=lambda lane: jnp.full(lane.width, 1.0 if lane.start == "one" else 2.0),
            make=lambda lane: ode(lambda x, data: -lane.rate * x, lane.rate),
            read=[lambda x, data: {"x/y": x, "x_y": x[0], "turned": 1j * x, "x_y_length": 2 * x[0]}],
            data=jnp.zeros(()),
            steps=10,
            label="a / b",
        )
    return path


def test_a_study_on_its_axes_in_npz(study, tmp_path):
    assert run_main(["export", str(study), str(tmp_path / "a.npz")]) == 0
    held, record = np.load(tmp_path / "a.npz"), load(study).records["a / b"]
    for name, value in {**record.values, "time": record.time}.items():
        np.testing.assert_array_equal(held[f"a %2F b/{name}"], value)
    assert held["a %2F b/x/y"].shape == (2, 2, 2, 2, 3)
    assert held["a %2F b/axes/start"].tolist() == ["one", "two"]
    assert held["a %2F b/lengths/x/y"][:, 0, 0].tolist() == [2, 3]


def test_a_study_on_its_axes_in_netcdf(study, tmp_path):
    assert run_main(["export", str(study), str(tmp_path / "a.nc")]) == 0
    values = load(study).records["a / b"].values
    with xarray.open_dataset(tmp_path / "a.nc") as found:
        assert found["source"] == "a / b"
        assert found["x_y"].dims == ("step", "width", "rate", "start", "x_y_1")
        for name, of in {"x_y": "x/y", "x_y_": "x_y", "x_y_length_": "x_y_length"}.items():
            np.testing.assert_array_equal(found[name], values[of])
            assert found[name].attrs["long_name"] == of
        np.testing.assert_array_equal(found["turned_imag"], np.imag(values["turned"]))
        cell = {"width": 3, "rate": 0.2, "start": "two"}
        np.testing.assert_array_equal(found["x_y"].sel(step=10, **cell), values["x/y"][1, 1, 1, 1])
        np.testing.assert_allclose(found["time"].sel(step=10, **cell), 10 * 0.2)
        assert found["x_y_length"].sel(rate=0.1, start="one").values.tolist() == [2, 3]


def test_what_cannot_be_written_is_said_and_leaves_nothing(run, tmp_path, capsys, monkeypatch):
    for target, code, words in (
        (tmp_path / "a.pkl", 2, "ends in .nc, .npz, .csv"),
        (tmp_path / "none" / "a.npz", 2, "a folder that exists"),
        (tmp_path / "none" / "a.nc", 2, "a folder that exists"),
    ):
        assert run_main(["export", str(run), str(target)]) == code
        assert words in capsys.readouterr().err
    (tmp_path / "a.nc").mkdir()
    assert run_main(["export", str(run), str(tmp_path / "a.nc")]) == 4
    assert "cannot be written" in capsys.readouterr().err
    assert run_main(["export", str(run), str(tmp_path / "a.nc"), "--to", "csv"]) == 2
    assert "allowed: a file that ends in .csv" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "xarray", None)
    assert run_main(["export", str(run), str(tmp_path / "b.nc")]) == 2
    assert "pip install -e '.[xarray]'" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.nc"]


@pytest.mark.parametrize("suffix", ["npz", "nc"])
def test_a_run_without_curves_is_refused(tmp_path, capsys, suffix):
    with open_run(tmp_path / "toy" / "bare", {"rate": 1.0}):
        pass
    assert run_main(["export", str(tmp_path / "toy" / "bare"), str(tmp_path / f"a.{suffix}")]) == 2
    assert "recorded no curves" in capsys.readouterr().err
    assert not list(tmp_path.glob("*a*"))


THEORY = """
import dataclasses, typing
import jax.numpy as jnp
from dynamics import config
from dynamics.evolve import study
from dynamics.types import Dynamics, Record

SOURCE, SECONDS = "a textbook", 1


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    eta: typing.Annotated[tuple[float, ...], config.Positive] = (0.1, 0.5)


class Result(typing.NamedTuple):
    config: Config
    records: dict


def run(config, study=study):
    measured, other = (
        study({axis: config.eta, "seed": range(2)}, draw=lambda lane: jnp.ones(()), label=axis,
              make=lambda lane: Dynamics(lambda x: x, lambda key, x, data: x - lane[axis] * x, lambda x: x, 1.0),
              read=[lambda x, data: {"loss": x}], steps=4, record_at=[0, 2, 4], data=jnp.zeros(()))
        for axis in ("eta", "rate")
    )
    exact = Record([2, 3], [2, 3], {"loss": (1 - measured.axes["eta"][None, :, None]) ** [[[2]], [[3]]]},
                   {"eta": measured.axes["eta"], "seed": [1]})
    return Result(config, {"measured": measured, "theory": exact, "mean": other.mean("seed")})


def claims(result):
    return []


def figure(result):
    from dynamics.runs.figures import new_figure

    return new_figure()[0]


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__file__)
"""


@pytest.fixture(scope="module")
def theory(tmp_path_factory):
    """A run whose theory is computed beside its studies, on other steps and fewer seeds; and statistics."""
    folder = tmp_path_factory.mktemp("theory")
    (folder / "theory.py").write_text(THEORY)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with pytest.raises(SystemExit) as ended:
            cli.main("theory.py", ["--name", "a", "--quiet"])
    assert ended.value.code == 0
    return folder / "runs" / "theory" / "a"


def test_theory_stands_beside_measurement_under_the_same_names(theory, tmp_path, capsys):
    """``eta`` and ``rate`` are other axes: two groups. A source has NaN where it has no step, seed or reading."""
    assert run_main(["export", str(theory), str(tmp_path / "a.nc"), "--trust"]) == 0
    assert "group=NAME), NAME being one of 'measured', 'mean'" in capsys.readouterr().out
    with xarray.open_dataset(tmp_path / "a.nc", group="measured") as found:
        loss = found["loss"].sel(eta=0.5, seed=1)
        np.testing.assert_allclose(loss.sel(source="measured"), [1, 0.25, np.nan, 0.0625])
        np.testing.assert_allclose(loss.sel(source="theory"), [np.nan, 0.25, 0.125, np.nan])
        assert np.isnan(found["loss"].sel(source="theory", seed=0)).all()
    with xarray.open_dataset(tmp_path / "a.nc", group="mean") as found:
        assert found["loss"].dims == found["loss_stderr"].dims == ("step", "rate")
        assert found["loss_n"] == 2
        np.testing.assert_array_equal(found["loss_stderr"], 0)
    assert run_main(["export", str(theory), str(tmp_path / "a.csv"), "--trust"]) == 0
    table = pandas.read_csv(tmp_path / "a.csv")
    assert list(table) == ["source", "step", "time", "eta", "seed", "rate", "loss", "loss_stderr", "loss_n"]
    assert len(table) == 3 * 2 * 2 + 2 * 2 + 3 * 2
    row = table[(table["source"] == "theory") & (table["eta"] == 0.5) & (table["step"] == 3)]
    assert row["loss"].tolist() == [0.125]
    assert table["loss_n"].dropna().tolist() == [2] * 6


def test_a_stored_result_is_that_of_the_run_without_computing(theory, monkeypatch):
    monkeypatch.setattr(evolve, "study", None)  # nothing is trained
    found = result(theory, trust=True)
    np.testing.assert_array_equal(found.records["measured"].values["loss"], load(theory).records["eta"].values["loss"])
    assert (found.config.eta, found.records["mean"].values["loss"].n) == ((0.1, 0.5), 2)
    monkeypatch.chdir(theory)
    with pytest.raises(Unusable, match="outside the current folder; if you trust it, add --trust"):
        result(theory)


def test_a_file_is_run_as_it_is_written_now(tmp_path):
    """Python takes bytecode for the source's where size and second agree; that of an edit may."""
    file = tmp_path / "edited.py"
    for value in (1, 2):
        file.write_text(f"value = {value}")
        os.utime(file, (1e9, 1e9))
        py_compile.compile(file)
        file.write_text(f"value = {value + 5}")
        os.utime(file, (1e9, 1e9))
        held = module_in(str(file))
        assert held.value == value + 5
        assert held.__file__ == str(file)


def test_code_that_has_changed_since_is_said_and_refused_where_it_fails(theory, tmp_path, capsys):
    here = shutil.copytree(theory.parents[2], tmp_path / "there")
    run, code = here / "runs" / "theory" / "a", here / "theory.py"
    about = json.loads((run / "provenance.json").read_text())
    with contextlib.closing(Journal(run / "run.sqlite")) as journal:
        journal.set(provenance={**about, "module": str(code)})
    code.write_text(THEORY.replace('"mean": other', '"other": other'))
    assert run_main(["figure", str(run), str(tmp_path / "a.png"), "--trust"]) == 0
    assert "its experiment has changed since: it was drawn by that of now" in capsys.readouterr().err
    code.write_text(THEORY.replace('("eta", "rate")', '("eta", "speed")'))
    assert run_main(["figure", str(run), str(tmp_path / "a.png"), "--trust"]) == 4
    assert "has no record 'speed', which its experiment asks for; it has 'eta', 'rate'" in capsys.readouterr().err
    code.write_text(THEORY.replace("(1 - measured", "(1 - measured.wrong"))
    assert run_main(["figure", str(run), str(tmp_path / "a.png"), "--trust"]) == 4
    assert "has changed since, and no longer takes its records (AttributeError: " in capsys.readouterr().err
    assert run_main(["export", str(run), str(tmp_path / "a.npz"), "--trust"]) == 0
    assert "without what its experiment computes beside its studies" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--panel", "3"], 2, "panel: got 3; allowed: 1 (no title)"),
        (["--panel", "0"], 2, "panel: got 0; allowed: 1 (no title)"),
        (["--width", "0.1"], 2, "width: got 0.1; allowed: 1 to 40 inches"),
        (["--width", "nan"], 2, "width: got nan; allowed: 1 to 40 inches"),
        (["a.jpg"], 2, "target: got 'a.jpg'; allowed: a file that ends in .png, .svg, .pdf"),
        (["a.png", "--pdf"], 2, "target: got 'a.png'; allowed: a file that ends in .pdf"),
        (["nowhere/a.png"], 2, "allowed: a file in a folder that exists"),
    ],
)
def test_a_figure_that_cannot_be_is_refused_in_words(theory, tmp_path, capsys, monkeypatch, words, code, said):
    monkeypatch.chdir(tmp_path)
    assert run_main(["figure", str(theory), "--trust", *words]) == code
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_figure_for_a_column_in_the_current_folder(theory, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--trust", "--panel", "1", "--width", "3.3", "--style", "paper"]
    assert run_main(["figure", str(theory), *words]) == 0
    assert capsys.readouterr().out == "theory-a-panel1.png\n"
    head = (tmp_path / "theory-a-panel1.png").read_bytes()[:24]
    assert int.from_bytes(head[16:20], "big") == 990  # 3.3 inches at 300 dots
    assert run_main(["figure", str(theory), *words, "--pdf"]) == 0
    assert (tmp_path / "theory-a-panel1.pdf").read_bytes().startswith(b"%PDF")


def test_two_runs_over_each_other(theory, tmp_path, capsys):
    other = shutil.copytree(theory, tmp_path / "b")
    assert run_main(["compare", str(theory), str(other), "--plot", str(tmp_path / "a.svg"), "--show", "eta/loss"]) == 0
    said = capsys.readouterr().out
    assert ["eta/loss at eta = 0.5", "4", "0.0625", "0.0625", "0", "0"] in [
        re.split("  +", line) for line in said.splitlines()
    ]
    assert "rate/loss" not in said
    assert b"eta = 0.5" in (tmp_path / "a.svg").read_bytes()
    assert run_main(["compare", str(theory), str(other), "--show", "x"]) == 2
    assert "show: got 'x'; allowed: eta/loss, rate/loss" in capsys.readouterr().err
    assert run_main(["compare", str(theory), str(other), "--plot", str(tmp_path / "a.txt")]) == 2


def test_runs_at_other_steps_are_compared_where_both_have_read():
    def run(step, curve, seeds=(0, 1)):
        values = np.repeat(np.asarray(curve, float)[:, None, None], len(seeds), axis=2)
        record = Record(np.array(step), np.array(step), {"loss": values}, {"eta": [0.5], "seed": list(seeds)})
        return LoadedRun(pathlib.Path(), "finished", {}, [], {"a": record}, {}, {}, [])

    (shared,) = shared_readings(run([0, 1, 2, 4], [9, 8, 7, 5]), run([0, 2, 4, 8], [9, 6, 5, 1], seeds=(1, 2)))
    step, first, second, between = shared.apart()
    assert (step.tolist(), first[:, 0].tolist(), second[:, 0].tolist()) == ([0, 2, 4], [9, 7, 5], [9, 6, 5])
    assert not between
    (odd,) = shared_readings(run([1, 3, 5, 7], [8, 6, 4, 2]), run([0, 2, 4, 6], [9, 7, 5, 3]))
    step, first, second, between = odd.apart()
    assert step.tolist() == [1, 3, 5]
    np.testing.assert_allclose(first, second)  # a straight line in between
    assert between
    assert "(second interpolated)" in side_by_side([odd])[1]
    (apart,) = shared_readings(run([0, 1], [1, 1]), run([5, 6], [1, 1]))
    assert "no step within the other's" in side_by_side([apart])[1]


def test_without_the_experiments_code_the_journal_is_exported_and_that_is_said(theory, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_main(["export", str(theory), "--to", "npz"]) == 0
    said = capsys.readouterr().out
    assert "written to theory-a.npz" in said
    assert "without what its experiment computes beside its studies: " in said
    assert "add --trust" in said
    assert {name.split("/")[0] for name in np.load("theory-a.npz")} == {"eta", "rate"}


def test_a_table_names_what_it_leaves_out(study, tmp_path, capsys):
    assert run_main(["export", str(study), str(tmp_path / "a.csv")]) == 0
    said = capsys.readouterr().out
    assert "left out, no number in each cell (npz and netCDF have it): " in said
    assert "a / b/x/y [2, 2, 2, 2, 3]" in said
    table, record = pandas.read_csv(tmp_path / "a.csv"), load(study).records["a / b"]
    one = table[(table["width"] == 3) & (table["rate"] == 0.2) & (table["start"] == "two")]
    np.testing.assert_allclose(one["x_y"], record.at(width=3, rate=0.2, start="two").values["x_y"])


def test_axes_of_words_pairs_and_none_become_text(tmp_path):
    axes = {"choice": [None, 0.1], "pair": [(1, 2), (3, 4)], "on": [False, True]}
    record = Record([0], [0], {"x": np.arange(8.0).reshape(1, 2, 2, 2)}, axes)
    _netcdf({"a": record}, {})[0](tmp_path / "a.nc")
    with xarray.open_dataset(tmp_path / "a.nc") as found:
        assert found["x"].sel(choice="0.1", pair="(1, 2)", on=True) == 5


def test_no_reading_is_lost_and_no_name_leads_out_of_the_archive(tmp_path, capsys):
    """Call "a/b" reading "c" beside call "a" reading "b/c"; names that would be paths of their own."""
    decay, path, names = ode(lambda x, rate: -x, 0.1), tmp_path / "toy" / "a", {}
    reads = {"a/b": ["c", "axes/eta"], "a": ["b/c", "..", "/x", "../../y", "step2"], "../../x": ["c"], "..": ["c"]}
    with open_run(path, {"rate": 1.0}) as held:
        for at, (label, readings) in enumerate(reads.items()):
            read = lambda x, rate: {name: x + at for name in readings}  # noqa: B023, E731
            held.simulate(decay, jnp.ones(()), jnp.array(1.0), train=read, steps=2, label=label)
    assert run_main(["export", str(path), str(tmp_path / "a.npz")]) == 0
    assert "4 records, 17 arrays written" in capsys.readouterr().out
    names = np.load(tmp_path / "a.npz").files
    assert len(names) == len(set(names)) == 17
    assert not any(part in ("", ".", "..") for name in names for part in name.split("/"))
    assert "a%2Fb/c" in names
    assert "a/b/c" in names
