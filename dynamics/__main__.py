"""``dynamics COMMAND``, also ``python -m dynamics COMMAND``: experiments, folders of runs, and tools."""

from __future__ import annotations

import importlib
import sys
from functools import partial
from pathlib import Path

from dynamics import __version__
from dynamics.runs.command.ending import ended
from dynamics.runs.durable.errors import HOLDS, BadInput
from dynamics.runs.durable.modules import like

COMMANDS = {
    "run": ("runs.command.dispatch:run_main", "run an experiment, a family's flagship or a file of your own"),
    "experiments": ("runs.command.dispatch:gallery_main", "every experiment, with its run time"),
    "runs": ("runs.command.folder:main", "look after a folder of runs: list, show, compare, export, serve ..."),
    "tools": ("tools.command:main", "tools for your own files: coordinate-check"),
}


def command(argv: list[str], prog: str) -> int:
    """Runs the command of ``argv``; returns the exit code."""
    if argv == ["--version"]:
        print(f"dynamics {__version__}")
        return HOLDS
    if not argv or argv[0] in ("-h", "--help"):
        print(f"usage: {prog} COMMAND ...\n")
        print("\n".join(f"  {name:<12} {words}" for name, (_, words) in COMMANDS.items()))
        print(f"\n{prog} COMMAND --help says more of one; completion: {prog} runs completion bash >> ~/.bashrc")
        return HOLDS
    if argv[0] not in COMMANDS:
        raise BadInput(f"command: got {argv[0]!r}; allowed: {', '.join(COMMANDS)}{like(argv[0], COMMANDS)}")
    module, _, function = COMMANDS[argv[0]][0].partition(":")
    return getattr(importlib.import_module(f"dynamics.{module}"), function)(argv[1:], f"{prog} {argv[0]}")


def main() -> None:
    """The console command ``dynamics``; modules of the current folder are found after all others."""
    prog = "python -m dynamics" if Path(sys.argv[0]).name == "__main__.py" else "dynamics"
    sys.path.append("")
    sys.exit(ended(partial(command, sys.argv[1:], prog)))


if __name__ == "__main__":
    main()
