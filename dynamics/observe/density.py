"""Spectral densities of curvature operators: Hessian, Gauss-Newton and NTK, whole or layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from dynamics import linalg, operators
from dynamics.operators import Operator
from dynamics.types import Array, Batch, Observable, Params

OperatorOf = Callable[[Params, Batch], Operator]


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
        operator: ``(params, batch) -> Operator``, symmetric.
        name: of the readings.
        probes, steps, batch_size, reorthogonalize: see ``linalg.spectral_density``.
        seed: of the probes (the same at every reading, so that changes are the density's).

    Returns:
        An observable with ``<name>_density_nodes`` and ``<name>_density_weights`` ``[probes, steps]`` (wrap them in
        ``linalg.Density`` for ``smoothed`` and ``cumulative``), ``<name>_trace``, ``<name>_frobenius_squared`` and
        ``<name>_negative_mass``, each of the three with ``_error``.

    Raises:
        ValueError: at tracing, when ``probes < 2`` or ``steps < 1``.

    Cost: ``probes * steps`` products.

    Reference: Ghorbani, Krishnan & Xiao 2019.
    """

    def read(params, batch):
        matvec, size, dtype, _ = operator(params, batch)
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

    return read


def hessian_density(
    apply: Callable[..., Array], loss: Callable[[Array, Array], Array], *, where: Any = None, **options: Any
) -> Observable:
    """``density`` of the loss Hessian under the name ``hessian``; 2 gradients a product.

    Args:
        apply: ``(params, x) -> f``.
        loss: ``(f, y) -> scalar``.
        where: leaves of a diagonal block, see ``operators.hessian``.
        options: see ``density``.
    """
    return density(
        lambda params, batch: operators.hessian(apply, loss, params, batch, where=where), "hessian", **options
    )


def gauss_newton_density(
    apply: Callable[..., Array], loss: Callable[[Array, Array], Array], *, where: Any = None, **options: Any
) -> Observable:
    """``density`` of the Gauss-Newton matrix as ``gauss_newton``; arguments as ``hessian_density``."""

    def operator(params, batch):
        return operators.gauss_newton(apply, loss, params, batch, where=where)

    return density(operator, "gauss_newton", **options)


def ntk_density(apply: Callable[..., Array], *, where: Any = None, **options: Any) -> Observable:
    """``density`` of the empirical NTK ``J J^T`` of the batch, ``[n c, n c]``, as ``ntk``; no Gram matrix is formed.

    Its eigenvalues over n are those of the Gauss-Newton matrix of ``half_mse``, but for zeros.

    Args:
        apply: ``(params, x) -> f``.
        where: leaves whose part of the kernel is meant, see ``operators.hessian``.
        options: see ``density``.
    """
    return density(lambda params, batch: operators.ntk(apply, params, batch, where=where), "ntk", **options)


def layer_densities(operator: Callable[..., Operator], name: str, *, level: int = 1, **options: Any) -> Observable:
    """``density`` of every diagonal block of an operator, ``<name>/<layer>_trace`` and so on.

    Args:
        operator: ``(params, batch, where) -> Operator``, e.g.
            ``lambda p, b, where: operators.hessian(apply, loss, p, b, where=where)``.
        name: of the readings.
        level: leaves whose paths share their first ``level`` entries form a block, see ``operators.blocks``.
        options: see ``density``.

    Cost: ``probes * steps`` products a block.

    Example:
        >>> import jax.numpy as jnp
        >>> from dynamics.losses import half_mse
        >>> apply = lambda p, x: x @ p["a"] @ p["b"]
        >>> block = lambda p, b, where: operators.hessian(apply, half_mse, p, b, where=where)
        >>> read = layer_densities(block, "hessian", probes=2, steps=2)
        >>> params = {"a": jnp.ones((2, 2)), "b": jnp.ones((2, 1))}
        >>> sorted(k for k in read(params, Batch(jnp.eye(2), jnp.ones((2, 1)))) if k.endswith("trace"))
        ['hessian/a_trace', 'hessian/b_trace']
    """

    def read(params, batch):
        readings = {}
        for layer, where in operators.blocks(params, level).items():

            def block(params, batch, where=where):
                return operator(params, batch, where)

            readings |= density(block, f"{name}/{layer}", **options)(params, batch)
        return readings

    return read
