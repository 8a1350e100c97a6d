"""Linear regression a sample at a time, exactly: the first two moments of its weights, and with them its mean error."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from dynamics.arguments import FINITE, check_counts, check_numbers


class Moments(NamedTuple):
    """Of a linear learner's weights, at one moment: ``mean``, ``E w``, and ``second``, ``E w w^T``."""

    mean: Float[np.ndarray, "*b d"]
    second: Float[np.ndarray, "*b d d"]

    @classmethod
    def at(cls, w: Any) -> Moments:
        """Those of known weights ``[*b, d]``."""
        w = np.asarray(w, float)
        return cls(w, w[..., :, None] * w[..., None, :])


def online_regression(
    start: Moments,
    x: Any,
    y: Any,
    learning_rate: float,
    steps: int,
    *,
    fluctuations: bool = True,
) -> tuple[Float[np.ndarray, "*b"], Moments]:
    """Mean error of ``steps`` updates ``w <- w - 2 eta (w.x - y) x`` on single samples, and the moments after them.

    Samples are drawn evenly, with replacement, from the n given. With ``C = <x x^T>``, ``r = <x y>`` and the mean
    square ``q_x = x^T M x - 2 y x.m + y^2`` of an error, the moments obey

        m <- m - 2 eta (C m - r),
        M <- M - 2 eta (C M + M C) + 2 eta (m r^T + r m^T) + 4 eta^2 <q_x x x^T>,

    a linear recursion, exact at every eta. It moves only in the span of the samples, of dimension k.

    Args:
        start: the moments before, over any axes of batch.
        x, y: the samples, ``[*b, n, d]`` and ``[*b, n]``; a bias is an input of ones.
        learning_rate: eta, of the loss ``(f - y)^2`` without 1/2.
        steps: updates.
        fluctuations: False leaves the term of order ``eta^2`` out: the averaged equation, which knows no noise.

    Returns:
        ``(error, moments)``: the mean of ``(f - y)^2`` over the steps, each before its update, and over draws.

    Raises:
        ValueError: for steps below 1, eta that is not finite, or samples ``x`` and ``y`` that do not fit.

    Cost: ``O(k^6 log steps)`` a member of the batch, in float64 on the host; k above some 10 is too many.

    Reference: Widrow & Hoff 1960; the second moments as in Feuer & Weinstein 1985, for any distribution of x.

    Example:
        >>> error, after = online_regression(Moments.at([0.0]), [[1.0]], [1.0], 0.25, 2)  # w = 0, 1/2, 3/4
        >>> float(error), after.mean.tolist()
        (0.625, [0.75])
    """
    check_counts(steps=steps)
    check_numbers(learning_rate=(learning_rate, FINITE))
    x, y = np.asarray(x, float), np.asarray(y, float)
    if x.ndim < 2 or y.shape != x.shape[:-1] or 0 in x.shape or start.mean.shape[-1] != x.shape[-1]:
        got = f"{x.shape} with y {y.shape}, weights {start.mean.shape}"
        raise ValueError(f"x: got shape {got}; allowed: [*b, n, d], [*b, n], [*b, d]")
    n, eta = x.shape[-2], learning_rate
    values, vectors = np.linalg.eigh(_transposed(x) @ x / n)
    spanned = values > 1e-12 * np.maximum(values[..., -1:], np.finfo(float).tiny)
    values = np.where(spanned, values, 0)  # beyond its own rank a member of the batch stays where it is
    k = max(int(np.max(np.sum(spanned, -1))), 1)
    U = vectors[..., -k:]
    z = x @ U  # [*b, n, k]
    A, error = _affine(z, y, eta, fluctuations)
    m, M = (_transposed(U) @ start.mean[..., None])[..., 0], _transposed(U) @ start.second @ U
    state = np.concatenate([M.reshape(*M.shape[:-2], k * k), m, np.ones((*m.shape[:-1], 1))], -1)[..., None]
    power, total = _powers(A, steps)
    mean = np.asarray((error[..., None, :] @ (total @ state))[..., 0, 0] / steps)
    state = (power @ state)[..., 0]
    new_M, new_m = state[..., : k * k].reshape(*M.shape), state[..., k * k : -1]
    return mean, _back(start, U, values[..., -k:], z, y, eta, steps, new_m, new_M)


def _affine(z, y, eta: float, fluctuations: bool):
    """The recursion of ``(vec M, m, 1)`` in the span, and the functional that is its error."""
    n, k = z.shape[-2:]
    batch, eye = z.shape[:-2], np.eye(k)
    zz = (z[..., :, None] * z[..., None, :]).reshape(*batch, n, k * k)
    C, r = _transposed(z) @ z / n, np.mean(z * y[..., None], -2)
    size = k * k + k + 1
    A = np.zeros((*batch, size, size))
    A[..., : k * k, : k * k] = np.eye(k * k) - 2 * eta * (_kron(C, eye) + _kron(eye, C))
    A[..., : k * k, k * k : -1] = 2 * eta * (_kron(r[..., :, None], eye) + _kron(eye, r[..., :, None]))
    if fluctuations:
        A[..., : k * k, : k * k] += 4 * eta**2 * _transposed(zz) @ zz / n
        A[..., : k * k, k * k : -1] -= 8 * eta**2 * _transposed(zz * y[..., None]) @ z / n
        A[..., : k * k, -1] = 4 * eta**2 * np.mean(zz * y[..., None] ** 2, -2)
    A[..., k * k : -1, k * k : -1] = eye - 2 * eta * C
    A[..., k * k : -1, -1] = 2 * eta * r
    A[..., -1, -1] = 1
    return A, np.concatenate([C.reshape(*batch, k * k), -2 * r, np.mean(y**2, -1)[..., None]], -1)


def _powers(A, steps: int):
    """``A^steps`` and ``sum_(t < steps) A^t``."""
    power, total = np.broadcast_to(np.eye(A.shape[-1]), A.shape), np.zeros(A.shape)
    for bit in bin(steps)[2:]:
        power, total = power @ power, total + power @ total
        if bit == "1":
            power, total = A @ power, total + power
    return power, total


def _back(start: Moments, U, values, z, y, eta, steps, m, M) -> Moments:
    """The moments in all coordinates: beyond the span the weights stay, their covariance with what moves does not."""
    decay = (1 - 2 * eta * values)[..., None] ** steps
    steady = np.mean(z * y[..., None], -2) / np.where(values > 0, values, 1)
    gathered = (1 - decay) * steady[..., None]  # sum_t P^t 2 eta r
    beyond = np.eye(U.shape[-2]) - U @ _transposed(U)
    still = (beyond @ start.mean[..., None])[..., 0]
    cross = decay * (_transposed(U) @ start.second @ beyond) + gathered * still[..., None, :]
    mixed = U @ cross
    second = U @ M @ _transposed(U) + mixed + _transposed(mixed) + beyond @ start.second @ beyond
    return Moments((U @ m[..., None])[..., 0] + still, second)


def _kron(a, b):
    """Kronecker products of matrices over axes of batch."""
    found = np.einsum("...ij,...kl->...ikjl", a, b)
    return found.reshape(*found.shape[:-4], found.shape[-4] * found.shape[-3], found.shape[-2] * found.shape[-1])


def _transposed(a):
    return np.swapaxes(a, -1, -2)
