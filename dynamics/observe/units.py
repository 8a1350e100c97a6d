"""Hidden units that have stopped to answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dynamics.arguments import NOT_NEGATIVE, check_numbers
from dynamics.observe.rank import path_name
from dynamics.types import Observable, Params, check_apply, factory


@factory("dead_units(features)")
def dead_units(features: Callable[[Params, Any], Any], *, threshold: float = 0.0) -> Observable:
    """Share of each layer's hidden units that are silent on the whole batch, ``|h| <= threshold`` at every sample.

    A silent ReLU unit has no gradient on these samples: only other inputs, or noise, can bring it back.

    Args:
        features: ``(params, x) -> `` activations, an array ``[n, ..., w]`` or a tree of them, one a layer. A batch
            without ``x`` is handed over whole.
        threshold: at most which a unit is silent, in units of h.

    Returns:
        An observable with ``dead_units``, or ``dead_units/<layer>`` of a tree: numbers in [0, 1], NaN where an
        activation is. Cost: one forward pass.

    Raises:
        ValueError: for a threshold below 0; at tracing, for activations that are not ``[n, ..., w]``, or empty.
        TypeError: for features that are no function.

    Reference: Dohare et al. 2024, 'Loss of plasticity in deep continual learning', Methods.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dynamics.types import Batch, View
        >>> read = dead_units(lambda w, x: {"hidden": jax.nn.relu(x @ w)})
        >>> batch = Batch(jnp.array([[1.0], [2.0]]), None)
        >>> float(read.update((), View(jnp.array([[1.0, -1.0, 0.0, 2.0]]), batch))[1]["dead_units/hidden"])
        0.5
    """
    check_apply(features)
    check_numbers(threshold=(threshold, NOT_NEGATIVE))

    def share(h):
        h = jnp.asarray(h)
        if h.ndim < 2 or 0 in h.shape:
            raise ValueError(f"features: got shape {h.shape} from it; allowed: [n, ..., w], none of them 0")
        silent = jnp.all(jnp.abs(h) <= threshold, axis=tuple(range(h.ndim - 1)))
        return jnp.where(jnp.any(jnp.isnan(h)), jnp.nan, jnp.mean(silent))

    def read(view):
        found = jax.tree.leaves_with_path(features(view.params, getattr(view.batch, "x", view.batch)))
        return {f"dead_units/{path_name(path)}" if path else "dead_units": share(h) for path, h in found}

    return Observable.of_view(read)
