"""One writer a directory: a file lock that frees itself when its process dies, however it dies."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from pathlib import Path

from dynamics.runs.errors import InUse, Unusable


class Lock:
    """Holds ``path`` until ``close`` or the end of the process.

    Raises:
        Unusable: when another process holds it (its PID and host are named), or the directory cannot be written.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise Unusable(f"{path.parent}: cannot be written: {error.strerror}") from error
        try:
            _take(self._file)
        except OSError as error:
            holder = os.read(self._file, 200).decode(errors="replace").strip() or "another process"
            os.close(self._file)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise InUse(f"{path.parent} is in use by {holder}") from error
            raise Unusable(f"{path.parent}: cannot be locked: {error.strerror}") from error
        try:
            os.ftruncate(self._file, 0)
            os.write(self._file, f"PID {os.getpid()} on {socket.gethostname()}".encode())
        except OSError as error:
            self.close()
            raise Unusable(f"{path.parent}: cannot be written: {error.strerror}") from error

    def close(self) -> None:
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


def holder(path: Path) -> str | None:
    """Who holds the lock at ``path`` ("PID 12 on host"), or None; takes nothing and needs no write access."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except OSError:
        return os.read(file, 200).decode(errors="replace").strip() or "another process"
    finally:
        os.close(file)
