"""Where each optimiser loses stability on a quadratic: thresholds, and the preconditioners that they refer to.

An optimiser with preconditioner P is stable along an eigenvector of ``P^-1 H`` (symmetrically ``P^-1/2 H P^-1/2``)
while its eigenvalue, the preconditioned sharpness, is below the threshold. For plain descent and momentum P = 1.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Float

from dynamics.types import Array, PyTree


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


def adam_preconditioner(opt_state: PyTree, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> PyTree:
    """``P = (1 - b1^t) (sqrt(nu / (1 - b2^t)) + eps)`` from the state of ``optax.adam`` (or adamw), with bias
    correction.

    Args:
        opt_state: any optax state that contains one ``ScaleByAdamState``.
        b1, b2, eps: as given to the optimiser.

    Returns:
        A pytree like the parameters. Before the first step ``nu`` is 0 and P means nothing (it is eps).

    Raises:
        ValueError: when the state holds no, or more than one, Adam state.

    Reference: Cohen et al. 2022, equation 2.
    """
    found = _find(opt_state, ("mu", "nu", "count"))
    t = jnp.maximum(found.count, 1)
    first, second = 1 - b1**t, 1 - b2**t
    return jax.tree.map(lambda nu: first * (jnp.sqrt(nu / second) + eps), found.nu)


def preconditioner_of(optimizer: Any) -> Callable[[PyTree], PyTree]:
    """``opt_state -> P`` of an optax optimiser, found and proved by its own updates.

    It is run on a few numbers in float64. What its first step tells of b1, b2 and eps must give every later step, from
    other parameters and gradients, as ``-rate m/P - decay w``, with P that of SGD, Adam or RMSProp and one rate for
    all leaves: what merely looks like one of them (AMSGrad, RAdam, NAdam, AdaMax, LAMB, ...) is refused.

    Raises:
        ValueError: for any other optimiser, or one whose hyper-parameters are traced.
    """
    rng = np.random.default_rng(0)
    sizes = np.array([[1e-2, -1e-4, 1e-6], [3e-3, 2e-5, -1e-7], [1e-3, 1e-4, 1e-5], [2e-3, -3e-5, 2e-6]])
    steps = []
    with jax.enable_x64(True), jax.ensure_compile_time_eval():
        try:
            state = optimizer.init({"a": jnp.zeros(3), "b": jnp.zeros(3)})
            for number, size in enumerate(sizes):
                g = {"a": jnp.asarray(size), "b": jnp.asarray(-0.3 * size[::-1])}
                w = {
                    leaf: jnp.asarray(scale * number * rng.standard_normal(3))
                    for leaf, scale in (("a", 1.0), ("b", 9.0))
                }
                update, state = optimizer.update(g, state, w)
                steps.append((_array(g), _array(w), _array(update), state))
        except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
            raise ValueError(
                "optimizer: got a traced hyper-parameter; allowed: adam(L, ...), or preconditioner="
            ) from error
        for proved in (_adam, _rmsprop, _plain):
            with (
                contextlib.suppress(ValueError, TypeError, AttributeError, FloatingPointError),
                np.errstate(all="raise"),
            ):
                return proved(steps)
    raise ValueError(
        "optimizer: got one whose updates are not SGD's, Adam's or RMSProp's; allowed: descent(..., preconditioner=), "
        "opt_state -> P"
    )


def _adam(steps: list[Any]) -> Callable[[PyTree], PyTree]:
    states = [_find(state, ("mu", "nu", "count")) for *_, state in steps]
    mu, nu = ([np.zeros(6), *(_array(getattr(state, name)) for state in states)] for name in ("mu", "nu"))
    b1, b2 = 1 - _one(mu[1] / steps[0][0]), 1 - _one(nu[1] / steps[0][0] ** 2)
    g, _, u, _ = steps[0]
    slope, intercept = np.polyfit(np.abs(g), np.abs(g / u), 1)
    found = partial(adam_preconditioner, b1=b1, b2=b2, eps=_small(intercept / slope))
    for t, (g, w, u, state) in enumerate(steps):
        _require(
            np.allclose(mu[t + 1], b1 * mu[t] + (1 - b1) * g, 1e-9, 0),
            np.allclose(nu[t + 1], b2 * nu[t] + (1 - b2) * g**2, 1e-9, 0),
        )
        _require(_spans(u, mu[t + 1] / _array(found(state)), w))
    return found


def _rmsprop(steps: list[Any]) -> Callable[[PyTree], PyTree]:
    g, _, u, state = steps[0]
    nu = _array(_find(state, ("nu",)).nu)
    slope, intercept = np.polyfit(nu, (g / u) ** 2, 1)
    found = partial(rmsprop_preconditioner, eps=_small(intercept / slope))
    for g, w, u, state in steps:
        _require(_spans(u, g / _array(found(state)), w))
    return found


def _plain(steps: list[Any]) -> Callable[[PyTree], PyTree]:
    def moved(state: Any, g: np.ndarray) -> np.ndarray:
        return _array(_find(state, ("trace",)).trace) if _holds(state, ("trace",)) else g

    for g, w, u, state in steps:
        _require(_spans(u, moved(state, g), w))
    return lambda opt_state: 1.0


def _spans(update: np.ndarray, *directions: np.ndarray) -> bool:
    """Whether an update is a combination of directions, the first not left out."""
    used = np.stack([direction for direction in directions if np.any(direction)], 1)
    weights, *_ = np.linalg.lstsq(used / np.abs(used).max(0), update)
    return bool(
        weights[0] < 0 and np.allclose(used / np.abs(used).max(0) @ weights, update, 1e-6, 1e-7 * np.abs(update).max())
    )


def _one(values: np.ndarray) -> float:
    _require(np.ptp(values) <= 1e-9 * abs(values[0]))
    return float(values[0])


def _small(eps: float) -> float:
    _require(-1e-12 < eps < 1)
    return max(float(eps), 0.0)


def _require(*held: Any) -> None:
    if not all(held):
        raise ValueError("opt_state: got another optimiser's; allowed: this one's")


def _array(tree: PyTree) -> np.ndarray:
    return np.concatenate([np.asarray(leaf, float) for leaf in jax.tree.leaves(tree)])


def _holds(tree: PyTree, fields: tuple[str, ...]) -> bool:
    def holds(node):
        return all(hasattr(node, field) for field in fields)

    return any(holds(node) for node in jax.tree.leaves(tree, is_leaf=holds))


def rmsprop_preconditioner(opt_state: PyTree, *, eps: float = 1e-8) -> PyTree:
    """``P = sqrt(nu + eps)`` from the state of ``optax.rmsprop`` with its defaults (the paper: ``sqrt(nu) + eps``).

    Args:
        opt_state: any optax state that contains one ``ScaleByRmsState``.
        eps: as given to the optimiser.

    Returns:
        A pytree like the parameters.

    Raises:
        ValueError: when the state holds no, or more than one, second-moment state, or one that subtracts or corrects
            means (``centered=True``, ``bias_correction=True``, Adam), whose denominator is another.

    Reference: Cohen et al. 2022, section 3.
    """
    found = _find(opt_state, ("nu",))
    extra = [name for name in ("mu", "count") if name in found._fields]  # a tuple has a method `count`
    if extra:
        raise ValueError(
            f"opt_state: got a second-moment state that also holds {' and '.join(extra)}; allowed: the state of "
            "optax.rmsprop without centering or bias correction"
        )
    return jax.tree.map(lambda nu: jnp.sqrt(nu + eps), found.nu)


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


def shampoo_inverse_roots(params: PyTree, factors: Sequence[tuple[Array, Array] | None], **options: Any):
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
    if iterations < 1:
        raise ValueError(f"iterations: got {iterations!r}; allowed: an integer >= 1")

    def polar(matrix):
        u, _, vt = jnp.linalg.svd(matrix, full_matrices=False)
        return u @ vt

    direction = jax.lax.fori_loop(0, iterations - 1, lambda _, d: polar(matvec(d)), polar(start))
    return jnp.vdot(direction, matvec(direction))


def _matrix_power(matrix: Array, power: float, eps: float) -> Array:
    values, vectors = jnp.linalg.eigh(matrix)
    return (vectors * (jnp.maximum(values, 0) + eps) ** power) @ vectors.T


def _find(opt_state: PyTree, fields: tuple[str, ...]) -> Any:
    def holds(node):
        return all(hasattr(node, field) for field in fields)

    found = [node for node in jax.tree.leaves(opt_state, is_leaf=holds) if holds(node)]
    if len(found) != 1:
        raise ValueError(f"opt_state: got {len(found)} states with {', '.join(fields)}; allowed: exactly one")
    return found[0]
