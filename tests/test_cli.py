"""The command line: exit codes, messages that name field, value and range, and no files where nothing may be made."""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
from typing import Annotated, Literal

import jax.numpy as jnp
import pytest

from dynamics import config
from dynamics.config import Count, Positive
from dynamics.evolve import ode
from dynamics.extras import MissingExtra, missing
from dynamics.runs import cli, load, open_run
from dynamics.runs.command import experiment
from dynamics.runs.command.discover import flagship, gallery
from dynamics.runs.command.dispatch import dispatch
from dynamics.runs.command.flags import parse
from dynamics.runs.command.folder import run_main
from dynamics.runs.command.gallery import listing
from dynamics.runs.durable.lock import Lock
from dynamics.runs.durable.run import default_name
from dynamics.runs.report.listing import listed
from dynamics.runs.sweep import specs

ROOT = pathlib.Path(__file__).parents[1]
TOY = str(pathlib.Path(__file__).parent / "programs" / "toy.py")


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs a command line in an empty folder; gives exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*argv, name=TOY):
        with pytest.raises(SystemExit) as stopped:
            cli.main(name, list(argv))
        return int(stopped.value.code or 0), *capsys.readouterr()

    return run


def test_a_run_leaves_everything_in_its_directory(command, tmp_path):
    code, out, _ = command("--name", "first", "--preset", "paper")
    assert code == 0
    folder = tmp_path / "runs" / "toy" / "first"
    assert {file.name for file in folder.iterdir()} == {
        "config.json", "provenance.json", "run.sqlite", "checkpoints", "claims.json", "figure.png", "figure.svg",
        "report.html", "lock",
    }  # fmt: skip
    assert "holds  error at eta = 0.1 <b>" in out
    assert "n/a    one more" in out
    claims = json.loads((folder / "claims.json").read_text())
    assert [claim["holds"] for claim in claims] == [True, True, None]
    provenance = json.loads((folder / "provenance.json").read_text())
    assert {"jax", "device_kind", "device_count", "cpu_count", "x64", "command", "seed", "flags"} <= provenance.keys()
    assert json.loads((folder / "config.json").read_text())["steps"] == 40
    assert "&lt;b&gt;" in (folder / "report.html").read_text()
    found = load(folder)
    assert found.status == "finished"
    assert found.claims[0].holds is True
    assert found.records["decay"].at(eta=0.1, seed=0).time[-1] == pytest.approx(4.0)


def test_the_same_command_shows_the_stored_claims(command, tmp_path):
    assert command()[0] == 0
    (folder,) = (tmp_path / "runs" / "toy").iterdir()
    before = (folder / "run.sqlite").read_bytes()
    code, out, _ = command()
    assert code == 0
    assert "already finished before" in out
    assert (folder / "run.sqlite").read_bytes() == before
    (folder / "figure.png").write_bytes(b"broken")
    code, _, errors = command()
    assert code == 0
    assert "figure.png missing or damaged; written again" in errors
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--eta", "0.1", "nan"), ("eta", "nan", "> 0 and <= 10")),
        (("--eta", "inf"), ("eta", "inf", "> 0 and <= 10")),
        (("--eta", "-1"), ("eta", "-1.0", "> 0 and <= 10")),
        (("--eta",), ("eta", "()", "one or more values")),
        (("--eta", "abc"), ("--eta", "abc", "> 0 and <= 10")),
        (("--eta", "1,99"), ("eta", "99.0", "> 0 and <= 10")),
        (("--eta", "log:1:100:3"), ("eta", "10", "> 0 and <= 10")),
        (("--eta", "log:1:2"), ("--eta", "'log:1:2'", "log:LOW:HIGH:COUNT", "of float")),
        (("--eta=lin:1:nan:3",), ("--eta", "'lin:1:nan:3'", "lin:LOW:HIGH:COUNT")),
        (("--eta", "1,1"), ("--eta", "'1,1'", "none twice")),
        (("--eta", "1,a"), ("--eta", "'1,a'", "a,b,c")),
        (("--width", "1,2"), ("--width", "1,2", ">= 1 and <= 64")),
        (("--width", "65"), ("width", "65", ">= 1 and <= 64")),
        (("--width", "2.5"), ("--width", "2.5", ">= 1 and <= 64")),
        (("--seed", "-1"), ("seed", "-1", ">= 0")),
        (("--seeds", "0"), ("seeds", "0", ">= 1")),
        (("--start", "three"), ("start", "three", "one", "two")),
        (("--nonsense", "1"), ("nonsense",)),
        (("--preset", "huge"), ("preset", "huge", "quick, paper")),
        (("--name", "../up"), ("name", "../up", "letters, digits")),
        (("--name", "a/b"), ("name", "a/b", "letters, digits")),
        (("--name", ".hidden"), ("name", ".hidden", "letters, digits")),
        (("--name", "x" * 101), ("name", "letters, digits")),
        (("--name", "a\nb"), ("name", "letters, digits")),
        (("--device", "abacus"), ("device", "abacus", "cpu:0")),
        (("--fork", "b"), ("fork", "--name")),
        (("--name", "none", "--fork", "b"), ("fork", "none", "a run that exists")),
        (("--sweep", "width=1,99"), ("width", "99", ">= 1 and <= 64")),
        (("--sweep", "eta=log:1:9:3"), ("eta", "allowed: --eta log:1:9:3, an axis", "one program")),
        (("--sweep", "seeds=1,2"), ("seeds", "allowed: --seeds NUMBER, an axis", "one program")),
        (("--steps", str(10**20)), ("--steps", "an integer below 2^31")),
        (("--name", ""), ("name", "''", "letters, digits")),
        (("--workers", "0"), ("--workers", "0", ">= 1")),
        (("--show", "x"), ("--show", "allowed: with --sweep")),
        (("--cluster", "pbs"), ("cluster", "pbs", "slurm or local")),
        (("--sweep", "width=1,2", "--name", "a", "--resume"), ("--resume", "got one with --sweep")),
    ],
)
def test_bad_input_exits_2_and_makes_no_files(command, tmp_path, flags, words):
    code, _, errors = command(*flags)
    assert code == 2
    for word in words:
        assert word in errors.replace("\n", " ") or word in errors
    assert not (tmp_path / "runs").exists()


@dataclasses.dataclass(frozen=True)
class Axes(config.Config):
    alpha: Annotated[tuple[float, ...], Positive] = (1.0,)
    num_samples: Annotated[tuple[int, ...], Count] = (8,)
    words: tuple[Literal["a,b", "log:1:2:3"], ...] = ("a,b",)
    tasks: tuple[str, ...] = ("add 11",)


@pytest.mark.parametrize(
    ("flags", "field", "values"),
    [
        (("--alpha", "log:.1:10:3"), "alpha", (0.1, 1.0, 10.0)),
        (("--alpha=lin:0.1:1:3",), "alpha", (0.1, 0.55, 1.0)),
        (("--alpha", "0.1,0.2", "3"), "alpha", (0.1, 0.2, 3.0)),
        (("--num-samples", "log:1:64:4"), "num_samples", (1, 4, 16, 64)),
        (("--num_samples", "3:6", "9"), "num_samples", (3, 4, 5, 9)),
        (("--words", "log:1:2:3", "a,b"), "words", ("log:1:2:3", "a,b")),
    ],
)
def test_axes_take_specs_and_the_rest_sees_values(flags, field, values):
    """Written short or out, the settings are the same, and so is the name of their run."""
    made, options = parse(Axes, specs.expanded(Axes, list(flags)), "prog", "what it is")
    assert getattr(made, field) == values
    written = parse(Axes, [f"--{field.replace('_', '-')}", *map(str, values)], "prog", "what it is")
    assert (made, options) == written
    assert default_name(made, False) == default_name(written[0], False)


@pytest.mark.parametrize("more", [(), ("--sweep", "samples=40,50")])
def test_a_missing_extra_is_told_and_leaves_no_folder(command, tmp_path, monkeypatch, more):
    """Nor does it take away what was there before."""
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    name = "dynamics.experiments.edge_of_stability.catapult"
    code, _, errors = command("--name", "a", "--seeds", "1", *more, name=name)
    assert (code, errors) == (2, "error: digits needs scikit-learn: pip install -e '.[data]'\n")
    assert not (tmp_path / "runs").exists()
    kept = tmp_path / "runs" / "edge_of_stability.catapult" / "a"
    kept.mkdir(parents=True)
    assert command("--name", "a", "--seeds", "1", *more, name=name)[0] == 2
    assert kept.exists()


def test_a_missing_extra_later_on_keeps_what_was_computed(tmp_path):
    """What was begun stays, to be resumed once the extra is there."""
    decay, one = ode(lambda x, rate: -rate * x, 0.1), jnp.array(1.0)

    def begin():
        with open_run(tmp_path / "runs" / "a", {"rate": 1.0}) as run:
            run.simulate(decay, one, one, train=lambda x, rate: {"x": x}, steps=3)
            raise missing("digits", "scikit-learn", "data")

    with pytest.raises(MissingExtra):
        begin()
    assert list(load(tmp_path / "runs" / "a").records) == ["call-0"]


def test_a_failing_claim_exits_5_and_an_error_1(command, tmp_path):
    assert command("--fail", "claim", "--name", "wrong")[0] == 5
    assert command("--fail", "claim", "--name", "wrong")[0] == 5
    with pytest.raises(RuntimeError, match="as asked"):
        cli.main(TOY, ["--fail", "run", "--name", "broken", "--quiet"])
    assert load(tmp_path / "runs" / "toy" / "broken").status == "failed"


def test_a_claim_that_was_not_reached_exits_6_and_is_said(command, tmp_path):
    code, out, _ = command("--fail", "late", "--name", "a")
    assert code == 6
    assert re.search(r"^not reached  time to fall +not by step 20", out, re.MULTILINE)
    assert "… 2 of 3 claims hold, 1 not reached; finished" in out
    assert "… 2 of 3 claims hold, 1 not reached; already finished" in command("--fail", "late", "--name", "a")[1]
    run = tmp_path / "runs" / "toy" / "a"
    assert [claim["unreached"] for claim in json.loads((run / "claims.json").read_text())] == [None, None, 20, None]
    assert [claim.unreached for claim in load(run).claims] == [None, None, 20, None]
    assert "not by step 20" in (run / "report.html").read_text()
    assert [row.verdict for row in listed(tmp_path / "runs")] == ["2/3 hold, 1 not reached"]
    code, out, _ = command("--fail", "late", "--sweep", "width=2,3", "--name", "b")
    assert code == 6
    assert re.search(r"^not reached  time to fall +0 of 2 cells", out, re.MULTILINE)
    assert load(run.with_name("b")).claims[2].note == "not reached in {'width': 2} and 1 more"


def test_other_settings_under_a_name_exit_4_and_resume_takes_the_stored_ones(command):
    assert command("--name", "a", "--steps", "30")[0] == 0
    code, _, errors = command("--name", "a", "--steps", "40")
    assert code == 4
    assert "steps: 30 -> 40" in errors
    assert errors.count("\n") == 1
    assert command("--name", "a", "--resume")[0] == 0
    code, _, errors = command("--name", "a", "--fork", "b", "--preset", "quick")  # which would not be taken
    assert code == 2
    assert "--preset: got it with --fork; allowed: without it" in errors
    code, _, errors = command("--name", "a", "--fork", "b", "--steps", "40")
    assert code == 0
    assert "'decay' continues in the fork from step 30" in errors


def test_json_and_quiet(command):
    code, out, _ = command("--quiet", "--json")
    assert code == 0
    assert [claim["holds"] for claim in json.loads(out)] == [True, True, None]
    assert command("--quiet")[1] == ""


def test_help_names_units_ranges_and_defaults_at_80_columns(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = command("--help")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert "\n\n\n" not in out
    assert "(default: 0.1 0.5)" in out
    assert "None" not in out
    text = " ".join(out.replace("│", " ").split())
    assert "learning rate eta [1/a]; > 0 and <= 10" in text
    assert "--preset {quick,paper}" in text
    assert "Preset paper: A longer run; a second." in text
    assert "--eta FLOAT [FLOAT ...] " in text  # one or more, as the Config has it
    assert "--sweep FIELD=SPEC [FIELD=SPEC ...] " in text
    assert "[FLOAT [" not in text


def test_help_of_axes_of_words_and_of_choices(capsys):
    with pytest.raises(SystemExit):
        parse(Axes, ["--help"], "prog", "what it is")
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--num-samples INT [INT ...] " in text
    assert "--words {a,b,log:1:2:3} [{a,b,log:1:2:3} ...] " in text
    assert "--tasks TASKS [TASKS ...] " in text


def test_a_sweep_on_the_command_line(command, tmp_path):
    """The same command, or --resume, shows it again; --show draws another reading; it is repeated like a run."""
    flags = ("--eta", "log:0.1:1:3", "--sweep", "curvature=1,2", "--name", "s")
    code, out, _ = command(*flags)
    assert code == 0
    assert "holds  error at eta = 0.316228 <b>  2 of 2 cells  all cells" in out
    folder = tmp_path / "runs" / "toy" / "s"
    assert json.loads((folder / "config.json").read_text())["sweep"] == {"curvature": [1.0, 2.0]}
    assert load(folder / "cells" / "000001").config["curvature"] == 2.0
    drawn = (folder / "figure.svg").read_text()
    for again in (flags, ("--name", "s", "--resume")):
        code, out, _ = command(*again, "--json")
        assert (code, [claim["holds"] for claim in json.loads(out)]) == (0, [True, True, True, None])
    code, _, errors = command("--name", "s", "--resume", "--show", "nothing")
    assert (code, "show: got 'nothing'; allowed: decay/x, claims/error" in errors) == (2, True)
    assert command("--name", "s", "--resume", "--show", "claims/error at eta = 1 <b>")[0] == 0
    assert (folder / "figure.svg").read_text() != drawn
    code, _, errors = command(*flags, "--steps", "30")
    assert (code, "steps: 20 -> 30" in errors) == (4, True)
    code, _, errors = command(*flags[:2], "--sweep", "curvature=1,3", "--name", "s")
    assert (code, "{'curvature': [1.0, 2.0]} -> {'curvature': [1.0, 3.0]}" in errors) == (4, True)
    code, _, errors = command("--name", "s", "--fork", "t", "--steps", "30", "--quiet")
    assert (code, errors.count("'decay' continues in the fork from step 20")) == (0, 2)


def test_a_papers_help_names_the_familys_flagship(monkeypatch):
    met = []
    monkeypatch.setattr(experiment, "run_experiment", lambda name, argv, prog, others: met.extend([name, others]) or 0)
    dispatch("experiments.depth", ["length", "--help"])
    assert met[0] == "dynamics.experiments.depth.length"
    assert "runs its flagship, over_n; beside it" in met[1]


def test_the_gallery_lists_every_experiment_without_importing_them(command):
    code, out, _ = command(name="experiments")
    assert code == 0
    listed = gallery()
    assert {"grokking.lazy_to_rich", "rich_lazy.output_scale"} <= {entry.experiment for entry in listed}
    assert all(entry.seconds for entry in listed)
    assert all(entry.experiment in out for entry in listed)
    assert flagship("grokking") == "lazy_to_rich"
    narrow = listing(listed, 80)
    assert max(map(len, narrow)) <= 80
    assert {entry.family for entry in listed} <= set(narrow)
    text = " ".join(" ".join(narrow).split())
    assert all(f"{entry.paper} {entry.seconds:g} s {entry.title}" in text for entry in listed)
    code, _, errors = command("nonsense", name="experiments.grokking")
    assert code == 2
    assert "lazy_to_rich" in errors
    assert command("x", name="experiments")[0] == 2


def test_a_reader_who_leaves_is_no_error():
    done = subprocess.run(
        f"set -o pipefail; {sys.executable} -u -m experiments | head -1", shell=True, executable="/bin/bash",
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "experiments" in done.stdout


def test_looking_after_a_folder_of_runs(command, tmp_path, capsys):
    command("--name", "a")
    command("--name", "b", "--eta", "0.1", "0.3")
    command("--name", "c", "--sweep", "width=2", "--quiet")
    root = tmp_path / "runs"
    (root / "toy" / "broken").mkdir()
    (root / "toy" / "broken" / "run.sqlite").write_bytes(b"nonsense" * 1000)

    def run(*argv):
        code = run_main([str(word) for word in argv])
        return code, capsys.readouterr().out

    code, out = run("list", root)
    assert code == 0
    assert [line.split()[1] for line in out.splitlines()[:4]] == ["finished", "finished", "damaged", "finished"]
    code, out = run("show", root / "toy" / "a")
    assert (code, "eta = [0.1, 0.5]" in out) == (0, True)
    assert "decay: 5 rows to step 20: on eta[2] x seed[5]: all[5, 2, 5, 3], x[5, 2, 5]" in out
    code, out = run("show", root / "toy" / "c")
    assert (code, "sweep = {'width': [2]}" in out, "  width = " in out) == (0, True, False)
    assert "on width[1] x eta[2] x seed[5]: all[5, 1, 2, 5, 2], x[5, 1, 2, 5]" in out
    code, out = run("compare", root / "toy" / "a", root / "toy" / "b")
    assert "eta: [0.1, 0.5] -> [0.1, 0.3]" in out
    assert "decay at eta = 0.1: the same bits" in out
    assert "decay: other readings, shapes, axes or steps" in run("compare", root / "toy" / "a", root / "toy" / "c")[1]
    for name, suffix in (("a", "npz"), ("a", "nc"), ("c", "npz"), ("c", "csv")):
        assert run("export", root / "toy" / name, tmp_path / f"{name}.{suffix}", "--trust")[0] == 0
        assert (tmp_path / f"{name}.{suffix}").stat().st_size
    for name in ("a", "c"):  # a run and a sweep, drawn again from what is stored
        assert run("figure", root / "toy" / name, tmp_path / "a.png", "--trust") == (0, f"{tmp_path / 'a.png'}\n")
        assert (tmp_path / "a.png").read_bytes() == (root / "toy" / name / "figure.png").read_bytes()
    assert run("export", root / "toy" / "a", tmp_path / "a.pkl")[0] == 2
    assert run("show", root / "toy" / "broken")[0] == 4
    for name, records in (("a", 1), ("c", 2)):
        code, out = run("repeat", root / "toy" / name, "--trust")
        assert (code, out.count("the same bits")) == (0, records)
    assert run("index", root) == (0, f"{root / 'index.html'}\n")
    assert run("index", root / "nothing")[0] == 2
    assert "could be freed" in run("gc", root)[1]
    assert list(root.glob("toy/a/checkpoints/*.ckpt"))
    assert list(root.glob("toy/c/cells/*/checkpoints/*.ckpt"))
    with contextlib.closing(Lock(root / "toy" / "c" / "cells" / "000000" / "lock")):
        run("gc", root, "--delete")
    assert not list(root.glob("toy/a/checkpoints/*.ckpt"))
    assert list(root.glob("toy/c/cells/*/checkpoints/*.ckpt"))
    run("gc", root, "--delete")
    assert not list(root.rglob("*.ckpt"))
    (root / "toy" / "a" / "claims.json").unlink()
    assert run("show", root / "toy" / "a")[0] == 4
    assert command("--name", "a")[0] == 0  # computed again, since its checkpoints are gone


SHORT = {
    "depth": "--seeds 2 --nets 20 --width 16 --ratio 0.125 0.25 --residual-depth 8",
    "diffusion": "--seeds 2 --dimension 16 --samples 4 40 --decay 1 --noise 0.1 --network-samples 25 50",
    "distillation": "--seeds 2 --draws 4 --samples 20 --width 16 --ridge 0.3 3 --steps 40",
    "edge_of_stability": "--seeds 1 --eta 0.2 --samples 40 --width 8 --depth 1 --steps 60 --record-every 20"
    " --flow-steps 40",
    "grokking": "--seeds 1 --alpha 0.2 0.4 --samples 40 --window 20 --dimension 12 --width 20 --steps 100"
    " --window-steps 50",
    "influence": "--seeds 2 --samples 20 --width 8 16 --steps 10 --draws 4 --images 40 --hidden 8 --time 8",
    "landscape": "--seeds 2 --data 1 2 --points 64 --coarse 16 --levels 2 --steps 60",
    "representation": "--seeds 2 --states 6 --features 2 --steps 20 --heads 4 8 --head-seeds 2 --times 1 2",
    "rich_lazy": "--seeds 2 --alpha 0.1 1 10 --width 16 32 --steps 50",
    "samples": "--seeds 2 --tasks 2 8 --dim 4 --length 8 --batch 16 --steps 20 --sequences 50",
}


@pytest.mark.slow
@pytest.mark.parametrize("family", SHORT)
def test_every_flagship_is_repeated_from_its_directory_alone(family, tmp_path):
    """By another process, from another folder, to the same bits."""

    def run(*words, folder):
        command = [sys.executable, "-m", *words]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)

    done = run(f"experiments.{family}", "--name", "a", "--quiet", *SHORT[family].split(), folder=tmp_path)
    assert done.returncode in (0, 5), done.stderr  # at this size claims may fail
    (folder,) = (tmp_path / "runs").glob("*/a")
    done = run("dynamics.runs", "repeat", str(folder), folder=tmp_path.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(load(folder).records)
    assert all(line.endswith("the same bits") for line in lines)


def test_listing_loads_no_jax(tmp_path):
    code = f"import sys; from dynamics.runs.command.folder import run_main; run_main(['list', {str(tmp_path)!r}]); "
    code += "print('jax' in sys.modules, 'matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False False"


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["-m", "experiments.gr"], "experiments.grokking.max_margin"),
        (["-m", "experiments.grokking", "--al"], "--alpha"),
        (["-m", "experiments.grokking.max_margin", "--preset", ""], "quick paper"),
        (["-m", "dynamics.experiments.grokking", "--al"], "--alpha"),
        (["script.py", "--al"], ""),
        (["dynamics", "r"], "run runs"),
        (["dynamics", "run", "gr"], "grokking grokking.max_margin"),
        (["dynamics", "run", "grokking", "--al"], "--alpha"),
        (["dynamics", "run", "grokking.max_margin", "--preset", ""], "quick paper"),
        (["dynamics", "runs", "c"], "compare completion"),
        (["dynamics", "tools", ""], "coordinate-check"),
    ],
)
def test_bash_completes_names_flags_and_presets(completion, words, found):
    words = words if words[0] == "dynamics" else ["python", *words]
    complete = "_dynamics_command" if words[0] == "dynamics" else "_dynamics_module"
    line = f"COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; {complete}"
    code = f'source {completion}; {line}; echo "${{COMPREPLY[@]}}"'
    given = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert set(found.split()) <= set(given.split()) if found else not given


@pytest.fixture(scope="module")
def completion(tmp_path_factory):
    from dynamics.runs.command.completion import script

    path = tmp_path_factory.mktemp("shell") / "completion.sh"
    path.write_text(script("bash"))
    return path


def test_completion_of_an_unknown_shell_is_refused(capsys):
    assert run_main(["completion", "fish"]) == 2
    assert "allowed: bash, zsh" in capsys.readouterr().err
