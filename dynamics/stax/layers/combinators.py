"""Layers out of layers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax

from dynamics.arguments import check_counts
from dynamics.stax.kernel.masks import any_masked
from dynamics.stax.layers.checks import check_layers
from dynamics.stax.layers.in_turn import again, in_turn, named
from dynamics.stax.layers.layer import Needs, composed, kernel_layer
from dynamics.stax.layers.layer import layer as make_layer
from dynamics.types import Model


def serial(*layers: Any) -> Model:
    """Layers one after the other; each a Model or an ``(init_fn, apply_fn, kernel_fn)`` triple.

    >>> import jax
    >>> from dynamics import stax
    >>> init_fn, apply_fn, kernel_fn = stax.serial(stax.Dense(512), stax.Relu(), stax.Dense(1))
    >>> x = jax.random.normal(jax.random.key(0), (4, 3))
    >>> kernel_fn(x, None, 'ntk').shape
    (4, 4)
    """
    check_layers("serial", layers)
    kernels = None if any(each[2] is None for each in layers) else [kernel_layer(each) for each in layers]

    def init(rng, input_shape):
        params = []
        for each in layers:
            rng, layer_rng = jax.random.split(rng)
            input_shape, layer_params = each[0](layer_rng, input_shape)
            params.append(layer_params)
        return input_shape, params

    def apply(params, inputs, rng=None, **kwargs):
        rngs = [None] * len(layers) if rng is None else jax.random.split(rng, len(layers))
        for each, layer_params, layer_rng in zip(layers, params, rngs, strict=True):
            inputs = each[1](layer_params, inputs, rng=layer_rng, **kwargs)
        return inputs

    if kernels is None:
        return Model(init, apply, None)

    names = named(kernels)

    def propagate(kernel, **kwargs):
        return in_turn([each.propagate for each in kernels], names, kernel, **kwargs)

    return composed(init, apply, propagate, _serial_needs([each.needs for each in kernels]))


def _serial_needs(needs: Sequence[Needs]) -> Needs:
    def spatial(full: bool) -> bool:
        for each in reversed(needs):
            full = each.spatial(full)
        return full

    def first(name):
        return next((value for each in needs if (value := getattr(each, name)) is not None), None)

    branches = next((each.branches for each in needs if each.branches), ())
    pairs, tokens = all(n.pairs for n in needs), any(n.tokens for n in needs)
    return Needs(first("batch_axis"), first("channel_axis"), spatial, pairs, tokens, branches)


def parallel(*layers: Any) -> Model:
    """Layers side by side, each on its own input of a list; use after ``FanOut`` and before a ``FanIn`` layer."""
    check_layers("parallel", layers)

    def init(rng, input_shape):
        _same_count(layers, input_shape)
        rngs = jax.random.split(rng, len(layers))
        found = [each[0](r, shape) for each, r, shape in zip(layers, rngs, input_shape, strict=True)]
        shapes, params = zip(*found, strict=True)
        return type(input_shape)(shapes), type(input_shape)(params)

    def apply(params, inputs, rng=None, **kwargs):
        _same_count(layers, inputs)
        rngs = [None] * len(layers) if rng is None else jax.random.split(rng, len(layers))
        outputs = [each[1](p, x, rng=r, **kwargs) for each, p, x, r in zip(layers, params, inputs, rngs, strict=True)]
        return type(inputs)(outputs)

    if any(each[2] is None for each in layers):
        return Model(init, apply, None)
    kernels = [kernel_layer(each) for each in layers]

    def propagate(ks, **kwargs):
        _same_count(layers, ks)
        return type(ks)(each.propagate(k, **kwargs) for each, k in zip(kernels, ks, strict=True))

    return composed(init, apply, propagate, _parallel_needs([each.needs for each in kernels]))


def _same_count(layers, branches) -> None:
    if not isinstance(branches, list | tuple) or len(branches) != len(layers):
        count = len(branches) if isinstance(branches, list | tuple) else "single"
        raise ValueError(f"parallel: got {count} inputs for {len(layers)} layers; allowed: a list of as many")


def _parallel_needs(needs: Sequence[Needs]) -> Needs:
    def spatial(full: bool) -> bool:
        return any(each.spatial(full) for each in needs)

    def common(name):
        found = {value for each in needs if (value := getattr(each, name)) is not None}
        return next(iter(found)) if len(found) == 1 else max(found, default=None)

    pairs, tokens = all(n.pairs for n in needs), any(n.tokens for n in needs)
    return Needs(common("batch_axis"), common("channel_axis"), spatial, pairs, tokens, tuple(needs))


def repeat(layer: Sequence, n: int) -> Model:
    """``n`` copies of one layer as a scan: the program's size does not grow with ``n``.

    The layer must keep the shape of its input. Parameters are stacked along a leading axis of size ``n``.

    Args:
        layer: a Model or a triple. n: number of copies, at least 0.
    """
    check_counts(0, n=n)
    init_fn, apply_fn, kernel_fn = layer

    def init(rng, input_shape):
        shape, _ = init_fn(rng, input_shape)
        if tuple(shape) != tuple(input_shape):
            raise ValueError(
                f"repeat: got a layer to shape {shape}; allowed: one that keeps its input's, {input_shape}"
            )

        def one(rng, _):
            rng, layer_rng = jax.random.split(rng)
            return rng, init_fn(layer_rng, input_shape)[1]

        return input_shape, jax.lax.scan(one, rng, None, n)[1]

    def apply(params, inputs, rng=None, **kwargs):
        def one(x, layer_params):
            p, r = layer_params
            return apply_fn(p, x, rng=r, **kwargs), None

        each, left = (params, None if rng is None else jax.random.split(rng, n)), n
        if n and (kwargs.get("mask_constant") is not None or any_masked(inputs)):
            # The first copy may collapse the mask's channels; after it shapes are fixed.
            inputs, left = one(inputs, jax.tree.map(lambda x: x[0], each))[0], n - 1
            each = jax.tree.map(lambda x: x[1:], each)
        return jax.lax.scan(one, inputs, each, left)[0]

    if kernel_fn is None:
        return Model(init, apply, None)
    kernel = kernel_layer(layer)

    def propagate(k, **kwargs):
        if n == 0:
            return k
        # The first copy may change the kernel's flags (a raw input becomes Gaussian); after it they are fixed.
        block = partial(kernel.propagate, **kwargs)
        return again(block, block(k), n - 1)

    return composed(init, apply, propagate, kernel.needs)


def Identity() -> Model:
    """``f(x) = x``."""
    init, apply = lambda rng, shape: (shape, ()), lambda params, x, **kwargs: x
    return make_layer(init, apply, lambda k, **kwargs: k, clears=False)
