"""Frequencies in weights: what a network trained on a cyclic group has built."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Float, Int

from dynamics.arguments import program
from dynamics.precision import full_precision
from dynamics.types import Array


@program
def centred(weights: Float[Array, "*b n"]) -> Float[Array, "*b n"]:
    """Real ``weights`` less the mean of each row, whose rounding would show in what is orthogonal to it.

    Half precision and integers are widened to float32.

    Raises:
        ValueError: for complex weights.
    """
    if jnp.iscomplexobj(weights):
        raise ValueError(f"weights: got {weights.dtype}; allowed: real numbers")
    weights = weights.astype(jnp.promote_types(weights.dtype, jnp.float32))
    return weights - jnp.mean(weights, axis=-1, keepdims=True)


@full_precision
@program
def frequency_power(weights: Float[Array, "*b p"]) -> Float[Array, "*b frequencies"]:
    """Power of each of the ``p // 2`` frequencies of ``weights`` along the last axis, without the constant.

    ``|sum_a w_a exp(-2 pi i k a/p)|^2`` for ``k = 1, ..., p // 2``; entry ``k - 1`` belongs to frequency k.

    Args:
        weights: real, one row for each index before the last axis; half precision and integers are widened to float32.

    Raises:
        ValueError: for complex weights, whose power at k and -k is not the same.

    Cost: ``2 p^2`` FLOPs a row, as two matrix products, which at these p take a CPU no longer than transforms.
    """
    p, apart = weights.shape[-1], centred(weights)
    waves = jnp.arange(1, p // 2 + 1)[:, None] * jnp.arange(p) % p * (2 * jnp.pi / p)  # [frequencies, p]
    return (apart @ jnp.cos(waves).T) ** 2 + (apart @ jnp.sin(waves).T) ** 2


@program
def frequency_share(weights: Float[Array, "*b p"]) -> Float[Array, "*b"]:
    """The share of each neuron's power that lies in its largest frequency, constant left out.

    Args:
        weights: one neuron a row, indexed by the group element.

    Returns:
        In ``[1/(p // 2), 1]``; 1 for a pure sinusoid, NaN for constant weights (a neuron whose weights are all 0).

    Example:
        >>> import jax.numpy as jnp
        >>> wave = jnp.cos(2 * jnp.pi * 3 * jnp.arange(11) / 11)
        >>> round(float(frequency_share(wave)), 4)
        1.0
    """
    power = frequency_power(weights / jnp.max(jnp.abs(weights), axis=-1, keepdims=True))  # squares of 1e-20 are none
    return jnp.max(power, axis=-1) / jnp.sum(power, axis=-1)


def top_frequency(weights: Float[Array, "*b p"]) -> Int[Array, "*b"]:
    """The frequency, in 1, ..., p // 2, with the most power in ``weights``."""
    return jnp.argmax(frequency_power(weights), axis=-1) + 1


@program
def gini(values: Float[Array, "*b n"]) -> Float[Array, "*b"]:
    """The Gini coefficient of non-negative ``values``: 0 when all are equal, ``1 - 1/n`` when one has all.

    Reference: Hurley & Rickard 2009, eq. 27; used on Fourier components by Nanda et al. 2023.
    """
    n = values.shape[-1]
    ordered = jnp.sort(values, axis=-1)
    rank = jnp.arange(1, n + 1, dtype=values.dtype)
    return jnp.sum((2 * rank - n - 1) * ordered, axis=-1) / (n * jnp.sum(ordered, axis=-1))


@full_precision
@program
def sum_components(
    logits: Float[Array, "p p c"], frequencies: Int[Array, " K"]
) -> tuple[Float[Array, "p p c"], Float[Array, "p p c"]]:
    """Splits logits on all pairs into the part that follows ``cos`` and ``sin`` of ``w_k (a + b)`` and the rest.

    Args:
        logits: indexed by a, b and the output.
        frequencies: the key frequencies k, ``w_k = 2 pi k/p``.

    Returns:
        ``(restricted, excluded)``: the projection on those ``2 K`` waves plus the mean over pairs,
        and the logits without the projection.

    Reference: Nanda, Chan, Lieberum, Smith & Steinhardt 2023, section 5.1: the losses of the two parts are the
    restricted and the excluded loss.
    """
    p = logits.shape[0]
    total = (jnp.arange(p)[:, None] + jnp.arange(p)[None, :]) % p
    phase = 2 * jnp.pi * ((frequencies[:, None, None] * total) % p) / p  # [K, p, p]
    waves = jnp.concatenate([jnp.cos(phase), jnp.sin(phase)]) * jnp.sqrt(2.0) / p  # orthonormal over pairs
    projected = jnp.einsum("kab,kc->abc", waves, jnp.einsum("kab,abc->kc", waves, logits))
    return projected + jnp.mean(logits, axis=(0, 1)), logits - projected
