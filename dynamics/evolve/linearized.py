"""The linearised model as a Dynamics: the network's first-order Taylor expansion about its own start, trained alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from dynamics.taylor import linearize
from dynamics.types import Dynamics, Objective, Params, PyTree, check_objective, factory


class LinearizedState(NamedTuple):
    """``anchor``: the parameters expanded about; ``inner``: the state of the dynamics that moves the linear model."""

    anchor: Params
    inner: PyTree


@factory("linearized(L, lambda L: gradient_descent(L, 0.1))")
def linearized(objective: Objective, make: Callable[[Objective], Dynamics]) -> Dynamics:
    """Trains ``f_lin(theta, x) = f(theta_0, x) + J(theta_0, x) (theta - theta_0)`` instead of ``f``.

    Reference: Lee et al. 2019, section 2.2.

    Args:
        objective: L of the network.
        make: ``Objective -> Dynamics``, e.g. ``lambda L: gradient_descent(L, 0.1)``; it gets that of the linear model.

    Returns:
        A ``Dynamics`` on ``LinearizedState``; ``theta_0`` is what ``init`` was given. Observables of its run read the
        linear model.

    Cost: one jvp more than the dynamics it wraps.
    """

    check_objective(objective)
    apply = objective.f("linearized")

    def about(anchor) -> Objective:
        return objective._replace(apply=linearize(apply, anchor))

    def inner(anchor) -> Dynamics:
        return make(about(anchor))

    def init(params):
        return LinearizedState(params, inner(params).init(params))

    def step(key, state: LinearizedState, data):
        return LinearizedState(state.anchor, inner(state.anchor).step(key, state.inner, data))

    def params(state: LinearizedState):
        return inner(state.anchor).params(state.inner)

    usual = make(objective)
    at = {"objective_at": lambda state: about(state.anchor), "order": usual.order}
    return Dynamics(init, step, params, usual.dt, objective, **at)
