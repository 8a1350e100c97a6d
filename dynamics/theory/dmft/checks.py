"""Arguments of the theories, refused in one sentence each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

Rule = tuple[Callable[[Any], Any], str]
POSITIVE: Rule = (lambda v: 0 < v < np.inf, "a number > 0")
NOT_NEGATIVE: Rule = (lambda v: 0 <= v < np.inf, "a number >= 0")
SHARE: Rule = (lambda v: 0 < v <= 1, "a number > 0 and <= 1")
BELOW_ONE: Rule = (lambda v: 0 <= v < 1, "a number >= 0 and < 1")
OR_INFINITE: Rule = (lambda v: v > 0, "a number > 0, or inf")


def check_numbers(**given: tuple[Any, Rule]) -> None:
    """Raises unless each value is one real number within its rule; what is traced passes."""
    for name, (value, (within, allowed)) in given.items():
        if np.shape(value):
            raise ValueError(f"{name}: got shape {np.shape(value)}; allowed: one number; jax.vmap over many")
        if isinstance(value, Tracer):
            continue
        if not (np.isrealobj(value) and jnp.issubdtype(np.asarray(value).dtype, jnp.number)):
            raise TypeError(f"{name}: got {value!r}; allowed: {allowed}")
        if not within(value):
            raise ValueError(f"{name}: got {value}; allowed: {allowed}")
