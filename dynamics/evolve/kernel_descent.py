"""Full-batch training that carries its own NTK: one forward and one backward pass a step serve both."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dynamics.empirical import empirical_ntk_and_vjp_fn, flat_kernel
from dynamics.evolve.descent import real_view_optimizer, training_batch
from dynamics.types import Array, Dynamics, Objective, Params, PyTree, check_objective, factory


class KernelDescentState(NamedTuple):
    """State of ``kernel_descent``; everything is taken at ``params``.

    Attributes:
        params: the parameters.
        opt_state: optax state.
        step: int32, updates done.
        loss: the training loss.
        outputs: f of the training inputs, ``[n, c]``.
        kernel: NTK of the training inputs, ``[n, n]`` or ``[n c, n c]``.
        gradient: of the loss, like ``params``.
    """

    params: Params
    opt_state: PyTree
    step: Array
    loss: Array
    outputs: Array
    kernel: Array
    gradient: PyTree


@factory("kernel_descent(L, optimizer)")
def kernel_descent(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    dt: Any = 1.0,
    outputs: str = "mean",
) -> Dynamics:
    """Full-batch training by ``optimizer``, as ``descent``, with the kernel of the training batch in its state.

    The kernel's data and cotangents are those that the gradient needs, so the kernel costs its Grams alone. Use it
    with ``observe.ntk_of_state`` where the kernel is read at nearly every step; ``descent`` with ``observe.ntk`` where
    it is read seldom.

    Args:
        objective: L with ``f [n, c]`` and no penalty.
        optimizer: any optax transformation.
        dt: time per step.
        outputs: 'mean': the mean over outputs of their kernels ``[n, n]``; 'full': ``[n c, n c]``, sample-major.

    Returns:
        A ``Dynamics`` on ``KernelDescentState`` whose ``init`` takes ``(params, data)``.

    Raises:
        ValueError: for ``outputs`` out of range; at tracing, for an ``apply`` that mixes the batch.

    Cost: one gradient and the Grams a step; where ``outputs`` are several and 'mean', also their cotangents.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from dynamics.losses import half_mse
        >>> from dynamics.types import Batch
        >>> run = kernel_descent(Objective(lambda w, x: x @ w, half_mse), optax.sgd(0.1), dt=0.1)
        >>> state = run.init((jnp.ones((2, 1)), Batch(jnp.eye(2), jnp.zeros((2, 1)))))
        >>> state.kernel.tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    check_objective(objective)
    apply, loss = objective.f("kernel_descent"), objective.loss
    if objective.penalty is not None:
        raise ValueError(
            "objective: got a penalty, whose gradient is no product with J; allowed: Objective(apply, loss)"
        )
    if outputs not in ("mean", "full"):
        raise ValueError(f"outputs: got {outputs!r}; allowed: 'mean' or 'full'")
    both_fn = empirical_ntk_and_vjp_fn(apply, (-1,) if outputs == "mean" else ())

    def at(params: Params, opt_state: PyTree, step: Array, data: Any) -> KernelDescentState:
        batch = training_batch(data)
        both = both_fn(batch.x, params)
        value, slope = jax.value_and_grad(loss)(both.outputs, batch.y)
        kernel = both.kernel if outputs == "mean" else flat_kernel(both.kernel)
        return KernelDescentState(params, opt_state, step, value, both.outputs, kernel, both.pull(slope))

    def init(start) -> KernelDescentState:
        params, data = start
        return at(params, real_view_optimizer(optimizer, params).init(params), jnp.zeros((), jnp.int32), data)

    def step(key: Array, state: KernelDescentState, data) -> KernelDescentState:
        mover = real_view_optimizer(optimizer, state.params)
        update, opt_state = mover.update(state.gradient, state.opt_state, state.params)
        return at(optax.apply_updates(state.params, update), opt_state, state.step + 1, data)

    return Dynamics(init, step, lambda state: state.params, dt, objective)
