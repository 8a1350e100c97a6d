"""The rich-and-lazy experiments: settings that are refused, and images from checked files."""

import gzip
import hashlib
import importlib
import struct
from functools import partial

import numpy as np
import pytest


def module(name):
    return importlib.import_module(f"dynamics.experiments.rich_lazy.{name}")


@pytest.mark.parametrize(
    ("name", "bad", "field"),
    [
        ("output_scale", {"alpha": (1.0, 0.1)}, "alpha"),
        ("output_scale", {"width": (0,)}, "width"),
        ("width", {"steps": 0}, "steps"),
        ("deep_linear", {"start": 5.0}, "start"),
        ("saddle_to_saddle", {"strength": (1.0, 2.0)}, "strength"),
        ("scaling_laws", {"a": (1.0, 2.5, 3.2)}, "a"),
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
    config = experiment.Config(dataset="mnist", samples=(32, 40))

    monkeypatch.setenv("DYNAMICS_OFFLINE", "1")
    monkeypatch.setenv("DYNAMICS_DATA", str(tmp_path / "empty"))
    with pytest.raises(FileNotFoundError, match=r"train-images-idx3-ubyte\.gz"):
        experiment.images_task(config)
    monkeypatch.setenv("DYNAMICS_DATA", str(tmp_path))
    monkeypatch.setattr(experiment, "mnist", partial(mnist, source=source))
    _, data, _ = experiment.images_task(config)
    assert data.x.shape == (40, 784)
    assert float(data.y.sum()) == 0.0  # as many even labels as odd ones
