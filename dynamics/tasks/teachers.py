"""Teachers: Gaussian inputs labelled by a quadratic form or by a random network."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, PRNGKeyArray

from dynamics.arguments import check_counts
from dynamics.types import Array, Batch, Data, Model


class QuadraticTask(NamedTuple):
    """``data`` and the direction ``beta`` of its teacher."""

    data: Data
    beta: Float[Array, " D"]


def quadratic_teacher(key: PRNGKeyArray, samples: int, test_samples: int, dim: int) -> QuadraticTask:
    """``y = (beta . x)^2 / 2`` on ``x ~ N(0, I/D)``, with ``|beta|^2 = D`` exactly, so that seeds share one scale.

    Args:
        key: draws beta, the training inputs and the test inputs independently.
        samples: P, training samples.
        test_samples: fresh samples.
        dim: D, input dimension.

    Returns:
        ``QuadraticTask(Data(train, test), beta)`` with ``x [n, D]`` and ``y [n, 1]``; ``E y = 1/2``, ``Var y = 1/2``.

    Raises:
        ValueError: when a size is below 1.

    Reference: Kumar, Bordelon, Gershman & Pehlevan 2023, section 4.
    """
    check_counts(samples=samples, test_samples=test_samples, dim=dim)
    return _quadratic(key, samples, test_samples, dim)


@partial(jax.jit, static_argnames=("samples", "test_samples", "dim"))
def _quadratic(key: PRNGKeyArray, samples: int, test_samples: int, dim: int) -> QuadraticTask:
    beta_key, train_key, test_key = jax.random.split(key, 3)
    direction = jax.random.normal(beta_key, (dim,))
    beta = direction * jnp.sqrt(dim) / jnp.linalg.norm(direction)

    def draw(key, n):
        x = jax.random.normal(key, (n, dim)) / jnp.sqrt(dim)
        return Batch(x, 0.5 * ((x @ beta) ** 2)[:, None])

    return QuadraticTask(Data(draw(train_key, samples), draw(test_key, test_samples)), beta)


def network_teacher(key: PRNGKeyArray, model: Model, samples: int, test_samples: int, dim: int) -> Data:
    """Labels ``y = f*(x)`` by a freshly initialised ``model`` on ``x ~ N(0, I)``.

    Args:
        key: draws the teacher, the training inputs and the test inputs independently.
        model: the teacher's architecture.
        samples, test_samples: training and fresh samples.
        dim: input dimension.

    Returns:
        ``Data`` with ``x [n, dim]`` and ``y [n, c]``.

    Raises:
        ValueError: when a size is below 1.
    """
    check_counts(samples=samples, test_samples=test_samples, dim=dim)
    teacher_key, train_key, test_key = jax.random.split(key, 3)
    _, params = model.init(teacher_key, (-1, dim))

    def draw(key, n):
        x = jax.random.normal(key, (n, dim))
        return Batch(x, model.apply(params, x))

    return Data(draw(train_key, samples), draw(test_key, test_samples))
