"""Gradient flow on any loss, with or without momentum, by an adaptive ODE solver."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import ode

from dynamics.arguments import BELOW_ONE, check_numbers
from dynamics.theory.predict.layout import (
    Axes,
    Layout,
    across,
    broadcasting,
    check_rate,
    check_start,
    layout_of,
    matrix,
    outputs,
    shape_on_tests,
    start_of,
)
from dynamics.types import Array, ArrayLike


class ODEState(NamedTuple):
    """Outputs on the training and test set, and their velocities when there is momentum."""

    fx_train: Any = None
    fx_test: Any = None
    qx_train: Any = None
    qx_test: Any = None


@broadcasting
def gradient_descent(
    loss: Callable[[Array, Array], Any],
    k_train_train,
    y_train,
    learning_rate: ArrayLike = 1.0,
    momentum: ArrayLike | None = None,
    trace_axes: Axes = (-1,),
):
    """Outputs under gradient flow on any loss, with or without momentum, by an adaptive ODE solver.

    ``df/dt = -eta Theta dL/df``; with momentum ``m`` and ``tau = sqrt(eta) t``,
    ``f'' = -(1 - m) / sqrt(eta) f' - Theta dL/df`` in ``tau``.

    Args:
        loss: ``(fx, y) -> scalar``.
        k_train_train, y_train, trace_axes: as in ``gradient_descent_mse``.
        learning_rate: step size. momentum: heavy-ball coefficient in [0, 1), or None.

    Returns:
        ``predict_fn(t=None, fx_train_or_state_0=0., fx_test_0=None, k_test_train=None)``; ``t`` must increase.
        An ``ODEState`` in gives an ``ODEState`` out. ``t=None`` integrates until nothing moves.

    Reference: Lee et al. 2019, eqs. 4 and S24.
    """
    k_train_train, y_train = jnp.asarray(k_train_train), jnp.asarray(y_train)
    layout = layout_of(y_train, trace_axes, k_train_train)
    check_momentum(momentum)
    check_rate(learning_rate)
    found = jax.eval_shape(loss, y_train.astype(k_train_train.dtype), y_train)
    if getattr(found, "shape", ()) != ():
        raise ValueError(f"loss: got a value of shape {found.shape}; allowed: a scalar")
    rate = learning_rate if momentum is None else learning_rate**0.5
    friction = None if momentum is None else (1.0 - momentum) / rate
    k, dtype = matrix(k_train_train), k_train_train.dtype

    def predict_fn(t=None, fx_train_or_state_0=0.0, fx_test_0=None, k_test_train=None):
        first = fx_train_or_state_0
        k_test, test_positions = (None, ()) if k_test_train is None else across(k_test_train, k_train_train)
        shapes = _Shapes(layout.y_shape, None if k_test is None else shape_on_tests(layout, test_positions))
        state = _start(first, fx_test_0, k_test_train, shapes, friction is None, dtype)
        velocity = _velocity(loss, layout, k_train_train.shape[::2], test_positions, friction)
        arguments = (k, y_train, k_test)
        if t is None:
            final = _until_rest(velocity, state, arguments)
        else:
            t = jnp.asarray(t, dtype) * rate
            times = t.reshape(-1)
            before = jnp.where(times[:1] <= 0, times[:1] - 1e-24, 0.0)
            path = ode.odeint(velocity, state, jnp.concatenate([before, times]), *arguments)
            final = jax.tree.map(lambda x: x[1:].reshape(t.shape + x.shape[1:]), path)
        if isinstance(first, ODEState):
            return final
        return outputs(None if first is None else final.fx_train, final.fx_test)

    return predict_fn


def check_momentum(momentum: ArrayLike | None) -> None:
    if momentum is not None:
        check_numbers(many=True, momentum=(momentum, BELOW_ONE))


class _Shapes(NamedTuple):
    """Shapes of the outputs on the training and (None without one) the test set."""

    train: tuple[int, ...]
    test: Any


def _start(first, fx_test_0, k_test_train, shapes: _Shapes, first_order: bool, dtype: Any) -> ODEState:
    """The full state at time 0 from what the caller gave."""
    if isinstance(first, ODEState):
        if fx_test_0 is not None:
            raise ValueError("fx_test_0: got one beside a state that holds fx_test; allowed: None")
        state = first
    else:
        state = ODEState(first, fx_test_0)
    check_start(state.fx_train, state.fx_test, k_test_train)
    if first_order and (state.qx_train is not None or state.qx_test is not None):
        raise ValueError("qx_train, qx_test: got velocities without momentum; allowed: None")

    def filled(name, value, shape, default):
        value = default if value is None else value
        return None if value is None else start_of(name, value, shape, dtype)

    still = None if first_order else 0.0
    return ODEState(
        filled("fx_train_0", state.fx_train, shapes.train, 0.0),
        filled("fx_test_0", state.fx_test, shapes.test, None),
        filled("qx_train", state.qx_train, shapes.train, still),
        filled("qx_test", state.qx_test, shapes.test, None if state.fx_test is None else still),
    )


def _velocity(loss: Callable, layout: Layout, positions, test_positions, friction) -> Callable:
    """``d state / d tau``: of first order where ``friction`` is None, of second order else."""

    def force(fx, k, y, k_test):
        slope = layout.flatten(jax.grad(loss)(fx, y))
        train = -layout.restore(k @ slope, positions)
        return train, None if k_test is None else -layout.restore(k_test @ slope, test_positions)

    def velocity(s: ODEState, _, *arguments):
        train, test = force(s.fx_train, *arguments)
        test = None if s.fx_test is None else test
        if friction is None:
            return ODEState(train, test)
        damped = None if test is None else test - friction * s.qx_test
        return ODEState(s.qx_train, s.qx_test, train - friction * s.qx_train, damped)

    return velocity


def _until_rest(velocity, state, arguments, max_doublings: int = 40):
    """The limit of an ODE: intervals double until one of them moves no output by more than rounding's square root."""
    dtype = jax.tree.leaves(state)[0].dtype
    tolerance = jnp.finfo(dtype).eps ** 0.5

    def advance(carry):
        state, length, count, _ = carry
        times = jnp.stack([jnp.zeros_like(length), length])
        new = jax.tree.map(lambda x: x[-1], ode.odeint(velocity, state, times, *arguments))
        moved = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)) / (1 + jnp.max(jnp.abs(b))), new, state)
        return new, 2 * length, count + 1, jnp.max(jnp.stack(jax.tree.leaves(moved)))

    def moving(carry):
        return (carry[3] > tolerance) & (carry[2] < max_doublings)

    first = (state, jnp.ones((), dtype), jnp.zeros((), int), jnp.full((), jnp.inf, dtype))
    return jax.lax.while_loop(moving, advance, first)[0]
