"""How far the tangent kernel of a two-layer linear net turns when its first layer starts at low rank."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Float

from dynamics.types import Array, ArrayLike


def readout_power(strength: ArrayLike, scale: ArrayLike) -> Float[Array, "*shape"]:
    """``|w_2|^2`` once the task is learnt: ``s^2 = (sqrt(c^2 + 4 b^2) - c)/2``, from ``s^2 (s^2 + c) = b^2``.

    Args:
        strength: norm ``b > 0`` of the task.
        scale: ``c > 0``, the squared singular value that the first layer started from.
    """
    b, c = jnp.asarray(strength, jnp.result_type(float)), jnp.asarray(scale, jnp.result_type(float))
    return 2 * b**2 / (c + jnp.hypot(c, 2 * b))


def low_rank_alignment(
    rank: ArrayLike, dim: ArrayLike, strength: ArrayLike, scale: ArrayLike, overlap: ArrayLike
) -> Float[Array, "*shape"]:
    """Alignment ``<K_0, K_T>/(|K_0||K_T|)`` of the kernel's end with its start in ``f = w_2 . W_1 x``.

    ``W_1`` starts with ``rank`` singular values ``sqrt(c)``, so that ``K_0 = W_1^T W_1 = c P`` with ``P`` the
    projection on its input directions, and ``w_2`` starts near 0. Only the unit that ``w_2`` grows along moves; with
    ``m`` the part of the task ``beta`` seen at the start, ``|m|^2 = overlap |beta|^2``, it ends at ``beta / s`` and

        K_T = c (P - m m^T/|m|^2) + (s^2 + c) beta beta^T/|beta|^2 + s^2 I,        s^2 = readout_power.

    Args:
        rank: r, of the first layer's start.
        dim: number of inputs d >= r.
        strength: norm ``|beta| > 0``.
        scale: c > 0.
        overlap: share of ``|beta|^2`` inside the r directions, in (0, 1]: 1 for a start along the task, r/d on average
            for a random one.

    Returns:
        The alignment, of the broadcast shape. Differentiable and vmappable.

    Assumptions: whitened inputs, one output, gradient flow to zero loss, ``w_2(0) -> 0``: corrections are of order
    ``|w_2(0)|^2``. The reduction is to a net of one hidden unit and two inputs, always lambda-balanced with
    ``lam = -c``.

    Cost: O(1) an entry.

    Reference: the setting of Liu et al. 2023, 'How connectivity structure shapes rich and lazy learning in neural
    circuits'; the closed form follows from the conservation of ``w_2 w_2^T - W_1 W_1^T``.

    Example:
        >>> round(float(low_rank_alignment(20, 20, 1e-3, 1.0, 1.0)), 4)  # a weak task at full rank is lazy
        1.0
    """
    r, d, b, c, o = (jnp.asarray(v, jnp.result_type(float)) for v in (rank, dim, strength, scale, overlap))
    power = readout_power(b, c)
    grown = power + c  # b^2/s^2
    inner = c * (r - 1) + grown * o + power * r  # <P, K_T>
    end = c**2 * (r - 1) + grown**2 + power**2 * d + 2 * c * power * (r - 1) + 2 * power * grown
    return inner / jnp.sqrt(r * end)
