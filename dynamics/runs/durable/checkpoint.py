"""Checkpoints: a whole run's pytree as one file with names, dtypes, shapes and a digest.

The file is ``files.pack`` of the leaves: nothing is unpickled, a flipped bit or a missing byte is found, and a leaf
whose dtype or shape differs is refused rather than cast. Arrays are stored whole, not by device, so a run may be
resumed on another set of devices.
"""

from __future__ import annotations

import errno
import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynamics.runs.durable.errors import Damaged, Unusable, understood
from dynamics.runs.durable.files import digest, own_folder, packed, raw, read_bytes, unpack, write_bytes

KEEP = 2  # the last step and one to fall back on


def path_of(folder: Path, label: str, number: int, state: str) -> Path:
    """The file of checkpoint ``number`` of a call, whose digest is ``state``; any text is a label."""
    return folder / f"{stem(label)}-{number:06d}-{state[:8]}.ckpt"


def save(folder: Path, label: str, number: int, arrays: dict[str, np.ndarray]) -> str:
    """Writes ``host_arrays`` to their own file (never over another state's) and returns the file's digest.

    Raises:
        Unusable: when the disk refuses; the file is then absent, and older ones untouched.
    """
    parts, state = packed(arrays)
    try:
        own_folder(folder).mkdir(exist_ok=True)
        write_bytes(path_of(folder, label, number, state), *parts)
    except OSError as error:
        if not folder.parent.is_dir():
            raise Unusable(f"{folder.parent}: is not there (any more)") from error
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full" if full else f"cannot be written: {error.strerror}"
        raise Unusable(f"{folder}: {reason}; what was committed before is intact") from error
    return state


def prune(folder: Path, label: str, keep: Iterable[Path]) -> None:
    """Deletes a call's checkpoints other than ``keep``, half-written ones included."""
    kept = {path.name for path in keep}
    for path in [*folder.glob(f"{stem(label)}-*.ckpt"), *folder.glob(f".{stem(label)}-*.part")]:
        if path.name not in kept:
            path.unlink(missing_ok=True)


def stem(label: str) -> str:
    """Any label as a file's name."""
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", label).strip("-.")[:40] or "call"
    return f"{slug}-{digest(label.encode())[:8]}"


def load(path: Path, expected: str | None, template: Any) -> dict[str, np.ndarray]:
    """The arrays of ``save``, checked against what is needed.

    Args:
        path: the file.
        expected: the digest that the journal holds, or None to trust the file's own.
        template: a pytree of arrays or ``jax.ShapeDtypeStruct``.

    Raises:
        ValueError: when the file is damaged or another one.
        Unusable: when it is sound but holds other leaves, shapes or dtypes than ``template``.
    """
    try:
        with understood(path.name):
            arrays = unpack(read_bytes(path, size(template) + 2**24), expected)
    except Damaged as error:
        raise ValueError(str(error)) from error
    named = jax.tree_util.tree_flatten_with_path(template)[0]
    for where, leaf in named:
        _check(path.name, jax.tree_util.keystr(where), leaf, arrays)
    if len(arrays) != len(named):
        raise Unusable(f"{path.name} holds {len(arrays)} arrays where this run has {len(named)}")
    return arrays


def placed(arrays: dict[str, np.ndarray], template: Any) -> Any:
    """``arrays`` as the pytree ``template``; leaves that are sharded over devices there are put back so."""
    named, structure = jax.tree_util.tree_flatten_with_path(template)
    leaves = [_place(arrays[jax.tree_util.keystr(where)], leaf) for where, leaf in named]
    return jax.tree_util.tree_unflatten(structure, leaves)


def tree_digest(tree: Any) -> str:
    """SHA-256 over the names, dtypes, shapes and values of the leaves, one leaf on the host at a time."""
    held = hashlib.sha256()
    for where, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        array = to_host(leaf)
        held.update(f"{jax.tree_util.keystr(where)}\n{array.dtype.name}\n{array.shape}\n".encode())
        held.update(raw(array))
    return held.hexdigest()


def host_arrays(tree: Any) -> dict[str, np.ndarray]:
    """The leaves of ``tree`` by path, on the host; PRNG keys as their data, arrays over several hosts gathered."""
    named = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(where): to_host(leaf) for where, leaf in named}


def size(tree: Any) -> int:
    """Bytes of the leaves of ``tree`` (arrays or shapes)."""
    return sum(int(np.prod(leaf.shape)) * _plain_dtype(leaf).itemsize for leaf in jax.tree.leaves(tree))


def to_host(leaf: Any) -> np.ndarray:
    """A leaf on the host; one that lies over several processes is gathered, in which all of them must take part."""
    leaf = jax.random.key_data(leaf) if _is_key(leaf) else leaf
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable and not leaf.is_fully_replicated:
        from jax.experimental import multihost_utils

        leaf = multihost_utils.process_allgather(leaf, tiled=True)
    return np.asarray(leaf)


def _check(file: str, name: str, leaf: Any, arrays: dict[str, np.ndarray]) -> None:
    if name not in arrays:
        raise Unusable(f"{file} holds no {name}, which this run needs: another config, model or version made it")
    array = arrays[name]
    shape, dtype = np.shape(leaf), _plain_dtype(leaf)
    if _is_key(leaf):
        shape = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)).shape
    if array.shape != shape or array.dtype != dtype:
        raise Unusable(f"{file}: {name} is {array.dtype}{list(array.shape)} and this run has {dtype}{list(shape)}")


def _place(array: np.ndarray, leaf: Any) -> jax.Array:
    if _is_key(leaf):
        return jax.random.wrap_key_data(jnp.asarray(array), impl=_key_impl(leaf))
    sharding = getattr(leaf, "sharding", None)
    if sharding is None or len(sharding.device_set) == 1:
        return jnp.asarray(array)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(getattr(leaf, "dtype", np.dtype(bool)), jax.dtypes.prng_key)


def _key_impl(leaf: Any) -> Any:
    found = []
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
    return found[0]


def _plain_dtype(leaf: Any) -> np.dtype:
    return np.dtype(np.uint32) if _is_key(leaf) else np.dtype(leaf.dtype)
