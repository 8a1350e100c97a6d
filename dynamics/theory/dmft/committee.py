"""Gradient descent on committees and generalised linear models with Gaussian data, as P and D grow together."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Bool, Float, PRNGKeyArray

from dynamics.arguments import NOT_NEGATIVE, OR_INFINITE, POSITIVE, check_counts, check_numbers
from dynamics.precision import full_precision
from dynamics.theory.dmft.draws import mirrored, whitened
from dynamics.theory.dmft.order import advance, after, injected, start
from dynamics.types import Array, ArrayLike, Record

RISE = 2.0  # of the train loss over its smallest so far: such a lane has failed


@full_precision
def committee(
    gradient: Callable[..., Array],
    teacher: Callable[..., Array],
    kappa: ArrayLike,
    steps: int,
    key: PRNGKeyArray,
    samples: int = 1000,
    *,
    loss: Callable[..., Array],
    learning_rate: ArrayLike,
    overlaps: Float[Array, "k m"],
    covariance: Float[Array, "units units"],
    ridge: ArrayLike = 0.0,
    dim: ArrayLike | None = None,
) -> Record:
    """Dynamical mean field theory of ``w_k' = w_k - eta ((1/P) sum_mu g_k(h_mu, y_mu) x_mu + ridge w_k)``.

    ``h_mu = (w_k . x_mu)_k``, ``x ~ N(0, I_D)``, labels ``y = teacher(z, e)`` of the fields ``z = (w*_m . x)_m`` of
    orthonormal teacher vectors and of a noise e ~ N(0, 1) of each sample; P, D -> infinity at ``P/D = kappa``. One
    sample sees

        h(t) = u(t) + m(t) z - (eta/kappa) sum_{s<t} R(t, s+1) g(s),      u Gaussian with covariance C
        m(t+1) = (1 - eta ridge) m(t) - eta E[g(t) z^T]
        K(t, s) = eta E[dg(t)/du(s)],      N(t, s) = (eta^2/kappa) E[g(t) g(s)^T]

    and C, R follow from the kernel K and the noise N of the weights orthogonal to the teacher (``order.advance``).
    Every quantity at t + 1 needs those up to t alone: one causal pass, without iteration. The derivative is total,
    through the memory; u is made by the recursion of the weights from the samples' own gradients.

    Args:
        gradient: ``(h [k], y) -> [k]``, derivative of a sample's loss by the preactivations.
        teacher: ``(z [m], e) -> y``.
        kappa: samples per dimension ``P/D > 0``.
        steps: updates T.
        key: of the Monte Carlo samples.
        samples: their number S, even.
        loss: ``(h [k], y) -> scalar``, read on the training set and on fresh data.
        learning_rate: eta, for weights of norm O(1) and x of unit variance.
        overlaps: ``m(0) = w_k(0) . w*_m``.
        covariance: ``C(0)``, products of the ``w_k(0)`` orthogonal to the teacher.
        ridge: of the penalty ``ridge |w|^2/2``.
        dim: D of the noise ``-eta zeta`` in m, ``cov zeta = Cov(g z)/P``; None for the limit.

    Returns:
        A Record at steps ``0 .. T``: ``train_loss``, its Monte Carlo standard error ``train_error``, ``test_loss``,
        ``overlaps [T+1, k, m]``, ``C`` and ``R [T+1, k, T+1, k]``, and ``lane_failed``: whether, by then, the train
        loss was not finite, had risen to twice its smallest, or was less than two of its standard errors.

    Raises:
        ValueError: for a number out of its range, an odd number of samples, or shapes that do not fit.
        TypeError: where ``gradient`` or ``loss`` gives another shape, or complex numbers.

    Cost: ``S T^3 k^3`` FLOPs, ``S T^2 k^2 + S^2/2`` numbers; Monte Carlo errors fall as ``1/sqrt(S)``.

    Reference: Mignacco, Krzakala, Urbani & Zdeborova 2020; Celentano, Cheng & Montanari 2021 (discrete steps).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> start = {"overlaps": jnp.zeros((1, 1)), "covariance": jnp.zeros((1, 1))}
        >>> record = committee(lambda h, y: h - y, lambda z, e: z, 2.0, 3, jax.random.key(0), 200,
        ...                    loss=lambda h, y: (h[0] - y[0]) ** 2, learning_rate=0.5, **start)
        >>> [round(float(m), 1) for m in record.values["overlaps"][:, 0, 0]]
        [0.0, 0.5, 0.6, 0.7]
    """
    m, C = jnp.asarray(overlaps, jnp.result_type(float)), jnp.asarray(covariance, jnp.result_type(float))
    _check(steps, samples, m, C)
    check_numbers(
        kappa=(kappa, POSITIVE), learning_rate=(learning_rate, POSITIVE), ridge=(ridge, NOT_NEGATIVE),
        dim=(jnp.inf if dim is None else dim, OR_INFINITE),
    )  # fmt: skip
    _check_functions(gradient, teacher, loss, m)
    numbers = (jnp.asarray(v, m.dtype) for v in (kappa, learning_rate, ridge, jnp.inf if dim is None else dim))
    outputs = _pass(gradient, teacher, loss, steps, samples, key, m, C, *numbers)
    step = jnp.arange(steps + 1)
    return Record(step, learning_rate * step, outputs)


def _check(steps: int, samples: int, m: Array, C: Array) -> None:
    check_counts(steps=steps, samples=samples)
    if samples % 2:
        raise ValueError(f"samples: got {samples}; allowed: an even number")
    if m.ndim != 2:
        raise ValueError(f"overlaps: got shape {m.shape}; allowed: [units, teacher vectors]")
    if C.shape != (len(m), len(m)):
        raise ValueError(f"covariance: got shape {C.shape}; allowed: {(len(m), len(m))}")
    if not isinstance(C, Tracer):
        values = np.asarray(C, float)
        rounding = 1e-4 * np.abs(values).max(initial=0)
        if not np.allclose(values, values.T, atol=rounding) or not np.all(np.linalg.eigvalsh(values) >= -rounding):
            raise ValueError(f"covariance: got {values.tolist()}; allowed: a symmetric matrix without negative values")


def _check_functions(gradient, teacher, loss, m: Array) -> None:
    for name, function in (("gradient", gradient), ("teacher", teacher), ("loss", loss)):
        if not callable(function):
            raise TypeError(f"{name}: got {function!r}; allowed: a function")
    h, z = (jax.ShapeDtypeStruct((n,), m.dtype) for n in m.shape)
    y = jax.eval_shape(teacher, z, jax.ShapeDtypeStruct((), m.dtype))
    for name, function, shape in (("gradient", gradient, h.shape), ("loss", loss, ())):
        found = jax.eval_shape(function, h, y)
        if getattr(found, "shape", None) != shape or not jnp.issubdtype(found.dtype, jnp.floating):
            raise TypeError(f"{name}: got {found} of one sample; allowed: real, of shape {list(shape)}")


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _pass(gradient, teacher, loss, steps, samples, key, m, C, kappa, eta, ridge, dim):
    T, S, (k, vectors), dtype = steps + 1, samples, m.shape, m.dtype
    keys = jax.random.split(key, 5)
    z, e = jnp.split(jnp.tile(whitened(keys[0], S // 2, vectors + 1), (2, 1)), [vectors], axis=1)
    y = jax.vmap(teacher)(z, e[:, 0])
    omega = jax.random.normal(keys[1], (S // 2, S), dtype)
    xi = mirrored(whitened(keys[2], S // 2, k))
    fresh = mirrored(whitened(keys[3], S // 2, k))
    noise = jax.random.normal(keys[4], (S,), dtype) / S**0.5  # of the overlaps, at finite D
    weights = jnp.full(S, 1 / S, dtype)
    g_of, slope_of = jax.vmap(gradient), jax.vmap(jax.jacfwd(gradient))

    def step(carry, t):
        order, m, u, g, J = carry  # u, g: [S, T, k]; J = dg(t, i)/du(s, j): [S, T, k, T, k]
        past = (eta / kappa) * after(order.R[t], t)  # [k, T-1, k]
        h = u[:, t] + z @ m[t].T - jnp.einsum("isj,nsj->ni", past, g[:, :-1])
        dh = -jnp.einsum("isj,nsjul->niul", past, J[:, :-1]).at[:, :, t].add(-jnp.eye(k, dtype=dtype))
        now, slope = g_of(h, y), slope_of(h, y)
        dg = jnp.einsum("nij,njul->niul", slope, dh)
        g, J = g.at[:, t].set(now), J.at[:, t].set(dg)
        K = eta * jnp.mean(dg, 0)[:, :-1]
        N = (eta**2 / kappa) * jnp.einsum("ni,nsj->isj", now, g[:, :-1]) / S
        losses = jax.vmap(loss)(h, y)
        root = _root(order.C[t, :, t])
        read = {
            "train_loss": jnp.mean(losses),
            "train_error": jnp.std(losses) / S**0.5,
            "test_loss": jnp.mean(jax.vmap(loss)(z @ m[t].T + fresh @ root, y)),
        }

        def move(carry):
            order, m, u = carry
            gz = now[:, :, None] * z[:, None, :]
            mean = jnp.mean(gz, 0)
            zeta = jnp.tensordot(noise, gz - mean, 1) / jnp.sqrt(kappa * dim)
            kept = 1 - eta * ridge
            m = m.at[t + 1].set(kept * m[t] - eta * (mean + zeta))
            kick = injected(omega, weights, eta / jnp.sqrt(kappa) * now)
            u = u.at[:, t + 1].set(kept * u[:, t] - jnp.einsum("iuj,nuj->ni", K, u[:, :-1]) + kick)
            return advance(order, t, K, N, kept), m, u

        order, m, u = jax.lax.cond(t < T - 1, move, lambda carry: carry, (order, m, u))
        return (order, m, u, g, J), read

    rows = jnp.zeros((S, T, k), dtype)
    first = jnp.zeros((T, k, vectors), dtype).at[0].set(m)
    J = jnp.zeros((S, T, k, T, k), dtype)
    carry = (start(steps, C), first, rows.at[:, 0].set(xi @ _root(C)), rows, J)
    (order, m, *_), read = jax.lax.scan(step, carry, jnp.arange(T))
    return {**read, "overlaps": m, "C": order.C, "R": order.R, "lane_failed": failed(read)}


def failed(read: dict[str, Float[Array, " t"]]) -> Bool[Array, " t"]:
    """By step: whether a lane's own readings say that it is not to be trusted from here on."""
    train, error = read["train_loss"], read["train_error"]
    bad = ~jnp.isfinite(train) | (train > RISE * jax.lax.cummin(train)) | (train < 2 * error)
    return jax.lax.cummax(bad.astype(int)).astype(bool)


def _root(C: Float[Array, "k k"]) -> Float[Array, "k k"]:
    """A symmetric root, of a matrix that may be singular."""
    values, vectors = jnp.linalg.eigh(C)
    return (vectors * jnp.sqrt(jnp.maximum(values, 0))) @ vectors.T
