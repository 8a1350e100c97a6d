"""Leave-one-out predictions of kernel regression, all of them from one factorisation."""

from __future__ import annotations

import jax.numpy as jnp

from dynamics.theory.predict.layout import Axes, broadcasting, check_reg, layout_of, matrix, regularised
from dynamics.theory.predict.modes import solver
from dynamics.types import ArrayLike


@broadcasting
def leave_one_out(
    k_train_train,
    y_train,
    diag_reg: ArrayLike = 0.0,
    diag_reg_absolute_scale: bool = False,
    trace_axes: Axes = (-1,),
):
    """What kernel regression says of each sample when trained on all the others: ``y_i - (A^-1 y)_i / (A^-1)_ii``.

    ``A = k_train_train + diag_reg I``, the same ridge for every fit; with an NTK, the outputs of infinitely wide
    networks trained to convergence from zero.

    Args:
        k_train_train: ``[n, n]``. y_train, diag_reg, diag_reg_absolute_scale, trace_axes: as in
            ``gradient_descent_mse``; ``k_train_train`` has two axes.

    Returns:
        Predictions of the shape of ``y_train``; where ``A`` is singular to rounding (duplicate inputs) those of the
        pseudo-inverse, the limit of a vanishing ridge.

    Raises:
        ValueError: for shapes that do not fit.

    Cost: one Cholesky factorisation and one inverse of size n. Differentiable.

    Reference: Rasmussen & Williams 2006, eq. 5.12.

    >>> import jax.numpy as jnp
    >>> left_out = leave_one_out(jnp.array([[2.0, 1.0], [1.0, 2.0]]), jnp.array([[3.0], [5.0]]))  # y_j k_ij / k_jj
    >>> left_out.round(5)[:, 0].tolist()
    [2.5, 1.5]
    """
    check_reg(diag_reg)
    k_train_train, y_train = jnp.asarray(k_train_train), jnp.asarray(y_train)
    layout = layout_of(y_train, trace_axes, k_train_train)
    if k_train_train.ndim != 2:
        raise ValueError(f"k_train_train: got shape {k_train_train.shape}; allowed: [n, n], one row a sample")
    k = regularised(matrix(k_train_train), diag_reg, diag_reg_absolute_scale)
    y, (solve, singular) = layout.flatten(y_train).astype(k.dtype), solver(k)
    inverse = solve(jnp.eye(len(k), dtype=k.dtype))
    rest = jnp.eye(len(k), dtype=k.dtype) - k @ inverse  # onto what is singular, where 1 / ridge outweighs all else
    outweighed = singular & (jnp.diag(rest) > jnp.sqrt(jnp.finfo(k.dtype).eps))
    inverse = jnp.where(outweighed[:, None], rest, inverse)
    return layout.restore(y - inverse @ y / jnp.diag(inverse)[:, None], k_train_train.shape[::2])
