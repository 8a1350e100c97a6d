"""Gradient flow on the squared loss in closed form, and the largest stable step."""

from __future__ import annotations

import jax.numpy as jnp

from dynamics.theory.predict.layout import Axes, broadcasting, matrix
from dynamics.theory.predict.problem import problem_of
from dynamics.types import ArrayLike


@broadcasting
def gradient_descent_mse(
    k_train_train,
    y_train,
    learning_rate: ArrayLike = 1.0,
    diag_reg: ArrayLike = 0.0,
    diag_reg_absolute_scale: bool = False,
    trace_axes: Axes = (-1,),
):
    """Outputs under gradient flow on the squared loss: ``f_t = y + exp(-eta Theta t / |y|)(f_0 - y)``.

    Args:
        k_train_train: ``[n, n]`` kernel, or ``[n, n, c, c, ...]`` with two axes for each axis of ``y_train`` that is
            not in ``trace_axes``.
        y_train: ``[n, c]`` targets.
        learning_rate: step size ``eta``; time ``t`` counts steps.
        diag_reg: added to the kernel's diagonal, times its mean unless ``diag_reg_absolute_scale``.
        trace_axes: axes of ``y_train`` over which the kernel is a multiple of the identity.

    Returns:
        ``predict_fn(t=None, fx_train_0=0., fx_test_0=None, k_test_train=None)``: outputs on the training set, on the
        test set (``fx_train_0=None``) or both, at time ``t`` (``[...]``; None for infinity), its shape leading.
        Cost: ``O(n^3)`` once.

    Reference: Lee et al. 2019, eqs. 8-10.

    >>> import jax.numpy as jnp
    >>> predict_fn = gradient_descent_mse(jnp.eye(2), jnp.ones((2, 1)))
    >>> predict_fn(t=2.0).shape, bool(jnp.allclose(predict_fn(t=2.0), 1 - jnp.exp(-1.0)))
    ((2, 1), True)
    """
    problem = problem_of(k_train_train, y_train, learning_rate, diag_reg, diag_reg_absolute_scale, trace_axes)

    def predict_fn(t=None, fx_train_0=0.0, fx_test_0=None, k_test_train=None):
        start = problem.start(fx_train_0, fx_test_0, k_test_train)
        if t is None:
            return problem.converged(start)
        t, modes = problem.rate * jnp.asarray(t, problem.k.dtype), problem.spectrum()
        return problem.moved(start, modes.moved(t.reshape(-1)), modes.work(t.reshape(-1)), t.shape)

    return predict_fn


@broadcasting
def max_learning_rate(ntk_train_train, y_train_size: int | None = None, momentum=0.0, eps: float = 1e-12):
    """The largest stable step of gradient descent on the squared loss: ``2 (1 + m) |y| / (lambda_max + eps)``.

    Args:
        ntk_train_train: ``[n, n]`` kernel. y_train_size: entries of ``y_train``, ``n`` when None.
        momentum: heavy-ball coefficient ``m``. eps: guards a kernel of zeros.

    Reference: Lee et al. 2019, section 2.2; Goh 2017 for momentum.
    """
    k = jnp.asarray(ntk_train_train)
    if k.ndim < 2 or k.ndim % 2 or k.shape[::2] != k.shape[1::2]:
        raise ValueError(f"ntk_train_train: got shape {k.shape}; allowed: [n, n], with two axes for each output axis")
    k = matrix(k)
    size = k.shape[0] if y_train_size is None else y_train_size
    return 2 * (1 + momentum) * size / (jnp.linalg.eigvalsh(k)[-1] + eps)
