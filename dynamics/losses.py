"""Losses and scores on ``(f, y)``. Papers differ in factors of 1/2 and in sums or means; each is stated here.

Every function takes outputs ``f [n, c]`` and targets ``y [n, c]`` of the same shape, and returns a scalar; a ``y`` that
would broadcast is refused, since the loss would be wrong in silence. Integer class labels ``[n]`` become one-hot rows
where the targets are not signs. Sharpness scales with the loss:
``half_mse`` has exactly half the Hessian of ``mse``.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Inexact, Shaped

from dynamics.types import Array


def mse(f: Shaped[Array, "n ..."], y: Shaped[Array | np.ndarray, "n ..."]) -> Inexact[Array, ""]:
    """``(1/n) sum_i |f_i - y_i|^2``: mean over samples, sum over outputs, no factor 1/2."""
    y = targets_like(f, y)
    return jnp.sum((f - y) ** 2) / f.shape[0]


def half_mse(f: Shaped[Array, "n ..."], y: Shaped[Array | np.ndarray, "n ..."]) -> Inexact[Array, ""]:
    """``(1/2n) sum_i |f_i - y_i|^2``: mean over samples, sum over outputs, with the factor 1/2."""
    return 0.5 * mse(f, y)


def cross_entropy(f: Shaped[Array, "n ..."], y: Shaped[Array | np.ndarray, "n ..."]) -> Inexact[Array, ""]:
    """``-(1/n) sum_i sum_c y_ic log softmax(f_i)_c`` for one-hot (or probability) targets ``y``, in nats.

    A class of probability 0 counts nothing, whatever its logit, -inf included.
    """
    y = targets_like(f, y)
    terms = y * jax.nn.log_softmax(f, axis=-1)
    return -jnp.sum(jnp.where(y == 0, 0, terms)) / f.shape[0]


def logistic(f: Shaped[Array, "n ..."], y: Shaped[Array | np.ndarray, "n ..."]) -> Inexact[Array, ""]:
    """``(1/n) sum_ic log(1 + exp(-y_ic f_ic))`` for targets ``y`` in {-1, +1}, in nats."""
    y = targets_like(f, y, signs=True)
    return jnp.sum(jax.nn.softplus(-y * f)) / f.shape[0]


def hinge(f: Shaped[Array, "n ..."], y: Shaped[Array | np.ndarray, "n ..."]) -> Inexact[Array, ""]:
    """``(1/n) sum_ic max(0, 1 - y_ic f_ic)`` for targets ``y`` in {-1, +1}."""
    y = targets_like(f, y, signs=True)
    return jnp.sum(jax.nn.relu(1.0 - y * f)) / f.shape[0]


def accuracy(f: Shaped[Array, "n ..."], y: Shaped[Array | np.ndarray, "n ..."]) -> Inexact[Array, ""]:
    """Share of samples classified right: by argmax for ``c > 1``, by sign for ``c = 1`` (targets in {-1, +1}).

    NaN where a sample's largest output is not finite: a diverged network scores nothing, not chance. A class that is
    masked by -inf is none that wins.
    """
    y = targets_like(f, y)
    if f.shape[-1] == 1:
        right = jnp.mean(jnp.sign(f) == jnp.sign(y))
    else:
        right = jnp.mean(jnp.argmax(f, axis=-1) == jnp.argmax(y, axis=-1))
    return jnp.where(jnp.all(jnp.isfinite(jnp.max(f, axis=-1))), right, jnp.nan)


def targets_like(f: Any, y: Any, *, signs: bool = False) -> Shaped[Array, "n ..."]:
    """Targets in the shape of the outputs, floating: class labels ``[...]`` for ``f [..., c > 1]`` as one-hot rows.

    Raises:
        TypeError: for what is no array. ValueError: for any other shape, and for labels where ``signs`` are wanted.
    """
    for name, value in (("f", f), ("y", y)):
        if not hasattr(value, "shape"):
            also = "; a model returns one array" if name == "f" else ""
            raise TypeError(f"{name}: got {type(value).__name__}; allowed: an array [n, c], for a loss of (f, y){also}")
    labels = f.ndim > 1 and f.shape[-1] > 1 and y.shape == f.shape[:-1]
    if labels and not signs and jnp.issubdtype(y.dtype, jnp.integer):
        return jax.nn.one_hot(y, f.shape[-1], dtype=f.dtype)
    if f.shape != y.shape:
        remedy = "; for class labels use jax.nn.one_hot" if f.ndim == 2 and y.shape[:1] == f.shape[:1] else ""
        raise ValueError(f"y: got shape {y.shape}; allowed: the shape of f, {f.shape}{remedy}")
    return jnp.asarray(y, None if jnp.issubdtype(y.dtype, jnp.inexact) else f.dtype)
