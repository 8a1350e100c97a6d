"""Records: picking by value, statistics with their errors against numpy, and the same readings in xarray and pandas."""

import numpy as np
import pytest

from dynamics.types import Estimate, Record

ETA, SEEDS, T = (0.1, 0.2, 0.5), 5, 4


@pytest.fixture
def record():
    """Readings ``[T, eta, seed]``, ``[T, eta, seed, 2]`` (one padded to 3) and ``[T, eta, seed]`` whole numbers."""
    rng = np.random.default_rng(0)
    values = {
        "loss": rng.normal(size=(T, 3, SEEDS)),
        "spectrum": rng.normal(size=(T, 3, SEEDS, 2)),
        "count": rng.integers(0, 9, (T, 3, SEEDS)),
    }
    time = np.arange(T)[:, None, None] * np.array(ETA)[:, None] * np.ones(SEEDS)
    lengths = {"spectrum": np.array([[2], [1], [2]]) * np.ones(SEEDS, int)}
    return Record(np.arange(0, 40, 10), time, values, {"eta": ETA, "seed": np.arange(SEEDS)}, lengths)


def test_a_value_picks_its_place_on_every_axis(record):
    picked = record.at(eta=0.2, seed=3)
    for name, value in record.values.items():
        np.testing.assert_array_equal(picked.values[name], value[:, 1, 3])
    assert picked.axes == {}
    np.testing.assert_array_equal(picked.time, record.time[:, 1, 3])
    assert picked.lengths["spectrum"] == 1
    one = record.at(seed=3)
    assert list(one.axes) == ["eta"]
    np.testing.assert_array_equal(one.values["spectrum"], record.values["spectrum"][:, :, 3])
    np.testing.assert_array_equal(one.at(eta=0.2).values["loss"], record.at(eta=0.2).at(seed=3).values["loss"])
    assert record.at() == record


@pytest.mark.parametrize("kind", [float, np.float32, np.float64])
def test_a_number_picks_what_was_stored_in_another_precision(record, kind):
    for stored in (np.float32, np.float64, list):
        axes = {"eta": list(ETA) if stored is list else np.array(ETA, stored), "seed": range(SEEDS)}
        found = record._replace(axes=axes).at(eta=kind(0.1))
        np.testing.assert_array_equal(found.values["loss"], record.values["loss"][:, 0])


@pytest.mark.parametrize("values", [("mse", "hinge", "logistic"), (None, 0.1, 0.2), ((1, 2), (3, 4), (5, 6))])
def test_words_pairs_and_none_are_values_too(record, values):
    held = record._replace(axes={"choice": values, "seed": range(SEEDS)})
    for i, value in enumerate(values):
        np.testing.assert_array_equal(held.at(choice=value).values["loss"], record.values["loss"][:, i])


def test_a_number_beside_none_is_found_in_another_precision(record):
    held = record._replace(axes={"momentum": (None, 0.1, 0.2), "seed": range(SEEDS)})
    np.testing.assert_array_equal(held.at(momentum=np.float32(0.1)).values["loss"], record.values["loss"][:, 1])


def test_what_is_not_there_is_a_sentence(record):
    with pytest.raises(KeyError, match="axis: got 'alpha'; allowed: eta, seed"):
        record.at(alpha=1)
    with pytest.raises(KeyError, match=r"eta: got 0\.3; allowed: 0\.1, 0\.2, 0\.5"):
        record.at(eta=0.3)
    with pytest.raises(KeyError, match=r"eta: got '0\.1'; allowed: 0\.1, 0\.2, 0\.5"):
        record.at(eta="0.1")
    with pytest.raises(KeyError, match=r"allowed: none \(this record has no axes\)"):
        record.at(eta=0.1, seed=0).at(eta=0.1)
    with pytest.raises(KeyError, match="axis: got 'width'; allowed: eta, seed"):
        record.mean("width")
    with pytest.raises(KeyError, match="axis: got none; allowed: one or more of eta, seed"):
        record.std()


def test_statistics_and_their_errors_are_numpys(record):
    x, root = record.values["loss"], SEEDS**0.5
    spread = x.std(2, ddof=1)
    expected = {
        "mean": (x.mean(2), spread / root),
        "median": (np.median(x, 2), np.sqrt(np.pi / 2) * spread / root),
        "std": (spread, spread / np.sqrt(2 * (SEEDS - 1))),
    }
    for name, (value, error) in expected.items():
        found = getattr(record, name)("seed").values["loss"]
        assert found.n == SEEDS
        np.testing.assert_allclose(found.value, value, rtol=1e-12)
        np.testing.assert_allclose(found.error, error, rtol=1e-12)
    np.testing.assert_array_equal(record.min("seed").values["loss"], x.min(2))
    np.testing.assert_array_equal(record.max("eta").values["spectrum"], record.values["spectrum"].max(1))


def test_axes_may_go_together_in_any_order(record):
    x = record.values["spectrum"].reshape(T, 3 * SEEDS, 2)
    for names in (("eta", "seed"), ("seed", "eta")):
        found = record.mean(*names)
        assert found.axes == {}
        np.testing.assert_allclose(found.values["spectrum"].value, x.mean(1), rtol=1e-12)
        np.testing.assert_allclose(found.values["spectrum"].error, x.std(1, ddof=1) / len(x[0]) ** 0.5, rtol=1e-12)
        np.testing.assert_allclose(found.time, record.time.mean((1, 2)))
        assert found.lengths["spectrum"] == 2  # the longest
    assert record.mean("seed").time.shape == (T, 3)
    np.testing.assert_allclose(record.mean("seed").at(eta=0.5).time, 0.5 * np.arange(T))
    shared = record._replace(time=np.arange(T)).mean("seed")
    np.testing.assert_array_equal(shared.time, np.arange(T))


@pytest.mark.parametrize("name", ["mean", "median", "std"])
def test_errors_are_the_spread_of_repeated_statistics(name):
    """4000 normal samples of 50: the root mean square of the errors against the statistics' own standard deviation.

    The spread of 4000 statistics is known to 1.1 % (one standard error), and at n = 50 the asymptotic formulas of
    median and standard deviation are off by O(1/n) = 2 %.
    """
    x = np.random.default_rng(1).normal(size=(1, 4000, 50))
    found = getattr(Record([0], [0], {"x": x}, {"trial": range(4000), "sample": range(50)}), name)("sample").values["x"]
    np.testing.assert_allclose(np.sqrt(np.mean(found.error**2)), found.value.std(), rtol=5 * 0.011 + 0.02)


@pytest.mark.filterwarnings("error")
def test_one_sample_has_a_value_and_no_error(record):
    one = record.at(seed=0)._replace(axes={"eta": ETA[:1]}, lengths={})
    one = one._replace(values={"loss": one.values["loss"][:, :1]}, time=np.arange(T))
    for name in ("mean", "median"):
        found = getattr(one, name)("eta").values["loss"]
        np.testing.assert_array_equal(found.value, one.values["loss"][:, 0])
        assert np.all(np.isnan(found.error))
    assert np.all(np.isnan(one.std("eta").values["loss"].value))


def test_a_missing_sample_is_not_passed_over(record):
    record.values["loss"][2, 1, 4] = np.nan
    found = record.mean("seed").values["loss"]
    assert np.isnan(found.value[2, 1])
    assert np.isfinite(np.delete(found.value.ravel(), 2 * 3 + 1)).all()


def test_estimates_pick_and_become_arrays(record):
    found = record.mean("seed").values["loss"]
    last = found[-1]
    np.testing.assert_array_equal(last.value, found.value[-1])
    np.testing.assert_array_equal(last.error, found.error[-1])
    assert last.n == SEEDS
    assert found[2, 1].value == found.value[2, 1]
    np.testing.assert_array_equal(np.asarray(found), found.value)
    assert np.asarray(found, np.float32).dtype == np.float32
    np.testing.assert_array_equal(np.log(np.abs(found)), np.log(np.abs(found.value)))
    value, error, n = Estimate(1.0, 0.1)
    assert (value, error, n) == (1.0, 0.1, 0)


def test_picking_from_statistics_commutes(record):
    one, other = record.mean("seed").at(eta=0.2), record.at(eta=0.2).mean("seed")
    for name in record.values:
        for a, b in zip(one.values[name], other.values[name], strict=True):
            np.testing.assert_array_equal(a, b)


def test_dataset_has_the_axes_as_dimensions(record):
    dataset = record.to_dataset({"title": "a study"})
    assert dataset["loss"].dims == dataset["time"].dims == ("step", "eta", "seed")
    assert dataset["spectrum"].dims == ("step", "eta", "seed", "spectrum_1")
    assert dataset["spectrum_length"].dims == ("eta", "seed")
    assert dataset.attrs == {"title": "a study"}
    np.testing.assert_array_equal(dataset["loss"].sel(eta=0.2, seed=3), record.at(eta=0.2, seed=3).values["loss"])
    plain = record._replace(time=np.arange(T)).to_dataset()
    assert plain["time"].dims == ("step",)
    np.testing.assert_array_equal(plain["step"], record.step)


def test_statistics_keep_their_errors_and_counts_as_dataset_and_frame(record):
    mean = record.mean("seed")
    expected, dataset, frame = mean.values["loss"], mean.to_dataset(), mean.to_frame()
    assert dataset["loss"].dims == dataset["loss_stderr"].dims == ("step", "eta")
    for name, value in {"loss": expected.value, "loss_stderr": expected.error}.items():
        np.testing.assert_array_equal(dataset[name], value)
        np.testing.assert_array_equal(frame[name], value.ravel())
    assert dataset["loss_n"] == SEEDS
    assert frame["loss_n"].tolist() == [SEEDS] * T * 3
    np.testing.assert_array_equal(frame["spectrum_stderr"].iloc[1], mean.values["spectrum"].error[0, 1])
    clash = Record([0], [0], {"loss": Estimate(1.0, 0.1, 2), "loss_n": 3})
    for convert in (clash.to_dataset, clash.to_frame):
        with pytest.raises(ValueError, match="values: got 'loss_n' beside the Estimate 'loss'; allowed: another name"):
            convert()


def test_frame_has_one_row_a_step_and_cell(record):
    frame = record.to_frame()
    assert list(frame.columns) == ["step", "time", "eta", "seed", "loss", "spectrum", "count"]
    assert len(frame) == T * 3 * SEEDS
    for row in (0, 7, 31, 59):
        t, i, j = np.unravel_index(row, (T, 3, SEEDS))
        found = frame.iloc[row]
        assert (found["step"], found["eta"], found["seed"]) == (record.step[t], ETA[i], j)
        assert found["time"] == record.time[t, i, j]
        assert found["loss"] == record.values["loss"][t, i, j]
        assert found["count"] == record.values["count"][t, i, j]
        np.testing.assert_array_equal(found["spectrum"], record.values["spectrum"][t, i, j])
        assert np.shares_memory(found["spectrum"], record.values["spectrum"])
    means = frame.groupby(["step", "eta"])["loss"].mean().to_numpy().reshape(T, 3)
    np.testing.assert_allclose(means, record.mean("seed").values["loss"].value, rtol=1e-12)


def test_frames_without_axes_and_with_shared_time(record):
    frame = record.at(eta=0.2, seed=3).to_frame()
    assert list(frame["loss"]) == list(record.values["loss"][:, 1, 3])
    shared = record._replace(time=np.arange(T)).to_frame()
    np.testing.assert_array_equal(shared["time"], np.repeat(np.arange(T), 3 * SEEDS))
