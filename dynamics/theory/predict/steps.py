"""Gradient descent and heavy ball step by step: what the flow leaves out."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Float, Int

from dynamics.theory.predict.any_loss import check_momentum
from dynamics.theory.predict.layout import Axes, broadcasting
from dynamics.theory.predict.problem import problem_of
from dynamics.types import Array, ArrayLike


@broadcasting
def gradient_descent_mse_steps(
    k_train_train,
    y_train,
    learning_rate: ArrayLike = 1.0,
    momentum: ArrayLike | None = None,
    diag_reg: ArrayLike = 0.0,
    diag_reg_absolute_scale: bool = False,
    trace_axes: Axes = (-1,),
):
    """Outputs after ``t`` steps of gradient descent on ``|f - y|^2 / (2 |y|)``, exactly, with heavy-ball momentum.

        theta_{t+1} = theta_t + v_{t+1},  v_{t+1} = m v_t - eta dL/dtheta,  v_0 = 0

    In an eigenmode of ``Theta / |y|`` with eigenvalue lambda the error is ``(1 - lambda u_t)`` times its start, where
    ``u_{t+1} = u_t + w_{t+1}``, ``w_{t+1} = m w_t + eta (1 - lambda u_t)``; without momentum
    ``lambda u_t = 1 - (1 - eta lambda)^t``. Unstable learning rates diverge as training does.

    Args:
        k_train_train, y_train, diag_reg, diag_reg_absolute_scale, trace_axes: as in ``gradient_descent_mse``.
        learning_rate: step size ``eta``. momentum: heavy-ball coefficient ``m`` in [0, 1), or None for 0.

    Returns:
        ``predict_fn(t, fx_train_0=0., fx_test_0=None, k_test_train=None)`` as ``gradient_descent_mse`` gives, at the
        step counts ``t [...]``, whole numbers below 2^31. As ``eta -> 0`` at fixed ``eta t`` (``eta t / (1 - m)``) it
        tends to ``gradient_descent_mse``. Differentiable. Cost: ``O(n^3)`` once, ``O(n log t)`` a step count.

    Raises:
        ValueError: for shapes that do not fit, ``momentum`` outside [0, 1), ``t`` negative or not whole.

    Reference: Lee et al. 2019, eqs. 8-10, discretised; Polyak 1964 for the heavy ball.

    >>> import jax.numpy as jnp
    >>> predict_fn = gradient_descent_mse_steps(jnp.eye(2), jnp.ones((2, 1)))
    >>> predict_fn(t=jnp.array([0, 1, 2]))[:, 0, 0].tolist()
    [0.0, 0.5, 0.75]
    """
    check_momentum(momentum)
    problem = problem_of(k_train_train, y_train, learning_rate, diag_reg, diag_reg_absolute_scale, trace_axes)

    def predict_fn(t, fx_train_0=0.0, fx_test_0=None, k_test_train=None):
        start, t = problem.start(fx_train_0, fx_test_0, k_test_train), step_counts(t)
        rates = problem.spectrum().rates
        gain = jnp.where(rates > 0, problem.rate * step_gain(problem.rate * rates, t.reshape(-1), momentum), 0)
        return problem.moved(start, rates * gain, gain, t.shape)

    return predict_fn


def step_counts(t) -> Int[Array, "*t"]:
    """``t`` as integers, after checking that it counts steps."""
    if isinstance(t, Tracer):
        return jnp.asarray(t).astype(jnp.int32)
    counts = np.asarray(t)
    if counts.dtype.kind not in "iuf" or np.any(counts < 0) or np.any(counts != np.round(counts)):
        raise ValueError(f"t: got {t}; allowed: whole numbers of steps >= 0")
    return jnp.asarray(counts.astype(np.int32))


def step_gain(rate: Float[Array, " P"], t: Int[Array, " T"], momentum: ArrayLike | None = None) -> Float[Array, "T P"]:
    """``u_t / eta`` of ``gradient_descent_mse_steps``: ``(1 - (1 - rate)^t) / rate`` without momentum.

    The recursion is an affine map of ``(u, w)``, raised to the power t by repeated squaring. What is squared is the
    map less the identity, so that slow modes (``rate t`` small) keep their digits.

    Args:
        rate: ``[P]``, ``eta lambda``. t: ``[T]`` integers. momentum: scalar or None.

    Returns:
        ``[T, P]``.
    """
    bits = 31 if isinstance(t, Tracer) else max(int(np.max(np.asarray(t), initial=0)).bit_length(), 1)
    return _gain(rate, t, jnp.asarray(0.0 if momentum is None else momentum, rate.dtype), bits)


@partial(jax.jit, static_argnames="bits")
def _gain(rate: Array, t: Array, momentum: Array, bits: int) -> Array:
    m = momentum * jnp.ones_like(rate)
    one, zero = jnp.ones_like(rate), jnp.zeros_like(rate)
    rows = [[-rate, m, one], [-rate, m - 1, one], [zero, zero, zero]]
    step = jnp.stack([jnp.stack(row, -1) for row in rows], -2)  # [P, 3, 3]

    def double(i, carry):
        total, power = carry
        further = total + power + total @ power
        total = jnp.where(((t >> i) & 1)[:, None, None, None] == 1, further, total)
        return total, 2 * power + power @ power

    start = (jnp.zeros((*t.shape, *step.shape), rate.dtype), step)
    return jax.lax.fori_loop(0, bits, double, start)[0][..., 0, 2]
