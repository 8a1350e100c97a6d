"""The local learning coefficient of a minimum: its effective number of parameters, from Langevin chains around it."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, PRNGKeyArray

from dynamics.arguments import NOT_NEGATIVE, POSITIVE, check_counts, check_numbers
from dynamics.program.real_view import flat, wide
from dynamics.statistics import chain_mean
from dynamics.types import Array, Estimate, Objective, Params, check_objective, factory


class LocalLearningCoefficient(NamedTuple):
    """What the chains say. Trust ``value`` where ``r_hat < 1.01``, ``virial`` is 1 within its error, none diverged.

    Attributes:
        value: the estimate of lambda, the mean of ``trace``; NaN where a chain was lost to infinity. error: standard.
        n: the effective sample size of all draws together.
        r_hat: split R-hat of ``trace``: 1 where the chains agree.
        virial: ``E[u . grad U] / P``, an Estimate: 1 in equilibrium, whatever the landscape. Below 1 the chains, which
            start at one point, have not spread yet (R-hat cannot tell); above 1 is the heat of SGLD's finite step.
        acceptance: share of proposals taken, ``[chains]``; 1 for SGLD.
        diverged: chains lost to a non-finite loss, or stuck, fewer than a fifth of their proposals taken.
        step_size: epsilon.
        trace: ``n beta (L(w) - L(w*))`` at each draw.
    """

    value: Float[Array, ""]
    error: Float[Array, ""]
    n: Float[Array, ""]
    r_hat: Float[Array, ""]
    virial: Estimate
    acceptance: Float[Array, " chains"]
    diverged: Bool[Array, " chains"]
    step_size: Float[Array, ""]
    trace: Float[Array, "chains draws"]


@factory("local_learning_coefficient(L, params, batch, key)")
def local_learning_coefficient(
    objective: Objective,
    params: Params,
    batch: Any,
    key: PRNGKeyArray,
    *,
    chains: int = 4,
    draws: int = 1000,
    warmup: int = 500,
    beta: Any = None,
    gamma: Any = 1.0,
    samples: int | None = None,
    leapfrog: int = 8,
    step_size: Any = None,
    batch_size: int | None = None,
) -> LocalLearningCoefficient:
    """The local learning coefficient ``lambda = n beta (E[L(w)] - L(w*))`` of a minimum ``w*``: P/2 if it is regular.

    With ``u = w - w*`` the mean is over the density ``exp(-U)``, ``U = n beta (L(w) - L(w*)) + gamma |u|^2 / 2``.
    On the full batch the chains are Metropolis-adjusted, hence free of step-size bias: ``leapfrog`` steps of one random
    length up to ``sqrt(epsilon)`` a proposal (1 is MALA), epsilon tuned in the warm-up. With ``batch_size`` it is SGLD,

        u <- u - (epsilon / 2) (n beta grad L_batch + gamma u) + sqrt(epsilon) N(0, I).

    Args:
        objective: L, whose value is the mean negative log-likelihood a sample, in nats, penalty included:
            ``cross_entropy``; ``half_mse / s^2`` at noise variance ``s^2``. A factor on L acts as one on beta (``mse``:
            twice).
        params: ``w*``, at a minimum of L on the batch: elsewhere the value has the wrong zero, and may be negative.
        batch: as L takes it, samples on the leading axis.
        key: a PRNG key.
        chains: lanes side by side (memory of as many gradients). draws, warmup: proposals of each.
        beta: inverse temperature; ``1 / log n`` unless given.
        gamma: localisation, > 0 unless L alone confines the chains.
        samples: n; the leading axis of the batch unless given (tokens, where L is a mean over tokens).
        leapfrog: gradients a proposal, full batch.
        step_size: epsilon; tuned unless given, and to be given with ``batch_size``.
        batch_size: samples a gradient, drawn afresh for each chain and step.

    Returns:
        ``LocalLearningCoefficient``. Jittable; as an observable, ``lambda params, batch: {"lambda":
        local_learning_coefficient(L, params, batch, key).value}``.

    Raises:
        ValueError: for options out of range. TypeError: when L is no Objective.

    Bias: a direction of curvature h counts ``n beta h / (n beta h + gamma) / 2``, exactly for a quadratic L: what is
    flatter than ``gamma / (n beta)`` is not seen, so compare at equal gamma, beta and n. Beyond that a finite n beta
    costs a power of itself, and ``(m - 1) / log(n beta)`` where the multiplicity m is above 1. The localisation must
    hold the chains in one basin, or they report another's lambda. SGLD is too hot: a direction with ``k = n beta h +
    gamma`` counts ``1 / (1 - epsilon k / 4)`` times that, and batch noise adds to it; ``virial`` shows both.

    Cost: ``chains (draws + warmup) leapfrog`` gradients; with ``batch_size`` as many without the factor leapfrog, and a
    loss more each. n beta L in float32 must be resolved to 0.01: use float64 above ``n beta L = 1e5``.

    Reference: Lau, Furman, Wang, Murfet & Wei 2023, 'The local learning coefficient: a singularity-aware complexity
    measure'; Neal 2011 for the leapfrog proposals; Hoffman & Gelman 2014, algorithm 5, for their step.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> L = Objective.of(lambda w, batch: w[0] ** 2 + w[1] ** 4)  # lambda = 1/2 + 1/4, of P/2 = 1
        >>> key, samples = jax.random.key(0), jnp.zeros(1000)
        >>> found = local_learning_coefficient(L, jnp.zeros(2), samples, key, gamma=0.0)
        >>> bool(abs(found.value - 0.75) < 3 * found.error), bool(found.error < 0.05)
        (True, True)
    """
    check_objective(objective)
    rows = _rows(batch)
    n = rows if samples is None else samples
    counts = {"chains": (chains, 1), "draws": (draws, 4), "warmup": (warmup, 0 if step_size is not None else 1)}
    counts |= {"leapfrog": (leapfrog, 1), "samples": (n, 2 if beta is None else 1)}
    for name, (value, least) in counts.items():
        check_counts(least, **{name: value})
    check_numbers(gamma=(gamma, NOT_NEGATIVE))
    if beta is not None:
        check_numbers(beta=(beta, POSITIVE))
    if step_size is not None:
        check_numbers(step_size=(step_size, POSITIVE))
    if batch_size is not None and not 1 <= batch_size <= rows:
        raise ValueError(f"batch_size: got {batch_size!r}; allowed: an integer in [1, {rows}], or None for all")
    if batch_size is not None and step_size is None:
        raise ValueError("step_size: got None with batch_size; allowed: epsilon of SGLD, small against 4 / (n beta h)")
    params = jax.tree.map(_widened, params)
    n_beta = n * (1 / math.log(n) if beta is None else beta)
    static = objective, chains, draws, warmup, leapfrog, batch_size
    try:
        hash(objective)
        run = _compiled
    except TypeError:  # an objective that holds what cannot be hashed
        run = _run
    return run(*static, params, batch, key, n_beta, gamma, step_size)


def _run(L, chains, draws, warmup, leapfrog, batch_size, params, batch, key, n_beta, gamma, step_size):
    origin, _, merge = flat(params)
    gamma = jnp.asarray(gamma, origin.dtype)

    def excess(u, part, lowest):
        return (n_beta * (L(merge(origin + u), part) - lowest)).astype(u.dtype)

    u = jnp.zeros((chains, origin.size), origin.dtype)
    key_moves, key_chances = jax.random.split(key)
    keys = jax.random.split(key_moves, warmup + draws)
    if batch_size is not None:
        epsilon = jnp.asarray(step_size, origin.dtype)

        def draw(u, key):
            part = _part(key, batch, batch_size)
            return jax.value_and_grad(excess)(u, part, L(params, part))

        _, read = jax.lax.scan(_langevin(draw, gamma, epsilon), u, keys)
    else:
        lowest = L(params, batch)
        energy = jax.vmap(jax.value_and_grad(lambda u: excess(u, batch, lowest)))
        move = _hamiltonian(energy, gamma, leapfrog)
        tune = warmup if step_size is None else 0
        log_step = 0.5 * jnp.log(jnp.asarray(1 / n_beta if step_size is None else step_size, origin.dtype))
        # At a minimum the gradient is 0; where it is not, the first accepted proposal brings the right one. L(w*) that
        # is not finite makes all of the trace NaN.
        start = (u, u[:, 0] + (0 * lowest).astype(u.dtype), u), _tuning(log_step)

        def step(carry, at):
            state, tuning = carry
            t, key, chance = at
            state, read = move(state, key, chance, jnp.exp(tuning.log_step))
            tuned = _tuned(tuning, jnp.mean(read[1]), t + 1, 0.574 if leapfrog == 1 else 0.8)
            tuned = tuned._replace(log_step=jnp.where(t + 1 == tune, tuned.log_mean, tuned.log_step))
            return (state, jax.tree.map(lambda new, old: jnp.where(t < tune, new, old), tuned, tuning)), read

        chances = jax.random.uniform(key_chances, (warmup + draws, chains + 1), origin.dtype)
        (_, tuning), read = jax.lax.scan(step, start, (jnp.arange(warmup + draws), keys, chances))
        epsilon = jnp.exp(2 * tuning.log_step)
    series, taken = (one[warmup:].T for one in read)  # [2, chains, draws], [chains, draws]
    acceptance = jnp.mean(taken, 1)
    lost = ~jnp.all(jnp.isfinite(series[0]), 1)
    value, error, worth, r_hat = jax.vmap(chain_mean)(series)
    return LocalLearningCoefficient(
        value[0],
        error[0],
        worth[0],
        r_hat[0],
        virial=Estimate(value[1], error[1]),
        acceptance=acceptance,
        diverged=lost | (acceptance < 0.2),
        step_size=epsilon,
        trace=series[0],
    )


_compiled = functools.partial(jax.jit, static_argnums=tuple(range(6)))(_run)


def _widened(leaf):
    moves = jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
    return wide(jnp.asarray(leaf)) if moves else leaf


def _rows(batch) -> int:
    return next((leaf.shape[0] for leaf in jax.tree.leaves(batch) if jnp.ndim(leaf)), 0)


def _part(key, batch, size):
    chosen = jax.random.choice(key, _rows(batch), (size,), replace=False)
    return jax.tree.map(lambda leaf: leaf[chosen] if jnp.ndim(leaf) else leaf, batch)


def _langevin(draw, gamma, epsilon):
    """One SGLD step of all chains as a scan's body, with the readings at its start."""

    def step(u, key):
        key_batch, key_noise = jax.random.split(key)
        e, g = draw(u, key_batch)
        force = g + gamma * u
        noise = jax.random.normal(key_noise, u.shape, u.dtype)
        read = jnp.stack([e, jnp.mean(u * force)], -1), jnp.ones_like(e)
        return u - epsilon / 2 * force + jnp.sqrt(epsilon) * noise, read

    return lambda u, key: jax.vmap(step)(u, jax.random.split(key, len(u)))


def _hamiltonian(energy, gamma, leapfrog):
    """One proposal of all chains: ``leapfrog`` steps with fresh momenta, taken with probability ``exp(-dH)``."""

    def move(state, key, chance, step):
        u, e, g = state
        if leapfrog > 1:  # short steps free a chain from where L is steep; paths of one length may close
            step = step * (0.1 + 0.9 * chance[-1])
        p = jax.random.normal(key, u.shape, u.dtype)

        def total(u, e, p):
            return e + jnp.sum(gamma * u**2 + p**2, -1) / 2

        def leap(_, at):
            u, p, _, _ = at
            u = u + step * p
            e, g = energy(u)
            return u, p - step * (g + gamma * u), e, g

        half = p - step / 2 * (g + gamma * u)
        u1, p1, e1, g1 = jax.lax.fori_loop(0, leapfrog, leap, (u, half, e, g))
        p1 = p1 + step / 2 * (g1 + gamma * u1)
        gain = total(u, e, p) - total(u1, e1, p1)
        probability = jnp.where(jnp.isnan(gain), 0, jnp.exp(jnp.minimum(gain, 0)))
        taken = chance[:-1] < probability
        state = tuple(
            jnp.where(taken.reshape(-1, *[1] * (new.ndim - 1)), new, old) for new, old in ((u1, u), (e1, e), (g1, g))
        )
        u, e, g = state
        return state, (jnp.stack([e, jnp.mean(u * (g + gamma * u), -1)], -1), probability)

    return move


class _Tuning(NamedTuple):
    log_step: Array
    log_mean: Array
    miss: Array
    centre: Array


def _tuning(log_step):
    return _Tuning(log_step, log_step, jnp.zeros_like(log_step), log_step + math.log(10))


def _tuned(tuning, acceptance, t, target):
    """Dual averaging: the log step moves against the mean miss of the target; ``log_mean`` is its late average."""
    t = t.astype(acceptance.dtype)
    miss = tuning.miss + (target - acceptance - tuning.miss) / (t + 10)
    log_step = tuning.centre - jnp.sqrt(t) / 0.05 * miss
    weight = t**-0.75
    return _Tuning(log_step, weight * log_step + (1 - weight) * tuning.log_mean, miss, tuning.centre)
