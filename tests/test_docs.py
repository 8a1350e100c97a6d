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
import tomllib
from pathlib import Path

import jax.numpy as jnp
import pytest
from conftest import users_environment
from jaxtyping import TypeCheckError

import dynamics
from dynamics.__main__ import COMMANDS
from dynamics.runs.command.folder import COMMANDS as RUNS
from dynamics.runs.command.folder import run_main
from dynamics.runs.durable.modules import file_of
from dynamics.theory.deep_linear import lambda_balanced
from dynamics.theory.lazy_to_rich import infinite_width, kernel
from dynamics.tools.command import COMMANDS as TOOLS

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
RUN_ELSEWHERE = "porting.md"  # by test_porting.py
WITH_COMMANDS = [ROOT / "README.md", ROOT / "docs" / "first-steps.md"]  # whose commands run for real
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
    return [name for name in names if not re.match(r"dynamics\.(interop|experiments)\.|.*__main__$", name)]


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != RUN_ELSEWHERE], ids=lambda page: page.name)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    """Blocks of a page share one namespace; ``file=NAME`` blocks become files; ``python NAME ...`` lines run them.

    So do ``dynamics runs`` lines on a run that an earlier line has left.
    ``after=commands`` blocks read what the page's other commands leave: test_commands_run.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    namespace = {"__name__": page.stem}
    for language, options, body, line in blocks(page):
        if language == "python" and "file" in options:
            (tmp_path / options["file"]).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / options["file"]).write_text(body)
        elif language == "python" and "after" not in options:
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
    """Runs ``dynamics runs COMMAND RUN ...`` where there is such a run, but for what goes on until it is stopped."""
    words = command.partition("#")[0].split()
    ends = words[:2] == ["dynamics", "runs"] and len(words) > 3 and words[2] != "serve"
    if ends and (folder / words[3]).is_dir():
        with contextlib.redirect_stdout(io.StringIO()):
            assert run_main(words[2:]) == 0, command


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


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", FENCE.sub("", page.read_text())):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_name_modules_that_exist(page):
    for language, _, body, _ in blocks(page):
        if language == "console":
            for name in re.findall(r"python -m ((?:experiments|dynamics)[\w.]*)", body):
                assert importlib.util.find_spec(name), name
            for words in re.findall(r"(?:^|run |bin/)dynamics (\w.*)", body, re.MULTILINE):
                kind, name, *_ = [*words.partition("#")[0].split(), ""]
                assert kind in COMMANDS, words
                assert kind != "run" or name.endswith(".py") or file_of(f"dynamics.experiments.{name}"), words
                assert kind != "runs" or name in RUNS, words
                assert kind != "tools" or name in TOOLS, words


def test_install_names_every_extra():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    told = re.findall(r"^\| `([\w-]+)` \|", (ROOT / "docs" / "install.md").read_text(), re.MULTILINE)
    assert sorted(told) == sorted(extras)


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: page.name)
def test_commands_run(page, tmp_path, monkeypatch):
    """Every ``dynamics ...`` line, for real, and the blocks that read what it left; ``make`` and ``pip`` aside."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    monkeypatch.chdir(tmp_path)
    ran = 0
    for language, options, body, line in blocks(page):
        if options.get("after") == "commands":
            exec(compile("\n" * line + body, str(page), "exec"), {})
        for command in body.splitlines() if language == "console" else []:
            if not command.startswith("dynamics "):
                continue
            here = command.partition("#")[0].replace("dynamics", f"{sys.executable} -m dynamics", 1)
            done = subprocess.run(["bash", "-c", here], env=environment, capture_output=True, text=True, timeout=600)
            assert done.returncode == 0, command + done.stdout[-2000:] + done.stderr[-2000:]
            ran += 1
    assert ran
