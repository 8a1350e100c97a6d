"""Where each optimiser loses stability on a quadratic: thresholds, and the preconditioners that they refer to.

An optimiser with preconditioner P is stable along an eigenvector of ``P^-1 H`` (symmetrically ``P^-1/2 H P^-1/2``)
while its eigenvalue, the preconditioned sharpness, is below the threshold. For plain descent and momentum P = 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Float

from dynamics.arguments import check_counts
from dynamics.preconditioners import (
    adam_preconditioner,
    check_preconditioner,
    preconditioner_of,
    rmsprop_preconditioner,
)
from dynamics.types import Array, PyTree

__all__ = [
    "adam_preconditioner",
    "adam_threshold",
    "check_preconditioner",
    "gradient_descent_threshold",
    "minibatch_threshold",
    "momentum_threshold",
    "muon_threshold",
    "preconditioner_of",
    "rmsprop_preconditioner",
    "shampoo_inverse_root",
    "shampoo_inverse_roots",
    "spectral_sharpness",
    "trace_threshold",
]


def gradient_descent_threshold(learning_rate: Any) -> Any:
    """``2 / eta``: ``w <- w - eta lambda w`` contracts for ``lambda`` below it (Cohen et al. 2021, section 2)."""
    return 2 / learning_rate


def momentum_threshold(learning_rate: Any, momentum: Any, *, nesterov: bool = False) -> Any:
    """``(2 + 2 beta) / eta`` for heavy ball, ``(2 + 2 beta) / (eta (1 + 2 beta))`` for Nesterov.

    The trace is ``m <- g + beta m`` and the update ``-eta m`` (``optax.sgd``); Nesterov's is ``-eta (g + beta m)``.

    Reference: Cohen et al. 2021, equation 1 and appendix B.
    """
    return (2 + 2 * momentum) / (learning_rate * (1 + 2 * momentum if nesterov else 1))


def adam_threshold(learning_rate: Any, b1: Any = 0.9) -> Any:
    """``(2 + 2 b1) / ((1 - b1) eta)``: 38/eta at b1 = .9, and 2/eta for RMSProp (b1 = 0).

    It refers to ``P^-1 H`` with P from ``adam_preconditioner``.

    Reference: Cohen et al. 2022, 'Adaptive gradient methods at the edge of stability', section 3.
    """
    return (2 + 2 * b1) / ((1 - b1) * learning_rate)


def minibatch_threshold(learning_rate: Any) -> Any:
    """``2 / eta`` on the batch sharpness ``E[g_B . H_B g_B / |g_B|^2]`` of SGD (Andreyev & Beneventano 2024)."""
    return 2 / learning_rate


def trace_threshold(learning_rate: Any) -> Any:
    """``2 / eta`` on ``Tr H`` at an interpolating minimum that is linearly stable under SGD with batch size 1.

    Assumes the loss ``(1/2n) sum_i |f_i - y_i|^2``, whose Hessian at interpolation has trace ``(1/n) sum |grad
    f_i|^2``.

    Reference: Wu & Su 2023, 'The implicit regularization of dynamical stability in SGD'.
    """
    return 2 / learning_rate


def shampoo_inverse_root(
    left: Float[Array, "m m"], right: Float[Array, "n n"], *, power: float = 0.25, eps: float = 1e-12
):
    """``v -> P^-1/2 v`` for Shampoo on one matrix parameter, ``P = left^power (x) right^power``.

    Definition: Gupta, Koren & Singer 2018, algorithm 1: ``L = sum g g^T``, ``R = sum g^T g``, update
    ``L^-1/4 G R^-1/4``; so P is linear in the gradient and ``P^-1 H`` has a threshold as for Adam with b1 = 0.

    Args:
        left, right: L and R.
        power: 1/4 as in the paper.
        eps: added to the eigenvalues.

    Returns:
        A function of ``v [m, n]``, or of ``v [m n]`` as ``operators.preconditioned`` passes it; linear and symmetric,
        and it keeps the shape.
    """
    a, b = (_matrix_power(factor, -power / 2, eps) for factor in (left, right))
    shape = (left.shape[0], right.shape[0])
    return lambda v: jnp.reshape(a @ jnp.reshape(v, shape) @ b, v.shape)


def shampoo_inverse_roots(
    params: PyTree, factors: Sequence[tuple[Float[Array, "m m"], Float[Array, "n n"]] | None], **options: Any
):
    """``shampoo_inverse_root`` of a whole network: ``v [P] -> P^-1/2 v``, block-diagonal over the leaves.

    Args:
        params: the parameters; only their shapes matter.
        factors: ``(L, R)`` for each leaf of ``params`` in order, or None for one not preconditioned (biases).
        options: see ``shampoo_inverse_root``.

    Raises:
        ValueError: when the number of factors is not that of the leaves, or a pair does not fit its matrix.
    """
    leaves, unravel = jax.tree.leaves(params), ravel_pytree(params)[1]
    if len(factors) != len(leaves):
        raise ValueError(f"factors: got {len(factors)}; allowed: one a leaf, {len(leaves)}")
    for leaf, pair in zip(leaves, factors, strict=True):
        if pair is not None and tuple(len(factor) for factor in pair) != jnp.shape(leaf):
            sizes = tuple(len(factor) for factor in pair)
            raise ValueError(f"factors: got sizes {sizes} for a leaf {jnp.shape(leaf)}; allowed: (m, n) for [m, n]")
    roots = [(lambda v: v) if pair is None else shampoo_inverse_root(*pair, **options) for pair in factors]

    def root(v):
        parts = zip(roots, jax.tree.leaves(unravel(v)), strict=True)
        return jnp.concatenate([jnp.ravel(function(part)) for function, part in parts])

    return root


def muon_threshold(learning_rate: Any, gradient: Float[Array, "m n"]) -> Float[Array, ""]:
    """``2 |g|_* / eta`` on ``spectral_sharpness`` for the step ``-eta polar(g)``, with ``|g|_*`` the nuclear norm.

    The step is the steepest descent ``-eta' |g|_* polar(g)`` under the spectral norm with ``eta' = eta / |g|_*``: to
    second order the loss falls by ``eta |g|_* - eta^2 <D, H D> / 2`` with ``D = polar(g)``. Unlike the other
    thresholds it falls with the gradient.

    Args:
        learning_rate: eta.
        gradient: g of one matrix parameter.
    """
    return 2 * jnp.sum(jnp.linalg.svd(gradient, compute_uv=False)) / learning_rate


def spectral_sharpness(matvec, start: Float[Array, "m n"], iterations: int = 20) -> Float[Array, ""]:
    """Sharpness in the spectral norm, ``max_{|D|_op <= 1} <D, H D>`` over matrices D.

    Steepest descent under that norm, ``-eta |g|_* polar(g)``, is stable below ``2 / eta``; Muon's step, ``-eta
    polar(g)``, below ``muon_threshold``, ``2 |g|_* / eta``. There is no linear P. Conditional gradient ``D <- polar(H
    D)`` never decreases the form when H is positive semidefinite, and stops at a local maximum: the result is a lower
    bound.

    Args:
        matvec: ``D [m, n] -> H D [m, n]``, symmetric.
        start: not zero.
        iterations: matvecs, >= 1.

    Raises:
        ValueError: when ``iterations`` is below 1.

    Reference: Islamov, Crawshaw, Cohen & Gower 2026, 'Non-Euclidean gradient descent operates at the edge of
    stability' (arXiv 2603.05002), for the sharpness under a general norm.
    """
    check_counts(iterations=iterations)

    def polar(matrix):
        u, _, vt = jnp.linalg.svd(matrix, full_matrices=False)
        return u @ vt

    direction = jax.lax.fori_loop(0, iterations - 1, lambda _, d: polar(matvec(d)), polar(start))
    return jnp.vdot(direction, matvec(direction))


def _matrix_power(matrix: Array, power: float, eps: float) -> Array:
    values, vectors = jnp.linalg.eigh(matrix)
    return (vectors * (jnp.maximum(values, 0) + eps) ** power) @ vectors.T
