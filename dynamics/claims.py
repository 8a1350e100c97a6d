"""Claims: what a paper states, what was measured with its error, and the rival explanations that are rejected.

A claim holds when theory lies within its tolerance and k standard errors of the measurement and every rival (a wrong
theory on the same record, or a control run) lies outside by the same rule, so that a wide error helps no claim; without
a rival the error does not count, and the tolerance alone is allowed. A claim about times that a run was too short for
is neither: it is not reached (``Claim.within``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dynamics.record import Estimate, Record

SIGMAS = 3.0
"""k, the standard errors that a claim of one number allows."""
FAMILY = 1e-4
"""Family-wise error rate of a claim over many cells."""


class Claim(NamedTuple):
    """One statement of a paper, with what was measured and whether it holds.

    Attributes:
        name, source: of the statement; a source that starts with 'identity' marks exact algebra, no evidence.
        measured: the number; ``error`` its standard error over ``n`` independent draws (None, of one draw, where that
            is not known).
        predicted, tolerance: the theory's, or a bound and None.
        holds: None where the settings make the claim meaningless (``note`` says why), and where it is ``unreached``;
            such a claim fails nothing. What is not finite never holds.
        note: what a reader must know.
        error, n: see ``measured``.
        rivals: ``{name: value}`` of the wrong theories and controls.
        distances: ``{name: standard errors between it and the measurement}``; None where no error is known.
        standing: names of the rivals that are not rejected.
        worst: the value of the draw that speaks most against the claim.
        unreached: the last step of a run in which a first passage that the claim needs had not come; else None.
        agrees: whether measured and predicted agree, the rivals aside; None where nothing was compared.
    """

    name: str
    source: str
    measured: Any
    predicted: Any
    tolerance: Any
    holds: bool | None
    note: str = ""
    error: float | None = None
    n: int = 1
    rivals: Mapping[str, float] = {}
    distances: Mapping[str, float | None] = {}
    standing: Sequence[str] = ()
    worst: float | None = None
    unreached: int | None = None
    agrees: bool | None = None

    @property
    def most(self) -> float:
        """The bound of a claim ``at_most``; inf of others."""
        return float(self.predicted[2:]) if isinstance(self.predicted, str) and self.predicted[:2] == "<=" else math.inf

    @property
    def identity(self) -> bool:
        """Whether the claim is algebra that no measurement could contradict."""
        return self.source.startswith("identity")

    @classmethod
    def close(
        cls, name, source, measured, predicted, tolerance: float, *, relative=False, rivals=None, k=SIGMAS, note=""
    ) -> Claim:
        """Claims ``|measured - predicted| <= tolerance + k s.e.``, the tolerance times ``|predicted|`` if ``relative``.

        Without a rival, which a wide error would let in, the standard error is not allowed for.

        Args:
            name, source, note: strings.
            measured: a number, an ``Estimate``, or values ``[n]`` of independent draws, whose mean is claimed.
            predicted, tolerance: numbers.
            relative: whether the tolerance is a share.
            rivals: ``{name: number, Estimate or values [n]}``; values of the same draws are compared draw by draw.
            k: standard errors.
        """
        predicted, allowed = float(predicted), tolerance * (abs(float(predicted)) if relative else 1.0)
        shown = f"{tolerance:.3g} relative" if relative else tolerance

        def near(value: float, error: float, other: float) -> bool:
            return abs(value - other) <= allowed + k * error

        def against(draws):
            return draws[np.argmax(np.abs(draws - predicted))]

        value, error, _ = _value_error(measured)
        right = near(value, error if rivals else 0.0, predicted)
        return cls._judged(name, source, measured, predicted, shown, right, rivals, near, against, note)

    @classmethod
    def between(cls, name, source, measured, low: float, high: float, *, rivals=None, k=SIGMAS, note="") -> Claim:
        """Claims ``low <= measured <= high``, up to k standard errors; as ``close`` to their middle."""
        middle, half = 0.5 * (low + high), 0.5 * (high - low)
        return cls.close(name, source, measured, middle, half, rivals=rivals, k=k, note=note)

    @classmethod
    def at_least(cls, name, source, measured, low: float, *, rivals=None, k=SIGMAS, note="") -> Claim:
        """Claims ``measured >= low``; a rival lies at ``low`` or below, k standard errors of the difference away."""
        return cls._one_sided(name, source, measured, low, 1, rivals, k, note)

    @classmethod
    def at_most(cls, name, source, measured, high: float, *, rivals=None, k=SIGMAS, note="") -> Claim:
        """Claims ``measured <= high``; a rival lies at ``high`` or above, k standard errors of the difference away."""
        return cls._one_sided(name, source, measured, high, -1, rivals, k, note)

    @classmethod
    def cells(cls, name, source, z, *, rivals=None, p: float = FAMILY, note="") -> Claim:
        """Claims that no cell deviates: ``max |z| <= z_p``, which chance exceeds in a share p of all repetitions.

        Args:
            name, source, note: strings.
            z: deviations from the theory in standard errors, any shape; ``measured`` is the largest modulus.
            rivals: ``{name: deviations from the rival}``.
            p: family-wise error rate.
        """
        from scipy.special import ndtri

        bound = -float(ndtri(p / (2 * np.size(z))))
        largest = {key: np.max(np.abs(value)) for key, value in (rivals or {}).items()}
        note = f"max |z| of {np.size(z)} cells{'; ' if note else ''}{note}"
        return cls.at_most(name, source, float(np.max(np.abs(z))), bound, rivals=largest, note=note)

    @classmethod
    def not_applicable(cls, name: str, source: str, note: str) -> Claim:
        """A claim that these settings cannot test; ``note`` says why."""
        return cls(name, source, None, None, None, None, note)

    def within(self, record: Record, *times: Any, due: Any = (), least: Any = None, at_end: bool = False) -> Claim:
        """The claim; where it fails for want of a first passage within the run, the same as not reached.

        It stays refuted where anything else speaks against it: a number that was measured, unless it is one of the end
        of the run; a rival that stands although theory and measurement agree; a lane of the run that diverged; a theory
        by which most of these passages were due within the run; a claim ``at_most`` that the time passed by then
        already exceeds.

        Args:
            record: of the run, whose last step it ends with.
            times: arrays of first-passage times that the claim needs, as ``statistics.first_step`` finds them: inf
                where the level was not reached.
            due: the same times by theory, inf for never; or the step by which all are, ``Config.due``.
            least: what ``measured`` is at least, values ``[n]`` with the last step in the place of what was not
                reached; NaN where that bounds nothing.
            at_end: whether ``measured`` is a number all the same, which the end of the run has cut short.

        Raises:
            ValueError: unless there are ``times``, none negative, and as many ``due`` (or a number, or none).

        Example:
            >>> import numpy as np
            >>> run = Record([0, 500], [0, 500], {"loss": np.array([[1.0, 1.0], [0.01, 0.2]])}, {"seed": [0, 1]})
            >>> times = np.array([500.0, np.inf])
            >>> claim = Claim.at_least("delay", "figure 1", times / 10, 2.0)
            >>> claim.holds, claim.within(run, times).holds, claim.within(run, times).unreached
            (False, None, 500)
        """
        short = _too_short(record, times, due)
        number = isinstance(self.measured, (int, float)) and math.isfinite(self.measured)
        if self.holds is not False or self.agrees or not short or (number and not at_end):
            return self
        if least is not None and float(np.mean(np.asarray(least, float))) > self.most:
            return self
        return self._replace(holds=None, unreached=int(np.max(record.step)))

    def controls_within(
        self, record: Record, times: Mapping[str, Sequence[Any]], due: Mapping[str, Any] | float | None = None
    ) -> Claim:
        """The claim; where theory and measurement agree and rivals stand for want of a first passage, not reached.

        Args:
            record: of the run of these rivals, controls that must have got so far to be told from the measurement.
            times: ``{rival: first-passage times}``, as in ``within``; a rival that is not named, or was reached, and
                stands, refutes the claim.
            due: the same times by theory, or a step by which all are due.

        Raises:
            ValueError: as ``within``.
        """
        by = due if isinstance(due, Mapping) else dict.fromkeys(times, () if due is None else due)
        short = {name for name, held in times.items() if _too_short(record, held, by.get(name, ()))}
        if self.holds is not False or not self.agrees or not short.issuperset(self.standing):
            return self
        return self._replace(holds=None, unreached=int(np.max(record.step)))

    @classmethod
    def not_reached(cls, name: str, source: str, last: int, note: str) -> Claim:
        """A claim that a run whose last step is ``last`` was too short for; ``note`` says of what."""
        return cls(name, source, None, None, None, None, note, unreached=int(last))

    @classmethod
    def _one_sided(cls, name, source, measured, bound, side: int, rivals, k: float, note) -> Claim:
        def near(value: float, error: float, other: float) -> bool:
            return side * (other - bound) > 0 or side * (value - other) <= k * error

        value = _value_error(measured)[0]
        right = math.isfinite(value) and side * (value - bound) >= 0
        shown = f"{'>=' if side > 0 else '<='} {bound:g}"

        def against(draws):
            return side * np.min(side * draws)

        return cls._judged(name, source, measured, shown, None, right, rivals, near, against, note)

    @classmethod
    def _judged(cls, name, source, measured, predicted, tolerance, right, rivals, near, against, note) -> Claim:
        value, error, n = _value_error(measured)
        values, distances, standing = {}, {}, []
        for rival, given in (rivals or {}).items():
            values[rival], _, _ = _value_error(given)
            apart = _error_of_difference(measured, given)
            gap = abs(value - values[rival])
            distances[rival] = gap / apart if apart > 0 else None
            if not math.isfinite(values[rival]) or near(value, apart, values[rival]):
                standing.append(rival)
        draws = None if isinstance(measured, Estimate) else np.ravel(np.asarray(measured, float))
        worst = None if draws is None or draws.size < 2 else float(against(draws))
        holds, known = bool(right and not standing), None if n == 1 else error
        return cls(
            name, source, value, predicted, tolerance, holds, note, known, n, values, distances, standing, worst,
            agrees=bool(right),
        )  # fmt: skip


def _too_short(record: Record, times: Sequence[Any], due: Any) -> bool:
    """Whether a run ended before one of these first passages, with none that it lost, and most of them not yet due."""
    due = due if isinstance(due, Sequence) else [due] * len(times)
    found, expected = ([np.asarray(one, float) for one in held] for held in (times, due))
    if not found or any(np.any(one < 0) for one in found) or (expected and len(expected) != len(found)):
        raise ValueError(
            f"times: got {len(found)} beside {len(expected)} due, or a negative one; allowed: first-passage times, "
            "inf for never, and of due as many or none"
        )
    late, last = [np.isinf(one) for one in found], np.max(record.step)
    missed = [np.broadcast_to(one, still.shape)[still] <= last for one, still in zip(expected, late)]
    lost = _lost(record) or any(np.isnan(one).any() for one in found)  # no time at all
    return not lost and any(one.any() for one in late) and not (missed and np.mean(np.concatenate(missed)) > 0.5)


def _lost(record: Record) -> bool:
    """Whether a reading that was read at the first two steps, in every lane, is no number at the last."""
    arrays = [np.asarray(value) for value in record.values.values()]
    always = [one for one in arrays if one.dtype.kind == "f" and len(one) > 1 and np.isfinite(one[:2]).all()]
    return any(not np.isfinite(one[-1]).all() for one in always)


def _value_error(measured: Any) -> tuple[float, float, int]:
    """``(value, standard error, n)``; the error is 0 where one draw, or none, says."""
    if isinstance(measured, Estimate):
        error = float(measured.error)
        return float(measured.value), error if math.isfinite(error) else 0.0, measured.n
    draws = np.ravel(np.asarray(measured, float))
    with np.errstate(invalid="ignore"):  # inf less inf
        error = float(draws.std(ddof=1)) / draws.size**0.5 if draws.size > 1 else 0.0
    return float(draws.mean()), error, draws.size


def _error_of_difference(one: Any, two: Any) -> float:
    """Standard error of ``one - two``: of the draws' differences where these are the same draws."""
    if not isinstance(one, Estimate) and not isinstance(two, Estimate) and np.size(one) == np.size(two) > 1:
        with np.errstate(invalid="ignore"):  # inf less inf
            return _value_error(np.ravel(np.asarray(one, float)) - np.ravel(np.asarray(two, float)))[1]
    return math.hypot(_value_error(one)[1], _value_error(two)[1])
