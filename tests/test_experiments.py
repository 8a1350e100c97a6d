"""Every experiment of the gallery: it describes itself (imported), and runs at tiny settings (slow)."""

import dataclasses
import importlib
import inspect
import re
import typing
import warnings

import numpy as np
import pytest

from dynamics.config import Range, allowed_range
from dynamics.runs.command.discover import gallery

GALLERY = gallery()
FAST = ("depth.length", "rich_lazy.saddle_to_saddle")
TINY = {"grokking.compare": {"pace": 0.001}}  # what no integer and no axis makes small


def tiny(cls, **given):
    """The quick preset with axes of two values, two seeds, and every integer the smallest from 8 that is allowed."""
    config, hints = cls(**given), typing.get_type_hints(cls, include_extras=True)
    for field in [*dataclasses.fields(cls)] * 2:  # twice: what bounds a field may have become smaller after it
        value, allowed = getattr(config, field.name), allowed_range(hints[field.name]) or Range()
        if isinstance(value, tuple):
            smaller = (value[:2],)
        elif isinstance(value, int) and not isinstance(value, bool):
            smaller = (n for n in range(2 if field.name == "seeds" else 8, value) if n in allowed)
        else:
            continue
        config = next(filter(None, (changed(config, field.name, one) for one in smaller)), config)
    return config


def changed(config, name, value):
    """``config`` with another value, or None where that is not allowed."""
    try:
        return dataclasses.replace(config, **{name: value})
    except ValueError:
        return None


@pytest.mark.parametrize("entry", GALLERY, ids=lambda entry: entry.experiment)
def test_experiment_describes_itself(entry):
    experiment = importlib.import_module(entry.module)
    assert entry.source == experiment.SOURCE
    assert 0 < experiment.SECONDS <= 200
    presets = experiment.Config.presets()
    for name, make in presets.items():
        if name != "quick":
            assert make() != presets["quick"]()
            assert re.search(
                r"\b(seconds?|minutes?|hours?|day|GPU|accelerator|graphics card)\b", inspect.getdoc(make) or ""
            ), name


@pytest.mark.parametrize(
    "entry",
    [pytest.param(one, marks=[] if one.experiment in FAST else pytest.mark.slow) for one in GALLERY],
    ids=lambda entry: entry.experiment,
)
def test_experiment_runs_from_config_to_figure(entry):
    """run -> records, claims, figure, without a warning however small the settings."""
    experiment = importlib.import_module(entry.module)
    config = tiny(experiment.Config, **TINY.get(entry.experiment, {}))
    result = experiment.run(config)
    assert result.config == config
    for record in result.records.values():
        assert all(len(value) in (1, len(np.asarray(record.step))) for value in record.values.values())
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        found = experiment.claims(result)
        assert experiment.figure(result).axes
    assert found
    assert all(claim.holds in (True, False, None) and claim.name and claim.source for claim in found)
    assert len({claim.name for claim in found}) == len(found)
