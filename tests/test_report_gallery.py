"""The README's table says what the modules say, and the verdicts in it come from finished quick runs."""

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from dynamics.runs.command.discover import gallery
from dynamics.runs.command.gallery import FIGURE_BYTES, figure_file, filled, newest_runs, table, update, verdicts
from dynamics.runs.durable.files import read_json

ROOT = Path(__file__).parents[1]


def test_readme_table_is_up_to_date():
    content = table(gallery(), read_json(ROOT / "docs" / "gallery.json", {}))
    readme = (ROOT / "README.md").read_text()
    assert filled(readme, content) == readme, "run: make gallery"


def test_kept_figures_are_small_and_of_experiments_that_exist():
    names = {entry.experiment for entry in gallery()}
    for path in (ROOT / "docs" / "gallery").iterdir():
        assert path.stem in names, path.name
        assert path.stat().st_size <= FIGURE_BYTES, path.name


def run(root, experiment, name, holds, started, **about):
    folder = root / experiment / name
    folder.mkdir(parents=True)
    command = ["python", "-m", "experiments.toy", *about.pop("flags", ())]
    (folder / "provenance.json").write_text(
        json.dumps({"preset": "quick", "command": command, "started": started, "seconds": 3.0, **about})
    )
    claims = [{"name": f"claim {i}", "holds": value} for i, value in enumerate(holds)]
    (folder / "claims.json").write_text(json.dumps(claims))


def test_verdicts_of_the_newest_plain_run_of_each_preset(tmp_path):
    run(tmp_path, "toy.decay", "a", [True, False, None], "2026-01-02")
    run(tmp_path, "toy.decay", "b", [True, True], "2026-01-01")
    run(tmp_path, "toy.decay", "c", [False], "2026-01-03", preset="paper", flags=["--preset", "paper"])
    run(tmp_path, "toy.decay", "d", [False], "2026-01-03", flags=["--eta", "3"])
    run(tmp_path, "toy.decay", "e", [False], "2026-01-03", preset="paper", flags=["--preset=paper", "--eta=3"])
    newest = newest_runs(tmp_path)
    assert list(newest) == [("toy.decay", "paper"), ("toy.decay", "quick")]
    found = verdicts(newest["toy.decay", "quick"])
    assert (found["held"], found["tested"], found["fails"]) == (1, 2, ["claim 1"])
    assert newest["toy.decay", "paper"].name == "c"


def test_update_keeps_what_is_not_run_again(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "gallery.json").write_text(json.dumps({"toy.other": {"held": 1, "tested": 1}}))
    (tmp_path / "README.md").write_text("a\n<!-- gallery --><!-- /gallery -->\nb\n")
    run(tmp_path / "runs", "toy.decay", "a", [True], "2026-01-01")
    run(tmp_path / "runs", "toy.decay", "large", [True, None, False], "2026-01-01", preset="large")
    figure = Figure(figsize=(15, 5))
    figure.subplots().imshow(np.random.default_rng(0).random((300, 900)))  # noise: the worst that a codec meets
    figure.savefig(tmp_path / "runs" / "toy.decay" / "a" / "figure.png", dpi=150)
    content = update(tmp_path, tmp_path / "runs")
    kept = json.loads((tmp_path / "docs" / "gallery.json").read_text())
    assert set(kept) == {"toy.decay", "toy.other"}
    assert (kept["toy.decay"]["held"], kept["toy.decay"]["presets"]["large"]["tested"]) == (1, 2)
    update(tmp_path, tmp_path / "runs")
    assert json.loads((tmp_path / "docs" / "gallery.json").read_text()) == kept
    assert 10_000 < figure_file(tmp_path, "toy.decay").stat().st_size <= FIGURE_BYTES
    assert (tmp_path / "README.md").read_text() == f"a\n<!-- gallery -->\n{content}\n<!-- /gallery -->\nb\n"


@pytest.mark.parametrize("text", ["none", "<!-- gallery -->", "<!-- /gallery --><!-- gallery -->"])
def test_missing_marks_are_refused(text):
    with pytest.raises(ValueError, match="no single pair of marks"):
        filled(text, "table")
