"""Hostile folders, names, command lines, calls and environments: a sentence each, nothing beside the root.

A handful runs always; all of them with ``-m slow``.
"""

import contextlib
import io
import itertools
import json
import os
import pathlib
import shutil
import sqlite3
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics.evolve import ode, simulate
from dynamics.runs import BadInput, RunError, cli, load, open_run, phase_diagram, write_index, write_report
from dynamics.runs.command.folder import run_main
from dynamics.runs.durable.files import pack
from dynamics.runs.durable.journal import Journal, entry_digest, header_text, root
from dynamics.runs.report.export import export
from dynamics.runs.trackers import Tracker, log_record
from dynamics.types import Record

TOY = str(pathlib.Path(__file__).parent / "programs" / "toy.py")
ROOT = pathlib.Path(__file__).parents[1]


def some(cases, quick):
    """All cases where slow tests run; those at ``quick`` always."""
    return [case if i in quick else pytest.param(case, marks=pytest.mark.slow) for i, case in enumerate(cases)]


def said(*argv, name=TOY):
    """Exit code, stdout and stderr of a command; any exception that is no exit fails the test."""
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            code = run_main([*map(str, argv)]) if name is None else cli.main(name, [*map(str, argv)])
        except SystemExit as stopped:
            code = stopped.code
    return int(code or 0), out.getvalue(), errors.getvalue()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder of runs with two finished ones."""
    folder = tmp_path_factory.mktemp("whole")
    with contextlib.chdir(folder):
        for name in ("hostile", "good"):
            assert said("--quiet", "--eta", "0.1", "--seeds", "1", "--name", name)[0] == 0
    return folder / "runs"


def entry(**entries):
    """Entries of a journal of any kind, each with its digest."""

    def harm(run, victim):
        with contextlib.closing(sqlite3.connect(run / "run.sqlite")) as db:
            for key, value in entries.items():
                text = value if isinstance(value, str) and value.startswith("raw:") else json.dumps(value)
                text = text.removeprefix("raw:")
                db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", (key, text, entry_digest(key, text)))
            db.commit()

    return harm


def call(rows=None, **changes):
    """A call of any header and rows, digests and links right."""

    def harm(run, victim):
        with contextlib.closing(Journal(run / "run.sqlite")) as journal:
            header = {**journal.header("decay"), **changes}
            chunk = journal.chunks("decay")[0][0]
            held = chunk.rows if rows is None else rows
            text = header_text(header)
            with journal.transaction():
                journal.db.execute("DELETE FROM chunk")
                journal.db.execute("UPDATE call SET header = ?, digest = ?", (text, entry_digest("decay", text)))
            journal.commit("decay", 0, chunk.step, True, chunk.state, held, root("decay", header))

    return harm


def sql(text):
    def harm(run, victim):
        with contextlib.closing(sqlite3.connect(run / "run.sqlite")) as db:
            db.executescript(text)

    return harm


def in_place(name, make):
    """Something else in place of a file of the run."""

    def harm(run, victim):
        path = run / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        make(path, victim)

    return harm


def link(path, victim):
    path.symlink_to(victim if path.suffix or path.name == "lock" else victim.parent)


def hard(path, victim):
    path.hardlink_to(victim)


def dangling(path, victim):
    path.symlink_to(victim.with_name("nothing"))


def pipe(path, victim):
    os.mkfifo(path)


def folder(path, victim):
    path.mkdir()


def sparse(path, victim):
    with open(path, "wb") as file:
        file.truncate(2**40)


def text(words):
    return lambda path, victim: path.write_bytes(words if isinstance(words, bytes) else words.encode())


FOLDERS = {
    **{f"{key}={value!r:.30}": entry(**{key: value}) for key, value in [
        ("claims", 3), ("claims", [{}]), ("claims", [{"name": 1, "holds": "yes"}]), ("claims", {"a": 1}),
        ("status", [1]), ("status", "no such"), ("status", "\x1b[2Jfinished"), ("config", 3), ("config", [1]),
        ("config", {"eta": "\x1b]0;x\x07"}), ("provenance", 1), ("provenance", {"module": 3}), ("files", 3),
        ("files", {"../../victim.txt": "0"}), ("diverged", [3]), ("diverged", {"decay": {"lanes": "all"}}),
        ("division", {"decay": {"lanes": {"decay": -1}, "devices": 0}}), ("schema", "four"), ("seconds", "long"),
        ("inherited", {"a": 1}), ("config", "raw:" + "[" * 100000),
    ]},
    "rows of text": sql("UPDATE chunk SET rows = 'text'"),
    "numbers of text": sql("UPDATE chunk SET number = 'n' || number"),
    "no state": sql("UPDATE chunk SET state = 3"), "no table": sql("DROP TABLE chunk"),
    "no entries": sql("DELETE FROM meta"), "events of bytes": sql("INSERT INTO event VALUES (x'ff', 3, x'1b5b324a')"),
    "a trigger": sql("CREATE TRIGGER t AFTER INSERT ON meta BEGIN DELETE FROM chunk; END"),
    "an endless view": sql(
        "ALTER TABLE meta RENAME TO held; CREATE VIEW meta AS WITH RECURSIVE n(key, value, digest) AS "
        "(SELECT * FROM held UNION ALL SELECT key, value || 'x', digest FROM n) SELECT * FROM n"
    ),
    "axes of nothing": call(axes=3), "cells of nothing": call(cells="all"),
    "14 TiB": call(axes=[["eta", list(range(10**4))], ["seed", list(range(10**4))], ["third", list(range(10**3))]]),
    "rows elsewhere": call(rows=pack({"x": np.ones(3)})), "cells beyond": call(cells=[7]),
    **{f"{make.__name__} as {name}": in_place(name, make) for name, make in [
        ("lock", link), ("run.sqlite", link), ("config.json", link), ("figure.svg", link), ("checkpoints", link),
        ("pieces", link), ("jobs", link), ("lock", hard),
        ("claims.json", dangling), ("run.sqlite", pipe), ("lock", pipe), ("claims.json", pipe),
        ("run.sqlite", folder), (".x.1.part", folder), (".y.1.part", dangling), ("run.sqlite", sparse),
        ("claims.json", sparse),
    ]},
    "claims of a cut file": in_place("claims.json", text("[{")),
    "config of bytes": in_place("config.json", text(b"\xff")),
}  # fmt: skip
assert len(FOLDERS) >= 48


@pytest.mark.parametrize("kind", some(FOLDERS, {1, 32}))
def test_a_hostile_folder_is_a_sentence_and_stops_nothing(whole, tmp_path, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs, victim = tmp_path / "runs", tmp_path / "outside" / "victim.txt"
    shutil.copytree(whole, runs)
    victim.parent.mkdir()
    victim.write_text("precious")
    run = runs / "toy" / "hostile"
    FOLDERS[kind](run, victim)
    commands = [
        ["list", runs], ["show", run], ["compare", run, runs / "toy" / "good"], ["export", run, tmp_path / "a.npz"],
        ["index", runs], ["gc", runs], ["work", run], ["repeat", run], ["gc", runs, "--delete"],
    ]  # fmt: skip
    for argv in commands:
        code, out, errors = said(*argv, name=None)
        assert code in (0, 2, 4), (argv, errors)
        assert "Traceback" not in errors
        assert "\x1b" not in out + errors
        if argv[0] in ("list", "index"):
            assert code == 0
        if argv[0] == "list":
            assert "finished     1/1 hold" in next(line for line in out.splitlines() if "toy/good" in line)
        if code:
            assert errors.startswith("error: ")
    code, _, errors = said("--quiet", "--eta", "0.1", "--seeds", "1", "--name", "hostile")
    assert code in (0, 4), errors
    assert victim.read_text() == "precious"
    assert [path.name for path in victim.parent.iterdir()] == ["victim.txt"]


NAMES = ["runs#1", "runs?mode=rw", "runs%20", " runs ", "-runs", "ru\x1b[2Jns", "ru\nns", "'runs'", "$(touch made)",
         "run*s",         "r" * 200, "\udcff"]  # fmt: skip


@pytest.mark.parametrize("name", some(NAMES, {0}))
def test_a_folder_of_any_name_is_read_and_nothing_is_made(whole, tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(whole, tmp_path / name)
    run = tmp_path / name / "toy" / "good"
    os.rename(run, run.with_name(name))
    run = run.with_name(name)
    for argv in (
        ["list", tmp_path / name],
        ["show", run],
        ["export", run, tmp_path / "a.npz"],
        ["gc", tmp_path / name],
    ):
        code, out, errors = said(*argv, name=None)
        assert (code, errors) == (0, ""), argv
        assert "\x1b" not in out
    assert "2 runs" in said("list", tmp_path / name, name=None)[1]
    assert said("index", tmp_path / name, name=None)[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["a.npz", name])


NUMBERS = ["nan", "inf", "-inf", "-1", "1e999", "abc", "", "0x10", "1,,2", "lin:1:2", "log:-1:2:3", "None"]
LINES = [
    *[[f"--{flag}", value] for flag in ("eta", "curvature", "steps", "width", "seed", "seeds") for value in NUMBERS
      if (flag, value) not in {("curvature", "None")}],
    *[[f"--{flag}="] for flag in ("eta", "curvature", "steps", "width", "seed", "seeds", "start", "name", "out",
                                  "preset", "device", "fork", "workers", "cluster", "track", "show")],
    *[["--name", name] for name in ("..", ".", "a/b", "/", "a b", "~", "-x", "a\0b", "é", "x" * 101)],
    *[["--device", device] for device in ("cpu:-1", "cpu:99", "gpu:x", "abacus", "cpu:", ":0", "cpu:0:0", "CPU")],
    *[["--out", out] for out in ("", " ", "a\0b", "\0")],
    *[["--workers", count] for count in ("0", "-1", "1.5", "many", "")],
    *[["--cluster", where] for where in ("foo", "slurm:x", "local:a=b=c,d", "", "pbs")],
    *[["--sweep", spec] for spec in ("width", "width=", "=1", "width=a", "nothing=1", "eta=0.1", "seeds=1,2",
                                     "width=1,1", "width=1,99", "seed=5:5", "curvature=log:0:1:3", "seed=0:99999999")],
    ["--sweep"], ["--resume"], ["--resume", "--name", "nothere"], ["--fork", "a"], ["--fork", "a", "--name", "a"],
    ["--fork", "b", "--name", "nothere"], ["--eta", ".1", "--eta", ".2"], ["--name", "a", "--name=b"],
    ["--quiet", "--quiet"],
    ["--preset", "huge"], ["--preset"], ["--start", "three"], ["--nonsense"], ["stray"], ["--show", "x"],
    ["--track", "paper"], ["--json", "x"], ["--eta"], ["--x64=maybe"],
    ["--sweep", "width=1,2", "--resume", "--name", "a"],
    ["--resume", "--resume"], ["--fork"], ["--steps", str(2**31)], ["--width", "65"], ["--"],
]  # fmt: skip
LINES = [line for line in LINES if line != ["--"]]
OTHERS = [
    ("experiments", ["--json", "x"]), ("experiments", ["stray"]), ("experiments.grokking", ["nothere"]),
    ("nothere.py", []), ("experiments.nothere", []), ("experiments.grokking.nothere", []), ("os.path.x", []),
    ("json", []), (None, ["list", "nothere"]), (None, ["gc", "/proc/self/maps"]), (None, ["gc", "nothere"]),
    (None, ["index", "nothere"]), (None, ["completion", "fish"]), (None, ["nonsense"]), (None, []),
    (None, ["list", "a\0b"]),
    (None, ["export", "nothere", "a.pkl"]), (None, ["gc", "--keep"]), (None, ["show"]), (None, ["compare", "a"]),
]  # fmt: skip
assert len(LINES) + len(OTHERS) >= 154, len(LINES) + len(OTHERS)


@pytest.mark.parametrize("part", some(range(16), {0}))
def test_a_command_line_of_nonsense_exits_2_with_no_file_made(part, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cases = [(TOY, line) for line in LINES] + OTHERS
    for name, line in cases[part::16]:
        code, _, errors = said(*line, name=name)
        assert code == 2, (name, line, code, errors)
        assert errors.strip(), (name, line)
        assert not list(tmp_path.iterdir()), (name, line)


def motion(x=1.0):
    return ode(lambda x, data: -x, 0.1), jnp.asarray(x), None


def opened(path="here", **more):
    with open_run(path, more.pop("config", {}), **more):
        pass


def simulated(**more):
    """A call of the durable loop that must be refused; the run itself lies elsewhere."""

    def go():
        import tempfile

        with tempfile.TemporaryDirectory() as place, open_run(f"{place}/run", {}) as held:
            held.simulate(*more.pop("of", motion()), **{"steps": 3, **more})

    return go


def studied(axes, **more):
    def go():
        import tempfile

        asked = dict(draw=lambda lane: jnp.ones(()), make=lambda lane: motion()[0], data=jnp.zeros(()), steps=2)
        with tempfile.TemporaryDirectory() as place, open_run(f"{place}/run", {}) as held:
            held.study(axes, **{**asked, **more})

    return go


RECORD = Record(np.array([0, 1]), np.array([0.0, 1.0]), {"x": np.ones((2, 3))}, {"eta": [1, 2, 3]})
CALLS = [
    *[lambda path=path: opened(path) for path in ("", " ", "a\0b", None, 3, b"bytes")],
    *[lambda config=config: opened(config=config) for config in (None, 3, "text", [1], (1, 2), {1}, object())],
    *[lambda workers=workers: opened(workers=workers) for workers in (0, -1, 1.5, "two", None, True, float("nan"))],
    lambda: opened(fork_of="nothere"), lambda: opened(fork_of=""), lambda: opened(nonsense=1, config=3),
    *[simulated(steps=steps) for steps in (-1, 1.5, None, "ten", 2**31, float("nan"), [1])],
    *[simulated(record_at=at) for at in ([-1], [5], [1, 1], [2, 1], [0.5], "all", [[0]], [float("nan")])],
    *[simulated(train=read) for read in (3, "loss", [None], lambda: {}, lambda x, data: 3,
                                            lambda x, data: {"step": x})],
    *[simulated(key=key) for key in (3, "key", np.zeros(2), jax.random.PRNGKey(0)[:1])],
    simulated(of=(3, jnp.ones(()), None)), simulated(of=(None, None, None)), simulated(stop=3), simulated(nonsense=1),
    *[studied(axes) for axes in ({"eta": []}, {"eta": 3}, {"eta": "abc"}, [1], 3, None, {"step": [1]}, {"a b": [1]})],
    studied({"eta": [1]}, loop=("nothere",)), studied({"eta": [1]}, draw=lambda lane: (1, 2, 3), data=None),
    studied({"eta": [1]}, make=lambda lane: 3), studied({"eta": [1]}, read=3), studied({"eta": [1]}, steps="ten"),
    *[lambda path=path: load(path) for path in ("nothere", "", "a\0b", "/dev/null")],
    lambda: export(pathlib.Path("nothere"), pathlib.Path("a.npz")),
    lambda: export(pathlib.Path("x"), pathlib.Path("a.x")),
    lambda: write_index(pathlib.Path("nothere")), lambda: write_report(pathlib.Path("nothere")),
    lambda: phase_diagram(RECORD, "nothere"), lambda: phase_diagram(RECORD._replace(axes={}), "x"),
    lambda: RECORD.at(eta=9), lambda: RECORD.mean("nothere"), lambda: cli.main("", []), lambda: cli.main("nothere", []),
]  # fmt: skip
assert len(CALLS) >= 70, len(CALLS)


@pytest.mark.parametrize("part", some(range(8), {0}))
def test_a_call_of_nonsense_is_refused_with_no_file_made(part, tmp_path, monkeypatch, as_users_meet_it):
    monkeypatch.chdir(tmp_path)
    for number in range(part, len(CALLS), 8):
        try:
            CALLS[number]()
        except SystemExit as stopped:
            found = stopped.code == 2
        except (ValueError, TypeError, LookupError, RunError) as refused:
            found = len(str(refused)) > 0
        else:
            found = False
        assert found, f"call {number} was accepted"
        assert not list(tmp_path.iterdir()), number


COMMANDS = {
    "list": "-m dynamics.runs list runs", "help": f"{TOY} --help",
    "run": f"{TOY} --quiet --eta 0.1 --seeds 1 --name good",
}  # fmt: skip
PLACES = {
    "stdout closed": ("{} >&-", {}), "stderr closed": ("{} 2>&-", {}), "all closed": ("{} <&- >&- 2>&-", {}),
    "stdout full": ("{} >/dev/full", {}), "stderr full": ("{} 2>/dev/full", {}), "no reader": ("{} | true", {}),
    "no HOME": ("env -u HOME {}", {}), "unknown user": ("{}", {"HOME": ""}), "C locale": ("{}", {"LC_ALL": "C"}),
    "ascii": ("{}", {"PYTHONIOENCODING": "ascii"}), "no columns": ("{}", {"COLUMNS": "0", "TERM": "dumb"}),
    "few addresses": ("ulimit -v 2000000; {}", {}), "cache is a file": ("{}", {"XDG_CACHE_HOME": "/dev/null"}),
    "no such platform": ("{}", {"JAX_PLATFORMS": "abacus"}), "folder gone": ("mkdir x; cd x; rmdir ../x; {}", {}),
    "unwritable": ("chmod -R a-w runs; {}", {}),
}  # fmt: skip


@pytest.mark.parametrize("case", some(itertools.product(PLACES, COMMANDS), {0}))
def test_any_environment_is_met_without_a_traceback(whole, tmp_path, case):
    place, command = case
    shutil.copytree(whole, tmp_path / "runs")
    line, more = PLACES[place]
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "JAX_PLATFORMS": "cpu", **more}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    words = line.format(f"{sys.executable} {COMMANDS[command]}")
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {words}"], cwd=tmp_path, env=environment, capture_output=True, text=True,
        errors="replace", timeout=120,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    assert "Exception ignored" not in done.stderr, done.stderr
    expected = {("stdout full", "list"): {1}, ("stdout full", "help"): {1}, ("few addresses", "run"): {4}}
    expected |= {("folder gone", name): {4} for name in COMMANDS} | {("no such platform", "run"): {2}}
    assert done.returncode in expected.get(case, {0}), (case, done.returncode, done.stderr)


def test_nothing_that_a_folder_names_is_run_without_the_users_word(whole, tmp_path, monkeypatch):
    """``work`` and ``repeat`` refuse a module outside the current folder, and name the flag."""
    evil = tmp_path / "elsewhere" / "evil.py"
    evil.parent.mkdir()
    evil.write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    runs, here = tmp_path / "runs", tmp_path / "here"
    shutil.copytree(whole, runs)
    here.mkdir()
    monkeypatch.chdir(here)
    run = runs / "toy" / "hostile"
    known = load(run).provenance
    for status, argv in (("running", ["work", run]), ("finished", ["repeat", run])):
        entry(provenance={**known, "module": str(evil)}, status=status)(run, None)
        code, _, errors = said(*argv, name=None)
        assert (code, "outside the current folder; if you trust it, add --trust" in errors) == (4, True)
        assert not (tmp_path / "executed").exists()
    assert said("show", run, name=None)[0] == 0
    assert not (tmp_path / "executed").exists()


def test_the_line_that_resumes_can_be_pasted(tmp_path, monkeypatch):
    """With precision and device, and every word quoted."""
    from dynamics.runs import Interrupted
    from dynamics.runs.command import experiment

    def stop(*given, **more):
        raise Interrupted("interrupted")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(experiment, "execute", stop)
    monkeypatch.setattr(experiment, "set_up_jax", lambda *given: None)
    monkeypatch.setattr("sys.orig_argv", [".venv/bin/python", "-X", "dev", TOY, "--more"])
    monkeypatch.setattr("sys.argv", [TOY, "--more"])
    code, _, errors = said("--out", "my runs", "--name", "a", "--x64", "--device", "cpu:0")
    line = errors.splitlines()[-1]
    assert (code, line) == (
        3,
        f"resume with: .venv/bin/python -X dev {TOY} --out 'my runs' --name a --resume --x64 --device cpu:0",
    )


def test_a_tracker_and_a_log_of_nonsense(tmp_path):
    with pytest.raises((AttributeError, TypeError)):
        log_record(None, RECORD)
    sent = []
    log_record(Tracker(lambda *given: sent.append(given), lambda: None), RECORD._replace(values={}))
    assert not sent
    simulate(*motion(), steps=0)
    with pytest.raises(BadInput, match="path: got ''"):
        opened("")
