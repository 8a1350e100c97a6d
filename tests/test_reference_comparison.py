"""Every served function of neural-tangents against the original, on random programs; refusals are documented."""

import pathlib
import re
import sys

import jax
import numpy as np
import pytest

pytest.importorskip("frozendict")

import dynamics as nt
from dynamics.interop import neural_tangents

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from reference_cases import KEEPS, MAKERS, TEMPLATES, drawn, quickly

pytestmark = pytest.mark.filterwarnings("ignore")
PORTING = (pathlib.Path(__file__).parents[1] / "docs" / "porting.md").read_text()
REFUSALS = re.findall(r"^\| `([^`]+)` \|", PORTING.partition("## What is refused")[2], re.M)


@pytest.fixture(scope="module")
def theirs():
    try:
        return neural_tangents.load()
    except ImportError as error:
        pytest.skip(str(error))


def outcome(case, module):
    """What the case gives, or the error that it raises."""
    try:
        return jax.tree.leaves(case.run(module)), None
    except Exception as error:  # the original refuses by many types
        return None, error


def verdict(case, theirs):
    """'same', 'ours alone', 'neither' or 'refused: ...'; wrong numbers and undocumented refusals fail."""
    (expected, failed), (found, refused) = outcome(case, theirs), outcome(case, nt)
    if refused is not None:
        message = str(refused)
        if failed is not None:
            return "neither"
        assert isinstance(refused, ValueError), (case.name, repr(refused))
        assert any(each in message for each in REFUSALS), (case.name, message)
        return f"refused: {message}"
    if failed is not None:
        return "ours alone"
    assert len(expected) == len(found), case.name
    for one, two in zip(expected, found, strict=True):
        one, two = np.asarray(one), np.asarray(two)
        assert one.shape == two.shape, (case.name, one.shape, two.shape)
        known = np.isfinite(one)
        # The original takes square roots of differences: eps^(1/2) where inputs coincide.
        floor = 1e-7 * np.max(np.abs(one[known]), initial=0)
        np.testing.assert_allclose(two[known], one[known], rtol=1e-5, atol=floor, err_msg=case.name)
    return "same"


@pytest.mark.parametrize("name", TEMPLATES)
def test_drawn_options_have_the_original_s_numbers(name, theirs, x64):
    """Sixty cases: five draws of data and options for each template."""
    both = [lambda d, m=m: TEMPLATES[name](m, d, m.stax, d["o"]) for m in (theirs, nt)]
    both = both if name in KEEPS else [quickly(fn) for fn in both]
    for seed in range(5):
        expected, found = (jax.tree.leaves(fn(drawn(seed))) for fn in both)
        assert len(expected) == len(found)
        for one, two in zip(expected, found, strict=True):
            np.testing.assert_allclose(two, one, rtol=1e-7, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(5))
@pytest.mark.parametrize(
    ("kind", "count"), [("vectors", 30), ("line", 35), ("image", 25), ("predict", 20), ("empirical", 20)]
)
def test_random_programs_have_the_original_s_numbers(kind, count, block, theirs, x64):
    start = 1000 + block * count
    verdicts = [verdict(MAKERS[kind](seed), theirs) for seed in range(start, start + count)]
    assert verdicts.count("same") >= 0.6 * count, verdicts
