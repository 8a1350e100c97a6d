"""Faults for real: kill -9, signals, full and read-only disks, flipped bytes, two writers. Nothing here is mocked."""

import contextlib
import os
import pathlib
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time

import numpy as np
import pytest

from dynamics.runs import load, open_run
from dynamics.runs.durable import checkpoint
from dynamics.runs.durable.errors import Unusable
from dynamics.runs.durable.journal import Journal, root

PROGRAM = pathlib.Path(__file__).parent / "programs" / "durable.py"


class Nursery:
    """A process that has imported everything and forks a fresh run for every request."""

    def __init__(self, folder):
        environment = {**os.environ, "PYTHONWARNINGS": "ignore", "JAX_PLATFORMS": "cpu"}
        self.errors = folder / "errors"
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAM), str(self.errors)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def start(self, folder, **options):
        words = [str(folder), *(f"{key}={value}" for key, value in options.items())]
        self.process.stdin.write(" ".join(words) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def wait(self):
        return int(self.process.stdout.readline())

    def run(self, folder, **options):
        self.start(folder, **options)
        return self.wait(), self.errors.read_text()


@pytest.fixture(scope="module")
def nursery(tmp_path_factory):
    held = Nursery(tmp_path_factory.mktemp("nursery"))
    yield held
    held.process.stdin.close()
    held.process.wait()


def uninterrupted(nursery, folder, **options):
    """A whole run, committed many times, how long it takes once compiled, and what it was asked."""
    code, text = nursery.run(folder / "compiling", **options)
    assert code == 0, text
    began = time.perf_counter()
    assert nursery.run(folder / "run", **options)[0] == 0
    return folder / "run", time.perf_counter() - began, options


@pytest.fixture(scope="module")
def reference(nursery, tmp_path_factory):
    return uninterrupted(nursery, tmp_path_factory.mktemp("reference"))


@pytest.fixture(scope="module")
def in_pieces(nursery, tmp_path_factory):
    """A study of two shapes, each in two pieces."""
    return uninterrupted(nursery, tmp_path_factory.mktemp("pieces"), workers=2)


def final_states(folder):
    """The newest checkpoint of every call and of every piece, as bytes."""
    states = {}
    for path in sorted(path.parent for path in folder.rglob("run.sqlite")):
        with contextlib.closing(Journal(path / "run.sqlite", readonly=True)) as journal:
            for label in journal.labels():
                last = journal.chunks(label)[0][-1]
                if last.state:  # a study in pieces has its states in them
                    held = checkpoint.path_of(path / "checkpoints", label, last.number, last.state).read_bytes()
                    states[str(path.relative_to(folder)), label] = held
    return states


def committed_step(folder, label):
    journal = Journal(folder / "run.sqlite", readonly=True)
    step = journal.chunks(label)[0][-1].step
    journal.close()
    return step


def assert_same_run(folder, other):
    """0 bits different, 0 recorded rows lost or doubled."""
    mine, theirs = load(folder), load(other)
    assert mine.records.keys() == theirs.records.keys()
    for label, record in theirs.records.items():
        np.testing.assert_array_equal(mine.records[label].step, record.step)
        assert mine.records[label].values.keys() == record.values.keys()
        for name, value in record.values.items():
            assert mine.records[label].values[name].tobytes() == value.tobytes(), (label, name)
    assert mine.diverged == theirs.diverged
    assert final_states(folder) == final_states(other)


def test_the_reference_holds_what_was_asked(reference):
    folder, *_ = reference
    found = load(folder)
    assert list(found.records) == ["full batch", "minibatch", "flow", "lanes"]
    for label, record in found.records.items():
        assert np.all(np.diff(record.step) > 0), label
    np.testing.assert_array_equal(
        found.records["full batch"].values["count"], np.arange(len(found.records["full batch"].step))
    )
    assert found.diverged["lanes"]["lanes"] == [2]
    assert found.records["lanes"].values["loss"].shape[1] == 3
    assert np.all(np.isfinite(found.records["lanes"].values["loss"][:, 0]))


def test_a_study_in_pieces_is_one_record(in_pieces):
    folder, *_ = in_pieces
    found = load(folder)
    record = found.records["pieces"]
    assert len(list((folder / "pieces").glob("*/*/run.sqlite"))) == 4
    assert list(record.axes) == ["width", "seed", "eta"]
    assert record.lengths["v"][:, 0, 0].tolist() == [16, 4]
    assert np.all(np.isnan(record.values["v"][:, 1, ..., 4:, :]))
    assert found.diverged["pieces"]["lanes"] == [1, 3, 5, 7, 9, 11]
    assert np.all(np.isfinite(record.at(eta=0.02).values["loss"]))


def kill_until_finished(nursery, reference, folder, kills, seed, number=signal.SIGKILL):
    """Kills the run ``kills`` times at random moments of its progress, then lets it finish."""
    whole, seconds, options = reference
    chance = random.Random(seed)
    killed = 0
    while killed < kills:
        pid = nursery.start(folder, **options)
        while not (folder / "run.sqlite").exists():
            time.sleep(0.01)
        time.sleep(chance.uniform(0.1, 0.9) * seconds)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        code = nursery.wait()
        if code == 0:  # it was quicker: begin again elsewhere
            assert_same_run(folder, whole)
            shutil.rmtree(folder)
        else:
            assert code in (3, -number), nursery.errors.read_text()
            killed += 1
    code, text = nursery.run(folder, **options)
    assert code == 0, text
    assert_same_run(folder, whole)


def test_killed_runs_end_in_the_same_bits(nursery, reference, tmp_path):
    kill_until_finished(nursery, reference, tmp_path / "run", kills=4, seed=time.time_ns())


@pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGKILL])
def test_a_study_in_pieces_killed_or_stopped_ends_in_the_same_bits(nursery, in_pieces, tmp_path, number):
    kill_until_finished(nursery, in_pieces, tmp_path / "run", kills=1, seed=time.time_ns(), number=number)


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(10))
@pytest.mark.parametrize("kind", ["reference", "in_pieces"])
def test_fifty_kills_end_in_the_same_bits(nursery, kind, tmp_path, trial, request):
    kill_until_finished(nursery, request.getfixturevalue(kind), tmp_path / "run", kills=5, seed=trial)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_exits_3(nursery, tmp_path, number):
    pid = nursery.start(tmp_path / "run", steps=3000)
    while not (tmp_path / "run" / "checkpoints").exists():
        time.sleep(0.01)
    os.kill(pid, number)
    assert nursery.wait() == 3
    text = nursery.errors.read_text()
    assert "interrupted in" in text
    assert "saved" in text
    assert load(tmp_path / "run").records["full batch"].step[0] == 0


def test_a_second_process_is_refused_and_a_kill_frees_the_lock(nursery, tmp_path):
    folder = tmp_path / "run"
    pid = nursery.start(folder, steps=100000)
    while not (folder / "checkpoints").exists():
        time.sleep(0.01)
    with pytest.raises(Unusable, match=f"in use by PID {pid}"), open_run(folder, {}):
        pass
    os.kill(pid, signal.SIGKILL)
    nursery.wait()
    with open_run(folder, {"steps": 100000, "width": 16, "seed": 0}) as held:
        assert not held.finished
        assert 0 < held.journal.get("seconds") < held.seconds  # the killed process counts


def mounted(folder, options):
    """A tmpfs at ``folder``, or a skip that says why there is none."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting a tmpfs needs root here: {done.stderr.strip()}")


@pytest.fixture
def small_disk(tmp_path):
    mounted(tmp_path / "disk", "size=4m")
    yield tmp_path / "disk"
    subprocess.run(["umount", str(tmp_path / "disk")], check=True)


def test_a_disk_too_small_is_refused_before_computing(nursery, small_disk):
    code, text = nursery.run(small_disk / "run", ballast_mb="1.5", steps=50)
    assert code == 4
    assert "bytes free" in text
    assert "nothing was run" in text
    assert text.count("\n") == 1


def test_a_disk_that_fills_up_leaves_what_was_committed(nursery, small_disk):
    """The first chunks fit; then another file takes the space, and later gives it back."""
    folder = small_disk / "run"
    pid = nursery.start(folder, ballast_mb="0.5", steps=2_000_000)
    while len(list(folder.glob("checkpoints/*.ckpt"))) < 2 or committed_step(folder, "big") == 0:
        time.sleep(0.01)
    other = small_disk / "other"
    with contextlib.suppress(OSError), open(other, "wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    code = nursery.wait()
    text = nursery.errors.read_text()
    assert code == 4, (pid, text)
    assert "disk" in text
    assert "intact" in text
    before = load(folder)
    assert before.records["big"].step.tolist() == [0]
    other.unlink()
    step = committed_step(folder, "big")
    pid = nursery.start(folder, ballast_mb="0.5", steps=2_000_000)
    time.sleep(1.0)
    os.kill(pid, signal.SIGTERM)
    assert nursery.wait() == 3
    assert committed_step(folder, "big") > step > 0


def test_a_read_only_disk_is_refused_and_can_be_read(nursery, reference, tmp_path):
    whole, *_ = reference
    disk = tmp_path / "disk"
    mounted(disk, "size=30m")
    try:
        shutil.copytree(whole, disk / "run")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        for folder in (disk / "run", disk / "new"):
            with pytest.raises(Unusable, match=r"Read-only file system|read-only"), open_run(folder, {}):
                pass
        assert_same_run(disk / "run", whole)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def damage(path, chance):
    """Flips a byte or cuts the file."""
    data = bytearray(path.read_bytes())
    if chance.random() < 0.5:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        what = "flipped"
    else:
        del data[chance.randrange(len(data)) :]
        what = "cut"
    path.write_bytes(data)
    return what


def damage_trials(nursery, reference, tmp_path, trials, seed):
    """Damages one file, resumes: detected and repaired, detected and refused, or harmless: never other numbers."""
    whole, _, options = reference
    chance, counts = random.Random(seed), {}
    for trial in range(trials):
        folder = tmp_path / f"run{trial}"
        shutil.copytree(whole, folder)
        with contextlib.closing(Journal(folder / "run.sqlite")) as journal:
            journal.set(status="running")
            if options:  # then only the pieces have what was found
                journal.truncate("pieces", 0)
        files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
        journals = sorted(folder.rglob("run.sqlite"))
        target = chance.choice(files if trial % 2 else journals)
        what = damage(target, chance)
        code, text = nursery.run(folder, **options)
        if code == 4:
            assert "damaged" in text, (trial, target, what, text)
            outcome = "refused"
        else:
            assert code == 0, (trial, target, what, text)
            assert_same_run(folder, whole)
            outcome = "repaired" if "warning" in text else "harmless"
        counts[outcome] = counts.get(outcome, 0) + 1
        shutil.rmtree(folder)
    return counts


@pytest.mark.parametrize(("kind", "trials"), [("reference", 6), ("in_pieces", 2)])
def test_damaged_files_are_found_or_harmless(nursery, kind, trials, tmp_path, request):
    counts = damage_trials(nursery, request.getfixturevalue(kind), tmp_path, trials, time.time_ns())
    assert sum(counts.values()) == trials


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("kind", ["reference", "in_pieces"])
def test_many_damaged_files_are_found_or_harmless(nursery, kind, tmp_path, seed, request):
    print(damage_trials(nursery, request.getfixturevalue(kind), tmp_path, 20, seed))


def test_damage_to_every_kind_of_file_is_said(nursery, reference, tmp_path):
    """A damaged checkpoint falls back a step; a damaged settings file is written anew; each with a warning."""
    whole, *_ = reference
    newest = max((whole / "checkpoints").glob("minibatch-*.ckpt"))
    for relative, words in {
        f"checkpoints/{newest.name}": "falling back to step",
        "config.json": "written again from the journal",
        "provenance.json": "written again from the journal",
    }.items():
        folder = tmp_path / "run"
        shutil.copytree(whole, folder)
        data = bytearray((folder / relative).read_bytes())
        data[len(data) // 2] ^= 4
        (folder / relative).write_bytes(data)
        code, text = nursery.run(folder)
        assert code == 0, text
        assert words in text
        assert_same_run(folder, whole)
        shutil.rmtree(folder)


def spoil(file, table_page=None, **bytes_at):
    """Writes bytes at places of a journal (``at16=...``), or zeros over the page where a table's rows begin."""
    data = bytearray(file.read_bytes())
    for place, value in bytes_at.items():
        data[int(place[2:]) : int(place[2:]) + len(value)] = value
    if table_page:
        with contextlib.closing(sqlite3.connect(file)) as db:
            (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", [table_page]).fetchone()
        data[4096 * (page - 1) : 4096 * page] = bytes(4096)
    file.write_bytes(data)


def set_aside(file, sql):
    with contextlib.closing(sqlite3.connect(file)) as db:
        assert db.execute(sql).rowcount > 0
        db.commit()


def unfinished(whole, folder):
    shutil.copytree(whole, folder)
    with contextlib.closing(Journal(folder / "run.sqlite")) as journal:
        journal.set(status="running")
    return folder / "run.sqlite"


def test_a_damaged_journal_is_mended_from_what_its_digests_prove(nursery, reference, tmp_path):
    """The file header, a cut, a table's first page, single entries: the same bits, and said."""
    whole, *_ = reference
    harms = {
        "header": (lambda file: spoil(file, at0=b"nothing like it"), "sound chunk(s) taken over"),
        "page size": (lambda file: spoil(file, at16=b"\x07\x07"), "sound chunk(s) taken over"),
        "cut": (lambda file: os.truncate(file, 3 * file.stat().st_size // 4), "was damaged; kept as"),
        "chunks": (lambda file: spoil(file, table_page="chunk"), "taken over"),
        "status": (lambda file: set_aside(file, "UPDATE meta SET value = '1' WHERE key = 'status'"), "entry 'status'"),
        "config": (lambda file: set_aside(file, "UPDATE meta SET value = '1' WHERE key = 'config'"), "entry 'config'"),
        "call": (lambda file: set_aside(file, "UPDATE call SET header = '{}' WHERE label = 'flow'"), "chunks prove it"),
    }
    for name, (harm, words) in harms.items():
        folder = tmp_path / name.replace(" ", "-")
        harm(unfinished(whole, folder))
        code, text = nursery.run(folder)
        assert code == 0, (name, text)
        assert words in text, (name, text)
        assert_same_run(folder, whole)


def test_a_journal_that_does_not_prove_the_settings_is_refused_and_kept(nursery, reference, tmp_path):
    whole, *_ = reference
    file = unfinished(whole, tmp_path / "run")
    spoil(file, table_page="meta")
    before = file.read_bytes()
    code, text = nursery.run(tmp_path / "run")
    assert code == 4
    assert "is damaged" in text
    assert file.read_bytes() == before


def test_rows_of_another_call_are_no_part_of_the_chain(tmp_path):
    """Chunks begun under other settings, should a damaged file bring them back, are not taken."""
    with contextlib.closing(Journal(tmp_path / "run.sqlite")) as journal:
        journal.begin("a", {"steps": 1})
        journal.commit("a", 0, 1, True, "state", b"rows", root("a", {"steps": 1}))
        assert len(journal.chunks("a")[0]) == 1
        journal.enter("a", {"steps": 2})
        assert journal.chunks("a") == ([], 1)


def test_a_deleted_journal_or_checkpoint_is_said(nursery, reference, tmp_path):
    whole, *_ = reference
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "checkpoints")
    code, text = nursery.run(folder)
    assert code == 0
    assert text.count("falling back to its start") == 4
    assert_same_run(folder, whole)
    for lose in (lambda file: file.unlink(), lambda file: file.write_bytes(b"")):
        lose(folder / "run.sqlite")
        code, text = nursery.run(folder)
        assert code == 0
        assert "has no run.sqlite; starting again from step 0" in text
        assert_same_run(folder, whole)


def test_other_settings_or_precision_are_refused(nursery, reference):
    whole, *_ = reference
    code, text = nursery.run(whole, width=8)
    assert code == 4
    assert "width: 16 -> 8" in text
    code, text = nursery.run(whole, x64=1)
    assert code == 4
    assert "begun with x64=False, now x64=True" in text


def test_a_fork_continues_under_other_settings_and_leaves_its_source(nursery, reference, tmp_path):
    whole, *_ = reference
    before = final_states(whole)
    code, text = nursery.run(tmp_path / "longer", steps=360, fork=whole)
    assert code == 0, text
    assert "'full batch' continues in the fork from step 300" in text
    assert final_states(whole) == before
    long = load(tmp_path / "longer").records["minibatch"]
    code, _ = nursery.run(tmp_path / "afresh", steps=360)
    fresh = load(tmp_path / "afresh").records["minibatch"]
    np.testing.assert_array_equal(long.step, fresh.step)
    shared = np.isin(long.step, load(whole).records["minibatch"].step) | (long.step > 300)
    np.testing.assert_array_equal(long.values["loss"][shared], fresh.values["loss"][shared])
    assert np.all(np.isnan(long.values["loss"][~shared]))
    code, text = nursery.run(tmp_path / "narrow", width=8, fork=whole)
    assert code == 0
    assert "'full batch' starts afresh in the fork" in text


def test_a_resumed_run_survives_a_change_of_chunks(nursery, reference, tmp_path):
    """Neither the length of chunks nor an interruption between them changes a bit."""
    whole, *_ = reference
    code, text = nursery.run(tmp_path / "run", pace=5, commit=2)
    assert code == 0, text
    for label, record in load(whole).records.items():
        for name, value in record.values.items():
            np.testing.assert_array_equal(load(tmp_path / "run").records[label].values[name], value)
