"""Optax transformations that keep a network able to learn: shrink and perturb, continual backpropagation."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dynamics.arguments import BELOW_ONE, FINITE, PROBABILITY, check_counts, check_numbers
from dynamics.evolve.checks import check_optimizer
from dynamics.observe.matching import dense_chain
from dynamics.types import Array, Params, PyTree


class ShrinkAndPerturbState(NamedTuple):
    """``count``, steps done, int32, and the key of the next noise."""

    count: Array
    key: Array


def shrink_and_perturb(
    shrink: Any = 0.4, perturb: Any = 0.1, *, interval: int = 1, seed: Any = 0
) -> optax.GradientTransformation:
    """Every ``interval`` steps ``theta <- shrink theta + perturb xi``, ``xi`` standard normal, after the step itself.

    Stands last in an ``optax.chain``. With ``interval`` the steps of a task it warm-starts each task; with 1 it is
    weight decay and noise at every step.

    Args:
        shrink: lambda, 1 for noise alone.
        perturb: sigma, in units of the weights; 0 for none.
        interval: steps between.
        seed: of the noise; lanes of different seeds get different noise.

    Raises:
        ValueError: for ``interval`` below 1, or numbers that are not finite.

    Cost: of every ``interval``-th step a normal number a parameter.

    Reference: Ash & Adams 2020, 'On warm-starting neural network training', equation in section 4.

    Example:
        >>> import jax.numpy as jnp
        >>> half = shrink_and_perturb(0.5, 0.0, interval=2)
        >>> params, state = jnp.ones(1), half.init(jnp.ones(1))
        >>> for _ in range(2):
        ...     update, state = half.update(jnp.zeros(1), state, params)
        ...     params = optax.apply_updates(params, update)
        >>> params.tolist()
        [0.5]
    """
    check_numbers(many=True, shrink=(shrink, FINITE), perturb=(perturb, FINITE))
    check_counts(interval=interval)

    def init(params):
        return ShrinkAndPerturbState(jnp.zeros((), jnp.int32), jax.random.key(seed))

    def update(updates, state, params=None):
        if params is None:
            raise ValueError("params: got None; allowed: the parameters, which shrink")
        count, leaves = state.count + 1, jax.tree.structure(params)

        def moved(key):
            key, own = jax.random.split(key)
            keys = jax.tree.unflatten(leaves, list(jax.random.split(own, leaves.num_leaves)))
            noise = jax.tree.map(lambda k, p: perturb * jax.random.normal(k, jnp.shape(p), p.dtype), keys, params)
            new = jax.tree.map(lambda u, p, xi: shrink * (p + u) + xi - p, updates, params, noise)
            return jax.tree.map(lambda n, u: n.astype(u.dtype), new, updates), key

        due = count % interval == 0
        new, key = moved(state.key) if interval == 1 else jax.lax.cond(due, moved, lambda k: (updates, k), state.key)
        return new, ShrinkAndPerturbState(count, key)

    return optax.GradientTransformation(init, update)


class HiddenState(NamedTuple):
    """What ``continual_backprop`` keeps of a hidden layer of w units.

    Attributes:
        age: int32 ``[w]``, steps since the unit was new.
        weight: ``[w]``, ``1 - decay^age``: what the running means below have seen.
        mean: ``[w]``, running mean of the activation.
        utility: ``[w]``, running mean of the contribution.
        due: units to be replaced; the layer's next one is at 1.
    """

    age: Array
    weight: Array
    mean: Array
    utility: Array
    due: Array


class ContinualBackpropState(NamedTuple):
    """``inner``, the optimiser's state; ``hidden``, a ``HiddenState`` a layer; ``key`` of the next new weights."""

    inner: PyTree
    hidden: tuple[HiddenState, ...]
    key: Array


def continual_backprop(
    optimizer: optax.GradientTransformation,
    features: Callable[[Params, Any], Any],
    *,
    rate: Any = 1e-4,
    decay: Any = 0.99,
    maturity: int = 100,
    initializer: Callable[..., Array] | None = None,
    layers: Sequence[str] | None = None,
    seed: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """``optimizer``, and the least useful hidden units made new, ``rate`` of a layer's units a step.

    Of a unit with activation h, incoming weights w and outgoing weights v the contribution ``|h - hbar| |v| / |w|``
    (means over the batch, outputs and inputs) is averaged over steps, as is h itself: utility and hbar, both with bias
    correction. Among units older than ``maturity`` that of the least utility gets new incoming weights, bias 0 and
    outgoing weights 0; the next layer's bias takes ``v hbar`` over, so that f changes little. What the optimiser keeps
    of the unit (momentum, second moments) starts at 0.

    Args:
        optimizer: any optax transformation.
        features: ``(params, x) -> [h_1, h_2, ...]``, activations ``[n, w]`` of the hidden layers: a tree of them, whose
            leaves are in the layers' order.
        rate: share of a layer's mature units that is replaced in a step; fractions add up over steps.
        decay: of the running means.
        maturity: steps for which a unit is left alone.
        initializer: of weights ``[in, w]``, as in ``jax.nn.initializers``; ``he_uniform()`` unless given.
        layers: the matrices' paths in order, where their names do not tell it; see ``observe.weight_matching``.
        seed: of new weights.

    Returns:
        An optax transformation; its ``update`` needs ``params`` and ``batch=``, which ``descent`` gives it.

    Raises:
        ValueError: for numbers out of range, parameters that are no chain of dense layers, features of other shapes, or
            an update without batch.

    Cost: one forward pass, which the compiler shares with the loss, and of a step that replaces, new weights.

    Reference: Dohare et al. 2024, 'Loss of plasticity in deep continual learning', algorithm 1; utility as in their
    code's 'adaptable contribution', but with w and v from before the step, as h is.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dynamics.evolve import descent, simulate
        >>> from dynamics.losses import mse
        >>> from dynamics.types import Batch, Objective
        >>> features = lambda p, x: [jax.nn.relu(x @ p[0])]
        >>> L = Objective(lambda p, x: features(p, x)[0] @ p[1], mse)
        >>> method = continual_backprop(optax.sgd(0.1), features, rate=0.5, maturity=1)
        >>> x = jnp.array([[1.0], [2.0]])  # f = x is right from the start
        >>> start, batch = [jnp.array([[1.0, -1.0]]), jnp.ones((2, 1))], Batch(x, x)
        >>> state, _ = simulate(descent(L, method), start, batch, steps=3)
        >>> state.params[0][0, 0].item(), state.params[1].tolist()  # the dead unit is new, with v = 0
        (1.0, [[1.0], [0.0]])
    """
    check_optimizer(optimizer)
    check_numbers(many=True, rate=(rate, PROBABILITY), decay=(decay, BELOW_ONE))
    check_counts(maturity=maturity)
    inner = optax.with_extra_args_support(optimizer)
    initialise = jax.nn.initializers.he_uniform() if initializer is None else initializer

    def init(params):
        def fresh(path):
            leaf = leaf_at(params, path)
            zeros = jnp.zeros(leaf.shape[1], jnp.promote_types(leaf.dtype, jnp.float32))  # half loses slow means
            return HiddenState(jnp.zeros(zeros.shape, jnp.int32), zeros, zeros, zeros, zeros[:1].sum())

        hidden = tuple(fresh(layer[0]) for layer in dense_chain(params, layers)[:-1])
        return ContinualBackpropState(inner.init(params), hidden, jax.random.key(seed))

    def update(updates, state, params=None, *, batch: Any = None, **extra):
        if params is None or not hasattr(batch, "x"):
            raise ValueError(f"batch: got {type(batch).__name__}; allowed: params and batch=Batch(x, y), as of descent")
        found = jax.tree.leaves(features(params, batch.x))
        shapes, wanted = [jnp.shape(h) for h in found], [(len(batch.x), *one.age.shape) for one in state.hidden]
        if shapes != wanted:
            raise ValueError(f"features: got shapes {shapes}; allowed: {wanted}, hidden layers in order")
        updates, kept = inner.update(updates, state.inner, params, batch=batch, **extra)
        chain = dense_chain(params, layers)
        sizes = [_sizes(params, *pair) for pair in itertools.pairwise(chain)]
        hidden = tuple(
            _measured(one, h, size, rate, decay, maturity) for one, h, size in zip(state.hidden, found, sizes)
        )

        def replace(updates, kept, hidden, key):
            key, own = jax.random.split(key)
            new = optax.apply_updates(params, updates)
            marked = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, bool), params)
            for i, (one, k) in enumerate(zip(hidden, jax.random.split(own, len(hidden)))):
                chosen = _worst(one, maturity)
                new = _renewed(new, chain[i], chain[i + 1], chosen, one, partial(initialise, k))
                marked = _marked(marked, chain[i], chain[i + 1], chosen)
                hidden = (*hidden[:i], _forgotten(one, chosen), *hidden[i + 1 :])
            updates = jax.tree.map(lambda after, p, u: (after - p).astype(u.dtype), new, params, updates)
            kept = optax.tree_map_params(inner, lambda held, mark: jnp.where(mark, 0, held), kept, marked)
            return updates, kept, hidden, key

        def leave(*given):
            return given

        due = jnp.any(jnp.stack([one.due >= 1 for one in hidden]))
        updates, kept, hidden, key = jax.lax.cond(due, replace, leave, updates, kept, hidden, state.key)
        return updates, ContinualBackpropState(kept, hidden, key)

    return optax.GradientTransformationExtraArgs(init, update)


def leaf_at(tree: PyTree, path: Any) -> Array:
    """The leaf of a tree at a path."""
    return next(leaf for own, leaf in jax.tree.leaves_with_path(tree) if own == path)


def _sizes(params: Params, own: Sequence[Any], after: Sequence[Any]) -> Array:
    """``mean |v| / mean |w|`` of every unit, ``[w]``."""
    w, v = leaf_at(params, own[0]), leaf_at(params, after[0])
    inward = jnp.mean(jnp.abs(w), 0)
    return jnp.mean(jnp.abs(v), 1) / jnp.where(inward > 0, inward, 1)


def _measured(one: HiddenState, h: Array, size: Array, rate, decay, maturity: int) -> HiddenState:
    """Running means after one more batch."""
    weight = decay * one.weight + (1 - decay)
    mean = decay * one.mean + (1 - decay) * jnp.mean(h, 0)
    contribution = jnp.mean(jnp.abs(h - mean / weight), 0) * size
    age = one.age + 1
    due = one.due + rate * jnp.sum(age > maturity).astype(one.due.dtype)
    return HiddenState(age, weight, mean, decay * one.utility + (1 - decay) * contribution, due)


def _worst(one: HiddenState, maturity: int) -> Array:
    """bool ``[w]``: the ``floor(due)`` mature units of the least utility; the first of equals."""
    utility = jnp.where(one.age > maturity, one.utility / one.weight, jnp.inf)
    order = jnp.arange(len(utility))
    below = utility[None] < utility[:, None]
    ties = (utility[None] == utility[:, None]) & (order[None] < order[:, None])
    return (jnp.sum(below | ties, 1) < jnp.floor(one.due)) & jnp.isfinite(utility)


def _forgotten(one: HiddenState, chosen: Array) -> HiddenState:
    age, weight, mean, utility = (jnp.where(chosen, 0, held) for held in one[:4])
    return HiddenState(age, weight, mean, utility, one.due - jnp.floor(one.due))


def _renewed(params, own, after, chosen, one: HiddenState, fresh):
    """The parameters with the chosen units new; what they gave to the next layer on average, its bias gives."""
    shift = jnp.where(chosen, one.mean / jnp.where(one.weight > 0, one.weight, 1), 0) @ leaf_at(params, after[0])

    def change(path, leaf):
        if path in own:
            return jnp.where(chosen, fresh(leaf.shape, leaf.dtype) if path == own[0] else 0, leaf)
        if path in after:
            shifted = leaf + jnp.reshape(shift, leaf.shape) if path != after[0] else jnp.where(chosen[:, None], 0, leaf)
            return shifted.astype(leaf.dtype)
        return leaf

    return jax.tree.map_with_path(change, params)


def _marked(marks, own, after, chosen):
    """Where parameters belong to units that are new."""

    def change(path, mark):
        return mark | chosen if path in own else mark | chosen[:, None] if path == after[0] else mark

    return jax.tree.map_with_path(change, marks)
