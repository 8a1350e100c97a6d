"""The only place with files, figures and flags: durable runs, reports and the command line.

``command`` -> ``sweep`` -> ``report`` -> ``durable``: each room imports those after it. Names are loaded on first use,
so that a listing brings in no JAX. What experiments import stands beside the rooms: ``cli``, ``figures``, ``progress``
and ``trackers``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynamics.runs.durable.errors import BadInput, Damaged, Interrupted, RunError, Unusable
    from dynamics.runs.durable.load import LoadedRun, load
    from dynamics.runs.durable.run import Run, open_run
    from dynamics.runs.report.index_page import write_index
    from dynamics.runs.report.run_page import write_report
    from dynamics.runs.sweep.phase import phase_diagram
    from dynamics.runs.sweep.replay import result

_NAMES = {
    "BadInput": "durable.errors", "Damaged": "durable.errors", "Interrupted": "durable.errors",
    "RunError": "durable.errors", "Unusable": "durable.errors", "LoadedRun": "durable.load", "load": "durable.load",
    "Run": "durable.run", "open_run": "durable.run", "write_index": "report.index_page",
    "write_report": "report.run_page", "phase_diagram": "sweep.phase", "result": "sweep.replay",
}  # fmt: skip

__all__ = [
    "BadInput", "Damaged", "Interrupted", "LoadedRun", "Run", "RunError", "Unusable", "load", "open_run",
    "phase_diagram", "result", "write_index", "write_report",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'dynamics.runs' has no attribute {name!r}; it has {', '.join(__all__)}")
    globals()[name] = getattr(importlib.import_module(f"dynamics.runs.{_NAMES[name]}"), name)
    return globals()[name]


def __dir__() -> list[str]:
    return __all__
