"""In-context regression by linear attention: exact risk, its optimum and training, and the Bayes estimators beside it.

A sequence shows n pairs ``(x_i, y_i)``, ``y_i = w.x_i + noise``, and asks for ``w.x`` at a query x. Linear attention
answers ``f = x^T Gamma h`` with ``h = (1/n) sum_i y_i x_i``. It is trained on tasks w of a fixed set (or of a law) with
second moment ``R = E w w^T``; inputs are Gaussian of covariance S. All that training sees of the tasks is R:

    risk(Gamma; R) = E (f - w.x)^2 = tr S R - 2 tr(S Gamma S R) + tr(S Gamma A Gamma^T),
    A = E h h^T = (1 + 1/n) S R S + (tr(S R) + s2)/n S.

Reference: Lu, Letey, Zavatone-Veth, Maiti & Pehlevan 2025, 'Asymptotic theory of in-context learning by linear
attention'; Zhang, Frei & Bartlett 2024 for the moments. Here for any tasks, at finite n and d.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from dynamics.arguments import NOT_NEGATIVE, POSITIVE, check_numbers
from dynamics.precision import full_precision
from dynamics.types import Array, ArrayLike


@full_precision
def second_moment(tasks: Float[ArrayLike, "K d"]) -> Float[Array, "d d"]:
    """``R = (1/K) sum_k w_k w_k^T``: all that linear attention learns of its tasks ``[K, d]``."""
    tasks = jnp.asarray(tasks)
    if tasks.ndim != 2 or not tasks.shape[0]:
        raise ValueError(f"tasks: got shape {tasks.shape}; allowed: [K, d], one task or more")
    return tasks.T @ tasks / tasks.shape[0]


@full_precision
def context_moment(
    R: Float[ArrayLike, "d d"],
    samples: ArrayLike,
    noise: ArrayLike = 0.0,
    covariance: Float[ArrayLike, "d d"] | None = None,
) -> Float[Array, "d d"]:
    """``A = E h h^T = (1 + 1/n) S R S + (tr(S R) + s2)/n S`` of ``h = (1/n) sum_i y_i x_i``.

    Args:
        R: second moment of the tasks.
        samples: n, the pairs in the context.
        noise: s2, variance of the label noise.
        covariance: S of the inputs; the identity unless given.

    Example:
        >>> context_moment(jnp.eye(2) / 2, 4, 0.5).diagonal().tolist()      # 5/4 1/2 + (1 + 1/2)/4
        [1.0, 1.0]
    """
    check_numbers(many=True, samples=(samples, POSITIVE), noise=(noise, NOT_NEGATIVE))
    R, S = _pair(R, covariance)
    n = jnp.asarray(samples, R.dtype)
    return (1 + 1 / n) * S @ R @ S + (jnp.trace(S @ R) + noise) / n * S


@full_precision
def risk(
    Gamma: Float[ArrayLike, "*lead d d"],
    R: Float[ArrayLike, "d d"],
    samples: ArrayLike,
    noise: ArrayLike = 0.0,
    covariance: Float[ArrayLike, "d d"] | None = None,
) -> Float[Array, "*lead"]:
    """Mean squared error of ``x^T Gamma h`` to the clean answer ``w.x``; to a noisy one it is s2 more.

    Exact at any n and d, for tasks of second moment R whatever their law, trained on or not: fresh tasks
    ``N(0, I/d)`` have ``R = I/d``.

    Args:
        Gamma: the attention's matrix, any leading axes.
        R, samples, noise, covariance: as in ``context_moment``, of the tasks on which it is tested.

    Assumptions: Gaussian inputs, noise of mean 0 and variance s2 apart from them. Cost: ``O(d^3)``.

    Example:
        >>> risk(jnp.zeros((2, 2)), jnp.eye(2) / 2, 4).item()               # says 0: the target's variance
        1.0
    """
    A = context_moment(R, samples, noise, covariance)
    R, S = _pair(R, covariance)
    Gamma = jnp.asarray(Gamma, A.dtype)
    if Gamma.shape[-2:] != R.shape:
        raise ValueError(f"Gamma: got shape {Gamma.shape}; allowed: [..., d, d], {R.shape} as R")
    learnt = S @ Gamma
    crossed = jnp.trace(learnt @ S @ R, axis1=-2, axis2=-1)
    return jnp.trace(S @ R) - 2 * crossed + jnp.trace(learnt @ A @ jnp.swapaxes(Gamma, -1, -2), axis1=-2, axis2=-1)


@full_precision
def optimum(
    R: Float[ArrayLike, "d d"],
    samples: ArrayLike,
    noise: ArrayLike = 0.0,
    covariance: Float[ArrayLike, "d d"] | None = None,
) -> Float[Array, "d d"]:
    """The attention of least risk on tasks of second moment R: ``Gamma* = R S A^-1``; arguments as ``context_moment``.

    On few tasks it projects onto their span, and says nothing of a new one; on many it is a multiple of ``S^-1`` and
    serves all.

    Example:
        >>> Gamma = optimum(jnp.eye(2) / 2, 4, 0.5)
        >>> Gamma.diagonal().tolist(), risk(Gamma, jnp.eye(2) / 2, 4, 0.5).item()
        ([0.5, 0.5], 0.5)
    """
    A = context_moment(R, samples, noise, covariance)
    R, S = _pair(R, covariance)
    return jnp.linalg.solve(A, S @ R).T


@full_precision
def descent(
    steps: Int[ArrayLike, "*T"],
    R: Float[ArrayLike, "d d"],
    samples: ArrayLike,
    noise: ArrayLike = 0.0,
    covariance: Float[ArrayLike, "d d"] | None = None,
    *,
    learning_rate: ArrayLike,
    start: Float[ArrayLike, "d d"] | None = None,
) -> Float[Array, "*T d d"]:
    """Gradient descent on half the risk, in closed form.

        Gamma <- Gamma - eta S (Gamma A - R S),         for S = I, from 0:    Gamma_t = Gamma* (I - (I - eta A)^t)

    Modes are pairs of eigenvectors of S and A, learnt at the rate of their eigenvalues' product.

    Args:
        steps: t, any shape.
        R, samples, noise, covariance: as in ``context_moment``, of the tasks that are trained on.
        learning_rate: eta; stable below ``2 / (s_max a_max)``.
        start: ``Gamma_0``; 0 unless given.

    Returns:
        ``Gamma_t``, the shape of ``steps`` leading. Minibatches of B add an excess of order ``eta/B``.

    Cost: two eigendecompositions, ``O(d^3)`` a step count. Vmappable, and differentiable where S and A have no
    repeated eigenvalue.

    Example:
        >>> path = descent(jnp.array([0, 1, 1000]), jnp.eye(2) / 2, 4, 0.5, learning_rate=0.5)
        >>> path[:, 0, 0].tolist()
        [0.0, 0.25, 0.5]
    """
    A, best = context_moment(R, samples, noise, covariance), optimum(R, samples, noise, covariance)
    S = _pair(R, covariance)[1]
    (s, U), (a, V) = jnp.linalg.eigh(S), jnp.linalg.eigh(A)
    start = jnp.zeros_like(best) if start is None else jnp.asarray(start, best.dtype)
    t = jnp.asarray(steps)[..., None, None]
    left = (1 - learning_rate * s[:, None] * a) ** t * (U.T @ (start - best) @ V)
    return best + U @ left @ V.T


@full_precision
def discrete_bayes(
    x: Float[ArrayLike, "*lead n d"],
    y: Float[ArrayLike, "*lead n"],
    tasks: Float[ArrayLike, "K d"],
    noise: ArrayLike,
) -> Float[Array, "*lead d"]:
    """The posterior mean of w among K equally likely tasks: the best answer to one who knows them, ``w_hat.x``.

        w_hat = sum_k p_k w_k,    p_k ~ exp(-sum_i (y_i - w_k.x_i)^2 / (2 s2))

    Args:
        x, y: the pairs of the context, any leading axes. tasks: ``w_k``. noise: s2 > 0.

    Reference: Raventos, Paul, Chen & Ganguli 2023, 'Pretraining task diversity and the emergence of non-Bayesian
    in-context learning for regression' (dMMSE).

    Example:
        >>> w = discrete_bayes(jnp.eye(2), jnp.array([1.0, 0.0]), jnp.array([[1.0, 0.0], [0.0, 1.0]]), 0.01)
        >>> w.round(3).tolist()
        [1.0, 0.0]
    """
    check_numbers(many=True, noise=(noise, POSITIVE))
    x, y, tasks = jnp.asarray(x), jnp.asarray(y), jnp.asarray(tasks)
    errors = y[..., None] - jnp.einsum("...nd,kd->...nk", x, tasks)
    return jax.nn.softmax(-jnp.sum(errors**2, -2) / (2 * jnp.asarray(noise)), -1) @ tasks


@full_precision
def ridge(
    x: Float[ArrayLike, "*lead n d"], y: Float[ArrayLike, "*lead n"], noise: ArrayLike
) -> Float[Array, "*lead d"]:
    """The posterior mean of ``w ~ N(0, I/d)``: ridge regression ``(X^T X + d s2 I)^-1 X^T y``, Bayes for fresh tasks.

    Args:
        x, y: the pairs of the context, any leading axes. noise: s2 > 0.

    Reference: Raventos, Paul, Chen & Ganguli 2023.

    Example:
        >>> ridge(jnp.eye(2), jnp.array([1.0, 0.0]), 0.5).round(4).tolist()
        [0.5, 0.0]
    """
    check_numbers(many=True, noise=(noise, POSITIVE))
    x, y = jnp.asarray(x), jnp.asarray(y)
    d = x.shape[-1]
    gram = jnp.swapaxes(x, -1, -2) @ x + d * jnp.asarray(noise) * jnp.eye(d, dtype=x.dtype)
    factor = jax.scipy.linalg.cho_factor(gram)
    return jax.scipy.linalg.cho_solve(factor, jnp.einsum("...nd,...n->...d", x, y)[..., None])[..., 0]


def _pair(R, covariance) -> tuple[Array, Array]:
    """R and S, after checking their shapes."""
    R = jnp.asarray(R, jnp.result_type(float))
    S = jnp.eye(R.shape[0], dtype=R.dtype) if covariance is None else jnp.asarray(covariance, R.dtype)
    for name, value in (("R", R), ("covariance", S)):
        if value.ndim != 2 or value.shape != (R.shape[0],) * 2:
            raise ValueError(f"{name}: got shape {value.shape}; allowed: [d, d], the same for R and covariance")
    return R, S
