"""Tangent kernels of infinitely wide networks as depth grows: which classifier an activation becomes.

An activation ``phi = sum_i a_i h_i`` (normalised Hermite polynomials, ``sum a_i^2 = 1``) has the dual ``phi^(t) = sum_i
a_i^2 t^i`` on the overlap t of two inputs on the sphere; a layer takes ``Sigma -> phi^(Sigma)`` and ``Theta -> Theta
phi^'(Sigma) + phi^(Sigma)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Float, Real

from dynamics.arguments import check_counts, check_numbers, program
from dynamics.types import Array, ArrayLike


@partial(program, static=("dual", "depth"))
def log_deep_ntk(overlap: Real[ArrayLike, "*n"], dual: tuple[float, ...], depth: int) -> Float[Array, "*n"]:
    """``log Theta_L(t)`` of a depth-L network, in logarithms throughout, since Theta falls or grows as ``c^L``.

    Args:
        overlap: ``t = x.z`` in [0, 1]: inputs on the positive part of the sphere.
        dual: ``a_i^2`` for i = 0, 1, ..., non-negative, of sum 1.
        depth: number of hidden layers L >= 1.

    Returns:
        ``log Theta_L(t)``; -inf where Theta vanishes. Differentiable for 0 < t < 1.

    Raises:
        ValueError: when ``dual`` is not non-negative of sum 1, or ``depth < 1``.

    Assumptions: infinite width in every layer, inputs of unit norm with non-negative overlaps, no biases.

    Cost: ``depth len(dual)`` operations an entry.

    Reference: Radhakrishnan, Belkin & Uhler 2023, 'Wide and deep neural networks achieve consistency for
    classification'.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(jnp.exp(log_deep_ntk(1.0, (0.0, 0.5, 0.0, 0.5), 1))), 5)  # t phi^'(1) + phi^(1)
        3.0
    """
    check_dual(dual)
    check_counts(depth=depth)
    powers = [(i, math.log(weight)) for i, weight in enumerate(dual) if weight > 0]

    def value(log_t):
        return _log_sum([log_w + i * log_t if i else jnp.full_like(log_t, log_w) for i, log_w in powers])

    def slope(log_t):
        terms = [
            log_w + math.log(i) + (i - 1) * log_t if i > 1 else jnp.full_like(log_t, log_w) for i, log_w in powers if i
        ]
        return _log_sum(terms)

    def layer(carry, _):
        log_sigma, log_theta = carry
        after = value(log_sigma)
        return (after, jnp.logaddexp(log_theta + slope(log_sigma), after)), None

    log_t = jnp.log(jnp.asarray(overlap, jnp.result_type(float)))
    (_, log_theta), _ = jax.lax.scan(layer, (log_t, log_t), length=depth)
    return log_theta


def limiting_classifier(dual: Sequence[float]) -> str:
    """What ``sign(y K^-1 k(x))`` becomes as depth grows: 'majority', 'nearest' or 'singular'.

    ``phi^(0) > 0``: all overlaps flow to one fixed point and every training point counts alike. ``phi^(0) = 0 =
    phi^'(0)``: the nearest point outweighs all others. ``phi^(0) = 0 < phi^'(0)``: a singular kernel, see
    ``singularity``.

    Reference: Radhakrishnan, Belkin & Uhler 2023 (the taxonomy).

    Example:
        >>> limiting_classifier((0.0, 0.3, 0.0, 0.7)), limiting_classifier((0.0, 0.0, 1.0))
        ('singular', 'nearest')
    """
    check_dual(dual)
    if dual[0] > 0:
        return "majority"
    return "singular" if len(dual) > 1 and dual[1] > 0 else "nearest"


def singularity(dual: Sequence[float]) -> float:
    """The exponent of the limit ``Theta ~ |x - z|^-alpha``: ``alpha = -2 log(phi^'(0)) / log(phi^'(1))``.

    Consistent for classification on a sphere of dimension ``alpha``.

    Raises:
        ValueError: unless the limiting classifier is 'singular' and the activation not linear.

    Reference: Radhakrishnan, Belkin & Uhler 2023, with ``phi^'(0) = A'^2``, ``phi^'(1) = B'``.
    """
    if limiting_classifier(dual) != "singular" or dual[1] >= 1:
        raise ValueError(f"dual: got {tuple(dual)}; allowed: a_0 = 0 and 0 < a_1^2 < 1")
    return -2 * math.log(dual[1]) / math.log(sum(i * weight for i, weight in enumerate(dual)))


def dual_with_singularity(alpha: float) -> tuple[float, ...]:
    """The dual ``p t + (1 - p) t^3`` whose limit has the singularity ``alpha``.

    Raises:
        ValueError: unless ``alpha > 1``; the family reaches no weaker singularity.

    Example:
        >>> round(singularity(dual_with_singularity(2.0)), 6)
        2.0
    """
    check_numbers(alpha=(alpha, (lambda v: v > 1, "a number > 1")))
    low, high = 1e-12, 1.0 - 1e-12  # the exponent falls from infinity to 1 as p grows
    for _ in range(100):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if singularity((0.0, middle, 0.0, 1 - middle)) > alpha else (low, middle)
    return (0.0, low, 0.0, 1 - low)


def check_dual(dual: Sequence[float]) -> None:
    if not dual or min(dual) < 0 or abs(sum(dual) - 1) > 1e-6:
        raise ValueError(f"dual: got {tuple(dual)}; allowed: non-negative weights of sum 1")


def _log_sum(terms: list[Array]) -> Array:
    total = terms[0]
    for term in terms[1:]:
        total = jnp.logaddexp(total, term)
    return total
