"""What a loop that is not ours hands over: plain trees, flax TrainStates, nnx and equinox modules, nnx optimisers."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from dynamics.types import Params, PyTree


class LoopState(NamedTuple):
    """The state that observables see in a loop that is not ours.

    Attributes:
        params: the parameters, as the model's ``apply`` takes them.
        opt_state: optax's, or None.
        model_state: batch statistics and the like, ``()`` for none.
    """

    params: Params
    opt_state: PyTree = None
    model_state: PyTree = ()


def loop_state(params: Any, opt_state: Any = None, model_state: Any = None) -> LoopState:
    """Parameters, optimiser state and model state of what a loop has at hand.

    Args:
        params: a tree of arrays; a flax ``TrainState`` (its further fields that are trees, such as ``batch_stats``,
            are the model's collections); an nnx module; an equinox module.
        opt_state: optax's state, or an ``nnx.Optimizer``.
        model_state: of a ``StatefulModel``; what ``params`` already holds need not be said.

    Raises:
        TypeError: for leaves that are no arrays, or arrays that were donated or are traced.
    """
    nnx, equinox = sys.modules.get("flax.nnx"), sys.modules.get("equinox")
    if nnx is not None and isinstance(params, nnx.Module):
        _, params, rest = nnx.split(params, nnx.Param, ...)
        model_state = rest if model_state is None else model_state
    elif equinox is not None and isinstance(params, equinox.Module):
        params = equinox.filter(params, equinox.is_inexact_array)
    elif hasattr(params, "apply_fn") and hasattr(params, "opt_state"):
        params, opt_state, model_state = _of_train_state(params, opt_state, model_state)
    if nnx is not None and isinstance(opt_state, nnx.Optimizer):
        opt_state = _of_nnx_optimizer(nnx, opt_state.opt_state, params)
    check_arrays("params", params, "a tree of arrays, a flax TrainState, an nnx or an equinox module")
    if not jax.tree.leaves(params):
        raise TypeError("params: got no arrays; allowed: those of the model")
    check_arrays("opt_state", opt_state, "optax's state or an nnx.Optimizer")
    check_arrays("model_state", model_state, "a tree of arrays")
    return LoopState(params, opt_state, () if model_state is None else model_state)


def check_arrays(name: str, tree: PyTree, allowed: str, live: str = "what the update returned") -> None:
    """Raises TypeError unless all leaves are numbers that can be read, in a sentence about ``name``."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        place = f"{name}{jax.tree_util.keystr(path)}"
        if isinstance(leaf, Tracer):
            raise TypeError(f"{name}: got a traced value ({place}); allowed: a call outside jit, grad, vmap and scan")
        if isinstance(leaf, jax.Array) and leaf.is_deleted():
            raise TypeError(f"{name}: got arrays that were donated ({place}); allowed: {live}")
        if not isinstance(leaf, (jax.Array, np.ndarray, np.generic, int, float, complex)):
            raise TypeError(f"{name}: got {type(leaf).__name__} at {place}; allowed: {allowed}")
        if isinstance(leaf, (np.ndarray, np.generic)) and leaf.dtype.kind in "OSUMm":
            raise TypeError(f"{name}: got {leaf.dtype} at {place}; allowed: numbers")


def _of_nnx_optimizer(nnx: Any, opt_state: PyTree, params: Params) -> PyTree:
    """optax's own state: its moments as trees like the parameters, its counters as arrays."""
    structure = jax.tree.structure(params)

    def plain(node: Any) -> Any:
        leaves = jax.tree.leaves(node)
        if isinstance(node, nnx.State) and len(leaves) == structure.num_leaves:
            return jax.tree.unflatten(structure, leaves)
        return node[...] if isinstance(node, nnx.Variable) else node

    return jax.tree.map(plain, opt_state, is_leaf=lambda node: isinstance(node, (nnx.State, nnx.Variable)))


def _of_train_state(state: Any, opt_state: Any, model_state: Any) -> tuple[Any, Any, Any]:
    fields = set(getattr(state, "__dataclass_fields__", ())) - {"step", "apply_fn", "params", "tx", "opt_state"}
    held = {name: getattr(state, name) for name in sorted(fields) if _is_collection(getattr(state, name))}
    collections = model_state if model_state is not None else held or None
    return state.params, state.opt_state if opt_state is None else opt_state, collections


def _is_collection(value: Any) -> bool:
    """A mapping of arrays, as linen's collections are; keys, counters and metrics of a TrainState are none."""
    leaves = jax.tree.leaves(value)
    return hasattr(value, "items") and all(isinstance(leaf, jax.Array) or hasattr(leaf, "dtype") for leaf in leaves)


def signature(tree: PyTree) -> tuple:
    """What a compiled program depends on: structure, shapes, dtypes, and where the arrays lie."""
    leaves, treedef = jax.tree.flatten(tree)
    return treedef, tuple((jnp.shape(x), jnp.result_type(x), getattr(x, "sharding", None)) for x in leaves)
