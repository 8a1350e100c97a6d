"""Max-margin theory: the construction attains the bound, nothing sampled exceeds it, margins are homogeneous."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics.models.two_layer import TwoLayerParams, two_layer
from dynamics.statistics import frequency_share, top_frequency
from dynamics.tasks.modular import operation_table
from dynamics.theory.modular import (
    generalisation_fraction,
    group_margin,
    max_margin,
    max_margin_network,
    normalised_margin,
    output_margins,
    parity_margin,
    softmax_margin,
)


@pytest.mark.parametrize("p", [3, 5, 11])
def test_construction_attains_the_margin(x64, p):
    first, second = max_margin_network(p)
    assert first.shape == (4 * (p - 1), 2 * p)
    measured = normalised_margin(first, second, jnp.asarray(operation_table("add", p)))
    np.testing.assert_allclose(measured, max_margin(p), rtol=1e-10)
    np.testing.assert_allclose(frequency_share(first[:, :p]), 1, rtol=1e-10)
    assert np.bincount(top_frequency(first[:, :p]), minlength=(p + 1) // 2).tolist() == [0, *[8] * ((p - 1) // 2)]


def test_softmax_margin_is_the_mean_over_wrong_answers(x64, key):
    table = jnp.asarray(operation_table("permute", 3))
    model = two_layer(9, 6, jnp.square)
    _, (first, second) = model.init(key, (-1, 12))
    hot = np.eye(6)
    x = np.concatenate([np.repeat(hot, 6, 0), np.tile(hot, (6, 1))], axis=1)
    f = np.asarray(model.apply(TwoLayerParams(first, second), jnp.asarray(x)))
    wrong = hot[np.asarray(table).ravel()] == 0
    weight = np.where(wrong, np.exp(f) / np.exp(f).sum(1, keepdims=True), 0)
    margin = f[~wrong][:, None] - f
    scale = np.sum((np.sum(first**2, 1) + np.sum(second**2, 0)) ** 1.5)
    expected = np.sum(weight * margin) / weight.sum() / scale
    np.testing.assert_allclose(softmax_margin(first, second, table), expected, rtol=1e-12)
    assert softmax_margin(first, second, table) > normalised_margin(first, second, table)


def test_every_margin_of_the_construction_is_the_largest(x64):
    first, second = max_margin_network(5)
    table = jnp.asarray(operation_table("add", 5))
    np.testing.assert_allclose(softmax_margin(first, second, table), max_margin(5), rtol=1e-10)


def test_construction_computes_one_cosine_sum(x64):
    p = 7
    model, params = two_layer(4 * (p - 1), p, jnp.square), TwoLayerParams(*max_margin_network(p))
    a, b, c = np.meshgrid(range(p), range(p), range(p), indexing="ij")
    expected = sum(4 * np.cos(2 * np.pi * k * (a + b - c) / p) for k in range(1, (p + 1) // 2))
    hot = np.eye(p)
    x = np.concatenate([np.repeat(hot, p, 0), np.tile(hot, (p, 1))], axis=1)
    np.testing.assert_allclose(model.apply(params, jnp.asarray(x)).reshape(p, p, p), expected, atol=1e-10)


def test_no_neighbour_of_the_construction_does_better(x64, key):
    p, table = 5, jnp.asarray(operation_table("add", 5))
    first, second = max_margin_network(p)
    for i in range(50):
        keys = jax.random.split(jax.random.fold_in(key, i))
        near = (
            first + 0.05 * jax.random.normal(keys[0], first.shape),
            second + 0.05 * jax.random.normal(keys[1], second.shape),
        )
        assert normalised_margin(*near, table) <= max_margin(p)


def test_margin_ignores_scale(x64, key):
    table = jnp.asarray(operation_table("add", 5))
    _, (first, second) = two_layer(9, 5, jnp.square).init(key, (-1, 10))
    np.testing.assert_allclose(normalised_margin(3 * first, 3 * second, table), normalised_margin(first, second, table))


def test_group_margin_is_attained_by_a_network_on_the_group_of_two():
    sign = jnp.array([1.0, -1.0])
    first = jnp.stack([jnp.concatenate([sign, sign]), jnp.concatenate([sign, -sign])])
    second = jnp.stack([sign, -sign], axis=1)
    attained = normalised_margin(first, second, jnp.asarray(operation_table("add", 2)))
    assert float(attained) == pytest.approx(group_margin([1, 1]), rel=1e-6)  # float32


@pytest.mark.parametrize("k", [1, 2, 3])
def test_parity_margin_is_attained_by_all_signs_and_by_no_neighbour(x64, key, k):
    """Neurons along every choice of signs, each with the sign's product in its readout: other monomials cancel."""
    signs = jnp.array(list(itertools.product((1.0, -1.0), repeat=k)))
    product = jnp.prod(signs, 1)
    readout = jnp.stack([product, -product]) / 2**0.5

    def margin(first, second):
        f = (signs @ first.T) ** k @ second.T
        norm = jnp.sum((jnp.sum(first**2, 1) + jnp.sum(second**2, 0)) ** ((k + 1) / 2))
        return output_margins(f, jnp.asarray(product < 0, jnp.int32))[0] / norm

    assert float(margin(signs, readout)) == pytest.approx(parity_margin(k), rel=1e-9)
    for i in range(20):
        near = [jax.random.normal(jax.random.fold_in(key, 2 * i + j), w.shape) for j, w in enumerate((signs, readout))]
        assert margin(signs + 0.1 * near[0], readout + 0.1 * near[1]) < parity_margin(k)


def test_bad_dimensions_are_named():
    with pytest.raises(ValueError, match="dimensions"):
        group_margin([2, 1])


def test_bad_modulus_is_named():
    with pytest.raises(ValueError, match="p: got 4"):
        max_margin(4)


def test_generalisation_fraction():
    assert generalisation_fraction(100, 2.0) == pytest.approx(2 * np.log(100) / 100, rel=1e-6)
