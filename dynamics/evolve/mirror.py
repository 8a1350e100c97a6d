"""Mirror descent: training in the dual variables of a potential."""

from __future__ import annotations

from typing import Any

import jax
import optax

from dynamics.evolve.checks import check_learning_rate, check_params
from dynamics.evolve.descent import DescentState, descent_by, time_step
from dynamics.geometry import Potential
from dynamics.types import Dynamics, Objective, Params, PyTree, factory


@factory("mirror(L, potential, learning_rate)")
def mirror(
    objective: Objective, potential: Potential, learning_rate: Any, *, batch_size: int | None = None
) -> Dynamics:
    """Mirror descent: ``theta <- theta - eta grad L(w)`` on the dual variables ``theta = phi'(w)``, weight by weight.

    Its P is ``phi''(w)``, so that ``preconditioned_sharpness`` beyond ``2/eta`` is unstable.

    Args:
        objective: L, of real parameters.
        potential: phi, one for all weights: ``geometry.power(2)`` is gradient descent, ``geometry.signed_entropy()``
            exponentiated gradients, in which a weight of 0 stays 0; ``geometry.Potential.of(phi, inverse)``.
        learning_rate: eta, a number or an optax schedule.
        batch_size: as in ``descent``.

    Raises:
        TypeError: when ``potential`` is none, or parameters are complex; ValueError as ``descent``.

    Cost: one gradient a step.

    Reference: Nemirovski & Yudin 1983; Beck & Teboulle 2003, 'Mirror descent and nonlinear projected subgradient
    methods', equation 3.4.

    Example:
        >>> import jax.numpy as jnp
        >>> from dynamics.evolve import simulate
        >>> from dynamics.geometry import signed_entropy
        >>> L = Objective.of(lambda w, batch: jnp.sum(w))
        >>> state, _ = simulate(mirror(L, signed_entropy(), 0.5), jnp.array([1.0, -1.0]), None, steps=2)
        >>> [round(float(w), 4) for w in state.params]  # exp(-1), -exp(1)
        [0.3679, -2.7183]
    """
    if not isinstance(potential, Potential):
        raise TypeError(f"potential: got {type(potential).__name__}; allowed: a Potential, e.g. geometry.power(3)")
    check_learning_rate(learning_rate)

    def move(params: Params, update: PyTree) -> Params:
        def leaf(w, u):
            return potential.inverse(potential.gradient(w) + u, w).astype(w.dtype)

        return jax.tree.map(leaf, params, update)

    run = descent_by(move, objective, optax.sgd(learning_rate), dt=time_step(learning_rate), batch_size=batch_size)

    def init(params) -> DescentState:
        state = run.init(params)
        check_params(state.params, real=True)
        return state

    def curvature(state: DescentState) -> PyTree:
        return jax.tree.map(potential.curvature, state.params)

    order = None if callable(learning_rate) or batch_size is not None else 1
    return run._replace(init=init, preconditioner=curvature, order=order)
