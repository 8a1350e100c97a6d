"""Spectral densities of curvature operators: Hessian, Gauss-Newton and NTK, whole or layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from dynamics import linalg, operators
from dynamics.observe.compose import by_layer
from dynamics.observe.sharpness import OperatorOf, check_operator, hessian_at
from dynamics.operators import Operator
from dynamics.types import Observable, factory


@factory("density(operator, name)")
def density(
    operator: OperatorOf,
    name: str,
    *,
    probes: int = 5,
    steps: int = 50,
    batch_size: int = 1,
    reorthogonalize: bool = True,
    seed: int = 0,
) -> Observable:
    """The spectral density of any operator by stochastic Lanczos quadrature, with its integrals and their errors.

    Args:
        operator: ``view -> Operator``, symmetric.
        name: of the readings.
        probes, steps, batch_size, reorthogonalize: see ``linalg.spectral_density``.
        seed: of the probes (the same at every reading, so that changes are the density's).

    Returns:
        An observable with ``<name>_density_nodes`` and ``<name>_density_weights`` ``[probes, steps]`` (wrap them in
        ``linalg.Density`` for ``smoothed`` and ``cumulative``), ``<name>_trace``, ``<name>_frobenius_squared`` and
        ``<name>_negative_mass``, each of the three with ``_error``.

    Raises:
        ValueError: at tracing, when ``probes < 2`` or ``steps < 1``.
        TypeError: when ``operator`` is no function of a view.

    Cost: ``probes * steps`` products.

    Reference: Ghorbani, Krishnan & Xiao 2019.
    """
    check_operator("density", operator, "view")

    def read(view):
        matvec, size, dtype, _ = operator(view)
        found = linalg.spectral_density(
            matvec,
            jax.random.key(seed),
            size,
            probes=probes,
            steps=steps,
            dtype=dtype,
            batch_size=batch_size,
            reorthogonalize=reorthogonalize,
        )
        readings = {f"{name}_density_nodes": found.nodes, f"{name}_density_weights": found.weights}
        for moment, estimate in linalg.moments(found)._asdict().items():
            readings[f"{name}_{moment}"] = estimate.value
            readings[f"{name}_{moment}_error"] = estimate.error
        return readings

    return Observable.of_view(read)


@factory("hessian_density()")
def hessian_density(*, where: Any = None, **options: Any) -> Observable:
    """``density`` of the loss Hessian under the name ``hessian``; 2 gradients a product.

    Args:
        where: leaves of a diagonal block, see ``operators.hessian``.
        options: see ``density``.
    """
    return density(hessian_at("hessian_density", where=where), "hessian", **options)


@factory("gauss_newton_density()", needs_f=True)
def gauss_newton_density(*, where: Any = None, **options: Any) -> Observable:
    """``density`` of the Gauss-Newton matrix as ``gauss_newton``; arguments as ``hessian_density``."""

    def operator(view):
        view.f("gauss_newton_density")
        return operators.gauss_newton(view.objective, view.params, view.batch, where=where)

    return density(operator, "gauss_newton", **options)


@factory("ntk_density()", needs_f=True)
def ntk_density(*, where: Any = None, **options: Any) -> Observable:
    """``density`` of the empirical NTK ``J J^T`` of the batch, ``[n c, n c]``, as ``ntk``; no Gram matrix is formed.

    Its eigenvalues over n are those of the Gauss-Newton matrix of ``half_mse``, but for zeros.

    Args:
        where: leaves whose part of the kernel is meant, see ``operators.hessian``.
        options: see ``density``.
    """

    def operator(view):
        view.f("ntk_density")
        return operators.ntk(view.objective, view.params, view.batch, where=where)

    return density(operator, "ntk", **options)


@factory("layer_densities(operator, name)")
def layer_densities(operator: Callable[..., Operator], name: str, *, level: int = 1, **options: Any) -> Observable:
    """``density`` of every diagonal block of an operator, ``<name>/<layer>_trace`` and so on.

    Args:
        operator: ``(objective, params, batch, where=) -> Operator``, e.g. ``operators.hessian``.
        name: of the readings.
        level: leaves whose paths share their first ``level`` entries form a block, see ``operators.blocks``.
        options: see ``density``.

    Cost: ``probes * steps`` products a block.

    Example:
        >>> import jax.numpy as jnp
        >>> from dynamics.losses import half_mse
        >>> from dynamics.types import Batch, Objective, View
        >>> L = Objective(lambda p, x: x @ p["a"] @ p["b"], half_mse)
        >>> params = {"a": jnp.ones((2, 2)), "b": jnp.ones((2, 1))}
        >>> read = layer_densities(operators.hessian, "hessian", probes=2, steps=2)
        >>> readings = read.update((), View(params, Batch(jnp.eye(2), jnp.ones((2, 1))), L))[1]
        >>> sorted(k for k in readings if k.endswith("trace"))
        ['hessian/a_trace', 'hessian/b_trace']
    """
    check_operator("layer_densities", operator, "objective", "params", "batch", "where")

    def of_block(block, block_name, size):
        return density(block, block_name, **options)

    return by_layer("layer_densities", of_block, operator, name, level)
