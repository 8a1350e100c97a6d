"""Records: readings on named axes, what statistics over an axis give, and their labelled forms. NumPy alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from dynamics.extras import missing

RESERVED = ("step", "time", "cell")
"""Names that no reading and no axis may have: the coordinates of records."""


class Estimate(NamedTuple):
    """A statistic with its standard error (about 2/3 of the truths lie within one of it).

    ``estimate[i]`` picks from value and error; as an array it is its value.

    Attributes:
        value: ``[...]``.
        error: ``[...]``.
        n: how many independent samples it was taken over; 0 where that is not said.
    """

    value: Any
    error: Any
    n: int = 0

    def __getitem__(self, at: Any) -> Estimate:  # pyright: ignore[reportIncompatibleMethodOverride]
        return Estimate(self.value[at], self.error[at], self.n)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.asarray(self.value, dtype)


class Record(NamedTuple):
    """Readings along a run on named axes, the common language of measurement and theory.

    Attributes:
        step: ``[T]`` update counts at which the readings were taken.
        time: ``[T]``, or ``[T, *axes]`` where the axes differ in it: ``dt * step``.
        values: ``{name: [T, *axes, ...]}``; NaN where a step was never reached.
        axes: ``{name: values}`` of the axes that follow ``T`` in every reading, in order.
        lengths: ``{name: [*axes]}`` of readings that were padded with NaN: the true length of the axis that follows
            ``axes``; under ``steps``, the last step of each cell where these differ.

    Example:
        >>> import numpy as np
        >>> axes = {"alpha": [0.1, 1.0, 10.0], "seed": [0, 1]}
        >>> record = Record([0, 5], [0, 5], {"loss": np.arange(12.0).reshape(2, 3, 2)}, axes)
        >>> record.at(alpha=0.1).values["loss"].tolist()
        [[0.0, 1.0], [6.0, 7.0]]
        >>> record.mean("seed").values["loss"][0]
        Estimate(value=array([0.5, 2.5, 4.5]), error=array([0.5, 0.5, 0.5]), n=2)
    """

    step: Any
    time: Any
    values: dict[str, Any]
    axes: Mapping[str, Any] = {}
    lengths: Mapping[str, Any] = {}

    def at(self, **wanted: Any) -> Record:
        """The record at one value of some axes, which are dropped: ``record.at(alpha=.1, seed=3)``.

        A number picks the value nearest to it, which must be within 1e-6 of it (relative): .1 in float32 is not .1.

        Raises:
            KeyError: for an axis that there is not, or a value that it does not have.
        """
        record = self
        for name, value in wanted.items():
            axis = record._axis(name)
            index = _nearest(name, record.axes[name], value)

            def pick(array: Any, axis: int = axis, index: int = index) -> Any:
                return _take(array, index, axis) if np.ndim(array) > axis else array

            values = {key: pick(held) for key, held in record.values.items()}
            lengths = {key: _take(held, index, axis - 1) for key, held in record.lengths.items()}
            axes = {key: held for key, held in record.axes.items() if key != name}
            record = Record(record.step, pick(np.asarray(record.time)), values, axes, lengths)
        return record

    def mean(self, *names: str) -> Record:
        """Means over axes, as ``Estimate`` with the standard error of the mean; NaN where a sample is.

        Raises:
            KeyError: for an axis that there is not.
        """
        return self._statistic(names, np.mean, lambda values: np.std(values, 0, ddof=1) / np.sqrt(len(values)))

    def median(self, *names: str) -> Record:
        """Medians over axes, as ``Estimate`` with the standard error ``sqrt(pi/2)`` that of a normal sample's mean."""
        scale = np.sqrt(np.pi / 2)
        return self._statistic(names, np.median, lambda v: scale * np.std(v, 0, ddof=1) / np.sqrt(len(v)))

    def std(self, *names: str) -> Record:
        """Standard deviations over axes (of a sample: n - 1), with their standard error ``s / sqrt(2 (n - 1))``."""

        def spread(values, axis=0):
            return np.std(values, axis, ddof=1) if len(values) > 1 else np.full(values.shape[1:], np.nan)

        return self._statistic(names, spread, lambda values: spread(values) / np.sqrt(2 * (len(values) - 1)))

    def min(self, *names: str) -> Record:
        """The smallest over axes, an array."""
        return self._statistic(names, np.min, None)

    def max(self, *names: str) -> Record:
        """The largest over axes, an array."""
        return self._statistic(names, np.max, None)

    def to_dataset(self, attrs: Mapping[str, Any] | None = None):
        """The same readings as a labelled ``xarray.Dataset`` (extra ``xarray``).

        Returns:
            A Dataset with the dimensions ``step`` and the axes, coordinate ``time`` and one variable a reading;
            further dimensions are named ``<reading>_1``, ``<reading>_2``, true lengths ``<reading>_length``. An
            ``Estimate`` is three variables, as in ``told``.

        Raises:
            ImportError: when xarray is not installed; the message names the extra.
            ValueError: as ``told``.
        """
        try:
            import xarray
        except ImportError as error:
            raise missing("Record.to_dataset", "xarray", "xarray") from error

        def labelled(name: str, value: Any) -> tuple[tuple[str, ...], np.ndarray]:
            array, known = np.asarray(value), ("step", *self.axes)
            own = (f"{name}_{axis}" for axis in range(1, np.ndim(array) - len(known) + 1))
            return (*known[: np.ndim(array)], *own), array

        coords: dict[str, Any] = {"step": np.asarray(self.step)}
        coords |= {name: np.asarray(values) for name, values in self.axes.items()}
        coords["time"] = labelled("time", self.time)
        coords |= {f"{name}_length": (tuple(self.axes), np.asarray(length)) for name, length in self.lengths.items()}
        variables = {name: labelled(name, value) for name, value in told(self.values).items()}
        return xarray.Dataset(variables, coords=coords, attrs=dict(attrs or {}))

    def to_frame(self):
        """The readings as a tidy ``pandas.DataFrame`` (extra ``xarray``): one row a step and cell.

        Columns are ``step``, ``time``, the axes and the readings; a reading that is an array in each cell is a column
        of arrays (views of the record, which copy nothing). An ``Estimate`` is three columns, as in ``told``.

        Raises:
            ImportError: when pandas is not installed; the message names the extra.
            ValueError: as ``told``.

        Example:
            >>> record = Record([0], [0], {"loss": np.array([[1.0, 2.0, 6.0]])}, {"seed": range(3)})
            >>> record.mean("seed").to_frame().to_dict("records")
            [{'step': 0, 'time': 0, 'loss': 3.0, 'loss_stderr': 1.5275252316519468, 'loss_n': 3}]
        """
        try:
            import pandas
        except ImportError as error:
            raise missing("Record.to_frame", "pandas", "xarray") from error
        step = np.asarray(self.step)
        shape = (len(step), *(len(values) for values in self.axes.values()))

        def column(value: Any, own: int = 0) -> Any:
            """``[T, *axes, ...]``, or what lacks trailing axes, as one entry a row."""
            array = np.asarray(value)
            if array.ndim > len(shape):
                flat = array.reshape(-1, *array.shape[len(shape) :])
                held = np.empty(len(flat), object)
                held[:] = list(flat)
                return held
            array = array.reshape(*array.shape, *(1,) * (len(shape) - array.ndim))
            return np.broadcast_to(array, shape).ravel()

        columns = {"step": column(step), "time": column(self.time)}
        for place, (name, values) in enumerate(self.axes.items(), start=1):
            labels = np.asarray(values).reshape(-1, *(1,) * (len(shape) - 1 - place))
            columns[name] = np.broadcast_to(labels, shape).ravel()
        return pandas.DataFrame(columns | {name: column(value) for name, value in told(self.values).items()})

    def _axis(self, name: str) -> int:
        if name not in self.axes:
            raise KeyError(f"axis: got {name!r}; allowed: {', '.join(self.axes) or 'none (this record has no axes)'}")
        return list(self.axes).index(name) + 1

    def _statistic(self, names: tuple[str, ...], statistic: Callable, error: Callable | None) -> Record:
        """A statistic over the axes ``names`` together."""
        places = [self._axis(name) for name in names]
        if not names:
            raise KeyError(
                f"axis: got none; allowed: one or more of {', '.join(self.axes) or 'none (there are no axes)'}"
            )

        def over(value: Any) -> Any:
            array = np.moveaxis(np.asarray(value), places, range(len(places)))
            array = array.reshape(-1, *array.shape[len(places) :])
            found = statistic(array, axis=0)
            if error is None:
                return found
            with np.errstate(invalid="ignore", divide="ignore"):
                return Estimate(found, error(array) if len(array) > 1 else np.full_like(found, np.nan), len(array))

        values = {name: over(value) for name, value in self.values.items()}
        axes = {name: held for name, held in self.axes.items() if name not in names}
        time = np.asarray(self.time)
        time = time.mean(tuple(places)) if time.ndim > 1 else time
        lengths = {name: np.max(length, axis=tuple(p - 1 for p in places)) for name, length in self.lengths.items()}
        return Record(self.step, time, values, axes, lengths)


def told(values: Mapping[str, Any]) -> dict[str, Any]:
    """Readings as arrays alone: an ``Estimate`` is its value, its error ``<name>_stderr`` and its ``<name>_n``.

    Raises:
        ValueError: where one of these names is another reading's.

    Example:
        >>> told({"loss": Estimate(0.5, 0.1, 9)})
        {'loss': 0.5, 'loss_stderr': 0.1, 'loss_n': 9}
    """
    arrays: dict[str, Any] = {}
    for name, value in values.items():
        parts = {name: value}
        if isinstance(value, Estimate):
            parts = {name: value.value, f"{name}_stderr": value.error, f"{name}_n": value.n}
        if clash := [part for part in parts if part in arrays or (part != name and part in values)]:
            raise ValueError(f"values: got {clash[0]!r} beside the Estimate {name!r}; allowed: another name")
        arrays |= parts
    return arrays


def _nearest(name: str, values: Any, wanted: Any) -> int:
    """The index of ``wanted`` among an axis's values; numbers within 1e-6, relative."""
    held = list(values)
    if wanted in held:
        return held.index(wanted)
    if isinstance(wanted, (int, float, np.number)) and not any(isinstance(value, str) for value in held):
        apart = np.abs(np.asarray(held, float) - float(wanted))  # None becomes NaN
        nearest = int(np.argmin(np.where(np.isnan(apart), np.inf, apart)))
        if apart[nearest] <= 1e-6 * abs(float(wanted)):
            return nearest
    shown = ", ".join(f"{value:g}" if isinstance(value, (int, float, np.number)) else str(value) for value in held[:20])
    raise KeyError(f"{name}: got {wanted!r}; allowed: {shown}{', ...' if len(held) > 20 else ''}")


def _take(array: Any, index: int, axis: int) -> Any:
    if isinstance(array, Estimate):
        return Estimate(np.take(array.value, index, axis), np.take(array.error, index, axis), array.n)
    return np.take(np.asarray(array), index, axis)
