"""One writer a directory: a file lock that frees itself when its process dies, however it dies."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from pathlib import Path

from dynamics.runs.durable.errors import InUse, Unusable
from dynamics.runs.durable.files import files_within, open_file


class Lock:
    """Holds ``path`` until ``close`` or the end of the process.

    Raises:
        Unusable: when another process holds it (its PID and host are named), or the directory cannot be written.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = open_file(path, os.O_RDWR | os.O_CREAT)
            _take(self._file)
            os.ftruncate(self._file, 0)
            os.write(self._file, f"PID {os.getpid()} on {socket.gethostname()}".encode())
        except OSError as error:
            told = _holder(self._file) if hasattr(self, "_file") else ""
            self.close()
            if told and error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise InUse(f"{path.parent} is in use by {told}") from error
            raise Unusable(f"{path.parent}: cannot be written: {error.strerror}") from error

    def close(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)


def _take(file: int) -> None:
    """Takes the lock, allowing a moment for a passing ``holder`` to look."""
    for wait in (0.01, 0.05, 0.1, None):
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if wait is None:
                raise
            time.sleep(wait)


def _holder(file: int) -> str:
    return os.pread(file, 200, 0).decode(errors="replace").strip() or "another process"


def holder(path: Path) -> str | None:
    """Who holds the lock at ``path`` ("PID 12 on host"), or None; takes nothing and needs no write access."""
    try:
        file = open_file(path, os.O_RDONLY)
    except (OSError, Unusable):
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except OSError:
        return _holder(file)
    finally:
        os.close(file)


def in_use(path: Path) -> bool:
    """Whether someone writes to the run at ``path`` or to one of its parts."""
    return any(holder(file) is not None for file in files_within(path) if file.name == "lock")
