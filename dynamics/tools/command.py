"""``dynamics tools COMMAND``: commands on a user's own files."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import sys
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from dynamics.config import field_help
from dynamics.runs.command.ending import ended
from dynamics.runs.durable.errors import CLAIM_FAILS, HOLDS, BadInput
from dynamics.runs.durable.modules import like, module_in
from dynamics.runs.figures import drawn
from dynamics.theory.coordinates import SCHEMES
from dynamics.tools.coordinates import coordinate_check
from dynamics.tools.figure import coordinate_figure

COMMANDS = ("coordinate-check",)


@dataclasses.dataclass(frozen=True)
class CoordinateCheckOptions:
    """Exponents of activations and of their changes with width, and whose they are: standard, NTK, muP or u-muP."""

    target: str
    """MODULE:FUNCTION or FILE.py:FUNCTION; the function takes nothing and returns the arguments of coordinate_check"""
    widths: tuple[int, ...] | None = None
    """widths, three or more, in place of the function's"""
    steps: int | None = None
    """updates, in place of the function's"""
    seeds: int | None = None
    """initialisations, in place of the function's"""
    expect: str | None = None
    """scheme that the verdict must be; otherwise the exit code is 5"""
    figure: str | None = None
    """file to draw to, ending in .png or .svg"""


def main(argv: list[str], prog: str = "python -m dynamics.tools") -> int:
    """Runs the command of ``argv``; returns the exit code."""
    import tyro

    words = CoordinateCheckOptions.__doc__ or ""
    if not argv or argv[0] in ("-h", "--help"):
        print(f"usage: {prog} COMMAND ...\n\ncoordinate-check  {words}")
        return HOLDS
    if argv[0] not in COMMANDS:
        raise BadInput(f"command: got {argv[0]!r}; allowed: {', '.join(COMMANDS)}{like(argv[0], COMMANDS)}")
    options = tyro.cli(
        _described(CoordinateCheckOptions), args=argv[1:], prog=f"{prog} coordinate-check",
        description=f"{words} Exit codes: 0; 2 bad input; {CLAIM_FAILS} another verdict than --expect.",
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes), use_underscores=False,
    )  # fmt: skip
    return run_coordinate_check(options)


def run_coordinate_check(options: Any) -> int:
    """The check of ``options.target``: prints its table, draws its figure."""
    suffix = Path(options.figure or "x.png").suffix
    if suffix not in (".png", ".svg"):
        raise BadInput(f"--figure: got {options.figure!r}; allowed: a file that ends in .png or .svg")
    if options.figure and not Path(options.figure).absolute().parent.is_dir():
        raise BadInput(f"--figure: got {options.figure!r}; allowed: a file in a folder that exists")
    known = sorted({name for table in SCHEMES.values() for name in table})
    if options.expect not in (None, *known):
        raise BadInput(f"--expect: got {options.expect!r}; allowed: {', '.join(known)}")
    given = called(options.target)
    if not isinstance(given, Mapping) or not {"make", "data"} <= given.keys():
        got = sorted(given) if isinstance(given, Mapping) else type(given).__name__
        raise BadInput(
            f"{options.target}: got {got}; allowed: dict(make=..., data=..., widths=..., loss=...), the arguments of "
            "dynamics.tools.coordinate_check"
        )
    given = dict(given)
    takes = list(inspect.signature(coordinate_check).parameters)
    if strange := sorted(set(given) - set(takes)):
        raise BadInput(f"{options.target}: got {', '.join(map(str, strange))}; allowed: {', '.join(takes)}")
    for name in ("widths", "steps", "seeds"):
        if getattr(options, name) is not None:
            given[name] = getattr(options, name)
    given.setdefault("widths", (64, 128, 256, 512))
    try:
        check = coordinate_check(**given)
    except (TypeError, ValueError) as error:
        if "; allowed" not in str(error):
            raise
        raise BadInput(str(error)) from error
    print(check)
    if options.figure:
        Path(options.figure).write_bytes(drawn(coordinate_figure(check))[f"figure{suffix}"])
        print(f"figure: {options.figure}")
    if options.expect and options.expect not in check.schemes:
        raise BadInput(f"--expect: got {options.expect!r}; allowed: {', '.join(check.schemes)}")
    return HOLDS if options.expect in (None, check.verdict) else CLAIM_FAILS


def called(target: str) -> Any:
    """What the function of ``target`` returns.

    Raises:
        BadInput: where there is none, or it takes arguments.
    """
    function = loaded(target)
    try:
        inspect.signature(function).bind()
    except TypeError:
        raise BadInput(
            f"{target}: got a function that takes {inspect.signature(function)}; allowed: one that takes nothing"
        ) from None
    except ValueError:  # a builtin without a signature
        pass
    return function()


def loaded(target: str) -> Callable[..., Any]:
    """The function of ``MODULE:FUNCTION``; modules of the current folder too.

    Raises:
        BadInput: where there is none.
    """
    module, colon, name = target.rpartition(":")
    if not colon or not module or not name:
        raise BadInput(f"target: got {target!r}; allowed: MODULE:FUNCTION or FILE.py:FUNCTION")
    if module.endswith(".py"):
        if not Path(module).is_file():
            raise BadInput(f"target: got {module!r}, which is no file; allowed: FILE.py:FUNCTION")
        held = module_in(module)
    else:
        sys.path.insert(0, str(Path.cwd()))
        try:
            held = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name and not module.startswith(error.name):
                raise
            raise BadInput(f"target: got {module!r}, which is no module here; allowed: MODULE:FUNCTION") from None
    function = getattr(held, name, None)
    if not callable(function):
        raise BadInput(f"target: got {name!r} of {module}; allowed: a function there")
    return function


def _described(options: type) -> Any:
    """The options with their strings as help, what is required by its place."""
    import tyro

    helps, hints = field_help(options), typing.get_type_hints(options)
    fields = []
    for field in dataclasses.fields(options):
        required = field.default is dataclasses.MISSING
        says = tyro.conf.arg(help=helps[field.name], metavar=field.name.upper(), help_behavior_hint="")
        hint = tyro.conf.Positional[hints[field.name]] if required else hints[field.name]
        made = dataclasses.field() if required else dataclasses.field(default=field.default)
        fields.append((field.name, Annotated[hint, says], made))
    return dataclasses.make_dataclass(options.__name__, fields, frozen=True)


def tools_main(argv: list[str]) -> int:
    """``main`` with every refusal as one sentence on stderr and its exit code."""
    return ended(lambda: main(argv))
