"""Two-layer networks: a fixed readout over trained first-layer weights, or both layers trained, without biases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from dynamics.arguments import check_counts
from dynamics.types import Array, ArrayLike, Model


class TwoLayerParams(NamedTuple):
    """Weights of the two layers."""

    first: Float[Array, "width inputs"]
    second: Float[Array, "outputs width"]


def quadratic(eps: Any) -> Callable[[Array], Array]:
    """The activation ``phi(h) = h + (eps/2) h^2`` (Kumar et al. 2023, eq. 3): ``eps`` sets how much is non-linear."""
    return lambda h: h + 0.5 * eps * h * h


def committee(
    width: int, phi: Callable[[Array], Array], *, signs: ArrayLike | None = None, init_scale: ArrayLike = 1.0
) -> Model:
    """A two-layer network whose readout stays fixed: ``f(W, x) = (1/N) sum_i s_i phi(w_i . x)``.

    Args:
        width: N, the number of hidden units.
        phi: activation, elementwise.
        signs: ``[N]`` fixed readout signs or weights ``s_i``; None for ones.
        init_scale: standard deviation of the Gaussian first-layer weights.

    Returns:
        A ``Model`` with ``params`` the matrix W ``[N, D]``; outputs are ``[n, 1]``; ``kernel`` is None.

    Raises:
        ValueError: when ``width < 1``, or ``signs`` is not ``[width]``.

    Example:
        >>> import jax
        >>> model = committee(200, quadratic(0.1))
        >>> shape, weights = model.init(jax.random.key(0), (-1, 60))
        >>> shape, weights.shape, model.apply(weights, jax.numpy.ones((5, 60))).shape
        ((-1, 1), (200, 60), (5, 1))
    """
    check_counts(width=width)
    if signs is not None and jnp.shape(signs) != (width,):
        raise ValueError(f"signs: got shape {jnp.shape(signs)}; allowed: ({width},)")

    def init(key, input_shape):
        return (input_shape[0], 1), init_scale * jax.random.normal(key, (width, input_shape[-1]))

    def apply(weights, x):
        activity = phi(weights @ x.T)  # [N, n]: the gradient by the weights is then a plain matrix product
        f = jnp.mean(activity, axis=0) if signs is None else jnp.asarray(signs, activity.dtype) @ activity / width
        return f[:, None]

    return Model(init, apply)


def two_layer(width: int, outputs: int, phi: Callable[[Array], Array], *, gain: float = 1.0) -> Model:
    """Both layers trained, no biases: ``f = V phi(W x)``, entries uniform on ``+- gain/sqrt(fan_in)``.

    Args:
        width: hidden units.
        outputs: output units.
        phi: activation, elementwise; ``jnp.square`` gives Gromov's network.
        gain: scale of the initial weights of both layers.

    Returns:
        A ``Model`` on ``TwoLayerParams``.

    Raises:
        ValueError: when ``width`` or ``outputs`` is below 1.

    Reference: Gromov 2023, eq. 1 (phi = square).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = two_layer(16, 7, jnp.square)
        >>> shape, params = model.init(jax.random.key(0), (-1, 14))
        >>> shape, params.first.shape, params.second.shape
        ((-1, 7), (16, 14), (7, 16))
    """
    if width < 1 or outputs < 1:
        raise ValueError(f"width, outputs: got {width!r}, {outputs!r}; allowed: integers >= 1")

    def init(key, input_shape):
        first, second = jax.random.split(key)
        inputs = input_shape[-1]
        return (input_shape[0], outputs), TwoLayerParams(
            _uniform(first, (width, inputs), gain / inputs**0.5), _uniform(second, (outputs, width), gain / width**0.5)
        )

    def apply(params: TwoLayerParams, x):
        return phi(x @ params.first.T) @ params.second.T

    return Model(init, apply)


def _uniform(key, shape, bound):
    return jax.random.uniform(key, shape, minval=-bound, maxval=bound)
