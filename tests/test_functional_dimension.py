"""Functional dimension against networks whose symmetries are counted by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics import stax
from dynamics.observe import functional_dimension


def network(phi, sizes, key):
    keys = jax.random.split(key, len(sizes))
    params = [
        {"w": jax.random.normal(k, (a, b)), "b": jax.random.normal(jax.random.fold_in(k, 1), (b,))}
        for k, a, b in zip(keys, sizes, sizes[1:])
    ]

    def apply(params, x):
        for layer in params[:-1]:
            x = phi(x @ layer["w"] + layer["b"])
        return x @ params[-1]["w"] + params[-1]["b"]

    return apply, params


def product(params, x):
    return x @ params[0]["w"] @ params[1]["w"]


@pytest.mark.parametrize(
    ("phi", "sizes", "rank"),
    [
        (jnp.tanh, (2, 3, 1), 13),  # 9 + 4, no symmetry but signs and permutations
        (jax.nn.relu, (2, 3, 1), 10),  # a scale for each unit
        pytest.param(lambda z: z, (3, 4, 2), 8, marks=pytest.mark.slow),  # f = A x + a, with A and a of full rank
    ],
    ids=["tanh", "relu", "linear"],
)
def test_rank_is_parameters_less_symmetries(phi, sizes, rank):
    apply, params = network(phi, sizes, jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (400, sizes[0])) * 5
    found = functional_dimension(apply, params, x, batch_size=150)  # float32 in, float64 within
    assert int(found.rank) == rank
    assert found.gap > 4
    assert found.singular_values.dtype == np.float64
    assert found.parameters == sum(leaf.size for leaf in jax.tree.leaves(params))


def test_units_do_not_matter_and_a_product_of_matrices_has_the_dimension_of_its_image(x64):
    """Matrices of rank r, a x c: ``r (a + c - r)``."""
    rng = np.random.default_rng(0)
    params = [{"w": jnp.asarray(rng.normal(size=(5, 2)))}, {"w": jnp.asarray(rng.normal(size=(2, 4)))}]
    x = jnp.asarray(rng.normal(size=(20, 5)))
    found = functional_dimension(product, params, x)
    assert (int(found.rank), found.parameters) == (2 * (5 + 4 - 2), 18)
    scaled = [{"w": params[0]["w"] * 1e6}, {"w": params[1]["w"] * 1e-6}]
    assert int(functional_dimension(product, scaled, x).rank) == 14
    dense = np.reshape(jax.jacobian(lambda w: product([{"w": w}, params[1]], x))(params[0]["w"]), (80, 10))
    alone = functional_dimension(lambda w, x: product([{"w": w}, params[1]], x), params[0]["w"], x, batch_size=7)
    exact = np.linalg.svd(dense / np.linalg.norm(dense, axis=0), compute_uv=False)
    np.testing.assert_allclose(alone.singular_values[:8], exact[:8], rtol=1e-9)
    assert int(alone.rank) == np.linalg.matrix_rank(dense)


@pytest.mark.usefixtures("as_users_meet_it")
def test_what_has_no_rank_is_named():
    model = stax.serial(stax.Dense(1))
    x = jnp.ones((3, 2))
    for call, words in (
        (lambda: functional_dimension(model, jnp.ones(2), x), "apply: got a Model"),
        (lambda: functional_dimension(lambda w, x: x @ w, jnp.ones((2, 1)), x, cut=0.0), "cut: got 0.0; allowed"),
        (lambda: functional_dimension(lambda w, x: x @ w, jnp.ones((2, 1)), x, batch_size=0), "batch_size: got 0"),
        (
            lambda: jax.jit(lambda w: functional_dimension(lambda w, x: x @ w, w, x))(jnp.ones((2, 1))),
            "traced in float32",
        ),
        (lambda: functional_dimension(lambda w, x: x @ w, jnp.ones((2, 1)), x[:0]), r"x: got shape \(0, 2\); allowed"),
        (
            lambda: functional_dimension(lambda w, x: (x @ w).astype(jnp.float32), jnp.ones((2, 1)), x),
            "apply: got float32 of float64; allowed",
        ),
        (lambda: functional_dimension(lambda w, x: x @ w * jnp.nan, jnp.ones((2, 1)), x), "apply: got a Jacobian with"),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            call()
