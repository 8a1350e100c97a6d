"""Which command a name means: the gallery, a family's flagship or paper, or an experiment."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from dynamics.runs.command import discover
from dynamics.runs.command.gallery import show_gallery
from dynamics.runs.durable.errors import HOLDS, BadInput
from dynamics.runs.durable.modules import EXPERIMENTS, file_of, like, own_name, package_of

RUN_HELP = """\
usage: {prog} NAME [flags]

NAME is one of `dynamics experiments` (grokking.lazy_to_rich), a family (grokking), whose flagship is run, or a file of
your own (decay.py). `{prog} NAME --help` has its flags.
"""


def dispatch(name: str, argv: list[str], start: str | None = None) -> int:
    """Runs the command of a module, file or package; see ``cli.main``.

    Args:
        name: the module, file or package.
        argv: the flags; after a family's name a paper may stand first.
        start: what is typed before FAMILY.PAPER or a file; ``python -m PACKAGE.`` or ``python`` by default.
    """
    if name.endswith(".py"):
        return _experiment(name, argv, f"{start or 'python '}{name}")
    package, parts = package_of(own_name(name))
    start = start or f"python -m {name.removesuffix('.'.join(parts)).rstrip('.')}."
    if not parts:
        return show_gallery(package, argv, start)
    others = ""
    if len(parts) == 1:
        (family,), paper = parts, discover.flagship(parts[0], package)
        others = f"{start}{family} runs its flagship, {paper}; beside it {start}{family}.PAPER, PAPER being one of "
        known = [entry.paper for entry in discover.gallery(package) if entry.family == family]
        others += ", ".join(word for word in known if word != paper)
        if argv and not argv[0].startswith("-"):
            paper, argv = argv[0].replace("-", "_"), argv[1:]
        if paper not in known:
            raise BadInput(f"experiment: got {paper!r}; allowed: {', '.join(known)}{like(str(paper), known)}")
        parts.append(str(paper))
    return _experiment(".".join([package, *parts]), argv, f"{start}{'.'.join(parts)}", others)


def run_main(argv: list[str], prog: str) -> int:
    """``dynamics run NAME``: one of our experiments, a family's flagship or a file."""
    if not argv or argv[0] in ("-h", "--help"):
        print(RUN_HELP.format(prog=prog), end="")
        return HOLDS
    name, flags = argv[0], argv[1:]
    if not name.endswith(".py"):
        short = name.removeprefix("dynamics.").removeprefix("experiments.").replace("-", "_")
        name = f"{EXPERIMENTS}.{short}"
        if file_of(name) is None:
            known = like(short, [entry.experiment for entry in discover.gallery()])
            allowed = "a name of `dynamics experiments`, a family, or a file that ends in .py"
            raise BadInput(f"experiment: got {argv[0]!r}; allowed: {allowed}{known}")
    else:
        sys.path.append(str(Path(name).resolve().parent))  # what it imports from beside it, as ``python NAME`` finds it
    return dispatch(name, flags, f"{prog} ")


def gallery_main(argv: list[str], prog: str) -> int:
    """``dynamics experiments``: every experiment."""
    return show_gallery(EXPERIMENTS, argv, f"{prog.replace('experiments', 'run')} ")


def _experiment(name: str, argv: list[str], prog: str, others: str = "") -> int:
    experiment = importlib.import_module("dynamics.runs.command.experiment")  # brings in JAX, which no listing needs
    return experiment.run_experiment(name, argv, prog, others)
