"""Passes through f piece by piece: outputs, ``J v`` and ``J^T c`` of a batch in the memory of a piece."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dynamics.arguments import check_counts
from dynamics.mesh import tiles
from dynamics.program.forward import pushed
from dynamics.program.sample_axis import splits_into_samples
from dynamics.types import Array, Params


class Passes:
    """``J`` of a batch's outputs, in pieces of ``size`` samples; the last is filled up, and what was filled is cut off.

    Args:
        apply: ``(params, x) -> f``, a pytree of ``[n, ...]``, each output sample a function of its own input sample.
        params, merge, theta: the point, ``v [P] -> params``, and its vector.
        x: inputs, leaves ``[n, ...]``.
        size: samples in a piece, an integer >= 1.

    Raises:
        ValueError: for a size out of range, and for an f that mixes its samples, or may.

    Cost: of ``push`` and ``pull`` about two forward passes each, of ``pull_along`` four; nothing is kept.
    """

    def __init__(self, apply: Callable[..., Any], params: Params, merge, theta: Array, x: Any, size: int):
        check_counts(batch_size=size)
        if not splits_into_samples(apply, params, x, "exact"):
            raise ValueError(
                f"batch_size: got {size} for an f that mixes the samples of its batch, or may (batch statistics); "
                "allowed: None, or a function of each sample alone (evaluation mode)"
            )
        self.n = jax.tree.leaves(x)[0].shape[0]
        self.size = min(size, self.n)
        self.pieces, self.theta = tiles(x, self.size), theta
        self.f = lambda v, piece: apply(merge(v), piece)

    def outputs(self) -> Any:
        """f of the batch."""
        return self._joined(jax.lax.map(lambda piece: self.f(self.theta, piece), self.pieces))

    def push(self, v: Array) -> Any:
        """``J v``, like the outputs."""

        def one(piece):
            return pushed(lambda t: self.f(t, piece), self.theta, v)[1]

        return self._joined(jax.lax.map(one, self.pieces))

    def pull(self, cotangents: Any) -> Array:
        """``J^T c [P]``."""
        return self._sum(lambda piece, c: self._pulled(self.theta, piece, c), cotangents)

    def pull_along(self, v: Array, g: Any, dg: Any) -> Array:
        """The derivative of ``J^T g`` along v, g moving by dg, ``[P]``."""

        def one(piece, held):
            return jax.jvp(lambda t, c: self._pulled(t, piece, c), (self.theta, held[0]), (v, held[1]))[1]

        return self._sum(one, (g, dg))

    def _pulled(self, v: Array, piece: Any, cotangents: Any) -> Array:
        return jax.vjp(lambda t: self.f(t, piece), v)[1](cotangents)[0]

    def _sum(self, of_piece: Callable[[Any, Any], Array], held: Any) -> Array:
        def add(total, part):
            return total + of_piece(*part), None

        def padded(leaf):
            return jnp.pad(leaf, ((0, -self.n % self.size), *((0, 0) for _ in leaf.shape[1:])))

        parts = self.pieces, tiles(jax.tree.map(padded, held), self.size)
        return jax.lax.scan(add, jnp.zeros_like(self.theta), parts)[0]

    def _joined(self, parts: Any) -> Any:
        return jax.tree.map(lambda leaf: jnp.reshape(leaf, (-1, *leaf.shape[2:]))[: self.n], parts)
