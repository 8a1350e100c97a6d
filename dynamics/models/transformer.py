"""A one-layer transformer without normalisation, read at its last token: the network of modular-addition studies."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from dynamics.types import Array, Model


class TransformerParams(NamedTuple):
    """Weights, with h heads of ``size = d/h``."""

    embed: Float[Array, "tokens d"]
    position: Float[Array, "length d"]
    query: Float[Array, "h d size"]
    key: Float[Array, "h d size"]
    value: Float[Array, "h d size"]
    output: Float[Array, "h size d"]
    up: Float[Array, "d mlp"]
    up_bias: Float[Array, " mlp"]
    down: Float[Array, "mlp d"]
    down_bias: Float[Array, " d"]
    unembed: Float[Array, "d outputs"]


def transformer(tokens: int, outputs: int, width: int = 128, heads: int = 4, mlp: int | None = None) -> Model:
    """One block: ``r = E[t] + P``, ``r += attention(r)``, ``r += D relu(U r + b) + c``; logits ``r W`` at the end.

    Only the last token's residual stream is formed: the other tokens enter through their keys and values.

    Args:
        tokens: vocabulary size. outputs: number of logits.
        width: d, the residual stream. heads: attention heads, a divisor of d. mlp: hidden units, ``4 d`` by default.

    Returns:
        A ``Model`` on ``TransformerParams``; inputs are int tokens ``[n, length]``, or vectors ``[n, length, tokens]``,
        of which a one-hot row is a token; outputs ``[n, outputs]``. Weights start as ``N(0, 1/d)`` (``down`` as
        ``N(0, 1/mlp)``), biases at zero.

    Raises:
        ValueError: when a size is below 1 or ``heads`` does not divide ``width``.

    Cost: about ``2 n (2 length + 2 + 2 mlp/d) d^2`` FLOPs forward.

    Reference: Nanda, Chan, Lieberum, Smith & Steinhardt 2023, section 3.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = transformer(8, 7, width=16)
        >>> shape, params = model.init(jax.random.key(0), (-1, 3))
        >>> shape, model.apply(params, jnp.array([[1, 2, 7]])).shape
        ((-1, 7), (1, 7))
    """
    hidden = 4 * width if mlp is None else mlp
    if min(tokens, outputs, width, heads, hidden) < 1 or width % heads:
        got = (tokens, outputs, width, heads, hidden)
        raise ValueError(f"tokens, outputs, width, heads, mlp: got {got}; allowed: integers >= 1, heads dividing width")
    size = width // heads

    def init(key, input_shape):
        keys = iter(jax.random.split(key, 9))

        def normal(*shape):
            return jax.random.normal(next(keys), shape) / width**0.5

        params = TransformerParams(
            embed=normal(tokens, width),
            position=normal(input_shape[1], width),
            query=normal(heads, width, size),
            key=normal(heads, width, size),
            value=normal(heads, width, size),
            output=normal(heads, size, width),
            up=normal(width, hidden),
            up_bias=jnp.zeros(hidden),
            down=normal(hidden, width) * (width / hidden) ** 0.5,
            down_bias=jnp.zeros(width),
            unembed=normal(width, outputs),
        )
        return (input_shape[0], outputs), params

    def apply(params: TransformerParams, x):
        embedded = params.embed[x] if jnp.issubdtype(x.dtype, jnp.integer) else x @ params.embed
        stream = embedded + params.position  # [n, length, d]
        last = stream[:, -1]
        query = jnp.einsum("nd,hds->nhs", last, params.query)
        keys = jnp.einsum("nld,hds->nhls", stream, params.key)
        weight = jax.nn.softmax(jnp.einsum("nhs,nhls->nhl", query, keys) / size**0.5, axis=-1)
        mixed = jnp.einsum("nhl,nhls->nhs", weight, jnp.einsum("nld,hds->nhls", stream, params.value))
        last = last + jnp.einsum("nhs,hsd->nd", mixed, params.output)
        last = last + jax.nn.relu(last @ params.up + params.up_bias) @ params.down + params.down_bias
        return last @ params.unembed

    return Model(init, apply)
