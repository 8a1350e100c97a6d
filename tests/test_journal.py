"""The journal alone, damaged at random: whatever is read back afterwards is what was written, and no loss is silent."""

import contextlib
import random
import shutil

import pytest

from dynamics.runs.durable.errors import Damaged
from dynamics.runs.durable.files import digest, json_text
from dynamics.runs.durable.journal import Journal, root
from dynamics.runs.durable.salvage import open_journal

CONFIG = {"steps": 10}
LABELS = "abcd"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with a journal of four calls of 25 chunks, and the chunks by label."""
    folder = tmp_path_factory.mktemp("whole")
    chance = random.Random(0)
    with contextlib.closing(Journal(folder / "run.sqlite")) as journal:
        (folder / "config.json").write_text(json_text(CONFIG))
        files = {"config.json": digest((folder / "config.json").read_bytes())}
        journal.set(config=CONFIG, provenance={"x64": False, "note": "p" * 800}, status="running", files=files)
        for label in LABELS:
            header = {"steps": 10, "record_at": [ord(label)] * 30}
            journal.begin(label, header)
            link = root(label, header)
            for number in range(25):
                rows = chance.randbytes(chance.choice([300, 3000, 9000]))
                link = journal.commit(label, number, number, number == 24, digest(rows), rows, link)
        return folder, {label: journal.chunks(label)[0] for label in LABELS}


def harm(data, kind, chance):
    """A flipped bit, anywhere or in the file's header; a cut; a page of noise."""
    if kind == "cut":
        return data[: chance.randrange(1, len(data))]
    held = bytearray(data)
    if kind == "page":
        page = 4096 * chance.randrange(len(data) // 4096)
        held[page : page + 4096] = chance.randbytes(4096)
    else:
        held[chance.randrange(100 if kind == "header" else len(data))] ^= 1 << chance.randrange(8)
    return bytes(held)


def survive(whole, folder, kind, chance):
    """One trial; how it ended."""
    source, chunks = whole
    shutil.copytree(source, folder)
    file = folder / "run.sqlite"
    damaged = harm(file.read_bytes(), kind, chance)
    file.write_bytes(damaged)
    try:
        journal, said = open_journal(file)
    except Damaged:
        assert file.read_bytes() == damaged
        return "refused"
    with contextlib.closing(journal):
        assert journal.get("config") == CONFIG
        lost = 0
        for label in LABELS:
            found, broken = journal.chunks(label)
            assert found == chunks[label][: len(found)]
            lost += len(found) < 25
            assert said or broken or len(found) == 25
    return "mended" if said else "found" if lost else "harmless"


@pytest.mark.parametrize("kind", ["bit", "header", "cut", "page"])
@pytest.mark.parametrize("trials", [10, pytest.param(500, marks=pytest.mark.slow)])
def test_damage_is_mended_found_or_harmless(whole, tmp_path, kind, trials):
    chance = random.Random(f"{kind} {trials}")
    ends = [survive(whole, tmp_path / str(trial), kind, chance) for trial in range(trials)]
    print({end: ends.count(end) for end in sorted(set(ends))})
    assert ends.count("refused") <= trials / 2
