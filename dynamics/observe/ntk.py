"""The empirical NTK while training: trace, alignment with labels and with the start, movement, eigenpairs, modes."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dynamics.arguments import OR_INFINITE, check_counts, check_numbers
from dynamics.empirical import empirical_ntk_and_vjp_fn, empirical_ntk_fn, flat_kernel
from dynamics.linalg.subspace import refine
from dynamics.losses import targets_like
from dynamics.program.real_view import wide
from dynamics.statistics import kernel_alignment, kernel_distance, label_alignment
from dynamics.types import Array, Observable, View, factory

_DEPTH = 3  # blocks of the Krylov space in which warm-started eigenvectors are refined


class NtkMemory(NamedTuple):
    """What the NTK observable remembers; ``()`` where a reading that needs it is off.

    Attributes:
        first: the kernel at the start.
        last: the kernel at the previous reading; NaN before the first.
        vectors: its top eigenvectors ``[k, m]``.
        modes: top eigenvectors of the first kernel ``[k, m]``.
    """

    first: Any
    last: Any
    vectors: Any
    modes: Any


class NtkReadings(NamedTuple):
    """What to read off a kernel, ``ntk_trace`` always: the keyword arguments of ``ntk`` and ``ntk_of_state``.

    Attributes:
        gram: read the kernel itself as ``ntk``.
        labels: read ``alignment``, the centred alignment with ``y y^T`` (with ``vec(y) vec(y)^T`` when full).
        start: read ``kernel_distance`` = |Theta_t - Theta_0|_F / |Theta_0|_F and ``start_alignment``, the centred
            alignment with the first kernel.
        spectrum: number k of largest eigenvalues to read as ``ntk_eigenvalues`` ``[k]``, descending, with
            ``ntk_eigenvalue_residuals`` = |Theta v - lambda v|; refined from the last reading's eigenvectors.
        modes: number k of leading eigenvectors u_i of the first kernel in which to read the error f - y:
            ``mode_loss`` ``[k]`` = |u_i^T (f - y)|^2 / n, in lazy training under gradient flow on ``half_mse``
            ``exp(-2 lambda_i t / n)`` times its start; and ``mode_loss_rest``, all other modes. Their sum is ``mse``.
        interval: time between two readings; read ``kernel_velocity``, the relative change per unit time
            |Theta - Theta_last|_F / (|Theta_last|_F interval), NaN at the first reading.
        centre: False takes both alignments without centring.
    """

    gram: bool = False
    labels: bool = True
    start: bool = True
    spectrum: int = 0
    modes: int = 0
    interval: float | None = None
    centre: bool = True


@factory("ntk()", needs_f=True)
def ntk(*, outputs: str = "mean", **readings: Any) -> Observable:
    """Reads the NTK ``Theta = J J^T`` of the batch, computed once for all readings.

    The outputs are all numbers that f gives for a sample, ``[n, c]``, ``[n, T, V]`` or a pytree of such arrays.

    Args:
        outputs: 'mean': ``Theta [n, n]``, the mean over outputs of their kernels (exact for one output); 'full':
            ``[n c, n c]``, sample-major; 'position': for f ``[n, ..., c]`` the 'mean' at every position, each reading
            led by ``...``.
        readings: what to read, by the names and with the defaults of ``NtkReadings``.

    Returns:
        An observable with ``ntk_trace`` (of the matrix read) and the readings asked for.

    Raises:
        ValueError: for arguments out of range.
        TypeError: for a reading that does not exist; at tracing, for an objective without f.

    Cost: one structured kernel a reading, ``O(k m^2)`` for eigenvalues (m = matrix size); an ``eigh`` at the start for
    ``spectrum`` or ``modes``. Memory: up to three kernels. ``ntk_of_state`` shares the passes with training.

    Reference: Jacot, Gabriel & Hongler 2018 (modes: section 5); Fort et al. 2020 (velocity, distance); Cortes, Mohri &
    Rostamizadeh 2012 (alignment).

    Example:
        >>> import jax.numpy as jnp
        >>> from dynamics.losses import half_mse
        >>> from dynamics.types import Batch, Objective
        >>> view = View(jnp.ones((3, 1)), Batch(jnp.eye(3), jnp.ones((3, 1))), Objective(lambda w, x: x @ w, half_mse))
        >>> pair = ntk(labels=False)
        >>> float(pair.update(pair.init(view), view)[1]["kernel_distance"])
        0.0
    """
    if outputs not in ("mean", "full", "position"):
        raise ValueError(f"outputs: got {outputs!r}; allowed: 'mean', 'full' or 'position'")
    wanted = _checked(readings)
    by_position = outputs == "position"

    def at(view: View) -> tuple[Array, Array]:
        f, params, x = view.f("ntk"), view.params, view.batch.x
        shapes = [leaf.shape for leaf in jax.tree.leaves(jax.eval_shape(f, params, x))]
        if any(len(shape) < 2 or shape[0] != shapes[0][0] for shape in shapes):
            raise ValueError(f"f: got shapes {shapes}; allowed: [n, c, ...]; give one output a last axis, f[:, None]")
        if by_position:
            if len(shapes) != 1 or len(shapes[0]) < 3:
                raise ValueError(f"outputs: got 'position' for outputs {shapes}; allowed: for one of [n, ..., c]")
            kernel_fn = empirical_ntk_fn(f, diagonal_axes=tuple(range(1, len(shapes[0]) - 1)))
            return jnp.moveaxis(kernel_fn(x, None, params), (0, 1), (-2, -1)), jax.tree.leaves(f(params, x))[0]
        together = f if len(shapes) == 1 and len(shapes[0]) == 2 else lambda p, x: _rows(f(p, x))
        both = empirical_ntk_and_vjp_fn(together, trace_axes=(-1,) if outputs == "mean" else ())(x, params)
        return (both.kernel if outputs == "mean" else flat_kernel(both.kernel)), _rows(both.outputs)

    def mapped(function, kernel: Array):
        for _ in range(kernel.ndim - 2):
            function = jax.vmap(function)
        return function

    def init(view) -> NtkMemory:
        remembers = wanted.start or wanted.spectrum or wanted.modes or wanted.interval is not None
        if not remembers:
            return NtkMemory((), (), (), ())
        kernel = at(view)[0]
        return mapped(lambda kernel: _remember(wanted, kernel), kernel)(kernel)

    def update(memory: NtkMemory, view):
        kernel, f = at(view)
        if not (wanted.labels or wanted.modes):
            y = f
        elif by_position:
            y = targets_like(f, view.batch.y)
        else:
            y = _targets(view.f("ntk"), view, f)
        f, y = (jnp.moveaxis(leaf, 0, -2) if by_position else leaf for leaf in (f, y))
        return mapped(lambda *args: _read(wanted, *args), kernel)(memory, kernel, f, y)

    return Observable(init, update)


def _rows(outputs: Any) -> Array:
    """All numbers of each sample, ``[n, c]``."""
    leaves = jax.tree.leaves(outputs)
    return jnp.concatenate([jnp.reshape(leaf, (leaf.shape[0], -1)) for leaf in leaves], 1)


def _targets(f: Any, view: View, outputs: Array) -> Array:
    """The batch's targets ``[n, c]``, in the order of the outputs."""
    like = jax.eval_shape(f, view.params, view.batch.x)
    leaves, structure = jax.tree.flatten(like)
    given = jax.tree.flatten(view.batch.y)
    if given[1] != structure:
        raise ValueError(
            f"y: got {given[1]} for outputs {structure}; allowed for the alignment and the modes: targets like the "
            "outputs; ntk(labels=False) reads none"
        )
    return _rows([targets_like(leaf, y) for leaf, y in zip(leaves, given[0], strict=True)])


@factory("ntk_of_state()")
def ntk_of_state(**readings: Any) -> Observable:
    """The readings of ``ntk`` from a state with ``kernel`` and ``outputs``, as ``evolve.kernel_descent``'s has.

    Args:
        readings: what to read, by the names and with the defaults of ``NtkReadings``.

    Returns:
        An observable of the training batch.

    Raises:
        ValueError, TypeError: as ``ntk``.

    Cost: that of the readings; no pass through the network.
    """
    wanted = _checked(readings)

    def kernel_of(state: Any) -> Array:
        if not hasattr(state, "kernel"):
            raise TypeError(f"state: got {type(state).__name__}; allowed for ntk_of_state: kernel_descent's; or ntk()")
        return state.kernel

    def update(memory: NtkMemory, view):
        kernel, outputs = kernel_of(view.state), view.state.outputs
        y = targets_like(outputs, view.batch.y) if wanted.labels or wanted.modes else outputs
        return _read(wanted, memory, kernel, _rows(outputs), _rows(y))

    return Observable(lambda view: _remember(wanted, kernel_of(view.state)), update)


def _remember(wanted: NtkReadings, kernel: Array) -> NtkMemory:
    kernel = wide(kernel)
    for name, count in (("spectrum", wanted.spectrum), ("modes", wanted.modes)):
        if count > kernel.shape[0]:
            raise ValueError(f"{name}: got {count}; allowed: at most the kernel's size, {kernel.shape[0]}")
    vectors = jnp.linalg.eigh(kernel)[1].T[::-1] if wanted.spectrum or wanted.modes else kernel
    return NtkMemory(
        kernel if wanted.start else (),
        () if wanted.interval is None else jnp.full_like(kernel, jnp.nan),
        vectors[: wanted.spectrum] if wanted.spectrum else (),
        vectors[: wanted.modes] if wanted.modes else (),
    )


def _read(
    wanted: NtkReadings, memory: NtkMemory, kernel: Array, outputs: Array, y: Array
) -> tuple[NtkMemory, dict[str, Array]]:
    kernel = wide(kernel)
    readings = {"ntk_trace": jnp.trace(kernel)}
    if wanted.gram:
        readings["ntk"] = kernel
    if wanted.labels:
        targets = jnp.reshape(y, (kernel.shape[0], -1))
        readings["alignment"] = label_alignment(kernel, targets, centre=wanted.centre)
    if wanted.start:
        readings["kernel_distance"] = kernel_distance(kernel, memory.first)
        readings["start_alignment"] = kernel_alignment(kernel, memory.first, centre=wanted.centre)
    if wanted.interval is not None:
        readings["kernel_velocity"] = kernel_distance(kernel, memory.last) / wanted.interval
        memory = memory._replace(last=kernel)
    if wanted.spectrum:
        depth = min(_DEPTH, kernel.shape[0] // wanted.spectrum)
        pairs = refine(lambda v: kernel @ v, memory.vectors, depth)
        readings["ntk_eigenvalues"] = pairs.values
        readings["ntk_eigenvalue_residuals"] = pairs.residuals
        memory = memory._replace(vectors=pairs.vectors)
    if wanted.modes:
        readings |= _mode_losses(memory.modes, outputs - y)
    return memory, readings


def _mode_losses(vectors: Array, error: Array) -> dict[str, Array]:
    n = error.shape[0]
    shares = jnp.sum((vectors @ jnp.reshape(error, (vectors.shape[1], -1))) ** 2, -1) / n
    return {"mode_loss": shares, "mode_loss_rest": jnp.sum(error**2) / n - jnp.sum(shares)}


def _checked(readings: dict[str, Any]) -> NtkReadings:
    wanted = NtkReadings(**readings)
    check_counts(0, spectrum=wanted.spectrum, modes=wanted.modes)
    if wanted.interval is not None:
        check_numbers(interval=(wanted.interval, OR_INFINITE))
    return wanted
