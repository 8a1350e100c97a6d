"""A leaky recurrent network read out at the end of its input, and low-rank connectivity to start it from."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from dynamics.arguments import SHARE, check_numbers
from dynamics.types import Array, Model


class RnnParams(NamedTuple):
    """Weights of N units on d inputs and c outputs."""

    recurrent: Float[Array, "N N"]
    inputs: Float[Array, "N d"]
    readout: Float[Array, "c N"]


def rnn(
    units: int,
    outputs: int,
    phi: Callable[[Array], Array] = jax.nn.relu,
    *,
    gain: float = 1.0,
    leak: float = 1.0,
) -> Model:
    """``h_{t+1} = (1 - leak) h_t + leak (W phi(h_t) + U x_t)``, ``f = V phi(h_T)``, from ``h_0 = 0``.

    Args:
        units: N.
        outputs: c.
        phi: activation, elementwise.
        gain: ``W ~ N(0, gain^2/N)``; ``U ~ N(0, 1/d)``, ``V ~ N(0, 1/N)``.
        leak: ``dt/tau`` in (0, 1].

    Returns:
        A ``Model`` on ``RnnParams``: inputs ``[n, T, d]``, outputs ``[n, c]``; ``kernel`` is None.

    Raises:
        ValueError: when a size is below 1 or ``leak`` is outside (0, 1].

    Cost: ``T`` products ``[n, N] x [N, N]``.

    Reference: Liu, Baratin, Cornford, Mihalas, Shea-Brown & Lajoie 2023, eq. 1.

    Example:
        >>> import jax
        >>> model = rnn(16, 2, gain=1.25)
        >>> shape, params = model.init(jax.random.key(0), (-1, 8, 3))
        >>> shape, model.apply(params, jax.numpy.ones((5, 8, 3))).shape
        ((-1, 2), (5, 2))
    """
    if units < 1 or outputs < 1:
        raise ValueError(f"units, outputs: got {units!r}, {outputs!r}; allowed: integers >= 1")
    check_numbers(leak=(leak, SHARE))

    def init(key, input_shape):
        n, _, inputs = input_shape
        keys = jax.random.split(key, 3)
        return (n, outputs), RnnParams(
            gain * jax.random.normal(keys[0], (units, units)) / units**0.5,
            jax.random.normal(keys[1], (units, inputs)) / inputs**0.5,
            jax.random.normal(keys[2], (outputs, units)) / units**0.5,
        )

    def apply(params: RnnParams, x: Array) -> Array:
        return phi(states(params, x, phi, leak)[-1]) @ params.readout.T

    return Model(init, apply)


def states(
    params: RnnParams, x: Float[Array, "n T d"], phi: Callable[[Array], Array] = jax.nn.relu, leak: float = 1.0
) -> Float[Array, "T n N"]:
    """Hidden states ``h_1, ..., h_T`` on inputs x."""

    def move(h, x_t):
        h = (1 - leak) * h + leak * (phi(h) @ params.recurrent.T + x_t @ params.inputs.T)
        return h, h

    start = jnp.zeros((x.shape[0], params.recurrent.shape[0]), params.recurrent.dtype)
    return jax.lax.scan(move, start, jnp.swapaxes(x, 0, 1))[1]


def truncated(weights: Float[Array, "n m"], rank: int) -> Float[Array, "n m"]:
    """``weights`` with all but the ``rank`` largest singular values removed, scaled back to its Frobenius norm.

    Args:
        rank: number of singular values kept, between 1 and ``min(n, m)``.

    Raises:
        ValueError: when ``rank`` is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> float(jnp.linalg.norm(truncated(jnp.eye(4), 1)))
        2.0
    """
    if not 1 <= rank <= min(weights.shape):
        raise ValueError(f"rank: got {rank!r}; allowed: an integer from 1 to {min(weights.shape)}")
    u, s, v = jnp.linalg.svd(weights, full_matrices=False)
    kept = s * (jnp.arange(s.size) < rank)
    return (u * kept) @ v * jnp.linalg.norm(s) / jnp.linalg.norm(kept)
