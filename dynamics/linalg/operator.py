"""What linear algebra is done on: a symmetric operator as its matvec."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from dynamics.types import Array


class Operator(NamedTuple):
    """A symmetric operator.

    Attributes:
        matvec: ``v [size] -> A v [size]``.
        size: P.
        dtype: of the vectors, at least float32.
        unravel: ``v [size] -> pytree`` with the parameters' structure (leaves that ``where`` left out, integers and
            booleans are None).
    """

    matvec: Callable[[Array], Array]
    size: int
    dtype: Any
    unravel: Callable[[Array], Any]
