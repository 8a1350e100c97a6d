"""Temporal-difference learning of any value model, by any optimiser or as a flow; and data drawn afresh each step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Real

from dynamics.arguments import PROBABILITY, check_numbers
from dynamics.evolve.checks import check_dynamics
from dynamics.evolve.views import training_part
from dynamics.types import Array, ArrayLike, Batch, Dynamics, Objective, check_objective, factory, scalar


class Transitions(NamedTuple):
    """What values are learned from: one step of a process for each of n states.

    Attributes:
        x: ``[n, ...]``, the states as the value model takes them.
        reward: ``[n, c]``, one column for each value that the model gives.
        next_x: ``[n, ...]``, the states that followed; or, with ``expected``, ``[m, ...]`` all that may follow.
        expected: ``P [n, m]``, the probabilities to go to each of ``next_x``, for the expectation over steps in place
            of one; a row that sums to less than one ends there with what is missing. None for samples.
    """

    x: Any
    reward: Any
    next_x: Any
    expected: Any = None


@factory("td(L, discount, lambda L: gradient_descent(L, 0.1))")
def td(objective: Objective, discount: Real[ArrayLike, ""], make: Callable[[Objective], Dynamics]) -> Dynamics:
    """Semi-gradient TD(0): moves by the gradient of ``loss(V(x), r + gamma V(x'))`` at fixed target.

    For half the squared error with weights d, ``dtheta/dt = sum_i d_i (r + gamma P V - V)_i dV_i/dtheta``.
    That is the gradient of no function: it need not lower any error. ``make`` gives what moves by it, descent with any
    optimiser or a flow; to weight states, say so in the loss.

    Args:
        objective: ``Objective(V, loss)`` of the value model ``V(params, x) [n, c]``.
        discount: gamma in [0, 1]; may be traced.
        make: ``Objective -> Dynamics``, e.g. ``lambda L: gradient_descent(L, 0.1)`` or ``gradient_flow(L, dt)``.

    Returns:
        ``make``'s ``Dynamics``, on ``Transitions``. Readings of its loss on these are the TD error's; on a ``Batch(x,
        y)``, as test data of known values, they are the objective's own.

    Raises:
        ValueError: for a discount outside [0, 1]; at tracing, for rewards that have not the values' shape,
            probabilities that are not ``[n, m]``, and minibatches with these.
        TypeError: where there is no ``V`` or ``make`` gives no dynamics; at tracing, for data of another kind.

    Assumptions: with minibatches of samples, ``loss`` is a mean over states.

    Cost: one pass at the next states beside the gradient.

    Reference: Sutton 1988; Tang & Munos 2023, 'Towards a better understanding of representation dynamics under
    TD-learning', for ``V = Phi w``.

    Example:
        >>> from dynamics.evolve import gradient_descent, simulate
        >>> from dynamics.losses import half_mse
        >>> x, P = jnp.eye(3), jnp.roll(jnp.eye(3), 1, 1)  # a table of values; to the next of three states
        >>> data = Transitions(x, jnp.array([[1.0], [0.0], [0.0]]), x, P)
        >>> run = td(Objective(lambda v, x: x @ v, half_mse), 0.5, lambda L: gradient_descent(L, 1.0))
        >>> state, _ = simulate(run, jnp.zeros((3, 1)), data, steps=100)
        >>> [round(float(v), 3) for v in state.params[:, 0]]
        [1.143, 0.286, 0.571]
    """
    check_objective(objective)
    check_numbers(many=True, discount=(discount, PROBABILITY))
    values = objective.f("td")

    def error(params, batch) -> Array:
        if isinstance(batch, Batch):
            return objective.loss(values(params, batch.x), batch.y)
        if not isinstance(batch, Transitions):
            raise TypeError(f"data: got {type(batch).__name__}; allowed for td: Transitions, or a Batch that is read")
        now, ahead = values(params, batch.x), values(params, batch.next_x)
        if batch.expected is not None:
            expected, shape = jnp.asarray(batch.expected), (now.shape[0], ahead.shape[0])
            if expected.shape != shape:
                raise ValueError(f"expected: got shape {expected.shape}; allowed: {shape}, of states and next ones")
            ahead = jnp.tensordot(expected, ahead, 1)
        reward = jnp.asarray(batch.reward)
        if reward.shape != now.shape:
            raise ValueError(f"reward: got shape {reward.shape}; allowed: that of the values, {now.shape}")
        if ahead.shape != now.shape:
            raise ValueError(f"next_x: got values {ahead.shape} at it; allowed: those at x, {now.shape}")
        return scalar(objective.loss(now, jax.lax.stop_gradient(reward + discount * ahead)))

    made = make(Objective.of(error, objective.penalty))
    check_dynamics(made)
    return made


@factory("fresh_batches(dynamics, lambda key, batch: ...)")
def fresh_batches(dynamics: Dynamics, draw: Callable[[Array, Any], Any]) -> Dynamics:
    """Every step sees data of its own, ``draw(key, batch)``: online learning, fresh noise, augmentation.

    Args:
        dynamics: what moves; one that takes the full batch it is given.
        draw: ``(key, training data of the run) -> data of the step``, pure, of one shape.

    Returns:
        A ``Dynamics``; what is read along its run is read on the run's own data. Its path is no flow's.

    Raises:
        TypeError: when ``dynamics`` is none, or ``draw`` no function.

    Example:
        >>> from dynamics.evolve import gradient_descent, simulate
        >>> from dynamics.losses import half_mse
        >>> def draw(key, w):  # fresh inputs of the teacher w
        ...     x = jax.random.normal(key, (32, 2))
        ...     return Batch(x, x @ w)
        >>> run = fresh_batches(gradient_descent(Objective(lambda w, x: x @ w, half_mse), 0.2), draw)
        >>> state, _ = simulate(run, jnp.zeros((2, 1)), jnp.array([[1.0], [-2.0]]), steps=200)
        >>> [round(float(v), 3) for v in state.params[:, 0]]
        [1.0, -2.0]
    """
    check_dynamics(dynamics)
    if not callable(draw):
        raise TypeError(f"draw: got {type(draw).__name__}; allowed: a function (key, batch) -> data")

    def step(key, state, data):
        own, key = jax.random.split(key)
        return dynamics.step(key, state, draw(own, training_part(data)))

    return dynamics._replace(step=step, order=None)
