"""A model of one width in its first updates: sizes of every layer's weights, activations and their changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from dynamics.models import from_equinox, from_flax
from dynamics.observe.rank import path_name
from dynamics.program.layers import Layer, layers_of
from dynamics.program.layers import root_mean_square as size
from dynamics.program.on_cpus import quick_loops
from dynamics.statistics import weight_norm
from dynamics.types import Array, Batch, Model, StatefulModel

READ = ("activation", "scale", "data", "weight", "update", "change")


class Width(NamedTuple):
    """What is read at one width.

    Attributes:
        names, sources, fans: of the layers, ``fans [layers, 2]``.
        kind: tells that of optimiser when called, 'adaptive' or 'gradient'.
        missed: leaves that are met in a loop or a branch.
        sizes: ``[steps, layers, seeds]`` for each of ``READ``. loss: ``[steps + 1, seeds]``.
        rounding: ``[layers, 2]``, relative, of a layer's output and of its weight.
    """

    names: tuple[str, ...]
    sources: tuple[tuple[int, ...], ...]
    fans: np.ndarray
    kind: Callable[[], str]
    missed: tuple[str, ...]
    sizes: dict[str, np.ndarray]
    loss: np.ndarray
    rounding: np.ndarray


def of_width(make, width: int, data: Batch, steps: int, loss, keys) -> Width:
    """Trains the model of ``make(width)`` from each key; see ``coordinate_check`` for the arguments."""
    made = make(width)
    if not isinstance(made, tuple) or len(made) != 2 or not hasattr(made[1], "update"):
        raise TypeError(f"make: got {type(made).__name__} at width {width}; allowed: (model, optimizer), one of optax")
    model, optimizer = made
    apply, stacked = _started(model, data, keys)
    params = jax.tree.map(lambda leaf: leaf[0], stacked)

    def objective(params):
        return loss(apply(params, data.x), data.y)

    shape = getattr(jax.eval_shape(objective, params), "shape", None)
    if shape != ():
        raise TypeError(f"loss: got {'no array' if shape is None else shape} of a batch; allowed: a scalar")
    layers, missed = _described(apply, params, data.x)
    paths = [path_name(path) for path, _ in jax.tree.leaves_with_path(params)]
    losses, sizes = jax.device_get(_trained(apply, objective, optimizer, steps, data.x)(stacked))
    return Width(
        _names([paths[layer.leaves[0]] for layer in layers]), tuple(layer.sources for layer in layers),
        np.array([[layer.fan_in, layer.fan_out] for layer in layers]),
        lambda: "adaptive" if float(_of_twice(objective, optimizer)(params)) < 1.5 else "gradient",
        tuple(paths[leaf] for leaf in sorted(missed)),
        {name: np.moveaxis(sizes[..., i], 0, -1) for i, name in enumerate(READ)}, losses.T,
        np.array([[float(jnp.finfo(one.dtype).eps) for one in (layer.output, layer.weight)] for layer in layers]),
    )  # fmt: skip


def _described(apply, params, x) -> tuple[Sequence[Layer], set[int]]:
    """The layers with shapes in place of arrays, and the leaves that are not read."""
    described: list[Any] = []
    jax.eval_shape(lambda params: described.extend(layers_of(apply, params, x)[1:]), params)
    layers, missed = described
    if not layers:
        where = " outside of loops and branches" if missed else ""
        raise ValueError(
            f"make: got a model without a weight that meets data{where}; allowed: one product, lookup at least"
        )
    return layers, missed


def _trained(apply, objective, optimizer, steps: int, x) -> Callable[[Any], Any]:
    """``parameters stacked over the keys -> losses [keys, steps + 1], sizes [keys, steps, layers, 6]``."""

    def one(params):
        start = layers_of(apply, params, x)[1]

        def step(carry, _):
            params, state = carry
            value, gradient = jax.value_and_grad(objective)(params)
            change, state = optimizer.update(gradient, state, params)
            params = jax.tree.map(lambda p, u: p + u.astype(p.dtype), params, change)
            sizes = [_sizes(now, then) for now, then in zip(layers_of(apply, params, x)[1], start)]
            return (params, state), (value, jnp.stack(sizes))

        (params, _), (losses, sizes) = jax.lax.scan(step, (params, optimizer.init(params)), None, steps)
        return jnp.append(losses, objective(params)), sizes

    return jax.jit(quick_loops(lambda stacked: jax.lax.map(one, stacked)))


def _of_twice(objective, optimizer) -> Callable[[Any], Array]:
    """How much more a first update is of twice the gradient."""

    def ratio(params):
        gradient, state = jax.grad(objective)(params), optimizer.init(params)
        one, two = (
            optimizer.update(jax.tree.map(lambda g, c=c: c * g, gradient), state, params)[0] for c in (1.0, 2.0)
        )
        return weight_norm(two) / weight_norm(one)

    return jax.jit(ratio)


def _sizes(now: Layer, start: Layer) -> Float[Array, " 6"]:
    """Root mean squares in the order of ``READ``; what is of the start alone is so at every step."""
    data = jnp.ones(()) if start.data is None else size(start.data)
    moved = size(now.weight - start.weight), size(now.output - start.output)
    return jnp.stack([size(start.output), jnp.asarray(start.scale), data, size(start.weight), *moved])


def _names(paths: Sequence[str]) -> tuple[str, ...]:
    """Paths without their last word where that says no more than 'weight'; numbered where a weight is met twice."""
    short = [path.rpartition("/")[0] or path for path in paths]
    names = [one if short.count(one) == paths.count(path) else path for one, path in zip(short, paths)]
    met: Counter[str] = Counter()
    out = []
    for name in names:
        met[name] += 1
        out.append(name if met[name] == 1 else f"{name} ({met[name]})")
    return tuple(out)


def _started(model: Any, data: Batch, keys: Any) -> tuple[Callable[..., Array], Any]:
    """``(apply, parameters stacked over the keys)``."""
    shape, dtype = (-1, *np.shape(data.x)[1:]), jnp.result_type(data.x)
    if isinstance(model, Model):
        return model.apply, jax.vmap(lambda key: model.init(key, shape)[1])(keys)
    if isinstance(model, StatefulModel):
        raise TypeError("make: got a StatefulModel; allowed: a model without batch statistics and dropout")
    if _is_of("flax", model):
        return _started(_plain(from_flax(model, dtype=dtype)), data, keys)
    if not callable(model):
        raise TypeError(
            f"make: got the model {type(model).__name__}; allowed: a Model, a flax module, or key -> module"
        )
    if not _is_of("equinox", model) and _is_of("flax", model(keys[0])):
        each = [_plain(from_flax(model(key), dtype=dtype)) for key in keys]
        params = [one.init(key, shape)[1] for one, key in zip(each, keys)]
        return each[0].apply, jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    return _started(from_equinox(model, dtype=dtype), data, keys)


def _is_of(package: str, module: Any) -> bool:
    return any(base.__module__.startswith(f"{package}.") for base in type(module).__mro__)


def _plain(model: Any) -> Model:
    if isinstance(model, StatefulModel):
        raise TypeError("make: got a module with statistics or dropout; allowed: one without, dropout with rate 0 too")
    return model
