"""The geometry that erf, Gelu and Gaussian bumps share: preactivations with one more coordinate, of length 1.

Lifted, preactivations with deviations ``s1, s2`` and covariance ``k = s1 s2 - g`` have squared lengths ``1 + q`` and
inner product ``k``. Everything is written in ``g`` and ``s1 - s2``, so that nothing cancels where two inputs nearly
coincide, whatever their length. Between opposite inputs (``cos`` near -1) an error of ``eps q`` in ``R`` stays.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from dynamics.types import Array

_NEGLIGIBLE = 1e-18


class Lifted(NamedTuple):
    """Two preactivations in units of the activation's own length: gap, deviations, and their difference ``s1 - s2``.

    Subtract before scaling: a compiler that fuses ``a s1 - a s2`` leaves rounding where ``s1 = s2``.
    """

    g: Array
    s1: Array
    s2: Array
    apart: Array

    @property
    def k(self) -> Array:
        """Covariance."""
        return self.s1 * self.s2 - self.g

    @property
    def difference(self) -> Array:
        """``q1 - q2``."""
        return self.apart * (self.s1 + self.s2)

    @property
    def h(self) -> Array:
        """``q1 q2 - k^2``."""
        return self.g * (2 * self.s1 * self.s2 - self.g)

    @property
    def distance(self) -> Array:
        """``(q1 + q2) / 2 - k``."""
        return self.g + 0.5 * self.apart**2

    @property
    def area(self) -> Array:
        """``R = sqrt((1 + q1) (1 + q2) - k^2)``, the area that both lifted vectors span."""
        return jnp.sqrt(1 + self.s1**2 + self.s2**2 + self.h)

    @property
    def areas(self) -> tuple[Array, Array]:
        """``R_i = sqrt(1 + 2 q_i)``, the area of each side with itself (its ``k`` is ``q_i``)."""
        return jnp.sqrt(1 + 2 * self.s1**2), jnp.sqrt(1 + 2 * self.s2**2)

    @property
    def areas_apart(self) -> Array:
        """``R1 - R2``."""
        one, two = self.areas
        return 2 * self.difference / (one + two)

    def rise(self) -> Array:
        """``R - (R1 + R2) / 2``."""
        mean = 0.5 * sum(self.areas)
        return (0.25 * self.areas_apart**2 + self.h) / (self.area + mean)

    def fall(self) -> Array:
        """``(1 / R1 + 1 / R2) / 2 - 1 / R``."""
        one, two = self.areas
        return ((one + two) * self.rise() + 0.5 * self.areas_apart**2) / (2 * self.area * one * two)

    def turn(self) -> tuple[Array, Array]:
        """A vector ``(cosine, sine)``, up to a factor, at the angle ``psi - (psi1 + psi2) / 2``.

        ``psi = arccos(k / sqrt((1 + q1) (1 + q2)))``, and ``psi_i = arccos(q_i / (1 + q_i))`` for an input with itself.
        Each ``psi - psi_i`` by its sine and cosine, halved (one half-angle formula for acute, one for obtuse angles)
        and added as the arguments of a product of complex numbers.
        """
        one, two = _half_turn(self), _half_turn(Lifted(self.g, self.s2, self.s1, -self.apart))
        return one[0] * two[0] - one[1] * two[1], one[1] * two[0] + one[0] * two[1]


def self_angle(s: Array) -> Array:
    """``psi_i = arccos(q / (1 + q))``."""
    return jnp.arctan2(jnp.sqrt(1 + 2 * s**2), s**2)


def _half_turn(pair: Lifted) -> tuple[Array, Array]:
    """A vector at the angle ``(psi - psi1) / 2``."""
    q1, area, (own, _) = pair.s1**2, pair.area, pair.areas
    long1, long2 = 1 + q1, 1 + pair.s2**2
    # R^2 q1 - R1^2 q2 = (q1 - q2) (1 + q1) + q1 h, so that R q1 - R1 k is free of differences of large numbers.
    moved = (pair.difference * long1 + q1 * pair.h) * (pair.s1 / (area * pair.s1 + pair.s2 * own + _NEGLIGIBLE))
    unit = 1 / (long1 * jnp.sqrt(long1) * jnp.sqrt(long2))
    sine, cosine = (moved + pair.g * own) * unit, (pair.k * q1 + area * own) * unit
    acute = cosine > 0
    return jnp.where(acute, 1 + cosine, sine), jnp.where(acute, sine, 1 - cosine)
