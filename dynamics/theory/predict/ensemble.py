"""An infinite ensemble of infinitely wide networks, at any time of its training."""

from __future__ import annotations

import collections
from typing import Any, NamedTuple

import jax.numpy as jnp

from dynamics.theory.predict.layout import Axes, broadcasting, check_rate, check_reg, matrix, unmatrix
from dynamics.theory.predict.modes import Once, Spectrum
from dynamics.theory.predict.posterior import NAMES, Gaussian, answer, bounded, carried, gp_inference, requested
from dynamics.theory.predict.problem import Problem, problem_of
from dynamics.types import Array, ArrayLike


@broadcasting
def gradient_descent_mse_ensemble(
    kernel_fn,
    x_train,
    y_train,
    learning_rate: ArrayLike = 1.0,
    diag_reg: ArrayLike = 0.0,
    diag_reg_absolute_scale: bool = False,
    trace_axes: Axes = (-1,),
    **kernel_fn_train_train_kwargs,
):
    """Mean and covariance of an infinite ensemble of infinitely wide networks trained for a time ``t``.

    Args:
        kernel_fn: ``(x1, x2, get) -> kernels``.
        x_train, y_train: the training set. learning_rate, diag_reg, diag_reg_absolute_scale, trace_axes: as in
            ``gradient_descent_mse``.
        kernel_fn_train_train_kwargs: passed on to ``kernel_fn``, a 2-tuple as one value for each side.

    Returns:
        ``predict_fn(t=None, x_test=None, get=None, compute_cov=False, **kwargs)``: for 'nngp' and 'ntk' the mean, or a
        ``Gaussian`` when ``compute_cov``; ``kwargs`` are those of ``kernel_fn`` on test points. Kernels and
        eigendecompositions of the training set are computed once.

    Reference: Lee et al. 2019, eqs. 8-16.
    """
    check_reg(diag_reg)
    check_rate(learning_rate)
    y_train = jnp.asarray(y_train)
    once = Once((x_train, y_train, learning_rate, diag_reg, kernel_fn_train_train_kwargs))

    def train_kernel(name: str) -> Array:
        return once(name, lambda: kernel_fn(x_train, None, name, **kernel_fn_train_train_kwargs))

    def problem(name: str) -> Problem:
        k = train_kernel(name)
        options = learning_rate, diag_reg, diag_reg_absolute_scale, trace_axes
        return once(f"{name} problem", lambda: problem_of(k, y_train, *options))

    def kernels_for(names: tuple[str, ...], x_test, compute_cov: bool, options: dict[str, Any]) -> _Kernels:
        needed = tuple(n for n in NAMES if n in names or (n == "nngp" and compute_cov))
        k_dd = {name: train_kernel(name) for name in needed}
        if x_test is None:
            return _Kernels(k_dd, None, k_dd["nngp"] if compute_cov else None)
        across = {name: _across(kernel_fn_train_train_kwargs.get(name), value) for name, value in options.items()}
        found = kernel_fn(x_test, x_train, needed, **across)
        k_td = {name: getattr(found, name) for name in needed}
        return _Kernels(k_dd, k_td, kernel_fn(x_test, None, "nngp", **options) if compute_cov else None)

    def predict_fn(t=None, x_test=None, get=None, compute_cov: bool = False, **kwargs):
        names = requested(get, NAMES)
        kernels = kernels_for(names, x_test, compute_cov, {**kernel_fn_train_train_kwargs, **kwargs})
        if t is None:
            infer = gp_inference(_bundle(kernels.dd), y_train, diag_reg, diag_reg_absolute_scale, trace_axes)
            return infer(
                get=get, k_test_train=None if kernels.td is None else _bundle(kernels.td), k_test_test=kernels.tt
            )
        return answer(get, {name: _at_time(name, t, kernels, problem(name)) for name in names})

    return predict_fn


def _across(train: Any, test: Any) -> Any:
    """The keyword argument of test against training points: of pairs the first of each."""
    pairs = all(isinstance(value, tuple) and len(value) == 2 for value in (train, test))
    return (test[0], train[0]) if pairs else test


class _Kernels(NamedTuple):
    """By name: train-train and test-train (None on the training set); the test points' NNGP (None for the mean)."""

    dd: dict[str, Array]
    td: Any
    tt: Any


def _bundle(kernels: dict[str, Array]):
    return collections.namedtuple("Kernels", kernels)(**kernels)


def _at_time(name: str, t: ArrayLike, kernels: _Kernels, problem: Problem):
    t, modes = problem.rate * jnp.asarray(t, problem.k.dtype), problem.spectrum()
    times, lead = t.reshape(-1), t.shape
    start = problem.start(0.0, None, None) if kernels.td is None else problem.start(None, 0.0, kernels.td[name])
    mean = problem.moved(start, modes.moved(times), modes.work(times), lead)
    if kernels.tt is None:
        return mean
    on = _train_covariance if kernels.td is None else _test_covariance
    rows = (kernels.dd if kernels.td is None else kernels.td)[name].shape[::2]
    prior = jnp.diag(matrix(kernels.tt)) if name == "nngp" else None
    covariance = bounded(on(name, times, kernels, modes, problem.y.size), prior)
    return Gaussian(mean, unmatrix(covariance, rows, lead))


def _train_covariance(name: str, times: Array, kernels: _Kernels, modes: Spectrum, size: int) -> Array:
    if name == "nngp":
        return modes.operator(modes.rates * size * modes.decay(2 * times))
    left = modes.operator(modes.decay(times))
    return left @ matrix(kernels.dd["nngp"]) @ left


def _test_covariance(name: str, times: Array, kernels: _Kernels, modes: Spectrum, size: int) -> Array:
    across = matrix(kernels.td[name])
    if name == "nngp":
        return matrix(kernels.tt) - across @ modes.operator(modes.work(2 * times) / size) @ across.T
    weights = across @ modes.operator(modes.work(times) / size)
    return carried(weights, matrix(kernels.dd["nngp"]), matrix(kernels.td["nngp"]), matrix(kernels.tt))
