"""Core types: what flows between models, dynamics, observables, theory and reports. No algorithms."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

Array = jax.Array
ArrayLike = jax.typing.ArrayLike
PyTree = Any
Params = Any
Readings = Mapping[str, Array]


class Model(NamedTuple):
    """A network as pure functions; unpacks as ``init_fn, apply_fn, kernel_fn``.

    Attributes:
        init: ``(key, input_shape) -> (output_shape, params)``; ``input_shape`` and ``output_shape`` include the
            sample axis, which may be -1.
        apply: ``(params, x) -> f`` with ``x [n, ...]`` and ``f [n, c]``, pure.
        kernel: ``(x1, x2=None, get=None) -> Kernel`` of the infinite-width limit, or None where there is none.
    """

    init: Callable[..., tuple[tuple[int, ...], Params]]
    apply: Callable[..., Array]
    kernel: Callable[..., Any] | None = None


class StatefulModel(NamedTuple):
    """A network whose layers carry state (batch statistics) or draw random numbers (dropout) while training.

    Attributes:
        init: ``(key, input_shape) -> (output_shape, (params, model_state))``.
        apply: ``(params, model_state, x, key) -> (f, model_state)``, the training-mode forward pass.
        evaluate: ``(params, model_state, x) -> f``, the deterministic forward pass.
    """

    init: Callable[..., tuple[tuple[int, ...], tuple[Params, PyTree]]]
    apply: Callable[..., tuple[Array, PyTree]]
    evaluate: Callable[..., Array]


class Batch(NamedTuple):
    """Inputs ``x [n, ...]`` and targets ``y [n, c]``."""

    x: Any
    y: Any


class Data(NamedTuple):
    """What a run sees: ``train`` moves the parameters, ``test`` (a ``Batch``, or None) is only read."""

    train: Batch
    test: Any = None


class Dynamics(NamedTuple):
    """A way to move parameters (or order parameters).

    Attributes:
        init: ``params -> state``.
        step: ``(key, state, data) -> state``, one update, pure.
        params: ``state -> params``.
        dt: time per step: the learning rate for plain descent, so that ``time = dt * step``.
    """

    init: Callable[[Params], PyTree]
    step: Callable[[Array, PyTree, Any], PyTree]
    params: Callable[[PyTree], Params]
    dt: Any = 1.0


Observable = Callable[[Params, Batch], Readings]
"""``(params, batch) -> {name: array}``: pure, jit- and vmap-able."""


class StatefulObservable(NamedTuple):
    """An observable with memory (a warm start, the kernel at the start).

    Attributes:
        init: ``(params, batch) -> memory``.
        update: ``(memory, params, batch) -> (memory, {name: array})``.
    """

    init: Callable[[Params, Batch], PyTree]
    update: Callable[[PyTree, Params, Batch], tuple[PyTree, Readings]]


class Readout(NamedTuple):
    """What ``simulate`` records, with memory: the state-level twin of ``StatefulObservable``.

    Attributes:
        init: ``(state, data) -> memory``.
        update: ``(memory, state, data) -> (memory, {name: array})``.
    """

    init: Callable[[PyTree, Any], PyTree]
    update: Callable[[PyTree, PyTree, Any], tuple[PyTree, Readings]]


class Record(NamedTuple):
    """Readings along a run, the common language of measurement and theory.

    Attributes:
        step: ``[T]`` update counts at which the readings were taken.
        time: ``[T]`` (or ``[T, lanes]``) ``dt * step``.
        values: ``{name: [T, ...]}``; NaN where a step was never reached.
    """

    step: Any
    time: Any
    values: dict[str, Any]

    def to_dataset(self, attrs: Mapping[str, Any] | None = None):
        """The same readings as a labelled ``xarray.Dataset`` (extra ``xarray``).

        Returns:
            A Dataset with dimension ``step``, coordinate ``time`` and one variable a reading; further axes are named
            ``<reading>_1``, ``<reading>_2``.

        Raises:
            ImportError: when xarray is not installed; the message names the extra.
        """
        try:
            import xarray
        except ImportError as error:
            raise ImportError("Record.to_dataset needs xarray: pip install 'dynamics[xarray]'") from error
        variables: dict[str, Any] = {}
        for name, value in self.values.items():
            array = np.asarray(value)
            variables[name] = (("step", *(f"{name}_{axis}" for axis in range(1, array.ndim))), array)
        time = np.asarray(self.time)
        coords: dict[str, Any] = {"step": np.asarray(self.step)}
        coords["time"] = (("step", *(f"time_{axis}" for axis in range(1, time.ndim))), time)
        return xarray.Dataset(variables, coords=coords, attrs=dict(attrs or {}))


class Claim(NamedTuple):
    """One statement of a paper, with what was measured and whether it holds.

    ``holds`` is None where the settings make the claim meaningless (``note`` says why); such a claim fails nothing.
    A measured value that is not finite never holds.
    """

    name: str
    source: str
    measured: Any
    predicted: Any
    tolerance: Any
    holds: bool | None
    note: str = ""

    @classmethod
    def close(cls, name: str, source: str, measured, predicted, tolerance: float, *, relative=False, note="") -> Claim:
        """Claims ``|measured - predicted| <= tolerance`` (times ``|predicted|`` when ``relative``)."""
        measured, predicted = float(measured), float(predicted)
        scale = abs(predicted) if relative else 1.0
        shown = f"{tolerance:.3g} relative" if relative else tolerance
        return cls(name, source, measured, predicted, shown, bool(abs(measured - predicted) <= tolerance * scale), note)

    @classmethod
    def between(cls, name: str, source: str, measured, low: float, high: float, *, note="") -> Claim:
        """Claims ``low <= measured <= high``."""
        measured = float(measured)
        middle, half = 0.5 * (low + high), 0.5 * (high - low)
        return cls(name, source, measured, middle, half, bool(low <= measured <= high), note)

    @classmethod
    def at_least(cls, name: str, source: str, measured, low: float, *, note="") -> Claim:
        """Claims ``measured >= low``."""
        measured = float(measured)
        return cls(name, source, measured, f">= {low:g}", None, math.isfinite(measured) and measured >= low, note)

    @classmethod
    def at_most(cls, name: str, source: str, measured, high: float, *, note="") -> Claim:
        """Claims ``measured <= high``."""
        measured = float(measured)
        return cls(name, source, measured, f"<= {high:g}", None, math.isfinite(measured) and measured <= high, note)

    @classmethod
    def not_applicable(cls, name: str, source: str, note: str) -> Claim:
        """A claim that these settings cannot test; ``note`` says why."""
        return cls(name, source, None, None, None, None, note)


_MODULES = {
    "from_flax": {"flax.linen.module.Module", "flax.nnx.module.Module"},
    "from_equinox": {"equinox._module._module.Module"},
}


def check_apply(apply: Any) -> None:
    """Raises TypeError, saying what to pass instead, when ``apply`` is a model or a module rather than its function."""
    if isinstance(apply, Model):
        raise TypeError("apply: got a Model; pass its function, model.apply")
    if isinstance(apply, StatefulModel):
        raise TypeError("apply: got a StatefulModel; pass models.frozen(model, state.model_state).apply")
    modules = {f"{base.__module__}.{base.__name__}" for base in type(apply).__mro__}
    for bridge, names in _MODULES.items():
        if modules & names and not type(apply).__module__.startswith("equinox._"):  # equinox wraps functions in modules
            raise TypeError(
                f"apply: got the module {type(apply).__name__}; make it a Model with dynamics.models.{bridge} and pass "
                "model.apply"
            )
    if not callable(apply):
        raise TypeError(f"apply: got {type(apply).__name__}; allowed: a function (params, x) -> f")
