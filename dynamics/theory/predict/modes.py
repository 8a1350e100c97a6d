"""Eigenmodes of the training kernel, and values that are computed once for all predictions."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Bool, Float

from dynamics.types import Array


def rounding(k: Float[Array, "P P"]) -> float:
    """Below what share of its largest an eigenvalue or pivot of ``k`` counts as 0."""
    return 4 * math.sqrt(len(k)) * float(jnp.finfo(k.dtype).eps)


def solver(k: Float[Array, "P P"]) -> tuple[Callable[[Array], Array], Bool[Array, ""]]:
    """``b -> k^-1 b`` by one Cholesky factorisation, and whether ``k`` is singular to rounding (duplicate inputs).

    Then it is the pseudo-inverse, the limit of a vanishing ridge, by one ``eigh``.
    """
    factor = jax.scipy.linalg.cho_factor(k)
    singular = ~(jnp.min(jnp.diag(factor[0])) ** 2 > rounding(k) * jnp.max(jnp.diag(k)))

    def pseudo(b: Array) -> Array:
        values, vectors = jnp.linalg.eigh(k)
        kept = values > rounding(k) * values[-1]
        return vectors @ (jnp.where(kept, 1 / jnp.where(kept, values, 1), 0)[:, None] * (vectors.T @ b))

    def solve(b: Array) -> Array:
        return jax.lax.cond(singular, pseudo, lambda b: jax.scipy.linalg.cho_solve(factor, b), b)

    return solve, singular


class Spectrum(NamedTuple):
    """Eigenvalues (0 where they are so to rounding) and eigenvectors of a regularised kernel, divided by the size of
    ``y``. No training moves along an eigenvector of 0, and no test point feels it, a joint kernel being positive."""

    rates: Array
    vectors: Array

    @jax.jit
    def decay(self, t: Array) -> Array:
        """``[T, P]`` ``exp(-t lambda)``."""
        return jnp.exp(-self._passed(t))

    @jax.jit
    def moved(self, t: Array) -> Array:
        """``[T, P]`` ``1 - exp(-t lambda)``."""
        return -jnp.expm1(-self._passed(t))

    @jax.jit
    def work(self, t: Array) -> Array:
        """``[T, P]`` ``(1 - exp(-t lambda)) / lambda``, 0 where ``lambda`` is 0."""
        return self.moved(t) / jnp.where(self.rates > 0, self.rates, 1)

    def _passed(self, t: Array) -> Array:
        """``[T, P]`` ``t lambda``, 0 where ``lambda`` is 0, at infinite times too."""
        positive = self.rates > 0
        return jnp.where(positive, t[:, None] * jnp.where(positive, self.rates, 1), 0)

    @jax.jit
    def apply(self, weights: Array, rhs: Array) -> Array:
        """``[T, P, C]`` ``V diag(weights[t]) V^T rhs``."""
        return jnp.einsum("pi,ti,ic->tpc", self.vectors, weights, self.vectors.T @ rhs)

    @jax.jit
    def operator(self, weights: Array) -> Array:
        """``[T, P, P]`` ``V diag(weights[t]) V^T``."""
        return jnp.einsum("pi,ti,qi->tpq", self.vectors, weights, self.vectors)


@functools.partial(jax.jit, static_argnames="size")
def spectrum_of(k: Float[Array, "P P"], size: int) -> Spectrum:
    values, vectors = jnp.linalg.eigh(k)
    return Spectrum(jnp.where(values > rounding(k) * values[-1], values, 0) / size, vectors)


class Once:
    """Values computed at most once; those that belong to a trace are not kept beyond it."""

    def __init__(self, inputs: Any):
        self.traced = any(isinstance(x, Tracer) for x in jax.tree.leaves(inputs))
        self.cache: dict[str, Any] = {}

    def __call__(self, name: str, make: Callable[[], Any]) -> Any:
        if self.traced:
            return make()
        if name not in self.cache:
            with jax.ensure_compile_time_eval():
                self.cache[name] = make()
        return self.cache[name]
