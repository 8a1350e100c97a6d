"""Where programs run: what is quick on a CPU is slow elsewhere, and the other way round."""

from __future__ import annotations

from typing import TypeVar

import jax

_T = TypeVar("_T")


def by_backend(cpu: _T, accelerator: _T) -> _T:
    """``cpu`` where what is traced now runs on a CPU, else ``accelerator``; ``jax.default_device`` decides if set."""
    device = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    platform = jax.default_backend() if device is None else getattr(device, "platform", device)
    return cpu if platform == "cpu" else accelerator
