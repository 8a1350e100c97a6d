"""Maximum-margin theory of modular addition and of other groups, and where memorising gives way to generalising."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from dynamics.arguments import check_counts, program
from dynamics.types import Array


def max_margin(p: int) -> float:
    """The largest margin of ``f = sum_i w_i (u_i[a] + v_i[b])^2`` on addition modulo p, over ``|theta|_{2,3}^3``.

    ``gamma* = sqrt(2/27) / (sqrt(p) (p - 1))`` with ``|theta|_{2,3}^3 = sum_i |(u_i, v_i, w_i)|_2^3``.

    Args:
        p: an odd modulus, >= 3.

    Raises:
        ValueError: for other p.

    Reference: Morwani, Edelman, Oncescu, Zhao & Kakade 2023, theorem 7.
    """
    if p < 3 or p % 2 == 0:
        raise ValueError(f"p: got {p!r}; allowed: an odd integer >= 3")
    return float((2 / 27) ** 0.5 / (p**0.5 * (p - 1)))


def group_margin(dimensions: Sequence[int]) -> float:
    """The largest such margin on a group all of whose irreducible representations are real, e.g. the symmetric group.

    ``gamma* = 2 / (3 sqrt(3 |G|) sum_rho d_rho^(5/2))`` over the representations but the trivial one.

    Args:
        dimensions: ``d_rho`` of every representation, the trivial one (1) first; ``|G| = sum d_rho^2``.

    Raises:
        ValueError: unless the first of at least two dimensions is 1 and all are positive.

    Reference: Morwani, Edelman, Oncescu, Zhao & Kakade 2023, theorem 9.

    Example:
        >>> round(group_margin([1, 1]), 4), round(group_margin([1, 1, 2]), 4)
        (0.2722, 0.0236)
    """
    if len(dimensions) < 2 or dimensions[0] != 1 or min(dimensions) < 1:
        raise ValueError(f"dimensions: got {list(dimensions)}; allowed: 1, then at least one more, all >= 1")
    order = sum(d * d for d in dimensions)
    return float(2 / (3 * (3 * order) ** 0.5 * sum(d**2.5 for d in dimensions[1:])))


def parity_margin(k: int) -> float:
    """The largest margin of ``f_c = sum_i w_i[c] (u_i . x)^k`` on a k-sparse parity, over ``sum_i |(u_i, w_i)|^(k+1)``.

    ``gamma* = k! sqrt(2 (k + 1)^-(k + 1))`` for inputs in {-1, 1}^n and two outputs, whatever n >= k.

    Args:
        k: number of the inputs whose product is learned, >= 1.

    Raises:
        ValueError: for other k.

    Reference: Morwani, Edelman, Oncescu, Zhao & Kakade 2023, theorem 8.

    Example:
        >>> round(parity_margin(4), 4)
        0.6072
    """
    check_counts(k=k)
    return float(math.factorial(k) * (2 * (k + 1) ** -(k + 1.0)) ** 0.5)


def max_margin_network(p: int) -> tuple[Float[Array, "H 2*{p}"], Float[Array, "{p} H"]]:
    """A network of ``4 (p - 1)`` neurons that attains ``max_margin(p)``: eight phases for every frequency.

    Neuron ``(k, theta_u, theta_v)`` has ``u[a] = cos(theta_u + 2 pi k a/p)``, ``v`` alike and
    ``w[c] = cos(theta_u + theta_v + 2 pi k c/p)``; the phases cancel all but ``cos(2 pi k (a + b - c)/p)``.

    Returns:
        ``(first, second)``, the two layers on two one-hots.

    Reference: Morwani et al. 2023, theorem 7 (the construction in its proof).
    """
    max_margin(p)  # checks p
    half = jnp.pi / 2
    k = jnp.arange(1, (p - 1) // 2 + 1)
    phases = jnp.array([(u + flip, v) for u in (0.0, half) for v in (0.0, half) for flip in (0.0, jnp.pi)])  # [8, 2]
    turn = 2 * jnp.pi * ((k[:, None] * jnp.arange(p)) % p) / p  # [K, p]

    def wave(phase):  # [8] -> [8 K, p]
        return jnp.cos(phase[:, None, None] + turn).reshape(-1, p)

    u, v = phases[:, 0], phases[:, 1]
    return jnp.concatenate([wave(u), wave(v)], axis=1), wave(u + v).T


@program
def normalised_margin(
    first: Float[Array, "H inputs"], second: Float[Array, "n H"], table: Int[Array, "n n"]
) -> Float[Array, ""]:
    """The smallest margin over all pairs of a two-layer quadratic network, divided by ``|theta|_{2,3}^3``.

    ``min_{a,b} (f_c - max_{c' != c} f_c')`` with ``c = table[a, b]`` and ``f = second (first x)^2`` on two one-hots.

    Args:
        first, second: the two layers, on 2 n inputs. table: of the operation.

    Returns:
        Negative when a pair is misclassified; at most ``max_margin(n)`` for addition modulo an odd n
        and ``group_margin`` of a group whose representations are real.
    """
    f, scale = _outputs(first, second)
    return output_margins(f, table)[0] / scale


@program
def softmax_margin(
    first: Float[Array, "H inputs"], second: Float[Array, "n H"], table: Int[Array, "n n"]
) -> Float[Array, ""]:
    """The margin over ``|theta|_{2,3}^3`` as cross-entropy weighs it: a mean over all pairs and wrong answers.

    The weights are the probabilities that the softmax gives to the wrong answers. A network at a minimum of the
    cross-entropy plus ``lambda |theta|_{2,3}^3`` maximises this mean for its own weights, so that by duality the
    largest margin lies between ``normalised_margin`` and this mean. For addition the two agree; for other groups the
    smallest margin only rises to the maximum as ``1/log(1/lambda)``, while the mean is there at any small lambda.

    Args: as in ``normalised_margin``.

    Cost: ``2 H n^3`` multiplications and ``n^3`` numbers.
    """
    f, scale = _outputs(first, second)
    return output_margins(f, table)[1] / scale


@program
def output_margins(
    f: Float[Array, "*points n"], answers: Int[Array, "*points"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The smallest margin ``f_c - f_c'`` over points and wrong answers c', and its mean as the softmax weighs it.

    Args:
        f: outputs. answers: the right c of each point.
    """
    right = jnp.arange(f.shape[-1]) == answers[..., None]
    margin = jnp.where(right, jnp.inf, jnp.sum(jnp.where(right, f, 0), -1, keepdims=True) - f)
    others = jax.nn.logsumexp(-margin, axis=-1, keepdims=True)  # of the wrong answers; the right one has logit 0
    weight = jax.nn.softmax(-margin - jnp.logaddexp(others, 0.0), axis=tuple(range(f.ndim)))
    return jnp.min(margin), jnp.sum(weight * jnp.where(jnp.isfinite(margin), margin, 0))


def _outputs(first: Array, second: Array) -> tuple[Array, Array]:
    """``f [n, n, n]`` on all pairs, and ``|theta|_{2,3}^3``."""
    n = second.shape[0]
    u, v = first[:, :n], first[:, n:]
    f = jnp.einsum("ch,hab->abc", second, (u[:, :, None] + v[:, None, :]) ** 2)
    return f, jnp.sum((jnp.sum(first**2, axis=1) + jnp.sum(second**2, axis=0)) ** 1.5)


def feature_energy(order: int, dimension: int = 1, *, real: bool = True) -> float:
    """The energy ``E(w) = 1/2 |Y~^T (X w)^2|^2`` of a neuron in one irreducible representation, ``|w| = 1``.

    On the whole table of a group of M elements the sums over the cells of one answer are ``2 u * v`` and a constant,
    with ``w = (u, v)``; the norm of a convolution of functions in one real representation of dimension d is at most
    ``(M/d)^(1/2) |u| |v|``, so that ``E = M/(2 d)`` at the maximum, where ``|u|^2 = |v|^2 = 1/2``. A pair of conjugate
    complex representations shares a function's norm, and ``E = M/(4 d)``: M/4 for a frequency of a cyclic group.

    Args:
        order: M, >= 1. dimension: d, >= 1. real: False for a pair of conjugate representations.

    Raises:
        ValueError: for an order or a dimension below 1.

    Reference: Tian 2025, 'Provable scaling laws of feature emergence from learning dynamics of grokking', theorem 2.
    """
    check_counts(order=order, dimension=dimension)
    return order / ((2 if real else 4) * dimension)


def generalisation_fraction(size: int, c: float) -> float:
    """The train fraction ``c log(M)/M`` at which features of a group of M elements begin to generalise (c about 2.75).

    Reference: Tian 2025, 'Provable scaling laws of feature emergence from learning dynamics of grokking', theorem 4.
    """
    return float(c * jnp.log(size) / size)
