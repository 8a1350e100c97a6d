"""Any flax module as a Model: linen or nnx, with its mutable collections and dropout keys carried as state."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from dynamics.types import Model, StatefulModel


def from_flax(module: Any, *, dtype: Any = None, **call: Any) -> Model | StatefulModel:
    """Turns a flax module into pure functions.

    A module with parameters alone gives a ``Model``. One with other collections (batch statistics) or random layers
    (dropout) gives a ``StatefulModel``, whose training pass updates the collections and takes a key; ``frozen`` makes
    it a ``Model`` at given statistics.

    Args:
        module: a ``flax.linen.Module`` instance, or an ``flax.nnx.Module`` instance (whose current parameters are the
            start that ``init`` returns: build it with the seed you want).
        dtype: dtype of the dummy input that ``init`` traces with; the default float unless given (int32 for token ids).
        call: keyword arguments of the module's call that never change, e.g. ``use_bias=True``. ``train`` and
            ``deterministic`` are set here when the call has them: training mode for ``apply`` of a ``StatefulModel``,
            evaluation mode elsewhere.

    Returns:
        ``Model`` or ``StatefulModel``; ``kernel`` is None.

    Raises:
        TypeError: when ``module`` is neither a linen nor an nnx module instance, or, when it is first called, has
            statistics or dropout and no argument that tells training from evaluation.

    Example:
        >>> import flax.linen as nn, jax
        >>> model = from_flax(nn.Dense(3))
        >>> shape, params = model.init(jax.random.key(0), (-1, 4))
        >>> shape
        (-1, 3)
    """
    import flax.linen as linen
    from flax import nnx

    if isinstance(module, linen.Module):
        return _from_linen(module, dtype, call)
    if isinstance(module, nnx.Module):
        return _from_nnx(module, dtype, call)
    raise TypeError(f"module: got {type(module).__name__}; allowed: a flax.linen.Module or flax.nnx.Module")


def frozen(model: StatefulModel, model_state: Any) -> Model:
    """The evaluation-mode ``Model`` of a ``StatefulModel`` at fixed collections: what kernels and curvature read."""
    return Model(
        lambda key, shape: _drop_state(model.init(key, shape)),
        lambda params, x: model.evaluate(params, model_state, x),
    )


def _drop_state(initial):
    shape, (params, _) = initial
    return shape, params


def _from_linen(module, dtype, call):
    from flax.errors import InvalidRngError

    def modes(training: bool) -> dict[str, Any]:
        return {**_mode_flags(type(module).__call__, training), **call}

    def checked(variables, x, **how):
        try:
            return module.apply(variables, x, **how)
        except InvalidRngError as error:
            raise TypeError(
                f"module: got {type(module).__name__}, which draws random numbers (dropout) at every call; allowed: a "
                "call with `train` or `deterministic`, which turns them off"
            ) from error

    @partial(jax.jit, static_argnames="input_shape")
    def made(key, input_shape):
        streams = dict(zip(("params", "dropout"), jax.random.split(key)))
        return module.init(streams, _dummy(input_shape, dtype), **modes(False))

    def variables_of(key, input_shape):
        return made(key, tuple(input_shape))

    def split(variables):
        variables = dict(variables)
        return variables.pop("params", {}), variables

    def init(key, input_shape):
        variables = variables_of(key, input_shape)
        f = jax.eval_shape(lambda v, x: checked(v, x, **modes(False)), variables, _dummy(input_shape, dtype))
        return _output_shape(input_shape, f), split(variables)

    def apply(params, model_state, x, key):
        variables = {"params": params, **model_state}
        return module.apply(variables, x, rngs={"dropout": key}, mutable=list(model_state), **modes(True))

    def evaluate(params, model_state, x):
        return checked({"params": params, **model_state}, x, **modes(False))

    stateful = StatefulModel(init, apply, evaluate)

    if _mode_flags(type(module).__call__, True):
        return stateful

    def pure_init(key, input_shape):
        names = sorted(split(jax.eval_shape(lambda k: variables_of(k, input_shape), key))[1])
        if names:
            raise TypeError(
                f"module: got {type(module).__name__} with collections {names}; allowed: a call with `train` or "
                "`deterministic`, which tells training and evaluation apart"
            )
        return _drop_state(init(key, input_shape))

    return Model(pure_init, lambda params, x: evaluate(params, {}, x))


def _from_nnx(module, dtype, call):
    from flax import nnx

    graph, start, rest = nnx.split(module, nnx.Param, ...)
    random = bool(jax.tree.leaves(nnx.state(module, nnx.RngState)))

    def run(params, model_state, x, training):
        bound = nnx.merge(graph, params, model_state, copy=True)
        bound.train() if training else bound.eval()
        f = bound(x, **{**_mode_flags(type(module).__call__, training), **call})
        return f, nnx.split(bound, nnx.Param, ...)[2]

    def init(key, input_shape):
        f, _ = jax.eval_shape(lambda p, s, x: run(p, s, x, False), start, rest, _dummy(input_shape, dtype))
        return _output_shape(input_shape, f), (start, rest)

    def apply(params, model_state, x, key):
        return run(params, _reseeded(model_state, key), x, True)

    stateful = StatefulModel(init, apply, lambda params, model_state, x: run(params, model_state, x, False)[0])
    if random or jax.tree.leaves(rest):
        return stateful
    return Model(lambda key, shape: _drop_state(init(key, shape)), lambda params, x: run(params, rest, x, False)[0])


def _reseeded(model_state, key):
    """nnx carries its random streams in the state; start each anew from this step's key."""
    leaves, treedef = jax.tree.flatten(model_state)
    fresh = [
        jax.random.fold_in(key, i) if jnp.issubdtype(jnp.asarray(leaf).dtype, jax.dtypes.prng_key) else leaf
        for i, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(treedef, fresh)


def _mode_flags(function, training: bool) -> dict[str, bool]:
    names = inspect.signature(function).parameters
    flags = {"train": training, "training": training, "deterministic": not training}
    return {name: value for name, value in flags.items() if name in names}


def _dummy(input_shape, dtype):
    return jnp.zeros(tuple(1 if size == -1 else size for size in input_shape), dtype or jnp.result_type(float))


def _output_shape(input_shape, f) -> tuple[int, ...]:
    return (input_shape[0], *f.shape[1:])
