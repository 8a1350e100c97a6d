"""The lazy-to-rich grokking model in the proportional limit: a self-averaging bath and one growing direction."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from dynamics.theory.dmft.committee import failed
from dynamics.theory.dmft.order import Order, advance, after, injected, start
from dynamics.types import Array, ArrayLike, Record

NODES = 24  # of the Gauss-Hermite rule in z
SPIKES = ("coherent", "bath", "none")


class Inputs(NamedTuple):
    """What the theory may know of a training set.

    Attributes:
        fields: ``z_mu = beta.x_mu``.
        norms: ``rho_mu = |x_mu|^2 - z_mu^2/D``, of what is orthogonal to beta.
    """

    fields: Float[Array, " P"]
    norms: Float[Array, " P"]


def draw_inputs(key: Array, kappa: float, dim: int) -> Inputs:
    """Fields and norms of ``P = kappa D`` inputs ``x ~ N(0, I/D)``, ``|beta|^2 = D``."""
    of_field, of_norm = jax.random.split(key)
    count = round(kappa * dim)
    z = jax.random.normal(of_field, (count,))
    return Inputs(z, 2 * jax.random.gamma(of_norm, (dim - 1) / 2, (count,)) / dim)


def inputs_of(x: Float[Array, "P D"], beta: Float[Array, " D"]) -> Inputs:
    """Fields and norms of given inputs ``x ~ N(0, I/D)``, ``|beta|^2 = D``."""
    z = x @ beta
    return Inputs(z, jnp.sum(x**2, 1) - z**2 / jnp.sum(beta**2))


def proportional(
    kappa: ArrayLike,
    steps: int,
    key: Array,
    samples: int = 2400,
    *,
    dim: ArrayLike,
    alpha: ArrayLike,
    eps: ArrayLike,
    rate: ArrayLike,
    zeta: ArrayLike = 1.0,
    inputs: Inputs | None = None,
    spike: str = "coherent",
    noise: bool = True,
) -> Record:
    """Grokking of the lazy-to-rich model as P, D -> infinity at ``kappa = P/D``, with the seed 1/D of beta kept.

    The model is that of ``theory.lazy_to_rich`` at N = infinity: ``w = T w(0) + c``, ``M = T T^T + c c^T``. The columns
    of T are a bath of self-averaging correlation tau and response r, but for one direction u, the growing
    eigenvector of M. A sample with ``z = beta.x`` and ``rho = |x|^2 - z^2/D`` sees, with ``a = rate eps/kappa``,

        Gam(t, .) = e_t - a rho sum_{s<t} r(t, s+1) d(s) Gam(s, .),      Q = rho Gam tau Gam^T
        h_i(t) = sqrt(rho) y_i(t) + z m_i(t) - (rate rho/kappa) sum_{s<t} R_ij(t, s+1) g_j(s),      i in {c, u}
        d = alpha h_c + (alpha eps/2)(Q(t, t) + h_u^2 + h_c^2 - rho - z^2 m_u(0)^2) - z^2/2
        g_c = d (1 + eps h_c),      g_u = eps d h_u
        m_i(t+1) = m_i(t) - rate E[g_i z]

    and tau, r, C, R follow (``order.advance``) from the kernels ``a kappa E[rho d Gam]``, ``rate E[rho dg_i/dh_j]`` and
    noises ``a^2 kappa E[rho d d' Q]``, ``(rate^2/kappa) E[rho g_i g_j]``. The spike starts at
    ``m_u(0) = 1/sqrt(D zeta)``, zeta from ``seed_share``.

    Args:
        kappa: ``P/D > 0``.
        steps: updates T.
        key: of the Monte Carlo samples.
        samples: their number S, an even multiple of the inputs (of 24 quadrature nodes without these).
        dim: D; inf leaves no seed, and nothing generalises.
        alpha, eps: output scale and weight of the quadratic term.
        rate: ``2 eta0/(alpha D)``, with the eta0 of ``theory.lazy_to_rich.reduction``.
        zeta: share of the spike's power that beta's own right direction carries.
        inputs: fields and norms of one training set; the expectations are then over its samples, and the theory
            follows that run. None: expectations over N(0, 1) by quadrature, ``rho = 1``.
        spike: ``coherent``; ``bath`` leaves u inside the bath (a wrong theory); ``none`` has no seed.
        noise: without ``inputs``, whether m gets the data's noise ``- rate zeta``, ``cov zeta = Cov(g z)/P``.

    Returns:
        A Record at steps ``0 .. T``: ``train_loss``, its Monte Carlo ``train_error``, ``test_loss`` and its terms
        ``test_mean``, ``test_power``, ``test_linear``; ``overlaps [T+1, 2]`` (m_c, m_u), ``mean``, ``spike`` and
        ``bath`` (``|c|^2/D``, ``|u|^2/D``, tau), ``seed_share``; and ``lane_failed``, as in ``committee``.

    Raises:
        ValueError: for fewer than one step, a number of samples that does not fit, or another ``spike``.

    Cost: ``10 S T^3`` FLOPs and ``8 S T^2 + S^2/2`` numbers: 13 CPU seconds at T = 80, S = 2400 in float32. Errors fall
    as ``1/sqrt(S)``.

    Reference: Kumar, Bordelon, Gershman & Pehlevan 2023 (model); the two-channel cavity is derived in
    docs/dmft_proportional.md.

    Example:
        >>> import jax
        >>> record = proportional(5.0, 2, jax.random.key(0), 48, dim=240, alpha=0.1, eps=0.1, rate=1.0)
        >>> [round(float(loss), 2) for loss in record.values["test_loss"]]
        [0.75, 0.75, 0.75]
    """
    z, rho, weights = _nodes(inputs, samples)
    if steps < 1:
        raise ValueError(f"steps: got {steps}; allowed: >= 1")
    if spike not in SPIKES:
        raise ValueError(f"spike: got {spike!r}; allowed: {', '.join(SPIKES)}")
    numbers = (jnp.asarray(v, z.dtype) for v in (kappa, dim, alpha, eps, rate, zeta))
    outputs = _pass(steps, noise and inputs is None, spike, key, z, rho, weights, *numbers)
    return Record(jnp.arange(steps + 1), jnp.arange(steps + 1), outputs)


def seed_share(
    kappa: ArrayLike, steps: int, key: Array, samples: int = 960, *, alpha: ArrayLike, eps: ArrayLike, rate: ArrayLike
) -> Float[Array, " steps"]:
    """The share zeta(t) of the growing direction's power that grew from beta's own right direction, without a seed.

    While the spike is small every right direction j of T has an overlap ``m_j = beta.T e_j/D`` that obeys one linear
    equation, with the kernel ``a kappa E[d z^2 Gam]``: beta's from its seed ``1/sqrt(D)``, the others' from noise of
    covariance ``(a^2 kappa/D) E[d d' z^2 Q]`` in all. With L the response to the seed and B/D the others' power,
    ``zeta(t) = L^2/(L^2 + B)``. Its late value sets the amplitude of a spike of one direction, ``1/sqrt(D zeta)``.

    Args:
        kappa, steps, key, samples, alpha, eps, rate: as in ``proportional``.

    Returns:
        zeta at steps ``0 .. T``. Cost: one pass.

    Example:
        >>> import jax
        >>> zeta = seed_share(5.0, 2, jax.random.key(0), 48, alpha=0.1, eps=0.1, rate=1.0)
        >>> float(zeta[0])
        1.0
    """
    options: dict[str, Any] = {"alpha": alpha, "eps": eps, "rate": rate}
    return proportional(kappa, steps, key, samples, dim=jnp.inf, spike="none", **options).values["seed_share"]


def _nodes(inputs: Inputs | None, samples: int) -> tuple[Array, Array, Array]:
    """Fields, norms and weights ``[S]``, in the order of ``injected``."""
    dtype = jnp.result_type(float)
    if inputs is None:
        x, w = np.polynomial.hermite_e.hermegauss(NODES)
        z, rho, w, what = x, np.ones(NODES), w / w.sum(), "quadrature nodes"
    else:
        z, rho = inputs
        w, what = jnp.full(len(z), 1 / len(z)), "inputs"
    if samples < 2 * len(z) or samples % (2 * len(z)):
        raise ValueError(f"samples: got {samples}; allowed: multiples of {2 * len(z)}, twice the {what}")
    copies = samples // len(z)
    z, rho, w = (jnp.tile(jnp.asarray(v, dtype), copies) for v in (z, rho, w))
    return z, rho, w / copies


class Model(NamedTuple):
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

    def mean(self, values: Array) -> Array:
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
def _pass(steps, noisy, spike, key, z, rho, w, kappa, dim, alpha, eps, rate, zeta):
    T, S, dtype = steps + 1, len(z), z.dtype
    model, at, in_bath = Model(kappa, dim, alpha, eps, rate), Samples(z, rho, w), spike == "bath"
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


def _bath_field(model: Model, at: Samples, orders: Orders, memory: Memory, t, in_bath: bool):
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


def _coherent_field(model: Model, at: Samples, orders: Orders, memory: Memory, y, Q, t, in_bath: bool) -> Memory:
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


def _advance(model: Model, at: Samples, orders: Orders, memory: Memory, power, t, noise, in_bath: bool):
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


def _read(model: Model, at: Samples, orders: Orders, memory: Memory, t, in_bath: bool) -> dict[str, Array]:
    """Losses by their terms, from the Gram matrix of ``(beta, u, c)/D``, and what the vectors have learned."""
    C, tau, d, m = orders.coherent.C[t, :, t], orders.bath.C[t, 0, t, 0], memory.d[:, t], orders.m
    B, L = orders.overlap.C[t, 0, t, 0], orders.overlap.R[t, 0, 0, 0]
    grown, seed = (B, orders.overlap.C[0, 0, 0, 0]) if in_bath else (0.0, m[0, 1] ** 2)
    (mc, mu), scale = m[t], model.alpha * model.eps
    mean, spike, cross = C[0, 0] + mc**2, C[1, 1] + mu**2, C[0, 1] + mc * mu
    trace, of_beta = scale * (tau + grown + spike + mean - 1 - seed) - 1, scale * grown - 1
    power = of_beta**2 + scale**2 * (spike**2 + mean**2 + 2 * cross**2) + 2 * of_beta * scale * (mu**2 + mc**2)
    terms = {"test_mean": trace**2 / 4, "test_power": power / 2, "test_linear": model.alpha**2 * mean}
    spread = jnp.maximum(at.mean(d**4) - at.mean(d**2) ** 2, 0) * jnp.sum(at.w**2)
    train = {"train_loss": at.mean(d**2), "train_error": jnp.sqrt(spread), "seed_share": L**2 / (L**2 + B)}
    return {**train, "test_loss": sum(terms.values()), **terms, "mean": mean, "spike": spike, "bath": tau + grown}
