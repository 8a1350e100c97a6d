"""Bytes on disk: atomic writes, strict JSON, and arrays packed with their dtypes and a digest."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dynamics.runs.errors import Unusable

MAGIC = b"dynamics-arrays-1\n"


def digest(data: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()


def write_bytes(path: Path, *data: bytes | memoryview) -> None:
    """Writes a whole file or nothing: to a neighbour first, to the disk, then renamed over ``path``."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(beside, "wb") as file:
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


def require_no_grid(path: Path) -> None:
    """Refuses a folder with a sweep of dynamics 0.1.

    Raises:
        Unusable: naming it.
    """
    if (path / "grid.json").is_file() and not (path / "run.sqlite").is_file():
        raise Unusable(
            f"{path}: holds a sweep of dynamics 0.1, which this version does not read; run it under a new name"
        )


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


def sealed(value: Mapping[str, Any]) -> bytes:
    """A JSON object with its own digest inside, for files that no journal vouches for."""
    body = plain(value)
    return json_text({**body, "digest": digest(json.dumps(body, sort_keys=True).encode())}).encode()


def unsealed(data: bytes) -> dict[str, Any]:
    """The object of ``sealed``.

    Raises:
        ValueError: when it is not what was written.
    """
    value = json.loads(data)
    held = value.pop("digest", None) if isinstance(value, dict) else None
    if digest(json.dumps(value, sort_keys=True).encode()) != held:
        raise ValueError("digest mismatch: damaged or edited")
    return value


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
        raise ValueError(f"digest mismatch over {len(view)} bytes: truncated or damaged")
    at = len(MAGIC) + 8
    length = int.from_bytes(view[len(MAGIC) : at], "little")
    header = json.loads(bytes(view[at : at + length]))
    at += length
    arrays = {}
    for name, (kind, shape) in header.items():
        dtype = _dtype(kind)
        size = math.prod(shape) * dtype.itemsize
        arrays[name] = np.frombuffer(view[at : at + size], dtype).reshape(shape).copy()
        at += size
    return arrays


def _dtype(name: str) -> np.dtype:
    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, name))
