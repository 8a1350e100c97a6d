"""What oscillates about a central flow's path, balanced or carried: one step of path, momentum and second moments."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dynamics.types import Array, Params


class CentralState(NamedTuple):
    """State of ``central_flow``.

    Attributes:
        params: the parameters of the averaged path.
        trace: ``[P]`` momentum, the iterate's where the oscillation is carried; where it is balanced the path's, none
            of it along U.
        nu: ``[P]`` second moments of the gradient (ones where the optimiser has none).
        vectors: ``[k, P]`` top eigenvectors of the preconditioned Hessian.
        eigenvalues: ``[k]`` of it, at the step's start.
        covariance: ``[k, k]`` X, the oscillation's covariance along ``U = P^-1/2 vectors``; carried, ``x x^T`` of its
            coordinates at the step's start, to be averaged over steps.
        iterate: ``[P]`` where a carried oscillation is; the path itself where it is balanced.
        step: int32.
    """

    params: Params
    trace: Array
    nu: Array
    vectors: Array
    eigenvalues: Array
    covariance: Array
    iterate: Array
    step: Array


class Process(NamedTuple):
    """``m <- carry m + gain g``, ``w <- w - eta P^-1 m``, unstable above ``threshold``; P = 1 unless adaptive, when
    ``nu <- nu + rate (g^2 - nu)``."""

    eta: Any
    carry: float
    gain: float
    threshold: Any
    adaptive: bool
    rate: float
    eps: float

    @property
    def rest(self) -> Any:
        """The effective learning rate, of motion slow enough for the momentum to follow."""
        return self.eta * self.gain / (1 - self.carry)


class Edge(NamedTuple):
    """What may oscillate: ``u`` ``[k, P]`` with ``H u = lambda P u`` and ``u^T P u = 1``, the eigenvalues, P's diagonal
    p, and nu."""

    u: Array
    values: Array
    p: Array
    nu: Array

    def without(self, direction: Array) -> Array:
        """A displacement less its part along u."""
        return direction - (self.u @ (self.p * direction)) @ self.u


def balanced_step(process: Process, objective, edge: Edge, w: Array, g: Array, hvp, state: CentralState):
    """A step of the path under the covariance X that keeps every eigenvalue at or below the threshold.

    With ``S = U^T H U`` and Sigma = U X U^T, the step ends at ``S + dS``, ``dS = -beta[X] + alpha``, and X solves
    ``0 <= X  perp  S_max - S + beta[X] - alpha >= 0``.
    """
    u, values, p, nu = edge
    dS_dw = third_derivatives(objective, w, u)  # [k, k, P]
    dw = _relaxed_step(process, edge)  # [P] -> [P]
    beta_m = process.carry * edge.without(state.trace / p)  # [P]
    alpha = -jnp.einsum("ijp,p->ij", dS_dw, dw(g) + process.eta * beta_m)  # [k, k]
    beta = 0.5 * jnp.einsum("ijp,klp->ijkl", dS_dw, jax.vmap(jax.vmap(dw))(dS_dw))  # [k, k, k, k]
    H_u = jax.lax.map(hvp, u) if process.adaptive else jnp.zeros_like(u)  # [k, P], what moves P
    if process.adaptive:
        dS_dnu = _preconditioner_derivatives(process, edge, H_u)  # [k, k, P]
        alpha = alpha + jnp.einsum("ijp,p->ij", dS_dnu, g**2 - nu)
        beta = beta - jnp.einsum("ijp,kp,lp->ijkl", dS_dnu, H_u, H_u)
    S, S_max = jnp.diag(values), process.threshold * jnp.eye(len(u))  # [k, k]
    x = complementarity(beta, alpha - (S_max - S), state.covariance)  # [k, k]

    g_mean = g + 0.5 * jnp.einsum("ij,ijp->p", x, dS_dw)  # [P], grad L + (1/2) grad_w <H, Sigma>
    m = p * (beta_m + process.gain * edge.without(g_mean / p))  # [P]
    if process.adaptive:
        nu = nu + process.rate * (g**2 + jnp.einsum("ij,ip,jp->p", x, H_u, H_u) - nu)
    path = w - dw(g_mean) - process.eta * beta_m
    return path, state._replace(trace=m, nu=nu, covariance=x, iterate=path)


def still_step(process: Process, edge: Edge, w: Array, g: Array, state: CentralState):
    """A step of the path as if nothing oscillated, Sigma = 0: the wrong theory that a central flow is held against."""
    beta_m, nu = process.carry * edge.without(state.trace / edge.p), edge.nu
    if process.adaptive:
        nu = nu + process.rate * (g**2 - nu)
    m = edge.p * (beta_m + process.gain * edge.without(g / edge.p))
    path = w - _relaxed_step(process, edge)(g) - process.eta * beta_m
    return path, state._replace(trace=m, nu=nu, iterate=path)


def carried_step(process: Process, objective, edge: Edge, w: Array, state: CentralState):
    """A step of the iterate ``w + q`` under the gradient's second-order expansion about the path w.

    The difference q lies along U: what turns out of U oscillates no more and goes to the path. Along U the path sits
    at the minimum ``w - U lambda^-1 U^T grad L``, or at the iterate where the slope is too flat for one.
    """
    u, values, p, nu = edge
    w = w + edge.without(state.iterate - w)  # [P]
    convex = values > 0
    newton = jnp.where(convex, (u @ jax.grad(objective)(w)) / jnp.where(convex, values, 1), 0)  # [k], w - minimum
    share = jnp.clip(process.rest * values, 0, 1)  # [k], of the way to the minimum, within a step
    x = share * (u @ (p * (state.iterate - w)) + newton)  # [k]
    q = x @ u  # [P]
    w = state.iterate - q

    def expansion(v):
        """``L + <grad L, q> + (1/2) <q, H q>`` at v, whose gradient is ``grad L + H q + (1/2) grad_w <q, H q>``."""
        (value, slope), (_, curvature) = jax.jvp(lambda v: jax.jvp(objective, (v,), (q,)), (v,), (q,))
        return value + slope + 0.5 * curvature

    g = jax.grad(expansion)(w)
    m = process.carry * state.trace + process.gain * g
    iterate = state.iterate - process.eta * m / p
    if process.adaptive:
        nu = nu + process.rate * (g**2 - nu)
    path = iterate - (share * (u @ (p * (iterate - w)))) @ u
    return path, state._replace(trace=m, nu=nu, covariance=jnp.outer(x, x), iterate=iterate)


def _relaxed_step(process: Process, edge: Edge):
    """``g -> -dw``: ``eta P^-1 g`` off U; along U ``(1 - exp(-eta lambda)) / lambda``, as the flow relaxes."""
    flat = edge.values <= 0  # no minimum to relax to
    values = jnp.where(flat, 1, edge.values)
    relaxed = jnp.where(flat, process.rest, -jnp.expm1(-process.rest * values) / values)  # [k]

    def dw(g):
        return process.eta * process.gain * edge.without(g / edge.p) + (relaxed * (edge.u @ g)) @ edge.u

    return dw


def _preconditioner_derivatives(process: Process, edge: Edge, H_u: Array) -> Array:
    """``rate d(u_i H u_j)/dnu`` through P at fixed ``P^1/2 u``: ``[k, k, P]``.

    It is ``-(1/2) (u_i H u_j + H u_i u_j)_c (dP_c/dnu_c) / P_c``. An entry that never had a gradient has no Hessian
    row either: its P stays.
    """
    u, _, p, nu = edge
    active = nu > 0
    dP_dnu = jnp.where(active, process.rate / jnp.where(active, 4 * jnp.sqrt(nu) * p, 1), 0)  # [P], / (2 P)
    return -(u[:, None] * H_u[None] + H_u[:, None] * u[None]) * dP_dnu


def third_derivatives(objective, w: Array, u: Array) -> Array:
    """``grad_w (u_i^T H(w) u_j)`` for all pairs, ``[k, k, P]``."""
    k = u.shape[0]
    rows, columns = jnp.triu_indices(k)

    def one(pair):
        a, b = pair

        def curvature(v):
            return jax.jvp(lambda z: jax.jvp(objective, (z,), (a,))[1], (v,), (b,))[1]

        return jax.grad(curvature)(w)

    found = jax.lax.map(one, (u[rows], u[columns]))
    full = jnp.zeros((k, k, w.size), w.dtype).at[rows, columns].set(found)
    return full.at[columns, rows].set(found)


def complementarity(beta: Array, target: Array, start: Array, *, iterations: int = 300) -> Array:
    """The k x k X with ``X >= 0``, ``beta[X] - target >= 0`` and ``<X, beta[X] - target> = 0`` (semidefinite order).

    For symmetric positive ``beta`` this is the minimum of ``<X, beta[X]>/2 - <X, target>`` over the cone; found by
    accelerated projected gradient with restarts. At k = 1: ``max(0, target / beta)``. X = 0 whenever ``target <= 0``.
    Where ``beta`` vanishes against the target (an unstable quadratic, whose oscillation nothing bounds) there is no X:
    the result is then finite and huge, 1 / eps or more.

    Args:
        beta: ``[k, k, k, k]``, ``beta[X]_ij = sum_kl beta_ijkl X_kl``; its symmetric part is used.
        target: ``[k, k]``, symmetric.
        start: ``[k, k]``, a guess.
        iterations: at most; stops once a step moves less than 1e-7 of |X|.

    Reference: Beck & Teboulle 2009 for the iteration; O'Donoghue & Candes 2015 for the restart.
    """
    k = target.shape[0]
    matrix = jnp.reshape(beta, (k * k, k * k))
    matrix = 0.5 * (matrix + matrix.T)
    precision = jnp.finfo(target.dtype)
    floor = jnp.maximum(precision.eps * jnp.max(jnp.abs(target)), precision.tiny)
    if k == 1:
        return jnp.maximum(target / jnp.maximum(matrix, floor), 0)
    smooth = jnp.maximum(jnp.linalg.eigvalsh(matrix)[-1], floor)

    def project(x):
        values, vectors = jnp.linalg.eigh(0.5 * (x + x.T))
        return (vectors * jnp.maximum(values, 0)) @ vectors.T

    def going(carry):
        x, before, _, count = carry
        moved = jnp.linalg.norm(x - before)
        return (count < iterations) & ((moved > 1e-7 * jnp.linalg.norm(x)) | (count < 2))

    def body(carry):
        x, before, momentum, count = carry
        following = 0.5 * (1 + jnp.sqrt(1 + 4 * momentum**2))
        y = x + (momentum - 1) / following * (x - before)
        new = project(y - jnp.reshape(matrix @ jnp.ravel(y) - jnp.ravel(target), (k, k)) / smooth)
        uphill = jnp.vdot(y - new, new - x) > 0
        return new, x, jnp.where(uphill, 1.0, following), count + 1

    one = jnp.ones((), target.dtype)
    x, *_ = jax.lax.while_loop(going, body, (start, start, one, jnp.int32(0)))
    return jnp.where(jnp.linalg.eigvalsh(target)[-1] <= 0, jnp.zeros_like(x), x)
