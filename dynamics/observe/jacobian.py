"""The Jacobian of a network by its input: how far each sample's is from symmetric, and its spectrum."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dynamics.arguments import check_counts
from dynamics.types import Array, Observable, factory


@factory("jacobian()", needs_f=True)
def jacobian(*, matrix: bool = False, batch_size: int = 64) -> Observable:
    """Reads ``J = df/dx`` at each sample of the batch; of a map from a space to itself also its symmetry.

    A denoiser whose J is symmetric everywhere follows the gradient of a density; eigenvectors of its symmetric part
    ``(J + J^T)/2`` with eigenvalues near 1 span the directions that it keeps. The asymmetry
    ``|J - J^T|_F / (sqrt(2) |J|_F)`` is 0 for symmetric J, about 1 for a random one, ``sqrt(2)`` for an antisymmetric.

    Args:
        matrix: read ``jacobian [n, c, d]`` itself.
        batch_size: samples that are differentiated at a time.

    Returns:
        An observable with ``jacobian_norm [n]`` = ``|J|_F``, ``jacobian_singular_values [n, min(c, d)]``, descending,
        and, where f's values have as many numbers as its inputs, ``jacobian_asymmetry [n]`` (NaN for J = 0) and
        ``jacobian_eigenvalues [n, d]`` of the symmetric part, descending.

    Raises:
        ValueError: for a batch size below 1; at tracing, for no samples, or samples or values without entries.
        TypeError: at tracing, for inputs or values that are no real floating arrays ``[n, ...]``.

    Assumptions: samples do not mix; each is differentiated alone.

    Cost: ``min(c, d)`` passes and ``O(c d min(c, d))`` FLOPs a sample.

    Reference: Mohan, Kadkhodaie, Simoncelli & Fernandez-Granda 2020, section 5.

    Example:
        >>> from dynamics.losses import half_mse
        >>> from dynamics.types import Batch, Objective, View
        >>> W, x = jnp.array([[2.0, 1.0], [-1.0, 2.0]]), jnp.ones((3, 2))
        >>> view = View(W, Batch(x, x), Objective(lambda W, x: x @ W.T, half_mse))
        >>> found = jacobian().update((), view)[1]
        >>> [round(float(v), 4) for v in (found["jacobian_asymmetry"][0], *found["jacobian_eigenvalues"][0])]
        [0.6325, 2.0, 2.0]
    """
    check_counts(batch_size=batch_size)

    def read(view):
        f, x = view.f("jacobian"), view.batch.x
        for name, value in (("x", x), ("f", jax.eval_shape(f, view.params, x))):
            if not hasattr(value, "ndim") or not jnp.issubdtype(value.dtype, jnp.floating) or value.ndim < 1:
                got = "shape ()" if getattr(value, "ndim", 1) < 1 else getattr(value, "dtype", type(value).__name__)
                raise TypeError(f"{name}: got {got}; allowed: one real floating array [n, ...]")
            if 0 in value.shape:
                raise ValueError(f"{name}: got shape {value.shape}; allowed: [n, ...] of one sample and entry or more")

        def one(sample):
            return _readings(_jacobian(lambda v: f(view.params, v[None])[0], sample), matrix)

        return jax.lax.map(one, jnp.asarray(x), batch_size=min(batch_size, x.shape[0]))

    return Observable.of_view(read)


def _jacobian(f, sample: Array) -> Array:
    """``[c, d]``, by the mode of fewer passes."""
    c = jax.eval_shape(f, sample).size
    derivative = jax.jacrev if c <= sample.size else jax.jacfwd
    return derivative(f)(sample).reshape(c, sample.size)


def _readings(J: Array, matrix: bool) -> dict[str, Array]:
    J = J.astype(jnp.promote_types(J.dtype, jnp.float32))
    largest = jnp.max(jnp.abs(J))
    scale = jnp.where(largest > 0, largest, 1)  # squares of small or large entries neither under- nor overflow
    unit = J / scale
    size = jnp.sqrt(jnp.sum(unit**2))
    values = jnp.linalg.svd(unit, compute_uv=False)
    found = {"jacobian_norm": scale * size, "jacobian_singular_values": scale * values}
    if J.shape[0] == J.shape[1]:
        found["jacobian_asymmetry"] = jnp.sqrt(jnp.sum((unit - unit.T) ** 2) / 2) / size
        found["jacobian_eigenvalues"] = scale * jnp.linalg.eigvalsh((unit + unit.T) / 2)[::-1]
    return found | ({"jacobian": J} if matrix else {})
