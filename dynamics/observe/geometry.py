"""Which geometry made these weights, and in which norm a layer's gradient is large."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from dynamics.geometry import NORMS, Potential, dual, power, signed_entropy
from dynamics.observe.rank import path_name
from dynamics.program.real_view import wide
from dynamics.types import Array, Observable, Params, factory

FEW = 8
"""Weights of a leaf below which it says nothing of a distribution."""


@factory("dual_gaussianity()")
def dual_gaussianity(potentials: Mapping[str, Potential] | None = None) -> Observable:
    """Which mirror map moved the weights from their start: how a weight's movement depends on its start.

    Small movements are ``dw = dtheta / phi''(w_0)`` with dtheta of one scale, so that the slope of ``ln|dw|`` on
    ``ln|w_0|`` is 0 for gradient descent, ``2 - p`` for ``|w|^p/p``, 1 for exponentiated gradients. In the right
    potential ``dtheta = phi'(w) - phi'(w_0)`` is Gaussian, but of a few hundred weights a wrong one may pass for
    that too: the slope is the stronger test.

    Args:
        potentials: ``{name: phi}`` in which dtheta is looked at; ``|w|^2/2``, ``|w|^3/3`` and the signed entropy
            unless given.

    Returns:
        An observable that compares with its first reading: ``geometry_slope/<leaf>`` of every leaf of 8 or more
        weights that did not start at one value, ``geometry_slope`` of all of them (an intercept a leaf), with
        ``geometry_slope_error`` (as if weights were independent), and for each potential ``dual_ks/<name>``, the
        Kolmogorov-Smirnov distance of dtheta, standardised by leaf, to the normal law. NaN where nothing has moved.
        Weights that start at 0 or stand still are left out of the slope. Cost: a sort of the weights a potential.

    Reference: Pogodin et al. 2023, 'Synaptic weight distributions depend on the geometry of plasticity', for the
    distribution; the slope is of ours.

    Example:
        >>> import jax.numpy as jnp
        >>> from dynamics.types import View
        >>> w0 = jnp.geomspace(0.1, 10.0, 20)
        >>> read = dual_gaussianity()
        >>> _, readings = read.update(read.init(View(w0, None)), View(w0 + 0.01 * w0, None))
        >>> round(float(readings["geometry_slope"]), 3)
        1.0
    """
    known = {"2": power(2), "3": power(3), "entropy": signed_entropy()} if potentials is None else dict(potentials)
    for name, potential in known.items():
        if not isinstance(potential, Potential):
            raise TypeError(f"potentials: got {type(potential).__name__} as {name!r}; allowed: Potentials by name")

    def update(start, view):
        pairs = _leaves(start, view.params)
        readings = {f"geometry_slope/{name}": _slope([pair])[0] for name, pair in pairs.items()}
        slope, error = _slope(list(pairs.values()))
        readings |= {"geometry_slope": slope, "geometry_slope_error": error}
        for name, potential in known.items():
            moved = [_standardised(potential.gradient(w) - potential.gradient(w0)) for w0, w in pairs.values()]
            readings[f"dual_ks/{name}"] = _normal_distance(jnp.concatenate(moved)) if moved else jnp.asarray(jnp.nan)
        return start, readings

    return Observable(lambda view: jax.tree.map(lambda leaf: leaf, view.params), update)


def _leaves(start: Params, params: Params) -> dict[str, tuple[Array, Array]]:
    """``{path: (start, now)}`` of the real leaves that are large enough, flat."""
    found = {}
    for (path, w0), w in zip(jax.tree.leaves_with_path(start), jax.tree.leaves(params), strict=True):
        if jnp.size(w) >= FEW and jnp.issubdtype(jnp.result_type(w), jnp.floating):
            found[path_name(path)] = jnp.ravel(wide(w0)), jnp.ravel(wide(w))
    return found


def _slope(pairs: list[tuple[Array, Array]]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Least squares of ``ln|dw|`` on ``ln|w_0|`` with an intercept a leaf, and its standard error."""
    xx = xy = yy = count = jnp.zeros(())
    for w0, w in pairs:
        used = (w0 != 0) & (w != w0)
        n = jnp.sum(used)
        logs = [jnp.log(jnp.where(used, jnp.abs(value), 1.0)) for value in (w0, w - w0)]
        x, y = (jnp.where(used, one - jnp.sum(one) / jnp.maximum(n, 1), 0.0) for one in logs)
        xx, xy, yy = xx + x @ x, xy + x @ y, yy + y @ y
        count = count + jnp.maximum(n - 1, 0)
    enough = (xx > 1e-6 * count) & (count > 2)
    slope = jnp.where(enough, xy / jnp.where(enough, xx, 1.0), jnp.nan)
    left = jnp.maximum(yy - slope * xy, 0.0) / jnp.maximum(count - 1, 1)
    return slope, jnp.sqrt(left / jnp.where(enough, xx, 1.0))


def _standardised(values: Float[Array, " n"]) -> Float[Array, " n"]:
    spread = jnp.std(values)
    return jnp.where(spread > 0, (values - jnp.mean(values)) / jnp.where(spread > 0, spread, 1.0), jnp.nan)


def _normal_distance(values: Float[Array, " n"]) -> Float[Array, ""]:
    """Of the values that are numbers; NaN where none is."""
    known = jnp.sum(jnp.isfinite(values))
    cumulative = jax.scipy.stats.norm.cdf(jnp.sort(values))  # NaN comes last
    step = jnp.arange(values.shape[0]) / known
    apart = jnp.maximum(cumulative - step, step + 1 / known - cumulative)
    return jnp.where(known > 0, jnp.nanmax(apart, initial=-jnp.inf), jnp.nan)


@factory("dual_norms()")
def dual_norms(*, exact: bool = True) -> Observable:
    """How much each layer's steepest descent can lower the loss, norm by norm.

    For a layer's gradient G, a norm's direction T and the curvature ``kappa = <T, H T>`` of that layer's block, the
    step ``-t T`` lowers the loss by ``t |G|_* - t^2 kappa/2`` to second order: at ``t = |G|_*/|kappa|``, the best step
    where kappa is positive, by ``|G|_*^2/(2 kappa)``, and by ``3 |G|_*^2/(2 |kappa|)`` where it is negative.

    Args:
        exact: see ``geometry.dual``.

    Returns:
        An observable with ``dual_norm/<norm>/<leaf>`` = ``|G|_*``, ``curvature/<norm>/<leaf>`` = kappa and
        ``predicted_decrease/<norm>/<leaf>`` at that step (0 where the gradient is 0, infinite where only kappa is), for
        the norms ``spectral``, ``max`` and ``frobenius``. Complex leaves are left out. Cost: three Hessian-vector
        products and a singular value decomposition a leaf.

    Reference: Bernstein & Newhouse 2024, 'Old optimizer, new norm', proposition 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from dynamics.types import Objective, View
        >>> L = Objective.of(lambda w, batch: jnp.sum(jnp.array([[1.0, 4.0]]) * w**2) / 2)
        >>> _, readings = dual_norms().update((), View(jnp.ones((1, 2)), None, L))
        >>> float(readings["predicted_decrease/max/"])  # of 2.5, in one step
        2.5
    """

    def read(view):
        loss = view.loss("dual_norms")

        def slope(params):
            return jax.grad(loss)(params, view.batch)

        leaves, structure = jax.tree.flatten(view.params)
        gradients, readings = jax.tree.leaves(slope(view.params)), {}
        for place, (path, leaf) in enumerate(jax.tree.leaves_with_path(view.params)):
            if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
                continue

            def block(w, place=place):
                moved = [*leaves[:place], w, *leaves[place + 1 :]]
                return jax.tree.leaves(slope(jax.tree.unflatten(structure, moved)))[place]

            for norm in NORMS:
                found, name = dual(gradients[place], norm, exact=exact), f"{norm}/{path_name(path)}"
                turned = jax.jvp(block, (leaf,), (found.direction,))[1]
                kappa = jnp.sum(wide(found.direction) * wide(turned))
                readings |= {f"dual_norm/{name}": found.norm, f"curvature/{name}": kappa}
                readings[f"predicted_decrease/{name}"] = _decrease(found.norm, kappa)
        return readings

    return Observable.of_view(read)


def _decrease(size: Any, kappa: Any) -> Float[Array, ""]:
    best = size**2 / jnp.abs(kappa) * jnp.where(kappa > 0, 0.5, 1.5)
    return jnp.where(size > 0, best, 0.0)
