"""The scaled residual ReLU network ``Y += W relu(Y) / sqrt(L)``, ``W ~ N(0, 1/n)``: drawn in law, and its theory."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np


@partial(jax.jit, static_argnames=("width", "depth", "nets"))
def residual(key, width, depth, nets, c=0.2):
    """``q_1, q_2, p [nets]`` at depth L: ``|Y|^2 / n`` of two inputs and their product, from 1, 1 and c exactly."""
    start, key = jax.random.split(key)
    one, two = jax.random.normal(start, (2, nets, width))
    one = one * jnp.sqrt(width / jnp.sum(one**2, -1, keepdims=True))
    two = two - one * jnp.mean(one * two, -1, keepdims=True)
    two = two * jnp.sqrt(width / jnp.sum(two**2, -1, keepdims=True))
    Y = one, c * one + jnp.sqrt(1 - c**2) * two

    def layer(Y, key):
        z1, z2 = jax.random.normal(key, (2, nets, width))
        h1, h2 = (jax.nn.relu(y) for y in Y)
        a, b, m = (jnp.mean(u * v, -1, keepdims=True) for u, v in ((h1, h1), (h2, h2), (h1, h2)))
        root = jnp.sqrt(jnp.maximum(a, 1e-30))
        left = jnp.sqrt(jnp.maximum(b - (m / root) ** 2, 0))
        return (Y[0] + root * z1 / depth**0.5, Y[1] + (m / root * z1 + left * z2) / depth**0.5), None

    (y1, y2), _ = jax.lax.scan(layer, Y, jax.random.split(key, depth))
    return jnp.stack([jnp.mean(u * v, -1) for u, v in ((y1, y1), (y2, y2), (y1, y2))], -1)


def expected_length(depth):
    """``E q = (1 + 1/(2L))^L`` from 1, exact at every width."""
    return (1 + 0.5 / np.asarray(depth)) ** np.asarray(depth)


def log_variance(depth: int) -> float:
    """``n Var log q`` at large n, for every depth L: no L/n in it.

    A layer multiplies q by ``1 + (b/L) |g|^2/n + 2 sqrt(b/L) xi/sqrt(n)`` with b the share of |Y|^2 on positive units:
    ``b - 1/2 = D/2`` with ``D = sum Y|Y| / |Y|^2``, of variance 3/n, which later layers remember. Summed,

        n Var log q = L (2/L + 1/(2 L^2)) / (1 + 1/(2L))^2 + sum_lm C(rho_lm) / (4 (L + 1/2)^2),

    ``C(rho) = E u|u| v|v|`` at correlation rho, ``rho_lm = (1 + 1/(2L))^(-|l-m|/2)``. L to infinity: 2.675.
    """
    grown = 1 + 0.5 / depth
    layers = np.arange(depth)
    rho = grown ** (-np.abs(layers[:, None] - layers) / 2)
    kept = (_signed_square(rho) - _signed_square(-rho)).sum() * 2
    return (2 + 0.5 / depth) / grown**2 + kept / (4 * (depth + 0.5) ** 2)


def _signed_square(c):
    """``E relu(u)^2 relu(v)^2`` at correlation c (arc-cosine kernel of order 2)."""
    angle = np.arccos(np.clip(c, -1, 1))
    return (3 * np.sin(angle) * c + (np.pi - angle) * (1 + 2 * c**2)) / (2 * np.pi)


def product(c: float, steps: int = 2000) -> float:
    """``p(1)`` of the depth-continuous limit: ``q' = q/2, p' = (q/2) f(p/q)`` from ``q = 1, p = c`` (order 4)."""

    def f(t, p):
        q = np.exp(t / 2)
        c = np.clip(p / q, -1, 1)
        return q / 2 * (np.sqrt(1 - c**2) + c * (np.pi - np.arccos(c))) / np.pi

    p, dt = c, 1 / steps
    for i in range(steps):
        t = i * dt
        k1 = f(t, p)
        k2 = f(t + dt / 2, p + dt / 2 * k1)
        k3 = f(t + dt / 2, p + dt / 2 * k2)
        p += dt / 6 * (k1 + 2 * k2 + 2 * k3 + f(t + dt, p + dt * k3))
    return float(p)


def product_at(c: float, depth: int) -> float:
    """The same after L layers, at infinite width."""
    q, p = 1.0, c
    for _ in range(depth):
        angle = np.arccos(np.clip(p / q, -1, 1))
        p += q / (2 * depth) * (np.sin(angle) + np.cos(angle) * (np.pi - angle)) / np.pi
        q *= 1 + 0.5 / depth
    return float(p)
