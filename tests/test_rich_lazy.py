"""Every rich-and-lazy experiment end to end at a tiny size; settings that are refused."""

import gzip
import hashlib
import importlib
import struct
import warnings
from functools import partial

import numpy as np
import pytest

TINY = {
    "benign_lazy": dict(seeds=2, width=(8, 16), separation=(0.5, 2.0), dim=20, samples=10, steps=20),
    "connectivity_rank": dict(seeds=2, units=8, rank=(1, 8), iterations=5, linear_rank=(1, 20), tasks=3),
    "deep_linear": dict(seeds=1, size=4, depth=(2, 4), deep=(4,), patience=50, imbalance=(-1.0, 0.0, 1.0)),
    "digits_kernel": dict(seeds=2, layers=2, samples=(25, 50)),
    "generalisation_dynamics": dict(
        seeds=4, size=20, aspect=(0.5, 2.0), steps=20, network_samples=(10, 20), network_seeds=2, network_steps=20
    ),
    "output_scale": dict(seeds=2, alpha=(0.1, 1.0, 10.0), width=(16, 32), steps=50),
    "parametrisation": dict(seeds=2, width=(16, 32), rate=(0.5, 1.0, 2.0), steps=5),
    "random_features": dict(seeds=3, samples=(16, 32), features=(16, 32), modes=64),
    "saddle_to_saddle": dict(seeds=2, size=6, steps=400),
    "scaling_laws": dict(seeds=2, size=(8, 16), modes=128, times=8),
    "sgd_noise": dict(
        seeds=1,
        alpha=(1.0, 64.0),
        temperature=(0.01, 0.1),
        samples=(32, 64),
        hidden=8,
        updates=100,
        perceptron_samples=(32, 64),
        perceptron_seeds=2,
        perceptron_updates=1024,
    ),
    "wide_cnn": dict(seeds=2, grid=64, samples=(16, 32), test=20),
    "wide_deep_classifier": dict(seeds=1, depth=(1, 10), samples=(16, 32), test=20),
    "width": dict(seeds=2, width=(16, 32), samples=6, steps=20, checkpoints=4),
}
FAST = ("saddle_to_saddle",)


def module(name):
    return importlib.import_module(f"experiments.rich_lazy.{name}")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in FAST else pytest.mark.slow) for n in TINY])
def test_experiment_runs_from_config_to_figure(name):
    """run -> records, claims, figure, without a warning however small the settings."""
    experiment = module(name)
    config = experiment.Config(**TINY[name])
    result = experiment.run(config)
    assert result.config == config
    for record in result.records.values():
        assert all(
            len(value) == len(np.asarray(record.step)) or value.shape[0] == 1 for value in record.values.values()
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        found = experiment.claims(result)
        assert experiment.figure(result).axes
    assert found
    assert all(claim.holds in (True, False, None) and claim.name for claim in found)
    assert len({claim.name for claim in found}) == len(found)


@pytest.mark.parametrize("name", sorted(TINY))
def test_experiment_describes_itself(name):
    experiment = module(name)
    assert experiment.SOURCE
    assert 0 < experiment.SECONDS <= 180
    presets = experiment.Config.presets()
    assert presets["paper"]() != presets["quick"]()


@pytest.mark.parametrize(
    ("name", "bad", "field"),
    [
        ("output_scale", {"alpha": (1.0, 0.1)}, "alpha"),
        ("output_scale", {"width": (0,)}, "width"),
        ("width", {"steps": 0}, "steps"),
        ("deep_linear", {"start": 5.0}, "start"),
        ("saddle_to_saddle", {"strength": (1.0, 2.0)}, "strength"),
        ("scaling_laws", {"a": 1.0}, "a"),
        ("scaling_laws", {"size": (16, 4096)}, "size"),
        ("sgd_noise", {"temperature": (float("nan"),)}, "temperature"),
        ("sgd_noise", {"samples": (128, 4096)}, "samples"),
        ("connectivity_rank", {"rank": (1, 100)}, "rank"),
        ("wide_cnn", {"grid": 65}, "grid"),
    ],
)
def test_bad_settings_are_named(name, bad, field):
    with pytest.raises(ValueError, match=f"^{field}:"):
        module(name).Config(**bad)


def idx(array: np.ndarray) -> bytes:
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return gzip.compress(header + array.tobytes())


def test_sgd_noise_reads_the_parity_of_mnist(tmp_path, monkeypatch):
    """From checked files where they are; otherwise the missing file is named with its hash and where to get it."""
    from dynamics.tasks.files import Source
    from dynamics.tasks.images import mnist

    experiment, labels = module("sgd_noise"), np.arange(40, dtype=np.uint8) % 10
    images = np.random.default_rng(0).integers(0, 256, (40, 28, 28), dtype=np.uint8)
    files = {}
    for part in ("train", "t10k"):
        files |= {f"{part}-images-idx3-ubyte.gz": idx(images), f"{part}-labels-idx1-ubyte.gz": idx(labels)}
    (tmp_path / "mnist").mkdir()
    for name, content in files.items():
        (tmp_path / "mnist" / name).write_bytes(content)
    source = Source("mnist", {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}, ())
    config = experiment.Config(**TINY["sgd_noise"] | {"dataset": "mnist", "samples": (32, 40)})

    monkeypatch.setenv("DYNAMICS_OFFLINE", "1")
    monkeypatch.setenv("DYNAMICS_DATA", str(tmp_path / "empty"))
    with pytest.raises(FileNotFoundError, match=r"train-images-idx3-ubyte\.gz"):
        experiment.images_task(config)
    monkeypatch.setenv("DYNAMICS_DATA", str(tmp_path))
    monkeypatch.setattr(experiment, "mnist", partial(mnist, source=source))
    _, data = experiment.images_task(config)
    assert data.x.shape == (40, 784)
    assert float(data.y.sum()) == 0.0  # as many even labels as odd ones
