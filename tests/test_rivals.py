"""Every experiment's claims fail when a rival takes the theory's place, and each of them names its rivals.

A claim that the right theory's run has reached and the wrong one's has not is noticed too: the settings here are cut
short, and at those of a preset, where every first passage is due (``Config.due`` is 0), such a claim fails.
"""

import importlib
import pathlib

import pytest

from dynamics.runs.command.discover import gallery

FAST = ("rich_lazy.connectivity_rank",)


def test_every_experiment_has_its_rivals():
    folder = pathlib.Path(__file__).parent / "rivals"
    missing = [one.experiment for one in gallery() if not (folder / f"{one.experiment.replace('.', '/')}.py").exists()]
    assert not missing


@pytest.mark.parametrize(
    "entry",
    [pytest.param(one, marks=[] if one.experiment in FAST else pytest.mark.slow) for one in gallery()],
    ids=lambda entry: entry.experiment,
)
def test_a_wrong_theory_is_noticed(entry):
    experiment = importlib.import_module(entry.module)
    case = importlib.import_module(f"rivals.{entry.experiment}")
    result = experiment.run(experiment.Config(**case.CONFIG))
    found = {claim.name: claim for claim in experiment.claims(result)}
    evidence = [claim for claim in found.values() if claim.holds is not None and not claim.identity]
    assert not [claim.name for claim in evidence if not claim.rivals]
    right = {claim.name for claim in evidence if claim.holds}
    assert right
    tried = 0
    for name, other in case.wrong(result):
        others = experiment.claims(other)
        fails = {claim.name for claim in others if claim.holds is False or claim.unreached is not None}
        assert right & fails, f"no claim notices: {name}"
        tried += 1
    assert tried
