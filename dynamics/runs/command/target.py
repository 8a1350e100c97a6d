"""The file that a command writes, whole or not at all."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from dynamics.runs.durable.errors import BadInput, Unusable
from dynamics.runs.report.listing import half_written

T = TypeVar("T")


def target_file(target: Path | None, default: str, endings: Sequence[str], wanted: str | None = None) -> Path:
    """``target``, or ``default`` in the current folder with the ending that is ``wanted``, else the first.

    Raises:
        BadInput: for another ending, or a folder that does not exist.
    """
    if target is None:
        target = Path(f"{default}{wanted or endings[0]}")
    allowed = endings if wanted is None else [wanted]
    if target.suffix not in allowed:
        raise BadInput(f"target: got {str(target)!r}; allowed: a file that ends in {', '.join(allowed)}")
    if not target.parent.is_dir():
        raise BadInput(f"target: got {str(target)!r}; allowed: a file in a folder that exists")
    return target


def written(target: Path, write: Callable[[Path], T]) -> T:
    """What ``write`` returns of a file beside ``target``, which then takes its place.

    Raises:
        Unusable: when it cannot be written.
    """
    beside = target.with_name(f".{target.name}.{os.getpid()}.part")
    for left in target.parent.glob(f".{glob.escape(target.name)}.*.part"):  # of a command that was killed
        if half_written(left):
            left.unlink(missing_ok=True)
    try:
        beside.unlink(missing_ok=True)
        found = write(beside)
        os.replace(beside, target)
    except OSError as error:
        raise Unusable(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        beside.unlink(missing_ok=True)
    return found
