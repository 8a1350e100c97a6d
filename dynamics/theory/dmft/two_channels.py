"""The causal pass of ``proportional``: a sample's bath and its two coherent fields, and the order parameters."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from dynamics.theory.dmft.committee import failed
from dynamics.theory.dmft.order import Order, advance, after, injected, start
from dynamics.types import Array


class Numbers(NamedTuple):
    """The numbers of the model, as in ``proportional``."""

    kappa: Any
    dim: Any
    alpha: Any
    eps: Any
    rate: Any


class Samples(NamedTuple):
    """What a Monte Carlo sample is from the start: field, norm and weight, ``[S]``."""

    z: Array
    rho: Array
    w: Array

    def mean(self, values: Float[Array, "samples ..."]) -> Float[Array, " ..."]:
        return jnp.tensordot(self.w, values, 1)


class Memory(NamedTuple):
    """What a sample keeps of its steps s: gradients and errors, and their total derivatives by ``h_j0(u)``.

    ``g [S, T, 2]``, ``dg [S, T, 2, T, 2]``, ``d [S, T]``, ``dd [S, T, T, 2]``, ``Gam [S, T, T]``.
    """

    g: Array
    dg: Array
    d: Array
    dd: Array
    Gam: Array


class Orders(NamedTuple):
    """``coherent`` (c, u), ``bath`` (tau, r) and the bath's ``overlap`` with beta; ``m [T, 2]``."""

    coherent: Order
    bath: Order
    overlap: Order
    m: Array


@partial(jax.jit, static_argnums=(0, 1, 2))
def causal_pass(steps, noisy, spike, key, z, rho, w, kappa, dim, alpha, eps, rate, zeta):
    """Readings at steps ``0 .. T`` over samples of fields z, norms rho and weights w, all ``[S]``."""
    T, S, dtype = steps + 1, len(z), z.dtype
    model, at, in_bath = Numbers(kappa, dim, alpha, eps, rate), Samples(z, rho, w), spike == "bath"
    of_omega, of_noise = jax.random.split(key)
    omega = jax.random.normal(of_omega, (S // 2, S), dtype)
    noise = jnp.sqrt(w) * jax.random.normal(of_noise, (S,), dtype) / jnp.sqrt(kappa * dim) if noisy else None

    def step(carry, t):
        orders, y, memory = carry  # y: [S, T, 2], the coherent cavity fields orthogonal to beta, over sqrt(rho)
        memory, Q, power = _bath_field(model, at, orders, memory, t, in_bath)
        memory = _coherent_field(model, at, orders, memory, y, Q, t, in_bath)
        read = _read(model, at, orders, memory, t, in_bath)

        def move(held):
            orders, y = held
            K, orders = _advance(model, at, orders, memory, power, t, noise, in_bath)
            kick = injected(omega, w * rho, rate / jnp.sqrt(kappa) * memory.g[:, t])
            return orders, y.at[:, t + 1].set(y[:, t] - jnp.einsum("iuj,nuj->ni", K, y[:, :-1]) + kick)

        orders, y = jax.lax.cond(t < T - 1, move, lambda held: held, (orders, y))
        return (orders, y, memory), read

    def zero(*shape):
        return jnp.zeros(shape, dtype)

    one = jnp.ones((1, 1), dtype)
    seed = 1 / jnp.sqrt(dim * zeta) if spike == "coherent" else zero()
    of_bath = start(steps, one), start(steps, one / dim if in_bath else 0 * one)
    orders = Orders(start(steps, zero(2, 2)), *of_bath, zero(T, 2).at[0, 1].set(seed))
    memory = Memory(zero(S, T, 2), zero(S, T, 2, T, 2), zero(S, T), zero(S, T, T, 2), zero(S, T, T))
    (orders, *_), read = jax.lax.scan(step, (orders, zero(S, T, 2), memory), jnp.arange(T))
    return {**read, "overlaps": orders.m, "lane_failed": failed(read)}


def _bath_field(model: Numbers, at: Samples, orders: Orders, memory: Memory, t, in_bath: bool):
    """Gam(t, .), ``Q(s, t)`` with the power of the orthogonal part alone, and ``dQ(t, t)`` in dd's row t."""
    (z, rho, _), (_, _, d, dd, Gam), R = at, memory, orders.bath.R
    a = model.rate * model.eps / model.kappa
    back = a * rho[:, None] * after(R[t], t)[0, :, 0] * d[:, :-1]
    gam = -jnp.einsum("ns,nsu->nu", back, Gam[:, :-1]).at[:, t].add(-1)
    Gam = Gam.at[:, t].set(gam)
    power = rho[:, None] * jnp.einsum("nsu,nu->ns", Gam, gam @ orders.bath.C[:, 0, :, 0])
    Q = power
    if in_bath:
        Q = Q + z[:, None] ** 2 * jnp.einsum("nsu,nu->ns", Gam, gam @ orders.overlap.C[:, 0, :, 0])
    kicked = jax.vmap(after)(R, jnp.arange(len(R)))[:, 0, :, 0]  # r(u, s+1): [T, T-1]
    pull = -2 * a * rho[:, None] * (gam @ kicked) * Q[:, :-1]
    dQ = jnp.einsum("ns,nsuj->nuj", pull, dd[:, :-1])
    return memory._replace(Gam=Gam, dd=dd.at[:, t].set(dQ)), Q, power


def _coherent_field(model: Numbers, at: Samples, orders: Orders, memory: Memory, y, Q, t, in_bath: bool) -> Memory:
    """Error and gradients of step t, with their derivatives."""
    (z, rho, _), (g, dg, d, dd, _) = at, memory
    alpha, eps, m = model.alpha, model.eps, orders.m
    past = (model.rate / model.kappa) * after(orders.coherent.R[t], t)
    field = jnp.sqrt(rho)[:, None] * y[:, t] + z[:, None] * m[t]
    c, u = (field - rho[:, None] * jnp.einsum("isj,nsj->ni", past, g[:, :-1])).T
    dh = -rho[:, None, None, None] * jnp.einsum("isj,nsjul->niul", past, dg[:, :-1])
    dc, du = jnp.moveaxis(dh.at[:, :, t].add(jnp.eye(2, dtype=z.dtype)), 1, 0)  # [S, T, 2]
    seed = orders.overlap.C[0, 0, 0, 0] if in_bath else m[0, 1] ** 2
    now = alpha * c + 0.5 * alpha * eps * (Q[:, t] + u**2 + c**2 - rho - z**2 * seed) - z**2 / 2

    def times(v, derivative):
        return v[:, None, None] * derivative

    of_d = times(alpha * (1 + eps * c), dc) + alpha * eps * (dd[:, t] / 2 + times(u, du))
    of_c, of_u = times(1 + eps * c, of_d) + times(eps * now, dc), eps * (times(u, of_d) + times(now, du))
    return memory._replace(
        g=g.at[:, t].set(jnp.stack([now * (1 + eps * c), eps * now * u], 1)),
        dg=dg.at[:, t].set(jnp.stack([of_c, of_u], 1)),
        d=d.at[:, t].set(now),
        dd=dd.at[:, t].set(of_d),
    )


def _advance(model: Numbers, at: Samples, orders: Orders, memory: Memory, power, t, noise, in_bath: bool):
    """The order parameters of step t + 1, and the row of the coherent kernel."""
    (z, rho, w), (g, dg, d, _, Gam), rate = at, memory, model.rate
    a, now, gam = rate * model.eps / model.kappa, d[:, t, None], Gam[:, t]

    def row(values):
        return at.mean(values)[None, :-1, None]

    squares = now * d * power  # d(t) d(s) of the power orthogonal to beta; with that along it in the wrong theory
    along = rho[:, None] * now * d
    if in_bath:
        Q_beta = z[:, None] ** 2 * jnp.einsum("nsu,nu->ns", Gam, gam @ orders.overlap.C[:, 0, :, 0])
        along = along * (power + Q_beta)
    else:
        along = along * power
    bath = advance(orders.bath, t, a * model.kappa * row(rho[:, None] * now * gam), a**2 * model.kappa * row(along))
    K, N = a * model.kappa * row(z[:, None] ** 2 * now * gam), a**2 * model.kappa * row(z[:, None] ** 2 * squares)
    overlap = advance(orders.overlap, t, K, N / model.dim if in_bath else N)
    K = rate * jnp.einsum("n,niuj->iuj", w * rho, dg[:, t])[:, :-1]
    N = (rate**2 / model.kappa) * jnp.einsum("n,ni,nsj->isj", w * rho, g[:, t], g[:, :-1])
    gz = g[:, t] * z[:, None]
    drift = at.mean(gz)
    if noise is not None:
        drift = drift + noise @ (gz - drift)
    m = orders.m.at[t + 1].set(orders.m[t] - rate * drift)
    return K, Orders(advance(orders.coherent, t, K, N), bath, overlap, m)


def _read(model: Numbers, at: Samples, orders: Orders, memory: Memory, t, in_bath: bool) -> dict[str, Array]:
    """Losses by their terms, from the Gram matrix of ``(beta, u, c)/D``, and what the vectors have learned."""
    C, tau, d, m = orders.coherent.C[t, :, t], orders.bath.C[t, 0, t, 0], memory.d[:, t], orders.m
    B, L = orders.overlap.C[t, 0, t, 0], orders.overlap.R[t, 0, 0, 0]
    grown, seed = (B, orders.overlap.C[0, 0, 0, 0]) if in_bath else (0.0, m[0, 1] ** 2)
    (mc, mu), scale = m[t], model.alpha * model.eps
    mean, spike, cross = C[0, 0] + mc**2, C[1, 1] + mu**2, C[0, 1] + mc * mu
    trace, of_beta = scale * (tau + grown + spike + mean - 1 - seed) - 1, scale * grown - 1
    power = of_beta**2 + scale**2 * (spike**2 + mean**2 + 2 * cross**2) + 2 * of_beta * scale * (mu**2 + mc**2)
    terms = {"test_mean": trace**2 / 4, "test_power": power / 2, "test_linear": model.alpha**2 * mean}
    share = L**2 * seed / B if in_bath else L**2 / (L**2 + B)
    spread = jnp.maximum(at.mean(d**4) - at.mean(d**2) ** 2, 0) * jnp.sum(at.w**2)
    train = {"train_loss": at.mean(d**2), "train_error": jnp.sqrt(spread), "seed_share": share}
    return {
        **train,
        "test_loss": jnp.sum(jnp.stack([*terms.values()])),
        **terms,
        "mean": mean,
        "spike": spike,
        "bath": tau + grown,
        "along_beta": grown + mu**2,
    }
