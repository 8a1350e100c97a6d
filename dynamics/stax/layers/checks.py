"""Arguments of layers, checked on the host: one sentence that names the argument, its value and what is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def check_count(name: str, value: Any) -> None:
    """``value`` must be a positive integer."""
    if not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value}")


def check_scales(**scales: Any) -> None:
    """Standard deviations must not be negative; None and traced values pass."""
    for name, value in scales.items():
        if isinstance(value, int | float) and not value >= 0:
            raise ValueError(f"{name} must be at least 0, got {value}")


def check_axes(name: str, axes: Sequence[int], ndim: int) -> None:
    """Each axis must exist in an array of ``ndim`` axes."""
    for axis in axes:
        if not -ndim <= axis < ndim:
            raise ValueError(f"{name} must lie in [-{ndim}, {ndim}) for inputs with {ndim} axes, got {axis}")


def check_layers(name: str, layers: Sequence[Any]) -> None:
    """Each layer must be a triple."""
    if not layers:
        raise ValueError(f"{name} needs at least one layer, got none")
    for position, each in enumerate(layers):
        if not isinstance(each, tuple | list) or len(each) < 3:
            hint = ": call it, as in stax.Relu()" if callable(each) else ""
            shown = getattr(each, "__name__", type(each).__name__)
            raise ValueError(f"{name} needs (init_fn, apply_fn, kernel_fn) layers, got {shown} at {position}{hint}")
