"""How alike two kernels or representations are, or a kernel and labels: centring, alignment, CKA, distance."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Shaped

from dynamics.arguments import program
from dynamics.types import Array, Estimate


@partial(program, flags=("debiased",))
def centred(kernel: Float[Array, "*l n n"], *, debiased: bool = False) -> Float[Array, "*l n n"]:
    """``H K H`` with ``H = I - 1 1^T / n``: the kernel of the features after their mean is taken off.

    Debiased, ``K_ij - k_i/(n-2) - k_j/(n-2) + s/((n-1)(n-2))`` off the diagonal and 0 on it, which counts nothing:
    ``k_i = sum_(j != i) K_ij``, ``s = sum_i k_i``. Its rows sum to 0, too.

    Args:
        kernel: ``[..., n, n]``, symmetric if debiased.
        debiased: U-centring in place of H; n >= 3.

    Reference: Cortes, Mohri & Rostamizadeh 2012, 'Algorithms for learning kernels based on centered alignment', eq. 1;
    Szekely & Rizzo 2014, 'Partial distance correlation with methods for dissimilarities', definition 2.

    Example:
        >>> import jax.numpy as jnp
        >>> float(jnp.abs(centred(jnp.ones((3, 3)))).max())
        0.0
    """
    if debiased:
        n = kernel.shape[-1]
        off = ~jnp.eye(n, dtype=bool)
        rows = jnp.sum(jnp.where(off, kernel, 0), -1, keepdims=True) / (n - 2)
        all_rows = jnp.sum(rows, -2, keepdims=True) / (n - 1)
        return jnp.where(off, kernel - rows - jnp.swapaxes(rows, -1, -2) + all_rows, 0)
    rows = jnp.mean(kernel, -1, keepdims=True)
    columns = jnp.mean(kernel, -2, keepdims=True)
    return kernel - rows - columns + jnp.mean(rows, -2, keepdims=True)


@partial(program, flags=("centre",))
def kernel_alignment(
    kernel1: Float[Array, "*l n n"], kernel2: Float[Array, "*l n n"], *, centre: bool = True
) -> Float[Array, "*l"]:
    """``<HK_1H, HK_2H>_F / (|HK_1H|_F |HK_2H|_F)``, in [-1, 1] (in [0, 1] for positive semi-definite kernels).

    Args:
        kernel1, kernel2: ``[..., n, n]``; give ``y @ y.T`` for alignment with labels.
        centre: False leaves out the centring ``H`` (Cristianini et al. 2001).

    Returns:
        ``[...]``; 0 where one of the kernels vanishes, NaN where one is not finite.

    Reference: Cortes, Mohri & Rostamizadeh 2012, definition 4.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.array([[1.0], [2.0], [4.0]])
        >>> round(float(kernel_alignment(x @ x.T, 3.0 * x @ x.T)), 5)
        1.0
    """
    if centre:
        kernel1, kernel2 = centred(kernel1), centred(kernel2)
    return jnp.sum(_unit(kernel1) * _unit(kernel2), (-2, -1))


@partial(program, flags=("centre",))
def label_alignment(
    kernel: Float[Array, "*l n n"], y: Shaped[Array | np.ndarray, ...], *, centre: bool = True
) -> Float[Array, "*l"]:
    """``kernel_alignment`` of a kernel, or of the Gram matrix of a representation, with its labels ``y y^T``.

    Args:
        kernel: ``[n, n]``, symmetric.
        y: labels ``[n]`` or ``[n, c]``; integers ``[n]`` are classes, alike or not (as one-hot rows).
        centre: False leaves out the centring.

    Returns:
        Scalar in [-1, 1]. A kernel of rank r that knows nothing of the labels reads about ``sqrt(r)/n``, not 0: the
        diagonal counts.

    Cost: O(n^2 c).

    Reference: Cortes, Mohri & Rostamizadeh 2012, eq. 3.

    Example:
        >>> import jax.numpy as jnp
        >>> y = jnp.array([1.0, -1.0, 2.0])
        >>> round(float(label_alignment(jnp.outer(y, y) + 3.0, y)), 4)
        1.0
    """
    if jnp.ndim(y) == 1 and jnp.issubdtype(jnp.result_type(y), jnp.integer):
        gram = (jnp.asarray(y)[:, None] == jnp.asarray(y)).astype(kernel.dtype)
    else:
        y = jnp.reshape(jnp.asarray(y), (kernel.shape[0], -1)).astype(kernel.dtype)
        gram = y @ y.T
    return kernel_alignment(kernel, gram, centre=centre)


def debiased_alignment(kernel1: Float[Array, "*l n n"], kernel2: Float[Array, "*l n n"]) -> Estimate:
    """Debiased centred alignment of two kernels, ``HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))``, and its jackknife error.

    With debiased centred kernels A and B, ``HSIC = sum_ij A_ij B_ij / (n (n - 3))`` is unbiased, where
    ``kernel_alignment`` rises with the features: that of p independent ones against p others is about ``p / (n + p)``.
    Without sample i, ``(n - 1)(n - 4) HSIC_i = sum_ab A_ab B_ab - 2 (n - 2) / (n - 3) sum_j A_ij B_ij``, so that all n
    ratios r_i together cost O(n^2), and ``error^2 = (n - 1) / n sum_i (r_i - mean r)^2``.

    Args:
        kernel1, kernel2: ``[..., n, n]``, symmetric, of the same samples, n >= 5, independent draws.

    Returns:
        ``Estimate``, value and error ``[...]``: in [-1, 1], around 0 for kernels that know nothing of each other (there
        the error is too large, by up to sqrt(2)); 0 where a kernel is constant off its diagonal, NaN where one is not
        finite. The ratio's own bias is O(1/n).

    Raises:
        ValueError: for fewer than five samples.

    Cost: O(n^2).

    Reference: Song, Smola, Gretton, Bedo & Borgwardt 2012, 'Feature selection via dependence maximization', eq. 5;
    Murphy, Zylberberg & Fyshe 2024, 'Correcting biased centered kernel alignment measures in biological and artificial
    neural networks'.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x, y = jax.random.normal(jax.random.key(0), (2, 50, 400))
        >>> biased, found = kernel_alignment(x @ x.T, y @ y.T), debiased_alignment(x @ x.T, y @ y.T)
        >>> round(float(biased), 1), bool(abs(found.value) < 3 * found.error)
        (0.9, True)
    """
    n = kernel1.shape[-1]
    if n < 5:
        raise ValueError(f"kernel: got {n} samples; allowed: at least 5, for an unbiased value and its error")
    value, error = _debiased(kernel1, kernel2)
    return Estimate(value, error, n)


@program
def _debiased(kernel1: Array, kernel2: Array) -> tuple[Array, Array]:
    """Value and error."""
    n = kernel1.shape[-1]
    one, two = (_unit(_without_rounding(centred(k, debiased=True), k)) for k in (kernel1, kernel2))
    whole = jnp.stack(jnp.broadcast_arrays(*(jnp.sum(k, -1) for k in (one * two, one * one, two * two))))  # [3, ..., n]
    total = jnp.sum(whole, -1, keepdims=True)
    left = total - 2 * (n - 2) / (n - 3) * whole
    # What one sample holds alone is gone without it, but for rounding.
    gone = (left[1:] <= n * jnp.finfo(left.dtype).eps).any(0)
    ratios = jnp.where(gone, 0, left[0] / jnp.where(gone, 1, jnp.sqrt(jnp.where(gone, 1, left[1] * left[2]))))
    return total[0, ..., 0], jnp.sqrt((n - 1) * jnp.var(ratios, -1))


def cka(x: Shaped[Array | np.ndarray, "n ..."], y: Shaped[Array | np.ndarray, "n ..."]) -> Estimate:
    """Debiased linear CKA of two representations of the same samples: ``debiased_alignment`` of ``x x^T``, ``y y^T``.

    For jointly Gaussian features it estimates ``|Sigma_xy|_F^2 / (|Sigma_xx|_F |Sigma_yy|_F)``, whatever n and p. It
    does not change with shifts, orthogonal maps and scalings of either side.

    Args:
        x, y: ``[n, ...]``, all axes but the first flattened; complex features count as pairs, half precision and
            integers are widened.

    Returns:
        ``Estimate`` of scalars, see ``debiased_alignment``.

    Raises:
        ValueError: for fewer than five samples, or another number in y.

    Cost: ``2 n^2 (p_1 + p_2)`` flops.

    Reference: Kornblith, Norouzi, Lee & Hinton 2019, eq. 4; Nguyen, Raghu & Kornblith 2021, 'Do wide and deep networks
    learn the same things?', for the unbiased HSIC.

    Example:
        >>> import jax
        >>> x = jax.random.normal(jax.random.key(0), (30, 4))
        >>> round(float(cka(x, 2.0 * x[:, ::-1] + 1.0).value), 4)
        1.0
    """
    if jnp.shape(x)[:1] != jnp.shape(y)[:1] or not jnp.shape(x):
        raise ValueError(f"y: got shape {jnp.shape(y)}; allowed: the samples of x, which has {jnp.shape(x)}")
    return debiased_alignment(_gram(x), _gram(y))


@program
def _gram(features: Any) -> Array:
    """``x x^T`` of the features after their mean is taken off, lest a large mean costs digits."""
    x = jnp.reshape(jnp.asarray(features), (features.shape[0], -1))
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    x = _without_rounding(x - jnp.mean(x, 0), x)
    return jnp.real(jnp.matmul(x, x.conj().T, precision="highest"))


def _without_rounding(moved: Array, array: Array) -> Array:
    """``moved``, zero where all of it is what rounding left of ``array``: it would be scaled up to size."""
    largest = [jnp.max(jnp.abs(one), (-2, -1), keepdims=True, initial=0) for one in (moved, array)]
    return jnp.where(largest[0] <= 8 * jnp.finfo(moved.dtype).eps * largest[1], 0, moved)


def _unit(kernel: Array) -> Array:
    """``K / |K|_F``, zero for a zero kernel; scaled by its largest entry first, so that squares cannot overflow."""
    largest = jnp.max(jnp.abs(kernel), (-2, -1), keepdims=True)
    scaled = kernel / jnp.where(largest == 0, 1, largest)
    size = jnp.sqrt(jnp.sum(scaled**2, (-2, -1), keepdims=True))
    return scaled / jnp.where(size == 0, 1, size)


def kernel_distance(kernel: Float[Array, "*l n m"], start: Float[Array, "*s n m"]) -> Float[Array, "*_"]:
    """``|K - K_0|_F / |K_0|_F``; infinite where ``K_0`` vanishes and ``K`` does not.

    Args:
        kernel, start: ``[..., n, m]``.
    """
    return jnp.sqrt(jnp.sum((kernel - start) ** 2, (-2, -1)) / jnp.sum(start**2, (-2, -1)))


def effective_dimension(eigenvalues: Float[Array, "*l k"], ridge: Float[Array, ""] | float) -> Float[Array, "*l"]:
    """``sum_i lambda_i / (lambda_i + ridge)``: the number of kernel modes above ``ridge``.

    Args:
        eigenvalues: ``[..., k]``, of the kernel itself (not divided by n); negative rounding errors count as 0.
        ridge: scalar, in the unit of the eigenvalues, > 0.

    Reference: Caponnetto & De Vito 2007, 'Optimal rates for the regularized least-squares algorithm'.
    """
    positive = jnp.maximum(eigenvalues, 0)
    return jnp.sum(positive / (positive + ridge), -1)
