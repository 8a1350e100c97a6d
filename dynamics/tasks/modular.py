"""Learning the multiplication table of a group: modular arithmetic and permutations."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, PRNGKeyArray

from dynamics.arguments import INSIDE, check_numbers, program
from dynamics.types import Batch, Data

Operation = Literal["add", "subtract", "multiply", "permute"]


def operation_table(operation: Operation, size: int) -> Int[np.ndarray, "n n"]:
    """The table ``c = a o b`` of an operation, with entries in ``[0, n)``.

    Args:
        operation: ``add`` or ``subtract`` modulo ``size`` (n = size); ``multiply`` modulo a prime ``size`` on
            1, ..., size - 1 (n = size - 1, element i stands for i + 1); ``permute``, the symmetric group on ``size``
            letters (n = size!, in lexicographic order; ``a o b`` applies b first).
        size: the modulus, or the number of letters (at most 6).

    Raises:
        ValueError: for an unknown operation, a size out of range, or ``multiply`` with a modulus that is not prime.

    Example:
        >>> operation_table("add", 3).tolist()
        [[0, 1, 2], [1, 2, 0], [2, 0, 1]]
        >>> operation_table("permute", 3).shape
        (6, 6)
    """
    if size < 2 or (operation == "permute" and size > 6):
        raise ValueError(f"size: got {size!r}; allowed: an integer >= 2 (for permute, 2 to 6 letters)")
    a, b = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    if operation == "add":
        return (a + b) % size
    if operation == "subtract":
        return (a - b) % size
    if operation == "multiply":
        if any(size % divisor == 0 for divisor in range(2, int(size**0.5) + 1)):
            raise ValueError(f"size: got {size!r}; allowed: a prime, for the operation multiply")
        return ((a[1:, 1:] * b[1:, 1:]) % size) - 1
    if operation == "permute":
        elements = permutations(size)
        place = {tuple(element): i for i, element in enumerate(elements)}
        return np.array([[place[tuple(left[right])] for right in elements] for left in elements])
    raise ValueError(f"operation: got {operation!r}; allowed: add, subtract, multiply, permute")


def permutations(letters: int) -> Int[np.ndarray, "n {letters}"]:
    """All ``n = letters!`` permutations of ``letters`` letters in lexicographic order."""
    return np.array(list(itertools.permutations(range(letters))))


def table_task(
    key: PRNGKeyArray, table: Int[np.ndarray, "n n"], train_fraction: float, *, tokens: bool = False
) -> Data:
    """Learning a table from part of its cells: inputs ``(a, b)``, target ``c``, split at random.

    Args:
        key: draws the split.
        table: e.g. from ``operation_table``.
        train_fraction: share of the n^2 cells in the training set, in (0, 1); at least one cell on either side.
        tokens: inputs as int tokens ``[.., 3]``: a, b and the sign ``=`` (token n), for a transformer; else as two
            one-hots side by side, float ``[.., 2n]``.

    Returns:
        ``Data(train, test)`` with one-hot targets ``[.., n]``.

    Raises:
        ValueError: unless ``0 < train_fraction < 1``.
    """
    check_numbers(train_fraction=(train_fraction, INSIDE))
    cells = table.shape[0] ** 2
    training = min(max(round(float(train_fraction) * cells), 1), cells - 1)
    return _split(key, table, training, bool(tokens))


@partial(program, static=("training", "tokens"))
def _split(key: PRNGKeyArray, table: Any, training: int, tokens: bool) -> Data:
    n = table.shape[0]
    order = jax.random.permutation(key, n * n)

    def part(chosen):
        a, b = chosen // n, chosen % n
        hot_a, hot_b, hot_c = (jax.nn.one_hot(i, n) for i in (a, b, table[a, b]))
        x = jnp.stack([a, b, jnp.full_like(a, n)], axis=1) if tokens else jnp.concatenate([hot_a, hot_b], axis=1)
        return Batch(x, hot_c)

    return Data(part(order[:training]), part(order[training:]))
