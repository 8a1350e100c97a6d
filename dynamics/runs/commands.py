"""``python -m dynamics.runs COMMAND``: looks after a folder of runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from dynamics.runs.catalogue import print_compare, print_list, print_show, repeat, tidy
from dynamics.runs.errors import BadInput, RunError
from dynamics.runs.export import export


def main(argv: list[str]) -> int:
    """``python -m dynamics.runs COMMAND``; returns the exit code."""
    import argparse

    parser = argparse.ArgumentParser(prog="python -m dynamics.runs", description="Look after a folder of runs.")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, text: str, *paths: str) -> Any:
        made = commands.add_parser(name, help=text, description=text)
        for path in paths:
            made.add_argument(path, type=Path)
        return made

    command("list", "every run, its status and its claims").add_argument("root", type=Path, nargs="?", default="runs")
    command("show", "one run: settings, claims, records, warnings", "path")
    command("compare", "where two runs differ", "path", "other")
    command("export", "a run's records as .npz or .nc", "path", "target")
    gc = command("gc", "free the checkpoints of finished runs, and half-written files")
    gc.add_argument("root", type=Path, nargs="?", default="runs")
    gc.add_argument("--delete", action="store_true", help="delete them; without it, only say how much there is")
    command("repeat", "run it again from its directory alone and report the difference", "path")
    command("work", "take up the open chunks of a sweep, beside other workers", "path")
    command("completion", "print a shell's completion of `python -m experiments...`").add_argument("shell")
    given = parser.parse_args(argv)
    if given.command == "completion":
        from dynamics.runs.completion import script

        print(script(given.shell), end="")
        return 0
    if given.command == "work":
        from dynamics.runs.worker import work

        return work(given.path)
    actions: dict[str, Any] = {
        "list": lambda: print_list(given.root),
        "show": lambda: print_show(given.path),
        "compare": lambda: print_compare(given.path, given.other),
        "export": lambda: export(given.path, given.target),
        "gc": lambda: tidy(given.root, delete=given.delete),
        "repeat": lambda: repeat(given.path),
    }
    return actions[given.command]()


def run_main(argv: list[str]) -> int:
    """``main`` with every refusal as one sentence on stderr and its exit code."""
    import sys

    try:
        return main(argv)
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    except ImportError as error:
        if "dynamics[" not in str(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        return BadInput.code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
