"""Sign changes along a curve: lines through a circle, the derivative form of Rice's formula, drawn networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics import observe, stax
from dynamics.theory.regions import crossing_probabilities, expected_breakpoints
from dynamics.types import View

BIAS = 0.5


def network(width, depth):
    """Preactivations of layer ``depth`` at weight variance 2/fan_in and bias deviation ``BIAS``."""
    layer = stax.Dense(width, 2**0.5, BIAS)
    return stax.serial(layer, *[stax.serial(stax.Relu(), layer)] * (depth - 1))


def ellipse(points):
    s = jnp.linspace(0, 2 * jnp.pi, points)
    return jnp.stack([jnp.cos(s), 0.5 * jnp.sin(s)], -1)


@pytest.mark.parametrize("depth", [1, 3])
def test_the_density_is_rices(x64, depth):
    """``q = |x|^2 + l b^2, m = x.x', r = |x'|^2``: a ReLU layer of variance 2 leaves m and r alone. To O(ds^2)."""
    points = 2001
    x = ellipse(points)
    ds = 2 * np.pi / (points - 1)
    s = ds * (np.arange(points - 1) + 0.5)
    at = np.stack([np.cos(s), 0.5 * np.sin(s)], -1)
    moves = np.stack([-np.sin(s), 0.5 * np.cos(s)], -1)
    q, m, r = (at**2).sum(-1) + depth * BIAS**2, (at * moves).sum(-1), (moves**2).sum(-1)
    rate = np.sqrt(r / q - (m / q) ** 2) / np.pi
    found = jax.jit(lambda x: crossing_probabilities(network(1, depth).kernel, x))(x)
    # The kernel's next term is |ds|^3 for ReLU layers: rates agree to O(ds) behind one.
    np.testing.assert_allclose(found / ds, rate, rtol=3e-6 if depth == 1 else 0.01)


@pytest.mark.slow
def test_drawn_networks_change_sign_as_often():
    """First layer: Gaussian at any width, 400 networks, 4 standard errors on 40 points."""
    x, model = ellipse(40), network(16, 1)
    count = observe.breakpoints(lambda params, x: {"h": model.apply(params, x)}, x)

    def one(key):
        return count.update((), View(model.init(key, x.shape)[1], None))[1]["breakpoints/h"]

    found = jax.vmap(one)(jax.random.split(jax.random.key(2), 400))
    assert abs(found.mean() - expected_breakpoints(model.kernel, x, 16)) < 4 * found.std() / 20


def test_points_of_any_size_at_the_origin_and_twice():
    """Scale does not count without biases; one output of variance 0: 1/2; a point twice: 0, and no NaN gradient."""
    kernel = stax.serial(stax.Dense(1, 2**0.5), stax.Relu(), stax.Dense(1, 2**0.5)).kernel
    x = jnp.array([[1.0, 2.0], [1.0, 3.0], [0.0, 0.0], [0.0, 0.0], [2.0, 1.0], [2.0, 1.0]])
    found = crossing_probabilities(kernel, x)
    np.testing.assert_allclose(found[1:], [0.5, 0, 0.5, 0], atol=1e-6)
    np.testing.assert_allclose(crossing_probabilities(kernel, 1e12 * x), found, rtol=1e-5, atol=1e-6)
    assert np.isnan(crossing_probabilities(kernel, x.at[1, 0].set(jnp.nan))[0])
    assert np.isfinite(jax.grad(lambda x: crossing_probabilities(kernel, x).sum())(x)).all()


def test_bad_input_is_named(as_users_meet_it):
    with pytest.raises(TypeError, match="kernel: got a Model; allowed"):
        crossing_probabilities(stax.Dense(1), jnp.ones((3, 2)))
    with pytest.raises(ValueError, match="width: got -3; allowed: an integer >= 1"):
        expected_breakpoints(stax.Dense(1).kernel, jnp.ones((3, 2)), -3)
    curve = jnp.array([[-1.0], [1.0], [2.0]])
    for got, error, named in (
        (lambda params, x: x, TypeError, "preactivations: got"),
        (lambda params, x: {"h": x.T}, ValueError, r"preactivations: got shape \(1, 3\) at h; allowed: \(3, ...\)"),
    ):
        with pytest.raises(error, match=named):
            observe.breakpoints(got, curve).update((), View(None, None))
    with pytest.raises(ValueError, match="curve: got 1 point; allowed: two or more"):
        observe.breakpoints(lambda params, x: {"h": x}, curve[:1])
    lost = observe.breakpoints(lambda params, x: {"h": jnp.nan * x}, curve).update((), View(None, None))[1]
    assert np.isnan(lost["breakpoints/h"])
    with pytest.raises(ValueError, match="x: got 1 point; allowed: two or more"):
        crossing_probabilities(stax.Dense(1).kernel, jnp.ones((1, 2)))
    with pytest.raises(ValueError, match="kernel: got one of activations"):
        crossing_probabilities(stax.serial(stax.Dense(1), stax.Relu()).kernel, jnp.ones((3, 2)))
