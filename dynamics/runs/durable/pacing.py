"""How much a piece of a run holds, and when it is worth a commit: both by measurement, neither changes a bit."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

WIDTH = 16  # targets of one compiled piece
PIECE_SECONDS = 0.5  # a piece: between two looks at signals and the progress bar
COMMIT_SECONDS = 2.0  # a chunk: between two commits
COMMIT_SHARE = 0.04  # of the run's time, at most, goes to commits
SLOW_DISK = 1e8  # bytes a second that a first commit may be expected to take


class Piece(NamedTuple):
    """Targets ``[WIDTH]`` of one call of ``advance`` and where to read."""

    targets: np.ndarray
    read: np.ndarray


class Pace:
    """How much a piece may hold so that it takes about ``PIECE_SECONDS``: doubled and halved by measurement.

    The first piece, which compiles, is as short as can be.
    """

    def __init__(self) -> None:
        self.steps, self.reads = 1, 1
        self._warm = False

    def learn(self, seconds: float) -> None:
        if not self._warm:
            self._warm, self.steps, self.reads = True, 64, 2
        elif seconds > 2 * PIECE_SECONDS:
            self.steps, self.reads = max(1, self.steps // 2), max(1, self.reads // 2)
        elif seconds < PIECE_SECONDS / 2:
            self.steps, self.reads = min(2 * self.steps, 2**30), min(2 * self.reads, WIDTH)

    def piece(self, now: int, ends: np.ndarray, count: int) -> Piece:
        """The next targets after step ``now``; ``ends`` are those still to reach, of which ``count`` are read."""
        targets, read, budget = [], [], self.steps
        for position, end in enumerate(ends):
            if end - now > budget:
                if budget or not targets:
                    targets.append(now + budget)
                    read.append(False)
                break
            targets.append(int(end))
            read.append(position < count)
            budget -= int(end) - now
            now = int(end)
            if len(targets) == WIDTH or sum(read) >= self.reads:
                break
        padding = WIDTH - len(targets)
        targets, read = targets + [targets[-1]] * padding, read + [False] * padding
        return Piece(np.array(targets, np.int32), np.array(read))


class Budget:
    """When a run commits: every ``COMMIT_SECONDS``, but with at most ``COMMIT_SHARE`` of its time spent on it.

    The commit that must end a call is set aside from the first, so that it, too, is within the share; only a run
    shorter than ``1 / COMMIT_SHARE`` commits spends more, on that one.

    Attributes:
        spent: seconds that the run's commits have taken.
    """

    def __init__(self, now: float) -> None:
        self.spent = 0.0
        self._begun = self._last = now
        self._cost = 0.0

    def expect(self, size: int) -> None:
        """Tells how many bytes a commit will write, before one is measured."""
        self._cost = size / SLOW_DISK

    def due(self, now: float) -> bool:
        allowed = COMMIT_SHARE * (now - self._begun)
        return now - self._last >= COMMIT_SECONDS and self.spent + 2 * self._cost <= allowed

    def committed(self, began: float, now: float) -> None:
        """Books a commit that lasted from ``began`` to ``now``."""
        self._cost = now - began
        self.spent += self._cost
        self._last = now
