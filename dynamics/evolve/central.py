"""Central flows: the time-averaged path of an optimiser at the edge of stability, as a Dynamics."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from dynamics import linalg
from dynamics.arguments import BELOW_ONE, INSIDE, NOT_NEGATIVE, POSITIVE, check_counts, check_numbers
from dynamics.evolve.central_equations import CentralState, Edge, Process, balanced_step, carried_step, still_step
from dynamics.evolve.checks import check_params
from dynamics.evolve.views import training_part
from dynamics.stability import adam_threshold, momentum_threshold
from dynamics.types import Array, Dynamics, Objective, Params, check_objective, factory


class CentralStart(NamedTuple):
    """Where a flow starts, taken from the optimiser: parameters, second moments ``nu`` and momentum ``trace`` (``mu``
    of optax's Adam), pytrees like them. ``None``: ``(grad L)^2`` at the first step, and a momentum of zero."""

    params: Params
    nu: Any = None
    trace: Any = None


@factory("central_flow(L, learning_rate)")
def central_flow(
    objective: Objective,
    learning_rate: Any,
    *,
    momentum: float = 0.0,
    k: int = 1,
    depth: int = 4,
    seed: int = 0,
    oscillation: str | None = None,
) -> Dynamics:
    """The central flow of gradient descent or heavy ball, one unit of ``learning_rate`` a step.

    At the edge the iterate oscillates about a path w with covariance ``Sigma = U X U^T`` along the top k eigenvectors
    U of the Hessian; averaging the update to second order gives

        m <- grad L + (1/2) grad_w <H(w), Sigma> + beta m,   dw = -eta m.

    **Balanced**, X solves the complementarity problem ``0 <= X  perp  (2 + 2 beta)/eta I - U^T H U >= 0``: no
    oscillation below the threshold, and no eigenvalue above it. Each step solves it for the state at the step's end.
    Along U, where the discrete recursion would itself oscillate, the mean relaxes as the flow does, by ``1 - exp(-eta
    lambda/(1 - beta))``.

    With momentum that balance is unstable. X acts on the sharpness only as the momentum follows, and a small
    disturbance, which gradient descent all but keeps, grows by ``(omega^2/2) (1 + beta)/(1 - beta)`` a step,
    ``omega^2 = 2 (eta/(1 - beta))^2 a`` with a the rate ``-grad S . grad L`` of progressive sharpening: at the same
    eta and a 1900 times as fast at beta = .9. What follows are bursts which drive the sharpness far below the
    threshold. **Carried**, the oscillation is therefore a state: the iterate ``w + q``, q along U, takes the
    optimiser's own steps under ``grad L(w) + (1/2) grad_w <H(w), q q^T> + H(w) q``, the gradient averaged over q
    and -q and its linear part, and w is its centre. That predicts less: it starts from an optimiser's iterate,
    whose step it then leaves by the third order in q alone.

    Args:
        objective: L, three times differentiable in the parameters.
        learning_rate: eta, per step of the discrete optimiser.
        momentum: beta of heavy ball (``optax.sgd``), a Python number.
        k: eigenvectors that may oscillate; more than ever reach the threshold at once.
        depth: blocks of the subspace refinement a step (``k depth`` Hessian products).
        seed: of the first eigenvectors' random start.
        oscillation: ``"balanced"`` or ``"carried"``; balanced without momentum and carried with it unless said.
            ``"none"`` leaves it out: the flow of the optimiser alone, to hold the central flow against.

    Returns:
        A ``Dynamics`` on ``CentralState`` whose ``dt`` is ``learning_rate``, so that ``time`` and ``step`` match the
        discrete optimiser's. ``init`` takes parameters, or a ``CentralStart``.

    Raises:
        ValueError: when ``learning_rate`` is a number not above 0 or a schedule, ``k`` or ``depth`` below 1,
            ``momentum`` outside [0, 1), ``oscillation`` not one of the two, or, from ``init``, when ``k depth`` exceeds
            P or a field of the start is not like the parameters or not used.

    Cost: a gradient and ``k depth`` Hessian products; balanced, ``k (k + 1) / 2`` third-order gradients (some 5
    gradients each); carried, one, and a gradient.

    Reference: Cohen, Damian, Talwalkar, Kolter & Lee 2024, 'Understanding optimization in deep learning with central
    flows', section 3; the form with momentum averages the heavy-ball recursion in the same way. Damian, Nichani & Lee
    2023, 'Self-stabilization', carry gradient descent's oscillation so.
    """
    _check_rate(learning_rate)
    check_numbers(momentum=(momentum, BELOW_ONE))
    process = Process(learning_rate, momentum, 1.0, momentum_threshold(learning_rate, momentum), False, 0.0, 0.0)
    return _flow(objective, process, k, depth, seed, oscillation or ("carried" if momentum else "balanced"))


@factory("adaptive_central_flow(L, learning_rate)")
def adaptive_central_flow(
    objective: Objective,
    learning_rate: Any,
    *,
    b1: float = 0.0,
    b2: float = 0.99,
    eps: float = 1e-8,
    k: int = 1,
    depth: int = 4,
    seed: int = 0,
    oscillation: str = "balanced",
) -> Dynamics:
    """The central flow of RMSProp (b1 = 0) or Adam, with ``P = sqrt(nu) + eps`` and no bias correction.

        m <- (1 - b1) [grad L + (1/2) grad_w <H, Sigma>] + b1 m,   dw = -eta P^-1 m,
        dnu = (1 - b2) [(grad L)^2 + diag(H Sigma H) - nu],

    where ``Sigma = U X U^T`` and U, ``U^T P U = 1``, are the top eigenvectors of ``P^-1 H``, kept below ``(2 + 2
    b1)/((1 - b1) eta)``. Start it well after the optimiser's own start (several times ``1/(1 - b2)`` steps) with
    ``init(CentralStart(params, nu))``; ``init(params)`` takes ``nu = (grad L)^2`` at the first step.

    P follows the oscillation, which makes the response of ``U^T P^-1 H U`` to Sigma asymmetric for k >= 2: the
    complementarity condition uses the symmetric part (what it leaves out is proportional to ``1 - b2``).

    Args and cost: as ``central_flow``, and k products more where balanced; ``b1``, ``b2``, ``eps`` as in
    ``optax.adam``; ``eps > 0`` where a gradient entry may be 0.

    Carried, a step takes P from before it; optax's Adam and RMSProp take that from after.

    ``oscillation`` is balanced unless said, also with momentum: on digits Adam's path at b1 = .9 stays within .05 of
    the way travelled, as P, which grows with the oscillation, damps what the momentum disturbs.

    Reference: Cohen, Damian et al. 2024, section 5 (RMSProp). Adam's first moment only rescales the threshold, since
    the oscillation has period 2 and the averaged path moves slowly (Cohen et al. 2022).
    """
    _check_rate(learning_rate)
    check_numbers(many=True, b1=(b1, BELOW_ONE), b2=(b2, INSIDE), eps=(eps, NOT_NEGATIVE))
    process = Process(learning_rate, b1, 1 - b1, adam_threshold(learning_rate, b1), True, 1 - b2, eps)
    return _flow(objective, process, k, depth, seed, oscillation)


def _check_rate(learning_rate: Any) -> None:
    within, allowed = POSITIVE
    check_numbers(many=True, learning_rate=(learning_rate, (within, f"{allowed}, no schedule")))


def _flow(landscape: Objective, process: Process, k: int, depth: int, seed: int, oscillation: str) -> Dynamics:
    check_objective(landscape)
    check_counts(k=k, depth=depth)
    if oscillation not in ("balanced", "carried", "none"):
        raise ValueError(f"oscillation: got {oscillation!r}; allowed: 'balanced', 'carried', 'none'")

    def init(start) -> CentralState:
        params, nu, trace = start if isinstance(start, CentralStart) else CentralStart(start)
        check_params(params, real=True)
        w = ravel_pytree(params)[0]
        if k * depth > w.size:
            raise ValueError(f"k, depth: got {k!r}, {depth!r}; allowed: a product of at most P = {w.size}")
        if nu is not None and not process.adaptive:
            raise ValueError("CentralStart.nu: got second moments for a flow without; allowed: None")
        known = _flat("nu", nu, params, -1)  # -1: taken at the first step
        nu = known if process.adaptive else jnp.ones_like(w)
        trace = _flat("trace", trace, params, 0)
        vectors = jax.random.normal(jax.random.key(seed), (k, w.size), w.dtype)
        zeros = jnp.zeros((k, k), w.dtype)
        return CentralState(params, trace, nu, vectors, zeros[0], zeros, w, jnp.int32(0))

    def step(key, state: CentralState, data) -> CentralState:
        batch = training_part(data)
        w, unravel = ravel_pytree(state.params)

        def objective(v):
            return landscape(unravel(v), batch)

        g, hvp = jax.linearize(jax.grad(objective), w)
        nu = jnp.where((state.step == 0) & (state.nu < 0), g**2, state.nu) if process.adaptive else state.nu
        p = jnp.sqrt(nu) + process.eps if process.adaptive else nu
        pairs = _track(hvp, jnp.sqrt(p), state, depth)
        edge = Edge(pairs.vectors / jnp.sqrt(p), pairs.values, p, nu)
        if oscillation == "carried":
            path, moved = carried_step(process, objective, edge, w, state)
        elif oscillation == "none":
            path, moved = still_step(process, edge, w, g, state)
        else:
            path, moved = balanced_step(process, objective, edge, w, g, hvp, state)
        return moved._replace(
            params=unravel(path), vectors=pairs.vectors, eigenvalues=pairs.values, step=state.step + 1
        )

    return Dynamics(
        init, step, lambda state: state.params, process.eta, landscape, order=None if process.adaptive else 1
    )


def _flat(name: str, tree: Any, params: Params, missing: float) -> Array:
    """``[P]``: the field ``name`` of a start, which is like the parameters; ``missing`` everywhere without it."""
    if tree is None:
        return jnp.full_like(ravel_pytree(params)[0], missing)
    found, wanted = (jax.tree.map(jnp.shape, t) for t in (tree, params))
    if jax.tree.structure(tree) != jax.tree.structure(params) or found != wanted:
        raise ValueError(f"CentralStart.{name}: got leaves of shapes {found}; allowed: those of params, {wanted}")
    return ravel_pytree(tree)[0].astype(ravel_pytree(params)[0].dtype)


def _track(hvp, root: Array, state: CentralState, depth: int) -> linalg.Eigenpairs:
    """The top eigenpairs of ``P^-1/2 H P^-1/2`` from the last step's; the random start takes more sweeps, once."""

    def sweep(vectors):
        return linalg.refine(lambda v: hvp(v / root) / root, vectors, depth)

    # A loop of no turn rather than a branch, which under vmap would always be taken.
    more = jnp.where(state.step == 0, 8, 0)
    return sweep(jax.lax.fori_loop(0, more, lambda _, vectors: sweep(vectors).vectors, state.vectors))
