"""An equinox module as a Model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from dynamics.extras import missing
from dynamics.types import Model


def from_equinox(make: Callable[[Any], Any], *, dtype: Any = None) -> Model:
    """Turns an equinox module, which maps one sample, into a ``Model``, which maps a batch.

    Args:
        make: ``key -> module``, e.g. ``lambda key: eqx.nn.MLP(4, 1, 64, 2, key=key)``. ``params`` is the pytree of the
            module's inexact arrays; everything else (activations, sizes, integer and boolean arrays) is static.
        dtype: dtype of the dummy input that ``init`` traces with; the default float unless given (int32 for token ids).

    Returns:
        A ``Model`` with ``kernel`` None; ``apply(params, x [n, ...])`` maps the module over the samples.

    Raises:
        ImportError: when equinox is not installed; the message names the extra.
        TypeError: for a module where the function that makes it belongs, or one that draws random numbers.
        ValueError: when an integer or boolean array of the module depends on the key.
    """
    try:
        import equinox
    except ImportError as error:
        raise missing("from_equinox", "equinox", "equinox") from error

    module: Any = make
    if isinstance(module, equinox.Module) and not type(module).__module__.startswith("equinox._"):
        raise TypeError(
            f"make: got the module {type(module).__name__}; allowed: a function of a key that builds it, "
            f"lambda key: {type(module).__name__}(..., key=key)"
        )
    static = equinox.partition(equinox.filter_eval_shape(make, jax.random.key(0)), _is_inexact)[1]
    if any(map(_is_array, jax.tree.leaves(static))):  # their values are wanted, not their shapes
        with jax.ensure_compile_time_eval():
            static = equinox.partition(make(jax.random.key(0)), _is_inexact)[1]

    def call(params, x):
        try:
            return equinox.combine(params, static)(x)
        except RuntimeError as error:
            if "key" not in str(error):
                raise
            raise TypeError(
                "make: got a module that draws random numbers; allowed: dropout with inference=True"
            ) from error

    def init(key, input_shape):
        params, rest = equinox.partition(make(key), equinox.is_inexact_array)
        for one, other in zip(*(filter(_is_array, jax.tree.leaves(tree)) for tree in (static, rest)), strict=True):
            if not isinstance(other, Tracer) and not np.array_equal(one, other):
                raise ValueError(f"make: got an array of {one.dtype} that depends on the key; allowed: constants")
        one = jax.ShapeDtypeStruct(tuple(input_shape[1:]), dtype or jnp.result_type(float))
        f = jax.eval_shape(call, params, one)
        return (input_shape[0], *f.shape), params

    def apply(params, x):
        return jax.vmap(call, (None, 0))(params, x)

    return Model(init, apply)


def _is_array(leaf) -> bool:
    return hasattr(leaf, "dtype")


def _is_inexact(leaf) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.inexact)
