"""Continuous-time dynamics by fixed-step Runge-Kutta: gradient flow, and any order-parameter equation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dynamics.arguments import NOT_ZERO, POSITIVE, check_numbers
from dynamics.evolve.views import training_part
from dynamics.program.real_view import gradient
from dynamics.types import Dynamics, Objective, PyTree, check_objective, factory


def ode(
    field: Callable[[PyTree, Any], PyTree], dt: Any, params: Callable[[PyTree], Any] = lambda state: state
) -> Dynamics:
    """The classical fourth-order Runge-Kutta method for ``d state/dt = field(state, data)``.

    Args:
        field: ``(state, data) -> d state/dt``, same pytree as the state.
        dt: time step; the local error is O(dt^5), the global one O(dt^4).
        params: ``state -> params`` for readouts.

    Returns:
        A ``Dynamics`` whose state is the pytree that ``init`` is given.

    Cost: four evaluations of ``field`` a step.
    """

    check_numbers(many=True, dt=(dt, NOT_ZERO))

    def step(key, state, data):
        def shifted(scale, slope):
            return jax.tree.map(lambda s, k: s + scale * k, state, slope)

        k1 = field(state, data)
        k2 = field(shifted(dt / 2, k1), data)
        k3 = field(shifted(dt / 2, k2), data)
        k4 = field(shifted(dt, k3), data)
        return jax.tree.map(lambda s, a, b, c, d: s + dt / 6 * (a + 2 * b + 2 * c + d), state, k1, k2, k3, k4)

    return Dynamics(lambda state: state, step, params, dt, order=4)


@factory("gradient_flow(L, dt)")
def gradient_flow(objective: Objective, dt: Any) -> Dynamics:
    """Gradient flow ``d theta/dt = -grad L(theta)`` on the full batch, the eta -> 0 limit of gradient descent.

    Args:
        objective: L.
        dt: time step; keep ``dt * sharpness`` below 2.78, the method's stability bound.

    Cost: four gradients a step.
    """

    check_objective(objective)
    check_numbers(many=True, dt=(dt, POSITIVE))

    def field(params, data):
        slope = gradient(jax.grad(objective)(params, training_part(data)))
        return jax.tree.map(jnp.negative, slope)

    return ode(field, dt)._replace(objective=objective)
