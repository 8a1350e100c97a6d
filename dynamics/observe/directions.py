"""Random directions in parameters, each filter's as long as the filter; which leaves are weights."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from dynamics.arguments import program
from dynamics.observe.rank import path_name
from dynamics.program.real_view import wide
from dynamics.types import Array, Params, PyTree


def random_direction(key: PRNGKeyArray, params: Params, *, scale: str = "filter", output_axis: int = -1) -> PyTree:
    """A Gaussian direction d in the weights, by default with ``|d_f| = |theta_f|`` for each filter f.

    Weights are leaves with two or more axes; a filter is what makes one output: ``w[..., j]``, a column of a dense
    layer, a kernel of a convolution. Biases and norms, and so ``[1, out]`` after a weight of ``out`` in the same layer,
    do not move. A filter's slice is the same after ReLU units of a layer are all scaled by c and the next layer by 1/c;
    where each unit has a c of its own only that by ``weight`` is.

    Args:
        key: a PRNG key.
        params: the point.
        scale: 'filter'; 'weight': each weight's component times its own size; 'none': a standard normal.
        output_axis: of the weights: -1 as in stax, flax and haiku, 0 as in equinox and torch.

    Returns:
        A tree like params (half precision widened), zero where nothing moves.

    Raises:
        ValueError: for another scale, parameters without weights, and biases that say that outputs lie on the other
            axis.

    Reference: Li, Xu, Taylor, Studer & Goldstein 2018, 'Visualizing the loss landscape of neural nets', section 4;
    Kwon, Kim, Park & Choi 2021, 'ASAM', section 3, for 'weight'.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> d = random_direction(jax.random.key(0), {"w": jnp.array([[3.0, 0.0], [4.0, 1.0]]), "b": jnp.ones(2)})
        >>> jnp.round(jnp.linalg.norm(d["w"], axis=0), 3).tolist(), d["b"].tolist()
        ([5.0, 1.0], [0.0, 0.0])
    """
    if scale not in ("filter", "weight", "none"):
        raise ValueError(f"scale: got {scale!r}; allowed: 'filter', 'weight' or 'none'")
    moving = set(weights(params))
    if not moving:
        raise ValueError("params: got no leaf of two or more axes; allowed: one at least, for biases do not move")
    leaves, structure = jax.tree.flatten_with_path(params)

    if output_axis not in (-1, 0):
        raise ValueError(f"output_axis: got {output_axis!r}; allowed: -1 or 0")
    biases = {(layer_of(path), leaf.size) for path, leaf in leaves if path not in moving and jnp.ndim(leaf) == 1}
    for path, leaf in leaves:
        axes = {axis for axis in (-1, 0) if path in moving and (layer_of(path), leaf.shape[axis]) in biases}
        if axes and output_axis not in axes:
            raise ValueError(
                f"output_axis: got {output_axis} for {path_name(path)} {list(leaf.shape)}, whose bias has "
                f"{leaf.shape[axes.pop()]}; allowed: the axis of outputs"
            )
    moves = tuple(path in moving for path, _ in leaves)
    return jax.tree.unflatten(structure, _drawn(key, [leaf for _, leaf in leaves], moves, scale, output_axis))


@partial(program, static=("moves", "scale", "output_axis"))
def _drawn(key: PRNGKeyArray, params: list[Any], moves: tuple[bool, ...], scale: str, output_axis: int) -> list[Array]:
    def size(array: Array) -> Array:
        axes = tuple(range(array.ndim - 1)) if output_axis else tuple(range(1, array.ndim))
        return jnp.sqrt(jnp.sum(jnp.abs(array) ** 2, axes, keepdims=True))

    def draw(key, leaf, moving):
        if not moving:
            return jnp.zeros_like(leaf)
        leaf = wide(jnp.asarray(leaf))
        z = jax.random.normal(key, leaf.shape, leaf.dtype)
        return z if scale == "none" else z * (jnp.abs(leaf) if scale == "weight" else size(leaf) / size(z))

    return [draw(*one) for one in zip(jax.random.split(key, len(params)), params, moves)]


def weights(params: Params) -> list[Any]:
    """Paths of the leaves that are weights: two or more axes, and no bias ``[1, ..., out]`` of one before it."""
    found: list[Any] = []
    outputs = set()
    for path, leaf in jax.tree.leaves_with_path(params):
        if jnp.ndim(leaf) < 2 or not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            continue
        end = (layer_of(path), leaf.shape[-1])
        if leaf.size > leaf.shape[-1] or end not in outputs:
            found.append(path)
            outputs.add(end)
    return found


def layer_of(path: Any) -> Any:
    """The path of the layer that holds a leaf; of flax's variables, too, whose array is their ``value``."""
    return path[:-2] if path_name(path[-1:]) in ("value", "raw_value") else path[:-1]
