"""Piecewise linear activations and Sign: arc-cosine kernels in the angle between the preactivations."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from dynamics.arguments import check_counts
from dynamics.stax.activations.elementwise import Dual, elementwise
from dynamics.stax.kernel.algebra import safe_sqrt
from dynamics.types import Array, Model

_NEGLIGIBLE = 1e-18

# arccos(1 - s) / sqrt(s) on [0, 1] by Chebyshev interpolation, off by at most 1.3e-7.
_ANGLE = (
    1.4142136760660085,
    0.11784003715345483,
    0.026690007692768882,
    0.0068967292456270386,
    0.00531428554927118,
    -0.002366265832699694,
    0.002207655995702368,
)
# (sqrt(s (2 - s)) - (1 - s) arccos(1 - s)) / s^(3/2) on [0, 1], off by at most 1.5e-7.
_LOST = (
    0.9428089501037878,
    0.04714700417619402,
    0.007501761415154462,
    0.0020537033561148377,
    -3.176933064841833e-05,
    0.0005202021975692478,
)


def angle_and_lost(versine: Array) -> tuple[Array, Array]:
    """``theta = arccos(1 - versine)`` and ``sin(theta) - theta cos(theta)`` for ``versine`` in [0, 2].

    In float32 ``sqrt(s)`` times polynomials in ``s = min(versine, 2 - versine)``, the versine of the acute angle
    (relative error of both below 3e-7): one square root, and nothing cancels near 0.
    """
    if versine.dtype != jnp.float32:
        versine = jnp.clip(versine, 0, 2)
        theta = 2 * jnp.arctan2(safe_sqrt(versine), safe_sqrt(2 - versine))
        return theta, safe_sqrt(versine * (2 - versine)) - theta * (1 - versine)
    small = jnp.minimum(versine, 2 - versine)
    root, obtuse = safe_sqrt(small), versine > 1
    acute, lost = root * _horner(_ANGLE, small), root * small * _horner(_LOST, small)
    return jnp.where(obtuse, jnp.pi - acute, acute), jnp.where(obtuse, jnp.pi - (jnp.pi * small - lost), lost)


def _horner(coefficients: tuple[float, ...], x: Array) -> Any:
    return functools.reduce(lambda total, c: total * x + c, reversed(coefficients[:-1]), coefficients[-1])


def _polar(gap: Array, s1: Array, s2: Array) -> tuple[Array, Array]:
    """``s1 s2`` and ``1 - cos``; a right angle where a deviation vanishes."""
    scale, (one, two) = s1 * s2, (1 / jnp.maximum(s, _NEGLIGIBLE) for s in (s1, s2))
    return scale, jnp.where(scale > 0, gap * (one * two), 1)


def ABRelu(a: float | Float[Array, ""], b: float | Float[Array, ""], do_stabilize: bool = False) -> Model:
    """``f(x) = a min(x, 0) + b max(x, 0)``.

    With ``theta`` the angle between the preactivations, ``slope = (a^2 + b^2) / 2 - (a - b)^2 theta / (2 pi)`` and
    ``k' = slope k + (a - b)^2 s1 s2 sin(theta) / (2 pi)``. ``do_stabilize`` is accepted and changes nothing: the gap
    is scale-free already.

    Reference: Cho & Saul 2009, eq. 6; Tsuchida et al. 2018.
    """
    mean, bend = (a**2 + b**2) / 2, (a - b) ** 2 / (2 * jnp.pi)

    def cross(gap, s1, s2):
        _, versine = _polar(gap, s1, s2)
        theta, lost = angle_and_lost(versine)
        return mean * gap - (bend * s1) * s2 * lost, mean - bend * theta

    def fn(x):
        return a * jnp.minimum(x, 0) + b * jnp.maximum(x, 0)

    return elementwise(fn, Dual(lambda q: mean * q, cross))


def Relu(do_stabilize: bool = False) -> Model:
    """``f(x) = max(x, 0)``; see ``ABRelu``."""
    return ABRelu(0, 1, do_stabilize)


def LeakyRelu(alpha: float | Float[Array, ""], do_stabilize: bool = False) -> Model:
    """``f(x) = max(x, 0) + alpha min(x, 0)``; see ``ABRelu``."""
    return ABRelu(alpha, 1, do_stabilize)


def Abs(do_stabilize: bool = False) -> Model:
    """``f(x) = |x|``; see ``ABRelu``."""
    return ABRelu(-1, 1, do_stabilize)


def Sign() -> Model:
    """``f(x) = sign(x)``; ``k' = 1 - 2 theta / pi``, and an NTK of 0."""

    def cross(gap, s1, s2):
        scale, versine = _polar(gap, s1, s2)
        theta, _ = angle_and_lost(versine)
        return jnp.where(scale > 0, 2 * theta / jnp.pi, 0), jnp.zeros_like(gap)

    return elementwise(jnp.sign, Dual(lambda q: jnp.where(q == 0, 0, jnp.ones_like(q)), cross))


def RectifiedMonomial(degree: int) -> Model:
    """``f(x) = x^degree`` for ``x >= 0``, else 0: the arc-cosine kernel ``k' = (s1 s2)^n J_n(theta) / (2 pi)``.

    ``J_n = (pi - theta) A_n(cos) + sin(theta) B_n(cos)`` with ``A_{n+1} = (1 - c^2) A_n' + (2 n + 1) c A_n`` and
    ``B_{n+1} = A_n + (1 - c^2) B_n' + 2 n c B_n``.

    Reference: Cho & Saul 2009, eq. 4.
    """
    check_counts(0, degree=degree)
    polynomials = _arccosine_polynomials(degree)
    top = math.prod(range(2 * degree - 1, 0, -2))

    def lost(n, versine, theta, sine):
        """``J_n(0) - J_n(theta)``; the polynomial's change is expanded in the versine."""
        a, b = polynomials[n]
        change = a(np.polynomial.Polynomial([1.0, -1.0])).coef
        drop = -sum(c * versine**i for i, c in enumerate(change) if i)
        cosine = 1 - versine
        return jnp.pi * drop + theta * _evaluate(a, cosine) - sine * _evaluate(b, cosine)

    def cross(gap, s1, s2):
        scale, versine = _polar(gap, s1, s2)
        versine = jnp.clip(versine, 0, 2)
        theta, sine = angle_and_lost(versine)[0], safe_sqrt(versine * (2 - versine))
        new = scale**degree * lost(degree, versine, theta, sine) / (2 * jnp.pi)
        if degree == 0:
            return new, jnp.zeros_like(gap)
        whole = jnp.pi * math.prod(range(2 * degree - 3, 0, -2))
        angular = whole - lost(degree - 1, versine, theta, sine)
        return new, degree**2 * scale ** (degree - 1) * angular / (2 * jnp.pi)

    def fn(x):
        return jnp.where(x >= 0, x**degree, 0)

    return elementwise(fn, Dual(lambda q: top / 2 * q**degree, cross))


def _arccosine_polynomials(degree: int) -> list[tuple[np.polynomial.Polynomial, np.polynomial.Polynomial]]:
    polynomial = np.polynomial.Polynomial
    c, square = polynomial([0.0, 1.0]), polynomial([1.0, 0.0, -1.0])
    found = [(polynomial([1.0]), polynomial([0.0]))]
    for n in range(degree):
        a, b = found[-1]
        found.append((square * a.deriv() + (2 * n + 1) * c * a, a + square * b.deriv() + 2 * n * c * b))
    return found


def _evaluate(polynomial: np.polynomial.Polynomial, x: Array) -> Array:
    return sum(c * x**i for i, c in enumerate(polynomial.coef.tolist())) + jnp.zeros_like(x)
