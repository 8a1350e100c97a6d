"""Coherence: against samples' gradients one by one, against the kernel-residual form, and its limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics import observe
from dynamics.empirical import empirical_ntk_fn
from dynamics.losses import cross_entropy, half_mse, mse
from dynamics.types import Batch, Objective, View


def network(params, x):
    return jnp.tanh(x @ params["w"]) @ params["v"]


@pytest.fixture
def problem(x64, key):
    keys = jax.random.split(key, 4)
    params = {"w": jax.random.normal(keys[0], (3, 6)), "v": jax.random.normal(keys[1], (6, 4))}
    return params, jax.random.normal(keys[2], (9, 3)), jax.nn.one_hot(jnp.arange(9) % 4, 4)


def read(L, params, batch, **options):
    return float(observe.coherence(**options).update((), View(params, batch, L))[1]["coherence"])


def reference(of_sample, params, count):
    """From all gradients side by side."""
    rows = [jax.flatten_util.ravel_pytree(jax.grad(of_sample)(params, i))[0] for i in range(count)]
    g = np.stack([np.asarray(row) for row in rows])
    return count * np.sum(g.mean(0) ** 2) / np.mean(np.sum(g**2, 1))


@pytest.mark.parametrize("loss", [cross_entropy, half_mse])
@pytest.mark.parametrize("memory", [2**28, 1])
def test_it_is_that_of_the_gradients_one_by_one(loss, memory, problem):
    params, x, y = problem
    expected = reference(lambda p, i: loss(network(p, x[i : i + 1]), y[i : i + 1]), params, 9)
    penalised = Objective(network, loss, lambda p: jnp.sum(p["w"] ** 2))  # no sample's own
    assert read(penalised, params, Batch(x, y), memory=memory) == pytest.approx(expected, rel=1e-12)
    without_f = Objective.of(lambda p, batch: loss(network(p, batch.x), batch.y))
    assert read(without_f, params, Batch(x, y), memory=memory) == pytest.approx(expected, rel=1e-12)


def test_of_one_output_it_is_a_kernel_and_residual_alignment(problem):
    params, x, y = problem
    one, y = {**params, "v": params["v"][:, :1]}, y[:, :1]
    K, r = empirical_ntk_fn(network)(x, None, one), (network(one, x) - y)[:, 0]
    expected = float(r @ K @ r / (r**2 @ jnp.diag(K)))
    for loss in (mse, half_mse):
        assert read(Objective(network, loss), one, Batch(x, y)) == pytest.approx(expected, rel=1e-12)


def test_limits(problem):
    params, x, y = problem
    L, ones = Objective(network, cross_entropy), jnp.ones((9, 1))
    assert read(L, params, Batch(ones * x[:1], ones * y[:1])) == pytest.approx(9.0, rel=1e-12)  # equal gradients
    linear = Objective(lambda w, x: x @ w, half_mse)
    assert read(linear, jnp.zeros((3, 1)), Batch(jnp.eye(3), jnp.ones((3, 1)))) == pytest.approx(1.0, rel=1e-12)
    cancel = Batch(jnp.ones((2, 1)), jnp.array([[1.0], [-1.0]]))
    assert read(linear, jnp.zeros((1, 1)), cancel) == 0.0
    assert np.isnan(read(linear, jnp.zeros((1, 1)), Batch(jnp.ones((2, 1)), jnp.zeros((2, 1)))))


def test_a_fitted_networks_gradients_do_not_underflow():
    L, x = Objective(lambda w, x: x @ w, half_mse), jnp.eye(2)
    assert read(L, jnp.zeros((2, 1)), Batch(x, 1e-30 * jnp.ones((2, 1)))) == pytest.approx(1.0, rel=1e-6)


def test_a_masked_mean_is_taken_by_shares_and_refused_without_f(problem):
    params, x, y = problem
    mask = jnp.arange(9) < 5

    def masked(f, y):
        return jnp.sum(mask * jnp.sum((f - y) ** 2, 1)) / jnp.sum(mask)

    expected = reference(lambda p, i: mask[i] * mse(network(p, x[i : i + 1]), y[i : i + 1]), params, 9)
    assert read(Objective(network, masked), params, Batch(x, y)) == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match=r"^objective: got L"):
        read(Objective.of(lambda p, batch: jnp.sum(network(p, batch.x))), params, Batch(x, y))


def test_misuse(problem):
    params, x, y = problem
    with pytest.raises(ValueError, match=r"^memory: got 0"):
        observe.coherence(memory=0)
    mixes = Objective(lambda p, x: network(p, x - jnp.mean(x, 0)), mse)
    with pytest.raises(ValueError, match=r"^f: got one that mixes"):
        read(mixes, params, Batch(x, y))
    for L in (Objective(network, mse), Objective.of(lambda p, batch: mse(network(p, batch.x), batch.y))):
        with pytest.raises(ValueError, match=r"^batch: got samples of shape \(0, .*\); allowed: at least one sample"):
            read(L, params, Batch(x[:0], y[:0]))
    with pytest.raises(ValueError, match=r"^f: got shapes"):
        read(Objective(lambda p, x: network(p, x)[:4], mse), params, Batch(x, y[:4]))


def test_a_small_loss_without_f_does_not_underflow():
    x, y, w = jax.random.normal(jax.random.key(0), (5, 3)), jnp.ones((5, 1)), jnp.ones((3, 1))
    read = [
        observe.coherence().update((), View(w, Batch(x, y), Objective.of(lambda w, b, s=s: s * mse(b.x @ w, b.y))))[1]
        for s in (1.0, 1e-22)
    ]
    assert float(read[1]["coherence"]) == pytest.approx(float(read[0]["coherence"]), rel=1e-5)
