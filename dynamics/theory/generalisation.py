"""Generalisation of a linear network in high dimensions, along its training: the frozen subspace and early stopping."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Float

from dynamics.arguments import check_counts, program
from dynamics.theory.spectra import marchenko_pastur
from dynamics.types import Array, ArrayLike


class Errors(NamedTuple):
    """``train`` and ``test`` mean squared errors, one a time."""

    train: Float[Array, "*shape"]
    test: Float[Array, "*shape"]


def linear_student(
    times: ArrayLike,
    aspect: ArrayLike,
    *,
    signal: ArrayLike = 1.0,
    start: ArrayLike = 0.0,
    noise: ArrayLike = 0.0,
    learning_rate: ArrayLike | None = None,
    nodes: int = 1000,
) -> Errors:
    """Mean errors of ``w' = X^T (y - X w)`` on ``y = X wbar + e``, as P and N grow at fixed ``a = P/N``.

        E_g = se^2 + S E[e^{-2 l t}] + E_{l>0}[(se^2/l)(1 - e^{-l t})^2],          S = sw^2 + s0^2
        E_t = (1/a) { E_{l>0}[(l S + se^2) e^{-2 l t}] + max(0, a - 1) se^2 },

    l drawn from the Marchenko-Pastur law, whose mass at zero is the frozen subspace: directions no sample shows.

    Args:
        times: ``t >= 0``, any shape; ``learning_rate * step``.
        aspect: samples per parameter ``a = P/N > 0``.
        signal: variance ``sw^2`` of the teacher's weights.
        start: variance ``s0^2`` of the initial weights.
        noise: variance ``se^2`` of the label noise.
        learning_rate: eta of gradient descent: ``(1 - eta l)^{t/eta}`` in place of ``e^{-l t}``; None for the flow.
        nodes: quadrature nodes.

    Returns:
        ``Errors`` of the shape of ``times``. Differentiable and vmappable in everything but ``nodes``.

    Assumptions: ``X_ij ~ N(0, 1/N)``, updates ``eta X^T r`` without 1/P, isotropic Gaussian teacher, start and noise.

    Cost: ``nodes`` exponentials a time.

    Reference: Advani & Saxe 2017, eqs. 17-20.

    Example:
        >>> errors = linear_student(0.0, 0.5, noise=0.2)
        >>> round(float(errors.test), 4)
        1.2
    """
    check_counts(nodes=nodes)
    return _errors(times, aspect, signal, start, noise, learning_rate, nodes)


@partial(program, static=("nodes",))
def _errors(times, aspect, signal, start, noise, learning_rate, nodes: int) -> Errors:
    law = marchenko_pastur(aspect, nodes)
    values, t = law.eigenvalues, jnp.asarray(times, law.eigenvalues.dtype)[..., None]
    decay = (
        jnp.exp(-values * t)
        if learning_rate is None
        else _power(1 - jnp.asarray(learning_rate) * values, t / learning_rate)
    )
    power, noise, aspect = jnp.asarray(signal) + jnp.asarray(start), jnp.asarray(noise), jnp.asarray(aspect)
    test = noise + law.mean(power * decay**2 + noise / values * (1 - decay) ** 2, at_zero=power)
    train = (law.mean((values * power + noise) * decay**2) + jnp.maximum(0.0, aspect - 1.0) * noise) / aspect
    return Errors(train, test)


@program
def final_error(
    aspect: ArrayLike, *, signal: ArrayLike = 1.0, start: ArrayLike = 0.0, noise: ArrayLike = 0.0
) -> Float[Array, "*shape"]:
    """The test error at ``t -> infinity``: ``se^2 a/(a-1)`` for a > 1, ``S (1-a) + se^2/(1-a)`` for a < 1.

    Diverges at a = 1 with any noise: the peak of double descent. Assumptions: those of ``linear_student``.

    Reference: Advani & Saxe 2017, section 2.3.
    """
    a = jnp.asarray(aspect, jnp.result_type(float))
    gap = jnp.abs(a - 1)
    over = (jnp.asarray(signal) + start) * (1 - a) + noise / gap
    return jnp.where(a < 1, over, noise * a / gap)


def _power(base: Array, exponent: Array) -> Array:
    """``base ** exponent`` for whole-numbered exponents, of either sign of ``base``."""
    odd = jnp.abs(jnp.round(exponent) % 2) == 1
    size = jnp.exp(exponent * jnp.log(jnp.maximum(jnp.abs(base), 1e-30)))
    return jnp.where((base < 0) & odd, -size, size)
