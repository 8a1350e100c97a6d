"""Every notebook runs from top to bottom, says what was seen, and is committed with its pictures."""

import importlib.util
from pathlib import Path

import pytest

from dynamics.runs.command.discover import gallery

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
QUICK = ("1_tour.ipynb", "7_theory_library.ipynb")


def execute(path):
    """``notebooks/execute.py`` is the one way to run them, here as for a reader."""
    spec = importlib.util.spec_from_file_location("execute", FOLDER / "execute.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.execute(path, timeout=600.0)


def pictures(notebook):
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return sum("image/png" in output.get("data", {}) for output in outputs)


def test_every_family_has_a_notebook_and_every_notebook_a_number_of_its_own():
    numbers = [int(path.name.partition("_")[0]) for path in NOTEBOOKS]
    assert len(set(numbers)) == len(numbers)
    written = "".join(path.read_text() for path in NOTEBOOKS)
    families = {entry.family.rpartition(".")[2] for entry in gallery()}
    assert not {family for family in families if f"experiments.{family} import" not in written}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_notebook_tells_its_story(path):
    nbformat = pytest.importorskip("nbformat", reason="needs nbformat, of the extra `test`")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    first, last = notebook.cells[0], notebook.cells[-1]
    assert "**Question.**" in first.source
    assert "## What was seen" in last.source
    assert pictures(notebook) >= 1
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.execution_count is not None, "run: python notebooks/execute.py"
            assert not any(output.output_type == "error" for output in cell.outputs)


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(p.name, marks=pytest.mark.slow) for p in NOTEBOOKS if p.name not in QUICK)]
)
def test_notebook_runs(name):
    pytest.importorskip("nbclient", reason="needs nbclient, of the extra `test`")
    assert pictures(execute(FOLDER / name)) >= 1
