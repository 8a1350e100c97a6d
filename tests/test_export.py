"""Runs and sweeps as files, read back by other libraries: the same numbers, on named axes."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics.evolve import every, ode
from dynamics.runs import load, open_run
from dynamics.runs.commands import run_main
from dynamics.runs.grid import Grid

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
            held.simulate(decay, read, jnp.ones(3), jnp.array(1.0), 10, jax.random.key(0), every(5, 10), label=label)
    return path


def test_a_run_in_npz(run, tmp_path):
    assert run_main(["export", str(run), str(tmp_path / "a.npz")]) == 0
    held = dict(np.load(tmp_path / "a.npz"))
    for label, record in load(run).records.items():
        for name, value in {**record.values, "time": record.time, "step": record.step}.items():
            np.testing.assert_array_equal(held[f"{label}/{name}"], np.asarray(value))
    assert held["first / second/small"].dtype == np.float32


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


@pytest.fixture
def sweep(monkeypatch):
    """Two swept fields, one of them words; a reading by the name of a field; a cell without a result."""
    values = np.arange(24.0).reshape(6, 2, 2)
    values[5] = np.nan
    step = np.tile([0, 10], (6, 1))
    step[5] = -1
    swept = {"eta": [0.1, 0.2, 0.4], "start": ["one", "two"]}
    return Grid(None, {"eta": 0.1}, swept, 6, 5, {"x/y": values, "eta": values[..., 0]}, step, {})


@pytest.mark.parametrize("suffix", ["npz", "nc"])
def test_a_sweep_on_its_axes(sweep, tmp_path, monkeypatch, suffix):
    monkeypatch.setattr("dynamics.runs.sweeps.is_sweep", lambda path: True)
    monkeypatch.setattr("dynamics.runs.grid.load_grid", lambda path: sweep)
    target = tmp_path / f"s.{suffix}"
    assert run_main(["export", "anywhere", str(target)]) == 0
    x, eta = (sweep.readings[name].reshape(3, 2, *sweep.readings[name].shape[1:]) for name in ("x/y", "eta"))
    if suffix == "npz":
        held = np.load(target)
        np.testing.assert_array_equal(held["x/y"], x)
        np.testing.assert_array_equal(held["eta"], eta)
        assert held["swept/start"].tolist() == ["one", "two"]
        assert held["step"][2, 1].tolist() == [-1, -1]
        return
    with xarray.open_dataset(target) as found:
        assert found["x_y"].dims == ("eta", "start", "record", "x_y_0")
        np.testing.assert_array_equal(found["x_y"], x)
        np.testing.assert_array_equal(found["eta_"], eta)
        np.testing.assert_array_equal(found["x_y"].sel(eta=0.2, start="two", record=1), x[1, 1, 1])
        assert found["step"].sel(eta=0.4, start="two").values.tolist() == [-1, -1]


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
    assert "pip install 'dynamics[xarray]'" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.nc"]


@pytest.mark.parametrize("suffix", ["npz", "nc"])
def test_a_run_without_curves_is_refused(tmp_path, capsys, suffix):
    with open_run(tmp_path / "toy" / "bare", {"rate": 1.0}):
        pass
    assert run_main(["export", str(tmp_path / "toy" / "bare"), str(tmp_path / f"a.{suffix}")]) == 2
    assert "recorded no curves" in capsys.readouterr().err
    assert not list(tmp_path.glob("*a*"))
