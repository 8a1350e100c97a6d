"""A kernel that is renewed every k steps: between the lazy limit and the network itself."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dynamics.arguments import check_counts
from dynamics.empirical import empirical_ntk_fn
from dynamics.program.real_view import gradient
from dynamics.theory.predict.layout import broadcasting, matrix, outputs
from dynamics.theory.predict.modes import spectrum_of
from dynamics.theory.predict.steps import step_counts, step_gain
from dynamics.types import Array, ArrayLike, Params


@broadcasting
def refreshed_gradient_descent_mse(
    apply_fn: Callable[..., Array],
    params: Params,
    x_train,
    y_train,
    learning_rate: ArrayLike = 1.0,
    refresh: int | None = None,
    flow: bool = False,
    momentum: None = None,
):
    """Training with a kernel that is renewed every ``refresh`` steps and constant in between.

    At step ``j refresh`` the network is linearised where it stands; ``refresh`` steps of gradient descent on
    ``|f - y|^2 / (2 |y|)`` are then taken in closed form, ``f_t = f + K V u_t V^T (y - f) / |y|``, and the parameters
    follow, ``theta <- theta + J^T V u V^T (y - f) / |y|``. ``refresh = 1`` is gradient descent of the network itself
    (with ``flow`` up to ``O(eta^2)`` a step), ``None`` the lazy prediction with the kernel of the start. How fast the
    two part as ``refresh`` grows measures how fast the kernel moves.

    Args:
        apply_fn: ``(params, x) -> f [n, c]``. params: at step 0.
        x_train, y_train: the training set; ``y_train [n, c]``.
        learning_rate: step size ``eta``.
        refresh: steps between two linearisations, at least 1; None for never.
        flow: gradient flow for a time ``refresh`` (in steps) between linearisations instead of discrete steps.
        momentum: None only; a velocity would outlive the linearisation it was gained in.

    Returns:
        ``predict_fn(t, x_test=None)``: outputs on the training set, or ``(train, test)``, at the steps ``t [...]``
        (whole numbers, not traced), the shape of ``t`` leading.

    Raises:
        ValueError: when ``refresh`` is not a positive integer, ``y_train`` does not fit the outputs, or ``momentum``
            is given.

    Cost: for each linearisation up to the last step one kernel ``[(n + n_test) c, n c]``, one ``eigh`` of size ``n c``
    and one backward pass.

    Reference: Lee et al. 2019, eqs. 8-10, restarted; Fort et al. 2020, section 4 (the kernel of a later time).

    >>> import jax.numpy as jnp
    >>> apply_fn = lambda w, x: x @ w**2
    >>> x, w = jnp.array([[1.0]]), jnp.array([[2.0]])
    >>> predict_fn = refreshed_gradient_descent_mse(apply_fn, w, x, jnp.zeros((1, 1)), 0.05, refresh=1)
    >>> round(float(predict_fn(1)[0, 0]), 4)    # w <- w - eta f df/dw = 2 - 0.05 * 4 * 4
    1.44
    """
    if momentum is not None:
        raise ValueError(
            f"momentum: got {momentum}; allowed: None, since a renewed kernel is predicted for plain gradient descent "
            "only (gradient_descent_mse_steps takes momentum with a constant kernel)"
        )
    if refresh is not None:
        check_counts(refresh=refresh)
    x_train, y_train = jnp.asarray(x_train), jnp.asarray(y_train)
    found = jax.eval_shape(apply_fn, params, x_train).shape
    if found != y_train.shape or y_train.ndim != 2:
        raise ValueError(f"y_train: got shape {y_train.shape}; allowed: [n, c], that of the outputs, {found}")
    kernel_fn = empirical_ntk_fn(apply_fn, trace_axes=())
    n, size, eta = len(y_train), y_train.size, jnp.asarray(learning_rate)

    def segment(params, offsets, x):
        """Outputs ``[m, N, c]`` at the offsets within a stretch of constant kernel, and the parameters at its end."""
        f = apply_fn(params, x)
        k = matrix(kernel_fn(x, x_train, params))
        train = k[:size]
        spectrum = spectrum_of(0.5 * (train + train.T), size)
        error = (y_train - f[:n]).reshape(-1, 1).astype(k.dtype)
        gain = spectrum.work(eta * offsets) if flow else eta * step_gain(eta * spectrum.rates, offsets)
        gain = jnp.where(spectrum.rates > 0, gain, 0)
        moves = spectrum.apply(gain.astype(k.dtype), error) / size  # [m, n c, 1]
        path = f + (k @ moves).reshape(len(offsets), *f.shape)
        pull = jax.vjp(lambda p: apply_fn(p, x_train), params)[1]
        shift = gradient(pull(moves[-1].reshape(y_train.shape).astype(f.dtype))[0])
        return jax.tree.map(jnp.add, params, shift), path

    def predict_fn(t, x_test=None):
        counts = np.asarray(step_counts(t))
        flat = counts.reshape(-1)
        place, offsets = _stretches(flat, refresh)
        x = x_train if x_test is None else jnp.concatenate([x_train, jnp.asarray(x_test, x_train.dtype)])
        path = jax.lax.scan(lambda p, o: segment(p, o, x), params, jnp.asarray(offsets))[1]
        path = path[place[:, 0], place[:, 1]].reshape(*counts.shape, *path.shape[2:])
        return outputs(path[..., :n, :], None if x_test is None else path[..., n:, :])

    return predict_fn


def _stretches(t: np.ndarray, refresh: int | None) -> tuple[np.ndarray, np.ndarray]:
    """``place [T, 2]`` of each step among ``offsets [stretches, m]``; the last offset of each is its length."""
    length = max(int(t.max(initial=0)), 1) if refresh is None else refresh
    index = np.zeros_like(t) if refresh is None else t // length
    rows: list[list[int]] = [[] for _ in range(int(index.max(initial=0)) + 1)]
    place = np.zeros((len(t), 2), int)
    for i, (row, step) in enumerate(zip(index.tolist(), t.tolist(), strict=True)):
        place[i] = row, len(rows[row])
        rows[row].append(step - row * length)
    width = max(map(len, rows))
    padded = [[*row, *[0] * (width - len(row)), length] for row in rows]
    return place, np.asarray(padded, np.int32)
