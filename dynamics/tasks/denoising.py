"""Denoising as a landscape: noise comes from keys in the batch, so that a run redraws it and a reading keeps it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, PRNGKeyArray, Real

from dynamics.arguments import POSITIVE, check_numbers
from dynamics.program import real_view
from dynamics.types import Array, ArrayLike, Objective, check_apply


class Noised(NamedTuple):
    """``x [n, ...]``, clean samples, and the ``keys [n]`` that their noise is drawn from."""

    x: Any
    keys: Any


def noised(key: PRNGKeyArray, x: Float[ArrayLike, "n ..."]) -> Noised:
    """``x`` with a key of its own for each sample, so that a minibatch of it is a batch of its own.

    Raises:
        TypeError: for samples that are not real and floating, such as the bytes of images.
        ValueError: for no samples, or samples without an axis.
    """
    x = _real(x)
    if x.ndim < 2 or not x.shape[0]:
        raise ValueError(f"x: got shape {x.shape}; allowed: [n, ...], samples with at least one axis")
    return Noised(x, jax.random.split(key, x.shape[0]))


def noise(batch: Noised) -> Float[Array, "n ..."]:
    """The unit Gaussian noise of a batch, in the shape of its samples."""
    x = _real(batch.x)
    return jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(batch.keys)


def _real(x: ArrayLike) -> Array:
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"x: got {x.dtype}; allowed: real floating samples, e.g. x / 255 of bytes")
    return x


def denoising(apply: Callable[..., Array], sigma: Real[ArrayLike, ""]) -> Objective:
    """``L = (1/2n) sum_i |apply(params, x_i + sigma e_i) - x_i|^2``, e standard normal: a sum over pixels.

    Over fresh noise its minimiser is the posterior mean ``E[x | y]``, so that ``(apply(y) - y)/sigma^2`` is the score
    of the smoothed data (Tweedie); of n training samples, that of their empirical distribution.

    Args:
        apply: ``(params, y) -> denoised``, any model from samples to samples of their shape.
        sigma: standard deviation of the noise, > 0; may be traced.

    Returns:
        An ``Objective`` on ``Noised`` batches, a mean over samples, summed in float32 or more. To train on fresh noise,
        redraw the keys: ``evolve.fresh_batches(dynamics, lambda key, batch: noised(key, batch.x))``.

    Raises:
        ValueError: for sigma out of range, and, at tracing, for outputs that have not the samples' shape.
        TypeError: for a model where its function belongs, or a batch of another kind.

    Reference: Vincent 2011, 'A connection between score matching and denoising autoencoders'.

    Example:
        >>> L, x = denoising(lambda w, y: w * y, 0.5), jnp.ones((20_000, 2))
        >>> [round(float(L(w, noised(jax.random.key(0), x))), 2) for w in (0.0, 1.0)]  # |x|^2/2, and d sigma^2/2
        [1.0, 0.25]
    """
    check_apply(apply)
    check_numbers(sigma=(sigma, POSITIVE))

    def loss(params, batch):
        if not isinstance(batch, Noised):
            raise TypeError(f"data: got {type(batch).__name__}; allowed: noised(key, x)")
        x = _real(batch.x)
        found = apply(params, x + jnp.asarray(sigma, x.dtype) * noise(batch))
        if found.shape != x.shape:
            raise ValueError(f"apply: got {found.shape} from it; allowed: the shape of x, {x.shape}")
        return 0.5 * jnp.sum((real_view.wide(found) - x) ** 2) / x.shape[0]

    return Objective.of(loss)
