"""A claim holds when theory is near and every rival is not, by one rule; a wide error helps nobody."""

import dataclasses
import math

import numpy as np
import pytest

from dynamics import config
from dynamics.record import Estimate, Record
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
    assert make("a", "s", good, np.float64(2.0), rivals={"as good": good}).standing == ["as good"]
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


def run(last=500, **values):
    """A record of two seeds, read at three steps, with a loss that is a number to the end."""
    loss = {"loss": np.array([[1.0, 1.0], [0.9, 0.9], [0.2, 0.3]])}
    return Record([0, 10, last], [0, 10, last], {**loss, **values}, {"seed": [0, 1]})


REACHED, LATE = np.array([190.0, 200.0]), np.array([100.0, np.inf])


def test_what_a_run_was_too_short_for_is_not_reached_and_no_refutation():
    for claim in (
        Claim.at_least("a", "s", np.log(LATE / 10), 2.0, rivals={"none": 0.0}),
        Claim.close("a", "s", LATE / 10, 30.0, 1.0, rivals={"none": 0.0}),
        Claim.at_most("a", "s", np.nan, 2.0),
    ):
        assert claim.holds is False
        found = claim.within(run(), LATE)
        assert (found.holds, found.unreached, found.name) == (None, 500, "a")
        assert claim.within(run(), REACHED, LATE).unreached == 500
        assert claim.within(run(), REACHED) is claim  # nothing was missing
    held = Claim.at_least("a", "s", REACHED, 50.0, rivals={"none": 0.0})
    assert held.within(run(), LATE) is held
    apart = Claim.not_applicable("a", "s", "why")
    assert apart.within(run(), LATE) is apart


def test_nothing_else_that_speaks_against_a_claim_hides_behind_a_short_run():
    claim = Claim.at_least("a", "s", LATE, 2.0)
    for name, last in {"loss": np.nan, "norm": np.inf}.items():
        diverged = run(**{name: np.array([[1.0, 1.0], [2.0, 9.0], [0.2, last]])})
        assert claim.within(diverged, LATE) is claim
    seldom = run(rank=np.array([[1.0, 1.0], [np.nan, np.nan], [np.nan, np.nan]]))
    assert claim.within(seldom, LATE).unreached == 500  # read at step 0 alone
    assert claim.within(run(), np.array([np.nan, np.inf])) is claim
    measured = Claim.at_least("a", "s", np.array([1.0, 1.5]), 2.0)  # a number, wrong whatever was not reached
    assert measured.within(run(), LATE) is measured
    assert measured.within(run(), LATE, at_end=True).unreached == 500
    stands = Claim.at_least("a", "s", REACHED, 2.0, rivals={"as good": REACHED})
    assert stands.within(run(), LATE) is stands
    assert stands.within(run(), LATE, at_end=True) is stands


def test_what_theory_says_was_due_is_refuted_when_it_did_not_come():
    claim = Claim.at_least("a", "s", LATE, 2.0)
    assert claim.within(run(), LATE, due=[np.array([90.0, 400.0])]) is claim
    assert claim.within(run(), LATE, due=[np.array([90.0, 600.0])]).unreached == 500
    assert claim.within(run(), LATE, due=[np.array([90.0, np.inf])]).unreached == 500
    assert claim.within(run(), LATE, due=0.0) is claim
    assert claim.within(run(), LATE, due=np.inf).unreached == 500
    with pytest.raises(ValueError, match="times: got 1 beside 2 due"):
        claim.within(run(), LATE, due=[LATE, LATE])
    with pytest.raises(ValueError, match="allowed: first-passage times"):
        claim.within(run(), -LATE)
    with pytest.raises(ValueError, match="times: got 0"):
        claim.within(run())


def test_a_bound_from_above_that_the_run_has_passed_is_refuted():
    """The delay is at most 2; fitted at 10, and not generalised by 500, it is 50 or more."""
    fitted, generalised = np.array([10.0, 10.0]), np.array([15.0, np.inf])
    claim = Claim.at_most("a", "s", generalised / fitted, 2.0)
    assert claim.within(run(), generalised, least=np.minimum(generalised, 500) / fitted) is claim
    late = np.array([10.0, 400.0])
    assert claim.within(run(), generalised, least=np.minimum(generalised, 500) / late).unreached == 500


def test_a_control_that_was_not_reached_leaves_the_claim_open_and_no_other_rival():
    claim = Claim.at_least("a", "s", REACHED, 50.0, rivals={"control": LATE, "none": 0.0})
    assert (claim.agrees, claim.standing) == (True, ["control"])
    assert claim.controls_within(run(), {"control": [LATE]}).unreached == 500
    assert claim.controls_within(run(), {"control": [REACHED]}) is claim
    assert claim.controls_within(run(), {"control": [LATE]}, due={"control": [np.array([90.0, 400.0])]}) is claim
    both = Claim.at_least("a", "s", REACHED, 50.0, rivals={"control": LATE, "as good": REACHED})
    assert both.controls_within(run(), {"control": [LATE]}) is both
    wrong = Claim.at_least("a", "s", REACHED, 500.0, rivals={"control": LATE})
    assert wrong.controls_within(run(), {"control": [LATE]}) is wrong


@dataclasses.dataclass(frozen=True)
class Settings(config.Config):
    steps: int = 1000
    control_steps: int = 100
    width: int = 8

    @classmethod
    def paper(cls):
        return cls(steps=10_000, width=64)


@pytest.mark.parametrize(
    ("settings", "due"),
    [({}, 0), ({"seeds": 1, "seed": 7}, 0), ({"steps": 2000}, 0), ({"steps": 500}, np.inf), ({"width": 9}, np.inf),
     ({"control_steps": 99}, np.inf), ({"steps": 10_000, "width": 64}, 0), ({"width": 64}, np.inf)],
)  # fmt: skip
def test_all_is_due_in_a_preset_that_was_not_cut_short(settings, due):
    assert Settings(**settings).due() == due
