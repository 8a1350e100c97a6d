"""Data files on disk: where they are kept, how they are checked and fetched, and how their formats are read."""

from __future__ import annotations

import gzip
import hashlib
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from dynamics.extras import missing


class Source(NamedTuple):
    """A data set's files and where to get them; ``source._replace(mirrors=...)`` adds a mirror of your own.

    Attributes:
        name: folder inside the cache.
        files: ``{file name: SHA-256 in hex}``.
        mirrors: URLs of folders that hold the files, tried in turn.
    """

    name: str
    files: Mapping[str, str]
    mirrors: tuple[str, ...]


MNIST = Source(
    "mnist",
    {
        "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    },
    ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
)

FASHION_MNIST = Source(
    "fashion_mnist",
    {
        "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    },
    (
        "https://fashion-mnist.s3.eu-central-1.amazonaws.com/",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    ),
)

CIFAR10 = Source(
    "cifar10",
    {"cifar-10-binary.tar.gz": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"},
    (
        "https://www.cs.toronto.edu/~kriz/",
        "https://storage.googleapis.com/s4tf-hosted-binaries/datasets/CIFAR10/",
    ),
)


def folder(source: Source, cache: str | Path | None = None) -> Path:
    """Where the files of ``source`` are kept: ``cache``, else ``$DYNAMICS_DATA``, else the user's cache directory."""
    home = cache or os.environ.get("DYNAMICS_DATA")
    if home is None:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dynamics"
    return Path(home).expanduser() / source.name


def fetch(source: Source, *, download: bool = False, cache: str | Path | None = None, timeout: float = 30.0) -> Path:
    """Makes sure that every file of ``source`` is there and has its hash; downloads only when told to.

    Args:
        source: the files, their hashes and their mirrors.
        download: fetch what is missing, from the first mirror that answers with the right bytes. False, or the
            environment variable ``DYNAMICS_OFFLINE`` set to anything but 0, never touches the network.
        cache: see ``folder``.
        timeout: seconds without an answer after which a mirror is given up.

    Returns:
        The folder that holds the files.

    Raises:
        FileNotFoundError: a file is missing and may not be downloaded; names the file, its hash, where it can be had.
        ValueError: a file on disk has the wrong hash; names the file and both hashes. It is never overwritten.
        OSError: no mirror gave the file; names each mirror's answer.
        ImportError: a download is wanted and pooch is missing; names the extra ``data``.
    """
    home = folder(source, cache)
    offline = os.environ.get("DYNAMICS_OFFLINE", "0") not in ("", "0")
    for name, wanted in source.files.items():
        path = home / name
        if not path.exists():
            if offline or not download:
                raise FileNotFoundError(_missing(source, path, wanted, offline))
            _download(source, path, wanted, timeout)
        found = sha256(path)
        if found != wanted:
            raise ValueError(
                f"{path}: got SHA-256 {found}; allowed: {wanted}; the file is damaged or another one: move it away and "
                "call again with download=True"
            )
    return home


def _missing(source: Source, path: Path, wanted: str, offline: bool) -> str:
    remedy = "unset DYNAMICS_OFFLINE and call with download=True" if offline else "call with download=True"
    places = " or ".join(mirror + path.name for mirror in source.mirrors)
    return f"{path}: not there (SHA-256 of the expected file: {wanted}); {remedy}, or put it there from {places}"


def _download(source: Source, path: Path, wanted: str, timeout: float) -> None:
    try:
        import pooch
    except ImportError as error:
        raise missing(f"downloading {path.name}", "pooch", "data") from error
    answers = []
    downloader: Any = pooch.HTTPDownloader(timeout=timeout)
    for mirror in source.mirrors:
        try:
            pooch.retrieve(
                mirror + path.name, f"sha256:{wanted}", fname=path.name, path=path.parent, downloader=downloader
            )
            return
        except (OSError, ValueError) as error:  # requests' errors are OSErrors; ValueError is a wrong hash
            answers.append(f"{mirror}: {' '.join(str(error).split())}")
    raise OSError(f"{path.name}: no mirror gave this file (SHA-256 {wanted}); " + "; ".join(answers))


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_idx(path: Path) -> UInt8[np.ndarray, "*shape"]:
    """Reads a gzipped IDX file of unsigned bytes (MNIST's format), shaped as its header says.

    Raises:
        ValueError: when the header or the length is not what the format asks; names the file.
    """
    with gzip.open(path, "rb") as stream:
        raw = stream.read()
    axes = raw[3] if len(raw) > 3 else 0
    shape = tuple(np.frombuffer(raw, ">u4", axes, 4).tolist()) if len(raw) >= 4 + 4 * axes else ()
    if raw[:3] != b"\x00\x00\x08" or not shape or len(raw) != 4 + 4 * axes + int(np.prod(shape)):
        raise ValueError(f"{path}: got {len(raw)} bytes, shape {shape}; allowed: a whole IDX file of unsigned bytes")
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * axes).reshape(shape)


def read_cifar10(path: Path, *, train: bool) -> tuple[UInt8[np.ndarray, "n 32 32 3"], Int[np.ndarray, " n"]]:
    """Reads CIFAR-10's binary archive without unpacking it to disk: ``(pixels, labels)``.

    Each record is one label byte and 3072 pixel bytes: red, green, blue planes, row by row.

    Raises:
        ValueError: when a batch file is missing from the archive or is not a whole number of records.
    """
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] if train else ["test_batch.bin"]
    batches = []
    with tarfile.open(path, "r:gz") as archive:
        members = {os.path.basename(member.name): member for member in archive.getmembers() if member.isfile()}
        for name in names:
            stream = archive.extractfile(members[name]) if name in members else None
            raw = b"" if stream is None else stream.read()
            if not raw or len(raw) % 3073:
                raise ValueError(f"{path}: got {len(raw)} bytes of {name}; allowed: whole records of 3073")
            batches.append(np.frombuffer(raw, np.uint8).reshape(-1, 3073))
    records = np.concatenate(batches)
    return records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), records[:, 0].astype(int)
