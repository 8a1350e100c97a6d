"""Lines and planes through a landscape: along random, Hessian or other directions, between checkpoints; barriers."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Float, Int

from dynamics import linalg, operators
from dynamics.arguments import check_counts
from dynamics.observe.matching import same_tree, weight_matching
from dynamics.program.real_view import flat, real_view
from dynamics.types import Array, Estimate, Objective, Params, PyTree, check_objective


class Slice(NamedTuple):
    """The loss along a line or over a plane through ``params``.

    Attributes:
        coordinates: one ``[m]`` an axis, in units of its direction (0 the start, 1 the other network of ``to``).
        loss: ``[m]`` or ``[m_1, m_2]``.
        error: of the loss, like it: its standard error over the samples; None where L is no mean over them.
        gram: ``[d, d]``, the directions' inner products: the metric of ``coordinates``.
        barrier: of a line from one network to another; None elsewhere.
        permutations: those of ``align``, for each network of ``to``; see ``weight_matching``.
    """

    coordinates: tuple[Float[Array, " _"], ...]
    loss: Float[Array, ...]
    error: Float[Array, ...] | None
    gram: Float[Array, "d d"]
    barrier: Estimate | None = None
    permutations: tuple[dict[str, Int[Array, " _"]], ...] = ()


def slice(
    objective: Objective,
    params: Params,
    batch: Any,
    *directions: PyTree,
    to: PyTree | Sequence[PyTree] | None = None,
    align: bool | Sequence[str] = False,
    radius: float = 1.0,
    points: int = 25,
    coordinates: Sequence[Any] | None = None,
    parallel: int = 8,
) -> Slice:
    """The loss along one or over two directions, ``L(theta + a u)`` or ``L(theta + a u + b v)``, with its errors.

    Between two networks the barrier is ``max_a L((1 - a) theta + a theta') - (1 - a) L(theta) - a L(theta')`` over the
    points within [0, 1] and the ends, so never negative. A standard error is the spread of the samples' losses over
    ``sqrt(n)``; the barrier's is that of each sample's own rise, at the highest point as if it had been chosen before.

    Args:
        objective: L, e.g. at frozen batch statistics (``L.at``).
        params: the point.
        batch: ``x``, ``y``, or whatever L takes.
        directions: trees like params, None for leaves that stay, or vectors ``[P]`` in the operators' order: from
            ``random_direction``, or ``linalg.eigenpairs(H.matvec, start, 2).vectors`` of ``H = operators.hessian(L,
            params, batch)``.
        to: another network's parameters, whose difference from params is a direction; a list of two spans the plane
            through three points. ``to`` and directions are one or two in all, in this order.
        align: True or ``layers`` of ``weight_matching``: first permute the hidden units of ``to`` by it.
        radius: directions are followed from -radius to radius, ``to`` from 0 to 1.
        points: on each axis; odd ones include the middle.
        coordinates: arrays ``[m]``, one an axis, in place of radius and points.
        parallel: points evaluated side by side.

    Returns:
        ``Slice``.

    Raises:
        ValueError: for another number of directions or coordinates, trees unlike params, or a number out of range.
        TypeError: for what is no objective, or one whose model state is not said.

    Cost: a forward pass a point (for an L without f two); memory of ``parallel`` of them. Compiled at each call.

    Reference: Goodfellow, Vinyals & Saxe 2015 for lines; Li, Xu, Taylor, Studer & Goldstein 2018 for planes; Entezari,
    Sedghi, Saukh & Neyshabur 2022 for barriers.

    Example:
        >>> import jax.numpy as jnp
        >>> from dynamics.losses import half_mse
        >>> from dynamics.types import Batch
        >>> L = Objective(lambda w, x: x @ w, half_mse)
        >>> line = slice(L, jnp.zeros((1, 1)), Batch(jnp.eye(1), jnp.zeros((1, 1))), jnp.ones((1, 1)), points=3)
        >>> line.loss.tolist()
        [0.5, 0.0, 0.5]
    """
    check_objective(objective)
    others = _networks(to, params)
    ways = len(others) + len(directions)
    if not 1 <= ways <= 2:
        raise ValueError(f"directions: got {ways}; allowed: one or two, `to` included")
    if align and not others:
        raise ValueError("align: got one without a network to align; allowed: with `to`")
    check_counts(parallel=parallel)
    spans = [(0.0, 1.0)] * len(others) + [(-radius, radius)] * len(directions)
    axes = _axes(spans, points, coordinates)
    permutations = ()
    if align:
        layers = None if align is True else align
        matched = [weight_matching(objective, params, other, batch, layers=layers) for other in others]
        others, permutations = zip(*matched)
    between = ways == len(others) == 1
    losses, n = _losses(objective, params, batch)
    at = np.stack([np.ravel(axis) for axis in np.meshgrid(*axes, indexing="ij")], -1)
    at = np.concatenate([at, [[0.0], [1.0]]]) if between else at
    shape = tuple(axis.size for axis in axes)

    @jax.jit
    def read(params, batch, others, directions, at):
        theta, _, merge = flat(params)
        ends = [_vector("to", other, params, theta) - theta for other in others]
        basis = jnp.stack([*ends, *(_vector("direction", direction, params, theta) for direction in directions)])
        at = at.astype(theta.dtype)

        def one(point):
            whole, each = losses(merge(theta + jnp.einsum("d,dp->p", point, basis, precision="highest")), batch)
            if each is None:
                return whole, jnp.full((), jnp.nan, whole.dtype), jnp.bool_(True)
            sound = operators.is_mean(whole, each) | ~jnp.isfinite(whole)
            return whole, each if between else linalg.mean_and_error(each).error, sound

        pieces = -(-len(at) // parallel)
        padded = jnp.concatenate([at, jnp.repeat(at[-1:], -len(at) % pieces, 0)])  # one program for all pieces
        found = jax.lax.map(jax.vmap(one), padded.reshape(pieces, -1, ways))
        loss, spread, sound = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[: len(at)], found)
        sound, barrier = jnp.all(sound), None
        spread = jnp.where(sound, spread, jnp.nan)
        if between:
            barrier = _barrier(at[:, 0].astype(loss.dtype), loss, spread)
            loss, spread = loss[:-2], linalg.mean_and_error(spread[:-2].T).error if n else spread[:-2]
        gram = jnp.matmul(basis, basis.T, precision="highest")
        return loss.reshape(shape), spread.reshape(shape), gram, barrier, sound

    loss, error, gram, barrier, sound = read(params, batch, others, directions, at)
    if n and not isinstance(sound, Tracer) and not sound:
        n = 0
    barrier = None if barrier is None else Estimate(barrier[0], barrier[1], n)
    coordinates = tuple(jnp.asarray(axis) for axis in axes)
    return Slice(coordinates, loss, error if n else None, gram, barrier, tuple(permutations))


def _networks(to: Any, params: Params) -> list[Any]:
    if to is None:
        return []
    several = isinstance(to, list | tuple) and jax.tree.structure(to) != jax.tree.structure(params)
    return list(to) if several and len(to) == 2 else [to]


def _axes(spans: Sequence[tuple[float, float]], points: int, coordinates: Any) -> list[np.ndarray]:
    if coordinates is None:
        check_counts(2, points=points)
        if not all(low < high < math.inf for low, high in spans):
            raise ValueError(f"radius: got {spans[-1][1]!r}; allowed: a finite number > 0")
        return [np.linspace(low, high, points) for low, high in spans]
    alone = len(spans) == 1 and len(coordinates) and all(jnp.ndim(one) == 0 for one in coordinates)
    axes = [np.asarray(one, float) for one in ([coordinates] if alone else coordinates)]
    if len(axes) != len(spans) or any(axis.ndim != 1 or not axis.size for axis in axes):
        raise ValueError(f"coordinates: got shapes {[a.shape for a in axes]}; allowed: {len(spans)} of shape [m]")
    return axes


def _vector(name: str, tree: PyTree, params: Params, theta: Array) -> Array:
    """A tree like params, None for zeros, or a vector as it is."""
    vector = tree

    def filled(new, old):
        return jax.tree.map(jnp.zeros_like, old) if new is None else new

    if not hasattr(tree, "shape") or tree.shape != theta.shape:
        with contextlib.suppress(ValueError):  # of another structure, as same_tree says
            tree = jax.tree.map(filled, tree, params, is_leaf=lambda leaf: leaf is None)
        same_tree(name, tree, params)
        vector = real_view(tree)[0]
    if vector.shape != theta.shape or jnp.iscomplexobj(vector):
        raise ValueError(f"{name}: got {vector.size} {vector.dtype} numbers; allowed: {theta.size}, real as in params")
    return vector.astype(theta.dtype)


def _losses(objective: Objective, params: Params, batch: Any) -> tuple[Callable[[Params, Any], tuple[Array, Any]], int]:
    """``(params, batch) -> (L, each sample's loss [n], as if alone)`` and n; None and 0 where one sample has none."""
    jax.eval_shape(lambda *at: objective(*at), params, batch)  # what is wrong with L itself is said here

    def samples(params, batch):
        if objective.apply is None:
            return batch
        f = objective.f("slice")(params, batch.x)
        return jax.lax.optimization_barrier(f), batch.y  # one rounding of f for both of its readers

    def loss(params, some):
        return objective.loss(params, some) if objective.apply is None else objective.loss(*some)

    def alone(params, sample):
        return loss(params, jax.tree.map(lambda leaf: leaf[None], sample))

    apart = jax.eval_shape(samples, params, batch)
    lengths = {leaf.shape[:1] for leaf in jax.tree.leaves(apart)}
    separable = len(lengths) == 1 and not lengths <= {(), (0,), (1,)}
    if separable:
        sample = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), apart)
        try:
            separable = jax.eval_shape(alone, params, sample).shape == ()
        except (TypeError, ValueError, IndexError):  # the loss is one of several samples together
            separable = False

    def losses(params, batch):
        all_samples = samples(params, batch)
        whole = loss(params, all_samples)
        penalty = objective.penalised(params, jnp.zeros((), whole.dtype))
        each = jax.vmap(alone, (None, 0))(params, all_samples) + penalty if separable else None
        return whole + penalty, each

    return losses, lengths.pop()[0] if separable else 0


def _barrier(at: Array, loss: Array, each: Array) -> tuple[Array, Array]:
    """``(value, error)`` of losses ``[m + 2]`` at ``at``, the last two the ends; ``each [m + 2, n]`` the samples'."""

    def above(losses):
        t = at.reshape(-1, *(1,) * (losses.ndim - 1))
        return losses - (1 - t) * losses[-2] - t * losses[-1]

    rise = above(loss)
    rise = jnp.where(((at == 0) | (at == 1)) & jnp.isfinite(rise), 0, rise)  # but for rounding it is
    highest = jnp.argmax(jnp.where((at >= 0) & (at <= 1), rise, -jnp.inf))
    return rise[highest], linalg.mean_and_error(above(each)[highest]).error if each.ndim > 1 else each[0]
