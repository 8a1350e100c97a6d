"""One run on several processes (``jax.distributed``): the first reads, decides and writes; all compute.

Every function here is a meeting: all processes must call it, in the same order. Alone, each is the plain act.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from dynamics.runs.durable.errors import BadInput, Damaged, Interrupted, InUse, RunError, Unusable

T = TypeVar("T")
PIECE = 2**26  # bytes broadcast at a time
REFUSALS = (RunError, BadInput, Interrupted, Unusable, InUse, Damaged)


def leading() -> bool:
    """Whether this process is the one that reads and writes."""
    return jax.process_index() == 0


def _to_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def together(
    act: Callable[[], T], encode: Callable[[T], bytes] = _to_json, decode: Callable[[bytes], T] = json.loads
) -> T:
    """What ``act`` returns on the first process, on all of them.

    Raises:
        RunError: a refusal of ``act``, on all processes; on the others also for any other error of the first.
    """
    if jax.process_count() == 1:
        return act()
    if not leading():
        data = _broadcast(b"")
        if data[:1] != b"\xff":
            raise REFUSALS[data[0]](data[1:].decode())
        return decode(data[1:])
    try:
        value = act()
        data = b"\xff" + encode(value)
    except BaseException as error:
        kind = REFUSALS.index(type(error)) if type(error) in REFUSALS else 0
        _broadcast(bytes([kind]) + (str(error) or type(error).__name__).encode())
        raise
    _broadcast(data)
    return value


def gathered(numbers: Sequence[int]) -> np.ndarray:
    """``numbers`` of every process, int32 ``[processes, n]``."""
    mine = np.array(numbers, np.int32)
    if jax.process_count() == 1:
        return mine[None]
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(mine))


def same(what: str, text: str) -> None:
    """Refuses to go on unless ``text`` is the same on all processes.

    Raises:
        Unusable: naming ``what`` differs.
    """
    told = gathered(list(hashlib.sha256(text.encode()).digest()))
    if np.any(told != told[0]):
        raise Unusable(f"{what}: not the same on all {len(told)} processes; allowed: the same program on each")


def _broadcast(data: bytes) -> bytes:
    """The first process's ``data``, piece by piece."""
    from jax.experimental import multihost_utils

    def tell(array: np.ndarray) -> np.ndarray:
        return np.asarray(multihost_utils.broadcast_one_to_all(array))

    pieces, rest = (int(number) for number in tell(np.array(divmod(len(data), PIECE), np.int32)))
    parts = []
    for at, size in enumerate([PIECE] * pieces + [rest]):
        padded = np.zeros(max(256, 1 << (size - 1).bit_length()) if size else 0, np.uint8)  # few sizes to compile for
        mine = np.frombuffer(data[at * PIECE : (at + 1) * PIECE], np.uint8)
        padded[: len(mine)] = mine
        parts.append(tell(padded)[:size].tobytes() if size else b"")
    return b"".join(parts)
