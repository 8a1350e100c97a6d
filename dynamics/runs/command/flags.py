"""Flags from a Config: one a field, with what it is, its unit and its allowed range in ``--help``."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import re
import sys
import textwrap
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal

from dynamics.config import Config, field_help
from dynamics.runs.durable.errors import BadInput
from dynamics.runs.trackers import MAKERS


@dataclasses.dataclass(frozen=True)
class Options:
    """What every experiment's command line takes besides its Config."""

    preset: str = "quick"
    """named settings that the other flags change"""
    x64: bool = False
    """compute in float64"""
    device: str | None = None
    """where to compute: cpu, gpu or tpu, with an index if need be (gpu:1); by default JAX's choice"""
    out: str = "runs"
    """folder that holds all runs; this one goes to OUT/EXPERIMENT/NAME/"""
    name: str | None = None
    """name of the run; by default a short hash of the settings, so that the same command resumes"""
    resume: bool = False
    """take the flags that are not given from the run --name, and continue it"""
    fork: str | None = None
    """continue the run --name under this new name, with the flags that are given changed; what they leave no
    step for begins anew"""
    sweep: tuple[str, ...] = ()
    """over settings that take one value, FIELD=SPEC ...: each cell is then a run of its own; settings that take several
    are swept by their own flags, as one program: --eta log:.1:10:48. SPEC is a,b,c or lin:LOW:HIGH:COUNT or
    log:LOW:HIGH:COUNT or START:STOP (whole numbers)"""
    show: str | None = None
    """reading drawn in the phase diagram of a --sweep, NAME or LABEL/NAME"""
    workers: int = 1
    """processes that share the run's studies, or a sweep's cells, on this machine"""
    cluster: str | None = None
    """further workers through submitit: slurm, or local to try it"""
    track: Literal[tuple(MAKERS)] | None = None  # type: ignore[valid-type]
    """write the readings to files of this tracker too, in the run's folder"""
    quiet: bool = False
    """no progress bars and no table"""
    json: bool = False
    """print the claims as JSON"""


def parse(
    cls: type[Config], argv: list[str], prog: str, description: str, stored: Config | None = None
) -> tuple[Config, Options]:
    """The Config and the Options of a command line.

    Args:
        cls: the experiment's Config.
        argv: the flags.
        prog, description: for ``--help``.
        stored: settings of the run to continue, for the defaults in place of the preset's.

    Raises:
        BadInput: when a value is outside its range or a preset unknown, naming field, value and range.
        SystemExit: 2 for flags that cannot be parsed at all (written to stderr), 0 after ``--help``.
    """
    import tyro

    presets = cls.presets()
    chosen = early(argv, "preset") or "quick"
    if chosen not in presets:
        raise BadInput(f"--preset: got {chosen!r}; allowed: {', '.join(presets)}")
    base = presets[chosen]() if stored is None else stored
    own, common = _fields(cls, base), _fields(Options, Options(preset=chosen))
    clash = {name for name, *_ in own} & {name for name, *_ in common}
    if clash:
        raise BadInput(
            f"{cls.__module__}.Config: got fields {sorted(clash)}; allowed: names that no option of every command has"
        )
    literal = Literal[tuple(presets)]  # type: ignore[valid-type]
    choice = tyro.conf.arg(help=field_help(Options)["preset"], metavar="{" + ",".join(presets) + "}")
    common[0] = ("preset", Annotated[literal, choice], chosen)
    groups = (("experiment", own), ("run", common))
    made = [(name, dataclasses.make_dataclass(name, fields, frozen=True)) for name, fields in groups]
    flags = dataclasses.make_dataclass("Flags", [(name, cls, cls()) for name, cls in made])
    with _single_blank_lines():
        given = tyro.cli(
            flags,
            args=argv,
            prog=prog,
            description=_wrapped("\n\n".join([description, *_told(presets)])),
            config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
            use_underscores=False,
        )
    try:
        config = cls(**vars(given.experiment))
    except ValueError as error:
        name, colon, rest = str(error).partition(":")
        raise BadInput(f"--{name.replace('_', '-')}{colon}{rest}") from error
    return config, Options(**vars(given.run))


class _Held(io.TextIOWrapper):
    """Text kept in memory for a stream, of its encoding and with its colours."""

    def __init__(self, stream: Any) -> None:
        super().__init__(io.BytesIO(), encoding=getattr(stream, "encoding", None) or "utf-8", write_through=True)
        self.isatty = stream.isatty


@contextlib.contextmanager
def _single_blank_lines() -> Iterator[None]:
    """What is printed within, with the blank lines joined that tyro doubles between paragraphs."""
    held = _Held(sys.stdout)
    try:
        with contextlib.redirect_stdout(held):
            yield
    finally:
        held.seek(0)
        print(re.sub(r"\n(\s*\n)+", "\n\n", held.read()), end="")


def _told(presets: Mapping[str, Callable[[], Config]]) -> list[str]:
    """What each preset says of itself, as a paragraph: its sizes and how long it takes."""
    docs = {name: inspect.getdoc(make) for name, make in presets.items() if name != "quick"}
    return [f"Preset {name}: {' '.join(text.split())}" for name, text in docs.items() if text]


def _wrapped(text: str) -> str:
    """Paragraphs at 80 columns; tyro joins lines that begin with a letter, which the indent prevents."""
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
    return "\n\n".join(textwrap.fill(part, 80, initial_indent="  ", subsequent_indent="  ") for part in paragraphs)


def _fields(cls: type, base: Any) -> list[tuple[str, Any, Any]]:
    """``(name, annotated type, default)`` of each field, for ``dataclasses.make_dataclass``."""
    import tyro

    helps = field_help(cls)
    hints = typing.get_type_hints(cls)
    words = {name: name.upper() if hint in (str, str | None) else _several(name, hint) for name, hint in hints.items()}
    words |= {"track": "{" + ",".join(MAKERS) + "}", "sweep": "FIELD=SPEC [FIELD=SPEC ...]"}
    made = []
    for name, value in ((field.name, getattr(base, field.name)) for field in dataclasses.fields(cls)):
        says = tyro.conf.arg(help=helps.get(name, ""), metavar=words[name], help_behavior_hint=_default_words(value))
        made.append((name, Annotated[hints[name], says], value))
    return made


def _several(name: str, hint: Any) -> str | None:
    """``INT [INT ...]`` for a field of several values, of which there is at least one; None for one value."""
    if typing.get_origin(hint) is not tuple:
        return None
    inner = typing.get_args(hint)[0]
    choices = ",".join(map(str, typing.get_args(inner)))
    word = "{" + choices + "}" if choices else (name if inner is str else inner.__name__).upper()
    return f"{word} [{word} ...]"


def _default_words(value: Any) -> str:
    """A default as ``--help`` shows it: numbers to six digits, nothing for what is off."""
    if value is None or value is False or value in ((), ""):
        return ""
    items = value if isinstance(value, tuple) else (value,)
    shown = (f"{item:.6g}" if isinstance(item, float) else str(item) for item in items)
    return f"(default: {' '.join(shown)})"


def early(argv: list[str], flag: str) -> str | None:
    """A flag's value before the parser runs; "" for a flag without one."""
    for at, word in enumerate(argv):
        if word == f"--{flag}":
            following = argv[at + 1] if at + 1 < len(argv) else ""
            return "" if following.startswith("--") else following
        if word.startswith(f"--{flag}="):
            return word.split("=", 1)[1]
    return None


def said_once(argv: list[str]) -> None:
    """Refuses a flag that is given twice, of which one would be forgotten.

    Raises:
        BadInput: naming it.
    """
    given = [word.partition("=")[0].replace("_", "-") for word in argv if word.startswith("--") and len(word) > 2]
    if twice := [word for word in dict.fromkeys(given) if given.count(word) > 1]:
        raise BadInput(f"{twice[0]}: got it {given.count(twice[0])} times; allowed: once")
