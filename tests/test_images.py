"""Digits against scikit-learn; the other readers on generated files of the true formats, over loopback HTTP."""

import gzip
import hashlib
import http.server
import io
import struct
import tarfile
import threading

import numpy as np
import pytest
from sklearn.datasets import load_digits

from dynamics.tasks import cifar10, digits, fashion_mnist, mnist
from dynamics.tasks.files import CIFAR10, FASHION_MNIST, MNIST, Source, fetch, folder, read_idx


def test_digits_unit_is_scikit_learn_over_16():
    loaded = load_digits()
    data = digits()
    np.testing.assert_array_equal(data.train.x * 16, loaded.data)
    np.testing.assert_array_equal(np.argmax(data.train.y, axis=1), loaded.target)
    assert data.test is None
    assert data.train.x.dtype == data.train.y.dtype == np.float32


def test_digits_split_shares_no_sample_and_loses_none():
    data = digits(200, seed=3)
    both = np.concatenate([data.train.x, data.test.x])
    np.testing.assert_array_equal(np.sort(both.sum(1)), np.sort(digits().train.x.sum(1)))
    assert data.test.x.shape == (1597, 64)
    again = digits(200, seed=3)
    np.testing.assert_array_equal(again.train.x, data.train.x)
    assert not np.array_equal(digits(200, seed=4).train.x, data.train.x)


def test_standardised_with_training_statistics():
    unit, standard = digits(300, flat=False), digits(300, scale="standard", flat=False)
    mean, std = unit.train.x.mean(0), unit.train.x.std(0)
    for plain, scaled in zip((unit.train, unit.test), (standard.train, standard.test)):
        # one float32 rounding of the pixel, magnified by at most 1 / epsilon
        np.testing.assert_allclose(scaled.x, (plain.x - mean) / (std + 1e-2), atol=2e-5 * 50)
    assert standard.train.x.shape == (300, 8, 8, 1)


def test_whitening_identity():
    epsilon = 1e-2
    x = digits(500, scale="whiten", epsilon=epsilon, dtype=np.float64).train.x
    raw = digits(500, dtype=np.float64).train.x
    variances, directions = np.linalg.eigh(np.cov(raw.T, bias=True))
    # in the eigenbasis the covariance of the output is S / (S + epsilon); pixels are float32, so 1e-6 / epsilon
    got = directions.T @ np.cov(x.T, bias=True) @ directions
    np.testing.assert_allclose(got, np.diag(variances / (variances + epsilon)), atol=1e-4)


def test_targets():
    labels = load_digits().target
    np.testing.assert_array_equal(digits(target="parity").train.y[:, 0], np.where(labels % 2, -1, 1))
    pair = digits(target="binary", classes=(9, 4))
    chosen = labels[(labels == 9) | (labels == 4)]
    np.testing.assert_array_equal(pair.train.y[:, 0], np.where(chosen == 9, -1, 1))
    np.testing.assert_array_equal(digits(classes=3).train.y.sum(0), np.bincount(labels)[:3])
    parity_of_pair = digits(target="parity", classes=(9, 4)).train.y[:, 0]
    np.testing.assert_array_equal(parity_of_pair, np.where(chosen % 2, -1, 1))
    own = digits(10, target=lambda label: label / 10.0).train.y
    np.testing.assert_allclose(own[:, 0], labels[:10] / 10.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": 0}, "train, test: got 0, 1797"),
        ({"train": 1797, "test": 1}, "together at most 1797"),
        ({"classes": 1}, "classes: got 1; allowed: an integer from 2 to 10"),
        ({"classes": (3, 3)}, "classes: got"),
        ({"scale": "zca"}, "allowed: unit, standard, whiten"),
        ({"target": "onehot"}, "allowed: one_hot, parity, binary"),
        ({"target": lambda label: label[:3]}, "target: got an array of shape"),
        ({"epsilon": float("nan")}, "epsilon: got nan; allowed: a number > 0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        digits(**arguments)


def _idx(array: np.ndarray) -> bytes:
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return gzip.compress(header + array.tobytes())


def _generated_mnist(n_train=50, n_test=20):
    rng = np.random.default_rng(0)
    files, arrays = {}, {}
    for part, n in (("train", n_train), ("t10k", n_test)):
        images = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = (np.arange(n) % 10).astype(np.uint8)
        files[f"{part}-images-idx3-ubyte.gz"], files[f"{part}-labels-idx1-ubyte.gz"] = _idx(images), _idx(labels)
        arrays[part] = images, labels
    return files, arrays


def _generated_cifar10(per_batch=4):
    rng = np.random.default_rng(1)
    stream, arrays = io.BytesIO(), []
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
            images = rng.integers(0, 256, (per_batch, 32, 32, 3), dtype=np.uint8)
            labels = rng.integers(0, 10, per_batch).astype(np.uint8)
            records = np.concatenate([labels[:, None], images.transpose(0, 3, 1, 2).reshape(per_batch, -1)], axis=1)
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = records.size
            archive.addfile(member, io.BytesIO(records.astype(np.uint8).tobytes()))
            arrays.append((images, labels))
    return {"cifar-10-binary.tar.gz": stream.getvalue()}, arrays


def _source(name: str, files: dict[str, bytes], *mirrors: str) -> Source:
    return Source(name, {file: hashlib.sha256(raw).hexdigest() for file, raw in files.items()}, mirrors)


@pytest.fixture
def server():
    """A loopback web server: ``serve({path: bytes}) -> base URL``; ``requests`` lists the paths asked for."""
    content: dict[str, bytes] = {}
    requests: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            body = content.get(self.path)
            self.send_response(404 if body is None else 200)
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_):
            pass

    host = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=host.serve_forever)
    thread.start()

    def serve(folder_name, files):
        content.update({f"/{folder_name}/{name}": raw for name, raw in files.items()})
        return f"http://127.0.0.1:{host.server_port}/{folder_name}/"

    serve.requests = requests
    yield serve
    host.shutdown()
    thread.join()
    host.server_close()


def test_mnist_over_loopback_falls_to_the_second_mirror(server, tmp_path):
    files, arrays = _generated_mnist()
    good = server("good", files)
    broken = server("broken", {name: raw + b"x" for name, raw in files.items()})
    source = _source("mnist", files, broken.replace("broken", "absent"), broken, good)
    data = mnist(source=source, cache=tmp_path, download=True, flat=False)
    np.testing.assert_allclose(data.train.x[..., 0], arrays["train"][0] / 255.0, atol=1e-7)
    np.testing.assert_array_equal(data.test.y.argmax(1), arrays["t10k"][1])
    asked = len(server.requests)
    again = mnist(source=source, cache=tmp_path, download=True, flat=False)
    assert len(server.requests) == asked, "a complete cache is not fetched again"
    np.testing.assert_array_equal(again.train.x, data.train.x)


def test_subsets_of_split_data(server, tmp_path):
    files, arrays = _generated_mnist()
    source = _source("fashion_mnist", files, server("files", files))
    options = {"source": source, "cache": tmp_path, "download": True}
    labels = arrays["train"][1]
    data = fashion_mnist(6, 2, classes=(3, 8), target="binary", **options)
    np.testing.assert_array_equal(data.train.y[:, 0], np.where(labels[(labels == 3) | (labels == 8)] == 3, -1, 1)[:6])
    assert data.test.x.shape == (2, 784)
    assert fashion_mnist(6, 0, **options).test is None
    shuffled = fashion_mnist(seed=1, target=lambda label: label, **options)
    np.testing.assert_array_equal(np.sort(shuffled.train.y[:, 0]), np.sort(labels))
    with pytest.raises(ValueError, match="train: got 51; allowed: an integer from 1 to 50"):
        mnist(51, **options)


def test_cifar10_over_loopback(server, tmp_path):
    files, arrays = _generated_cifar10()
    data = cifar10(source=_source("cifar10", files, server("files", files)), cache=tmp_path, download=True, flat=False)
    np.testing.assert_allclose(data.train.x, np.concatenate([x for x, _ in arrays[:5]]) / 255.0, atol=1e-7)
    np.testing.assert_array_equal(data.train.y.argmax(1), np.concatenate([y for _, y in arrays[:5]]))
    np.testing.assert_allclose(data.test.x, arrays[5][0] / 255.0, atol=1e-7)


def test_missing_file_is_named_and_never_fetched_silently(server, tmp_path, monkeypatch):
    files, _ = _generated_mnist()
    source = _source("mnist", files, server("files", files))
    wanted = source.files["train-images-idx3-ubyte.gz"]
    with pytest.raises(FileNotFoundError, match=rf"train-images-idx3-ubyte.gz: not there .*{wanted}.*download=True"):
        mnist(source=source, cache=tmp_path)
    monkeypatch.setenv("DYNAMICS_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="unset DYNAMICS_OFFLINE"):
        mnist(source=source, cache=tmp_path, download=True)
    assert server.requests == []
    assert list(tmp_path.iterdir()) == []


def test_wrong_hash_names_both_and_keeps_the_file(server, tmp_path):
    files, _ = _generated_mnist()
    source = _source("mnist", files, server("files", files))
    fetch(source, download=True, cache=tmp_path)
    path = folder(source, tmp_path) / "t10k-labels-idx1-ubyte.gz"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    found, wanted = hashlib.sha256(raw).hexdigest(), source.files[path.name]
    for download in (False, True):
        with pytest.raises(ValueError, match=rf"{path.name}: got SHA-256 {found}; allowed: {wanted}.*move it away"):
            fetch(source, download=download, cache=tmp_path)
    assert path.read_bytes() == raw


def test_every_mirror_failing_names_each_answer(server, tmp_path):
    files, _ = _generated_mnist()
    broken = server("broken", {name: raw + b"x" for name, raw in files.items()})
    source = _source("mnist", files, broken.replace("broken", "absent"), broken, "http://127.0.0.1:9/")
    with pytest.raises(OSError, match=r"(?s)no mirror gave this file.*404.*does not match the known hash.*127.0.0.1:9"):
        fetch(source, download=True, cache=tmp_path, timeout=2.0)
    assert not list(folder(source, tmp_path).glob("*.gz"))


def test_cache_folder_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("DYNAMICS_DATA", str(tmp_path / "data"))
    assert folder(MNIST) == tmp_path / "data" / "mnist"
    monkeypatch.delenv("DYNAMICS_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert folder(CIFAR10) == tmp_path / "dynamics" / "cifar10"


@pytest.mark.parametrize("spoil", [lambda raw: raw[:-5], lambda raw: raw[:3], lambda raw: b"\x00\x00\x0d" + raw[3:]])
def test_idx_reader_names_a_bad_file(tmp_path, spoil):
    path = tmp_path / "bad-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(spoil(gzip.decompress(_idx(np.zeros((2, 3, 3), np.uint8))))))
    with pytest.raises(ValueError, match=r"bad-idx3-ubyte.gz: got .*; allowed: a whole IDX file"):
        read_idx(path)


def test_cifar10_reader_names_a_missing_batch(tmp_path):
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz"):
        pass
    raw = (tmp_path / "cifar-10-binary.tar.gz").read_bytes()
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10" / "cifar-10-binary.tar.gz").write_bytes(raw)
    source = _source("cifar10", {"cifar-10-binary.tar.gz": raw})
    with pytest.raises(ValueError, match=r"got 0 bytes of data_batch_1.bin; allowed: whole"):
        cifar10(source=source, cache=tmp_path)


def test_sources_list_two_mirrors_and_sha256():
    for source in (MNIST, FASHION_MNIST, CIFAR10):
        assert len(source.mirrors) >= 2
        assert all(len(digest) == 64 and int(digest, 16) for digest in source.files.values())
        assert all(mirror.startswith("https://") and mirror.endswith("/") for mirror in source.mirrors)
