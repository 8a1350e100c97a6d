"""What can go wrong with a run, each with the exit code of the command line."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from typing import Any


class RunError(Exception):
    """A run that ends with one sentence instead of a traceback; ``code`` is the command line's exit code."""

    code = 1


class BadInput(RunError):
    """A flag, a setting or a name that is not allowed: nothing was written."""

    code = 2


class Interrupted(RunError):
    """Stopped by a signal with everything so far committed: the same command resumes it."""

    code = 3


class Unusable(RunError):
    """The run directory cannot be used: in use, corrupt, made by other settings, or on a full or read-only disk."""

    code = 4


class InUse(Unusable):
    """Another process writes to the run directory."""


class Damaged(Unusable):
    """A file of a run is not what was written."""


HOLDS, ERROR, CLAIM_FAILS, NOT_REACHED = 0, 1, 5, 6
"""Exit codes without an exception of their own: every applicable claim holds; unexpected error; a claim fails; none
fails, but the run was too short for one."""

NONSENSE = (
    TypeError, ValueError, LookupError, AttributeError, OverflowError, RecursionError, MemoryError, sqlite3.Error
)  # fmt: skip
"""What Python raises where the content of a file is not what it says."""


@contextlib.contextmanager
def understood(where: Any) -> Iterator[None]:
    """Makes one sentence of whatever the content of a run's folder causes within: it may be anybody's.

    Raises:
        Damaged: naming ``where`` and what was found.
    """
    try:
        yield
    except OSError as error:
        raise Damaged(f"{where}: cannot be read: {error.strerror or error}") from error
    except NONSENSE as error:
        text = " ".join(str(error).split())[:200]
        raise Damaged(f"{where}: holds what no run writes ({type(error).__name__}: {text})") from error
