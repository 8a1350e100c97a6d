"""One command, ``dynamics``; experiments are the same under each of their names; misspelt ones get a suggestion."""

import importlib
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

import dynamics
from dynamics.__main__ import COMMANDS, command
from dynamics.experiments.depth import length
from dynamics.runs import load, open_run
from dynamics.runs.command import completion, dispatch, experiment
from dynamics.runs.command.ending import ended, started
from dynamics.runs.durable.modules import EXPERIMENTS, file_of, own_name
from dynamics.runs.durable.provenance import code_digest
from dynamics.runs.sweep.module import module_of
from dynamics.tools.command import COMMANDS as TOOLS

ROOT = pathlib.Path(__file__).parents[1]
TOY = ROOT / "tests" / "programs" / "toy.py"


def said(capsys, *argv):
    """Exit code, stdout and stderr of ``dynamics ARGV``."""
    return ended(lambda: command(list(map(str, argv)), "dynamics")), *capsys.readouterr()


def python(*argv, folder=ROOT):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, *map(str, argv)]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_the_command_lists_its_commands_and_answers_for_each(capsys):
    code, out, _ = said(capsys)
    assert (code, all(f"  {name} " in out for name in COMMANDS)) == (0, True)
    assert said(capsys, "--version")[1] == f"dynamics {dynamics.__version__}\n"
    for name in COMMANDS:
        code, out, _ = said(capsys, name, "--help")
        assert (code, f"dynamics {name if name != 'experiments' else 'run'} " in out) == (0, True), name
    code, out, _ = said(capsys, "experiments")
    assert (code, "dynamics run FAMILY.PAPER runs one" in out, "* grokking.lazy_to_rich" in out) == (0, True, True)
    assert "usage: dynamics runs show" in said(capsys, "runs", "show", "--help")[1]
    assert "usage: dynamics tools coordinate-check" in said(capsys, "tools", "coordinate-check", "--help")[1]


def test_completion_knows_every_command():
    script = completion._SCRIPT
    assert f'words="{" ".join(COMMANDS)}"' in script
    assert f'words="{" ".join(TOOLS)}"' in script


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["rum"], ("got 'rum'", "did you mean run?")),
        (["run", "groking.lazy"], ("got 'groking.lazy'", "did you mean grokking.lazy_to_rich")),
        (["run", "grokin"], ("did you mean grokking?",)),
        (["run", "lazy_to_rich"], ("did you mean grokking.lazy_to_rich?",)),
        (["run", "depth", "lenght"], ("got 'lenght'", "did you mean length?")),
        (["run", "zzz"], ("got 'zzz'", "allowed: a name of `dynamics experiments`")),
        (["run", "depth..length"], ("got 'depth..length'",)),
        (["run", "nothere.py"], ("got 'nothere.py'", "a Python file")),
        (["tools", "coordinate"], ("did you mean coordinate-check?",)),
    ],
)
def test_a_misspelt_name_gets_a_suggestion(capsys, tmp_path, monkeypatch, argv, words):
    monkeypatch.chdir(tmp_path)
    code, _, errors = said(capsys, *argv)
    assert (code, errors.count("\n")) == (2, 1)
    for word in words:
        assert word in errors


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("experiments.grokin", "grokking?"),
        ("experiments.grokking.lazy_to_rihc", "grokking.lazy_to_rich"),
        ("dynamics.experiments.grokin", "grokking?"),
    ],
)
def test_python_m_of_a_misspelt_module_gets_one_too(name, meant):
    code, _, errors = python("-m", name)
    assert (code, errors.count("\n"), f"got '{name}'" in errors, meant in errors) == (2, 1, True, True)


@pytest.mark.parametrize(
    ("argv", "module", "prog"),
    [
        (["run", "depth.length"], "depth.length", "dynamics run depth.length"),
        (["run", "depth", "length"], "depth.length", "dynamics run depth.length"),
        (["run", "depth"], "depth.over_n", "dynamics run depth.over_n"),
        (["run", "experiments.depth.spectral-bias"], "depth.spectral_bias", "dynamics run depth.spectral_bias"),
        (["run", "dynamics.experiments.depth"], "depth.over_n", "dynamics run depth.over_n"),
        ("experiments.depth.length", "depth.length", "python -m experiments.depth.length"),
        ("dynamics.experiments.depth.length", "depth.length", "python -m dynamics.experiments.depth.length"),
        ("dynamics.experiments.depth", "depth.over_n", "python -m dynamics.experiments.depth.over_n"),
    ],
)
def test_every_way_of_naming_an_experiment_runs_the_same_module(capsys, monkeypatch, argv, module, prog):
    met = []
    monkeypatch.setattr(experiment, "run_experiment", lambda name, argv, prog, others: met.append((name, prog)) or 0)
    code = dispatch.dispatch(argv, []) if isinstance(argv, str) else said(capsys, *argv, "--seeds", 2)[0]
    assert (code, met) == (0, [(f"{EXPERIMENTS}.{module}", prog)])


def test_a_file_of_ones_own_runs_by_the_command(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert said(capsys, "run", TOY, "--name", "a", "--quiet")[0] == 0
    about = load(tmp_path / "runs" / "toy" / "a").provenance
    assert (about["command"][:3], about["module"]) == (["dynamics", "run", str(TOY)], str(TOY))


def test_a_file_finds_what_lies_beside_it(capsys, tmp_path, monkeypatch):
    """As with ``python FILE``; but nothing of a folder is taken in place of what is installed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "beside_it.py").write_text("WIDTH = 3\n")
    (tmp_path / "mine" / "tqdm.py").write_text("raise AssertionError('taken for tqdm')\n")
    (tmp_path / "mine" / "one.py").write_text("from beside_it import WIDTH\nassert WIDTH == 3\n" + TOY.read_text())
    assert said(capsys, "run", "mine/one.py", "--name", "a", "--quiet")[0] == 0


def test_a_module_of_the_current_folder_is_repeated_by_the_command(tmp_path):
    """A console command's path has no current folder: it comes last, so that nothing there is taken for a library."""
    (tmp_path / "lab" / "toys").mkdir(parents=True)
    (tmp_path / "lab" / "toys" / "toy.py").write_text(TOY.read_text().replace("main(__file__)", "main(__spec__.name)"))
    code, _, errors = python("-m", "lab.toys.toy", "--name", "a", "--quiet", folder=tmp_path)
    assert code == 0, errors
    assert load(tmp_path / "runs" / "toys.toy" / "a").provenance["module"] == "lab.toys.toy"
    (tmp_path / "tqdm.py").write_text("raise AssertionError('taken for tqdm')\n")
    console = "from dynamics.__main__ import main; main()"
    code, out, errors = python("-P", "-c", console, "runs", "repeat", "runs/toys.toy/a", folder=tmp_path)
    assert (code, "the same bits" in out) == (0, True), errors


def test_a_run_is_the_same_whatever_it_was_started_as(tmp_path):
    """Begun by one name, it goes on under another; an earlier version's, stored as ``experiments``, too."""
    flags = ["--seeds", 2, "--quiet", "--name", "a"]
    code, _, errors = python("-m", "experiments.depth.length", *flags, folder=tmp_path)
    assert code == 0, errors
    path = tmp_path / "runs" / "depth.length" / "a"
    about = load(path).provenance
    assert (about["experiment"], about["module"]) == ("depth.length", f"{EXPERIMENTS}.depth.length")
    code, out, errors = python("-m", "dynamics", "run", "depth.length", *flags[:2], *flags[3:], folder=tmp_path)
    assert (code, "already finished before" in out, errors) == (0, True, "")
    old = {**about, "module": "experiments.depth.length"}
    assert code_digest(old["module"]) == about["code"]
    assert module_of(path, old, False)[0] is length


def test_both_names_are_the_same_program(tmp_path):
    """What a checkout's ``experiments`` began, ``dynamics.experiments`` goes on with: its name is no part of it."""
    small = dict(seeds=2, nets=20, width=(8,), depth=(1, 2))
    config, old = length.Config(**small), importlib.import_module("experiments.depth.length")
    assert old is not length
    begun, gone_on = [], []
    for module, records in ((old, begun), (length, gone_on)):
        with open_run(tmp_path / "a", config) as run:
            records.append(module.run(module.Config(**small), run.study).records)
            calls = run.journal.labels()
    assert calls
    for mine, theirs in zip(jax.tree.leaves(begun), jax.tree.leaves(gone_on), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_users_own_package_experiments_stays_his(tmp_path, monkeypatch):
    """Names that only he has are his, the rest ours; nothing of his is imported to find out."""
    (tmp_path / "experiments" / "mine").mkdir(parents=True)
    for folder in ("experiments", "experiments/mine"):
        (tmp_path / folder / "__init__.py").write_text("raise AssertionError('imported')\n")
    (tmp_path / "experiments" / "mine" / "paper.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert own_name("experiments.mine.paper") == "experiments.mine.paper"
    assert own_name("experiments.depth.length") == f"{EXPERIMENTS}.depth.length"


@pytest.mark.parametrize("part", ["", "..", "/etc/passwd", "a/../../tests", "grokking.", "depth.length.x"])
def test_names_lead_nowhere_else(part):
    assert file_of(f"{EXPERIMENTS}.{part}") is None


@pytest.mark.parametrize(
    ("typed", "argv", "prog", "again"),
    [
        ([".venv/bin/python", "-m", "experiments.depth", "--x64"], ["/x/depth.py", "--x64"],
         "python -m experiments.depth", ".venv/bin/python -m experiments.depth"),
        (["python", "-X", "dev", "a.py"], ["a.py"], "python a.py", "python -X dev a.py"),
        (["/v/python", "/v/dynamics", "run", "depth"], ["/v/dynamics", "run", "depth"], "dynamics run depth",
         "/v/dynamics run depth"),
        (["/v/python", "-c", "..."], ["-c"], "dynamics run depth", "dynamics run depth"),
        (["/v/python", "-c", "..."], ["-c"], "python -m a", "/v/python -m a"),
    ],
)  # fmt: skip
def test_the_line_that_resumes_begins_as_the_command_did(monkeypatch, typed, argv, prog, again):
    monkeypatch.setattr(sys, "orig_argv", typed)
    monkeypatch.setattr(sys, "argv", argv)
    assert " ".join(started(prog)) == again


def test_a_command_on_the_path_is_named_as_typed(tmp_path, monkeypatch):
    file = tmp_path / "dynamics"
    file.write_text("#!/bin/sh\n")
    file.chmod(0o755)
    monkeypatch.setattr(sys, "argv", [str(file), "run"])
    monkeypatch.setenv("PATH", str(tmp_path))
    assert started("dynamics run depth") == ["dynamics", "run", "depth"]
    monkeypatch.setenv("PATH", "/nowhere")
    assert started("dynamics run depth") == [str(file), "run", "depth"]


def test_the_gallery_as_json_names_importable_modules(capsys):
    code, out, _ = said(capsys, "experiments", "--json")
    assert code == 0
    assert all(entry["module"].startswith(f"{EXPERIMENTS}.") for entry in json.loads(out))
