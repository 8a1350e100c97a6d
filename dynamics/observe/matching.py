"""Permuting one network's hidden units to match another's: weight matching by linear assignments."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from dynamics.observe.directions import layer_of, weights
from dynamics.observe.rank import path_name
from dynamics.types import Array, Objective, Params, PyTree, check_objective


def weight_matching(
    objective: Objective,
    params: Params,
    other: Params,
    batch: Any,
    *,
    layers: Sequence[str] | None = None,
    seed: int = 0,
) -> tuple[Params, dict[str, Int[Array, " w"]]]:
    """``other`` with its hidden units permuted to lie as close to ``params`` as coordinate ascent finds.

    For layers ``h_l = phi(h_(l-1) W_l + b_l)`` it raises ``sum_l <W_l, P_(l-1)^T W'_l P_l> + <b_l, P_l^T b'_l>`` until
    no layer's permutation, an exact linear assignment with the others held, raises it: a local optimum, which for one
    hidden layer is the best.

    Args:
        objective: whose f must stay as it is: that is checked.
        params, other: of the same shapes, chains of dense layers: matrices ``[in, out]`` with biases of size ``out``
            beside them (the same path but for its end).
        batch: on which f (L, where there is no f) is compared.
        layers: the matrices' paths, or their layers', in the order in which they are applied, e.g. ``["in", "out"]``;
            by default in the order of their paths, numbers by size.
        seed: of the order in which layers are visited.

    Returns:
        ``(permuted, {layer: permutation})``: unit i of the permuted hidden layer is unit ``permutation[i]`` of other.

    Raises:
        ValueError: for what is no such chain, weights that are not finite, and permutations that would change f.

    Cost: of a sweep ``2 w^2 (in + out)`` flops and ``O(w^3)`` for the assignment of each hidden layer of width w, on
    the host in float64; a few sweeps, and two forward passes.

    Reference: Ainsworth, Hayase & Srinivasa 2023, 'Git re-basin', algorithm 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dynamics.losses import half_mse
        >>> from dynamics.types import Batch
        >>> L = Objective(lambda p, x: jnp.tanh(x @ p[0]) @ p[1], half_mse)
        >>> p = [jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[3.0], [2.0], [1.0]])]
        >>> turned = [p[0][:, ::-1], p[1][::-1]]
        >>> permuted, found = weight_matching(L, p, turned, Batch(jnp.ones((1, 1)), None))
        >>> found["0"].tolist(), permuted[0].tolist()
        ([2, 1, 0], [[1.0, 2.0, 3.0]])
    """
    from scipy.optimize import linear_sum_assignment

    check_objective(objective)
    same_tree("other", other, params)
    chain = dense_chain(params, layers)
    paths = [path for layer in chain for path in layer]
    one, two = ({path: _plain(leaf) for path, leaf in jax.tree.leaves_with_path(tree)} for tree in (params, other))
    if not all(np.isfinite(tree[path]).all() for tree in (one, two) for path in paths):
        raise ValueError("other: got weights that are not finite; allowed: finite ones, as in params")
    widths = [one[layer[0]].shape[1] for layer in chain[:-1]]
    held = [np.arange(width) for width in widths]

    def gains(i: int) -> np.ndarray:
        """``[w, w]``: what unit j of other is worth at place i of hidden layer ``i``."""
        own, *biases = chain[i]
        after = chain[i + 1][0]
        came = two[own] if i == 0 else two[own][held[i - 1]]
        goes = two[after] if i + 1 == len(held) else two[after][:, held[i + 1]]
        total = one[own].conj().T @ came + one[after].conj() @ goes.T
        return np.real(total + sum(np.outer(one[bias].conj(), two[bias]) for bias in biases))

    order, improved = np.random.default_rng(seed), True
    while improved:
        improved = False
        for i in order.permutation(len(held)).tolist():
            worth = gains(i)
            units, found = linear_sum_assignment(worth, maximize=True)
            gain = worth[units, found].sum() - worth[units, held[i]].sum()
            if gain > 1e-12 * np.abs(worth).sum():
                held[i], improved = found, True

    rows = {layer[0]: places for layer, places in zip(chain[1:], held)}
    columns = {path: places for layer, places in zip(chain, held) for path in layer}

    def permuted(path, leaf):
        leaf = leaf[rows[path]] if path in rows else leaf
        return leaf[..., columns[path]] if path in columns else leaf

    result = jax.tree.map_with_path(permuted, other)
    _check_the_same(objective, other, result, batch)
    return result, {path_name(layer[0]): jnp.asarray(held[i]) for i, layer in enumerate(chain[:-1])}


def same_tree(name: str, tree: PyTree, params: Params) -> None:
    """Raises ValueError unless the tree has the structure and shapes of the parameters."""
    got, wanted = jax.tree.structure(tree), jax.tree.structure(params)
    if got != wanted:
        raise ValueError(f"{name}: got {got}; allowed: a tree like params, {wanted}")
    for (path, leaf), own in zip(jax.tree.leaves_with_path(tree), jax.tree.leaves(params)):
        if jnp.shape(leaf) != jnp.shape(own):
            at = f" at {path_name(path)}" if path else ""
            raise ValueError(f"{name}: got shape {jnp.shape(leaf)}{at}; allowed: that of params, {jnp.shape(own)}")


def dense_chain(params: Params, layers: Sequence[str] | None) -> list[list[Any]]:
    """For each layer of a chain of dense ones the paths of its matrix and its biases, in order.

    Raises:
        ValueError: for parameters that are no such chain.
    """
    matrices = {path_name(path): path for path in weights(params)}
    if layers is None:
        order = sorted(matrices, key=lambda name: [int(s) if s.isdigit() else s for s in re.split(r"(\d+)", name)])
    else:
        order = []
        for given in layers:
            named = [name for name in matrices if name == given or name.startswith(f"{given}/")]
            if len(named) != 1:
                raise ValueError(f"layers: got {given!r}; allowed: one matrix each, of {', '.join(matrices)}")
            order += named
    shape = {path: jnp.shape(leaf) for path, leaf in jax.tree.leaves_with_path(params)}
    shapes = [shape[matrices[name]] for name in order]
    fits = all(len(s) == 2 for s in shapes) and all(a[1] == b[0] for a, b in itertools.pairwise(shapes))
    if len(order) < 2 or not fits or sorted(order) != sorted(matrices):
        got = ", ".join(f"{name} {list(s)}" for name, s in zip(order, shapes))
        raise ValueError(f"layers: got {got or 'none'}; allowed: all matrices, two at least, [in, out] after [.., in]")
    chain = [[matrices[name]] for name in order]
    for path, leaf in jax.tree.leaves_with_path(params):
        if path in matrices.values() or not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            continue
        owners = [layer for layer in chain if layer_of(layer[0]) == layer_of(path)]
        if len(owners) != 1 or not leaf.size == jnp.shape(leaf)[-1] == shape[owners[0][0]][1]:
            raise ValueError(
                f"params: got {path_name(path)} {list(jnp.shape(leaf))}; allowed: dense layers, matrices [in, out] "
                "with biases [out] that share its path but for the end"
            )
        owners[0].append(path)
    return chain


def _plain(leaf: Any) -> np.ndarray:
    array = np.asarray(leaf)
    return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)


def _check_the_same(objective: Objective, other: Params, permuted: Params, batch: Any) -> None:
    """Raises ValueError when the permutation changes what the network computes: the layers were not in order."""

    @jax.jit
    def outputs(params, batch):
        return objective(params, batch) if objective.apply is None else objective.f("weight_matching")(params, batch.x)

    with jax.default_matmul_precision("highest"):
        pairs = zip(*(jax.tree.leaves(outputs(p, batch)) for p in (other, permuted)))
    for before, after in pairs:
        before, after = np.asarray(before), np.asarray(after)
        bound = float(jnp.finfo(before.dtype).eps) ** 0.5 * np.max(np.abs(before), initial=0)
        if not np.max(np.abs(after - before), initial=0) <= bound:
            raise ValueError(
                "layers: got an order in which a permutation of hidden units changes f; allowed: the order in which "
                "they are applied, one after the other"
            )
