"""Self-distillation with a fixed kernel: students of ridge regression, in closed form."""

from __future__ import annotations

import operator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, Real

from dynamics.theory.predict.layout import Axes, broadcasting
from dynamics.theory.predict.problem import problem_of
from dynamics.types import Array, ArrayLike


@broadcasting
def self_distillation(
    k_train_train,
    y_train,
    diag_reg: ArrayLike,
    diag_reg_absolute_scale: bool = False,
    trace_axes: Axes = (-1,),
):
    """Kernel ridge regression taught by itself: the student fits ``(1 - xi) y + xi f_teacher`` with the same ridge.

        f_g = K (K + lam)^-1 [(1 - xi) y + xi f_(g-1)],   f_0 = y:
        f_1 = ridge,   f_2 = ridge + xi lam d ridge / d lam,   f_inf = (1 - xi) K ((1 - xi) K + lam)^-1 y

    The teacher f_1 is ridge regression, the student f_2 the teacher and xi times its derivative by the logarithm of the
    ridge; endless distillation is ridge regression with ``lam / (1 - xi)``. With an NTK these are outputs of
    infinitely wide networks, trained from zero to convergence with the penalty ``lam |theta - theta_0|^2 / (2 |y|)``.

    Args:
        k_train_train, y_train, diag_reg_absolute_scale, trace_axes: as in ``gradient_descent_mse``.
        diag_reg: the ridge ``lam``, in units of the mean of the kernel's diagonal unless ``diag_reg_absolute_scale``.

    Returns:
        ``predict_fn(xi=1., generation=2, k_test_train=None)``: outputs of a generation (1 the teacher, 2 its student,
        ..., None the limit, NaN where there is none) on the test points, or on the training points; the shape of
        ``xi``, weights of the teacher's outputs of any sign, leads. ``optimal_mixing`` finds the best xi.

    Raises:
        ValueError: for shapes that do not fit, a negative ridge, a generation below 1.

    Cost: one ``eigh`` of the kernel, once; a sum over its eigenvectors a prediction. Differentiable
    where no eigenvalue repeats.

    Reference: Mobahi, Farajtabar & Bartlett 2020 (repeated, xi = 1); Dang, Patil & Rinaldo 2026 (any xi).

    >>> import jax.numpy as jnp
    >>> predict_fn = self_distillation(jnp.eye(2), jnp.ones((2, 1)), 1.0)
    >>> [predict_fn(generation=g)[0, 0].item() for g in (1, 2, 3)]
    [0.5, 0.25, 0.125]
    """
    problem = problem_of(k_train_train, y_train, 1.0, diag_reg, diag_reg_absolute_scale, trace_axes)
    n, size = len(problem.k), problem.y.size
    scale = 1.0 if diag_reg_absolute_scale else (jnp.trace(problem.k) / n) / (1 + diag_reg)
    ridge = diag_reg * scale

    def predict_fn(xi: ArrayLike = 1.0, generation: Any = 2, k_test_train=None) -> Any:
        xi = jnp.asarray(xi, problem.k.dtype)
        rates = problem.spectrum().rates * size  # of K + lam; 0 where it is so to rounding
        inverse = jnp.where(rates > 0, 1 / jnp.where(rates > 0, rates, 1), 0)
        learned = jnp.clip(1 - ridge * inverse, 0, 1) * (rates > 0)
        target = _taught(xi.reshape(-1, 1), learned, generation)
        if k_test_train is None:
            return problem.moved(problem.start(0.0, None, None), learned * target, inverse, xi.shape)
        return problem.moved(problem.start(None, 0.0, k_test_train), learned, size * inverse * target, xi.shape)

    return predict_fn


def _taught(xi: Float[Array, "T 1"], s: Float[Array, " P"], generation: Any) -> Float[Array, "T P"]:
    """The share of ``y`` in each mode of a generation's targets, ``1 - xi (1 - s) sum_(j < g-1) (xi s)^j``."""
    if generation is None:
        apart = 1 - xi * s
        return jnp.where(jnp.abs(xi * s) < 1, (1 - xi) / jnp.where(apart > 0, apart, 1), jnp.nan)
    try:
        count = operator.index(generation) - 1
    except TypeError:
        count = -1
    if count < 0:
        raise ValueError(f"generation: got {generation!r}; allowed: None or an integer >= 1")
    total = jax.lax.fori_loop(0, count, lambda _, total: 1 + xi * s * total, jnp.zeros_like(xi * s))
    return 1 - xi * (1 - s) * total


def optimal_mixing(
    teacher: Real[ArrayLike, "*s"], student: Real[ArrayLike, "*t"], target: Real[ArrayLike, "*u"]
) -> Float[Array, ""]:
    """The weight xi of the teacher at which its student comes closest to the target.

        xi* = <target - teacher, student - teacher> / |student - teacher|^2

    For kernel ridge regression of mean squared error R this is ``-lam R'(lam) / (2 mean (student - teacher)^2)``:
    positive where the ridge is too small, negative (away from the teacher) where it is too large, 0 at the best ridge.

    Args:
        teacher, student: outputs on the same points; the student's with ``xi = 1``, taught by the teacher alone.
        target: what is to be met there: the true function, or held-out labels.

    Returns:
        The weight; NaN where teacher and student agree.

    Raises:
        ValueError: for different shapes.

    Reference: Dang, Patil & Rinaldo 2026, 'Optimal unconstrained self-distillation in ridge regression'.

    >>> import jax.numpy as jnp
    >>> optimal_mixing(jnp.array([0.5]), jnp.array([0.25]), jnp.array([1.0])).item()
    -2.0
    """
    values = [jnp.asarray(value) for value in (teacher, student, target)]
    if len({value.shape for value in values}) > 1:
        shapes = [value.shape for value in values]
        raise ValueError(f"target: got teacher, student and target of shapes {shapes}; allowed: the same shape")
    kind = jnp.result_type(jnp.float32, *values)
    teacher, student, target = (value.astype(kind) for value in values)
    slope = student - teacher
    return jnp.sum((target - teacher) * slope) / jnp.sum(slope**2)
