"""Infinitely wide networks that learn features: the mean field of Bordelon & Pehlevan, step by step."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Bool, Float, PRNGKeyArray, Real

from dynamics.arguments import BELOW_ONE, NOT_NEGATIVE, POSITIVE, check_counts, check_numbers
from dynamics.precision import full_precision
from dynamics.record import Estimate
from dynamics.theory.activations import Activation
from dynamics.theory.dmft.deep_draws import counts, monte_carlo, quadrature
from dynamics.theory.dmft.deep_pass import Problem, causal_pass, products
from dynamics.theory.dmft.elementwise import elementwise, is_smooth
from dynamics.types import Array, ArrayLike

RESPONSES = ("exact", "none", "delayed")
_RESIDUAL = 1e-3  # of orthonormality, above which a draw's arithmetic is not trusted
_NODES = 200  # Gauss-Hermite nodes that numpy computes without overflow


class DeepLimit(NamedTuple):
    """A network of infinite width in training, T = steps + 1 times from the start on, P points, L hidden layers.

    Each ``Estimate`` is a mean over the draws that have not failed (``n`` of them; NaN without one, its error without
    two), with its standard error; from quadrature, ``nodes`` nodes and what half as many differ by.

    Attributes:
        f: outputs ``[T, P]``, less those at the start.
        loss: ``[T]``, half the sum of squared errors over the points that are trained on.
        features: ``Phi^l(t, a; s, b) = <phi(h^l_a(t)) phi(h^l_b(s))>``, ``[L, T, P, T, P]``.
        gradients: ``G^l(t, a; s, b) = <g^l_a(t) g^l_b(s)>``, ``[L, T, P, T, P]``.
        ntk: the tangent kernel of each time, ``[T, P, P]``; at the start that of ``stax``.
        failed: ``[draws]``; where a value is not finite, or the residual above 1e-3.
        residual: ``[draws]``; by how much the products of the layers' basis functions are not a projector.
    """

    f: Estimate
    loss: Estimate
    features: Estimate
    gradients: Estimate
    ntk: Estimate
    failed: Bool[Array, " draws"]
    residual: Float[Array, " draws"]


@full_precision
def deep(
    activation: Activation,
    x: Real[ArrayLike, "P D"],
    y: Real[ArrayLike, " P"],
    *,
    depth: int,
    gamma: Real[ArrayLike, ""],
    eta: Real[ArrayLike, ""],
    steps: int,
    key: PRNGKeyArray | None = None,
    samples: int = 2000,
    draws: int = 8,
    momentum: Real[ArrayLike, ""] = 0.0,
    b_std: Real[ArrayLike, ""] = 0.0,
    sample_weights: Real[ArrayLike, "steps P"] | None = None,
    nodes: int | None = None,
    responses: str = "exact",
) -> DeepLimit:
    """Gradient descent on P points in the limit of infinite width, from lazy (small gamma) to rich.

    The network ``f = w . phi(h^L)/(gamma N)``, ``h^1 = W^0 x/sqrt(D)``, ``h^{l+1} = W^l phi(h^l)/sqrt(N)`` with unit
    Gaussian weights takes steps ``eta gamma^2 N`` on ``1/2 sum_a (f_a - f_a(0) - y_a)^2``. As N grows its neurons
    become independent draws of one process; in discrete steps, with ``Delta = y - f``,

        h^l(t) = u^l(t) + gamma sum_{s<t,b} [A^{l-1}(t,s;b) + eta Delta_b(s) Phi^{l-1}(t,s;b)] g^l_b(s)
        z^l(t) = r^l(t) + gamma sum_{s<=t,b} [B^l(t,s;b) + eta Delta_b(s) G^{l+1}(t,s;b)] phi(h^l_b(s))
        g^l = phi'(h^l) z^l,   u^l ~ GP(Phi^{l-1}),   r^l ~ GP(G^{l+1})
        f(t) = <w(0) phi(h^L(t))>/gamma + eta sum_{s<t,b} Phi^L(t,s;b) Delta_b(s)

    where ``Phi^0 = x x^T/D``, ``r^L = w(0)``, ``G^{L+1} = 1``, the Delta term of z counts s < t alone, and
    ``A^l = <dphi(h^l(t))/dr^l(s)>/gamma``, ``B^l = <dg^{l+1}(t)/du^{l+1}(s)>/gamma`` are the responses of the start
    weights, ``A^0 = B^L = 0``. The docs page ``dmft`` derives them.

    Args:
        activation: phi: a function, or a nonlinearity of ``stax``; continuous, kinks allowed. One object for many
            calls: a new lambda is compiled anew.
        x: inputs. y: targets.
        depth: hidden layers L, at least 1.
        gamma: richness, > 0: how far features move. Below about 1e-3 the kernel is the lazy one, at any small gamma.
        eta: learning rate, > 0; lazy descent is stable below 2 over the largest eigenvalue of the ``stax`` NTK.
        steps: updates, at least 1.
        key: of the draws; needed unless there are ``nodes``.
        samples: neurons S a layer in one draw, more than four times the Gaussians of a layer (some 8 T P).
        draws: independent repetitions, from which the errors are taken (of ``draws - 1`` degrees of freedom).
        momentum: heavy-ball coefficient in [0, 1).
        b_std: standard deviation of biases in every layer, trained too, as in ``stax.Dense(W_std=1, b_std=b_std)``.
        sample_weights: factor >= 0 of each point in each update: 0 throughout for a test point; P/B on the points of a
            minibatch and 0 elsewhere; 1 by default.
        nodes: for one hidden layer and a smooth activation: 4 to 200 Gauss-Hermite nodes in each of P + 1 dimensions,
            a million in all, in place of draws.
        responses: ``exact``; or one of two wrong theories, kept for comparison: ``none``, gradients independent of
            features (A = B = 0), and ``delayed``, B without its equal-time term ``<phi''(h) z>``.

    Returns:
        A ``DeepLimit``. Under ``vmap``, learning rate, gamma, targets, inputs and key may be lanes of one program; it
        runs them one after another.

    Raises:
        TypeError: for what is no number or no function.
        ValueError: for a wrong shape, a number out of its range, a jump in the activation, or too few samples.

    Assumptions: one output, full batch or a given sequence of minibatches, errors O(1/sqrt(S)); a Monte Carlo bias
    O(T P / S) that the errors do not show.

    Cost: ``O(L S (T P)^2)`` operations and ``O(L S T P)`` memory a draw; one causal pass, no iteration.

    Reference: Bordelon & Pehlevan 2022, 'Self-consistent dynamical field theory of kernel evolution in wide neural
    networks', eqs. 6-11, in discrete time.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x, y = jnp.array([[1.0, 1.0], [1.0, -1.0]]), jnp.array([1.0, -1.0])
        >>> limit = deep(jnp.tanh, x, y, depth=1, gamma=1.0, eta=0.2, steps=4, nodes=30)
        >>> [round(float(loss), 2) for loss in limit.loss.value]
        [1.0, 0.69, 0.48, 0.33, 0.22]
    """
    phi = elementwise(activation)
    x, y = jnp.asarray(x, jnp.result_type(float)), jnp.asarray(y, jnp.result_type(float))
    _check_arrays(x, y)
    check_numbers(
        gamma=(gamma, POSITIVE), eta=(eta, POSITIVE), momentum=(momentum, BELOW_ONE), b_std=(b_std, NOT_NEGATIVE)
    )
    check_counts(depth=depth, steps=steps, samples=samples, draws=draws)
    if responses not in RESPONSES:
        raise ValueError(f"responses: got {responses!r}; allowed: {', '.join(map(repr, RESPONSES))}")
    points = len(y)
    weights = _weights(sample_weights, steps, points)
    hyper = tuple(jnp.asarray(value, x.dtype) for value in (gamma, eta, momentum, b_std))
    if nodes is not None:
        _check_nodes(nodes, depth, points, is_smooth(phi))
        return _quadrature(phi, x, y, weights, hyper, steps, nodes)
    if key is None:
        raise ValueError("key: got None; allowed: a random key, jax.random.key(0), or nodes for one hidden layer")
    needed = 4 * max(sum(one) for one in counts(depth, steps + 1, points))
    if not samples > needed:
        raise ValueError(f"samples: got {samples}; allowed: more than {needed}, 4 times the Gaussians of a layer")
    return _monte_carlo(phi, x, y, weights, hyper, key, depth, steps, samples, draws, responses)


@functools.partial(jax.jit, static_argnames=("phi", "depth", "steps", "samples", "draws", "responses"))
def _monte_carlo(phi, x, y, weights, hyper, key, depth, steps, samples, draws, responses) -> DeepLimit:
    # lanes one after another: batched factorisations beside each other can lock XLA's threads on few CPU cores
    @jax.custom_batching.sequential_vmap
    def all_draws(key, x, y, weights, hyper):
        def one(key):
            return _limit(phi, x, y, weights, hyper, monte_carlo(key, samples, depth, steps + 1, len(y)), responses)

        return jax.lax.map(one, jax.random.split(key, draws))

    found, failed, residual = all_draws(key, x, y, weights, hyper)
    kept, n = ~failed, jnp.sum(~failed)

    def estimate(values):
        used = kept.reshape(-1, *[1] * (values.ndim - 1))
        mean = jnp.sum(jnp.where(used, values, 0), 0) / n
        spread = jnp.sum(jnp.where(used, (values - mean) ** 2, 0), 0)
        return Estimate(mean, jnp.sqrt(spread / jnp.where(n > 1, (n - 1) * n, jnp.nan)), n)  # pyright: ignore

    return DeepLimit(**{name: estimate(value) for name, value in found.items()}, failed=failed, residual=residual)


@functools.partial(jax.jit, static_argnames=("phi", "steps", "nodes"))
def _quadrature(phi, x, y, weights, hyper, steps, nodes) -> DeepLimit:
    (fine, *state), (coarse, _, _) = (
        _limit(phi, x, y, weights, hyper, quadrature(rule, len(y)), "exact") for rule in (nodes, nodes // 2)
    )
    failed, residual = (jnp.stack([one]) for one in state)
    kept = {name: Estimate(value, jnp.abs(value - coarse[name])) for name, value in fine.items()}
    kept = jax.tree.map(lambda value: jnp.where(failed[0], jnp.nan, value), kept)
    return DeepLimit(**{name: one._replace(n=0) for name, one in kept.items()}, failed=failed, residual=residual)


def _limit(phi, x, y, weights, hyper, sites, responses):
    """One draw: its readings, whether it failed, and its residual."""
    gamma, eta, momentum, b_std = hyper
    kernel, steps = x @ x.T / x.shape[1], len(weights)
    lag = jnp.arange(steps + 1)[:, None] - jnp.arange(steps + 1)
    sums = jnp.cumsum(momentum ** jnp.arange(steps + 1))  # of 1 + momentum + ..., exact near momentum = 1
    memory = jnp.where(lag > 0, sums[jnp.maximum(lag - 1, 0)], 0)
    pull = eta * memory[:, :, None] * jnp.concatenate([weights, jnp.zeros_like(weights[:1])])
    f, layers = causal_pass(phi, Problem(kernel, y, gamma, pull, b_std**2), sites, responses)
    trained = jnp.any(weights != 0, 0)
    features = jnp.stack([jax.vmap(products, (0, None))(layer.c, layer.c) for layer in layers])
    gradients = jnp.stack([jax.vmap(products, (0, None))(layer.d, layer.d) for layer in layers])
    values = {
        "f": f,
        "loss": 0.5 * jnp.sum(jnp.where(trained, y - f, 0) ** 2, -1),
        "features": features,
        "gradients": gradients,
        "ntk": tangent_kernel(kernel, features, gradients, b_std**2),
    }
    residual = jnp.max(jnp.stack([_residual(basis, sites.weight) for one in layers for basis in (one.q, one.p)]))
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(value)) for value in values.values()]))
    return values, ~(finite & (residual < _RESIDUAL)), residual


def tangent_kernel(
    kernel: Float[Array, "P P"],
    features: Float[Array, "L T P T P"],
    gradients: Float[Array, "L T P T P"],
    bias: ArrayLike = 0.0,
) -> Float[Array, "T P P"]:
    """``K(t) = sum_{l=0}^{L} (Phi^l + bias) G^{l+1}`` at equal times, with ``Phi^0 = kernel`` and ``G^{L+1} = 1``."""
    now = [jnp.einsum("ltatb->ltab", one) for one in (features, gradients)]
    below = jnp.concatenate([jnp.broadcast_to(kernel, now[0][:1].shape), now[0]]) + bias
    return jnp.sum(below * jnp.concatenate([now[1], jnp.ones_like(now[1][:1])]), 0)


def _residual(basis, weight):
    gram = (basis * weight[:, None]).T @ basis
    return jnp.max(jnp.abs(gram @ gram - gram))


def _check_arrays(x, y) -> None:
    if x.ndim != 2 or y.ndim != 1 or len(x) != len(y) or not x.size:
        raise ValueError(f"x, y: got shapes {x.shape} and {y.shape}; allowed: [P, D] and [P], P and D at least 1")
    for name, value in (("x", x), ("y", y)):
        if not isinstance(value, Tracer) and not np.all(np.isfinite(value)):
            raise ValueError(f"{name}: got values that are not finite; allowed: finite numbers")


def _check_nodes(nodes, depth, points, smooth) -> None:
    if depth != 1:
        raise ValueError(f"nodes: got {nodes!r} for depth {depth}; allowed: depth 1; deeper, key and samples")
    if not smooth:
        raise ValueError(f"nodes: got {nodes!r} for an activation with a kink; allowed: smooth ones; else key, samples")
    most = min(int(10 ** (6 / (points + 1)) + 1e-9), _NODES)
    if not isinstance(nodes, int | np.integer) or not 4 <= nodes <= most:
        raise ValueError(f"nodes: got {nodes!r} for {points} points; allowed: integers from 4 to {most}")


def _weights(sample_weights, steps, points):
    if sample_weights is None:
        return jnp.ones((steps, points))
    weights = jnp.asarray(sample_weights, jnp.result_type(float))
    if weights.shape != (steps, points):
        raise ValueError(f"sample_weights: got shape {weights.shape}; allowed: [steps, P] = [{steps}, {points}]")
    if not isinstance(weights, Tracer) and not np.all(np.isfinite(weights) & (np.asarray(weights) >= 0)):
        raise ValueError("sample_weights: got values that are negative or not finite; allowed: finite numbers >= 0")
    return weights
