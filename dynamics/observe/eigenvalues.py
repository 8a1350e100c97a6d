"""Several extreme eigenvalues of curvature operators, whole or layer by layer, with their residuals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dynamics import linalg
from dynamics.observe.compose import by_layer
from dynamics.observe.sharpness import OperatorOf, check_operator, hessian_at, zero_vector
from dynamics.operators import Operator
from dynamics.types import Observable, factory


@factory("eigenvalues(operator, name, k)")
def eigenvalues(
    operator: OperatorOf,
    name: str,
    k: int,
    *,
    which: str = "largest",
    tolerance: float = 1e-3,
    max_matvecs: int | None = None,
    basis_size: int | None = None,
    seed: int = 0,
) -> Observable:
    """The k largest (or smallest) eigenvalues of any operator with residuals, warm-started from the last reading's.

    Args:
        operator: ``view -> Operator``, symmetric.
        name: of the readings.
        k, which, tolerance, max_matvecs, basis_size: see ``linalg.eigenpairs``.
        seed: of the random start.

    Returns:
        An observable with ``<name>_eigenvalues`` ``[k]``, counted with multiplicity, ``<name>_eigenvalues_residual``
        ``[k]``, ``<name>_eigenvalues_limit`` (no copy was missed beyond it but for a probability of .01; see
        ``linalg.Eigenpairs``) and ``<name>_eigenvalues_matvecs``; for the smallest, ``<name>_smallest`` in place of
        ``<name>_eigenvalues``.

    Raises:
        TypeError: when ``operator`` is no function of a view. ValueError: at tracing, as ``linalg.eigenpairs``.
    """
    check_operator("eigenvalues", operator, "view")
    name = f"{name}_eigenvalues" if which == "largest" else f"{name}_smallest"

    def init(view):
        return zero_vector(operator, view), jax.random.key(seed), jnp.int32(0)

    def update(memory, view):
        summed, key, count = memory
        matvec, size, dtype, _ = operator(view)
        z = jax.random.normal(jax.random.fold_in(key, count), (size,), dtype)
        pairs = linalg.eigenpairs(
            matvec,
            summed + z / jnp.linalg.norm(z),
            k,
            which=which,
            tolerance=tolerance,
            max_matvecs=max_matvecs,
            basis_size=basis_size,
        )
        summed = jnp.sum(jnp.where(jnp.isfinite(pairs.vectors), pairs.vectors, 0), 0)
        readings = {
            name: pairs.values,
            f"{name}_residual": pairs.residuals,
            f"{name}_limit": pairs.limit,
            f"{name}_matvecs": pairs.matvecs,
        }
        return (summed, key, count + 1), readings

    return Observable(init, update)


@factory("hessian_eigenvalues(k)")
def hessian_eigenvalues(k: int, *, where: Any = None, **options: Any) -> Observable:
    """``eigenvalues`` of the loss Hessian under the name ``hessian``; 2 gradients a product.

    Args:
        k: how many.
        where: leaves of a diagonal block, see ``operators.hessian``.
        options: see ``eigenvalues``.
    """
    return eigenvalues(hessian_at("hessian_eigenvalues", where=where), "hessian", k, **options)


@factory("layer_eigenvalues(operator, name, k)")
def layer_eigenvalues(
    operator: Callable[..., Operator], name: str, k: int, *, level: int = 1, **options: Any
) -> Observable:
    """``eigenvalues`` of every diagonal block of an operator, ``<name>/<layer>_eigenvalues`` and so on.

    Args:
        operator: ``(objective, params, batch, where=) -> Operator``, e.g. ``operators.hessian``.
        name: of the readings.
        k: how many; as many as a block has parameters where these are fewer.
        level: leaves whose paths share their first ``level`` entries form a block, see ``operators.blocks``.
        options: see ``eigenvalues``.

    Cost: that of ``linalg.eigenpairs`` for each block; the largest one of any block is at most that of the whole.

    Example:
        >>> import jax.numpy as jnp
        >>> from dynamics import operators
        >>> from dynamics.losses import half_mse
        >>> from dynamics.types import Batch, Objective, View
        >>> L = Objective(lambda p, x: x @ p["a"] @ p["b"], half_mse)
        >>> params = {"a": jnp.ones((2, 2)), "b": jnp.ones((2, 1))}
        >>> read = layer_eigenvalues(operators.hessian, "hessian", 3)
        >>> view = View(params, Batch(jnp.eye(2), jnp.ones((2, 1))), L)
        >>> readings = read.update(read.init(view), view)[1]
        >>> {name: values.shape for name, values in readings.items() if name.endswith("eigenvalues")}
        {'hessian/a_eigenvalues': (3,), 'hessian/b_eigenvalues': (2,)}
    """
    check_operator("layer_eigenvalues", operator, "objective", "params", "batch", "where")

    def of_block(block, block_name, size):
        return eigenvalues(block, block_name, min(k, size), **options)

    return by_layer("layer_eigenvalues", of_block, operator, name, level)
