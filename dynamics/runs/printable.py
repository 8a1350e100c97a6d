"""Text of others, such as names of files, on one line of a terminal or a figure."""

from __future__ import annotations

from typing import Any


def printable(text: Any) -> str:
    """``text`` on one line, without what a terminal would obey."""
    return "".join(mark if mark.isprintable() else ascii(mark)[1:-1] for mark in str(text))
