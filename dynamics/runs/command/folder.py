"""``dynamics runs COMMAND``: looks after a folder of runs. Each command loads what it needs, and no more."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

from dynamics.runs.command.ending import ended

PATHS = {
    "path": "a run's folder, RUNS/EXPERIMENT/NAME",
    "other": "the folder of the run to compare with",
    "target": "file to write (default: EXPERIMENT-NAME in the current folder)",
    "root": "folder of runs (default: runs)",
    "shell": "bash or zsh; append the output to ~/.bashrc or ~/.zshrc",
}
COMMANDS = {
    "list": ("report.listing:print_list", "every run, its status and its claims", ["root"]),
    "show": ("report.compare:print_show", "one run: settings, claims, records, warnings", ["path"]),
    "compare": ("command.redraw:compare", "where two runs differ, in words, numbers and curves", ["path", "other"]),
    "figure": (
        "command.redraw:figure",
        "draw a run's figure again, for a paper",
        ["path", "target"],
    ),
    "export": ("command.export:export", "a run's records as netCDF, npz or CSV", ["path", "target"]),
    "index": ("report.index_page:print_index", "write index.html, the page that lists every run", ["root"]),
    "serve": ("report.live:serve", "the live page of runs while they go, on this machine alone", ["root"]),
    "gc": ("report.listing:tidy", "free the checkpoints of finished runs, and half-written files", ["root"]),
    "repeat": ("command.repeat:repeat", "run it again from its directory alone and report the difference", ["path"]),
    "work": ("sweep.worker:work", "take up the open parts of a run, beside it and other workers", ["path"]),
    "completion": (
        "command.completion:print_script",
        "print a shell's completion of `dynamics`",
        ["shell"],
    ),
}
OPTIONAL: dict[str, Any] = {"root": {"nargs": "?", "default": "runs"}, "target": {"nargs": "?"}}
SET: dict[str, Any] = {"action": "store_true"}
TRUST = ("--trust", "run the code that it names, also where that lies outside the current folder", SET)
FLAGS: dict[str, list[tuple[str, str, dict[str, Any]]]] = {
    "compare": [
        ("--plot", "draw both over each other, into this file", {"type": Path, "metavar": "FILE"}),
        ("--show", "the one reading to tell of and to draw, NAME or LABEL/NAME", {"metavar": "NAME"}),
    ],
    "figure": [
        ("--panel", "draw this panel alone, from 1", {"type": int, "metavar": "N"}),
        ("--width", "width in inches: 3.3 for a column", {"type": float, "metavar": "INCHES"}),
        ("--pdf", "write PDF", SET),
        ("--style", "paper: small text, thin lines, no grid, no heading, letters", {"choices": ["paper"]}),
        TRUST,
    ],
    "export": [
        ("--to", "format (default: what the file's ending says, or netcdf)", {"choices": ["netcdf", "npz", "csv"]}),
        TRUST,
    ],
    "gc": [("--delete", "delete them; without it, only say how much there is", SET)],
    "repeat": [TRUST],
    "serve": [
        ("--port", "port of 127.0.0.1; 0 takes any that is free (default: 8642)", {"type": int, "default": 8642})
    ],
    "work": [TRUST],
}


def main(argv: list[str], prog: str = "python -m dynamics.runs") -> int:
    """``dynamics runs COMMAND``; returns the exit code."""
    parser = argparse.ArgumentParser(prog=prog, description="Look after a folder of runs.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (_, text, arguments) in COMMANDS.items():
        made = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        for argument in arguments:
            options = OPTIONAL.get(argument, {})
            made.add_argument(argument, type=str if argument == "shell" else Path, help=PATHS[argument], **options)
        for flag, words, options in FLAGS.get(name, ()):
            made.add_argument(flag, help=words, **options)
    if argv[:1] and argv[0] in COMMANDS:  # a file may then follow a flag, which subparsers do not allow
        given = {"command": argv[0], **vars(commands.choices[argv[0]].parse_intermixed_args(argv[1:]))}
    else:
        given = vars(parser.parse_args(argv))
    module, _, function = COMMANDS[given.pop("command")][0].partition(":")
    return getattr(importlib.import_module(f"dynamics.runs.{module}"), function)(**given)


def run_main(argv: list[str]) -> int:
    """``main`` with every refusal as one sentence on stderr and its exit code."""
    return ended(lambda: main(argv))
