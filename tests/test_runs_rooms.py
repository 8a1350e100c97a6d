"""The rooms of runs/: imports run one way, and an experiment's trip goes down and comes back."""

import ast
import pathlib
import sys

import pytest

from dynamics.runs import cli

ROOT = pathlib.Path(cli.__file__).parent
ROOMS = ["command", "sweep", "report", "durable"]  # each imports those after it
BESIDE = {
    "cli": "command", "figures": None, "printable": None, "progress": "durable", "trackers": None,
    "watch_sinks": "report", "__main__": "command",
}  # fmt: skip


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules():
    return sorted(path for path in ROOT.rglob("*.py") if path.parent != ROOT or path.stem in BESIDE)


def test_rooms_import_those_below_them():
    wrong = []
    for path in modules():
        here = path.parent.name if path.parent != ROOT else BESIDE[path.stem]
        for name in imports(path):
            there = name.split(".")[2] if name.startswith("dynamics.runs.") else ""
            if there in ROOMS and (here is None or ROOMS.index(there) < ROOMS.index(here)):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong


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
