"""The command line of every experiment, of a family, and of the gallery: the last line of an experiment's module."""

from __future__ import annotations

import importlib
import sys
from typing import NoReturn

from dynamics.runs.command import discover
from dynamics.runs.command.ending import ended
from dynamics.runs.command.gallery import show_gallery
from dynamics.runs.durable.errors import BadInput


def main(name: str, argv: list[str] | None = None) -> NoReturn:
    """Runs the command line of ``name`` and exits.

    Exit codes: 0 every applicable claim holds; 1 unexpected error; 2 bad input; 3 interrupted, resumable; 4 the run
    cannot be used (in use, corrupt, full disk); 5 a claim fails.

    Args:
        name: an experiment's module (``__spec__.name``) or file (``__file__``), a family's package, or the package of
            all experiments, whose command is the gallery.
        argv: the flags; ``sys.argv[1:]`` by default.
    """
    sys.exit(ended(lambda: _dispatch(name.removesuffix(".__main__"), sys.argv[1:] if argv is None else argv)))


def _dispatch(name: str, argv: list[str]) -> int:
    depth, prog, others = name.count("."), f"python -m {name}", ""
    if name.endswith(".py"):
        prog = f"python {name}"
    elif depth == 0:
        return show_gallery(name, argv)
    elif depth == 1:
        paper = discover.flagship(name)
        if argv and not argv[0].startswith("-"):
            paper, argv = argv[0].replace("-", "_"), argv[1:]
        known = [entry.paper for entry in discover.gallery(name.split(".")[0]) if entry.family == name]
        if paper not in known:
            raise BadInput(f"experiment: got {paper!r}; allowed: {', '.join(known)}")
        others = f"{name} runs its flagship, {paper}; beside it python -m {name}.PAPER, PAPER being one of "
        others += ", ".join(word for word in known if word != paper)
        name, prog = f"{name}.{paper}", f"python -m {name}.{paper}"
    experiment = importlib.import_module("dynamics.runs.command.experiment")  # brings in JAX, which no listing needs
    return experiment.run_experiment(name, argv, prog, others)
