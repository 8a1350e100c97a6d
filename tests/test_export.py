"""Runs as files, read back by other libraries: the same numbers, on named axes."""

import sys

import jax.numpy as jnp
import numpy as np
import pytest

from dynamics.evolve import every, ode
from dynamics.runs import load, open_run
from dynamics.runs.command.folder import run_main

xarray = pytest.importorskip("xarray", reason="the extra xarray is not installed")


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
    assert run_main(["export", str(run), str(tmp_path / "a.nc")]) == 0
    records = load(run).records
    for group, label in (("first _ second", "first / second"), ("first _ second_", "first _ second")):
        with xarray.open_dataset(tmp_path / "a.nc", group=group) as found:
            values = records[label].values
            assert found.attrs["label"] == label
            np.testing.assert_array_equal(found["step"], [0, 5, 10])
            np.testing.assert_array_equal(found["time"], records[label].time)
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
    with xarray.open_dataset(tmp_path / "a.nc", group="a _ b") as found:
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
        (tmp_path / "a.pkl", 2, "ends in .npz or .nc"),
        (tmp_path / "none" / "a.npz", 2, "a folder that exists"),
        (tmp_path / "none" / "a.nc", 2, "a folder that exists"),
    ):
        assert run_main(["export", str(run), str(target)]) == code
        assert words in capsys.readouterr().err
    (tmp_path / "a.nc").mkdir()
    assert run_main(["export", str(run), str(tmp_path / "a.nc")]) == 4
    assert "cannot be written" in capsys.readouterr().err
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
