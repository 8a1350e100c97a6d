"""What another program, machine, hand or moment does to a run: the same bits, or one sentence; never other numbers.

All of it with ``-m slow``, a handful always.
"""

import contextlib
import io
import json
import os
import pathlib
import random
import shutil
import signal
import sqlite3
import subprocess
import sys

import jax
import numpy as np
import pytest

from dynamics.runs import Unusable, cli, load
from dynamics.runs.durable import provenance
from dynamics.runs.durable.journal import Journal, entry_digest, header_text
from dynamics.runs.durable.run import open_run
from dynamics.runs.sweep.module import module_named

ROOT = pathlib.Path(__file__).parents[1]
TOY = pathlib.Path(__file__).parent / "programs" / "toy.py"

MINE = '''"""Mine: descent with constants."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from dynamics import config
from dynamics.evolve import descent, study
from dynamics.losses import half_mse
from dynamics.types import Batch, Claim, Objective

GAIN = 1.0
SHIFT = jnp.arange(2.0)[:, None]


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    steps: int = 12
    """updates"""


def apply(w, x):
    return jnp.tanh(GAIN * x @ (w + SHIFT / 10))


def read(w, batch):
    return {"size": jnp.sum(w**2)}


def run(config, study=study):
    x = jax.random.normal(jax.random.key(3), (6, 2))
    L = Objective(apply, lambda f, y: half_mse(f, y))
    return study(
        {"eta": [0.1, 0.2]},
        draw=lambda lane: 0.5 * jnp.ones((2, 1)),
        make=lambda lane: descent(L, optax.sgd(lane.eta, momentum=0.9), batch_size=4),
        read=[read],
        steps=config.steps,
        record_at=[0, 4, 12],
        data=Batch(x, jnp.ones((6, 1))),
        label="mine",
    )


def claims(record):
    return [Claim.at_most("size", "", float(record.values["size"][-1, 0]), 100.0)]


def figure(record):
    from dynamics.runs.figures import new_figure

    return new_figure()[0]


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__file__)
'''

CODE = {
    "a constant": ("GAIN = 1.0", "GAIN = 3.0"), "batch size": ("batch_size=4", "batch_size=5"),
    "momentum": ("momentum=0.9", "momentum=0.8"),
    "optimiser": ("optax.sgd(lane.eta, momentum=0.9)", "optax.adam(lane.eta)"),
    "activation": ("jnp.tanh(", "jnp.sin("), "captured array": ("SHIFT / 10", "SHIFT / 11"),
    "loss": ("half_mse(f,", "2 * half_mse(f,"), "readout": ("jnp.sum(w**2)", "jnp.sum(w**4)"),
    "start": ("0.5 * jnp.ones", "0.6 * jnp.ones"), "data": ("key(3)", "key(4)"),
    "recorded": ("[0, 4, 12]", "[0, 5, 12]"),
    "an axis": ("[0.1, 0.2]", "[0.1, 0.3]"), "claims": ("100.0", "0.0"),
}  # fmt: skip
FLAGS = {
    "threefry": ("jax_threefry_partitionable", False), "precision": ("jax_default_matmul_precision", "float32"),
    "generator": ("jax_default_prng_impl", "rbg"), "x64": ("jax_enable_x64", True),
}  # fmt: skip
VERSIONS = ("dynamics", "jax", "optax", "numpy")


def said(file, *argv):
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors), pytest.raises(SystemExit) as stopped:
        cli.main(str(file), [*map(str, argv)])
    return int(stopped.value.code or 0), errors.getvalue()


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A program, and its run that was interrupted after its last commit."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "mine.py").write_text(MINE)
    with contextlib.chdir(folder):
        assert said("mine.py", "--quiet", "--name", "a")[0] == 0
        with contextlib.closing(Journal(folder / "runs" / "mine" / "a" / "run.sqlite")) as journal:
            journal.set(status="interrupted")
    return folder


def some(cases, quick):
    return [case if case in quick else pytest.param(case, marks=pytest.mark.slow) for case in cases]


@pytest.fixture
def here(begun, tmp_path, monkeypatch):
    shutil.copytree(begun, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    provenance.sources.cache_clear()
    return tmp_path / "here"


def test_an_unchanged_program_goes_on_in_silence_and_a_comment_is_no_change(here):
    assert said("mine.py", "--quiet", "--name", "a") == (0, "")
    (here / "mine.py").write_text("\n# a comment\n" + MINE)
    code, errors = said("mine.py", "--quiet", "--name", "a")
    assert (code, "the source of its experiment has changed since; its claims are those of then" in errors) == (0, True)


@pytest.mark.parametrize("change", some(CODE, {"a constant"}))
def test_a_changed_program_does_not_go_on(here, change):
    """It is refused with what differs; what no number of the curves hangs on is said; a fork goes on."""
    (here / "mine.py").write_text(MINE.replace(*CODE[change]))
    code, errors = said("mine.py", "--quiet", "--name", "a")
    if change == "claims":
        assert (code, "has changed since; it goes on where its program is the same" in errors) == (5, True)
        return
    words = {"readout": "readout", "start": "start", "data": "start",
             "recorded": "recorded",
             "an axis": "axis"}.get(change, "update step")  # fmt: skip
    assert (code, "'mine' was begun with another" in errors, words in errors) == (4, True, True), errors
    code, errors = said("mine.py", "--quiet", "--name", "a", "--fork", "b")
    assert code == 0, errors


@pytest.mark.parametrize("flag", some(FLAGS, ()))
def test_another_flag_of_jax_does_not_go_on(here, flag):
    name, value = FLAGS[flag]
    before = getattr(jax.config, name)
    try:
        jax.config.update(name, value)
        code, errors = said("mine.py", "--quiet", "--name", "a")
    finally:
        jax.config.update(name, before)
    assert (code, "begun with " in errors) == (4, True), errors


@pytest.mark.parametrize("package", some(VERSIONS, ()))
def test_another_version_is_said(here, package):
    with contextlib.closing(Journal(here / "runs" / "mine" / "a" / "run.sqlite")) as journal:
        journal.set(provenance={**journal.get("provenance"), package: "0.0.1"})
    code, errors = said("mine.py", "--quiet", "--name", "a")
    assert (code, f"{package} was '0.0.1' and is" in errors) == (0, True)


@pytest.mark.slow
def test_a_sweep_takes_no_cell_of_another_program(here):
    """Also where that cell is finished: its calls are traced again."""
    flags = ("--quiet", "--name", "s", "--sweep", "steps=12,13")
    assert said("mine.py", *flags)[0] == 0
    with contextlib.closing(Journal(here / "runs" / "mine" / "s" / "run.sqlite")) as journal:
        journal.set(status="interrupted")
    shutil.rmtree(here / "runs" / "mine" / "s" / "cells" / "000001")
    (here / "mine.py").write_text(MINE.replace("GAIN = 1.0", "GAIN = 3.0"))
    code, errors = said("mine.py", *flags)
    assert (code, "'mine' was begun with another update step" in errors) == (4, True)


@pytest.mark.slow
def test_repeat_runs_again_each_time(here):
    """A twin of before is no answer after the program has changed; a folder that is none is left alone."""
    from dynamics.runs.command.folder import run_main

    run = here / "runs" / "mine" / "r"
    assert said("mine.py", "--quiet", "--name", "r")[0] == 0
    assert run_main(["repeat", str(run)]) == 0
    (here / "mine.py").write_text(MINE.replace("GAIN = 1.0", "GAIN = 3.0"))
    assert run_main(["repeat", str(run)]) == 5
    (here / "mine.py").write_text(MINE)
    shutil.rmtree(run.with_name("r.repeat"))
    shutil.copytree(run, run.with_name("r.repeat"))
    assert run_main(["repeat", str(run)]) == 4


# ---- pieces of a study: damaged, swapped, of another study

toy = module_named(str(TOY))
SETTINGS = dict(eta=(0.1, 0.2, 0.3), seeds=2, steps=20)


def pieces_run(path, **more):
    with open_run(path, {}, workers=3) as held:
        return toy.run(toy.Config(**{**SETTINGS, **more}), held.study).records["decay"]


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """A study in three pieces, and one of another curvature, start and shape."""
    folder = tmp_path_factory.mktemp("studies")
    pieces_run(folder / "one")
    pieces_run(folder / "other", curvature=2.0, start="two")
    for run in ("one", "other"):
        with contextlib.closing(Journal(folder / run / "run.sqlite")) as journal:
            journal.truncate("decay", 0)
    return folder


def place(run, number):
    (study,) = (run / "pieces").iterdir()
    return study / f"{number:05d}"


def harmed(chance, one, other, kind):
    mine, theirs = place(one, chance.randrange(3)), place(other, chance.randrange(3))
    if kind == "foreign":
        shutil.rmtree(mine)
        shutil.copytree(theirs, mine)
    elif kind == "swapped":
        first, second = place(one, 0), place(one, 1)
        os.rename(first, one / "aside")
        os.rename(second, first)
        os.rename(one / "aside", second)
    elif kind == "half foreign":
        part = chance.choice(["run.sqlite", "config.json", "checkpoints"])
        shutil.rmtree(mine / part) if part == "checkpoints" else (mine / part).unlink()
        (shutil.copytree if part == "checkpoints" else shutil.copy)(theirs / part, mine / part)
    elif kind == "foreign rows":
        with contextlib.closing(sqlite3.connect(mine / "run.sqlite")) as db:
            db.execute("ATTACH ? AS their", [str(theirs / "run.sqlite")])
            db.execute("DELETE FROM chunk")
            db.execute("INSERT INTO chunk SELECT * FROM their.chunk")
            db.commit()
    elif kind == "forged":  # rows of the other, under a header and links of its own
        with contextlib.closing(Journal(mine / "run.sqlite")) as journal:
            label = journal.labels()[0]
            header = {**journal.header(label), "inputs": "0" * 64}
            text = header_text(header)
            with journal.transaction():
                journal.db.execute("UPDATE call SET header = ?, digest = ?", (text, entry_digest(label, text)))
    else:
        files = sorted(file for file in mine.rglob("*") if file.is_file() and file.stat().st_size)
        file = chance.choice(files)
        data = bytearray(file.read_bytes())
        if kind == "bit":
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        else:
            del data[chance.randrange(len(data)) :]
        file.write_bytes(data)


KINDS = ("foreign", "swapped", "half foreign", "foreign rows", "forged", "bit", "cut", "bit")


@pytest.mark.parametrize("trial", [0, *(pytest.param(trial, marks=pytest.mark.slow) for trial in range(1, 40))])
def test_a_damaged_or_foreign_piece_is_found_or_computed_again(studies, tmp_path, trial):
    chance = random.Random(trial)
    shutil.copytree(studies / "one", tmp_path / "one")
    harmed(chance, tmp_path / "one", studies / "other", KINDS[trial % len(KINDS)])
    expected = toy.run(toy.Config(**SETTINGS)).records["decay"].values
    try:
        found = pieces_run(tmp_path / "one").values
    except Unusable:
        return
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


# ---- moments: two at once, and kills


def started(*argv, folder, **more):
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path, **more}
    return subprocess.Popen(
        [sys.executable, *map(str, argv)], cwd=folder, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip


FULL = (TOY, "--quiet", "--eta", "0.1", "0.2", "--seeds", "4", "--steps", "300000", "--name")


@pytest.mark.slow
def test_of_two_that_begin_at_once_one_wins(tmp_path):
    both = [started(*FULL, "a", folder=tmp_path, TOY_SLOW="2") for _ in range(2)]
    told = [process.communicate(timeout=120)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 4], told
    assert any("is in use by PID" in text for text in told)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The run, its fork, and what they hold when nothing is killed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    for words in ((*FULL, "a"), (*FULL, "w", "--workers", "2"), (*FULL[:-2], "450000", "--name", "a", "--fork", "f")):
        process = started(*words, folder=folder)
        errors = process.communicate(timeout=120)[1]
        assert process.returncode in (0, 5), errors  # the fork lacks steps that its source did not record
    return folder / "runs" / "toy"


def same(run, other):
    for label, record in load(other).records.items():
        for name, value in record.values.items():
            np.testing.assert_array_equal(load(run).records[label].values[name], value)


KILLED = ("run", "workers", "fork", "gc", "repeat", "export")


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(50))
def test_a_kill_at_any_moment_leaves_what_can_go_on(undisturbed, tmp_path, trial):
    chance, kind = random.Random(trial), KILLED[trial % len(KILLED)]
    runs = tmp_path / "runs" / "toy"
    runs.mkdir(parents=True)
    if kind not in ("run", "workers"):
        shutil.copytree(undisturbed / "a", runs / "a")
    words, name = {
        "run": ((*FULL, "a"), "a"), "workers": ((*FULL, "w", "--workers", "2"), "w"),
        "fork": ((*FULL[:-2], "450000", "--name", "a", "--fork", "f"), "f"),
        "gc": (("-m", "dynamics.runs", "gc", "runs", "--delete"), None),
        "repeat": (("-m", "dynamics.runs", "repeat", "runs/toy/a", "--trust"), None),
        "export": (("-m", "dynamics.runs", "export", "runs/toy/a", "runs/a.npz"), None),
    }[kind]  # fmt: skip
    process = started(*words, folder=tmp_path)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=chance.uniform(0.1, {"gc": 0.4, "export": 2.0}.get(kind, 5.0)))
    with contextlib.suppress(ProcessLookupError):  # its workers with it, as an out-of-memory kill of the group does
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    for _ in range(2 if name is None else 1):
        again = started(*words, folder=tmp_path)
        out, errors = again.communicate(timeout=120)
        assert again.returncode == 0 or (kind, again.returncode) == ("fork", 5), errors
    if name is not None:
        same(runs / name, undisturbed / name)
    if (runs / "a").exists() and kind != "run":
        same(runs / "a", undisturbed / "a")
    assert kind != "repeat" or "the same bits" in out
    tidied = started("-m", "dynamics.runs", "gc", "runs", "--delete", folder=tmp_path)
    assert tidied.wait() == 0
    left = [path for path in (tmp_path / "runs").rglob("*") if path.name.endswith((".part", ".ckpt", "-journal"))]
    assert not left
    assert json.loads((runs / (name or "a") / "claims.json").read_text())
