"""Activations without a closed form, by Gauss-Hermite quadrature."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from dynamics.arguments import check_counts
from dynamics.stax.activations.elementwise import Dual, elementwise, smooth_dual
from dynamics.stax.kernel.algebra import safe_reciprocal, safe_sqrt
from dynamics.types import Array, Model


def gauss_hermite(degree: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of ``E f(z)``, ``z`` standard normal, exact for polynomials of degree ``2 degree - 1``."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(degree)
    return nodes, weights / np.sqrt(2 * np.pi)


def gaussian_panels(panels: int = 48, degree: int = 12, reach: float = 12.0) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of ``E f(z)`` by Gauss-Legendre rules on equal panels of ``[-reach, reach]``.

    An even number of panels has an edge at 0, so that an ``f`` with its kink there is integrated as a smooth one; the
    Gauss-Hermite rule of as many nodes errs by ``O(1 / nodes)``.
    """
    nodes, weights = np.polynomial.legendre.leggauss(degree)
    half = reach / panels
    z = (np.linspace(-reach, reach, panels + 1)[:-1, None] + half * (1 + nodes)).ravel()
    return z, np.tile(half * weights, panels) * np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)


def ElementwiseNumerical(fn: Callable[[Array], Array], deg: int, df: Callable | None = None) -> Model:
    """``f = fn`` by a two-dimensional Gauss-Hermite rule with ``deg`` nodes an axis; cost ``deg^2`` a kernel entry."""
    check_counts(deg=deg)
    slope_fn = jax.grad(fn) if df is None else df
    points, weights = gauss_hermite(deg)

    def cross(k, q1, q2):
        s1 = safe_sqrt(q1)
        along, across = k * safe_reciprocal(s1), safe_sqrt(q2 - k**2 * safe_reciprocal(q1))

        def node(total, z):
            first, weight = z
            left = s1 * first
            values, slopes = total
            for second, other in zip(points.tolist(), weights.tolist(), strict=True):
                right = along * first + across * second
                values += weight * other * fn(left) * fn(right)
                slopes += weight * other * _map(slope_fn, left) * _map(slope_fn, right)
            return (values, slopes), None

        zero = jnp.zeros_like(k)
        rule = (jnp.asarray(points, k.dtype), jnp.asarray(weights, k.dtype))
        return jax.lax.scan(node, (zero, zero), rule)[0]

    def variance(q):
        s = safe_sqrt(q)
        terms = [w * fn(s * z) ** 2 for z, w in zip(points.tolist(), weights.tolist(), strict=True)]
        return functools.reduce(jnp.add, terms)

    return elementwise(fn, smooth_dual(variance, cross))


def _map(fn, x):
    return jnp.vectorize(fn)(x)


def Elementwise(
    fn: Callable | None = None, nngp_fn: Callable | None = None, d_nngp_fn: Callable | None = None
) -> Model:
    """Any nonlinearity; with ``nngp_fn(k, q1, q2)`` its covariance map, else by a Hermite series (``Series``).

    Args:
        fn: the nonlinearity, or None for a kernel without a finite layer.
        nngp_fn: scalar ``(k, q1, q2) -> E f(u) f(v)``. d_nngp_fn: its derivative in ``k``, by autodiff when None.
    """
    if nngp_fn is None:
        if fn is None:
            raise ValueError("fn, nngp_fn: got neither; allowed: one or both of them")
        return Series(fn)
    value_fn = jnp.vectorize(nngp_fn)
    slope_fn = jnp.vectorize(jax.grad(nngp_fn) if d_nngp_fn is None else d_nngp_fn)

    def cross(k, q1, q2):
        return value_fn(k, q1, q2), slope_fn(k, q1, q2)

    return elementwise(fn, smooth_dual(lambda q: value_fn(q, q, q), cross))


class HermiteSeries(NamedTuple):
    """``f(s z) = sum_n a_n(s) h_n(z)`` up to ``terms`` terms.

    Attributes:
        coefficients: ``[..., terms]``. variance: ``[...]`` ``E f(s z)^2`` by quadrature.
        tail: ``[...]`` ``variance - sum a_n^2``: two points' covariance is off by at most ``sqrt(tail_1 tail_2)``.
    """

    coefficients: Float[Array, "*s terms"]
    variance: Float[Array, "*s"]
    tail: Float[Array, "*s"]


def hermite_series(
    fn: Callable[[Array], Array], s: Float[Array, "*s"], terms: int = 64, degree: int | None = None
) -> HermiteSeries:
    """Expands ``f(s z)`` in normalised Hermite polynomials by quadrature.

    Args:
        fn: vectorised nonlinearity. s: ``[...]`` standard deviations.
        terms: number of polynomials. degree: nodes of a Gauss-Hermite rule, at least ``terms``; ``gaussian_panels``
            unless given, 576 nodes, which see a kink at 0 and a slope of up to some ``10 / s``.

    Returns:
        The series with its truncation error. Cost: ``terms`` times the nodes for each deviation. Derivatives of the
        variance with respect to s are those of the Gaussian's density and not of ``fn``, whose kinks count.

    Raises:
        ValueError: for fewer than one term, or fewer nodes than terms.
    """
    nodes, weights = _rule(terms, degree, 1)
    basis = np.ones((terms, len(nodes)))
    if terms > 1:
        basis[1] = nodes
    for n in range(1, terms - 1):
        basis[n + 1] = (nodes * basis[n] - np.sqrt(n) * basis[n - 1]) / np.sqrt(n + 1)
    values = fn(s[..., None] * jnp.asarray(nodes, s.dtype))
    coefficients = values @ jnp.asarray((basis * weights).T, s.dtype)
    variance = _variance(fn, s, nodes, weights)
    return HermiteSeries(coefficients, variance, jnp.maximum(variance - jnp.sum(coefficients**2, -1), 0))


def _rule(terms: int, degree: int | None, least: int) -> tuple[np.ndarray, np.ndarray]:
    nodes, weights = gaussian_panels() if degree is None else gauss_hermite(degree)
    if not least <= terms <= len(nodes):
        raise ValueError(f"terms: got {terms}; allowed: an integer from {least} to {len(nodes)}, the number of nodes")
    return nodes, weights


def _variance(fn: Callable[[Array], Array], s: Array, nodes: np.ndarray, weights: np.ndarray) -> Array:
    """``E f(s z)^2``, whose ``d/ds`` falls on the density of ``x = s z`` at fixed x."""
    fixed = jax.lax.stop_gradient(s)
    ratio = jnp.where(fixed > 0, fixed / jnp.where(fixed > 0, s, 1), 1)[..., None]  # 1, with a derivative
    density = ratio * jnp.exp((1 - ratio**2) * jnp.asarray(nodes**2 / 2, s.dtype))
    values = fn(fixed[..., None] * jnp.asarray(nodes, s.dtype))
    return values**2 * density @ jnp.asarray(weights, s.dtype)


_MOST_TAIL = 0.01, 0.1  # shares of E f^2 and of E f'^2 that a series may leave to its last term


def Series(fn: Callable[[Array], Array], terms: int = 64, degree: int | None = None) -> Model:
    """Any activation by a Hermite series: ``k' = sum_n a_n(s1) a_n(s2) cos^n``.

    What the series leaves out of ``E f^2`` and ``E f'^2`` counts as one more term, so that both are exact at equal
    inputs; elsewhere the error is at most ``hermite_series(fn, s).tail`` (tanh: below 1e-9 of the variance at
    ``s = 1``, 3e-4 at ``s = 3``), a few percent of that but for cosines just below 1. Where more than 1 % of ``E f^2``
    is left out the kernel is NaN, with more than 10 % of ``E f'^2`` the NTK: a function that jumps, or is steep or
    oscillates fast beside s (tanh from s = 5 on). Cost: ``2 terms`` multiply-adds a kernel entry.

    Args:
        fn: vectorised, differentiable nonlinearity. terms, degree: as in ``hermite_series``.

    Raises:
        ValueError: for fewer than two terms, or fewer nodes than terms.

    Reference: Daniely et al. 2016, section 4.
    """
    _rule(terms, degree, 2)

    def slope_fn(x):
        return jax.jvp(fn, (x,), (jnp.ones_like(x),))[1]

    def whole(fn, s, most):
        """``[..., terms + 1]`` coefficients whose squares sum to ``E f(s z)^2``."""
        series = hermite_series(fn, s, terms, degree)
        last = jnp.where(series.tail <= most * series.variance, safe_sqrt(series.tail), jnp.nan)
        return jnp.concatenate([series.coefficients, last[..., None]], -1), series.variance

    def cross(gap, s1, s2):
        scale = s1 * s2
        versine = jnp.clip(gap * safe_reciprocal(scale), 0, 2)
        cosine = 1 - versine
        (one, variance1), (two, variance2) = (whole(fn, s, _MOST_TAIL[0]) for s in (s1, s2))
        slope1, slope2 = (whole(slope_fn, s, _MOST_TAIL[1])[0] for s in (s1, s2))
        total, slope = _versine_series(cosine, (one, two), (slope1, slope2))
        apart = jnp.sum((one - two) ** 2, -1)
        start = jnp.maximum(0.5 * apart - 0.5 * (safe_sqrt(variance1) - safe_sqrt(variance2)) ** 2, 0)
        return start + versine * total, slope

    def variance(q):
        return hermite_series(fn, safe_sqrt(q), terms, degree).variance

    return elementwise(fn, Dual(variance, cross))


Pair = tuple[Array, Array]


def _versine_series(cosine: Array, weights: Pair, slopes: Pair, block: int = 4) -> Pair:
    """``sum_n w_n (1 - cos^n) / (1 - cos)`` and ``sum_n b_n cos^n`` by Horner's rule, from the highest term down.

    Args:
        cosine: the cosines. weights, slopes: two factors of ``w_n`` and of ``b_n``, ``[..., terms]`` each; their
            product broadcasts to the cosines.
        block: terms a step of the scan. The gradient of one long unrolled chain takes XLA minutes and gigabytes to
            compile; a scan term by term is bound by memory.
    """

    def blocks(terms, shift):
        terms = jnp.moveaxis(terms[..., shift:], -1, 0)
        missing = shift + -(len(terms) + shift) % block
        terms = jnp.pad(terms, [(0, missing)] + [(0, 0)] * (terms.ndim - 1))[::-1]
        return terms.reshape(-1, block, *terms.shape[1:])

    def step(carry, terms):
        suffix, total, slope = carry
        for one, two, left, right in zip(*terms, strict=True):
            suffix = suffix + one * two
            total = total * cosine + suffix
            slope = slope * cosine + left * right
        return (suffix, total, slope), None

    zero = jnp.zeros_like(cosine)
    terms = (*(blocks(factor, 1) for factor in weights), *(blocks(factor, 0) for factor in slopes))
    (_, total, slope), _ = jax.lax.scan(step, (zero, zero, zero), terms)
    return total, slope


def Tanh() -> Model:
    """``f(x) = tanh(x)``, by a Hermite series."""
    return Series(jnp.tanh)


def Silu() -> Model:
    """``f(x) = x sigmoid(x)`` (SiLU, swish), by a Hermite series."""
    return Series(jax.nn.silu)


def Softplus() -> Model:
    """``f(x) = log(1 + exp(x))``, by a Hermite series."""
    return Series(jax.nn.softplus)


def Sigmoid() -> Model:
    """``f(x) = 1 / (1 + exp(-x))``, by a Hermite series."""
    return Series(jax.nn.sigmoid)
