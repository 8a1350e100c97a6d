"""Losses and scores on ``(f, y)``. Papers differ in factors of 1/2 and in sums or means; each is stated here.

Every function takes outputs ``f [n, c]`` and targets ``y [n, c]`` of the same shape, and returns a scalar; a ``y`` that
would broadcast is refused, since the loss would be wrong in silence. Sharpness scales with the loss:
``half_mse`` has exactly half the Hessian of ``mse``.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Real, Shaped

from dynamics.types import Array


def mse(f: Real[Array, "*n c"], y: Shaped[Array | np.ndarray, "*y"]) -> Float[Array, ""]:
    """``(1/n) sum_i |f_i - y_i|^2``: mean over samples, sum over outputs, no factor 1/2."""
    _check_shapes(f, y)
    return jnp.sum((f - y) ** 2) / f.shape[0]


def half_mse(f: Real[Array, "*n c"], y: Shaped[Array | np.ndarray, "*y"]) -> Float[Array, ""]:
    """``(1/2n) sum_i |f_i - y_i|^2``: mean over samples, sum over outputs, with the factor 1/2."""
    return 0.5 * mse(f, y)


def cross_entropy(f: Real[Array, "*n c"], y: Shaped[Array | np.ndarray, "*y"]) -> Float[Array, ""]:
    """``-(1/n) sum_i sum_c y_ic log softmax(f_i)_c`` for one-hot (or probability) targets ``y``, in nats."""
    _check_shapes(f, y)
    return -jnp.sum(y * jax.nn.log_softmax(f, axis=-1)) / f.shape[0]


def logistic(f: Real[Array, "*n c"], y: Shaped[Array | np.ndarray, "*y"]) -> Float[Array, ""]:
    """``(1/n) sum_ic log(1 + exp(-y_ic f_ic))`` for targets ``y`` in {-1, +1}, in nats."""
    _check_shapes(f, y)
    return jnp.sum(jax.nn.softplus(-y * f)) / f.shape[0]


def hinge(f: Real[Array, "*n c"], y: Shaped[Array | np.ndarray, "*y"]) -> Float[Array, ""]:
    """``(1/n) sum_ic max(0, 1 - y_ic f_ic)`` for targets ``y`` in {-1, +1}."""
    _check_shapes(f, y)
    return jnp.sum(jax.nn.relu(1.0 - y * f)) / f.shape[0]


def accuracy(f: Real[Array, "*n c"], y: Shaped[Array | np.ndarray, "*y"]) -> Float[Array, ""]:
    """Share of samples classified right: by argmax for ``c > 1``, by sign for ``c = 1`` (targets in {-1, +1}).

    NaN where an output is not finite: a diverged network scores nothing, not chance.
    """
    _check_shapes(f, y)
    if f.shape[-1] == 1:
        right = jnp.mean(jnp.sign(f) == jnp.sign(y))
    else:
        right = jnp.mean(jnp.argmax(f, axis=-1) == jnp.argmax(y, axis=-1))
    return jnp.where(jnp.all(jnp.isfinite(f)), right, jnp.nan)


def _check_shapes(f: Array, y: Array | np.ndarray) -> None:
    for name, value in (("f", f), ("y", y)):
        if not hasattr(value, "shape"):
            also = "; a model returns one array" if name == "f" else ""
            raise TypeError(f"{name}: got {type(value).__name__}; allowed: an array [n, c], for a loss of (f, y){also}")
    if f.shape != y.shape:
        labels = f.ndim == 2 and f.shape[1] > 1 and y.shape[:1] == f.shape[:1]
        remedy = "; for class labels use jax.nn.one_hot" if labels else ""
        raise ValueError(f"y: got shape {y.shape}; allowed: the shape of f, {f.shape}{remedy}")
