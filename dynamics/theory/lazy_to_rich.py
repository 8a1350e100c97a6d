"""The lazy-to-rich grokking model, reduced exactly to the mean and second moment of its weights.

The reduction is exact on given data, at any width; averaged over draws of the data it is the theory curve. The
proportional limit (P/D fixed) removes that average: ``theory.dmft.proportional``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Real

from dynamics.types import Array, ArrayLike, Batch, Data, Dynamics


class Moments(NamedTuple):
    """The order parameters of ``f = (alpha/N) sum_i phi(w_i . x)`` with ``phi(h) = h + (eps/2) h^2``.

    Attributes:
        mean: ``wbar = (1/N) sum_i w_i``.
        second: ``M = (1/N) sum_i w_i w_i^T``.
    """

    mean: Float[Array, "... D"]
    second: Float[Array, "... D D"]


class ReductionState(NamedTuple):
    """``moments`` now and at the ``start``, whose output is subtracted (the centred network)."""

    moments: Moments
    start: Moments


def moments(weights: Float[Array, "... N D"]) -> Moments:
    """The order parameters of a network, or of each population ``[K, N/K, D]``, with these weights."""
    return Moments(jnp.mean(weights, axis=-2), weights.mT @ weights / weights.shape[-2])


def infinite_width(dim: int, dtype: Any = None) -> Moments:
    """The order parameters of ``w ~ N(0, I)`` at N = infinity: ``wbar = 0``, ``M = I``."""
    return Moments(jnp.zeros(dim, dtype), jnp.eye(dim, dtype=dtype))


def change(state: ReductionState) -> Moments:
    """``(wbar - wbar_0, M - M_0)``: the order parameters of the centred network ``f - f_0``."""
    return Moments(state.moments.mean - state.start.mean, state.moments.second - state.start.second)


def signed(at: Moments, signs: ArrayLike) -> Moments:
    """``mean_k s_k (wbar_k, M_k)`` of K populations of equal size: what the output of readouts ``s_k`` reads."""
    return jax.tree.map(lambda leaf: jnp.tensordot(jnp.asarray(signs, leaf.dtype), leaf, 1) / len(leaf), at)


def output(at: Moments, x: Float[Array, "n D"], alpha: Any, eps: Any) -> Float[Array, " n"]:
    """``f(x) = alpha (wbar . x + (eps/2) x^T M x)``."""
    return alpha * (x @ at.mean + 0.5 * eps * jnp.sum((x @ at.second) * x, axis=1))


def kernel(at: Moments, x1: Float[Array, "n1 D"], x2: Float[Array, "n2 D"], eps: Any) -> Float[Array, "n1 n2"]:
    """The NTK times ``N/alpha^2``: ``x.x' (1 + eps wbar.(x + x') + eps^2 x^T M x')``."""
    linear = (x1 @ at.mean)[:, None] + (x2 @ at.mean)[None, :]
    return (x1 @ x2.T) * (1.0 + eps * linear + eps**2 * (x1 @ at.second) @ x2.T)


def population_loss(
    at: Moments, start: Moments, beta: Float[Array, " D"], alpha: Any, eps: Any
) -> dict[str, Float[Array, ""]]:
    """The population loss of the centred network against ``y = (beta.x)^2/2``, ``x ~ N(0, I/D)``, term by term.

    With ``B = alpha eps (M - M_0) - beta beta^T`` and ``m = wbar - wbar_0``:
    ``L = (Tr B/2D)^2 + |B|_F^2/2D^2 + alpha^2 |m|^2/D``, the errors in the mean output, in the quadratic form and in
    the linear part.

    Returns:
        ``test_loss`` and its terms ``test_mean``, ``test_power``, ``test_linear``.

    Reference: Kumar, Bordelon, Gershman & Pehlevan 2023, eq. 6.
    """
    dim = beta.shape[0]
    error = alpha * eps * (at.second - start.second) - jnp.outer(beta, beta)
    mean = (jnp.trace(error) / (2 * dim)) ** 2
    power = jnp.sum(error**2) / (2 * dim**2)
    linear = alpha**2 * jnp.sum((at.mean - start.mean) ** 2) / dim
    return {"test_loss": mean + power + linear, "test_mean": mean, "test_power": power, "test_linear": linear}


def teacher_share(at: Moments, beta: Float[Array, " D"]) -> Float[Array, ""]:
    """``beta^T M beta / (|beta|^2 Tr M)``: the share of the weights' second moment along the teacher; 1/D at random."""
    return beta @ at.second @ beta / (jnp.sum(beta**2) * jnp.trace(at.second))


def reduction(alpha: Any, eps: Any, eta0: Any, signs: ArrayLike | None = None) -> Dynamics:
    """Gradient descent on the mean squared error of the centred network, as an exact map of its order parameters.

    With ``delta = f - f_0 - y``, ``g = X^T delta/P``, ``H = X^T diag(delta) X/P``, ``e = 2 eta0/alpha`` and
    ``A = I - e eps H``, the network's step ``W <- W - eta grad L`` at ``eta = eta0 N/alpha^2`` implies

        wbar' = A wbar - e g
        M'    = A M A^T - e (A wbar g^T + g (A wbar)^T) + e^2 g g^T

    for every width N: start from ``moments(W)`` for that network, from ``infinite_width(D)`` for N = infinity. A large
    ``alpha`` makes each step's change of M, hence of the kernel, small: the lazy limit.

    Readouts fixed at one reach ``M >= 0`` alone, which bounds the quadratic form of f from one side. K populations of
    equal size with readouts ``s_k`` follow the same map with ``s_k e`` for e, and f reads ``signed(moments, s)``. With
    ``s_k = +-1`` the kernel is that of the mean of the K moments: at infinite width the same start for any signs.

    Args:
        alpha: output scale. eps: weight of the quadratic term. eta0: learning rate in units of ``N/alpha^2``.
        signs: ``[K]`` readout of each population; None for one population of readout 1, without an axis.

    Returns:
        A ``Dynamics`` on ``ReductionState`` whose ``init`` takes ``Moments``, with a leading axis K where there are
        ``signs``; ``data`` is a ``Batch`` or ``Data`` with ``x [P, D]`` and ``y [P, 1]``.

    Raises:
        ValueError: when ``signs`` is no vector; by ``init``, when the moments have other axes.

    Assumptions: full batch, loss ``(1/P) sum (f - f_0 - y)^2``, readouts fixed. In float32 a rank-deficient M (N/K
    below D) loses accuracy; integrate the weights there.

    Cost: ``4 P D^2 + 4 K D^3`` FLOPs a step, independent of N.

    Reference: Kumar, Bordelon, Gershman & Pehlevan 2023, eq. 3-6; the closure on (wbar, M) follows because
    ``d f/d w_i`` is affine in ``w_i``.

    Example:
        >>> import jax.numpy as jnp
        >>> from dynamics.types import Batch
        >>> theory = reduction(alpha=0.1, eps=0.1, eta0=1.0)
        >>> state = theory.init(infinite_width(3))
        >>> state = theory.step(None, state, Batch(jnp.eye(3), jnp.ones((3, 1))))
        >>> [round(float(m), 3) for m in state.moments.mean]
        [6.667, 6.667, 6.667]
    """
    rate, populations = 2.0 * eta0 / alpha, () if signs is None else jnp.shape(signs)
    if signs is not None and (len(populations) != 1 or not populations[0]):
        raise ValueError(f"signs: got shape {populations}; allowed: (K,), K >= 1")

    def init(at: Moments) -> ReductionState:
        if jnp.shape(at.mean)[:-1] != populations:
            raise ValueError(f"at: got a mean of shape {jnp.shape(at.mean)}; allowed: {populations} and a last axis D")
        return ReductionState(at, at)

    def step(key, state: ReductionState, data: Batch | Data) -> ReductionState:
        batch = data.train if isinstance(data, Data) else data
        x, moved = batch.x, change(state)
        seen = moved if signs is None else signed(moved, signs)
        delta = output(seen, x, alpha, eps) - batch.y[:, 0]  # [P]
        g = x.T @ delta / x.shape[0]
        hessian = (x.T * delta) @ x / x.shape[0]  # [D, D]

        def descended(at: Moments, pull) -> Moments:
            a = jnp.eye(x.shape[1], dtype=x.dtype) - pull * eps * hessian
            pulled = a @ at.mean
            cross = jnp.outer(pulled, g)
            second = a @ at.second @ a.T - pull * (cross + cross.T) + pull**2 * jnp.outer(g, g)
            return Moments(pulled - pull * g, second)

        if signs is None:
            return state._replace(moments=descended(state.moments, rate))
        return state._replace(moments=jax.vmap(descended)(state.moments, rate * jnp.asarray(signs, x.dtype)))

    return Dynamics(init, step, lambda state: state.moments, 1.0)


def lazy_moments(
    x: Float[Array, "P D"], y: Float[Array, "P 1"], alpha: Any, eps: Any, eta0: Any, steps: Real[Array, " T"]
) -> Moments:
    """Gradient descent with the kernel held at its infinite-width start: the lazy baseline, in closed form.

    ``f_t = k(., X) c_t`` with ``c_t = k^-1 (1 - (1 - 2 eta0 k/P)^t) y``, which is a network of changed moments
    ``wbar = X^T c/alpha`` and ``M = I + (2 eps/alpha) X^T diag(c) X``; its losses do not depend on ``alpha``.

    Args:
        x, y: training data.
        steps: update counts; inf gives kernel regression.

    Returns:
        ``Moments`` with a leading axis T. Cost: one eigendecomposition of ``[P, P]``.
    """
    dim, samples = x.shape[1], x.shape[0]
    start = infinite_width(dim, x.dtype)
    eigenvalues, modes = jnp.linalg.eigh(kernel(start, x, x, eps))
    positive = jnp.maximum(eigenvalues, jnp.finfo(x.dtype).eps * eigenvalues[-1])
    decay = 1.0 - 2.0 * eta0 * positive / samples
    learned = (1.0 - decay ** steps[:, None]) / positive  # [T, P]
    c = (learned * (y[:, 0] @ modes)) @ modes.T  # [T, P]
    second = start.second + (2.0 * eps / alpha) * jnp.einsum("tp,pi,pj->tij", c, x, x)
    return Moments(c @ x / alpha, second)
