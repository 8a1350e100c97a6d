"""dynamics: training-dynamics theory in JAX. Kernels, curvature, exact solutions, and the experiments that test them.

``import dynamics as nt`` serves code written for neural-tangents. Names are loaded on first use, so that
``from dynamics import stax`` brings in nothing of the trainer, the command line or matplotlib.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.2.0"

_MODULES = {
    name: f"dynamics.{name}"
    for name in (
        "config",
        "empirical",
        "evolve",
        "geometry",
        "interop",
        "linalg",
        "losses",
        "mesh",
        "models",
        "observe",
        "operators",
        "program",
        "runs",
        "stability",
        "statistics",
        "stax",
        "tasks",
        "theory",
        "types",
    )
}
_NAMES = {
    "predict": "dynamics.theory.predict",
    "linearize": "dynamics.taylor:linearize",  # no module shares the name: importing it would hide the function
    "taylor_expand": "dynamics.taylor:taylor_expand",
    "Batch": "dynamics.types:Batch",
    "Claim": "dynamics.types:Claim",
    "Data": "dynamics.types:Data",
    "Dynamics": "dynamics.types:Dynamics",
    "Estimate": "dynamics.types:Estimate",
    "Model": "dynamics.types:Model",
    "Objective": "dynamics.types:Objective",
    "Observable": "dynamics.types:Observable",
    "Record": "dynamics.types:Record",
    "View": "dynamics.types:View",
    "Drawn": "dynamics.evolve:Drawn",
    "load": "dynamics.runs:load",
    "simulate": "dynamics.evolve:simulate",
    "study": "dynamics.evolve:study",
    "batch": "dynamics.stax:batch",
    "monte_carlo_kernel_fn": "dynamics.stax:monte_carlo_kernel_fn",
    "Kernel": "dynamics.stax:Kernel",
    "NtkImplementation": "dynamics.empirical:NtkImplementation",
    "empirical_kernel_fn": "dynamics.empirical:empirical_kernel_fn",
    "empirical_nngp_fn": "dynamics.empirical:empirical_nngp_fn",
    "empirical_ntk_fn": "dynamics.empirical:empirical_ntk_fn",
    "empirical_ntk_vp_fn": "dynamics.empirical:empirical_ntk_vp_fn",
}

__all__ = sorted([*_MODULES, *_NAMES])  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    place = _MODULES.get(name) or _NAMES.get(name)
    if place is None:
        raise AttributeError(f"module 'dynamics' has no attribute {name!r}; it has {', '.join(__all__)}")
    module, _, attribute = place.partition(":")
    loaded = importlib.import_module(module)
    value = getattr(loaded, attribute) if attribute else loaded
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
