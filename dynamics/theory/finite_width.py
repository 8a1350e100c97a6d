"""Signals in deep random networks of finite width n: what depth over width adds to the infinite-width maps.

``G_l`` is the variance of layer l + 1's preactivations given layer l, ``G_{l+1} = (C_W / n) sum_i phi(h_i)^2 + C_b``
with ``h_i ~ N(0, G_l)`` (``C_W = W_std^2``): a random number whose infinite-width value is ``K_{l+1} = g(K_l)``, the
length map. To first order in 1/n its variance and mean follow from g and ``E phi^4``; ReLU has a random walk in log G.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Float, Real

from dynamics.arguments import NOT_NEGATIVE, POSITIVE, check_counts, check_numbers
from dynamics.stax.activations.quadrature import gaussian_panels
from dynamics.stax.layers.weights import Haar, LowRank, Sparse, WeightLaw, check_law
from dynamics.theory.activations import Activation
from dynamics.theory.signal_propagation import length_map
from dynamics.types import Array, ArrayLike


class FiniteWidth(NamedTuple):
    """``G_l`` of layers l = 0 (the first preactivations), 1, ..., L, to first order in the inverse widths.

    Attributes:
        K: infinite width. variance: ``Var G_l``. shift: ``E G_l - K_l``.
    """

    K: Float[Array, " layers"]
    variance: Float[Array, " layers"]
    shift: Float[Array, " layers"]

    @property
    def relative(self) -> Float[Array, " layers"]:
        """``Var G_l / K_l^2``: a third of the excess kurtosis ``E h^4 / (E h^2)^2 - 3`` of the next preactivations."""
        return self.variance / self.K**2


def finite_width(
    activation: Activation,
    widths: Sequence[float] | Real[ArrayLike, " depth"],
    W_std: ArrayLike = 1.0,
    b_std: ArrayLike = 0.0,
    *,
    start: ArrayLike = 1.0,
) -> FiniteWidth:
    """Mean and variance of the length of one input in a network of finite width, to first order in 1/n.

        Var_{l+1} = g'(K)^2 Var_l + W_std^4 (E phi^4 - (E phi^2)^2) / n_{l+1},
        shift_{l+1} = g'(K) shift_l + g''(K) Var_l / 2

    With all widths 1 these are V and G^{1} of the book: ``Var = V / n``, ``E G = K + G^{1} / n``.

    Args:
        activation: as ``signal_propagation`` takes it, kinks anywhere. widths: ``[L]`` of the layers that phi acts on.
        W_std, b_std: standard deviations of weights (over sqrt of the fan-in) and biases.
        start: variance ``K_0 > 0`` of the first preactivations, which are Gaussian. These three are numbers.

    Returns:
        A ``FiniteWidth`` of ``L + 1`` entries. Next order: ``O((L/n)^2)`` relative. NaN from the layer on at which two
        ways to find ``E phi^2`` differ by 0.2 %: a function that jumps elsewhere than at 0, a kernel that is not exact
        there (``stax.Hermite`` off q = 1, a series at large q).

    Raises:
        ValueError: for a width or ``start`` that is not positive, a negative or not scalar ``W_std`` or ``b_std``.

    Cost: four quadratures a layer.

    Reference: Roberts, Yaida & Hanin 2022, chapters 4 and 5 (one input).

    Example:
        >>> import jax.numpy as jnp
        >>> found = finite_width(jnp.tanh, [100.0] * 4)
        >>> print(f"K = {found.K[-1]:.3f}, Var G / K^2 = {found.relative[-1]:.4f}")
        K = 0.128, Var G / K^2 = 0.0241
    """
    _check(widths, W_std, b_std, start)
    g, even_moments = length_map(activation, W_std, b_std), _even_moments(activation)
    shift = jnp.square(b_std)

    def slope(q):
        return jax.jvp(g, (q,), (jnp.ones_like(q),))

    def layer(carry, n):
        K, variance, mean = carry
        (after, first), (_, second) = jax.jvp(slope, (K,), (jnp.ones_like(K),))
        second_moment, fourth = even_moments(K)
        after = jnp.where(jnp.abs(W_std**2 * second_moment + shift - after) > 2e-3 * after, jnp.nan, after)
        noise = jnp.maximum(W_std**4 * fourth - (after - shift) ** 2, 0)
        new = after, first**2 * variance + noise / n, first * mean + second * variance / 2
        return new, new

    zero = jnp.zeros((), jnp.result_type(float))
    first = (zero + start, zero, zero)
    _, path = jax.lax.scan(layer, first, jnp.asarray(widths, zero.dtype))
    return FiniteWidth(*(jnp.concatenate([one[None], rest]) for one, rest in zip(first, path, strict=True)))


def _check(widths, W_std: ArrayLike, b_std: ArrayLike, start: ArrayLike) -> None:
    if not isinstance(widths, Tracer):
        array = np.asarray(widths)
        if array.ndim != 1 or (array.size and not (array.dtype.kind in "iuf" or array.dtype == jnp.bfloat16)):
            raise ValueError(f"widths: got {widths}; allowed: a list of positive numbers")
        if not np.all(array > 0):
            raise ValueError(f"widths: got {widths}; allowed: positive numbers")
    check_numbers(W_std=(W_std, NOT_NEGATIVE), b_std=(b_std, NOT_NEGATIVE), start=(start, POSITIVE))


def _even_moments(activation: Activation):
    """``q -> E phi(sqrt(q) z)^2, E phi(sqrt(q) z)^4``, by other nodes than the length map's."""
    nodes, weights = gaussian_panels(64, 9)

    def phi(x):
        return activation[1]((), x) if isinstance(activation, tuple) else activation(x)

    def moment(q):
        square = phi(jnp.sqrt(q) * jnp.asarray(nodes, q.dtype)) ** 2
        w = jnp.asarray(weights, q.dtype)
        return jnp.sum(w * square), jnp.sum(w * square**2)

    return moment


class LogLaw(NamedTuple):
    """Mean and variance of ``log(G_l / G_0)`` at layers l = 0, ..., L."""

    mean: Float[np.ndarray, " layers"]
    variance: Float[np.ndarray, " layers"]


def relu_log_law(width: int, depth: int, weights: WeightLaw | None = None) -> LogLaw:
    """The random walk ``log G_l`` of a ReLU network with ``W_std^2 = 2`` and no biases: exact at every n and L/n.

    Gaussian weights: ``G_{l+1} / G_l = (2/n) chi^2_k`` with ``k ~ Bin(n, 1/2)`` active units, independent, so a layer
    adds ``E psi(k/2) + log(4/n)`` to the mean and ``E psi'(k/2) + Var psi(k/2)`` (near 5/n) to the variance. The first
    layer's weights are Gaussian; after it

    - ``Haar``: ``2 Beta(k/2, (n-k)/2)``, which adds ``log(n/2) - psi(n/2)`` and ``-psi'(n/2)`` (3/n in all);
    - ``LowRank(r)``: another factor ``(n/r) Beta(r/2, (n-r)/2)``.

    Args:
        width: n of every hidden layer. depth: layers L. weights: of layers 2, ..., L; None for Gaussian.

    Returns:
        ``LogLaw`` of ``depth + 1`` entries, of networks without a dead layer (k >= 1; a share ``2^-n`` a layer is).

    Raises:
        ValueError: for ``Sparse`` weights (no closed law; ``relu_second_moment`` has theirs), and counts below 1.

    Reference: Hanin & Nica 2020 (Gaussian).

    Example:
        >>> law = relu_log_law(64, 32)
        >>> print(f"{law.mean[-1]:.3f} {law.variance[-1]:.3f}")
        -1.283 2.656
    """
    from scipy.special import digamma, polygamma

    check_law(weights)
    if isinstance(weights, Sparse):
        raise ValueError("weights: got Sparse; allowed: None, Haar(), LowRank(rank)")
    k, p = _active(width, depth)
    first, second = digamma(k / 2), polygamma(1, k / 2)
    mean = p @ first + np.log(4 / width)
    variance = p @ second + p @ (first - p @ first) ** 2
    more = 0.0, 0.0
    if isinstance(weights, Haar):
        more = np.log(width / 2) - digamma(width / 2), -polygamma(1, width / 2)
    elif isinstance(weights, LowRank):
        r = min(weights.rank, width)
        more = digamma(r / 2) - digamma(width / 2) - np.log(r / width), polygamma(1, r / 2) - polygamma(1, width / 2)
    layers = np.arange(depth + 1.0)
    later = np.maximum(layers - 1, 0)
    return LogLaw(mean * layers + more[0] * later, variance * layers + more[1] * later)


def relu_second_moment(width: int, depth: int, weights: WeightLaw | None = None) -> Float[np.ndarray, " layers"]:
    """``E G_l^2 / (E G_l)^2`` at layers l = 0, ..., L of a ReLU network without biases: exact.

    A layer multiplies it by ``1 + 5/n`` (Gaussian), ``1 + 3/(n+2)`` (``Haar``), ``(1 + 5/n)(1 + 2/r)/(1 + 2/n)``
    (``LowRank``). ``Sparse(p)``: with ``S = sum phi^2`` and ``T = sum phi^4`` over units, linear in their moments,

        E S'^2 = (1 - 1/n) E S^2 + E T',      E T' = (6/n) (E S^2 + (1/p - 1) E T).

    Args:
        width, depth, weights: as in ``relu_log_law``; the first layer's weights are Gaussian.

    Returns:
        ``[depth + 1]``. Dead networks count.

    Raises:
        ValueError: for counts below 1.

    Example:
        >>> print([f"{moment:.4f}" for moment in relu_second_moment(32, 2)])
        ['1.0000', '1.1562', '1.3369']
    """
    check_law(weights)
    _active(width, depth)
    n, one = width, 1 + 5 / width
    first, later = np.arange(depth + 1) >= 1, np.maximum(np.arange(depth + 1) - 1, 0)
    if isinstance(weights, Sparse):
        square, fourth, found = one, 6 / n, [1.0, one]
        for _ in range(depth - 1):
            fourth = 6 / n * (square + (1 / weights.density - 1) * fourth)
            square = (1 - 1 / n) * square + fourth
            found.append(square)
        return np.array(found)
    factor = one
    if isinstance(weights, Haar):
        factor = 1 + 3 / (n + 2)
    elif isinstance(weights, LowRank):
        factor = one * (1 + 2 / min(weights.rank, n)) / (1 + 2 / n)
    return one**first * factor**later


def _active(width: int, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """``k >= 1`` and its probabilities given that a layer is not dead."""
    from scipy.stats import binom

    check_counts(width=width, depth=depth)
    k = np.arange(1, width + 1)
    p = binom.pmf(k, width, 0.5)
    return k, p / p.sum()
