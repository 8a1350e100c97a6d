"""A claim holds when theory is near and every rival is not, by one rule; a wide error helps nobody."""

import math

import numpy as np
import pytest

from dynamics.record import Estimate
from dynamics.types import Claim

DRAWS = np.array([0.70, 0.72, 0.71, 0.69])  # mean .705, standard error .00645


def test_the_mean_of_draws_has_its_error_and_its_worst():
    claim = Claim.close("a", "s", DRAWS, 0.70, 0.0, rivals={"far": 1.0})
    assert (claim.measured, claim.n, claim.worst) == (pytest.approx(0.705), 4, 0.72)
    assert claim.error == pytest.approx(DRAWS.std(ddof=1) / 2)
    assert claim.holds  # within three standard errors
    assert not Claim.close("a", "s", DRAWS, 0.70, 0.0, rivals={"far": 1.0}, k=0.5).holds


def test_one_draw_has_no_error():
    claim = Claim.close("a", "s", 0.7, 0.7, 0.01)
    assert (claim.error, claim.n, claim.worst) == (None, 1, None)


@pytest.mark.parametrize("rival", [1.0, Estimate(1.0, 0.05, 8), DRAWS + 0.3])
def test_a_rival_outside_is_rejected_and_one_inside_is_not(rival):
    claim = Claim.close("a", "s", DRAWS, 0.70, 0.02, rivals={"frozen": rival})
    assert claim.holds
    assert not claim.standing
    assert claim.rivals["frozen"] == pytest.approx(1.0 if not isinstance(rival, np.ndarray) else 1.005)
    near = Claim.close("a", "s", DRAWS, 0.70, 0.02, rivals={"frozen": rival, "near": 0.72})
    assert not near.holds
    assert near.standing == ["near"]


def test_a_wide_error_helps_no_claim():
    wide = Estimate(0.7, 0.2, 8)
    assert not Claim.close("a", "s", wide, 0.9, 0.01).holds  # nobody is rejected: the tolerance alone
    assert Claim.close("a", "s", wide, 0.9, 0.01, rivals={"far": 9.0}).holds
    assert not Claim.close("a", "s", wide, 0.9, 0.01, rivals={"no effect": 0.3}).holds


def test_values_of_the_same_draws_are_compared_draw_by_draw():
    """Draws that scatter by 1 and a control that lies .1 below each of them: the difference is sure."""
    draws = np.array([0.0, 1.0, 2.0, 3.0])
    paired = Claim.at_least("a", "s", draws, 1.5, rivals={"control": draws - 0.1})
    assert paired.holds
    assert paired.distances["control"] > 1e6  # no scatter but rounding
    assert not Claim.at_least("a", "s", draws, 1.5, rivals={"control": Estimate(1.4, 0.6, 4)}).holds


@pytest.mark.parametrize(("make", "good", "bad"), [(Claim.at_least, 3.0, 1.0), (Claim.at_most, 1.0, 3.0)])
def test_one_sided_claims_need_rivals_on_the_other_side(make, good, bad):
    assert make("a", "s", good, 2.0, rivals={"none": bad}).holds
    assert not make("a", "s", bad, 2.0, rivals={"none": bad}).holds
    assert not make("a", "s", good, 2.0, rivals={"as good": good}).holds
    noisy = np.full(4, good) + np.array([-2.0, 2.0, -2.0, 2.0])
    assert not make("a", "s", noisy, 2.0, rivals={"none": bad}).holds  # 2 apart, at a standard error of 1.15


def test_more_than_nothing_is_claimed_with_nothing_as_rival():
    """A rival on the bound is on its wrong side; a measurement there is the rival's."""
    assert Claim.at_least("a", "s", DRAWS, 0.0, rivals={"no effect": 0.0}).holds
    assert not Claim.at_least("a", "s", DRAWS - DRAWS.mean(), 0.0, rivals={"no effect": 0.0}).holds
    assert not Claim.at_least("a", "s", 0.0, 0.0, rivals={"no effect": 0.0}).holds


def test_a_theory_in_its_rivals_place_fails():
    for make in (lambda p, r: Claim.close("a", "s", DRAWS, p, 0.02, rivals={"r": r}),):
        assert make(0.70, 1.0).holds
        assert not make(1.0, 0.70).holds


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_rival_that_is_not_finite_is_not_rejected(value):
    """A control that broke says nothing."""
    assert not Claim.close("a", "s", DRAWS, 0.7, 0.02, rivals={"broken": value}).holds


def test_many_cells_are_one_test():
    """Over 200 cells the largest of 200 normal deviates exceeds 3 in 42 % of all draws: no claim may fail so often."""
    rng = np.random.default_rng(0)
    holds = [Claim.cells("a", "s", rng.normal(size=(20, 10))).holds for _ in range(300)]
    assert np.mean(holds) > 0.99
    z = rng.normal(size=200)
    assert Claim.cells("a", "s", z, rivals={"shifted": z + 5}).holds
    assert not Claim.cells("a", "s", z + 5).holds
    assert not Claim.cells("a", "s", z, rivals={"hardly": z + 0.1}).holds


def test_an_identity_is_no_evidence():
    assert Claim.close("a", "identity: product law", 1.0, 1.0, 1e-6).identity
    assert not Claim.close("a", "eq. 3", 1.0, 1.0, 1e-6).identity
