"""How many directions of parameter space move the function: the rank of its Jacobian, with the gap that says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Float, Int

from dynamics.arguments import INSIDE, check_counts, check_numbers
from dynamics.program.real_view import flat
from dynamics.types import Array, Params, check_apply


class FunctionalDimension(NamedTuple):
    """The rank of a Jacobian.

    Attributes:
        rank: int, singular values above the cut.
        gap: log10 of the smallest value above the cut over the largest below it; infinite where one of the two is
            missing or zero. Below 2 the rank is a matter of the cut.
        parameters: their number D, the largest rank possible.
        singular_values: ``[D]``, descending, of the Jacobian with columns of length one.

    NumPy's numbers, in float64; arrays of JAX where values are traced.
    """

    rank: Int[Array | np.ndarray, ""]
    gap: Float[Array | np.ndarray, ""]
    parameters: int
    singular_values: Float[Array | np.ndarray, " D"]


def functional_dimension(
    apply: Callable[..., Array], params: Params, x: Float[Array, "n ..."], *, cut: float = 1e-9, batch_size: int = 256
) -> FunctionalDimension:
    """The rank of ``df(x_i)/dtheta`` over samples and outputs: parameters less the symmetries of the function there.

    Computed in float64 whatever the configuration. Columns are scaled to length one first, so that a parameter's unit
    does not matter; those that move nothing stay zero. Samples are taken up piece by piece (``R <- qr([R; J_piece])``),
    so memory does not grow with them. Samples that miss a region of a piecewise linear network see too small a rank:
    double them until it stops growing.

    Args:
        apply: ``(params, x) -> f [n, c]``.
        params: the point.
        x: ``[n, ...]``, as many as there are parameters at least.
        cut: singular values below this share of the largest count as zero.
        batch_size: samples in a piece.

    Raises:
        TypeError: for a model where its function belongs, where values are traced in float32, and for a function that
            returns less than float64 of float64.
        ValueError: for a cut outside (0, 1), a batch size below 1, no samples, or a Jacobian that is not finite.

    Cost: n c gradients, and ``n c D^2`` FLOPs.

    Reference: Grigsby, Lindsey & Rolnick 2023, 'Hidden symmetries of ReLU networks', definition 3.1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> params = jnp.array([[2.0, -1.0]]), jnp.array([[3.0], [1.0]])
        >>> x = jax.random.normal(jax.random.key(0), (20, 1))
        >>> found = functional_dimension(lambda p, x: jax.nn.relu(x @ p[0]) @ p[1], params, x)
        >>> int(found.rank), found.parameters  # a unit's scale is one symmetry each
        (2, 4)
    """
    check_apply(apply)
    check_numbers(cut=(cut, INSIDE))
    check_counts(batch_size=batch_size)
    leaves = [*jax.tree.leaves(params), x]
    if any(isinstance(leaf, Tracer) for leaf in leaves) and not jax.config.jax_enable_x64:  # type: ignore
        raise TypeError("params: got values traced in float32; allowed: concrete ones, or tracing under jax_enable_x64")
    with jax.enable_x64(True):
        params, x = jax.tree.map(_double, (params, x))
        if jnp.ndim(x) < 1 or x.shape[0] < 1:
            raise ValueError(f"x: got shape {jnp.shape(x)}; allowed: [n, ...] with n >= 1")
        dtype = jax.eval_shape(apply, params, x).dtype
        if dtype not in (jnp.float64, jnp.complex128):
            raise TypeError(f"apply: got {dtype} of float64; allowed: a function that does not round, or rank is noise")
        theta, _, merge = flat(params)
        rank, gap, values = _rank(_triangle(apply, merge, theta, x, batch_size), cut)
        found = FunctionalDimension(rank, gap, theta.size, values)
    if not isinstance(rank, Tracer) and not jnp.all(jnp.isfinite(values)):
        raise ValueError("apply: got a Jacobian with NaN or infinity; allowed: a finite one")
    return found if isinstance(rank, Tracer) else jax.device_get(found)  # float64 that lives on outside of x64


@jax.jit
def _rank(triangle: Array, cut: Array) -> tuple[Array, Array, Array]:
    """Rank, gap and singular values of R with columns of length one."""
    length = jnp.sqrt(jnp.sum(triangle**2, 0))
    values = jnp.linalg.svd(triangle / jnp.where(length > 0, length, 1), compute_uv=False)
    above = values > cut * values[0]
    least = jnp.min(jnp.where(above, values, jnp.inf))
    most = jnp.max(jnp.where(above, 0.0, values))
    return jnp.sum(above), jnp.log10(least / most), values


def _double(leaf: Any) -> Array:
    leaf = jnp.asarray(leaf)
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        return leaf.astype(jnp.complex128)
    return leaf.astype(jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def _triangle(apply, merge, theta: Array, x: Array, batch_size: int) -> Array:
    """R ``[D, D]`` of the Jacobian."""
    n, D = x.shape[0], theta.size
    batch_size = min(batch_size, n)
    pieces = -(-n // batch_size)
    padded = jnp.concatenate([x, jnp.repeat(x[:1], pieces * batch_size - n, 0)])
    counts = (jnp.arange(pieces * batch_size) < n).astype(theta.dtype).reshape(pieces, batch_size)

    def rows(one):
        return jax.jacrev(lambda v: apply(merge(v), one[None])[0])(theta).reshape(-1, D)

    def take(R, piece):
        some, counts = piece
        J = (jax.vmap(rows)(some) * counts[:, None, None]).reshape(-1, D)
        return jnp.linalg.qr(jnp.concatenate([R, J]), mode="r"), None

    return jax.lax.scan(
        take, jnp.zeros((D, D), theta.dtype), (padded.reshape(pieces, batch_size, *x.shape[1:]), counts)
    )[0]
