"""Mirror descent on linear regression with more weights than samples: where it ends, and the law of the end.

theta = phi'(w) moves along the samples alone, ``theta <- theta - eta X^T (X w - y)``, so that descent ends at

    w = argmin D_phi(w, w_0)   subject to   X w = y,        phi'(w) = phi'(w_0) + X^T nu,

found here by Newton's method on nu. For Gaussian X, ``X_ij ~ N(0, 1/D)``, and targets independent of it, of variance
``s^2``, each of the D weights obeys, as ``P, D -> infinity`` at ``alpha = P/D`` (Gordon's comparison),

    phi'(w) - phi'(w_0) = b h - c w,    h ~ N(0, 1),
    E[h w] = sqrt(alpha (s^2 + E w^2)),    c = b sqrt(alpha / (s^2 + E w^2)):

Gaussian in the dual, with a shrinkage c of the order of alpha that is no part of the first-order theory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Real

from dynamics.arguments import INSIDE, NOT_NEGATIVE, check_numbers, program
from dynamics.geometry import Potential
from dynamics.types import Array, ArrayLike


class Projection(NamedTuple):
    """The end of mirror descent.

    Attributes:
        w: the weights ``[D]``.
        nu: the multipliers ``[P]``.
        residual: ``max |X w - y|``.
        iterations: Newton steps taken.
    """

    w: Float[Array, " D"]
    nu: Float[Array, " P"]
    residual: Float[Array, ""]
    iterations: Int[Array, ""]


@functools.partial(program, static=("potential", "iterations"))
def projection(
    potential: Potential,
    start: Real[ArrayLike, " D"],
    x: Real[ArrayLike, "P D"],
    y: Real[ArrayLike, " P"],
    *,
    iterations: int = 100,
) -> Projection:
    """``argmin D_phi(w, w_0)`` subject to ``X w = y``, by Newton's method on its dual.

    The dual ``F(nu) = sum_i phi*(theta_i) - nu . y`` with ``theta = phi'(w_0) + X^T nu`` is convex, its gradient is ``X
    w - y`` and its Hessian ``X diag(dw/dtheta) X^T``. Each dw/dtheta is taken over the last step, for it has no bound
    where phi'' vanishes (|w|^p, p > 2), and the tangent's would stop all weights for one near 0; steps are halved until
    F falls.

    Args:
        potential: phi.
        start: w_0.
        x, y: the P <= D equations.
        iterations: Newton steps at most.

    Returns:
        A ``Projection``; the caller judges its ``residual``, which does not fall where the equations have no solution
        in phi's domain. Use float64.

    Raises:
        ValueError: for more equations than weights, or shapes that do not fit.

    Cost: ``P^2 D + P^3/3`` a step, of which some ten are taken.

    Reference: Gunasekar, Lee, Soudry & Srebro 2018, 'Characterizing implicit bias in terms of optimization geometry',
    theorem 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from dynamics.geometry import power
        >>> found = projection(power(2), jnp.array([1.0, 0.0]), jnp.array([[1.0, 1.0]]), jnp.array([3.0]))
        >>> [round(w, 5) for w in found.w.tolist()]  # the nearest point of w_1 + w_2 = 3
        [2.0, 1.0]
    """
    start, x, y = (jnp.asarray(value) for value in (start, x, y))
    dtype = jnp.result_type(float, start, x, y)
    start, x, y = (value.astype(dtype) for value in (start, x, y))
    if x.ndim != 2 or y.shape != x.shape[:1] or start.shape != x.shape[1:] or len(y) > len(start):
        raise ValueError(
            f"x: got shape {x.shape} with y {y.shape}, start {start.shape}; allowed: [P, D], [P], [D], P <= D"
        )
    theta0, eps = potential.gradient(start), jnp.finfo(y.dtype).eps

    def at(nu):
        theta = theta0 + x.T @ nu
        w = potential.inverse(theta, start)
        dual = jnp.concatenate([theta * w - potential.phi(w), -nu * y])
        return theta, w, jnp.sum(dual), 4 * eps * jnp.sum(jnp.abs(dual))

    def newton(carry):
        nu, (theta, w, dual, rounding), slope, count = carry
        gradient = x @ w - y
        step = jax.scipy.linalg.solve((x * slope) @ x.T, -gradient, assume_a="pos")

        def falls(t):
            return at(nu + t * step)[2] <= dual + 1e-4 * t * (gradient @ step) + rounding

        t = jax.lax.while_loop(lambda t: ~falls(t) & (t > 1e-12), lambda t: t / 2, jnp.ones((), y.dtype))
        new = at(nu + t * step)
        moved = new[0] - theta
        known = jnp.abs(moved) > 1e3 * eps * jnp.abs(new[0])
        secant = (new[1] - w) / jnp.where(known, moved, 1.0)
        return nu + t * step, new, jnp.where(known, secant, tangent(new[1])), count + 1

    def tangent(w):
        return 1 / jnp.clip(potential.curvature(w), eps, 1 / eps)

    def goes_on(carry):
        _, (_, w, *_), _, count = carry
        return (count < iterations) & (jnp.max(jnp.abs(x @ w - y)) > 256 * eps * (1 + jnp.max(jnp.abs(y))))

    nu = jnp.zeros_like(y)
    first = nu, at(nu), tangent(start), jnp.int32(0)
    nu, (_, w, *_), _, count = jax.lax.while_loop(goes_on, newton, first)
    return Projection(w, nu, jnp.max(jnp.abs(x @ w - y)), count)


class WeightLaw(NamedTuple):
    """Joint law of a weight's start and end, on nodes.

    Attributes:
        b, c: of ``phi'(w) - phi'(w_0) = b h - c w``.
        start: w_0 ``[n, 1]``.
        h: standard normal nodes ``[m]``.
        w: the weights ``[n, m]``.
        probability: ``[n, m]``, of sum 1.
        residual: of the two defining equations, relative.
    """

    b: float
    c: float
    start: Float[np.ndarray, "n 1"]
    h: Float[np.ndarray, " m"]
    w: Float[np.ndarray, "n m"]
    probability: Float[np.ndarray, "n m"]
    residual: float = 0.0

    def mean(self, fn: Callable[..., Array]) -> float:
        """``E fn(w, w_0)``; ``fn`` is applied to nodes, entry by entry."""
        values = np.broadcast_to(np.asarray(fn(self.w, self.start)), self.w.shape)
        return float(np.sum(np.where(self.probability > 0, values, 0.0) * self.probability))


REACH, NODES = 8.0, 201


def gaussian_nodes(nodes: int = NODES) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Standard normal ``(values, probabilities)``: an even grid to 8, exact to rounding for smooth integrands.

    Example:
        >>> h, p = gaussian_nodes()
        >>> round(float(p @ h**4), 10)
        3.0
    """
    h = np.linspace(-REACH, REACH, nodes)
    p = np.exp(-(h**2) / 2)
    return h, p / p.sum()


@functools.partial(program, static=("potential",))
def proximal(
    potential: Potential, shifted: Float[Array, "*s"], c: Real[ArrayLike, ""], side: Float[Array, "*s"]
) -> Float[Array, "*s"]:
    """The w with ``phi'(w) + c w = t``, entry by entry: Newton on theta, its bracket halved where that is slow.

    Args:
        potential: phi.
        shifted: t.
        c: >= 0.
        side: a point of w's side of 0, for potentials that keep it.

    Cost: some ten to forty evaluations of phi' and its inverse.

    Example:
        >>> from dynamics.geometry import power
        >>> float(proximal(power(3), jnp.float32(6.0), 1.0, jnp.float32(1.0)))  # w^2 + w = 6
        2.0
    """

    eps = jnp.finfo(shifted.dtype).eps

    def at(theta):
        pull = c * potential.inverse(theta, side)
        return theta + pull - shifted, jnp.abs(theta) + jnp.abs(pull) + jnp.abs(shifted)

    def step(carry):
        theta, low, high, last, _, count = carry
        excess, size = at(theta)
        low, high = jnp.where(excess <= 0, theta, low), jnp.where(excess >= 0, theta, high)
        new = theta - excess / (1 + c / potential.curvature(potential.inverse(theta, side)))
        good = (new >= low) & (new <= high) & (jnp.abs(excess) <= last / 2)
        done = jnp.abs(excess) <= 4 * eps * size
        new = jnp.where(done, theta, jnp.where(good, new, low / 2 + high / 2))
        return new, low, high, jnp.abs(excess), jnp.all(done), count + 1

    def goes_on(carry):
        return ~carry[4] & (carry[5] < 200)

    other = shifted - c * potential.inverse(shifted, side)
    above = at(jnp.zeros_like(shifted))[0] >= 0  # which side of 0 the root is on
    low = jnp.where(above, jnp.minimum(shifted, other), jnp.clip(jnp.minimum(shifted, other), 0))
    high = jnp.where(above, jnp.clip(jnp.maximum(shifted, other), max=0), jnp.maximum(shifted, other))
    bracket = low, high
    start = jnp.clip(shifted, low, high), *bracket, jnp.full_like(shifted, jnp.inf), jnp.asarray(False), 0
    return potential.inverse(jax.lax.while_loop(goes_on, step, start)[0], side)


def law_of(
    potential: Potential,
    b: float,
    c: float,
    start: Real[ArrayLike, " n"],
    probability: Real[ArrayLike, " n"] | None = None,
) -> WeightLaw:
    """The law ``phi'(w) - phi'(w_0) = b h - c w`` at given b and c; c = 0 is a pure Gaussian in the dual.

    Args:
        potential: phi.
        b, c: >= 0.
        start, probability: nodes of w_0's law and their probabilities; equal ones unless given.
    """
    w0 = np.asarray(start, float)
    p = np.full(w0.shape, 1.0) if probability is None else np.asarray(probability, float)
    h, ph = gaussian_nodes()
    with jax.enable_x64(True):
        w = _moved(potential, b, c, jnp.asarray(w0)[:, None], jnp.asarray(h))
    return WeightLaw(float(b), float(c), w0[:, None], h, np.asarray(w), np.outer(p / p.sum(), ph))


@functools.partial(jax.jit, static_argnames="potential")
def _moved(potential: Potential, b: Array, c: Array, start: Array, h: Array) -> Array:
    """The w of each start ``[n, 1]`` and h ``[m]``."""
    shifted = potential.gradient(start) + b * h
    return proximal(potential, shifted, c, jnp.broadcast_to(start, shifted.shape))


def weight_law(
    potential: Potential,
    alpha: float,
    start: Real[ArrayLike, " n"],
    probability: Real[ArrayLike, " n"] | None = None,
    *,
    target_variance: float = 1.0,
) -> WeightLaw:
    """The law of each weight at the end of mirror descent on ``alpha D`` random equations for D weights.

    For ``phi = |w|^2/2`` and ``E w_0^2 = 1``: ``c = alpha/(1 - alpha)``, ``E w^2 = 1 - alpha + alpha s^2/(1 - alpha)``,
    ``E dtheta^2 = alpha + alpha s^2/(1 - alpha)``. For every potential ``E[dtheta w] = c s^2``.

    Args:
        potential: phi.
        alpha: equations a weight, in (0, 1).
        start: w_0: nodes of its law, or the initial weights themselves (some hundreds of quantiles are enough).
        probability: of the nodes; equal ones unless given.
        target_variance: s^2 of the targets, >= 0.

    Returns:
        A ``WeightLaw``; ``law.mean(lambda w, w0: ...)`` gives any moment.

    Raises:
        ValueError: for settings out of range, or where no solution is found (too many equations for the signs that a
            signed potential keeps).

    Assumptions: inputs N(0, 1/D), targets independent of them, weights of the start independent and alike.

    Cost: some thirty solutions of n x 201 scalar equations: half a second for n = 201.

    Reference: derived here, by Gordon's comparison (Thrampoulidis, Oymak & Hassibi 2015); its first order in alpha is
    Pogodin et al. 2023, 'Synaptic weight distributions depend on the geometry of plasticity'.

    Example:
        >>> from dynamics.geometry import power
        >>> law = weight_law(power(2), 0.4, *gaussian_nodes(101))
        >>> round(law.c, 6), round(law.mean(lambda w, w0: w**2), 6)
        (0.666667, 1.266667)
    """
    check_numbers(alpha=(alpha, INSIDE), target_variance=(target_variance, NOT_NEGATIVE))
    w0 = np.asarray(start, float)
    p = np.full(w0.shape, 1.0) if probability is None else np.asarray(probability, float)
    if w0.ndim != 1 or p.shape != w0.shape or not np.all(np.isfinite(w0)) or not np.all(p >= 0) or not p.sum() > 0:
        raise ValueError(
            f"start: got shape {w0.shape} with probabilities {p.shape}; allowed: finite nodes [n], probabilities >= 0"
        )

    found = _solve(potential, alpha, w0, p / p.sum(), target_variance)
    if found is None:
        raise ValueError(
            f"alpha: got {alpha!r}, at which no law is found; allowed: fewer equations than the potential can solve"
        )
    b, c, residual = found
    return law_of(potential, b, c, w0, p)._replace(residual=residual)


def _solve(potential, alpha, w0, p, variance, halvings: int = 6) -> tuple[float, float, float] | None:
    """``(b, c, residual)``: from the law of half as many equations where the first guess is too far."""
    from scipy.optimize import root

    with jax.enable_x64(True):
        unit = float(np.sqrt(p @ np.asarray(potential.gradient(jnp.asarray(w0))) ** 2)) or 1.0

    def excess(logs):
        """Of the two equations, in logarithms."""
        b, c = np.exp(np.clip(logs, np.log(unit) - 20, np.log(unit) + 20))
        law = law_of(potential, b, c, w0, p)
        square, aligned = law.mean(lambda w, w0: w**2), law.mean(lambda w, w0: law.h * w)
        total = variance + square
        first = np.log(np.maximum(aligned, 1e-300)) - np.log(alpha * total) / 2
        return np.array([first, logs[1] - logs[0] - np.log(alpha / total) / 2])

    def from_there(b, c):
        with np.errstate(all="ignore"):
            found = root(excess, np.log([b, c]), tol=1e-12)
            residual, (b, c) = float(np.max(np.abs(excess(found.x)))), np.exp(found.x)
        return (float(b), float(c), residual) if residual < 1e-8 else None

    share = np.sqrt(alpha / (variance + p @ w0**2))
    b = unit * _first_b(lambda b: excess(np.log([unit * b, unit * b * share]))[0])
    found = from_there(b, b * share)
    if found is None and halvings and (less := _solve(potential, alpha / 2, w0, p, variance, halvings - 1)):
        found = from_there(1.4 * less[0], 2 * less[1])
    return found


def _first_b(excess: Callable[[float], float]) -> float:
    """Where the first equation holds at the start's ``E w^2``, in the dual's unit, to a tenth: by halving ln b."""
    low, high = np.log(1e-4), np.log(1e4)
    with np.errstate(all="ignore"):
        while high - low > 0.1:
            middle = (low + high) / 2
            low, high = (middle, high) if excess(np.exp(middle)) < 0 else (low, middle)
    return float(np.exp((low + high) / 2))
