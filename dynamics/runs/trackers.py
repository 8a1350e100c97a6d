"""Optional trackers behind one small protocol: the same readings, written to tensorboard or wandb files.

A tracker only ever writes local files, so that no run waits for a network; one that fails is dropped with a warning and
the run goes on.
"""

from __future__ import annotations

import functools
import math
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from dynamics.record import Record

T = TypeVar("T")


class Tracker(NamedTuple):
    """Where readings go besides the run directory.

    Attributes:
        log: ``(label, step, {name: number})``; ``label`` names the call of ``simulate`` that they come from.
        close: writes out what is left; no ``log`` may follow. ``contextlib.closing(tracker)`` calls it.
    """

    log: Callable[[str, int, Mapping[str, float]], None]
    close: Callable[[], None]


def tensorboard(directory: str | Path) -> Tracker:
    """Writes tensorboard event files into ``directory``; scalars are called ``label/name``.

    Raises:
        ImportError: without tensorboardX; the message names the extra ``trackers``.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ImportError("tensorboard needs tensorboardX: pip install 'dynamics[trackers]'") from error
    writer = SummaryWriter(str(directory))

    def log(label, step, values):
        for name, value in values.items():
            writer.add_scalar(_joined(label, name), value, step)

    return Tracker(log, writer.close)


def wandb(
    directory: str | Path,
    *,
    project: str = "dynamics",
    name: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> Tracker:
    """Writes an offline wandb run into ``directory``; ``wandb sync`` uploads it later, when you say so.

    Each label keeps its own step axis, ``label/step``, since wandb's own step may not go back.

    Raises:
        ImportError: without wandb; the message names the extra ``trackers``.
    """
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        import wandb as client
    except ImportError as error:
        raise ImportError("wandb needs wandb: pip install 'dynamics[trackers]'") from error
    Path(directory).mkdir(parents=True, exist_ok=True)
    settings = client.Settings(silent=True, console="off", disable_git=True, save_code=False, x_disable_stats=True)
    run = client.init(
        mode="offline", dir=str(directory), project=project, name=name, config=dict(config or {}), settings=settings
    )
    axes: set[str] = set()

    def log(label, step, values):
        axis = _joined(label, "step")
        if axis not in axes:
            axes.add(axis)
            run.define_metric(_joined(label, "*"), step_metric=axis)
        run.log({axis: step, **{_joined(label, key): value for key, value in values.items()}})

    return Tracker(log, run.finish)


def log_record(tracker: Tracker, record: Record, label: str = "", *, most: int = 64) -> None:
    """Sends a whole Record, step by step.

    Args:
        tracker: where to.
        record: readings ``{name: [T, ...]}``.
        label: put before each name.
        most: a reading with up to this many entries a step is sent entry by entry, as ``name/0``, ``name/1``, ...;
            larger and complex ones stay in the Record alone. Entries that are not finite are left out.
    """
    columns: dict[str, np.ndarray] = {}
    for name, value in record.values.items():
        size = math.prod(np.shape(value)[1:])
        if size <= most and np.asarray(value).dtype.kind != "c":
            flat = np.asarray(value, dtype=float).reshape(len(record.step), size)
            single = np.ndim(value) == 1
            columns.update({name if single else f"{name}/{index}": column for index, column in enumerate(flat.T)})
    for row, step in enumerate(np.asarray(record.step)):
        values = {name: float(column[row]) for name, column in columns.items() if np.isfinite(column[row])}
        tracker.log(label, int(step), values)


def tracked(loop: Callable[..., T], tracker: Tracker) -> Callable[..., T]:
    """A ``study`` or ``simulate`` that also sends its Record to ``tracker`` at its end: ``run(config, tracked(...))``.

    The first failure of the tracker is a warning, after which it is left alone; the run never sees it.

    Args:
        loop: ``evolve.study`` or ``evolve.simulate``, or a durable one.
        tracker: where readings go.
    """
    alive = True

    @functools.wraps(loop)
    def tracked_loop(*arguments: Any, label: str | None = None, **options: Any) -> Any:
        nonlocal alive
        result: Any = loop(*arguments, label=label, **options)
        if alive:
            try:
                log_record(tracker, result if isinstance(result, Record) else result[1], label or "")
            except Exception as error:
                alive = False
                warnings.warn(f"tracker dropped: {type(error).__name__}: {error}", stacklevel=2)
        return result

    return tracked_loop


def _joined(label: str, name: str) -> str:
    return f"{label}/{name}" if label else name
