"""What a run is called with, checked before anything is traced: messages name the argument, the value, the remedy."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynamics.arguments import FINITE, check_numbers
from dynamics.types import Batch, Data, Dynamics, Params


def check_data(data: Any) -> None:
    """Raises TypeError for leaves that hold no numbers, ValueError for a batch without samples."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(data):
        kind = getattr(getattr(leaf, "dtype", None), "kind", "U" if isinstance(leaf, str) else "")
        if kind in ("O", "S", "U"):
            raise TypeError(
                f"data{jax.tree_util.keystr(path)}: got {getattr(leaf, 'dtype', type(leaf).__name__)}; allowed: an "
                "array of numbers; class names become targets by np.unique(names, return_inverse=True), jax.nn.one_hot"
            )
    batch = data.train if isinstance(data, Data) else data
    if isinstance(batch, Batch):
        for leaf in jax.tree.leaves(batch.x)[:1]:
            if np.ndim(leaf) and not np.shape(leaf)[0]:
                raise ValueError(f"data.x: got shape {np.shape(leaf)}; allowed: at least one sample")


def check_dynamics(dynamics: Any) -> None:
    """Raises TypeError unless ``dynamics`` is one."""
    if not isinstance(dynamics, Dynamics):
        raise TypeError(
            f"dynamics: got {type(dynamics).__name__}; allowed: a Dynamics, e.g. "
            "gradient_descent(Objective(apply, loss), .05)"
        )


def check_key(key: Any) -> None:
    """Raises TypeError unless ``key`` is a PRNG key, typed or of the old kind."""
    dtype = getattr(key, "dtype", None)
    if dtype is None or not (jnp.issubdtype(dtype, jax.dtypes.prng_key) or (dtype == np.uint32 and np.ndim(key))):
        raise TypeError(f"key: got {key!r}; allowed: a PRNG key, e.g. jax.random.key(0)")


def check_params(params: Params, *, real: bool = False) -> None:
    """Raises TypeError unless ``params`` holds arrays that can be moved: floating or complex (unless ``real``)."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise TypeError(f"params: got {type(params).__name__} without arrays; allowed: a pytree of floating arrays")
    for path, leaf in leaves:
        dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
        if not jnp.issubdtype(dtype, jnp.floating if real else jnp.inexact):
            allowed = "real floating numbers" if real else "floating or complex numbers"
            raise TypeError(f"params{jax.tree_util.keystr(path)}: got {dtype}; allowed: {allowed}")


def check_optimizer(optimizer: Any) -> None:
    """Raises TypeError unless ``optimizer`` is an optax transformation."""
    if hasattr(optimizer, "init") and hasattr(optimizer, "update"):
        return
    name = getattr(optimizer, "__name__", "")
    got = f"the function {name}; call it, as in optax.{name}(1e-3)" if callable(optimizer) else repr(optimizer)
    raise TypeError(f"optimizer: got {got}; allowed: an optax transformation, e.g. optax.sgd(0.1)")


def check_learning_rate(learning_rate: Any) -> None:
    """Raises unless it is a finite number, many for many lanes, or a function: an optax schedule."""
    if not callable(learning_rate):
        finite, allowed = FINITE
        check_numbers(many=True, learning_rate=(learning_rate, (finite, f"{allowed}, or an optax schedule")))
