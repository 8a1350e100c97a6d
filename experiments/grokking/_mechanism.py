"""The readings by which the explanations of grokking differ, the same for every network of the family."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from dynamics.observe import joined, ntk
from dynamics.observe.rank import matrices
from dynamics.statistics import effective_rank, label_alignment, weight_norm
from dynamics.types import Array, Objective, Observable, Params, View

READINGS = ("kernel_distance", "alignment", "weight_norm", "effective_rank")


def mechanism(*, points: int = 64) -> Observable:
    """NTK distance from the start and alignment with the labels, weight norm, effective rank of the first weights.

    The kernel is that of one random combination of the outputs on the first ``points`` samples of the batch, its
    alignment that with all their targets; the rank is read from the first weight matrix in the parameters.
    """

    def weights(params, batch):
        first = next(iter(matrices(params).values()))
        values = jnp.linalg.svd(first, compute_uv=False)
        return {"weight_norm": weight_norm(params), "effective_rank": effective_rank(values)}

    pair = joined(ntk(gram=True, labels=False), weights)

    def seen(view: View) -> View:
        apply, loss = view.f("mechanism"), view.loss("mechanism").loss

        def probe(params: Params, x) -> Array:
            f = apply(params, x)
            signs = jax.random.rademacher(jax.random.key(0), (f.shape[-1], 1), f.dtype)
            return f @ signs / f.shape[-1] ** 0.5

        some = jax.tree.map(lambda leaf: leaf[:points], view.batch)
        return view._replace(batch=some, objective=Objective(probe, loss))

    def update(memory, view: View):
        some = seen(view)
        memory, readings = pair.update(memory, some)
        readings = {**readings, "alignment": label_alignment(readings["ntk"], some.batch.y)}
        return memory, {name: readings[name] for name in READINGS}

    return Observable(lambda view: pair.init(seen(view)), update)


def at_step(step, values, at) -> np.ndarray:
    """Curves ``[T, ...]`` at steps ``[...]`` of their own, interpolated; NaN where never."""
    flat = np.asarray(values).reshape(len(step), -1)
    found = [np.interp(one, step, column) if np.isfinite(one) else np.nan for one, column in zip(at.ravel(), flat.T)]
    return np.reshape(found, at.shape)
