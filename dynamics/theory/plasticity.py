"""Loss of plasticity, solved: f = u v taught s, then -s, then s again, by gradient descent of step eta.

The imbalance ``c = u^2 - v^2`` alone carries f past the saddle at 0. Gradient flow conserves it; a step of size eta
takes it to ``c (1 - eta^2 (f - s)^2)``, so that each task leaves less of it to the next one.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Float

from dynamics.arguments import NOT_NEGATIVE, POSITIVE, check_numbers
from dynamics.types import Array, ArrayLike


def aged(age: ArrayLike, learning_rate: ArrayLike, target: ArrayLike = 1.0) -> Float[Array, "*shape"]:
    """The age ``L = ln(1/c)`` after one more change of sign: ``L + eta s asinh(2 s/c)``, to leading order in eta.

    Of ``-ln(1 - eta^2 e^2)`` summed over the steps from ``f = -s`` to ``s``, ``eta int (s - a) da / sqrt(4 a^2 + c^2)``
    is left. For ``c << s`` it reads ``L + ln 4s -> (1 + eta s) (L + ln 4s)``: age grows exponentially with tasks.

    Args:
        age: L before, any shape; weights in units of which s is a product.
        learning_rate: eta, of the loss ``(f - s)^2/2``.
        target: s > 0.

    Returns:
        L after, of the broadcast shape; relative error of the increment O(eta).

    Raises:
        ValueError: for a negative eta, or s that is not above 0.

    Reference: derived here; Du, Hu & Lee 2018 and Arora, Cohen & Hazan 2018 on the conserved imbalance.

    Example:
        >>> round(float(aged(20.0, 0.05) + jnp.log(4)) / float(20.0 + jnp.log(4)), 4)
        1.05
    """
    check_numbers(many=True, learning_rate=(learning_rate, NOT_NEGATIVE), target=(target, POSITIVE))
    age, learning_rate, s = jnp.asarray(age), jnp.asarray(learning_rate), jnp.asarray(target)
    asinh = jnp.log(2 * s) + age + jnp.log1p(jnp.sqrt(1 + jnp.exp(-2 * age) / (4 * s**2)))
    return age + learning_rate * s * asinh


def relearning_steps(
    age: ArrayLike, learning_rate: ArrayLike, tolerance: ArrayLike, target: ArrayLike = 1.0
) -> Float[Array, "*shape"]:
    """Steps from ``f = -(s - tol)`` to ``s - tol`` at age L: ``(1/eta) int da / ((s - a) sqrt(4 a^2 + c^2))``.

    With ``a = k sinh q``, ``k = c/2``, it is ``(1/2 eta) int dq / (s - k sinh q)``, elementary; ``R^2 = s^2 + k^2``,
    ``t = tanh(q/2)``: ``(1/2 eta R) ln[(R + s t + k)/(R - s t - k)]`` between the ends. It rises by ``1/(eta s)`` for
    each unit of L: half of it on the way to the saddle, half on the way from it.

    Args:
        age: ``L = ln(1/c)``, any shape.
        learning_rate: eta.
        tolerance: tol in (0, s).
        target: s > 0.

    Returns:
        Steps, of the broadcast shape, to rounding at any age: ``R - s t - k`` is taken as a sum of positive terms.

    Raises:
        ValueError: for a tolerance outside (0, s), or eta or s that are not above 0.

    Reference: derived here.

    Example:
        >>> import jax
        >>> with jax.enable_x64(True):
        ...     [round(float(relearning_steps(age, 0.02, 1e-2)), 1) for age in (5.0, 15.0)]
        [416.7, 916.7]
    """
    check_numbers(many=True, learning_rate=(learning_rate, POSITIVE), target=(target, POSITIVE))
    known = not isinstance(target, Tracer)
    within, allowed = (lambda v: (v > 0) & (v < np.asarray(target)), "above 0, below the target") if known else POSITIVE
    check_numbers(many=True, tolerance=(tolerance, (within, allowed)))
    age, eta, tol, s = (jnp.asarray(value) for value in (age, learning_rate, tolerance, target))
    a, k = s - tol, jnp.exp(-age) / 2
    h, R = jnp.hypot(a, k), jnp.hypot(s, k)
    t, r = a / (h + k), tol * (s + a) / (R + h)  # r = R - h
    left = (r + k * (r**2 + tol**2) / (2 * (R * h + s * a))) / (h + k)  # (R - s t)/k - 1, a sum of positive terms
    ends = jnp.log(R + s * t + k) + jnp.log(s**2 / (R + k) + s * t) - jnp.log(left) - jnp.log(2 + left)
    return (ends + 2 * (age + jnp.log(2.0))) / (2 * eta * R)
