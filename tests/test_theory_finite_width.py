"""Depth over width: the book's asymptotics, Gaussian integrals by parts, and networks drawn by every law of weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics import stax
from dynamics.stax.activations.quadrature import gauss_hermite
from dynamics.theory.finite_width import finite_width, relu_log_law, relu_second_moment

LAWS = {"gaussian": None, "haar": stax.Haar(), "low rank": stax.LowRank(4), "sparse": stax.Sparse(0.25)}


def test_tanh_and_relu_are_two_classes(x64):
    """tanh at (1, 0): K -> 1/(2l), V/K^2 -> 2l/3, G^{1}/K -> -l/3 (PDLT chapter 5, to O(log l / l)); ReLU at
    (sqrt 2, 0): 5l exactly, no shift."""
    depth = 2000
    tanh = finite_width(jnp.tanh, jnp.ones(depth))
    layers = np.arange(depth + 1)
    np.testing.assert_allclose(2 * layers[-1] * tanh.K[-1], 1, atol=5e-3)
    np.testing.assert_allclose(tanh.relative[-1] / layers[-1], 2 / 3, atol=2e-3)
    np.testing.assert_allclose(tanh.shift[-1] / tanh.K[-1] / layers[-1], -1 / 3, atol=3e-3)
    relu = finite_width(stax.Relu(), jnp.ones(8), 2**0.5, start=3.0)
    np.testing.assert_allclose(relu.K, 3.0, rtol=1e-12)
    np.testing.assert_allclose(relu.relative, 5.0 * layers[:9], rtol=1e-10)
    np.testing.assert_allclose(relu.shift, 0.0, atol=1e-10)


def test_one_layer_by_parts(x64):
    """``g' = C/(2K) E phi^2 (z^2 - 1)``, ``g'' = C/(4K^2) E phi^2 (z^4 - 6 z^2 + 3)``, with bias and other widths."""
    z, p = gauss_hermite(100)
    K, C, b = 0.7, 1.3**2, 0.4

    def expect(values):
        return float(np.sum(p * values))

    def layer(K, n, variance, shift):
        square = np.tanh(K**0.5 * z) ** 2
        first, second = (expect(square * f) for f in (z**2 - 1, z**4 - 6 * z**2 + 3))
        first, second = C * first / (2 * K), C * second / (4 * K**2)
        noise = C**2 * (expect(square**2) - expect(square) ** 2) / n
        return C * expect(square) + b**2, first**2 * variance + noise, first * shift + second * variance / 2

    one = layer(K, 10, 0.0, 0.0)
    two = layer(one[0], 20, *one[1:])
    found = finite_width(jnp.tanh, [10, 20], 1.3, b, start=K)
    np.testing.assert_allclose([value[2] for value in found], two, rtol=1e-8)


def test_kinks_count_wherever_they_are(x64):
    """hardtanh against dense sums; derivatives by parts, to the 1e-4 of the nodes. A
    jump that the nodes do not meet gives NaN, and no number."""
    z = np.linspace(-10, 10, 400_001)
    p = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi) * (z[1] - z[0])

    def moments(K):
        square = np.clip(K**0.5 * z, -1, 1) ** 2
        first, second = p @ (square * (z**2 - 1)) / (2 * K), p @ (square * (z**4 - 6 * z**2 + 3)) / (4 * K**2)
        return p @ square, first, second, p @ square**2 - (p @ square) ** 2

    K, _, _, noise = moments(0.8)
    after, first, second, more = moments(K)
    found = finite_width(lambda x: jnp.clip(x, -1, 1), [10, 20], start=0.8)
    expected = after, first**2 * noise / 10 + more / 20, second * noise / 20
    np.testing.assert_allclose([value[2] for value in found], expected, rtol=1e-3)
    assert np.isnan(finite_width(lambda x: (x > 1) * 1.0, [10.0], start=0.8).K[1])
    np.testing.assert_allclose(finite_width(jnp.sign, [10.0]).K, 1.0)


def test_large_width_limits():
    """A layer adds 5/n (Gaussian), 3/n (Haar), 5/n + 2/r - 2/n (rank r) to both variances, to O(1/n^2)."""
    n, depth = 2000, 4
    more = {"gaussian": 0.0, "haar": -2 / n, "low rank": 2 / 400 - 2 / n}
    for name, law in ("gaussian", None), ("haar", stax.Haar()), ("low rank", stax.LowRank(400)):
        expected = 5 / n * depth + more[name] * (depth - 1)
        found = relu_log_law(n, depth, law)
        np.testing.assert_allclose(found.variance[-1], expected, rtol=0.01)
        np.testing.assert_allclose(found.mean[-1], -expected / 2, rtol=0.01)
        np.testing.assert_allclose(relu_second_moment(n, depth, law)[-1] - 1, expected, rtol=0.01)
    np.testing.assert_allclose(relu_second_moment(16, 5, stax.Sparse(1.0)), relu_second_moment(16, 5), rtol=1e-12)
    np.testing.assert_allclose(relu_log_law(16, 5, stax.LowRank(16)).mean, relu_log_law(16, 5).mean, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", LAWS)
def test_drawn_networks_have_these_laws(name):
    """4000 networks of width 8, three layers: mean and variance of log G, and E G^2, within 4 standard errors."""
    n, depth, draws, law = 8, 3, 4000, LAWS[name]
    first = stax.Dense(n, 2**0.5)
    hidden = stax.serial(stax.Relu(), stax.Dense(n, 2**0.5, weights=law))
    model = stax.serial(first, *[hidden] * (depth - 1), stax.Relu())
    x = jnp.ones((1, 5))  # |x|^2 / 5 = 1: first preactivations of variance 2

    def length(key):
        params = model.init(key, x.shape)[1]
        return jnp.sum(model.apply(params, x) ** 2) / n  # G_L / G_0 for G_0 = 2

    found = np.asarray(jax.jit(jax.vmap(length))(jax.random.split(jax.random.key(1), draws)), float)
    square = found**2
    exact = relu_second_moment(n, depth, law)[-1]
    assert abs(square.mean() - exact) < 4 * square.std() / draws**0.5
    if name != "sparse":
        logs, law = np.log(found[found > 0]), relu_log_law(n, depth, law)
        assert abs(logs.mean() - law.mean[-1]) < 4 * logs.std() / draws**0.5
        spread = (logs - logs.mean()) ** 2
        assert abs(spread.mean() - law.variance[-1]) < 4 * spread.std() / draws**0.5


@pytest.mark.parametrize(
    ("call", "error", "named"),
    [
        (lambda: finite_width(jnp.tanh, [3.0, 0.0]), ValueError, "widths: got"),
        (lambda: finite_width(jnp.tanh, [float("nan")]), ValueError, "widths: got"),
        (lambda: finite_width(jnp.tanh, 3.0), ValueError, "widths: got 3.0; allowed: a list of positive numbers"),
        (lambda: finite_width(jnp.tanh, [3.0], -1.0), ValueError, "W_std: got -1.0; allowed: a number >= 0"),
        (lambda: finite_width(jnp.tanh, [3.0], jnp.ones(2)), ValueError, "W_std: got shape"),
        (lambda: finite_width(jnp.tanh, [3.0], start=0.0), ValueError, "start: got 0.0; allowed: a number > 0"),
        (lambda: relu_log_law(2.5, 3), ValueError, "width: got 2.5; allowed: an integer >= 1"),
        (lambda: relu_second_moment(3, 2.5), ValueError, "depth: got 2.5; allowed: an integer >= 1"),
        (lambda: stax.Dense(3, weights=stax.LowRank(True)), ValueError, "rank: got True; allowed: an integer >= 1"),
        (lambda: stax.Dense(3, weights=stax.Sparse("a")), ValueError, "density: got a; allowed"),
        (lambda: relu_log_law(0, 3), ValueError, "width: got 0; allowed: an integer >= 1"),
        (lambda: relu_log_law(4, 3, stax.Sparse(0.5)), ValueError, "weights: got Sparse"),
        (lambda: stax.Dense(3, weights=stax.Haar), TypeError, "weights: got the class Haar; allowed: None, stax.Haar"),
        (lambda: stax.Dense(3, weights=stax.Sparse(0.0)), ValueError, "density: got 0.0; allowed"),
        (lambda: stax.Dense(3, weights=stax.LowRank(0)), ValueError, "rank: got 0; allowed: an integer >= 1"),
    ],
)
def test_bad_input_is_named(call, error, named, as_users_meet_it):
    with pytest.raises(error, match=named):
        call()
