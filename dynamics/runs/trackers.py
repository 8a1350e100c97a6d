"""Optional trackers behind one small protocol: the same readings, written to tensorboard or wandb files.

A tracker only ever writes local files, so that no run waits for a network; one that fails is dropped with a warning and
the run goes on.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from dynamics.extras import missing
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
        raise missing("tensorboard", "tensorboardX", "trackers") from error
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
        raise missing("wandb", "wandb", "trackers") from error
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


MAKERS = {"tensorboard": ("tensorboardX", tensorboard), "wandb": ("wandb", wandb)}
"""What ``--track`` takes, each with the package that it needs; a new tracker is one function and one line here."""


def required(kind: str) -> None:
    """Refuses a tracker whose package is missing; raises ImportError, naming the extra ``trackers``."""
    if importlib.util.find_spec(MAKERS[kind][0]) is None:
        raise missing(kind, MAKERS[kind][0], "trackers")


def made(kind: str, directory: Path, config: Mapping[str, Any]) -> Tracker:
    """A tracker by its name in ``MAKERS``, for the run whose folder holds ``directory``."""
    if kind != "wandb":
        return MAKERS[kind][1](directory)
    return wandb(directory, name="/".join(directory.parts[-3:-1]), config=config)


def log_record(
    tracker: Tracker, record: Record, label: str = "", *, cells: Sequence[str] | None = None, most: int = 64
) -> None:
    """Sends a whole Record, step by step.

    Of at most ``most`` numbers a step, each goes by its cell and place, ``loss/eta=0.1 seed=2`` or ``pair/1``; of more,
    the mean over the cells, ``loss/mean``. Larger arrays in a cell and complex numbers stay in the Record alone, and
    so do numbers that are not finite.

    Args:
        tracker: where to.
        record: readings ``{name: [T, *axes, ...]}``.
        label: put before each name.
        cells: names of the lanes of readings ``[T, lanes, ...]``, which may be fewer than lanes; by default those of
            the record's axes.
        most: see above.
    """
    depth = 1
    if cells is None and record.axes:
        depth = len(record.axes)
        held = [[f"{name}={short(value)}" for value in values] for name, values in record.axes.items()]
        cells = [" ".join(words) for words in itertools.product(*held)]
    columns: dict[str, np.ndarray] = {}
    for name, value in record.values.items():
        array, own = np.asarray(value), 1 + (depth if cells is not None else 0)
        inner = math.prod(array.shape[own:])
        if array.dtype.kind == "c" or inner > most or not array.size:
            continue
        flat = array.astype(float).reshape(len(array), -1, inner)[:, : None if cells is None else len(cells)]
        words = [""] if cells is None else [f"/{cell}" if cell else "" for cell in cells]
        if flat.shape[1] * inner > most:
            finite = np.isfinite(flat)
            total = np.sum(flat, axis=1, where=finite) / np.maximum(finite.sum(1), 1)
            flat, words = np.where(finite.any(1), total, np.nan)[:, None], ["/mean"]
        for at, word in enumerate(words):
            columns |= {f"{name}{word}" + (f"/{i}" if array.ndim > own else ""): flat[:, at, i] for i in range(inner)}
    for row, step in enumerate(np.asarray(record.step)):
        values = {name: float(column[row]) for name, column in columns.items() if np.isfinite(column[row])}
        if values:
            tracker.log(label, int(step), values)


def short(value: Any) -> str:
    """The value of an axis in a name."""
    return f"{float(value):.6g}" if isinstance(value, (float, np.floating)) else str(value)


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
