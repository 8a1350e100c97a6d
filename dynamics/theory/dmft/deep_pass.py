"""The causal pass of deep mean-field theory: at each step all layers upwards, the outputs, all layers downwards.

The start weights act on functions of a layer's sites as an isometry with a memory. With orthonormal functions ``q_k``
of the features ``phi(h^l)`` seen so far, and ``p_m`` of the gradients ``g^{l+1}``,

    phi(h^l(t)) = sum_k c_k q_k,     W^l phi(h^l(t))   = sum_k c_k e_k + sum_m a_m p_m,     a_m = <n_m phi(h^l(t))>
    g^{l+1}(t)  = sum_m d_m p_m,     W^l^T g^{l+1}(t)  = sum_m d_m n_m + sum_k b_k q_k,     b_k = <e_k g^{l+1}(t)>

with fresh standard Gaussians ``e_k`` on the sites of layer l + 1 and ``n_m`` on those of layer l. So ``Phi^l = c c^T``,
``G^{l+1} = d d^T``, and a, b are the responses A, B in these coordinates, by Stein's identity ``<n phi> = <dphi/dn>``:
activations may have kinks. What step t needs is known before it: there is nothing to iterate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from dynamics.types import Array


class Problem(NamedTuple):
    """``kernel [P, P]`` of the inputs, targets ``y [P]``, ``gamma``, ``pull [T, T, P]``: with which step size the error
    of step s acts on the weights of step t, ``bias``: variance of the biases."""

    kernel: Array
    y: Array
    gamma: Array
    pull: Array
    bias: Array


class Draws(NamedTuple):
    """Whitened Gaussians on the sites of each layer: ``e [S, n]`` (the first layer's ``[S, P]``), ``n [S, n]`` (the
    last layer's ``[S, 1]``, the start of the readout), ``bias [S, 1]``; and each site's ``weight [S]``, of sum 1."""

    e: tuple[Array, ...]
    n: tuple[Array, ...]
    bias: tuple[Array, ...]
    weight: Array


class Layer(NamedTuple):
    """A layer's past: orthonormal functions ``q``, ``p [S, n]``, n = T P, those of later steps 0, and the coefficients
    ``c``, ``d [T, P, n]`` of features and gradients in them."""

    q: Array
    p: Array
    c: Array
    d: Array


def causal_pass(
    phi: Callable, problem: Problem, draws: Draws, responses: str
) -> tuple[Float[Array, "T P"], tuple[Layer, ...]]:
    """``f [T, P]`` and the layers after the last step."""
    T, _, P = problem.pull.shape
    dtype, sites = problem.kernel.dtype, len(draws.weight)
    functions, rows = jnp.zeros((sites, T * P), dtype), jnp.zeros((T, P, T * P), dtype)

    def step(past, t):
        layers, errors = past
        pull = problem.gamma * problem.pull[t] * errors
        layers, h, u, moved = upwards(phi, problem, draws, layers, pull, t, responses)
        last, w0 = layers[-1], draws.n[-1]
        start = mean(draws, w0 * moved)  # <w0 phi(u)> = 0 is left out: less noise
        learnt = jnp.einsum("sa,bsa->b", pull, products(last.c[t], last.c) + problem.bias)
        f = (start + learnt) / problem.gamma
        layers = downwards(phi, draws, layers, h, u, pull, t, responses)
        return (layers, errors.at[t].set(problem.y - f)), f

    start = (tuple(Layer(functions, functions, rows, rows) for _ in draws.e), jnp.zeros((T, P), dtype))
    (layers, _), f = jax.lax.scan(step, start, jnp.arange(T))
    return f, layers


def upwards(phi, problem, draws, layers, pull, t, responses):
    """The layers with their features at step t, the fields h, their Gaussian parts u, ``[S, P]`` each, and the last
    layer's ``phi(h) - phi(u)``.

    ``h(t) = u(t) + sum_m a_m(t) p_m + gamma sum_{s,a} pull(t,s;a) Delta_a(s) Phi(t,s;a) g_a(s)``
    """
    T, P, n = layers[0].c.shape
    before, found, fields, gaussian = jnp.arange(n) < t * P, [], [], []
    weights, turn = jnp.linalg.eigh(problem.kernel + problem.bias)
    a = jnp.zeros((P, n), problem.kernel.dtype)
    for number, layer in enumerate(layers):
        if number == 0:
            kernel = jnp.broadcast_to(problem.kernel[:, None], (P, T, P))
            u = draws.e[0] @ ((turn * jnp.sqrt(jnp.maximum(weights, 0))) @ turn.T)
        else:
            below = found[-1].c
            kernel = products(below[t], below)
            u = draws.e[number] @ below[t].T + jnp.sqrt(problem.bias) * draws.bias[number]
        learnt = layer.p @ (a + jnp.einsum("sa,bsa,sam->bm", pull, kernel + problem.bias, layer.d)).T
        h, moved = u + learnt, change(phi, u, learnt)
        q, c = extended(layer.q, phi(h), draws.weight, t * P)
        found.append(layer._replace(q=q, c=jax.lax.dynamic_update_slice(layer.c, c[None], (t, 0, 0))))
        fields, gaussian = [*fields, h], [*gaussian, u]
        if responses != "none" and number < len(layers) - 1:
            a = mean(draws, moved, draws.n[number]) * before  # <n phi(u)> = 0 is left out
    return tuple(found), fields, gaussian, moved


def downwards(phi, draws, layers, fields, gaussian, pull, t, responses):
    """The layers with their gradients at step t.

    ``z(t) = r(t) + sum_k b_k(t) q_k + gamma sum_{s,a} pull(t,s;a) Delta_a(s) G(t,s;a) phi(h_a(s)),   g = phi'(h) z``
    """
    T, P, n = layers[0].c.shape
    so_far, found = jnp.arange(n) < (t + 1) * P, list(layers)
    b = jnp.zeros((P, n), pull.dtype)
    for number in reversed(range(len(layers))):
        layer, h = layers[number], fields[number]
        if number == len(layers) - 1:
            kernel, r = jnp.ones((P, T, P), pull.dtype), draws.n[-1]
        else:
            above = found[number + 1].d
            kernel, r = products(above[t], above), draws.n[number] @ above[t].T
        z = r + layer.q @ (b + jnp.einsum("sa,bsa,sak->bk", pull, kernel, layer.c)).T
        g = slope(phi, h) * z
        p, d = extended(layer.p, g, draws.weight, t * P)
        found[number] = layer._replace(p=p, d=jax.lax.dynamic_update_slice(layer.d, d[None], (t, 0, 0)))
        if responses != "none" and number > 0:
            b = mean(draws, g - slope(phi, gaussian[number]) * r, draws.e[number]) * so_far  # <e phi'(u) r> = 0
            if responses == "delayed":
                at_once = mean(draws, slope(lambda h: slope(phi, h), h) * z)
                b = b - at_once[:, None] * layers[number - 1].c[t]
    return tuple(found)


def extended(basis, values, weight, at):
    """The basis with those directions of ``values [S, P]`` that it lacks, in the slots from ``at``; and the values'
    coefficients ``[P, n]`` in it. Directions below rounding are left out."""
    weighted = (basis * weight[:, None]).T
    coefficients = weighted @ values
    rest = values - basis @ coefficients
    again = weighted @ rest  # once more, for rounding
    rest, coefficients = rest - basis @ again, coefficients + again
    eps, size = jnp.finfo(values.dtype).eps, jnp.max(weight @ values**2)
    new = orthonormal(rest, weight, (100 * eps) ** 2 * size)
    new = orthonormal(new, weight, 0.5)  # again, for what is small beside the rest
    basis = jax.lax.dynamic_update_slice(basis, new, (0, at))
    return basis, jax.lax.dynamic_update_slice(coefficients.T, (rest * weight[:, None]).T @ new, (0, at))


def orthonormal(values, weight, least):
    """Those next to ``values [S, P]`` of the functions whose products are a projector (the identity, where no direction
    has a power up to ``least``): a symmetric root, so that rounding turns nothing."""
    power, turn = jnp.linalg.eigh((values * weight[:, None]).T @ values)
    kept = power > least + 10 * jnp.finfo(values.dtype).eps * power[-1]
    return values @ ((turn * kept / jnp.sqrt(jnp.where(kept, power, 1.0))) @ turn.T)


def mean(draws: Draws, values, others=None):
    """``<values>`` ``[P]`` over sites, or ``<values others>`` ``[P, n]``."""
    weighted = values * draws.weight[:, None]
    return jnp.sum(weighted, 0) if others is None else weighted.T @ others


def products(rows, past):
    """``[P, T, P]`` kernel entries between coefficients ``[P, n]`` and ``[T, P, n]``."""
    return jnp.einsum("bk,sak->bsa", rows, past)


def change(phi, u, by):
    """``phi(u + by) - phi(u)``; where rounding would take it, by the slope at the middle."""
    near = jnp.abs(by) < jnp.finfo(u.dtype).eps ** (1 / 3)
    return jnp.where(near, slope(phi, u + by / 2) * by, phi(u + by) - phi(u))


def slope(phi, h):
    return jax.jvp(phi, (h,), (jnp.ones_like(h),))[1]
