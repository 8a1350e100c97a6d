"""Streams of tasks: what is to be learned changes while one trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from dynamics.arguments import FINITE, check_counts, check_numbers
from dynamics.types import Batch, Data, Stream

MOST_RANDOM_BITS = 12
"""Bits drawn anew at every step, at most: a task's inputs are taken from a table of all of them."""


class SlowBits(NamedTuple):
    """Slowly changing regression.

    Attributes:
        stream: online, of ``Batch(x [steps, 1, bits], y [steps, 1, 1])``, x in {0, 1}.
        table: ``task -> Batch`` of all ``2^random`` inputs of a task and their targets, in equal shares of its stream.
    """

    stream: Stream
    table: Callable[[Any], Batch]


def slow_bits(
    key: PRNGKeyArray,
    steps: int = 10_000,
    *,
    slow: int = 15,
    random: int = 5,
    units: int = 100,
    share: float = 0.7,
    flip_one: bool = False,
) -> SlowBits:
    """Slowly changing regression: inputs of ``slow`` bits that hold for a task, and ``random`` bits drawn at each step.

    The target is a sum of ``units`` linear threshold units with weights and biases of +-1, and an output bias: unit j
    fires where ``w_j . x + b_j > share (m + 1) - (m - sum_i w_ji + b_j)/2``, m the number of bits: about where a share
    of its inputs is as it would have it.

    Args:
        key: of target and bits; a stream is a function of it.
        steps: updates a task, at batch size 1.
        slow, random: bits.
        units: of the target.
        share: of the inputs at which a unit fires.
        flip_one: one slow bit, at random, flips from task to task, in place of all being drawn anew.

    Raises:
        ValueError: for sizes out of range.

    Cost: of a task the target at ``2^random`` inputs, and ``steps`` integers.

    Reference: Dohare, Hernandez-Garcia, Lan, Rahman, Mahmood & Sutton 2024, 'Loss of plasticity in deep continual
    learning', Methods; the thresholds as in their code.

    Example:
        >>> import jax
        >>> task = slow_bits(jax.random.key(0), steps=100).stream.data(3)
        >>> task.x.shape, task.y.shape, bool((task.x[:, :, :15] == task.x[0, :, :15]).all())
        ((100, 1, 20), (100, 1, 1), True)
    """
    check_counts(steps=steps, slow=slow, units=units)
    check_counts(0, random=random)
    if random > MOST_RANDOM_BITS:
        raise ValueError(f"random: got {random}; allowed: from 0 to {MOST_RANDOM_BITS}")
    check_numbers(share=(share, FINITE))
    of_target, of_slow, of_steps = jax.random.split(key, 3)
    m = slow + random

    def target(x):
        signs = jax.random.rademacher(of_target, ((m + 2) * units + 1,), float)
        w, b, v, last = jnp.split(signs, [m * units, (m + 1) * units, (m + 2) * units])
        w = w.reshape(m, units)
        fires = x @ w + b > share * (m + 1) - (m - jnp.sum(w, 0) + b) / 2
        return fires.astype(float) @ v[:, None] + last

    def held(task):
        if not flip_one:
            return jax.random.bernoulli(jax.random.fold_in(of_slow, task), 0.5, (slow,)).astype(float)
        start, turns = jax.random.split(of_slow)

        def flip(i, bits):
            at = jax.random.randint(jax.random.fold_in(turns, i), (), 0, slow)
            return bits.at[at].set(1 - bits[at])

        return jax.lax.fori_loop(0, task, flip, jax.random.bernoulli(start, 0.5, (slow,)).astype(float))

    def inputs(bits, number):
        drawn = ((number[..., None] >> jnp.arange(random)) & 1).astype(float)
        return jnp.concatenate([jnp.broadcast_to(bits, (*number.shape, slow)), drawn], -1)

    def table(task) -> Batch:
        x = inputs(held(task), jnp.arange(2**random))
        return Batch(x, target(x))

    def data(task) -> Batch:
        drawn = jax.random.randint(jax.random.fold_in(of_steps, task), (steps, 1), 0, 2**random)
        return Batch(inputs(held(task), drawn), table(task).y[drawn])

    return SlowBits(Stream(jax.jit(data), steps), jax.jit(table))


def label_flips(batch: Any) -> Stream:
    """The targets y in even tasks, -y in odd ones.

    Args:
        batch: ``Batch(x, y)``, or ``Data`` of two.

    Raises:
        TypeError: for another batch, and targets without a sign, unsigned or boolean.
    """
    for part in _batches(batch):
        for y in jax.tree.leaves(part.y):
            kind = jnp.result_type(y)
            if jnp.issubdtype(kind, jnp.unsignedinteger) or not jnp.issubdtype(kind, jnp.number):
                raise TypeError(f"y: got {kind}; allowed: numbers with a sign; of two classes 0 and 1, 2 y - 1.0")

    def data(task):
        sign = 1 - 2 * (jnp.asarray(task) % 2)
        return _each(batch, lambda part: part._replace(y=jax.tree.map(lambda y: jnp.asarray(y) * sign, part.y)))

    return Stream(data)


def permuted_inputs(key: PRNGKeyArray, batch: Any) -> Stream:
    """In every task the same samples with the entries of their inputs in another random order; the first task's is
    their own.

    Args:
        key: of the orders.
        batch: ``Batch(x [n, ...], y)``, or ``Data`` of two, which share the order.

    Raises:
        TypeError: for another batch.

    Reference: Goodfellow, Mirza, Xiao, Courville & Bengio 2013, 'An empirical investigation of
    catastrophic forgetting'.
    """
    _batches(batch)

    def data(task):
        def permuted(x):
            flat = jnp.reshape(x, (x.shape[0], -1))
            size = flat.shape[1]
            order = jax.random.permutation(jax.random.fold_in(key, task), size)
            return jnp.reshape(flat[:, jnp.where(task == 0, jnp.arange(size), order)], x.shape)

        return _each(batch, lambda part: part._replace(x=permuted(jnp.asarray(part.x))))

    return Stream(data)


def new_labels(key: PRNGKeyArray, batch: Batch) -> Stream:
    """In every task the same inputs with the rows of y in another random order, the first too: labels to memorise.

    Args:
        key: of the orders.
        batch: ``Batch(x, y [n, ...])``. Nothing can be learned of them for other samples, so that there is no test.

    Raises:
        TypeError: for another batch, and for ``Data``.

    Reference: Lyle, Zheng, Nikishin, Pires, Pascanu & Dabney 2023, 'Understanding plasticity in neural networks'.
    """
    if not isinstance(batch, Batch):
        raise TypeError(f"batch: got {type(batch).__name__}; allowed: Batch(x, y)")

    def data(task):
        order = jax.random.permutation(jax.random.fold_in(key, task), len(batch.y))
        return batch._replace(y=jnp.asarray(batch.y)[order])

    return Stream(data)


def _batches(data: Any) -> list[Batch]:
    """The training and the test batch."""
    parts = [data.train, *(() if data.test is None else [data.test])] if isinstance(data, Data) else [data]
    for part in parts:
        if not isinstance(part, Batch):
            raise TypeError(f"batch: got {type(part).__name__}; allowed: Batch(x, y), or Data(train, test) of two")
    return parts


def _each(data: Any, change: Any) -> Any:
    """A change of the training and the test batch."""
    if not isinstance(data, Data):
        return change(data)
    return Data(change(data.train), None if data.test is None else change(data.test))
