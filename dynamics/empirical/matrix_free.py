"""The NTK as an operator on outputs, never formed: products, top eigenpairs, trace, alignment, effective dimension."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Float, PRNGKeyArray, Shaped

from dynamics.arguments import POSITIVE, check_numbers
from dynamics.empirical.dispatch import Request, check_real, ntk_plans
from dynamics.empirical.functions import empirical_ntk_fn
from dynamics.empirical.passes import Passes
from dynamics.empirical.tile_plan import DEFAULT_BUDGET, Plan
from dynamics.linalg import Eigenpairs, Estimate, Operator, eigenpairs, mean_and_error, spectral_density, trace
from dynamics.precision import full_precision
from dynamics.program.real_view import Where, flat, linearized_outputs
from dynamics.types import Array, Params, PyTree


@full_precision
def ntk_operator(
    f: Callable[[Params, PyTree], Array],
    params: Params,
    x: PyTree,
    *,
    where: Where | None = None,
    batch_size: int | None = None,
) -> Operator:
    """The NTK of a batch, ``Theta = J J^T``, as an operator on flat outputs ``[n c]``; ``unravel`` gives ``[n, c]``.

    Args:
        f: ``(params, x) -> [n, ...]``; with ``batch_size`` each output sample a function of its own input sample.
        params: where the Jacobian is taken; integer and boolean leaves are constants.
        x: inputs ``[n, ...]``, n >= 1.
        where: ``(path, leaf) -> bool`` chooses the leaves that move; all of them unless given.
        batch_size: samples at a time in both passes, which bounds the memory; all at once unless given, and then the
            product is ``J J^T`` of the whole batch's function, whether or not it mixes samples.

    Raises:
        ValueError: when ``x`` is empty, or ``batch_size`` is not an integer >= 1 or is given for an ``f`` that mixes
            samples.

    Cost of a product: about 1.3 gradients, f linearised once; with ``batch_size`` about four forward passes, in the
    memory of one backward pass over that many samples. No Gram matrix is formed.

    Example:
        >>> import jax.numpy as jnp
        >>> operator = ntk_operator(lambda w, x: x @ w, jnp.ones((3, 1)), 2.0 * jnp.eye(3), batch_size=2)
        >>> operator.matvec(jnp.ones(3)).tolist()
        [4.0, 4.0, 4.0]
    """
    n = jax.tree.leaves(x)[0].shape[0]
    if n == 0:
        raise ValueError("x: got no samples; allowed: at least one")
    theta, _, merge = flat(params, where)
    if batch_size is None:
        outputs, push, pull, shaped = linearized_outputs(lambda v: f(merge(v), x), theta)
        return Operator(lambda v: push(pull(v)), outputs.size, outputs.dtype, shaped)
    cut, output = Passes(f, params, merge, theta, x, batch_size), jax.eval_shape(f, params, x)
    check_real(output)
    dtype = jnp.promote_types(output.dtype, jnp.float32)

    def matvec(vector: Array) -> Array:
        cotangents = jnp.reshape(vector, output.shape).astype(output.dtype)
        return jnp.ravel(cut.push(cut.pull(cotangents))).astype(dtype)

    return Operator(matvec, output.size, dtype, lambda v: jnp.reshape(v, output.shape))


@full_precision
def ntk_eigenpairs(
    f: Callable[[Params, PyTree], Array],
    params: Params,
    x: PyTree,
    k: int,
    key: PRNGKeyArray,
    *,
    method: str = "auto",
    batch_size: int | None = None,
    tolerance: float = 1e-3,
    memory: int = DEFAULT_BUDGET,
) -> Eigenpairs:
    """The ``k`` largest eigenpairs of the full NTK ``[n c, n c]``, sample-major, with residuals.

    Args:
        f, params, x, batch_size: see ``ntk_operator``.
        k: how many, ``1 <= k <= n c``.
        key: for Lanczos' start.
        method: 'dense' (the structured kernel and one ``eigh``), 'matrix-free' (Lanczos on products), or 'auto': the
            cheaper by an estimate of FLOPs, dense only where kernel and workspace fit ``memory``.
        tolerance: relative residual that Lanczos is to reach.
        memory: bytes.

    Returns:
        ``Eigenpairs`` with values, vectors ``[k, n c]``, residuals ``|Theta v - lambda v|`` and matvecs (0 if dense).

    Raises:
        ValueError: when ``k`` or ``method`` is out of range, or as ``ntk_operator``.
    """
    if method not in ("auto", "dense", "matrix-free"):
        raise ValueError(f"method: got {method!r}; allowed: 'auto', 'dense' or 'matrix-free'")
    operator = ntk_operator(f, params, x, batch_size=batch_size)
    if not isinstance(k, int) or not 1 <= k <= operator.size:
        raise ValueError(f"k: got {k!r}; allowed: an integer in [1, {operator.size}]")
    if method == "auto":
        method = "dense" if _dense_is_cheaper(f, params, x, operator, k, memory) else "matrix-free"
    if method == "matrix-free":
        start = jax.random.normal(key, (operator.size,), operator.dtype)
        return eigenpairs(operator.matvec, start, k, tolerance=tolerance)
    kernel = flat_kernel(empirical_ntk_fn(f, trace_axes=(), memory=memory)(x, None, params))
    values, vectors = jnp.linalg.eigh(kernel)
    values, vectors = values[::-1][:k], vectors.T[::-1][:k]
    residuals = jnp.linalg.norm(vectors @ kernel - values[:, None] * vectors, axis=-1)
    return Eigenpairs(values, vectors, residuals, jnp.zeros((), jnp.int32))


def flat_kernel(kernel: Float[Array, ...]) -> Float[Array, "nc nc"]:
    """A full kernel ``[n, m, c, c']`` (any number of output axes) as the matrix ``[n c, m c']``, sample-major."""
    axes = range(kernel.ndim)
    rows = math.prod(kernel.shape[::2])
    return jnp.reshape(jnp.transpose(kernel, (*axes[::2], *axes[1::2])), (rows, -1))


@full_precision
def ntk_trace(operator: Operator, key: PRNGKeyArray, probes: int = 32) -> Estimate:
    """``tr Theta`` with its standard error, by Hutchinson's probes (one product each)."""
    return trace(operator.matvec, key, operator.size, probes, dtype=operator.dtype).trace


@full_precision
def ntk_label_alignment(
    operator: Operator, y: Shaped[Array, "n ..."], key: PRNGKeyArray, *, probes: int = 32, centre: bool = True
) -> Estimate:
    """Alignment of the full NTK with ``vec(y) vec(y)^T``, ``y^T H Theta H y / (|H y|^2 |H Theta H|_F)``.

    The numerator is exact (one product); ``|H Theta H|_F`` comes from random-sign probes and carries the error.

    Args:
        operator: the NTK.
        y: labels, as many entries as outputs.
        key: for the probes.
        probes: number of products spent on the norm.
        centre: False leaves the centring ``H`` out.

    Raises:
        ValueError: when ``y`` has another number of entries.

    Reference: Cortes, Mohri & Rostamizadeh 2012, definition 4.
    """

    if y.size != operator.size:
        raise ValueError(f"y: got {y.size} entries; allowed: as many as outputs, {operator.size}")

    def centred(vector: Array) -> Array:
        return vector - jnp.mean(vector) if centre else vector

    def matvec(vector: Array) -> Array:
        return centred(operator.matvec(centred(vector)))

    label = centred(jnp.reshape(y, -1).astype(operator.dtype))
    norm = trace(matvec, key, operator.size, probes, dtype=operator.dtype).frobenius
    value = jnp.vdot(label, matvec(label)) / (jnp.vdot(label, label) * norm.value)
    return Estimate(value, value * norm.error / norm.value, norm.n)


@full_precision
def ntk_effective_dimension(
    operator: Operator, ridge: float | Float[Array, ""], key: PRNGKeyArray, *, probes: int = 8, steps: int = 32
) -> Estimate:
    """``tr Theta (Theta + ridge)^-1`` with its standard error between probes, by stochastic Lanczos quadrature.

    Args:
        operator: the NTK.
        ridge: > 0, in the unit of the kernel's eigenvalues.
        key: for the probes.
        probes: Lanczos runs, >= 2.
        steps: products in each; the quadrature's own bias falls with them.

    Raises:
        ValueError: when ``ridge`` is a number <= 0, or ``probes`` or ``steps`` out of range.
    """
    check_numbers(many=True, ridge=(ridge, POSITIVE))
    density = spectral_density(operator.matvec, key, operator.size, probes=probes, steps=steps, dtype=operator.dtype)
    positive = jnp.maximum(density.nodes, 0)
    return mean_and_error(density.size * jnp.sum(density.weights * positive / (positive + ridge), -1))


def _dense_is_cheaper(f, params, x, operator: Operator, k: int, memory: int) -> bool:
    """FLOPs of kernel and ``eigh`` against those of the products that Lanczos takes."""
    size = operator.size
    if 4 * size**2 * operator.dtype.itemsize > memory:
        return False
    plan: Plan = ntk_plans(f, f, x, None, params, Request(trace_axes=(), memory=memory))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    n = jax.tree.leaves(x)[0].shape[0]
    products = 6 * k + 40
    return plan.flops + 10.0 * size**3 <= products * 8.0 * n * parameters
