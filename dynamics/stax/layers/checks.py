"""Arguments of layers, checked on the host: one sentence that names the argument, its value and what is allowed."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any

from dynamics.arguments import NOT_NEGATIVE, check_numbers


def _choices(name: str, *values: str) -> Any:
    return enum.Enum(name, [(value, value) for value in values], module=__name__)


Padding = _choices("Padding", "CIRCULAR", "SAME", "VALID")
AttentionMechanism = _choices("AttentionMechanism", "SOFTMAX", "IDENTITY", "ABS", "RELU")
PositionalEmbedding = _choices("PositionalEmbedding", "NONE", "SUM", "CONCAT")
AggregateImplementation = _choices("AggregateImplementation", "DENSE", "SPARSE")


def choice(name: str, value: Any, allowed: type[enum.Enum]) -> str:
    """The name in capitals of one of ``allowed``, from a member or a string."""
    found = str(getattr(value, "name", value)).upper()
    if found not in allowed.__members__:
        raise ValueError(f"{name}: got {value!r}; allowed: {', '.join(allowed.__members__)}")
    return found


def check_scales(**scales: Any) -> None:
    """Standard deviations must not be negative; None and traced values pass."""
    given = {name: (value, NOT_NEGATIVE) for name, value in scales.items() if value is not None}
    check_numbers(many=True, **given)


def check_axes(name: str, axes: Sequence[int], ndim: int) -> None:
    """Each axis must exist in an array of ``ndim`` axes."""
    for axis in axes:
        if not -ndim <= axis < ndim:
            raise ValueError(f"{name}: got {axis} for inputs of {ndim} axes; allowed: {-ndim} to {ndim - 1}")


def check_layers(name: str, layers: Sequence[Any]) -> None:
    """Each layer must be a triple."""
    if not layers:
        raise ValueError(f"{name}: got no layer; allowed: one or more")
    for position, each in enumerate(layers):
        if not isinstance(each, tuple | list) or len(each) < 3:
            hint = ": call it, as in stax.Relu()" if callable(each) else ""
            shown = getattr(each, "__name__", type(each).__name__)
            raise ValueError(f"{name}: got {shown} at {position}; allowed: (init_fn, apply_fn, kernel_fn) layers{hint}")
