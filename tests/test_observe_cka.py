"""Debiased CKA against U-statistics by brute force, its invariances, Gaussian populations, and the biased one."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics.evolve import gradient_descent, simulate
from dynamics.losses import half_mse
from dynamics.observe import cka
from dynamics.statistics import centred, debiased_alignment, kernel_alignment
from dynamics.statistics import cka as cka_of
from dynamics.types import Batch, Objective, View


def u_statistic(k, m):
    """HSIC over all (i, j, q, r) of different samples: ``K_ij (M_ij + M_qr - 2 M_iq)``; O(n^4)."""
    tuples = list(itertools.permutations(range(len(k)), 4))
    return np.mean([k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]) for i, j, q, r in tuples])


def by_brute_force(k, m):
    return u_statistic(k, m) / np.sqrt(u_statistic(k, k) * u_statistic(m, m))


def test_value_and_jackknife_are_those_of_the_definition(x64):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(7, 3)), rng.normal(size=(7, 5))
    y[:, :2] += x[:, :2]
    found = cka_of(x + 100.0, y)
    np.testing.assert_allclose(found.value, by_brute_force(x @ x.T, y @ y.T), rtol=1e-10)
    left = [np.delete(np.arange(7), i) for i in range(7)]
    ratios = [by_brute_force(x[rows] @ x[rows].T, y[rows] @ y[rows].T) for rows in left]
    np.testing.assert_allclose(found.error, np.sqrt(6 * np.var(ratios)), rtol=1e-10)
    k, m = (jnp.asarray(z @ z.T) for z in (x, y))
    hsic = jnp.sum(centred(k, debiased=True) * centred(m, debiased=True)) / (7 * 4)
    np.testing.assert_allclose(hsic, u_statistic(np.asarray(k), np.asarray(m)), rtol=1e-10)


def side_by_side(p, rho):
    """Features ``z A`` and ``z B`` of 2p independent z: p of them against p others that correlate by ``rho``."""
    one, none = np.eye(p), np.zeros((p, p))
    return np.concatenate([one, none]), np.concatenate([rho * one, np.sqrt(1 - rho**2) * one])


def of_low_rank(p):
    return np.random.default_rng(0).normal(size=(2, 4, p)) * np.array([3.0, 1.0, 0.3, 0.1])[:, None]


@pytest.mark.parametrize(
    ("n", "maps"),
    [(40, side_by_side(200, 0.0)), (40, side_by_side(100, 0.7)), (150, side_by_side(3, 0.7)), (60, of_low_rank(30))],
    ids=["independent", "many features", "few features", "low rank"],
)
def test_of_gaussian_features_it_is_the_populations(n, maps):
    """``|A^T B|^2 / (|A^T A| |B^T B|)``, with its error; the biased one is far above for many features."""
    a, b = maps
    exact = np.sum((a.T @ b) ** 2) / np.linalg.norm(a.T @ a) / np.linalg.norm(b.T @ b)

    def read(key):
        z = jax.random.normal(key, (n, len(a)))
        x, y = z @ a, z @ b
        found = cka_of(x, y)
        return found.value, found.error, kernel_alignment(x @ x.T, y @ y.T)

    value, error, biased = map(np.asarray, jax.jit(jax.vmap(read))(jax.random.split(jax.random.key(1), 200)))
    spread = np.std(value)
    assert abs(np.mean(value) - exact) < 3 * spread / np.sqrt(200)
    p = a.shape[1]
    if 2 * p == len(a) and p > n:  # the wrong estimator, where there are enough features for it to be wrong
        assert np.mean(biased) - exact > 10 * spread / np.sqrt(200)
    if exact == 0:
        np.testing.assert_allclose(np.mean(biased), p / (n + p), rtol=0.03)
    # Never too small; too large by up to sqrt(2), where the leading term of the statistic is of second order.
    assert 0.9 < np.mean(error) / spread < 1.1 * np.sqrt(2)
    assert np.mean(np.abs(value - exact) < 2 * error) > 0.954 - 3 * np.sqrt(0.954 * 0.046 / 200)


def test_it_does_not_change_with_shift_scale_and_orthogonal_maps(precision):
    rng = np.random.default_rng(0)
    x, z, mix = (rng.normal(size=shape) for shape in [(20, 6), (20, 6), (6, 6)])
    turn, y, compare = np.linalg.qr(mix)[0], 0.5 * x + z, jax.jit(cka_of)
    one, two = compare(x, y), compare(1e-15 * (x @ turn), 1e15 * (y - 3.0))
    rtol = 200 * float(jnp.finfo(precision).eps)
    np.testing.assert_allclose(two.value, one.value, rtol=rtol)
    np.testing.assert_allclose(two.error, one.error, rtol=rtol)
    itself = compare(x, x @ turn)
    np.testing.assert_allclose(itself.value, 1, rtol=rtol)
    assert float(itself.error) < rtol
    k, m = x @ x.T, y @ y.T
    both = debiased_alignment(jnp.stack([k, m]), jnp.stack([m, m]))
    np.testing.assert_allclose(both.value, [one.value, 1.0], rtol=rtol)


def test_what_is_constant_or_not_finite_is_told(key):
    x, compare = jax.random.normal(key, (9, 3)), jax.jit(cka_of)
    constant = compare(jnp.full((9, 3), 0.1), x)  # its mean is not 0.1 to the last digit
    assert float(constant.value) == float(constant.error) == 0
    alone = compare(jnp.zeros((9, 3)).at[:2, 0].set(1.0), x)  # without sample 0 nothing is left
    assert np.isfinite([alone.value, alone.error]).all()
    assert float(alone.error) > 0.1
    assert np.isnan(compare(x.at[0, 0].set(jnp.nan), x).value)
    half = x.astype(jnp.bfloat16)
    assert compare(half, x).value == compare(half.astype(jnp.float32), x).value
    turned = compare(x + 1j * x, jnp.concatenate([x, x], 1))
    np.testing.assert_allclose(turned.value, 1, rtol=1e-5)


def layers(params, x):
    hidden = jnp.tanh(x @ params["w"])
    return {"hidden": hidden, "out": hidden @ params["v"]}


L = Objective(lambda params, x: layers(params, x)["out"], half_mse)


def test_every_layer_is_compared_with_its_start_or_another_network(key):
    keys = jax.random.split(key, 4)
    start, other = ({"w": jax.random.normal(k, (3, 8)), "v": jax.random.normal(k, (8, 2))} for k in keys[:2])
    batch = Batch(jax.random.normal(keys[2], (30, 3)), jax.random.normal(keys[3], (30, 2)))
    reading = [cka(), cka(layers), cka(lambda p, x: layers(p, x)["hidden"], other=lambda x: layers(other, x)["hidden"])]
    state, record = simulate(gradient_descent(L, 0.5), start, batch, train=reading[:2], steps=20, record_at=[0, 20])
    assert set(record.values) == {f"cka{layer}{end}" for layer in ("", "/hidden", "/out") for end in ("", "_error")}
    now, then = layers(state.params, batch.x), layers(start, batch.x)
    for name in ("hidden", "out"):
        exact = cka_of(now[name], then[name])
        np.testing.assert_allclose(record.values[f"cka/{name}"], [1.0, exact.value], rtol=1e-5)
        np.testing.assert_allclose(record.values[f"cka/{name}_error"], [0.0, exact.error], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(record.values["cka"], record.values["cka/out"], rtol=1e-6)
    view = View(start, batch, L)
    found = reading[2].update(reading[2].init(view), view)[1]
    np.testing.assert_allclose(found["cka"], cka_of(then["hidden"], layers(other, batch.x)["hidden"]).value, rtol=1e-5)


VIEW = View({"w": jnp.ones((3, 8)), "v": jnp.ones((8, 2))}, Batch(jnp.ones((4, 3)), jnp.ones((4, 2))), L)


@pytest.mark.usefixtures("as_users_meet_it")
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: cka_of(jnp.ones((6, 2)), jnp.ones((5, 2))), r"y: got shape \(5, 2\); allowed: the samples of x"),
        (lambda: cka_of(jnp.ones((4, 2)), jnp.ones((4, 2))), "kernel: got 4 samples; allowed: at least 5"),
        (lambda: cka().update(VIEW.params, VIEW), "kernel: got 4 samples"),
        (lambda: cka(3), "apply: got int; allowed: a function"),
        (lambda: cka(layers, other=3), "other: got int; allowed: a function x -> representations"),
        (lambda: cka(layers, other=lambda x: x).update((), VIEW), "other: got PyTreeDef.*; allowed: as features"),
    ],
)
def test_what_cannot_be_compared_is_named(wrong, words):
    with pytest.raises((TypeError, ValueError), match=words):
        wrong()
