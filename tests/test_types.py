"""Claims judge what was measured, and nothing that is not finite ever holds."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from dynamics.losses import accuracy
from dynamics.statistics import effective_rank, kernel_alignment, stable_rank
from dynamics.types import Claim, Record


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_claim_holds_on_a_value_that_is_not_finite(value):
    made = [
        Claim.close("a", "s", value, 1.0, 0.5),
        Claim.close("a", "s", value, 1.0, 0.5, relative=True),
        Claim.between("a", "s", value, -1e9, 1e9),
        Claim.at_least("a", "s", value, 0.0),
        Claim.at_most("a", "s", value, 0.0),
    ]
    assert [claim.holds for claim in made] == [False] * 5


def test_claims_judge_both_sides():
    assert Claim.close("a", "s", 1.1, 1.0, 0.2).holds
    assert not Claim.close("a", "s", 1.3, 1.0, 0.2).holds
    assert Claim.close("a", "s", 110, 100, 0.2, relative=True).holds
    assert not Claim.between("a", "s", 3.0, 1.0, 2.0).holds
    assert Claim.at_least("a", "s", 3.0, 3.0).holds
    assert not Claim.at_most("a", "s", 3.1, 3.0).holds
    assert Claim.not_applicable("a", "s", "why").holds is None


def test_a_diverged_network_scores_nothing():
    """NaN goes through every summary instead of turning into chance, zero rank or zero alignment."""
    nan = jnp.full((4, 4), jnp.nan)
    assert np.isnan(accuracy(nan, jnp.eye(4)))
    assert np.isnan(accuracy(nan[:, :1], jnp.ones((4, 1))))
    assert np.isnan(kernel_alignment(nan, jnp.eye(4)))
    assert np.isnan(effective_rank(nan[0]))
    assert np.isnan(stable_rank(nan[0]))


def test_alignment_of_large_kernels_does_not_overflow():
    kernel = jnp.diag(jnp.arange(1.0, 5.0)).astype(jnp.float32)
    np.testing.assert_allclose(kernel_alignment(1e30 * kernel, 1e-30 * kernel), 1.0, rtol=1e-6)
    assert float(kernel_alignment(kernel, jnp.zeros((4, 4)))) == 0


def test_a_record_becomes_a_labelled_dataset():
    record = Record(np.array([0, 5]), np.array([0.0, 0.5]), {"loss": np.ones(2), "spectrum": np.ones((2, 3))})
    dataset = record.to_dataset({"alpha": 1})
    assert dataset["spectrum"].dims == ("step", "spectrum_1")
    np.testing.assert_array_equal(dataset["time"], [0.0, 0.5])
    assert dataset.attrs == {"alpha": 1}
