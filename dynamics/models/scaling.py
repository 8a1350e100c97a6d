"""The output scale alpha and outputs that start at zero, as wrappers around any model: from lazy to rich."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from dynamics.types import Array, Model, Params


def scaled(model: Model, alpha: Any) -> Model:
    """``alpha * f``: large alpha is lazy when the learning rate scales as ``1/alpha^2`` (Chizat, Oyallon & Bach 2019).

    The result has no ``kernel``: that of the limit is ``alpha^2`` times the model's own.

    Args:
        model: any model.
        alpha: the output scale, a positive scalar; may be traced.
    """
    return Model(model.init, lambda params, x, **kw: alpha * model.apply(params, x, **kw), None)


def centred(apply: Callable[..., Array], start: Params) -> Callable[..., Array]:
    """``f(params, x) - f(start, x)``: the output is zero at ``start``; costs a second forward pass.

    Args:
        apply: ``(params, x) -> f``.
        start: the parameters at initialisation; no gradient flows into them.
    """

    def apply_centred(params, x, **kwargs):
        return apply(params, x, **kwargs) - jax.lax.stop_gradient(apply(start, x, **kwargs))

    return apply_centred


def antisymmetric(model: Model) -> Model:
    """``(f(theta) - f(theta')) / sqrt 2``, ``theta' = theta`` at the start: the output is then 0, the kernel f's own.

    Unlike ``centred`` it has no fixed part, and the kernel's first change in training cancels between the two.

    Args:
        model: any model.

    Returns:
        A ``Model`` on pairs of parameters, of twice the cost, with the same infinite-width kernel.

    Reference: Zhang, Xu, Luo & Ma 2020, 'A type of generalization error induced by initialization in deep neural
    networks' (antisymmetrical initialisation).

    Example:
        >>> import jax.numpy as jnp
        >>> from dynamics.models.two_layer import two_layer
        >>> model = antisymmetric(two_layer(8, 1, jnp.tanh))
        >>> _, params = model.init(jax.random.key(0), (-1, 3))
        >>> model.apply(params, jnp.ones((2, 3))).tolist()
        [[0.0], [0.0]]
    """

    def init(key, input_shape):
        shape, params = model.init(key, input_shape)
        return shape, (params, params)

    def apply(params, x, **kwargs):
        one, two = params
        return (model.apply(one, x, **kwargs) - model.apply(two, x, **kwargs)) / 2**0.5

    return Model(init, apply, model.kernel)
