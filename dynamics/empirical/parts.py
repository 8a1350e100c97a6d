"""Parts of a kernel: by parameter group, by class; kernels in a preconditioned metric."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, Shaped

from dynamics.empirical.dispatch import Axes, Parts, Request, ntk_parts
from dynamics.empirical.tile_plan import DEFAULT_BUDGET
from dynamics.precision import full_precision
from dynamics.types import Array, Params, PyTree


@full_precision
def empirical_ntk_parts_fn(
    f: Callable[..., PyTree],
    group: Callable[[str], str | None] = lambda path: path,
    trace_axes: Axes = (-1,),
    diagonal_axes: Axes = (),
    *,
    weights: PyTree | None = None,
    memory: int = DEFAULT_BUDGET,
    mixing: str = "refuse",
) -> Callable[..., Any]:
    """The NTK as a sum over groups of parameters, ``Theta = sum_g J_g P_g J_g^T``, all groups from one pass.

    Args:
        f: ``(params, x) -> output``.
        group: path of a leaf, as ``0/kernel``, -> name of its group; None leaves the leaf out (the NTK restricted to a
            subset). Every leaf is its own group unless given.
        trace_axes, diagonal_axes, memory, mixing: see ``empirical_ntk_fn``.
        weights: None, or a pytree like the parameters with the diagonal of ``P``, e.g. the inverse of Adam's
            preconditioner: then ``df/dt = -Theta dL/df`` along the preconditioned flow. For a complex leaf ``p_re + i
            p_im``, or one real p for both parts.

    Returns:
        ``parts_fn(x1, x2, params) -> {group: kernel}`` (a pytree of them when ``f`` has several outputs), each of the
        shape that ``empirical_ntk_fn`` gives.

    Raises:
        ValueError: at the call, when no leaf is chosen or ``weights`` is unlike the parameters.

    Cost: without weights as the whole NTK; with weights each leaf's gradients are formed.

    Example:
        >>> import jax.numpy as jnp
        >>> parts_fn = empirical_ntk_parts_fn(lambda p, x: x @ p["w"] + p["b"])
        >>> parts = parts_fn(jnp.eye(2), None, {"w": jnp.ones((2, 1)), "b": jnp.ones(1)})
        >>> parts["b"].tolist(), parts["w"].tolist()
        ([[1.0, 1.0], [1.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]])
    """

    def parts_fn(x1: PyTree, x2: PyTree | None, params: Params) -> Any:
        request = Request(trace_axes, diagonal_axes, group, weights, memory, mixing)
        parts = ntk_parts(f, f, x1, x2, params, request)
        return jax.tree.map(lambda part: part.kernels, parts, is_leaf=lambda node: isinstance(node, Parts))

    return parts_fn


def class_blocks(
    kernel: Float[Array, "n n"], labels: Shaped[Array, "_ ..."], classes: int
) -> Float[Array, "classes classes"]:
    """Mean of the kernel over pairs of classes: ``B[c, d] = mean_{i in c, j in d} K[i, j]``.

    Args:
        kernel: ``[n, n]``.
        labels: ``[n]`` integers in ``[0, classes)``, or one-hot ``[n, classes]``.
        classes: number of classes.

    Returns:
        ``[classes, classes]``; 0 for a class without samples.

    Raises:
        ValueError: when ``labels`` has another number of samples, or of columns than there are classes.
    """
    allowed = (kernel.shape[0],) if labels.ndim == 1 else (kernel.shape[0], classes)
    if labels.shape != allowed:
        raise ValueError(f"labels: got shape {labels.shape}; allowed: {allowed}")
    member = labels if labels.ndim == 2 else jax.nn.one_hot(labels, classes, dtype=kernel.dtype)
    count = jnp.sum(member, 0)
    average = member / jnp.where(count > 0, count, 1)
    return average.T @ kernel @ average
