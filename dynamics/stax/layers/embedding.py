"""Embeddings of tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from dynamics.arguments import check_counts
from dynamics.stax.kernel.kernel import Kernel
from dynamics.stax.kernel.tokens import integers
from dynamics.stax.layers.layer import Needs, layer
from dynamics.stax.layers.scaling import scaling
from dynamics.types import Array, ArrayLike, Model


def Embedding(vocabulary: int, out_dim: int, W_std: ArrayLike = 1.0, parameterization: str = "ntk") -> Model:
    """A vector for each token: ``f_p = W_std E[x_p]`` with ``E [vocabulary, out_dim]``.

    Two positions have equal vectors or independent ones: ``k'[p, q] = W_std^2`` where ``x_p = x'_q`` and 0 elsewhere.
    ``Theta' = k'`` ('ntk'), ``k' / W_std^2`` ('standard', ``E ~ N(0, W_std^2)``) or ``out_dim k'`` ('mup'), as for
    ``Dense`` on one-hot inputs of fan-in 1. Both kernels are those of any finite width. The vocabulary's size enters
    neither; ``kernel_fn`` never forms one-hot vectors.

    Args:
        vocabulary: number of tokens; inputs are integers in ``[0, vocabulary)`` of shape ``[n, *positions]``.
        out_dim: number of channels, the last axis of the outputs ``[n, *positions, out_dim]``.
        W_std: weight scale. parameterization: 'ntk', 'standard' or 'mup'.

    Raises:
        ValueError: for sizes below 1, an unknown parameterization, inputs that are not integers, and, from ``apply``,
            tokens outside the vocabulary. Where tokens are traced (under ``jit``, ``vmap``) such a token's vector is
            NaN instead. ``kernel_fn`` only compares tokens and takes any integers.

    Cost: one comparison a kernel entry.

    Reference: Yang 2020, 'Tensor Programs II: neural tangent kernel for any architecture', appendix on embeddings;
    Yang, Simon & Bernstein 2023 ('mup').

    >>> import jax.numpy as jnp
    >>> from dynamics import stax
    >>> kernel_fn = stax.serial(stax.Embedding(10, 64), stax.GlobalAvgPool(), stax.Dense(1)).kernel
    >>> kernel_fn(jnp.array([[1, 2], [2, 3]]), None, 'nngp').shape
    (2, 2)
    """
    check_counts(vocabulary=vocabulary)
    scaled = scaling(parameterization, W_std, None, out_dim, (1, 1), "out_dim")

    def init(rng, input_shape):
        table, _ = scaled.initial(jax.random.normal(rng, (vocabulary, out_dim)), None, 1)
        return (*input_shape, out_dim), (table,)

    def apply(params, inputs, **kwargs):
        tokens = integers(inputs, "inputs")
        _check_range(tokens, vocabulary)
        # Negative tokens would count from the end.
        rows = params[0].at[jnp.where(tokens < 0, vocabulary, tokens)].get(mode="fill", fill_value=jnp.nan)
        return scaled.forward(rows, None, 1)

    def propagate(k: Kernel, **kwargs):
        if k.channel_axis < len(k.shape1):
            raise ValueError("Embedding: got inputs with channels; allowed: integer tokens, so put it first")
        variance = scaled.weight_variance(1)
        full = {name: value for name in ("gap", "within1", "within2") if (value := getattr(k, name)) is not None}
        out = k.replace(
            var1=variance * k.var1,
            var2=None if k.var2 is None else variance * k.var2,
            is_gaussian=True,
            shape1=(*k.shape1, out_dim),
            shape2=(*k.shape2, out_dim),
            **{name: variance * value for name, value in full.items()},
        )
        return out if k.ntk is None else out.replace(ntk=scaled.own_ntk(k.nngp, out.nngp, 1))

    return layer(init, apply, propagate, Needs(0, -1, tokens=True), lambda mask, shape: mask[..., None])


def _check_range(tokens: Array, vocabulary: int) -> None:
    if isinstance(tokens, Tracer) or not tokens.size:
        return
    known = np.asarray(tokens)  # of numpy: a reduction by JAX inside jit would be traced, also of what is known
    low, high = int(known.min()), int(known.max())
    if low < 0 or high >= vocabulary:
        raise ValueError(
            f"inputs: got token {low if low < 0 else high}; allowed: 0 to vocabulary - 1 = {vocabulary - 1}"
        )
