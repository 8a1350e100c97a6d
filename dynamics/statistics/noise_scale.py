"""Critical batch size from gradients of samples or of equal batches, with the interval that their spread allows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from dynamics.arguments import INSIDE, check_counts, check_numbers
from dynamics.types import Array, PyTree


class CriticalBatch(NamedTuple):
    """The gradient noise scale ``Tr H Sigma / G.HG``, in samples.

    Attributes:
        value: infinite where no gradient shows through the noise; NaN, as all numbers then, where one is not finite.
        low, high: its interval; ``high`` is infinite where the data allow no gradient at all.
        noise: ``Tr H Sigma`` of one sample's gradient. signal: ``G.HG``, unbiased, so that it may come out negative.
        n: gradients used.
    """

    value: Float[Array, ""]
    low: Float[Array, ""]
    high: Float[Array, ""]
    noise: Float[Array, ""]
    signal: Float[Array, ""]
    n: int


def critical_batch(
    gradients: PyTree,
    *,
    hessian: Callable[[Any], Any] | None = None,
    batch_size: int = 1,
    share: float = 0.95,
) -> CriticalBatch:
    """The batch size above which larger batches stop paying: the noise scale ``B = Tr H Sigma / G.HG``.

    One step at the best rate on a batch of B' lowers a quadratic loss by ``Delta / (1 + B / B')``. Without ``hessian``
    H is a multiple of the identity, which gives the simple noise scale ``Tr Sigma / |G|^2``; on networks, whose
    gradients lie along the stiff directions, the two may differ severalfold. Of n gradients ``g_i`` of ``batch_size``
    samples each, with mean ``g``, and squares ``|v|^2 = v.Hv``,

        Tr H Sigma = batch_size sum_i |g_i - g|^2 / (n - 1),    G.HG = |g|^2 - sum_i |g_i - g|^2 / (n (n - 1)),

    both unbiased; the interval holds the ratios r for which ``Tr H Sigma - r G.HG`` is no further from 0 than its
    jackknife error allows (Fieller 1954), so that a gradient lost in noise gives an infinite end, not a wrong one.

    Args:
        gradients: tree of arrays ``[n, ...]``: gradients of samples, or of microbatches as accumulation has them.
        hessian: ``[P] -> [P]``, the matvec of ``operators.hessian``, on vectors in the order of ``ravel_pytree``.
        batch_size: samples in each. share: of the interval.

    Raises:
        ValueError: for fewer than three gradients, leaves of different n, or another number out of range.

    Cost: ``4 n P`` flops for P parameters, with a Hessian n products as well. The interval rests on the n gradients
    being independent draws.

    Reference: McCandlish, Kaplan & Amodei 2018, 'An empirical model of large-batch training', equations 2.6 to 2.9
    and A.1.

    Example:
        >>> import jax
        >>> g = 1.0 + 3.0 * jax.random.normal(jax.random.key(0), (500, 20))  # Tr Sigma / |G|^2 = 9
        >>> found = critical_batch(g)
        >>> bool(found.low < 9.0 < found.high)
        True
    """
    from scipy.special import stdtrit

    leaves = jax.tree.leaves(gradients)
    counts = {leaf.shape[:1] for leaf in leaves}
    if len(counts) != 1 or counts == {()} or (n := leaves[0].shape[0]) < 3:
        raise ValueError(f"gradients: got leaves of {sorted(counts)} gradients; allowed: the same n >= 3 in each leaf")
    check_counts(batch_size=batch_size)
    check_numbers(share=(share, INSIDE))
    flat = [jnp.reshape(leaf, (n, -1)) for leaf in leaves]
    flat = [leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)) for leaf in flat]
    images = flat
    if hessian is not None and any(map(jnp.iscomplexobj, flat)):
        raise ValueError("gradients: got complex ones with a Hessian; allowed: real ones, of the real view")
    if hessian is not None:
        flat = [jnp.concatenate(flat, -1)]
        images = [jax.lax.map(hessian, flat[0])]
    z2 = float(stdtrit(n - 1, 0.5 + share / 2)) ** 2
    value, low, high, noise, signal = _scale(flat, images, batch_size, z2)
    return CriticalBatch(value, low, high, noise, signal, n)


@jax.jit
def _scale(flat: list[Array], images: list[Array], batch_size: Array, z2: Array) -> tuple[Array, ...]:
    """Value, ends ``sqrt(z2)`` errors away, noise and signal; of gradients ``[n, ...]`` and their images under H."""
    n = flat[0].shape[0]
    means, turned = ([jnp.mean(leaf, 0) for leaf in part] for part in (flat, images))  # g, Hg
    square = sum(jnp.real(jnp.vdot(mean, image)) for mean, image in zip(means, turned))  # g.Hg
    parts = [*zip(flat, means, images, turned)]
    apart = sum(jnp.sum(jnp.real(jnp.conj(g - mean) * (Hg - H)), -1) for g, mean, Hg, H in parts)  # [n], of g_i - g
    along = sum(jnp.real((g - mean) @ jnp.conj(H)) for g, mean, _, H in parts)  # [n], (g_i - g).Hg

    def moments(square, total, n):
        noise = total / (n - 1)
        return noise, square - noise / n

    noise, signal = moments(square, jnp.sum(apart), n)
    # Without gradient i the mean is g - (g_i - g)/(n-1), and the squares about it sum to total - |g_i - g|^2 n/(n-1).
    left = moments(square - 2 * along / (n - 1) + apart / (n - 1) ** 2, jnp.sum(apart) - apart * n / (n - 1), n - 1)
    one, two = (value - jnp.mean(value) for value in left)
    var_n, var_s, cov = ((n - 1) / n * jnp.sum(product) for product in (one * one, two * two, one * two))
    a, b, c = signal**2 - z2 * var_s, noise * signal - z2 * cov, noise**2 - z2 * var_n
    root = jnp.sqrt(jnp.maximum(b**2 - a * c, 0))
    finite = jnp.isfinite(noise) & jnp.isfinite(signal)
    # The end that is finite for either sign of a is c / (b + root); where c < 0 no noise at all is allowed.
    low = jnp.where(b + root > 0, jnp.maximum(c, 0) / jnp.where(b + root > 0, b + root, 1), jnp.inf)
    high = jnp.where((a > 0) & (signal > 0), (b + root) / jnp.where(a > 0, a, 1), jnp.inf)
    value = jnp.where(signal > 0, noise / jnp.where(signal > 0, signal, 1), jnp.inf)
    value, low, high = (jnp.where(finite, batch_size * x, jnp.nan) for x in (value, low, high))
    return value, low, high, batch_size * noise, signal
