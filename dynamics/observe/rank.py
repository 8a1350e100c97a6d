"""Ranks, norms and movement of weights, and the singular values of the end-to-end map."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from dynamics.observe.compose import since_start
from dynamics.program.real_view import wide
from dynamics.statistics import effective_rank, stable_rank, weight_norm
from dynamics.types import Array, Observable, PyTree, factory


@factory("weight_ranks()")
def weight_ranks(*, spectrum: bool = False) -> Observable:
    """Stable rank, effective rank and, on request, singular values of every weight matrix.

    A leaf counts as a matrix when it has two or more axes; the last one is the output, the others are flattened (so a
    convolution's kernel is [positions x inputs, outputs]).

    Half precision is widened to float32.

    Args:
        spectrum: also read the singular values, descending.

    Returns:
        An observable with ``stable_rank/<leaf>``, ``effective_rank/<leaf>`` (scalars) and ``singular_values/<leaf>``
        ``[min(rows, columns)]``, where ``<leaf>`` is the leaf's path in the parameters. Cost: one SVD a matrix.
    """

    def read(view):
        readings = {}
        for name, matrix in matrices(view.params).items():
            values = jnp.linalg.svd(wide(matrix), compute_uv=False)
            readings[f"stable_rank/{name}"] = stable_rank(values)
            readings[f"effective_rank/{name}"] = effective_rank(values)
            if spectrum:
                readings[f"singular_values/{name}"] = values
        return readings

    return Observable.of_view(read)


@factory("end_to_end()", needs_f=True)
def end_to_end(*, spectrum: bool = False) -> Observable:
    """Stable and effective rank of the end-to-end map on the batch.

    The map is the matrix ``F`` with ``f(x) = x F`` that fits the network's outputs on the batch best (least squares);
    for a linear network and inputs of full column rank it is the product of the weight matrices, exactly.

    Args:
        spectrum: also read the singular values, descending.

    Returns:
        An observable with ``stable_rank/map``, ``effective_rank/map``, ``map_residual`` (the share of |f|^2 that no
        linear map explains, 0 for a linear network) and, on request, ``singular_values/map`` ``[min(d, c)]``. Cost: one
        least squares of ``[n, d]``.
    """

    def read(view):
        apply, inputs = view.f("end_to_end"), view.batch.x
        x = wide(jnp.reshape(inputs, (inputs.shape[0], -1)))
        f = wide(apply(view.params, inputs))
        linear = jnp.linalg.lstsq(x, f)[0]
        values = jnp.linalg.svd(linear, compute_uv=False)
        size = jnp.sum(f**2)
        residual = jnp.sum((f - x @ linear) ** 2) / jnp.where(size > 0, size, 1)
        readings = {
            "stable_rank/map": stable_rank(values),
            "effective_rank/map": effective_rank(values),
            "map_residual": residual,
        }
        return {**readings, "singular_values/map": values} if spectrum else readings

    return Observable.of_view(read)


@factory("movement()")
def movement() -> Observable:
    """Weight norm ``weight_norm`` = |theta| and movement ``weight_change`` = |theta - theta_0| / |theta_0|."""

    def read(start, params, batch):
        change = weight_norm(jax.tree.map(lambda a, b: a - b, params, start))
        size = weight_norm(start)
        return {"weight_norm": weight_norm(params), "weight_change": change / jnp.where(size > 0, size, 1)}

    return since_start(read)


def matrices(params: PyTree) -> dict[str, Array]:
    """Every leaf with two or more axes as a matrix ``[rows, outputs]``, by its path."""
    found: dict[str, Any] = {}
    for path, leaf in jax.tree.leaves_with_path(params):
        if jnp.ndim(leaf) >= 2:
            found[path_name(path)] = jnp.reshape(leaf, (-1, leaf.shape[-1]))
    return found


def path_name(path: tuple[Any, ...]) -> str:
    """A pytree path as ``a/0/kernel``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
