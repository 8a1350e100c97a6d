"""Smooth activations whose dual has a closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erf
from jaxtyping import Float

from dynamics.arguments import NOT_NEGATIVE, check_counts, check_numbers
from dynamics.stax.activations.elementwise import Dual, alike, distance_dual, elementwise, settled, smooth_dual
from dynamics.stax.activations.lifted import Lifted, self_angle
from dynamics.stax.kernel.algebra import safe_reciprocal
from dynamics.types import Array, Model


def Erf(
    a: float | Float[Array, ""] = 1.0, b: float | Float[Array, ""] = 1.0, c: float | Float[Array, ""] = 0.0
) -> Model:
    """``f(x) = a erf(b x) + c``; ``k' = (2 a^2 / pi) arcsin(2 b^2 k / sqrt((1 + 2 b^2 q1)(1 + 2 b^2 q2))) + c^2``.

    Reference: Williams 1997, eq. 11.
    """
    factor = 2 * a**2 / jnp.pi

    def cross(gap, s1, s2):
        pair = _lifted(gap, s1, s2, 2 * b**2)
        (cosine, sine), close = pair.turn(), alike(s1, s2)
        # One arctangent for both: k' - c^2 is that of k over R.
        angle = jnp.arctan2(jnp.where(close, sine, pair.k), jnp.where(close, cosine, pair.area))
        return factor * angle, factor * angle + c**2, 2 * factor * b**2 / pair.area

    def variance(q):
        q = 2 * b**2 * q
        return factor * jnp.arctan2(q, jnp.sqrt(1 + 2 * q)) + c**2

    return elementwise(lambda x: a * erf(b * x) + c, distance_dual(variance, cross))


def _lifted(gap: Array, s1: Array, s2: Array, scale) -> Lifted:
    """Preactivations in units in which variances are ``scale`` times as large."""
    root = jnp.sqrt(scale)
    return Lifted(scale * gap, root * s1, root * s2, root * (s1 - s2))


def Sigmoid_like() -> Model:
    """A sigmoid through ``erf``: ``f(x) = (erf(x / 2.4020563531719796) + 1) / 2``."""
    return Erf(a=0.5, b=1 / 2.4020563531719796, c=0.5)


def Gelu(approximate: bool = False) -> Model:
    """``f(x) = x Phi(x)``, the Gaussian error linear unit; ``approximate`` changes ``apply`` only.

    Reference: Tsuchida et al. 2021, eq. 8.
    """

    def cross(gap, s1, s2):
        pair = Lifted(gap, s1, s2, s1 - s2)
        q1, q2, area, own = s1**2, s2**2, pair.area, pair.areas
        angle1, angle2, (cosine, sine) = self_angle(s1), self_angle(s2), pair.turn()
        turn = jnp.arctan2(sine, cosine)
        away = jnp.pi - turn - 0.5 * (angle1 + angle2)
        # R1 - R and R2 - R, of the sides' and the pair's area.
        shrunk = (pair.difference - pair.h) / (own[0] + area), -(pair.difference + pair.h) / (own[1] + area)
        linear = away * pair.distance + 0.5 * (q1 + q2) * turn - 0.25 * pair.difference * (angle1 - angle2)
        distance = pair.fall() - pair.rise() - shrunk[0] / (1 + q1) - shrunk[1] / (1 + q2) + linear
        k, long = pair.k, (1 + q1) * (1 + q2)
        covariance = k**2 / (long * area) + q1 * q2 * area / long + k * away
        slope = (1 / area**2 + (1 - q1 * q2) / long + 1) * k / area + away
        return distance / (2 * jnp.pi), covariance / (2 * jnp.pi), slope / (2 * jnp.pi)

    def variance(q):
        own = jnp.sqrt(1 + 2 * q)
        return (2 * q**2 / ((1 + q) * own) + q * (jnp.pi - jnp.arctan2(own, q))) / (2 * jnp.pi)

    return elementwise(lambda x: jax.nn.gelu(x, approximate=approximate), distance_dual(variance, cross))


def Sin(
    a: float | Float[Array, ""] = 1.0, b: float | Float[Array, ""] = 1.0, c: float | Float[Array, ""] = 0.0
) -> Model:
    """``f(x) = a sin(b x + c)``; ``k' = a^2 / 2 e^(-b^2 (q1 + q2) / 2) (e^(b^2 k) - cos(2 c) e^(-b^2 k))``.

    Reference: Pearce et al. 2020.
    """

    def cross(gap, s1, s2):
        even = jnp.cos(2 * c)
        q1, q2, distance = b**2 * s1**2, b**2 * s2**2, b**2 * (gap + 0.5 * (s1 - s2) ** 2)
        near, mirrored = jnp.exp(-distance), even * jnp.exp(distance - q1 - q2)
        apart = -(1 + mirrored) * jnp.expm1(-distance) - 0.5 * even * (jnp.exp(-q1) - jnp.exp(-q2)) ** 2
        odd = _difference(b**2 * (s1 * s2 - gap), 0.5 * (q1 + q2))
        covariance = 2 * jnp.sin(c) ** 2 * near + even * odd
        return 0.5 * a**2 * apart, 0.5 * a**2 * covariance, 0.5 * a**2 * b**2 * (near + mirrored)

    def variance(q):
        return a**2 * (jnp.sin(c) ** 2 - 0.5 * jnp.cos(2 * c) * jnp.expm1(-2 * b**2 * q))

    return elementwise(lambda x: a * jnp.sin(b * x + c), distance_dual(variance, cross))


def _difference(k: Array, mean: Array) -> Array:
    """``exp(k - mean) - exp(-k - mean)`` for ``mean >= |k|``."""
    positive = k >= 0
    size = jnp.where(positive, k, -k)
    value = -jnp.exp(size - mean) * jnp.expm1(-2 * size)
    return jnp.where(positive, value, -value)


def Cos(
    a: float | Float[Array, ""] = 1.0, b: float | Float[Array, ""] = 1.0, c: float | Float[Array, ""] = 0.0
) -> Model:
    """``f(x) = a cos(b x + c)``; see ``Sin``."""
    return Sin(a=a, b=b, c=c + jnp.pi / 2)


def Rbf(gamma: float | Float[Array, ""] = 1.0) -> Model:
    """``f(x) = sqrt(2) sin(sqrt(2 gamma) x + pi / 4)``; ``k' = exp(-gamma (q1 + q2 - 2 k))``, the Gaussian kernel.

    Reference: Rahimi & Recht 2007.
    """
    check_numbers(many=True, gamma=(gamma, NOT_NEGATIVE))

    def cross(gap, s1, s2):
        distance = gap + 0.5 * (s1 - s2) ** 2
        return -jnp.expm1(-2 * gamma * distance), 2 * gamma * jnp.exp(-2 * gamma * distance)

    def fn(x):
        return jnp.sqrt(2.0) * jnp.sin(jnp.sqrt(2.0 * gamma) * x + jnp.pi / 4)

    return elementwise(fn, Dual(jnp.ones_like, cross))


def Exp(a: float | Float[Array, ""] = 1, b: float | Float[Array, ""] = 1) -> Model:
    """``f(x) = a exp(b x)``; ``k' = a^2 exp(b^2 ((q1 + q2) / 2 + k))``.

    Reference: Mairal et al. 2014.
    """

    def cross(gap, s1, s2):
        top = a**2 * jnp.exp(b**2 * (s1**2 + s2**2 + 2 * s1 * s2) / 2)
        apart = b**2 * (gap + 0.5 * (s1 - s2) ** 2)
        norms = a**2 * jnp.exp(b**2 * (s1**2 + s2**2))
        return -norms * jnp.expm1(-apart), b**2 * top * jnp.exp(-(b**2) * gap)

    return elementwise(lambda x: a * jnp.exp(b * x), Dual(lambda q: a**2 * jnp.exp(2 * b**2 * q), cross))


def Gaussian(a: float | Float[Array, ""] = 1, b: float | Float[Array, ""] = -1) -> Model:
    """``f(x) = a exp(b x^2)`` with ``b <= 0``; ``k' = a^2 / sqrt((1 - 2 b q1)(1 - 2 b q2) - 4 b^2 k^2)``."""

    scale = -2 * b

    def cross(gap, s1, s2):
        q1, q2, difference = scale * s1**2, scale * s2**2, scale * (s1 - s2) * (s1 + s2)
        h, total = scale**2 * gap * (2 * s1 * s2 - gap), 1 + q1 + q2
        area, mean = jnp.sqrt(total + h), jnp.sqrt(jnp.sqrt(1 + 2 * q1)) * jnp.sqrt(jnp.sqrt(1 + 2 * q2))
        # area^2 - mean^2, with mean^4 = total^2 - difference^2.
        apart = h + difference**2 / (total + mean**2)
        covariance = a**2 / area
        slope = covariance / area**2 * scale**2 * (s1 * s2 - gap)
        return settled(covariance * apart / (mean * (area + mean)), gap, s1, s2), slope

    def variance(q):
        return a**2 / jnp.sqrt(1 + 2 * scale * q)

    return elementwise(lambda x: a * jnp.exp(b * x**2), Dual(variance, cross))


def Gabor() -> Model:
    """``f(x) = exp(-x^2) sin(x)``."""

    def cross(gap, s1, s2):
        pair = _lifted(gap, s1, s2, 2)
        square = pair.area**2
        closer, outer = 0.5 * pair.distance / square, 0.5 * pair.h / square
        even, odd = jnp.exp(-0.5 + 0.5 / square + closer), jnp.exp(-closer - outer)
        distance = 0.5 * (pair.fall() - jnp.expm1(-closer - outer) / pair.area + _even_distance(pair, closer))
        total, product = pair.s1**2 + pair.s2**2, (pair.s1 * pair.s2) ** 2
        shared, skew = 1 + total + pair.k**2 + product, pair.k * (2 * pair.h + 3 * total + 4)
        covariance = _difference(0.5 * pair.k / square, (0.25 * total + 0.5 * pair.h) / square) / (2 * pair.area)
        return distance, covariance, (even * (shared - skew) + odd * (shared + skew)) / pair.area**5 / 2

    def variance(q):
        square = 1 + 4 * q
        return -jnp.expm1(-2 * q / square) / (2 * jnp.sqrt(square))

    return elementwise(lambda x: jnp.exp(-(x**2)) * jnp.sin(x), distance_dual(variance, cross))


def _even_distance(pair: Lifted, closer: Array) -> Array:
    """``exp(-1/2) (w exp(w^2 / 2 + closer) - mean of w_i exp(w_i^2 / 2))`` for ``w = 1 / R``, ``w_i = 1 / R_i``."""
    w, (one, two) = 1 / pair.area, pair.areas
    mean, half, fall = 0.5 * (1 / one + 1 / two), 0.5 * pair.areas_apart / (one * two), pair.fall()
    level, top = w * jnp.exp(0.5 * w**2), jnp.exp(0.5 * mean**2)
    below = fall * top + level * jnp.expm1(0.5 * fall * (mean + w))  # the function of the mean, less that of w
    angle, spread = mean * half, jnp.exp(0.5 * half**2)
    bent = jnp.expm1(0.5 * half**2) * jnp.cosh(angle) + 2 * jnp.sinh(0.5 * angle) ** 2
    convex = top * (mean * bent + spread * half * jnp.sinh(angle))  # the mean of the function, less that of the mean
    return jnp.exp(-0.5) * (level * jnp.expm1(closer) - below - convex)


def ExpNormalized(
    gamma: float | Float[Array, ""] = 1, shift: float | Float[Array, ""] = -1, do_clip: bool = False
) -> Model:
    """A kernel without a finite layer: ``k' = s1 s2 exp(gamma (cos + shift))``; ``do_clip`` is accepted and not needed.

    Reference: Shankar et al. 2020.
    """

    def cross(gap, s1, s2):
        scale = s1 * s2
        versine = gap * safe_reciprocal(scale)
        top = jnp.exp(gamma * (1.0 + shift))
        return -scale * top * jnp.expm1(-gamma * versine), gamma * top * jnp.exp(-gamma * versine)

    return elementwise(None, Dual(lambda q: q * jnp.exp(gamma * (1.0 + shift)), cross))


def Hermite(degree: int) -> Model:
    """The normalised Hermite polynomial ``h_degree``; ``k' = k^degree`` for inputs of unit variance.

    Reference: Daniely et al. 2016.
    """
    check_counts(0, degree=degree)
    coefficients = np.polynomial.hermite_e.herme2poly([0] * degree + [1])[::-1] / math.factorial(degree) ** 0.5

    def cross(k, q1, q2):
        return k**degree, (degree * k ** (degree - 1) if degree else jnp.zeros_like(k))

    return elementwise(
        lambda x: jnp.polyval(jnp.asarray(coefficients, x.dtype), x), smooth_dual(lambda q: q**degree, cross)
    )


def Monomial(degree: int) -> Model:
    """``f(x) = x^degree``; see ``Polynomial``."""
    check_counts(0, degree=degree)
    return Polynomial([0.0] * degree + [1.0])


def Polynomial(coef: Sequence[float]) -> Model:
    """``f(x) = sum_n coef[n] x^n``.

    ``k' = sum_l rho_l(q1) rho_l(q2) k^l`` with
    ``rho_l(q) = sum_i coef[l + 2 i] (l + 2 i)! / (2^i i! sqrt(l!)) q^i``.
    """
    coef = [float(c) for c in coef]
    if not coef:
        raise ValueError("coef: got none; allowed: one or more coefficients")

    def rho(order, q):
        terms = [
            coef[n] * math.factorial(n) / (2**i * math.factorial(i) * math.factorial(order) ** 0.5)
            for i, n in enumerate(range(order, len(coef), 2))
        ]
        return sum(term * q**i for i, term in enumerate(terms))

    def cross(k, q1, q2):
        weights = [rho(n, q1) * rho(n, q2) for n in range(len(coef))]
        value = sum(w * k**n for n, w in enumerate(weights)) + jnp.zeros_like(k)
        slope = sum((n * w * k ** (n - 1) for n, w in enumerate(weights) if n), jnp.zeros_like(k))
        return value, slope

    def variance(q):
        return cross(q, q, q)[0]

    return elementwise(lambda x: jnp.polyval(jnp.asarray(coef[::-1], x.dtype), x), smooth_dual(variance, cross))
