"""Kernel descent, hierarchical and infinitely deep kernels, abc-parametrisations: identities, limits, references."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics import stax
from dynamics.theory import abc
from dynamics.theory.hierarchical import arc_cosine, hierarchical_ntk
from dynamics.theory.infinite_depth import (
    dual_with_singularity,
    limiting_classifier,
    log_deep_ntk,
    singularity,
)


@pytest.mark.parametrize("depth", [2, *(pytest.param(depth, marks=pytest.mark.slow) for depth in (1, 3))])
def test_hierarchical_kernel_is_that_of_a_convolutional_network(x64, key, depth):
    """Against stax: Conv and Relu stacked with non-overlapping filters, then a mean over positions and a readout."""
    layers = []
    for _ in range(depth):
        layers += [stax.Conv(8, (2,), (2,), padding="VALID", W_std=2**0.5), stax.Relu()]
    kernel_fn = stax.serial(*layers, stax.GlobalAvgPool(), stax.Dense(1)).kernel
    patches = 2 ** (depth - 1)
    x = jax.random.normal(key, (3, patches, 2))
    x = (x / jnp.linalg.norm(x, axis=-1, keepdims=True)).reshape(3, 2 * patches, 1)
    reference = kernel_fn(x, None, "ntk")
    units = x.reshape(3, patches, 2)
    got = hierarchical_ntk(jnp.einsum("api,bpi->abp", units, units), depth)
    np.testing.assert_allclose(got / got[0, 0], reference / reference[0, 0], atol=1e-10)


def test_arc_cosine_derivative(x64):
    t = jnp.linspace(-0.9, 0.9, 7)
    np.testing.assert_allclose(jax.vmap(jax.grad(lambda t: arc_cosine(t)[0]))(t), arc_cosine(t)[1], rtol=1e-9)
    with pytest.raises(ValueError, match="depth"):
        hierarchical_ntk(jnp.ones(3), 2)


def test_deep_ntk_matches_the_plain_recursion(precision):
    """The logarithmic recursion against the direct one, and the ReLU-free polynomial at depth 5."""
    dual, t = (0.1, 0.4, 0.2, 0.3), np.linspace(0.05, 1.0, 9)
    sigma = theta = t
    for _ in range(5):
        slope = sum(i * w * sigma ** (i - 1) for i, w in enumerate(dual) if i)
        sigma = sum(w * sigma**i for i, w in enumerate(dual))
        theta = theta * slope + sigma
    got = np.exp(log_deep_ntk(t, dual, 5))
    np.testing.assert_allclose(got, theta, rtol=3e-6 if precision == "float32" else 1e-13)


@pytest.mark.slow
def test_deep_kernels_are_differentiable(x64):
    """log Theta along the overlap, and the hierarchical kernel along each patch, against central differences."""
    dual = (0.1, 0.4, 0.2, 0.3)
    finite = np.diff(log_deep_ntk(jnp.array([0.4 - 1e-6, 0.4 + 1e-6]), dual, 5))[0] / 2e-6
    np.testing.assert_allclose(jax.grad(lambda t: log_deep_ntk(t, dual, 5))(0.4), finite, rtol=1e-6)
    t, step = jnp.array([0.3, -0.2]), jnp.array([1e-6, 0.0])
    finite = (hierarchical_ntk(t + step, 2) - hierarchical_ntk(t - step, 2)) / 2e-6
    np.testing.assert_allclose(jax.grad(hierarchical_ntk)(t, 2)[0], finite, rtol=1e-6)


@pytest.mark.slow
def test_hierarchical_kernel_in_single_precision():
    t = np.linspace(-0.9, 0.9, 8).reshape(2, 4)
    got = hierarchical_ntk(jnp.asarray(t, jnp.float32), 3)
    assert got.dtype == jnp.float32
    with jax.enable_x64(True):
        np.testing.assert_allclose(got, hierarchical_ntk(jnp.asarray(t), 3), rtol=1e-6)


def test_singular_limit_has_its_exponent(x64):
    """Theta_L(t) ~ (1 - t)^(-alpha/2) where L >> 1/(1 - t), log-periodic ripple aside: 5 %."""
    for alpha in (1.5, 2.0, 3.0):
        dual = dual_with_singularity(alpha)
        gaps = np.geomspace(1e-3, 3e-2, 30)
        log_theta = log_deep_ntk(1 - gaps, dual, 100_000)
        slope = np.polyfit(np.log(gaps), log_theta, 1)[0]
        np.testing.assert_allclose(-2 * slope, alpha, rtol=0.05)
        np.testing.assert_allclose(singularity(dual), alpha, rtol=1e-9)


def test_classifiers_by_dual_activation():
    assert limiting_classifier((0.3, 0.7)) == "majority"
    assert limiting_classifier((0.0, 0.0, 0.5, 0.5)) == "nearest"
    with pytest.raises(ValueError, match="dual"):
        singularity((0.0, 0.0, 1.0))
    with pytest.raises(ValueError, match="dual"):
        limiting_classifier((0.5, 0.6))
    with pytest.raises(ValueError, match="alpha"):
        dual_with_singularity(1.0)


def test_feature_exponents_of_known_parametrisations():
    """Yang & Hu 2021, table 1: NTK and SP (eta/n) are kernel regimes, muP learns features, SP at O(1) rates blows up.

    With one hidden layer SP hardly moves it, r = 3/2; there O(1) rates move it by O(1) and the output still blows up.
    """
    assert abc.feature_exponent(abc.standard(2)) == 1.5
    for layers in (2, 3, 5):
        assert abc.feature_exponent(abc.ntk(layers)) == 0.5
        assert layers == 2 or abc.feature_exponent(abc.standard(layers)) == 0.5
        assert abc.feature_exponent(abc.maximal_update(layers)) == 0.0
        assert abc.feature_exponent(abc.standard(layers, c=0.0)) == (0.0 if layers == 2 else -1.0)
        assert not abc.is_stable(abc.standard(layers, c=0.0))
    assert all(abc.is_stable(kind(3)) for kind in (abc.ntk, abc.standard, abc.maximal_update))
    assert not abc.is_stable(abc.standard(3, c=0.0))
    with pytest.raises(ValueError, match="parametrisation"):
        abc.feature_exponent(abc.Parametrisation((0.0,), (0.0,), 0.0))
