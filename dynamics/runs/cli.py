"""The command line of every experiment, of a family, and of the gallery: the last line of an experiment's module."""

from __future__ import annotations

import sys
from functools import partial
from typing import NoReturn

from dynamics.runs.command.dispatch import dispatch
from dynamics.runs.command.ending import ended


def main(name: str, argv: list[str] | None = None) -> NoReturn:
    """Runs the command line of ``name`` and exits.

    Exit codes: 0 every applicable claim holds; 1 unexpected error; 2 bad input; 3 interrupted, resumable; 4 the run
    cannot be used (in use, corrupt, full disk); 5 a claim fails; 6 none fails, but the run was too short for one.

    Args:
        name: an experiment's module (``__spec__.name``) or file (``__file__``), a family's package, or the package of
            all experiments, whose command is the gallery.
        argv: the flags; ``sys.argv[1:]`` by default.
    """
    sys.exit(ended(partial(dispatch, name.removesuffix(".__main__"), sys.argv[1:] if argv is None else argv)))
