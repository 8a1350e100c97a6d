"""The edge-of-stability experiments: exact theories at small size, every claim at the quick preset (slow)."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics.types import Batch, Record
from experiments.edge_of_stability import batch_size, benign_oscillation, catapult, sgd

PAPERS = (
    "gradient_descent",
    "cross_entropy",
    "momentum",
    "adam",
    "sgd",
    "opposing_signals",
    "benign_oscillation",
    "catapult",
    "batch_size",
)


def test_linear_network_follows_its_recursion():
    """f and lambda of u.v/sqrt(n) close on themselves: network = recursion up to rounding (equations 4 and 5)."""
    config = catapult.Config(seeds=2, steps=40, width=64, ratio=(1.0, 3.0))
    records = catapult.run_linear(config, catapult.in_memory)
    linear, theory = (records[name].values for name in ("linear", "theory"))
    np.testing.assert_allclose(linear["edge"], theory["edge"], atol=1e-3)  # the catapult amplifies eps by about 1e2


def test_growth_of_a_loss_that_reaches_zero():
    """Rounding errors and 0 / 0 after convergence are no growth; a diverged run is NaN."""
    loss = np.array([[1.0, 1.0], [3.0, np.inf], [1e-20, np.nan], [1e-17, np.nan], [0.0, np.nan]], np.float32)
    np.testing.assert_array_equal(catapult.largest_growth(loss), [3.0, np.nan])


@pytest.mark.parametrize("size", [8, 32])
def test_batch_theory_on_heavy_tailed_linear_regression(size):
    """H_i = x_i x_i^T with |x_i| over a decade: the mean top eigenvalue of batches within 8 % (300 draws: 1 %)."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 40)) * np.geomspace(1, 0.2, 40) * rng.pareto(3.0, size=(200, 1))
    batch, w = Batch(jnp.asarray(x, jnp.float32), jnp.zeros((200, 1))), jnp.zeros((40, 1))
    top, within, outside = batch_size.scattering(lambda w, x: x @ w, 3, w, batch, jax.random.key(0))
    found = batch_size.lifted(top, within, outside, jax.random.key(1), size, draws=300)
    measured = []
    for _ in range(300):
        rows = x[rng.permutation(200)[:size]]
        measured.append(np.linalg.eigvalsh(rows @ rows.T / size)[-1])
    np.testing.assert_allclose(found, np.mean(measured), rtol=0.08)
    assert np.mean(measured) > 1.15 * float(top[0])  # the lift itself is larger than the tolerance


def test_weak_feature_grows_by_the_product_of_residuals():
    result = benign_oscillation.run(benign_oscillation.Config(seeds=2, steps=300, noise=0.0))
    measured = result.records["training"].values["weak"]
    np.testing.assert_allclose(result.records["theory"].values["weak"], measured, rtol=1e-3)  # 300 roundings


def outcomes(module, steps, sharpness, loss=0.01):
    """``holds`` of a paper's claims about records [T, etas, seeds] that are constant along training."""
    config = module.Config(steps=steps)
    shape = (12, len(config.eta), config.seeds)
    names = ("sharpness", "sharpness_upper", "sharpness_matvecs")
    values = {name: np.full(shape, sharpness, float) for name in names} | {"loss": np.full(shape, loss, float)}
    record = Record(np.arange(12), np.arange(12.0), values)
    claims = module.claims(module.Result(config, {"descent": record}))
    return [claim.holds for claim in claims if "sharpness x eta" in claim.name or "central" in claim.name]


@pytest.mark.parametrize("paper", ["gradient_descent", "cross_entropy", "momentum"])
def test_claims_are_waived_only_for_short_finite_runs(paper):
    """A diverged run, or one of the usual length that stays far below the threshold, fails instead."""
    module = importlib.import_module(f"experiments.edge_of_stability.{paper}")
    usual = module.Config().steps
    assert set(outcomes(module, usual // 4, 1e-3)) == {None}
    for steps, sharpness in ((usual // 4, np.nan), (usual, np.nan), (usual, 1e-3)):
        found = outcomes(module, steps, sharpness)
        assert None not in found
        assert False in found


def test_sgd_judges_and_draws_only_interpolating_runs():
    config = sgd.Config()
    shape = (3, len(config.single_eta), config.seeds)
    loss = np.full(shape, 1e-8)
    loss[:, 0], loss[:, 1, 0] = 1.0, np.nan
    records = {"diagonal": Record(np.arange(3), np.arange(3.0), {"loss": loss, "trace": np.full(shape, 4.0)})}
    held = sgd.interpolating(sgd.Result(config, records), "diagonal")
    assert np.isnan(held[0]).all()
    assert np.isnan(held[1, 0])
    np.testing.assert_allclose(held[1:, 1], 2.0 * np.asarray(config.single_eta[1:]))


@pytest.mark.parametrize(
    ("paper", "settings", "name"),
    [
        ("gradient_descent", {"eta": (0.2, -0.1)}, "eta"),
        ("gradient_descent", {"samples": 5000}, "samples"),
        ("momentum", {"beta": 1.0}, "beta"),
        ("momentum", {"flow_steps": 10}, "flow_steps"),
        ("adam", {"record_every": 10_000}, "record_every"),
        ("sgd", {"batch_size": 1400}, "batch_size"),
        ("batch_size", {"batch_size": (8, 4)}, "batch_size"),
        ("benign_oscillation", {"gain": (2.6, 0.2)}, "gain"),
    ],
)
def test_bad_settings_are_named(paper, settings, name):
    module = importlib.import_module(f"experiments.edge_of_stability.{paper}")
    with pytest.raises(ValueError, match=f"^{name}: got .*allowed: "):
        module.Config(**settings)


@pytest.mark.slow
@pytest.mark.parametrize("paper", PAPERS)
def test_claims_hold_at_the_quick_preset(paper):
    module = importlib.import_module(f"experiments.edge_of_stability.{paper}")
    failed = [claim for claim in module.claims(module.run(module.Config())) if claim.holds is False]
    assert not failed, failed
