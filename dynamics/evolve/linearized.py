"""The linearised model as a Dynamics: the network's first-order Taylor expansion about its own start, trained alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from dynamics.taylor import linearize
from dynamics.types import Array, Dynamics, Params, PyTree


class LinearizedState(NamedTuple):
    """``anchor``: the parameters expanded about; ``inner``: the state of the dynamics that moves the linear model."""

    anchor: Params
    inner: PyTree


def linearized(apply: Callable[..., Array], make: Callable[[Callable[..., Array]], Dynamics]) -> Dynamics:
    """Trains ``f_lin(theta, x) = f(theta_0, x) + J(theta_0, x) (theta - theta_0)`` instead of ``f``.

    Reference: Lee et al. 2019, section 2.2.

    Args:
        apply: ``(params, x) -> f``.
        make: ``apply -> Dynamics``, e.g. ``lambda f: gradient_descent(f, half_mse, 0.1)``.

    Returns:
        A ``Dynamics`` on ``LinearizedState``; ``theta_0`` is what ``init`` was given. Its readouts evaluate the network
        as ``linearize(apply, state.anchor)(params, x)``.

    Cost: one jvp more than the dynamics it wraps.
    """

    def inner(anchor) -> Dynamics:
        return make(linearize(apply, anchor))

    def init(params):
        return LinearizedState(params, inner(params).init(params))

    def step(key, state: LinearizedState, data):
        return LinearizedState(state.anchor, inner(state.anchor).step(key, state.inner, data))

    def params(state: LinearizedState):
        return inner(state.anchor).params(state.inner)

    return Dynamics(init, step, params, make(apply).dt)
