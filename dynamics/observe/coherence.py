"""Do the samples' gradients point the same way? The coherence of per-sample gradients."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from dynamics import operators
from dynamics.arguments import check_counts
from dynamics.empirical import DEFAULT_BUDGET, empirical_ntk_fn
from dynamics.program.real_view import flat, wide
from dynamics.types import Array, Objective, Observable, View, factory


@factory("coherence()")
def coherence(*, memory: int = DEFAULT_BUDGET) -> Observable:
    """The coherence ``A = n |gbar|^2 / mean_i |g_i|^2`` of n samples' gradients, ``gbar`` their mean.

    From 0 (they cancel) over 1 (on average, where they are orthogonal) to n (they are equal): how many samples profit
    from a step along one's gradient. For one output and a squared loss, with residuals ``r`` and the NTK ``K``,

        A = r^T K r / sum_i r_i^2 K_ii.

    A sample's gradient is its share of the whole's, ``g_i = n J_i^T dL/df_i``: for a mean over samples that of its own
    loss. The penalty, no sample's own, is left out.

    Args:
        memory: budget for temporaries in bytes; samples are taken in tiles that fit it.

    Returns:
        An observable with ``coherence``, NaN where no sample has a gradient. The scale of the loss does not matter.

    Raises:
        ValueError: at tracing, for no samples, and an f that mixes its samples; for ``Objective.of`` where L is no
            mean over samples (NaN where values are traced).

    Cost: one gradient, and the diagonal of a structured kernel with one output (about two more); without f, one
    gradient of each sample's loss.

    Reference: Chatterjee & Zielinski 2022, 'On the generalization mystery in deep learning', section 4.

    Example:
        >>> import jax.numpy as jnp
        >>> from dynamics.losses import mse
        >>> from dynamics.types import Batch
        >>> L = Objective(lambda w, x: x @ w, mse)
        >>> for x in (jnp.eye(2), jnp.ones((2, 2))):
        ...     view = View(jnp.zeros((2, 1)), Batch(x, jnp.ones((2, 1))), L)
        ...     print(float(coherence().update((), view)[1]["coherence"]))
        1.0
        2.0
    """
    check_counts(memory=memory)

    def read(view: View):
        objective = view.loss("coherence")
        for leaf in jax.tree.leaves(getattr(view.batch, "x", view.batch))[:1]:
            if jnp.shape(leaf)[:1] == (0,):
                raise ValueError(f"batch: got samples of shape {jnp.shape(leaf)}; allowed: at least one sample")
        squares = _of_losses if objective.apply is None else _of_shares
        whole, each = squares(objective, view, memory)
        return {"coherence": whole * jnp.size(each) / jnp.mean(each)}

    return Observable.of_view(read)


def _of_shares(objective: Objective, view: View, memory: int) -> tuple[Array, Array]:
    """``|gbar|^2`` and ``|g_i|^2 [n]`` of an L with f, both up to one factor."""
    f, params, x, y = view.f("coherence"), view.params, view.batch.x, view.batch.y
    theta, _, merge = flat(params)
    outputs, pull = jax.vjp(lambda v: f(merge(v), x), theta)
    shapes, n = [jnp.shape(leaf) for leaf in jax.tree.leaves(outputs)], jax.tree.leaves(x)[0].shape[0]
    if any(shape[:1] != (n,) for shape in shapes):
        raise ValueError(f"f: got shapes {shapes}; allowed for coherence: [n, ...], led by the {n} samples")
    slope = jax.grad(lambda outputs: objective.loss(outputs, y))(outputs)
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(slope)]))
    # scaled to 1, so that the squares of a fitted network's gradients do not underflow
    slope = jax.tree.map(lambda leaf: (leaf / jnp.where(largest > 0, largest, 1)).astype(leaf.dtype), slope)

    def along(params, sample):
        """``sum_c s_ic f_c(x_i)``, whose gradient is ``g_i`` up to the factor."""
        x, s = sample
        parts = jax.tree.map(lambda s, f: jnp.sum(jnp.reshape(jnp.real(s * f), (f.shape[0], -1)), 1), s, f(params, x))
        return sum(jax.tree.leaves(parts))

    each = empirical_ntk_fn(along, trace_axes=(), diagonal_axes=(0,), memory=memory)((x, slope), None, params)
    return _square(pull(slope)[0]) / n**2, wide(each)


def _of_losses(objective: Objective, view: View, memory: int) -> tuple[Array, Array]:
    """The same of an L without f, a mean over samples."""
    batch, (theta, _, merge) = view.batch, flat(view.params)

    def alone(sample: Any) -> tuple[Array, Array, Array]:
        single = jax.tree.map(lambda leaf: leaf[None], sample)
        value, slope = jax.value_and_grad(lambda v: objective.loss(merge(v), single))(theta)
        largest = jnp.max(jnp.abs(slope))
        return value, largest, _square(slope / jnp.where(largest > 0, largest, 1))

    losses, sizes, each = jax.lax.map(alone, batch, batch_size=max(1, memory // (4 * theta.nbytes)))
    whole, slope = jax.value_and_grad(lambda v: objective.loss(merge(v), batch))(theta)
    size = jnp.where(jnp.max(sizes) > 0, jnp.max(sizes), 1)  # squares of a small loss's gradients would underflow
    return operators.checked_mean(whole, losses) * _square(slope / size), each * (sizes / size) ** 2


def _square(v: Float[Array, " P"]) -> Float[Array, ""]:
    return jnp.vdot(v, v)
