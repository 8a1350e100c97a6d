"""How alike two kernels are, or a kernel and labels: centring, alignment, distance, effective dimension."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Shaped

from dynamics.types import Array


def centred(kernel: Float[Array, "*l n n"]) -> Float[Array, "*l n n"]:
    """``H K H`` with ``H = I - 1 1^T / n``: the kernel of the features after their mean is taken off.

    Args:
        kernel: ``[..., n, n]``.

    Reference: Cortes, Mohri & Rostamizadeh 2012, 'Algorithms for learning kernels based on centered alignment', eq. 1.

    Example:
        >>> import jax.numpy as jnp
        >>> float(jnp.abs(centred(jnp.ones((3, 3)))).max())
        0.0
    """
    rows = jnp.mean(kernel, -1, keepdims=True)
    columns = jnp.mean(kernel, -2, keepdims=True)
    return kernel - rows - columns + jnp.mean(rows, -2, keepdims=True)


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
