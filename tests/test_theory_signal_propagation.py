"""Signals in deep random networks: closed forms, published critical points, and the kernel of a deep network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics import stax
from dynamics.theory.activations import moments_of
from dynamics.theory.signal_propagation import (
    correlation_map,
    critical_line,
    critical_point,
    length_map,
    signal_propagation,
)


def test_relu_has_its_closed_forms(precision):
    """q* = b^2 / (1 - W^2/2), chi_1 = W^2/2; critical at W^2 = 2 and b = 0 alone, where every length is kept."""
    tolerance = 1e-5 if precision == "float32" else 1e-12
    weight, bias = jnp.array([0.5, 1.0, 1.9, 2.0, 1.0, 2.5]), jnp.array([0.1, 0.3, 0.2, 0.0, 0.0, 0.2])
    found = signal_propagation(stax.Relu(), jnp.sqrt(weight), jnp.sqrt(bias))
    np.testing.assert_allclose(found.q, [0.1 / 0.75, 0.6, 4.0, 1.0, 0.0, np.inf], rtol=30 * tolerance)
    np.testing.assert_allclose(found.chi, weight / 2, rtol=tolerance)
    np.testing.assert_allclose(found.length_slope, weight / 2, rtol=tolerance)
    np.testing.assert_allclose(found.correlation, 1.0, rtol=tolerance)
    np.testing.assert_allclose(found.gradient_depth[:2], -1 / np.log(weight[:2] / 2), rtol=10 * tolerance)
    critical = critical_point(stax.Relu(), jnp.array([0.0, 0.1]))
    np.testing.assert_allclose(critical.W_std, [2**0.5, np.nan], rtol=tolerance)


@pytest.mark.slow
def test_published_critical_points(x64):
    """tanh at sigma_b^2 = 0.05: sigma_w^2 = 1.76 (Schoenholz et al. 2017). SiLU: chi_1 = 1 and the length map's slope
    is 1 at sigma_w^2 = 1.98800468, K = 14.32017362 (Roberts, Yaida & Hanin 2022, section 5.3.4)."""
    point = critical_point(jnp.tanh, 0.05**0.5)
    assert abs(point.W_std**2 - 1.76) < 0.005
    at = signal_propagation(jnp.tanh, point.W_std, point.b_std)
    np.testing.assert_allclose([at.chi, at.q, at.correlation_slope], [1, point.q, 1], rtol=1e-10)
    assert abs(critical_point(jnp.tanh, 0.0).W_std - 1) < 1e-9
    half_stable = critical_line(jax.nn.silu, 14.32017362)
    np.testing.assert_allclose(half_stable.W_std**2, 1.98800468, rtol=1e-7)
    growth = jax.jvp(length_map(jax.nn.silu, half_stable.W_std, half_stable.b_std), (half_stable.q,), (1.0,))[1]
    np.testing.assert_allclose(growth, 1, rtol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("factor", [0.9, 1.15])  # of the critical sigma_w
def test_deep_kernel_goes_to_the_fixed_points(x64, factor):
    """The kernel of a deep erf network: its variance and correlation, and the rate at which the correlation arrives."""
    w, b = factor * critical_point(stax.Erf(), 0.2).W_std, 0.2
    found = signal_propagation(stax.Erf(), w, b)
    assert (found.chi > 1) == (factor > 1) == (found.correlation < 1)
    x = jax.random.normal(jax.random.key(0), (2, 10))
    layer = stax.serial(stax.Erf(), stax.Dense(1, w, b))
    off = []
    for depth in (40, 50):
        k = stax.serial(stax.Dense(1, w, b), stax.repeat(layer, depth)).kernel(x, None)
        np.testing.assert_allclose(k.var1, found.q, rtol=1e-3 if depth == 40 else 1e-4)
        versine = k.gap[0, 1] / jnp.sqrt(k.var1[0] * k.var1[1])  # 1 - c, with all its digits
        off.append(versine - (1 - found.correlation))
    # Deviations add c * (deviation)^2 to the rate: relative correction of order the last deviation.
    np.testing.assert_allclose((off[1] / off[0]) ** 0.1, found.correlation_slope, rtol=1e-2 * factor)
    assert abs(off[1]) < 0.05


@pytest.mark.slow
def test_layer_and_function_agree(x64):
    """The closed form of erf against its Hermite series, through both maps."""
    q, c = jnp.array([0.1, 0.8, 2.0]), jnp.array([-0.7, 0.3, 0.999])
    series, closed = jax.scipy.special.erf, stax.Erf()
    np.testing.assert_allclose(length_map(series, 1.3, 0.1)(q), length_map(closed, 1.3, 0.1)(q), rtol=1e-9)
    maps = [jax.jit(correlation_map(phi, 1.3, 0.1, q=q)) for phi in (series, closed)]
    np.testing.assert_allclose(maps[0](c), maps[1](c), rtol=1e-9)
    cosine = jax.jvp(correlation_map(closed, 1.3, 0.1), (0.4,), (1.0,))[1]
    assert 0 < cosine < 1.3**2 * 4 / np.pi


@pytest.mark.slow
def test_derivatives_of_fixed_points(x64):
    """To (W_std, b_std) against central differences (error step^2 and eps/step, near 1e-10), in the chaotic phase."""

    def read(w, b):
        found = signal_propagation(stax.Erf(), w, b)
        return jnp.stack([found.q, found.chi, found.correlation, found.correlation_depth, found.length_depth])

    step, at = 1e-5, (1.7, 0.3)
    exact = jax.jacfwd(read, (0, 1))(*at)
    for slope, (dw, db) in zip(exact, ((step, 0.0), (0.0, step)), strict=True):
        numeric = (read(at[0] + dw, at[1] + db) - read(at[0] - dw, at[1] - db)) / (2 * step)
        np.testing.assert_allclose(slope, numeric, rtol=1e-6)


@pytest.mark.slow
def test_derivative_to_an_activation_parameter(x64):
    """Leaky ReLU: chi_1 = W^2 (1 + a^2) / 2."""
    slope = jax.grad(lambda a: signal_propagation(stax.LeakyRelu(a), 0.8, 0.3).chi)(0.3)
    np.testing.assert_allclose(slope, 0.8**2 * 0.3, rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: signal_propagation(stax.Relu(), -1.0), "W_std: got -1.0; allowed: a number >= 0"),
        (lambda: signal_propagation(stax.Relu(), 1.0, -0.1), "b_std: got -0.1; allowed: a number >= 0"),
        (lambda: signal_propagation(stax.Relu(), 1.0, start=0.0), "start: got 0.0; allowed: a number > 0"),
        (lambda: critical_point(stax.Relu(), -1.0), "b_std: got -1.0"),
        (lambda: length_map(stax.Dense(3), 1.0)(1.0), "activation: got a layer of weights"),
    ],
)
def test_bad_input_is_named(call, named):
    with pytest.raises(ValueError, match=named):
        call()


def test_the_edge_of_a_function_with_a_kink(x64):
    """ELU: ``E phi'^2 = 1/2 + e^{2q} Phi(-2s)``, ``E phi^2 = q/2 + e^{2q} Phi(-2s) - 2 e^{q/2} Phi(-s) + 1/2``; on the
    edge the correlation map has slope 1 at c = 1 to the series' last digits, so that nothing stalls."""
    q = 1.5
    s, below = q**0.5, jax.scipy.stats.norm.cdf
    slope = 0.5 + np.exp(2 * q) * below(-2 * s)
    square = q / 2 + slope - 2 * np.exp(q / 2) * below(-s)
    edge = critical_line(jax.nn.elu, q)
    np.testing.assert_allclose([edge.W_std**2, edge.b_std**2], [1 / slope, q - square / slope], rtol=1e-9)
    gap = jax.jit(moments_of(jax.nn.elu))(q, 1e-7)[1]
    np.testing.assert_allclose(gap / 1e-7 / slope, 1, rtol=1e-7)
    _, gap, slope = jax.jit(moments_of(jnp.sign))(q, 0.1)
    assert np.isnan([gap, slope]).all()  # a jump: chi_1 is infinite


def test_an_edge_that_depth_does_not_reach_is_marked(x64):
    """GELU at q = 1.5 has length slope 1.0426 by a difference of the map; the length leaves q, on tanh's edge it does
    not."""
    q = 1.5
    for phi, stable in ((jax.nn.gelu, False), (jnp.tanh, True), (stax.Relu(), True)):
        edge = critical_line(phi, q)
        step = length_map(phi, edge.W_std, edge.b_std)
        numeric = (step(q + 1e-5) - step(q - 1e-5)) / 2e-5  # rounding 1e-11
        np.testing.assert_allclose(edge.length_slope, numeric, rtol=1e-8)
        assert edge.stable == stable
    assert abs(float(critical_line(jax.nn.gelu, q).length_slope) - 1.0426) < 1e-4


@pytest.mark.parametrize("q", [0.0, -1.0, float("nan"), [1.0, 0.0]])
def test_an_edge_needs_a_positive_length(q):
    with pytest.raises(ValueError, match="q: got"):
        critical_line(jnp.tanh, jnp.asarray(q))
