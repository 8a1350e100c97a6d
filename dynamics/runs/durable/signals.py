"""What SIGTERM and Ctrl-C do while a run or a worker is at its work."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable
from typing import Any


@contextlib.contextmanager
def on_stop(handler: Callable[[int, Any], None]):
    """Gives SIGTERM and SIGINT to ``handler(number, frame)`` inside the block; outside the main thread does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, held in before.items():
            signal.signal(number, held)
