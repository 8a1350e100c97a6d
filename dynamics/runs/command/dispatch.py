"""Which command a name means: the gallery, a family's flagship or paper, or an experiment."""

from __future__ import annotations

import importlib

from dynamics.runs.command import discover
from dynamics.runs.command.gallery import show_gallery
from dynamics.runs.durable.errors import BadInput


def dispatch(name: str, argv: list[str]) -> int:
    """Runs the command of a module, file or package; see ``cli.main``."""
    depth, prog, others = name.count("."), f"python -m {name}", ""
    if name.endswith(".py"):
        prog = f"python {name}"
    elif depth == 0:
        return show_gallery(name, argv)
    elif depth == 1:
        paper = flagship = discover.flagship(name)
        if argv and not argv[0].startswith("-"):
            paper, argv = argv[0].replace("-", "_"), argv[1:]
        known = [entry.paper for entry in discover.gallery(name.split(".")[0]) if entry.family == name]
        if paper not in known:
            raise BadInput(f"experiment: got {paper!r}; allowed: {', '.join(known)}")
        others = f"{name} runs its flagship, {flagship}; beside it python -m {name}.PAPER, PAPER being one of "
        others += ", ".join(word for word in known if word != flagship)
        name, prog = f"{name}.{paper}", f"python -m {name}.{paper}"
    experiment = importlib.import_module("dynamics.runs.command.experiment")  # brings in JAX, which no listing needs
    return experiment.run_experiment(name, argv, prog, others)
