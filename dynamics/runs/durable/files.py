"""Bytes on disk: atomic writes, strict JSON, and arrays packed with their dtypes and a digest.

Whatever lies in a run's folder is opened here: regular files alone, of a size that can be, and never through a link.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import math
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from dynamics.runs.durable.errors import Damaged, Unusable, understood

MAGIC = b"dynamics-arrays-1\n"
MOST = 2**26
"""Bytes of a text file of a run, at most."""


def digest(data: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()


def file_digest(path: Path, most: int = 2**32) -> str | None:
    """SHA-256 of a file, or None where it cannot be read."""
    try:
        return digest(read_bytes(path, most))
    except (OSError, Unusable):
        return None


def open_file(path: Path, flags: int) -> int:
    """A descriptor of a regular file, opened with ``flags``; waits for no pipe and follows no link.

    Raises:
        OSError: as ``os.open``.
        Damaged: for a link, a pipe, a device.
    """
    try:
        file = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EMLINK, errno.ENXIO):
            raise
        raise Damaged(f"{path}: is no regular file of one name; it is not followed") from error
    held = os.fstat(file)
    if not stat.S_ISREG(held.st_mode) or (held.st_nlink > 1 and flags & (os.O_WRONLY | os.O_RDWR)):
        os.close(file)
        raise Damaged(f"{path}: is no regular file of one name; it is not followed")
    return file


def read_bytes(path: Path, most: int = MOST) -> bytes:
    """A file of a run, of ``most`` bytes at most; raises as ``open_file``."""
    with open(open_file(path, os.O_RDONLY), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise Damaged(f"{path}: got {size} bytes; allowed: at most {most}")
        return file.read(most)


def read_json(path: Path, default: Any) -> Any:
    """The content of a JSON file of a run, or ``default`` where it is missing.

    Raises:
        Damaged: when it is not JSON of the same kind as ``default``; names the file.
    """
    with understood(path):
        try:
            value = json.loads(read_bytes(path))
        except FileNotFoundError:
            return default
        if not isinstance(value, type(default)):
            raise TypeError(f"content: got {type(value).__name__}; allowed: {type(default).__name__}")
    return value


def write_bytes(path: Path, *data: bytes | memoryview) -> None:
    """Writes a whole file or nothing: to a neighbour first, to the disk, then renamed over ``path``."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        beside.unlink(missing_ok=True)
        with open(open_file(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
            for part in data:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def own_folder(path: Path) -> Path:
    """``path``, a folder of a run to be written in.

    Raises:
        Damaged: where it is a link.
    """
    if path.is_symlink():
        raise Damaged(f"{path}: leads elsewhere through a link, which is not followed")
    return path


def files_within(folder: Path) -> Iterator[Path]:
    """Everything under a folder that is no folder, links among it, which are not followed."""
    for place, folders, names in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        yield from (Path(place, name) for name in [*names, *links])


def require_run(path: Path) -> Path:
    """The journal of the run at ``path``.

    Raises:
        Unusable: where there is none, or a sweep of dynamics 0.1.
    """
    file = path / "run.sqlite"
    if os.path.lexists(file):
        return file
    if (path / "grid.json").is_file():
        raise Unusable(
            f"{path}: holds a sweep of dynamics 0.1, which this version does not read; run it under a new name"
        )
    raise Unusable(f"{path}: no run here (run.sqlite is missing)")


def plain(value: Any) -> Any:
    """``value`` as what strict JSON can say; a number that is not finite becomes null, with ``<key>_status`` beside it.

    Dataclasses, named tuples and mappings become objects, arrays lists, anything else its text.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    elif isinstance(value, tuple) and hasattr(value, "_asdict"):
        value = value._asdict()  # type: ignore[attr-defined]
    if isinstance(value, Mapping):
        done: dict[str, Any] = {}
        for key, item in value.items():
            done[str(key)] = plain(item)
            if isinstance(item, (float, np.floating)) and not math.isfinite(item):
                done[f"{key}_status"] = str(float(item))
        return done
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, (np.integer, np.bool_)):
        return value.item()
    if hasattr(value, "tolist") and hasattr(value, "dtype"):
        return plain(np.asarray(value).tolist())
    return str(value)


def json_text(value: Any) -> str:
    """``value`` as indented strict JSON; see ``plain``."""
    return json.dumps(plain(value), indent=2, allow_nan=False) + "\n"


def pack(arrays: Mapping[str, Any]) -> bytes:
    """Named arrays as bytes: a JSON header (names, dtypes, shapes), the raw values, and a SHA-256 over both.

    Example:
        >>> import numpy as np
        >>> unpack(pack({"loss": np.array([1.0, np.nan])}))["loss"]
        array([ 1., nan])
    """
    return b"".join(packed(arrays)[0])


def packed(arrays: Mapping[str, Any]) -> tuple[list[bytes | memoryview], str]:
    """``pack`` in parts, with the digest of the whole: one pass over the values and no copy of them."""
    held = {name: np.asarray(array) for name, array in arrays.items()}
    header = json.dumps({name: [array.dtype.name, list(array.shape)] for name, array in held.items()}).encode()
    parts: list[bytes | memoryview] = [MAGIC + len(header).to_bytes(8, "little") + header]
    parts += [raw(array) for array in held.values()]
    over = hashlib.sha256()
    for part in parts:
        over.update(part)
    parts.append(over.digest())
    over.update(parts[-1])
    return parts, over.hexdigest()


def raw(array: np.ndarray) -> memoryview:
    """The bytes of an array of any dtype, in C order, copied only where they lie otherwise."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def unpack(data: bytes, expected: str | None = None) -> dict[str, np.ndarray]:
    """The arrays of ``pack``.

    Raises:
        ValueError: when a byte is missing or wrong, or the digest of the whole is not ``expected``.
    """
    view = memoryview(data)
    over = hashlib.sha256(view[:-32])
    sound = len(view) >= len(MAGIC) + 40 and over.digest() == view[-32:]
    over.update(view[-32:])
    if not sound or expected not in (None, over.hexdigest()):
        raise ValueError(
            f"digest: got another over {len(view)} bytes, truncated or damaged; allowed: that of the whole"
        )
    at = len(MAGIC) + 8
    length = int.from_bytes(view[len(MAGIC) : at], "little")
    header = json.loads(bytes(view[at : at + length]))
    at += length
    arrays = {}
    for name, (kind, shape) in header.items():
        dtype = _dtype(kind)
        size = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or dtype.hasobject or at + size > len(view) - 32:
            raise ValueError(f"{name}: got {kind}{shape}; allowed: what the {len(view) - 32 - at} bytes left hold")
        arrays[name] = np.frombuffer(view[at : at + size], dtype).reshape(shape).copy()
        at += size
    return arrays


def _dtype(name: str) -> np.dtype:
    try:
        return np.dtype(name)
    except TypeError:
        return np.dtype(getattr(ml_dtypes, name))
