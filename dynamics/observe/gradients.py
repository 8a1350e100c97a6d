"""Gradients by layer, and where a network bends along a curve of inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Shaped

from dynamics.linalg.lanczos import norm
from dynamics.observe.rank import path_name
from dynamics.types import Array, Observable, factory


@factory("layer_gradients()")
def layer_gradients() -> Observable:
    """Gradient norm of every leaf, and that relative to the leaf: where a deep network's signal dies or explodes.

    Returns:
        An observable with ``gradient_norm/<leaf>`` = |dL/dW| and ``relative_gradient/<leaf>`` = |dL/dW| / |W| (0 for a
        leaf of zeros), where ``<leaf>`` is the leaf's path in the parameters. Cost: one gradient.

    Example:
        >>> import jax.numpy as jnp
        >>> from dynamics.types import Objective, View
        >>> L = Objective.of(lambda p, batch: 3.0 * p["a"] + 4.0 * p["b"])
        >>> _, read = layer_gradients().update((), View({"a": jnp.float32(2.0), "b": jnp.float32(1.0)}, None, L))
        >>> float(read["gradient_norm/b"]), float(read["relative_gradient/a"])
        (4.0, 1.5)
    """

    def read(view):
        slopes = jax.grad(view.loss("layer_gradients"))(view.params, view.batch)
        readings = {}
        for (path, slope), leaf in zip(jax.tree.leaves_with_path(slopes), jax.tree.leaves(view.params), strict=True):
            norm, size = _norm(slope), _norm(leaf)
            readings[f"gradient_norm/{path_name(path)}"] = norm
            relative = norm / jnp.where(size > 0, size, 1)
            readings[f"relative_gradient/{path_name(path)}"] = jnp.where(size > 0, relative, 0)
        return readings

    return Observable.of_view(read)


def _norm(value: Array) -> Array:
    """``|value|``, in single precision or better; squares neither over- nor underflow."""
    sizes = jnp.abs(value)
    return norm(sizes.astype(jnp.promote_types(sizes.dtype, jnp.float32)))


@factory("breakpoints(preactivations, curve)")
def breakpoints(preactivations: Callable[..., Mapping[str, Array]], curve: Shaped[Any, "n ..."]) -> Observable:
    """Sign changes of each layer's preactivations along a curve: the kinks of a ReLU network on it.

    Args:
        preactivations: ``(params, x) -> {name: [n, ...]}``.
        curve: ``[n, ...]`` inputs in order; two crossings between successive points are not seen.

    Returns:
        An observable with ``breakpoints/<name>``, a number: of all units together, NaN where a preactivation is. Cost:
        one forward pass. ``theory.regions.expected_breakpoints`` is its mean at infinite width.

    Raises:
        ValueError: for fewer than two points, or preactivations of another number of points.
        TypeError: where ``preactivations`` gives no dictionary.

    Example:
        >>> import jax.numpy as jnp
        >>> from dynamics.types import View
        >>> count = breakpoints(lambda w, x: {"hidden": x @ w}, jnp.array([[-1.0], [1.0], [2.0]]))
        >>> float(count.update((), View(jnp.array([[1.0, -2.0]]), None))[1]["breakpoints/hidden"])
        2.0
    """

    points = jnp.shape(curve)[0] if jnp.ndim(curve) else 1
    if points < 2:
        raise ValueError(f"curve: got {points} point; allowed: two or more")

    def count(name, h):
        if jnp.shape(h)[:1] != (points,):
            raise ValueError(f"preactivations: got shape {jnp.shape(h)} at {name}; allowed: ({points}, ...)")
        h = jnp.reshape(h, (points, -1))
        positive = h > 0
        changes = jnp.sum(positive[1:] != positive[:-1]).astype(float)
        return jnp.where(jnp.any(jnp.isnan(h)), jnp.nan, changes)

    def read(view):
        found = preactivations(view.params, curve)
        if not isinstance(found, Mapping):
            raise TypeError(f"preactivations: got {type(found).__name__}; allowed: a dictionary of arrays by name")
        return {f"breakpoints/{name}": count(name, h) for name, h in found.items()}

    return Observable.of_view(read)
