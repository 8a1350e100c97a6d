"""The rooms of runs/: imports run one way and at the top, and an experiment's trip goes down and comes back."""

import ast
import pathlib
import sys

import pytest

from dynamics.runs import cli

ROOT = pathlib.Path(cli.__file__).parent
ROOMS = ["command", "sweep", "report", "durable"]  # each imports those after it
BESIDE = {"cli": "command", "figures": None, "progress": "durable", "trackers": None, "__main__": "command"}
HEAVY = {"matplotlib", "tyro", "submitit", "tensorboardX", "wandb"}
"""Heavy or optional: the only imports that may stand inside a function."""


def imports(path):
    """``(module, whether inside a function)``."""
    tree = ast.parse(path.read_text())
    functions = (held for held in ast.walk(tree) if isinstance(held, ast.FunctionDef))
    inside = {id(node) for held in functions for line in held.body for node in ast.walk(line)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((f"{node.module}.{alias.name}", id(node) in inside) for alias in node.names)


def modules():
    return sorted(path for path in ROOT.rglob("*.py") if path.parent != ROOT or path.stem in BESIDE)


def test_rooms_import_those_below_them():
    wrong = []
    for path in modules():
        here = path.parent.name if path.parent != ROOT else BESIDE[path.stem]
        for name, _ in imports(path):
            there = name.split(".")[2] if name.startswith("dynamics.runs.") else ""
            if there in ROOMS and (here is None or ROOMS.index(there) < ROOMS.index(here)):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong


def test_no_circle_and_no_import_hidden_in_a_function():
    names = {".".join(("dynamics", "runs", *path.relative_to(ROOT).with_suffix("").parts)): path for path in modules()}
    needs = {name: {made for made in names for asked, _ in imports(path) if made in (asked, asked.rpartition(".")[0])}
             for name, path in names.items()}  # fmt: skip
    while free := [name for name, needed in needs.items() if not needed - {name}]:
        for name in free:
            del needs[name]
        needs = {name: needed - set(free) for name, needed in needs.items()}
    assert not needs, "circles among these"
    hidden = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in modules()
        for name, inside in imports(path)
        if inside and name.split(".")[0] not in HEAVY and name != "jax.experimental.multihost_utils"
    }
    assert not hidden


@pytest.mark.slow
def test_a_trip_returns_to_a_file_it_has_left_at_most_four_times(tmp_path, monkeypatch, capsys):
    """From flags to exit code: calls, lambdas' too, into a file of runs/ that is left and still waits further up."""
    monkeypatch.chdir(tmp_path)
    toy, found = str(pathlib.Path(__file__).parent / "programs" / "toy.py"), set()

    def watch(frame, event, argument):
        file = frame.f_code.co_filename
        if event != "call" or not file.startswith(str(ROOT)) or not file.endswith(".py"):
            return
        stack, held = [], frame.f_back
        while held is not None:
            if held.f_code.co_filename.startswith(str(ROOT)):
                stack.append(held.f_code.co_filename)
            held = held.f_back
        if stack and stack[0] != file and file in stack:
            found.add((pathlib.Path(stack[0]).name, pathlib.Path(file).name))

    sys.setprofile(watch)
    try:
        with pytest.raises(SystemExit, match="0"):
            cli.main(toy, ["--quiet", "--eta", "0.1", "--seeds", "1", "--name", "a"])
    finally:
        sys.setprofile(None)
    print(sorted(found))
    assert len(found) <= 4
