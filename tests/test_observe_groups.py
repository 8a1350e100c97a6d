"""Irreducible components: frequencies on cyclic groups in any order, the known dimensions of S_n, Parseval."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics.statistics import (
    component_power,
    component_share,
    frequency_power,
    frequency_share,
    irreducible_components,
)
from dynamics.tasks.modular import operation_table, permutations


def test_cyclic_components_are_the_frequencies(x64, key):
    w = jax.random.normal(key, (4, 11))
    components = irreducible_components(operation_table("add", 11))
    assert components.sizes.tolist() == [1, 2, 2, 2, 2, 2]
    mine, theirs = component_power(w, components), 2 / 11 * frequency_power(w)
    np.testing.assert_allclose(np.sort(mine), np.sort(theirs), rtol=1e-9)
    np.testing.assert_allclose(component_share(w, components), frequency_share(w), rtol=1e-9)


def test_weights_of_any_real_type_and_a_constant(as_users_meet_it, key):
    """Integers met a basis rounded to integers; half precision's squares overflow."""
    components = irreducible_components(operation_table("add", 11))
    w = jnp.round(100 * jax.random.normal(key, (4, 11)))
    for dtype in (jnp.int32, jnp.float16, jnp.bfloat16):
        exact = w.astype(dtype).astype(jnp.float32)
        np.testing.assert_allclose(component_power(w.astype(dtype), components), component_power(exact, components))
    assert np.isnan(component_share(jnp.full(11, 0.3), components))
    assert float(component_share(1e4 + jnp.cos(2 * jnp.pi * jnp.arange(11) / 11), components)) == pytest.approx(1)
    with pytest.raises(ValueError, match=r"^weights: got complex64; allowed: real"):
        component_power(w + 1j, components)


def test_multiplication_is_sorted_by_the_discrete_logarithm(x64):
    p, generator = 13, 2
    powers = np.array([pow(generator, k, p) for k in range(p - 1)]) - 1  # element i stands for i + 1
    wave = np.zeros(p - 1)
    wave[powers] = np.cos(2 * np.pi * 3 * np.arange(p - 1) / (p - 1))
    components = irreducible_components(operation_table("multiply", p))
    assert sorted(components.sizes) == [1, 1, 2, 2, 2, 2, 2]
    assert float(component_share(jnp.array(wave), components)) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(("letters", "dimensions"), [(3, (1, 1, 2)), (4, (1, 1, 2, 3, 3)), (5, (1, 1, 4, 4, 5, 5, 6))])
def test_symmetric_group_has_its_representations(x64, letters, dimensions):
    components = irreducible_components(operation_table("permute", letters))
    assert components.sizes[0] == 1
    assert sorted(components.sizes) == [d * d for d in dimensions]
    elements = permutations(letters)
    standard = (elements[:, 0] == 0) - 1 / letters  # a matrix element of the standard representation
    assert float(component_share(jnp.array(standard), components)) == pytest.approx(1, abs=1e-12)
    parity = np.array([np.linalg.det(np.eye(letters)[element]) for element in elements])
    power = component_power(jnp.array(parity), components)
    assert float(power.max()) == pytest.approx(len(elements))
    assert components.sizes[1:][int(power.argmax())] == 1


def test_components_are_invariant_under_translation_and_sum_to_the_norm(x64, key):
    table = operation_table("permute", 4)
    components = irreducible_components(table)
    w = jax.random.normal(key, (24,))
    w = w - w.mean()
    power = component_power(w, components)
    np.testing.assert_allclose(power.sum(), w @ w)
    np.testing.assert_allclose(component_power(w[table[7]], components), power, rtol=1e-9)
    np.testing.assert_allclose(component_power(w[table[:, 7]], components), power, rtol=1e-9)


@pytest.mark.parametrize("table", [operation_table("subtract", 5), np.zeros((3, 3), int), np.zeros((2, 3), int)])
@pytest.mark.usefixtures("as_users_meet_it")
def test_a_table_that_is_no_group_is_refused(table):
    with pytest.raises(ValueError, match="table"):
        irreducible_components(table)
