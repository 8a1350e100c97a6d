"""Spectral densities and eigenvalues of each operator and of each layer against dense spectra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from dynamics import operators
from dynamics.losses import half_mse
from dynamics.observe import (
    density,
    eigenvalues,
    gauss_newton_density,
    hessian_density,
    hessian_eigenvalues,
    joined,
    layer_densities,
    layer_eigenvalues,
    ntk_density,
)
from dynamics.types import Batch, Objective, View


def apply(params, x):
    return jnp.tanh(x @ params["first"]) @ params["second"]


L = Objective(apply, half_mse)


@pytest.fixture
def problem(x64):
    keys = jax.random.split(jax.random.key(0), 4)
    params = {"first": jax.random.normal(keys[0], (3, 5)), "second": jax.random.normal(keys[1], (5, 2))}
    return params, Batch(jax.random.normal(keys[2], (8, 3)), jax.random.normal(keys[3], (8, 2)))


def dense(params, batch):
    """``(H, G, K)``."""
    theta, unravel = ravel_pytree(params)
    jacobian = np.asarray(jax.jit(jax.jacobian(lambda v: apply(unravel(v), batch.x).ravel()))(theta))
    hessian = jax.jit(jax.hessian(lambda v: half_mse(apply(unravel(v), batch.x), batch.y)))(theta)
    return np.asarray(hessian), jacobian.T @ jacobian / len(batch.x), jacobian @ jacobian.T


def agrees(readings, name, matrix):
    """Every integral within 4 standard errors of the dense one; the negative mass with a zone around 0."""
    spectrum = np.linalg.eigvalsh(matrix)
    for moment, truth in (("trace", spectrum.sum()), ("frobenius_squared", (spectrum**2).sum())):
        assert abs(readings[f"{name}_{moment}"] - truth) <= 4 * readings[f"{name}_{moment}_error"]
    np.testing.assert_allclose(readings[f"{name}_density_nodes"].max(), spectrum[-1], rtol=1e-6)
    np.testing.assert_allclose(np.sum(readings[f"{name}_density_weights"], -1), 1, rtol=1e-9)


@pytest.mark.slow
def test_densities_of_operators_and_layers_against_dense_spectra(problem):
    options = {"probes": 30, "steps": 14}
    first = operators.blocks(problem[0])["first"]

    observed = (
        hessian_density(**options),
        gauss_newton_density(**options),
        ntk_density(**options),
        layer_densities(operators.gauss_newton, "gn", probes=30, steps=10),
        hessian_density(where=first, probes=30, steps=10),
    )

    @jax.jit
    def read(params, batch):
        return [observable.update((), View(params, batch, L))[1] for observable in observed]

    whole, gauss_newton, kernel, layers, one_block = read(*problem)
    h, g, k = dense(*problem)
    agrees(whole, "hessian", h)
    agrees(gauss_newton, "gauss_newton", g)
    agrees(kernel, "ntk", k)
    agrees(layers, "gn/first", g[:15, :15])
    agrees(layers, "gn/second", g[15:, 15:])
    agrees(one_block, "hessian", h[:15, :15])


def test_eigenvalues_of_operators_and_layers_are_those_of_the_dense_blocks(problem):
    """At two readings; a block has no more of them than parameters, and none above the whole's largest."""
    params, batch = problem
    read = joined(
        layer_eigenvalues(operators.hessian, "hessian", 12),
        layer_eigenvalues(operators.gauss_newton, "gn", 2, which="smallest"),
        hessian_eigenvalues(3, where=operators.blocks(params)["second"]),
        eigenvalues(lambda view: operators.ntk(L, view.params, view.batch), "ntk", 4),
    )
    memory = read.init(View(params, batch, L))
    update = jax.jit(lambda memory, params: read.update(memory, View(params, batch, L)))
    for point in (params, jax.tree.map(lambda leaf: 1.1 * leaf, params)):
        memory, found = update(memory, point)
        h, g, k = dense(point, batch)
        exact = {
            "hessian/first_eigenvalues": np.linalg.eigvalsh(h[:15, :15])[::-1][:12],
            "hessian/second_eigenvalues": np.linalg.eigvalsh(h[15:, 15:])[::-1],
            "gn/first_smallest": np.linalg.eigvalsh(g[:15, :15])[:2],
            "gn/second_smallest": np.linalg.eigvalsh(g[15:, 15:])[:2],
            "hessian_eigenvalues": np.linalg.eigvalsh(h[15:, 15:])[::-1][:3],
            "ntk_eigenvalues": np.linalg.eigvalsh(k)[::-1][:4],
        }
        for name, values in exact.items():
            np.testing.assert_allclose(found[name], values, rtol=1e-9, atol=1e-12)
            assert set(found) >= {f"{name}_residual", f"{name}_limit", f"{name}_matvecs"}
        assert max(found[f"hessian/{layer}_eigenvalues"][0] for layer in params) <= np.linalg.eigvalsh(h)[-1] + 1e-12


def test_too_few_probes_are_refused(problem):
    with pytest.raises(ValueError, match=r"^probes: got 1"):
        density(lambda view: operators.ntk(L, view.params, view.batch), "ntk", probes=1).update((), View(*problem))
