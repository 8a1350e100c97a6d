"""Gaussian-process posteriors: of the NNGP, and of ensembles trained to convergence."""

from __future__ import annotations

import collections
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Shaped

from dynamics.theory.predict.layout import (
    Axes,
    across,
    broadcasting,
    check_reg,
    layout_of,
    matrix,
    regularised,
    unmatrix,
)
from dynamics.theory.predict.modes import solver
from dynamics.types import Array, ArrayLike

NAMES = ("nngp", "ntk")


class Gaussian(NamedTuple):
    """Mean ``[n, c]`` and covariance ``[n, n]`` of predictions."""

    mean: Any
    covariance: Any


class Gaussians(NamedTuple):
    """Predictions of the NNGP (Bayesian) and the NTK (gradient descent)."""

    nngp: Any
    ntk: Any


@broadcasting
def gp_inference(
    k_train_train,
    y_train,
    diag_reg: ArrayLike = 0.0,
    diag_reg_absolute_scale: bool = False,
    trace_axes: Axes = (-1,),
):
    """Posterior mean and covariance: of the NNGP, and of an ensemble trained to convergence (NTK).

    ``nngp``: ``K_td K_dd^-1 y``, ``K_tt - K_td K_dd^-1 K_dt``. ``ntk``: ``Theta_td Theta_dd^-1 y`` with the covariance
    of the initial function carried through training. ``ntkgp``: a Gaussian process whose kernel is the NTK.

    Args:
        k_train_train: kernel or a namedtuple with ``nngp`` and ``ntk``.
        y_train, diag_reg, diag_reg_absolute_scale, trace_axes: as in ``gradient_descent_mse``.

    Returns:
        ``predict_fn(get=None, k_test_train=None, k_test_test=None)``: for each name the mean, or a ``Gaussian`` when
        ``k_test_test`` is given.

    Reference: Lee et al. 2018; Lee et al. 2019, eqs. 13-16.
    """
    check_reg(diag_reg)
    y_train = jnp.asarray(y_train)

    def posterior(name: str, k_test_train, k_test_test):
        which = "ntk" if name == "ntkgp" else name
        k_dd = named(k_train_train, which)
        layout = layout_of(y_train, trace_axes, k_dd)
        k = regularised(matrix(k_dd), diag_reg, diag_reg_absolute_scale)
        solve, singular = solver(k)
        if k_test_train is None:
            reached = layout.restore(k @ solve(layout.flatten(y_train).astype(k.dtype)), k_dd.shape[::2])
            mean = jnp.where(singular, reached, y_train.astype(k.dtype))
            return mean if k_test_test is None else Gaussian(mean, jnp.zeros_like(k_dd))
        k_td, rows = across(named(k_test_train, which), k_dd)
        mean = layout.restore(k_td @ solve(layout.flatten(y_train).astype(k_dd.dtype)), rows)
        if k_test_test is None:
            return mean
        weights = solve(k_td.T).T
        if name == "ntk":
            covariance = carried(weights, *_prior(k_train_train, k_test_train, k_test_test))
        else:
            prior = matrix(named(k_test_test, which))
            covariance = bounded(prior - weights @ k_td.T, jnp.diag(prior))
        return Gaussian(mean, unmatrix(bounded(covariance), rows))

    def predict_fn(get=None, k_test_train=None, k_test_test=None):
        return answer(get, {name: posterior(name, k_test_train, k_test_test) for name in requested(get)})

    return predict_fn


def named(kernel: Any, name: str) -> Shaped[Array, ...]:
    """Attribute ``name`` of a namedtuple or Kernel; a plain array stands for every name."""
    if hasattr(kernel, "shape") and hasattr(kernel, "dtype"):
        return jnp.asarray(kernel)
    value = getattr(kernel, name, None)
    if value is None:
        raise ValueError(
            f"kernel: got {type(kernel).__name__} without {name!r}; allowed: one that holds it, for this prediction"
        )
    return value


def requested(get, allowed=("nngp", "ntk", "ntkgp")) -> tuple[str, ...]:
    """The names that ``get`` asks for."""
    names = NAMES if get is None else (get,) if isinstance(get, str) else tuple(get)
    names = tuple(name.lower() if isinstance(name, str) else name for name in names)
    for name in names:
        if name not in allowed:
            raise ValueError(f"get: got {name!r}; allowed: None, {', '.join(allowed)}")
    return names


def answer(get, found: dict[str, Any]):
    """One prediction for one name, a namedtuple for several."""
    if isinstance(get, str):
        return found[get.lower()]
    names = tuple(found)
    if names == NAMES:
        return Gaussians(**found)
    return collections.namedtuple("Gaussians", names)(**found)


def _prior(k_train_train, k_test_train, k_test_test) -> tuple[Array, ...]:
    """Covariances of the initial function, as matrices."""
    if hasattr(k_train_train, "shape") or hasattr(k_test_train, "shape"):
        raise ValueError("k_train_train, k_test_train: got one kernel; allowed: nngp and ntk, for the NTK's covariance")
    return tuple(matrix(named(k, "nngp")) for k in (k_train_train, k_test_train, k_test_test))


@jax.jit
def bounded(covariance: Float[Array, "*l P P"], prior: Any = None) -> Float[Array, "*l P P"]:
    """``[..., P, P]`` with the rounding taken off its variances: none below 0 or above the ``prior``."""
    variances = jnp.clip(jnp.diagonal(covariance, axis1=-2, axis2=-1), 0, prior)
    return jnp.where(jnp.eye(covariance.shape[-1], dtype=bool), variances[..., None], covariance)


@jax.jit
def carried(
    weights: Float[Array, "*l t d"], k_dd: Float[Array, "d d"], k_td: Float[Array, "t d"], k_tt: Float[Array, "t t"]
) -> Float[Array, "*l t t"]:
    """Covariance of ``f_t - weights f_d`` for an initial function with covariances ``k``."""
    cross = weights @ jnp.swapaxes(k_td, -1, -2)
    return k_tt + weights @ k_dd @ jnp.swapaxes(weights, -1, -2) - cross - jnp.swapaxes(cross, -1, -2)
