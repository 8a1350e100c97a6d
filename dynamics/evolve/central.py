"""Central flows: the time-averaged path of an optimiser at the edge of stability, as a Dynamics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from dynamics import linalg
from dynamics.evolve.descent import training_batch
from dynamics.stability import adam_threshold, momentum_threshold
from dynamics.types import Array, Dynamics, Params


class CentralState(NamedTuple):
    """State of ``central_flow``.

    Attributes:
        params: the parameters of the averaged path.
        trace: ``[P]`` averaged momentum, without its part along ``vectors``.
        nu: ``[P]`` second moments of the gradient (ones where the optimiser has none).
        vectors: ``[k, P]`` top eigenvectors of the preconditioned Hessian.
        eigenvalues: ``[k]`` of it, at the step's start.
        covariance: ``[k, k]`` X, the oscillation's covariance along ``vectors``; its diagonal over time is measurable.
        step: int32.
    """

    params: Params
    trace: Array
    nu: Array
    vectors: Array
    eigenvalues: Array
    covariance: Array
    step: Array


class CentralStart(NamedTuple):
    """Where an adaptive flow starts: parameters, and second moments ``nu``, a pytree like them."""

    params: Params
    nu: Any


def central_flow(
    apply: Callable[..., Array],
    loss: Callable[[Array, Array], Array],
    learning_rate: Any,
    *,
    momentum: float = 0.0,
    k: int = 1,
    depth: int = 4,
    seed: int = 0,
) -> Dynamics:
    """The central flow of gradient descent or heavy ball, one unit of ``learning_rate`` a step.

    At the edge the iterate oscillates about a path w with covariance ``Sigma = U X U^T`` along the top k eigenvectors
    U of the Hessian; averaging the update to second order gives

        m <- grad L + (1/2) grad_w <H(w), Sigma> + beta m,   dw = -eta m,

    with X the solution of the complementarity problem ``0 <= X  perp  (2 + 2 beta)/eta I - U^T H U >= 0``: no
    oscillation below the threshold, and no eigenvalue above it. Each step solves it for the state at the step's end.
    Along U, where the discrete recursion would itself oscillate, the mean relaxes as the flow does, by ``1 - exp(-eta
    lambda/(1 - beta))``.

    Args:
        apply: ``(params, x) -> f``.
        loss: ``(f, y) -> scalar``, three times differentiable in the parameters.
        learning_rate: eta, per step of the discrete optimiser.
        momentum: beta of heavy ball (``optax.sgd``).
        k: eigenvectors that may oscillate; more than ever reach the threshold at once.
        depth: blocks of the subspace refinement a step (``k depth`` Hessian products).
        seed: of the first eigenvectors' random start.

    Returns:
        A ``Dynamics`` on ``CentralState`` whose ``dt`` is ``learning_rate``, so that ``time`` and ``step`` match the
        discrete optimiser's.

    Raises:
        ValueError: when ``k`` or ``depth`` is below 1, or ``momentum`` outside [0, 1).

    Cost: a gradient, ``k depth`` Hessian products and ``k (k + 1) / 2`` third-order gradients (some 5 gradients each).

    With momentum the oscillation takes some ``1 / (1 - beta)`` steps to follow, which X does at once. Where the
    threshold is reached fast, the path strays: on digits with beta = .9 by .01 to .08 of the way travelled at eta =
    .35, by .1 to .4 at .5 (gradient descent: .02 to .07).

    Reference: Cohen, Damian, Talwalkar, Kolter & Lee 2024, 'Understanding optimization in deep learning with central
    flows', section 3; the form with momentum averages the heavy-ball recursion in the same way.
    """
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum: got {momentum!r}; allowed: a number in [0, 1)")
    process = _Process(learning_rate, momentum, 1.0, momentum_threshold(learning_rate, momentum), False, 0.0, 0.0)
    return _flow(apply, loss, process, k, depth, seed)


def adaptive_central_flow(
    apply: Callable[..., Array],
    loss: Callable[[Array, Array], Array],
    learning_rate: Any,
    *,
    b1: float = 0.0,
    b2: float = 0.99,
    eps: float = 1e-8,
    k: int = 1,
    depth: int = 4,
    seed: int = 0,
) -> Dynamics:
    """The central flow of RMSProp (b1 = 0) or Adam, with ``P = sqrt(nu) + eps`` and no bias correction.

        m <- (1 - b1) [grad L + (1/2) grad_w <H, Sigma>] + b1 m,   dw = -eta P^-1 m,
        dnu = (1 - b2) [(grad L)^2 + diag(H Sigma H) - nu],

    where ``Sigma = U X U^T`` and U, ``U^T P U = 1``, are the top eigenvectors of ``P^-1 H``, kept below ``(2 + 2
    b1)/((1 - b1) eta)``. Start it well after the optimiser's own start (several times ``1/(1 - b2)`` steps) with
    ``init(CentralStart(params, nu))``; ``init(params)`` takes ``nu = (grad L)^2`` at the first step.

    P follows the oscillation, which makes the response of ``U^T P^-1 H U`` to Sigma asymmetric for k >= 2: the
    complementarity condition uses the symmetric part (what it leaves out is proportional to ``1 - b2``).

    Args and cost: as ``central_flow``; ``b1``, ``b2``, ``eps`` as in ``optax.adam``; ``eps > 0`` where a gradient
    entry may be 0.

    Reference: Cohen, Damian et al. 2024, section 5 (RMSProp). Adam's first moment only rescales the threshold, since
    the oscillation has period 2 and the averaged path moves slowly (Cohen et al. 2022).
    """
    if not 0 <= b1 < 1 or not 0 < b2 < 1:
        raise ValueError(f"b1, b2: got {b1!r}, {b2!r}; allowed: 0 <= b1 < 1 and 0 < b2 < 1")
    process = _Process(learning_rate, b1, 1 - b1, adam_threshold(learning_rate, b1), True, 1 - b2, eps)
    return _flow(apply, loss, process, k, depth, seed)


class _Process(NamedTuple):
    """``m <- carry m + gain g``, ``w <- w - eta P^-1 m``, unstable above ``threshold``; P = 1 unless adaptive, when
    ``nu <- nu + rate (g^2 - nu)``."""

    eta: Any
    carry: float
    gain: float
    threshold: Any
    adaptive: bool
    rate: float
    eps: float


def _flow(apply, loss, process: _Process, k: int, depth: int, seed: int) -> Dynamics:
    if k < 1 or depth < 1:
        raise ValueError(f"k, depth: got {k!r}, {depth!r}; allowed: integers >= 1")
    adaptive = process.adaptive

    def init(start) -> CentralState:
        params, nu = start if isinstance(start, CentralStart) else (start, None)
        flat = ravel_pytree(params)[0]
        nu = (jnp.full_like(flat, -1) if nu is None else ravel_pytree(nu)[0]) if adaptive else jnp.ones_like(flat)
        vectors = jax.random.normal(jax.random.key(seed), (k, flat.size), flat.dtype)
        zeros = jnp.zeros((k, k), flat.dtype)
        return CentralState(params, jnp.zeros_like(flat), nu, vectors, zeros[0], zeros, jnp.int32(0))

    def step(key, state: CentralState, data) -> CentralState:
        batch = training_batch(data)
        w, unravel = ravel_pytree(state.params)

        def objective(v):
            return loss(apply(unravel(v), batch.x), batch.y)

        g, hvp = jax.linearize(jax.grad(objective), w)
        nu = jnp.where((state.step == 0) & (state.nu < 0), g**2, state.nu) if adaptive else state.nu
        p = jnp.sqrt(nu) + process.eps if adaptive else nu
        pairs = _track(hvp, jnp.sqrt(p), state, depth)
        u = pairs.vectors / jnp.sqrt(p)
        h = jax.lax.map(hvp, u)
        turn = _third_derivatives(objective, w, u)  # [k, k, P], grad_w (u_i H u_j)

        respond = _response(process, p, u, pairs.values)
        coasting = process.eta * process.carry * state.trace / p
        alpha = -jnp.einsum("ijp,p->ij", turn, respond(g) + coasting)
        beta = 0.5 * jnp.einsum("ijp,klp->ijkl", turn, jax.vmap(jax.vmap(respond))(turn))
        if adaptive:
            pull = _preconditioner_pull(process, nu, p, u, h)
            alpha = alpha + jnp.einsum("ijp,p->ij", pull, g**2 - nu)
            beta = beta - jnp.einsum("ijp,kp,lp->ijkl", pull, h, h)
        room = process.threshold * jnp.eye(k) - jnp.diag(pairs.values)
        x = complementarity(beta, alpha - room, state.covariance)

        drift = g + 0.5 * jnp.einsum("ij,ijp->p", x, turn)
        trace = process.carry * state.trace + process.gain * drift
        trace = trace - p * ((u @ trace) @ u)
        if adaptive:
            nu = nu + process.rate * (g**2 + jnp.einsum("ij,ip,jp->p", x, h, h) - nu)
        moved = unravel(w - respond(drift) - coasting)
        return CentralState(moved, trace, nu, pairs.vectors, pairs.values, x, state.step + 1)

    return Dynamics(init, step, lambda state: state.params, process.eta)


def _track(hvp, root: Array, state: CentralState, depth: int) -> linalg.Eigenpairs:
    """The top eigenpairs of ``P^-1/2 H P^-1/2`` from the last step's; the random start takes more sweeps, once."""

    def sweep(vectors):
        return linalg.refine(lambda v: hvp(v / root) / root, vectors, depth)

    def first(vectors):
        return jax.lax.fori_loop(0, 8, lambda _, v: sweep(v).vectors, vectors)

    return sweep(jax.lax.cond(state.step == 0, first, lambda vectors: vectors, state.vectors))


def _response(process: _Process, p: Array, u: Array, values: Array):
    """``d -> how far w moves down against the gradient d`` within a step: relaxed along u, one update elsewhere."""
    eta, carry, gain = process.eta, process.carry, process.gain
    rest = eta * gain / (1 - carry)  # the limit of the relaxation at eigenvalue 0
    flat = values == 0
    relaxed = jnp.where(flat, rest, -jnp.expm1(-rest * values) / jnp.where(flat, 1, values))

    def respond(d):
        along = u @ d
        return eta * gain * (d / p - along @ u) + (relaxed * along) @ u

    return respond


def _preconditioner_pull(process: _Process, nu: Array, p: Array, u: Array, h: Array) -> Array:
    """``d(u_i H u_j)`` through P at fixed ``P^1/2 u``, per unit of ``dnu / rate``: ``[k, k, P]``.

    It is ``-(1/2) (u_i h_j + h_i u_j)_c dP_c / P_c``. An entry that never had a gradient has no Hessian row either:
    its P stays.
    """
    active = nu > 0
    weight = jnp.where(active, process.rate / jnp.where(active, 4 * jnp.sqrt(nu) * p, 1), 0)
    return -(u[:, None] * h[None] + h[:, None] * u[None]) * weight


def _third_derivatives(objective, w: Array, u: Array) -> Array:
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
