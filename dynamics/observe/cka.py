"""Representations while they move: debiased CKA of every layer with itself at the start, or with another network's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from dynamics import statistics
from dynamics.observe.rank import path_name
from dynamics.types import Observable, Params, check_apply, factory


@factory("cka()", needs_f=True)
def cka(
    features: Callable[[Params, Any], Any] | None = None, *, other: Callable[[Any], Any] | None = None
) -> Observable:
    """Reads how alike each layer's representation is to its own at the first reading, by debiased CKA.

    Both are computed on the batch of the reading, so that this may change.

    Args:
        features: ``(params, x) -> `` representations, an array ``[n, ...]`` or a tree of them, one a layer; the
            network's f unless given. A batch without ``x`` is handed over whole.
        other: ``x -> `` representations, the same tree of them, to compare with in place of the start's: another
            network's, e.g. ``lambda x: features(other_params, x)``, or the labels.

    Returns:
        An observable with ``cka`` and ``cka_error``, or ``cka/<layer>`` and ``cka/<layer>_error`` of a tree; see
        ``statistics.cka``, which compares any two layers.

    Raises:
        TypeError: for features that are no function; at tracing, for other trees of ``other``.
        ValueError: at tracing, for fewer than five samples.

    Cost: two forward passes and ``4 n^2 p`` flops a layer of p features; memory of the start's parameters.

    Reference: Kornblith, Norouzi, Lee & Hinton 2019; Murphy, Zylberberg & Fyshe 2024 on the bias that is taken off.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dynamics.types import Batch, View
        >>> read = cka(lambda w, x: {"hidden": jnp.tanh(x @ w)})
        >>> x = jax.random.normal(jax.random.key(0), (20, 3))
        >>> view = View(jnp.eye(3), Batch(x, None))
        >>> sorted(read.update(read.init(view), view)[1])
        ['cka/hidden', 'cka/hidden_error']
    """
    if features is not None:
        check_apply(features)
    if other is not None and not callable(other):
        raise TypeError(f"other: got {type(other).__name__}; allowed: a function x -> representations")

    def init(view):
        return () if other is not None else jax.tree.map(lambda leaf: leaf, view.params)

    def update(start, view):
        represent = view.f("cka") if features is None else features
        x = getattr(view.batch, "x", view.batch)
        now = represent(view.params, x)
        then = represent(start, x) if other is None else other(x)
        if jax.tree.structure(now) != jax.tree.structure(then):
            raise TypeError(f"other: got {jax.tree.structure(then)}; allowed: as features, {jax.tree.structure(now)}")
        readings = {}
        for (path, layer), before in zip(jax.tree.leaves_with_path(now), jax.tree.leaves(then)):
            name = f"cka/{path_name(path)}" if path else "cka"
            found = statistics.cka(layer, before)
            readings |= {name: found.value, f"{name}_error": found.error}
        return start, readings

    return Observable(init, update)
