"""Regression with a fixed kernel: what every prediction on one training set shares."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from dynamics.theory.predict.layout import (
    Axes,
    Layout,
    across,
    check_rate,
    check_reg,
    check_start,
    layout_of,
    matrix,
    outputs,
    regularised,
    shape_on_tests,
    start_of,
)
from dynamics.theory.predict.modes import Once, Spectrum, solver, spectrum_of
from dynamics.types import Array, ArrayLike


class Start(NamedTuple):
    """Outputs before training on the training and the test set (None where not asked for), and what they lack.

    Attributes:
        train, test: initial outputs. residual: ``[P, T]`` ``y - f_0`` on the training set.
        k_test: ``[test, P]`` kernel. positions: the test set's axes.
    """

    train: Any
    test: Any
    residual: Array
    k_test: Any
    positions: tuple[int, ...]


class Problem(NamedTuple):
    """A training set seen through its kernel.

    Attributes:
        k_train_train: as given. k: ``[P, P]`` the same as a regularised matrix.
        y: targets. layout: their axes. rate: learning rate. once: values computed once for all predictions.
    """

    k_train_train: Array
    k: Array
    y: Array
    layout: Layout
    rate: Array
    once: Once

    def start(self, fx_train_0, fx_test_0, k_test_train) -> Start:
        """Checked initial outputs."""
        check_start(fx_train_0, fx_test_0, k_test_train)
        targets, train, test = self.layout.flatten(self.y).astype(self.k.dtype), None, None
        if fx_train_0 is not None:
            train = start_of("fx_train_0", fx_train_0, self.y.shape, self.k.dtype)
        k_test, positions = (None, ()) if k_test_train is None else across(k_test_train, self.k_train_train)
        if fx_test_0 is not None:
            test = start_of("fx_test_0", fx_test_0, shape_on_tests(self.layout, positions), self.k.dtype)
        return Start(train, test, targets if train is None else targets - self.layout.flatten(train), k_test, positions)

    def spectrum(self) -> Spectrum:
        return self.once("spectrum", lambda: spectrum_of(self.k, self.y.size))

    def moved(self, start: Start, learned: Array, work: Array, lead: tuple[int, ...] = ()):
        """Outputs once each eigenmode has learned its share ``[T, P]`` of the residual; ``learned = rates work``."""
        train, test = start.train, start.test
        if train is not None:
            change = self.spectrum().apply(learned, start.residual)
            train = train + self.layout.restore(change, self.k_train_train.shape[::2], lead)
        if test is not None:
            change = start.k_test @ self.spectrum().apply(work, start.residual) / self.y.size
            test = test + self.layout.restore(change, start.positions, lead)
        return outputs(train, test)

    def converged(self, start: Start):
        """Outputs after infinite time; where the kernel is singular they keep what it cannot move."""
        train, test = start.train, start.test
        solve, singular = self.once("solve", lambda: solver(self.k))
        if train is not None:
            change = self.layout.restore(self.k @ solve(start.residual), self.k_train_train.shape[::2])
            train = jnp.where(singular, train + change, self.y.astype(self.k.dtype))
        if test is not None:
            change = start.k_test @ solve(start.residual)
            test = test + self.layout.restore(change, start.positions)
        return outputs(train, test)


def problem_of(
    k_train_train, y_train, learning_rate: ArrayLike, diag_reg: ArrayLike, absolute: bool, trace_axes: Axes
) -> Problem:
    """The problem, with its arguments checked; they are those of ``gradient_descent_mse``."""
    check_reg(diag_reg)
    check_rate(learning_rate)
    k_train_train, y_train = jnp.asarray(k_train_train), jnp.asarray(y_train)
    layout = layout_of(y_train, trace_axes, k_train_train)
    k = regularised(matrix(k_train_train), diag_reg, absolute)
    return Problem(k_train_train, k, y_train, layout, jnp.asarray(learning_rate, k.dtype), Once((k, y_train)))
