"""Discrete-time training: any optax optimiser on any model, full batch or minibatch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dynamics.evolve.checks import check_learning_rate, check_optimizer, check_params, scalar
from dynamics.types import Array, Batch, Data, Dynamics, Params, PyTree, StatefulModel, check_apply


class DescentState(NamedTuple):
    """State of ``descent``.

    Attributes:
        params: the parameters.
        opt_state: optax state (the preconditioner is read from here).
        model_state: batch statistics and the like; ``()`` for a pure model.
        step: int32, updates done to this lane (stands still once frozen).
        loss: loss on the last update's batch, before that update; inf at the start.
    """

    params: Params
    opt_state: PyTree
    model_state: PyTree
    step: Array
    loss: Array


def descent(
    apply: Callable[..., Array] | StatefulModel,
    loss: Callable[[Array, Array], Array],
    optimizer: optax.GradientTransformation,
    *,
    dt: Any = 1.0,
    batch_size: int | None = None,
    replace: bool = False,
) -> Dynamics:
    """Training by ``optimizer``: ``theta <- theta + u(grad L(theta))``.

    Args:
        apply: ``(params, x) -> f``, or a ``StatefulModel`` (its ``init`` then gives ``(params, model_state)``, which is
            what this dynamics' ``init`` takes); dropout keys come from the step's key.
        loss: ``(f [n, c], y [n, c]) -> scalar``.
        optimizer: any optax transformation.
        dt: time per step; give the learning rate where time is to be comparable with gradient flow.
        batch_size: samples a step, drawn anew each step; None for the full batch.
        replace: draw the minibatch with replacement.

    Returns:
        A ``Dynamics`` on ``DescentState``; ``data`` is a ``Batch`` or ``Data`` (whose ``train`` is used).

    Raises:
        ValueError: when ``batch_size`` is not an integer >= 1, or, at tracing, exceeds the sample count without
            replacement, or a loss finds ``f`` and ``y`` of different shapes.
        TypeError: when ``apply`` is a model or module rather than its function, ``loss`` is no function or gives no
            scalar, ``optimizer`` is no transformation, ``params`` are not floating, or a state did not come from
            ``init``.

    Cost: one gradient on the batch a step; drawing without replacement costs ``batch_size^2/2`` comparisons, or
    sorts n numbers where that is less.
    """
    if not isinstance(apply, StatefulModel):
        check_apply(apply)
    if not callable(loss):
        raise TypeError(f"loss: got {loss!r}; allowed: a function (f, y) -> scalar, e.g. dynamics.losses.half_mse")
    check_optimizer(optimizer)
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
        raise ValueError(f"batch_size: got {batch_size!r}; allowed: None or an integer >= 1")
    stateful = isinstance(apply, StatefulModel)

    def init(params) -> DescentState:
        params, model_state = params if stateful else (params, ())
        check_params(params)
        dtype = jnp.result_type(*jax.tree.leaves(params))
        step, loss = jnp.zeros((), jnp.int32), jnp.array(jnp.inf, dtype)
        return DescentState(params, optimizer.init(params), model_state, step, loss)

    def objective(params, model_state, batch: Batch, key):
        if isinstance(apply, StatefulModel):
            f, model_state = apply.apply(params, model_state, batch.x, key)
            return scalar(loss(f, batch.y)), model_state
        return scalar(loss(apply(params, batch.x), batch.y)), model_state

    def step(key, state: DescentState, data) -> DescentState:
        _check_state(state)
        batch_key, model_key = jax.random.split(key)
        batch = minibatch(batch_key, training_batch(data), batch_size, replace=replace)
        (value, model_state), gradient = jax.value_and_grad(objective, has_aux=True)(
            state.params, state.model_state, batch, model_key
        )
        update, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, update)
        return DescentState(params, opt_state, model_state, state.step + 1, value.astype(state.loss.dtype))

    def params(state: DescentState):
        _check_state(state)
        return state.params

    return Dynamics(init, step, params, dt)


def _check_state(state: Any) -> None:
    if not hasattr(state, "opt_state"):
        got = "an array" if isinstance(state, jax.Array) else type(state).__name__
        raise TypeError(f"state: got {got}; allowed: what dynamics.init(params) returns")


def gradient_descent(
    apply: Callable[..., Array] | StatefulModel,
    loss: Callable[[Array, Array], Array],
    learning_rate: Any,
    *,
    momentum: Any = None,
    batch_size: int | None = None,
) -> Dynamics:
    """Gradient descent or heavy ball: ``theta <- theta - eta grad L``; ``time`` is ``eta * step``. See ``descent``."""
    check_learning_rate(learning_rate)
    optimizer = optax.sgd(learning_rate, momentum=momentum)
    return descent(apply, loss, optimizer, dt=learning_rate, batch_size=batch_size)


def training_batch(data: Batch | Data) -> Batch:
    """The batch that moves the parameters: ``data.train`` of ``Data``, or the ``Batch`` itself.

    Raises:
        TypeError: when there is no ``x`` in it, or ``x`` is a list.
    """
    batch = data.train if isinstance(data, Data) else data
    if not hasattr(batch, "x"):
        got = "an array" if isinstance(batch, jax.Array) else type(batch).__name__
        raise TypeError(f"data: got {got}; allowed: Batch(x, y), or Data(train, test) of two of them")
    if isinstance(batch.x, list):
        raise TypeError("data.x: got a list; allowed: an array [n, ...], e.g. jnp.array(x)")
    return batch


def minibatch(key: Array, batch: Batch, size: int | None, *, replace: bool = False) -> Batch:
    """``size`` random samples of ``batch`` (all of it for None), drawn along the sample axis.

    Raises:
        ValueError: when ``size`` exceeds the sample count and ``replace`` is False.
    """
    if size is None:
        return batch
    n = jax.tree.leaves(batch)[0].shape[0]
    if size > n and not replace:
        raise ValueError(f"batch_size: got {size}; allowed: at most the {n} samples, unless drawn with replacement")
    index = jax.random.randint(key, (size,), 0, n) if replace else random_subset(key, n, size)
    return jax.tree.map(lambda leaf: leaf[index], batch)


def random_subset(key: Array, n: int, size: int) -> Array:
    """``size`` different indices below ``n``, every subset equally likely (their order is not uniform); int ``[size]``.

    A small subset is drawn one by one, a repeated draw replaced by the newest index that may appear: ``size^2/2``
    comparisons. A large one is the head of a permutation, which sorts n numbers.

    Reference: Bentley & Floyd 1987, 'A sample of brilliance', algorithm F2.
    """
    if size**2 > 4 * n:
        return jax.random.permutation(key, n)[:size]
    newest = jnp.arange(n - size, n)
    draws = jax.random.randint(key, (size,), 0, newest + 1)

    def add(i, chosen):
        repeated = jnp.any(chosen == draws[i])
        return chosen.at[i].set(jnp.where(repeated, newest[i], draws[i]))

    return jax.lax.fori_loop(0, size, add, jnp.full(size, -1, draws.dtype))
