"""``python -m dynamics.runs COMMAND``: looks after a folder of runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from dynamics.runs.catalogue import print_compare, print_list, print_show, repeat, tidy
from dynamics.runs.errors import BadInput, RunError
from dynamics.runs.export import export

PATHS = {
    "path": "a run's folder, RUNS/EXPERIMENT/NAME",
    "other": "the folder of the run to compare with",
    "target": "file to write, ending in .npz or .nc",
}


def main(argv: list[str]) -> int:
    """``python -m dynamics.runs COMMAND``; returns the exit code."""
    import argparse

    parser = argparse.ArgumentParser(prog="python -m dynamics.runs", description="Look after a folder of runs.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str, *paths: str) -> Any:
        made = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        for path in paths:
            made.add_argument(path, type=Path, help=PATHS[path])
        return made

    def rooted(name: str, text: str) -> Any:
        made = command(name, text)
        made.add_argument("root", type=Path, nargs="?", default="runs", help="folder of runs (default: runs)")
        return made

    rooted("list", "every run, its status and its claims")
    command("show", "one run: settings, claims, records, warnings", "path")
    command("compare", "where two runs differ", "path", "other")
    command("export", "a run's records as .npz or .nc", "path", "target")
    rooted("index", "write index.html, the page that lists every run with its figure")
    gc = rooted("gc", "free the checkpoints of finished runs, and half-written files")
    gc.add_argument("--delete", action="store_true", help="delete them; without it, only say how much there is")
    command("repeat", "run it again from its directory alone and report the difference", "path")
    command("work", "take up the open parts of a run, beside it and other workers", "path")
    completion = command("completion", "print a shell's completion of `python -m experiments...`")
    completion.add_argument("shell", help="bash or zsh; append the output to ~/.bashrc or ~/.zshrc")
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
        "index": lambda: _index(given.root),
        "gc": lambda: tidy(given.root, delete=given.delete),
        "repeat": lambda: repeat(given.path),
    }
    return actions[given.command]()


def _index(root: Path) -> int:
    from dynamics.runs.index import write_index

    if not root.is_dir():
        raise BadInput(f"root: got {str(root)!r}; allowed: an existing folder of runs")
    print(write_index(root))
    return 0


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
