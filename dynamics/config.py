"""Experiment settings that check themselves: allowed ranges beside each field, one sentence when a value is wrong."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import math
import textwrap
import typing
from typing import Annotated, Any


@dataclasses.dataclass(frozen=True)
class Range:
    """The allowed range of a numeric field; give it as ``Annotated[float, Range(...)]``.

    Attributes:
        low, high: bounds (finite values only are ever allowed, whatever the bounds).
        open_low, open_high: leave the bound itself out.
        unit: shown in the command line's help.
    """

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    unit: str = ""

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return math.isfinite(value) and above and below

    def __str__(self) -> str:
        low = "" if self.low == -math.inf else f"{'>' if self.open_low else '>='} {self.low:.10g}"
        high = "" if self.high == math.inf else f"{'<' if self.open_high else '<='} {self.high:.10g}"
        return " and ".join(part for part in (low, high) if part) or "finite"


Positive = Range(0.0, open_low=True)
NonNegative = Range(0.0)
Count = Range(1)
Probability = Range(0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Config:
    """Base of every experiment's settings: a frozen dataclass whose fields are checked when it is made.

    Raises:
        ValueError: naming the field, the value and the allowed range.
    """

    seed: Annotated[int, Range(0, 2**31 - 1)] = 0
    """base random seed; seed i of a run is derived from it"""
    seeds: Annotated[int, Range(1, 4096)] = 5
    """number of independent seeds, run side by side"""

    def __post_init__(self) -> None:
        for name, annotation in typing.get_type_hints(type(self), include_extras=True).items():
            _check(name, getattr(self, name), annotation)

    @classmethod
    def presets(cls) -> dict[str, typing.Callable[[], Config]]:
        """The named settings of this experiment: ``quick``, the defaults, and its class methods without arguments."""
        named: dict[str, typing.Callable[[], Config]] = {"quick": cls}
        for name in sorted({name for one in cls.__mro__ for name in vars(one)} - set(dir(Config)), reverse=True):
            if isinstance(inspect.getattr_static(cls, name), classmethod) and not name.startswith("_"):
                named[name] = getattr(cls, name)
        return named

    def due(self) -> float:
        """When first passages that no theory foretells are due: 0, in every run of these settings, or inf, in none.

        A preset is long enough for what its claims need: with its settings (seeds aside) and its lengths (the fields
        that end in ``steps``) or longer ones, what does not get there refutes them. What was cut short, or has other
        settings, is not reached (``Claim.within``).
        """
        mine = {name: value for name, value in vars(self).items() if name not in ("seed", "seeds")}
        for make in self.presets().values():
            preset = vars(make())
            if all(
                value >= preset[name] if name.endswith("steps") else value == preset[name]
                for name, value in mine.items()
            ):
                return 0.0
        return math.inf

    def require(self, condition: bool, field: str, allowed: str) -> None:
        """Raises ValueError naming ``field``, its value and ``allowed`` unless ``condition`` holds."""
        if not condition:
            raise ValueError(f"{field}: got {getattr(self, field)!r}; allowed: {allowed}")


def allowed_range(annotation: Any) -> Range | None:
    """The ``Range`` in an ``Annotated`` type, or None."""
    if typing.get_origin(annotation) is Annotated:
        return next((meta for meta in annotation.__metadata__ if isinstance(meta, Range)), None)
    return None


def field_help(cls: type) -> dict[str, str]:
    """``{field: "what it is [unit]; allowed range"}``, from the string under each field and its ``Range``.

    A field without a string has the range alone; a class whose source is not at hand has ranges only.
    """
    words: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        words.update(_field_strings(base))
    helps = {}
    for name, annotation in typing.get_type_hints(cls, include_extras=True).items():
        ranges = _ranges(annotation)
        unit = next((f" [{allowed.unit}]" for allowed in ranges if allowed.unit), "")
        limits = [str(allowed) for allowed in ranges if str(allowed) != "finite"]
        helps[name] = "; ".join(part for part in (words.get(name, "") + unit, *limits) if part)
    return helps


def _field_strings(cls: type) -> dict[str, str]:
    if not dataclasses.is_dataclass(cls):
        return {}
    try:
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body  # type: ignore[attr-defined]
    except (OSError, TypeError, SyntaxError):
        return {}
    found = {}
    for field, text in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            value = getattr(text.value, "value", None)
            if isinstance(value, str):
                found[field.target.id] = " ".join(value.split())
    return found


def _ranges(annotation: Any) -> list[Range]:
    own = allowed_range(annotation)
    bare = annotation.__origin__ if typing.get_origin(annotation) is Annotated else annotation
    inner = [allowed for argument in typing.get_args(bare) for allowed in _ranges(argument)]
    return ([own] if own is not None else []) + inner


def _check(name: str, value: Any, annotation: Any) -> None:
    allowed = allowed_range(annotation)
    bare = annotation.__origin__ if typing.get_origin(annotation) is Annotated else annotation
    if typing.get_origin(bare) is tuple:
        if not isinstance(value, tuple) or not value:
            raise ValueError(f"{name}: got {value!r}; allowed: one or more values")
        inner = typing.get_args(bare)[0]
        for item in value:
            if allowed is not None:
                _check_number(name, item, allowed, inner)
            _check(name, item, inner)
        return
    if typing.get_origin(bare) is typing.Literal and value not in typing.get_args(bare):
        raise ValueError(f"{name}: got {value!r}; allowed: {', '.join(map(str, typing.get_args(bare)))}")
    if bare in (int, float) or allowed is not None:
        _check_number(name, value, allowed or Range(), bare)


def _check_number(name: str, value: Any, allowed: Range, kind: Any) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or (kind is int and not isinstance(value, int)) or value not in allowed:
        word = "an integer" if kind is int else "a number"
        limits = f"{word} {allowed}" if str(allowed) != "finite" else f"{word} that is finite"
    elif kind is int and abs(value) >= 2**31:
        limits = "an integer below 2^31"
    else:
        return
    raise ValueError(f"{name}: got {value!r}; allowed: {limits}")
