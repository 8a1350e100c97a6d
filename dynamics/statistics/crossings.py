"""When a recorded curve first crosses a level, and what others read then: the clock of grokking."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np


def first_step(step: Any, values: Any, level: Any, direction: Literal["below", "above"] = "below") -> np.ndarray:
    """The first recorded step at which a curve lies beyond ``level``.

    Args:
        step: ``[T]`` recorded steps, increasing.
        values: ``[T, ...]`` curves; NaN never crosses.
        level: scalar or ``[...]``, the level of each curve.
        direction: ``below`` (losses, inclusive) or ``above`` (accuracies, inclusive).

    Returns:
        ``[...]`` float; inf where the level is never reached. It overshoots the true crossing by at most the spacing of
        the recorded steps.

    Raises:
        ValueError: when ``direction`` is neither word.

    Example:
        >>> import numpy as np
        >>> float(first_step([0, 10, 20], np.array([1.0, 0.4, 0.05]), 0.1))
        20.0
    """
    if direction not in ("below", "above"):
        raise ValueError(f"direction: got {direction!r}; allowed: below, above")
    curves = np.asarray(values, np.float64)
    with np.errstate(invalid="ignore"):
        crossed = curves <= level if direction == "below" else curves >= level
    times = np.asarray(step, np.float64)[np.argmax(crossed, axis=0)]
    return np.where(crossed.any(axis=0), times, np.inf)


def value_at(step: Any, values: Any, at: Any) -> np.ndarray:
    """What each curve reads at a recorded step of its own, as ``first_step`` finds it.

    Args:
        step: ``[T]`` recorded steps, increasing.
        values: ``[T, ...]`` curves.
        at: ``[...]`` recorded steps, one a curve.

    Returns:
        ``[...]`` float: the reading at the first recorded step not before ``at``; NaN where there is none (``at``
        is inf or NaN).

    Example:
        >>> import numpy as np
        >>> value_at([0, 10, 20], np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]), np.array([10.0, np.inf])).tolist()
        [2.0, nan]
    """
    curves, at, step = np.asarray(values, np.float64), np.asarray(at, np.float64), np.asarray(step, np.float64)
    index = np.searchsorted(step, at)
    found = np.take_along_axis(curves, np.minimum(index, step.size - 1)[None], axis=0)[0]
    return np.where(index < step.size, found, np.nan)


def time_ratio(late: Any, early: Any) -> np.ndarray:
    """``late / early`` for times that may never come.

    Args:
        late: ``[...]`` times; inf where never reached.
        early: ``[...]`` times; inf where never reached.

    Returns:
        ``[...]`` float: inf where only ``late`` is never reached, NaN where ``early`` is not (a run that never fits has
        no delay, short or long).

    Example:
        >>> time_ratio([30.0, float("inf"), 30.0], [10.0, 10.0, float("inf")]).tolist()
        [3.0, inf, nan]
    """
    late, early = np.asarray(late, np.float64), np.asarray(early, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.isfinite(early), late / early, np.nan)
