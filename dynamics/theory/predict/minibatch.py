"""Minibatch gradient descent: mean and variance of the outputs over the draws of the batches."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dynamics.theory.predict.any_loss import check_momentum
from dynamics.theory.predict.layout import across, broadcasting, check_rate, check_start, outputs, start_of
from dynamics.theory.predict.steps import step_counts
from dynamics.types import Array, ArrayLike


class Moments(NamedTuple):
    """Mean and variance over minibatch noise, each of the shape of the outputs ``[..., n, c]``."""

    mean: Any
    variance: Any


class _State(NamedTuple):
    """Errors (outputs on the test points) and velocities: means ``[N, c]``, covariances ``[c, N, N]``."""

    e: Array
    v: Array
    ee: Array
    ev: Array
    vv: Array


@broadcasting
def stochastic_gradient_descent_mse(
    k_train_train,
    y_train,
    learning_rate: ArrayLike,
    batch_size: int,
    momentum: ArrayLike | None = None,
    replace: bool = False,
):
    """Outputs after ``t`` steps of minibatch gradient descent on the squared loss: exact mean and variance.

    A step draws a batch anew and moves the errors by ``-(eta / (B c)) K S e``, S the diagonal of how often a sample was
    drawn. With ``p = B/n``, ``r = E S_i S_j`` for two samples and ``s = E S_i^2 - r``, the mean obeys full-batch
    descent, and the second moment ``G = E e e^T`` (without momentum, ``a = eta / (B c)``)

        G' = G - a p (K G + G K) + a^2 K (r G + s diag(G)) K.

    The expected training loss is ``(|mean - y|^2 + sum variance) / (2 |y|)``.

    Args:
        k_train_train: ``[n, n]``, the same for each output. y_train: ``[n, c]``.
        learning_rate: ``eta``, of the loss ``|f - y|^2 / (2 |y|)`` of the batch.
        batch_size: samples B a step. replace: drawn with replacement.
        momentum: heavy-ball coefficient in [0, 1), or None for 0.

    Returns:
        ``predict_fn(t, fx_train_0=0., fx_test_0=None, k_test_train=None)``: ``Moments`` on the training set, the test
        set (``fx_train_0=None``) or both, at the steps ``t [...]`` (whole numbers).

    Raises:
        ValueError: for a kernel that is not ``[n, n]``, ``batch_size`` outside [1, n] (above n only with ``replace``),
            ``momentum`` outside [0, 1).

    Assumptions: batches are independent of one another (drawn anew each step, not an epoch's permutation).

    Cost: ``O(c N^2 n)`` a step and ``O(c N^2)`` memory, N the number of training and test points. Differentiable
    forwards.

    Reference: the linear recursion of Bordelon & Pehlevan 2022, 'Learning curves for SGD on structured features',
    section 3, here without its Gaussian assumption.

    >>> import jax.numpy as jnp
    >>> predict_fn = stochastic_gradient_descent_mse(jnp.eye(2), jnp.ones((2, 1)), 1.0, 1)
    >>> [float(part[0, 0]) for part in predict_fn(t=1)]    # one of the two samples is learnt
    [0.5, 0.25]
    """
    k, y = jnp.asarray(k_train_train), jnp.asarray(y_train)
    if y.ndim != 2 or k.shape != (len(y), len(y)):
        raise ValueError(f"k_train_train, y_train: got shapes {k.shape} and {y.shape}; allowed: [n, n] and [n, c]")
    draws = _draws(len(y), batch_size, replace)
    check_momentum(momentum)
    check_rate(learning_rate)
    m = jnp.asarray(0.0 if momentum is None else momentum)
    scale = jnp.asarray(learning_rate) / (batch_size * y.shape[1])

    def predict_fn(t, fx_train_0=0.0, fx_test_0=None, k_test_train=None):
        check_start(fx_train_0, fx_test_0, k_test_train)
        t = step_counts(t)
        n = len(y)
        k_all = k if k_test_train is None else jnp.concatenate([k, across(k_test_train, k)[0].astype(k.dtype)])
        start = start_of("fx_train_0", 0.0 if fx_train_0 is None else fx_train_0, y.shape, k.dtype)
        shape = (len(k_all) - n, y.shape[1])
        tests = start_of("fx_test_0", 0.0 if fx_test_0 is None else fx_test_0, shape, k.dtype)
        e = jnp.concatenate([start - y, tests]).astype(k.dtype)
        still = jnp.zeros((e.shape[1], len(k_all), len(k_all)), k.dtype)
        state = _State(e, jnp.zeros_like(e), still, still, still)
        mean, variance = _at(state, t.reshape(-1), k_all, draws, scale, m)
        mean = (mean + jnp.concatenate([y, jnp.zeros_like(tests)])).reshape(*t.shape, *e.shape)
        found = Moments(mean, variance.reshape(mean.shape))
        train = None if fx_train_0 is None else Moments(*(part[..., :n, :] for part in found))
        return outputs(train, None if fx_test_0 is None else Moments(*(part[..., n:, :] for part in found)))

    return predict_fn


class _Draws(NamedTuple):
    """``p = E S_i``, ``r = E S_i S_j``, ``s = E S_i^2 - r``."""

    p: float
    r: float
    s: float


def _draws(n: int, size: int, replace: bool) -> _Draws:
    if size < 1 or (size > n and not replace):
        raise ValueError(f"batch_size: got {size}; allowed: 1 to n={n} (above n only with replacement)")
    p = size / n
    if replace:
        return _Draws(p, size * (size - 1) / n**2, p)
    r = size * (size - 1) / (n * (n - 1)) if n > 1 else 1.0
    return _Draws(p, r, p - r)


def _at(state: _State, t: Array, k: Array, draws: _Draws, scale: Array, momentum: Array) -> Moments:
    """Means and variances ``[T, N, c]`` at the steps ``t``, in one pass."""
    order = jnp.argsort(t)
    ascending = t[order]

    def advance(carry, gap):
        carry = jax.lax.fori_loop(0, gap, lambda _, s: _step(s, k, draws, scale, momentum), carry)
        return carry, (carry.e, jnp.diagonal(carry.ee, axis1=1, axis2=2).T)

    gaps = jnp.diff(ascending, prepend=jnp.zeros(1, t.dtype))
    mean, variance = jax.lax.scan(advance, state, gaps)[1]
    back = jnp.argsort(order)
    return Moments(mean[back], variance[back])


def _step(state: _State, k: Array, draws: _Draws, scale: Array, momentum: Array) -> _State:
    """One draw: ``v' = m v - a x``, ``e' = e + v'`` with ``x = K S e``; covariances are of centred quantities."""
    n, m = k.shape[1], momentum
    mean = state.e[:n].T  # [c, n]
    outer = mean[:, :, None] * mean[:, None, :]
    within = state.ee[:, :n, :n]
    drawn = draws.r * (within + outer) - draws.p**2 * outer
    drawn = drawn + draws.s * jax.vmap(jnp.diag)(jnp.diagonal(within + outer, axis1=1, axis2=2))
    xx = k @ drawn @ k.T
    xe, xv = draws.p * (k @ state.ee[:, :n]), draws.p * (k @ state.ev[:, :n])
    vv = m**2 * state.vv - m * scale * (xv + jnp.swapaxes(xv, 1, 2)) + scale**2 * xx
    old_e_v = m * state.ev - scale * jnp.swapaxes(xe, 1, 2)
    v = m * state.v - scale * draws.p * (k @ state.e[:n])
    ee = state.ee + old_e_v + jnp.swapaxes(old_e_v, 1, 2) + vv
    return _State(state.e + v, v, ee, old_e_v + vv, vv)
