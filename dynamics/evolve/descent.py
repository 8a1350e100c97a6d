"""Discrete-time training: any optax optimiser on any model, full batch or minibatch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PRNGKeyArray
from optax.contrib import split_real_and_imaginary

from dynamics.arguments import BELOW_ONE, FINITE, NOT_NEGATIVE, check_counts, check_numbers
from dynamics.evolve.checks import check_learning_rate, check_optimizer, check_params
from dynamics.evolve.td import Transitions
from dynamics.evolve.views import training_part
from dynamics.preconditioners import adam_preconditioner, check_preconditioner, preconditioner_at, preconditioner_of
from dynamics.program import real_view
from dynamics.types import (
    Array,
    Batch,
    Data,
    Dynamics,
    Objective,
    Params,
    PyTree,
    StatefulModel,
    check_objective,
    factory,
    scalar,
)


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


@factory("descent(L, optimizer)")
def descent(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    dt: Any = 1.0,
    batch_size: int | None = None,
    replace: bool = False,
    preconditioner: Callable[[PyTree], PyTree] | None = None,
) -> Dynamics:
    """Training by ``optimizer``: ``theta <- theta + u(grad L(theta))``.

    A complex leaf is two real ones: its gradient is ``dL/dRe + i dL/dIm``, and the optimiser sees the pair
    (``opt_state`` is then that of ``optax.contrib.split_real_and_imaginary``; its P holds ``P_re + i P_im``).

    Args:
        objective: L. With a ``StatefulModel`` in it, this dynamics' ``init`` takes ``(params, model_state)``, which the
            model's ``init`` gives, steps are those of its training mode, with dropout keys from the step's key, and
            what is read along the way is L at the state of that moment.
        optimizer: any optax transformation; one with extra arguments is given ``batch=``, the step's.
        dt: time per step; give the learning rate where time is to be comparable with gradient flow.
        batch_size: samples a step, drawn anew each step; None for the full batch.
        replace: draw the minibatch with replacement.
        preconditioner: ``opt_state -> P``, what ``preconditioned_sharpness`` reads, or 1.0 for none; by default that of
            ``stability.preconditioner_of``, found when it is first asked for. What is given must agree with the
            optimiser's updates (ValueError).

    Returns:
        A ``Dynamics`` on ``DescentState``; ``data`` is a ``Batch`` or ``Data`` (whose ``train`` is used).

    Raises:
        ValueError: when ``batch_size`` is not an integer >= 1, or, at tracing, exceeds the sample count without
            replacement, or a loss finds ``f`` and ``y`` of different shapes.
        TypeError: when ``objective`` is none, its ``apply`` a module rather than its function, its loss no function
            or no scalar, ``optimizer`` no transformation, ``params`` not floating, or a state not from ``init``.

    Cost: one gradient on the batch a step; drawing without replacement costs ``batch_size^2/2`` comparisons, or
    sorts n numbers where that is less.
    """
    run = descent_by(optax.apply_updates, objective, optimizer, dt=dt, batch_size=batch_size, replace=replace)

    def known(params: Params) -> Callable[[PyTree], PyTree]:
        if preconditioner is None:
            return preconditioner_of(optimizer, params)
        check_preconditioner(optimizer, preconditioner, params)
        return preconditioner

    return run._replace(preconditioner=preconditioner_at(known), optimizer=optimizer)


def descent_by(
    move: Callable[[Params, PyTree], Params],
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    dt: Any,
    batch_size: int | None = None,
    replace: bool = False,
) -> Dynamics:
    """``descent`` where ``move(params, update)`` gives the new parameters; it knows no preconditioner."""
    check_objective(objective)
    check_optimizer(optimizer)
    if not callable(dt):
        check_numbers(many=True, dt=(dt, FINITE))
    if batch_size is not None:
        check_counts(batch_size=batch_size)
    model = objective.apply if isinstance(objective.apply, StatefulModel) else None

    def init(params) -> DescentState:
        params, model_state = (params, ()) if model is None else params
        check_params(params)
        dtype = jnp.finfo(jnp.result_type(*jax.tree.leaves(params))).dtype
        step, loss = jnp.zeros((), jnp.int32), jnp.array(jnp.inf, dtype)
        return DescentState(params, real_view_optimizer(optimizer, params).init(params), model_state, step, loss)

    def loss_of(params, model_state, batch, key):
        if model is None:
            return objective(params, batch), model_state
        f, model_state = model.apply(params, model_state, batch.x, key)
        return objective.penalised(params, scalar(objective.loss(f, batch.y))), model_state

    def step(key, state: DescentState, data) -> DescentState:
        _check_state(state)
        batch_key, model_key = jax.random.split(key)
        batch = training_part(data) if objective.apply is None else training_batch(data)
        batch = minibatch(batch_key, batch, batch_size, replace=replace)
        (value, model_state), slope = jax.value_and_grad(loss_of, has_aux=True)(
            state.params, state.model_state, batch, model_key
        )
        mover = optax.with_extra_args_support(real_view_optimizer(optimizer, state.params))
        slope = real_view.gradient(slope)
        update, opt_state = mover.update(slope, state.opt_state, state.params, batch=batch)
        params = move(state.params, update)
        return DescentState(params, opt_state, model_state, state.step + 1, value.astype(state.loss.dtype))

    def params(state: DescentState):
        _check_state(state)
        return state.params

    at = None if model is None else (lambda state: objective.at(state.model_state))
    return Dynamics(init, step, params, dt, objective, at)


_plain = preconditioner_at(lambda params: lambda opt_state: 1.0)


def real_view_optimizer(optimizer: Any, params: Params) -> optax.GradientTransformation:
    """The optimiser itself, or for complex parameters the same on their real and imaginary parts, as two leaves."""
    if any(map(real_view.is_complex, jax.tree.leaves(params))):
        return split_real_and_imaginary(optimizer)
    return optimizer


def _check_state(state: Any) -> None:
    if not hasattr(state, "opt_state"):
        got = "an array" if isinstance(state, jax.Array) else type(state).__name__
        raise TypeError(f"state: got {got}; allowed: what dynamics.init(params) returns")


@factory("gradient_descent(L, learning_rate)")
def gradient_descent(
    objective: Objective,
    learning_rate: Any,
    *,
    momentum: Any = None,
    batch_size: int | None = None,
) -> Dynamics:
    """Gradient descent or heavy ball: ``theta <- theta - eta grad L``. See ``descent``.

    ``time`` is ``eta * step``; with an optax schedule for eta, ``step``.
    """
    check_learning_rate(learning_rate)
    if momentum is not None:
        check_numbers(many=True, momentum=(momentum, BELOW_ONE))
    optimizer = optax.sgd(learning_rate, momentum=momentum)
    run = descent(objective, optimizer, dt=time_step(learning_rate), batch_size=batch_size)
    order = None if callable(learning_rate) or batch_size is not None else 1
    return run._replace(preconditioner=_plain, order=order)


@factory("adam(L, learning_rate)")
def adam(
    objective: Objective,
    learning_rate: Any,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    batch_size: int | None = None,
) -> Dynamics:
    """``descent`` by ``optax.adam``, whose preconditioner is known (``stability.adam_preconditioner``)."""
    check_learning_rate(learning_rate)
    check_numbers(many=True, b1=(b1, BELOW_ONE), b2=(b2, BELOW_ONE), eps=(eps, NOT_NEGATIVE))
    known = partial(adam_preconditioner, b1=b1, b2=b2, eps=eps)
    optimizer = optax.adam(learning_rate, b1, b2, eps)
    run = descent(objective, optimizer, dt=time_step(learning_rate), batch_size=batch_size)
    return run._replace(preconditioner=preconditioner_at(lambda params: known))


def time_step(learning_rate: Any) -> Any:
    return 1.0 if callable(learning_rate) else learning_rate


def training_batch(data: Batch | Data) -> Batch:
    """The batch that moves the parameters: ``data.train`` of ``Data``, or the ``Batch`` itself.

    Raises:
        TypeError: when there is no ``x`` in it, or ``x`` is a list.
    """
    batch = training_part(data)
    if not hasattr(batch, "x"):
        got = "an array" if isinstance(batch, jax.Array) else type(batch).__name__
        raise TypeError(f"data: got {got}; allowed: Batch(x, y), or Data(train, test) of two of them")
    if isinstance(batch.x, list):
        raise TypeError("data.x: got a list; allowed: an array [n, ...], e.g. jnp.array(x)")
    return batch


def minibatch(key: PRNGKeyArray, batch: PyTree, size: int | None, *, replace: bool = False) -> PyTree:
    """``size`` random samples of ``batch`` (all of it for None), drawn along the sample axis.

    Raises:
        ValueError: when ``size`` exceeds the sample count and ``replace`` is False, or leaves are not of one count.
    """
    if size is None:
        return batch
    if isinstance(batch, Transitions) and batch.expected is not None:  # columns of it are all of next_x
        raise ValueError(f"batch_size: got {size}, of Transitions with expected; allowed: None, or expected=None")
    n = jax.tree.leaves(batch)[0].shape[0]
    if any(jnp.shape(leaf)[:1] != (n,) for leaf in jax.tree.leaves(batch)):
        raise ValueError(f"data: got {[jnp.shape(leaf) for leaf in jax.tree.leaves(batch)]}; allowed: {n} samples each")
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
