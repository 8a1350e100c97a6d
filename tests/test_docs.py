"""What the documents say runs: every Python block of README and docs, every docstring example, every link.

Docstring examples run with the shapes of signatures checked, as every test does (conftest.py).
"""

import contextlib
import doctest
import importlib
import io
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest
from conftest import users_environment
from jaxtyping import TypeCheckError

import dynamics
from dynamics.evolve import ode
from dynamics.runs import open_run
from dynamics.runs.command.folder import run_main
from dynamics.theory.deep_linear import lambda_balanced
from dynamics.theory.lazy_to_rich import infinite_width, kernel

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
RUN_ELSEWHERE = "porting.md"  # by test_porting.py
FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page):
    """``(language, {key: value}, text, line)`` of each fenced block."""
    text = page.read_text()
    for found in FENCE.finditer(text):
        language, *words = found["info"].split() or [""]
        line = text.count("\n", 0, found.start("body"))
        yield language, dict(word.split("=", 1) for word in words), found["body"], line


def modules() -> list[str]:
    names = [module.name for module in pkgutil.walk_packages(dynamics.__path__, "dynamics.")]
    return [name for name in names if not name.startswith("dynamics.interop.") and not name.endswith("__main__")]


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != RUN_ELSEWHERE], ids=lambda page: page.name)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    """Blocks of a page share one namespace; ``file=NAME`` blocks become files; ``python NAME ...`` lines run them.

    So do ``python -m dynamics.runs`` lines on a run that an earlier line has left. Of README's flagship there is a run.
    """
    monkeypatch.chdir(tmp_path)
    if page.name == "README.md":
        a_flagship(tmp_path / "runs" / "grokking.lazy_to_rich" / "first")
    monkeypatch.syspath_prepend(tmp_path)
    namespace = {"__name__": page.stem}
    for language, options, body, line in blocks(page):
        if language == "python" and "file" in options:
            (tmp_path / options["file"]).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / options["file"]).write_text(body)
        elif language == "python":
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile("\n" * line + body, str(page), "exec"), namespace)
        elif language == "console":
            for command in body.splitlines():
                run_own_file(command, tmp_path)
                run_on_own_run(command, tmp_path)


def run_own_file(command, folder):
    """Runs ``python NAME.py ...`` where an earlier block has written NAME.py; other commands are not for this test."""
    words = command.partition("#")[0].split()
    if len(words) < 2 or words[0] != "python" or not (folder / words[1]).is_file():
        return
    done = subprocess.run(
        [sys.executable, *words[1:]], cwd=folder, env=users_environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def run_on_own_run(command, folder):
    """Runs ``python -m dynamics.runs COMMAND RUN ...`` where there is such a run."""
    words = command.partition("#")[0].split()
    if words[:3] == ["python", "-m", "dynamics.runs"] and len(words) > 4 and (folder / words[4]).is_dir():
        with contextlib.redirect_stdout(io.StringIO()):
            assert run_main(words[3:]) == 0, command


def a_flagship(path):
    """A run with the records of the flagship, of two lanes."""
    with open_run(path, {}) as run:
        run.study(
            {"alpha": [0.1, 0.2], "seed": range(2)}, draw=lambda lane: jnp.ones(()),
            make=lambda lane: ode(lambda x, data: -lane.alpha * x, 0.1),
            read=[lambda x, data: {"test_loss": x}], data=(), steps=2, label="network",
        )  # fmt: skip


@pytest.mark.parametrize("name", modules())
def test_docstring_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    report = io.StringIO()
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, name):
        runner.run(test, out=report.write)
    assert runner.failures == 0, report.getvalue()


def test_shapes_of_signatures_are_checked_by_these_tests_alone(request):
    """conftest.py puts jaxtyping's checks on every module; users meet JAX's own errors."""
    weights = jnp.ones((3, 2)), jnp.ones((4, 3)), jnp.ones((2, 4))  # the target map's axes are in the wrong order
    with pytest.raises(TypeCheckError, match="correlation"):
        lambda_balanced([0.0], *weights, substeps=1)
    with pytest.raises(TypeCheckError, match="x2"):
        kernel(infinite_width(3), jnp.ones((5, 3)), jnp.ones((5, 4)), 0.1)
    request.getfixturevalue("as_users_meet_it")
    with pytest.raises(ValueError, match=r"^correlation: got"):
        lambda_balanced([0.0], *weights, substeps=1)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", FENCE.sub("", page.read_text())):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_name_modules_that_exist(page):
    for language, _, body, _ in blocks(page):
        if language == "console":
            for name in re.findall(r"python -m ((?:experiments|dynamics)[\w.]*)", body):
                assert importlib.util.find_spec(name), name


@pytest.mark.slow
def test_readme_commands_run(tmp_path):
    """Every ``python -m experiments...`` line of the README, for real (the test commands themselves aside)."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "HOME": str(tmp_path)}
    commands = [
        line
        for language, _, body, _ in blocks(ROOT / "README.md")
        if language == "console"
        for line in body.splitlines()
    ]
    chosen = {command for line in commands if (command := line.partition("#")[0].strip()).startswith("python -m")}
    assert chosen
    for command in sorted(chosen):
        here = command.replace("python", sys.executable, 1)
        done = subprocess.run(
            ["bash", "-c", here], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, command + done.stdout[-2000:] + done.stderr[-2000:]
