"""Loss and accuracy as observables."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dynamics.losses import accuracy as share_right
from dynamics.types import Array, Observable, factory


@factory("loss()")
def loss() -> Observable:
    """Reads ``loss``, the objective itself (its penalty included).

    Example:
        >>> import jax.numpy as jnp
        >>> from dynamics.losses import mse
        >>> from dynamics.types import Batch, Objective, View
        >>> L = Objective(lambda p, x: x @ p, mse)
        >>> view = View(jnp.ones((2, 1)), Batch(jnp.ones((3, 2)), jnp.zeros((3, 1))), L)
        >>> float(loss().update((), view)[1]["loss"])
        4.0
    """
    return Observable.of_view(lambda view: {"loss": view.loss("loss")(view.params, view.batch)})


@factory("accuracy()", needs_f=True)
def accuracy() -> Observable:
    """Reads ``accuracy``, the share of samples that the network gets right (see ``losses.accuracy``)."""
    return _scored("accuracy", {"accuracy": share_right})


@factory("scores(name=function)", needs_f=True)
def scores(**functions: Callable[[Array, Array], Array]) -> Observable:
    """Reads each function of ``(f, y)`` under its name, from one forward pass.

    Args:
        functions: e.g. ``error=half_mse, accuracy=accuracy``.

    Example:
        >>> import jax.numpy as jnp
        >>> from dynamics.losses import mse
        >>> from dynamics.types import Batch, Objective, View
        >>> L, batch = Objective(lambda p, x: x @ p, mse), Batch(jnp.ones((3, 2)), jnp.zeros((3, 1)))
        >>> view = View(jnp.ones((2, 1)), batch, L)
        >>> float(scores(error=mse).update((), view)[1]["error"])
        4.0
    """
    return _scored("scores", functions)


def _scored(reader: str, functions: Mapping[str, Callable[[Array, Array], Array]]) -> Observable:
    def read(view):
        f = view.f(reader)(view.params, view.batch.x)
        return {name: function(f, view.batch.y) for name, function in functions.items()}

    return Observable.of_view(read)
