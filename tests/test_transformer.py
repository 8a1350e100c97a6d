"""The transformer's last token, against a plain full-sequence implementation; two-layer networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics.models.transformer import transformer
from dynamics.models.two_layer import committee, quadratic, two_layer


def plain(p, x):
    """Every token's stream formed, one sample, head and position at a time."""
    out = []
    for tokens in np.asarray(x):
        stream = np.asarray(p.embed)[tokens] + np.asarray(p.position)
        added = np.zeros_like(stream)
        for q, k, v, o in zip(*(np.asarray(w) for w in (p.query, p.key, p.value, p.output))):
            scores = (stream @ q) @ (stream @ k).T / q.shape[1] ** 0.5
            weight = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
            added += weight @ (stream @ v) @ o
        stream = stream + added
        stream = stream + np.maximum(stream @ p.up + p.up_bias, 0) @ p.down + p.down_bias
        out.append(stream[-1] @ p.unembed)
    return np.array(out)


def test_transformer_is_the_plain_one(x64, key):
    model = transformer(6, 5, width=8, heads=2, mlp=12)
    shape, params = model.init(key, (-1, 3))
    x = jax.random.randint(key, (7, 3), 0, 6)
    assert shape == (-1, 5)
    np.testing.assert_allclose(model.apply(params, x), plain(params, x), rtol=1e-10)
    np.testing.assert_allclose(model.apply(params, jax.nn.one_hot(x, 6)), plain(params, x), rtol=1e-10)


def test_transformer_needs_positions_to_tell_order(x64, key):
    model = transformer(6, 5, width=8, heads=2)
    _, params = model.init(key, (-1, 3))
    x = jnp.array([[1, 2, 5], [2, 1, 5]])
    first, second = model.apply(params._replace(position=jnp.zeros((3, 8))), x)
    np.testing.assert_allclose(first, second, rtol=1e-10)
    assert not np.allclose(*model.apply(params, x))


def test_transformer_names_bad_sizes():
    with pytest.raises(ValueError, match="heads"):
        transformer(6, 5, width=10, heads=4)


def test_committee_is_the_mean_over_neurons(precision, key):
    model = committee(9, quadratic(0.3))
    _, weights = model.init(key, (-1, 4))
    x = jax.random.normal(key, (5, 4))
    expected = np.mean([[h + 0.15 * h * h for h in np.asarray(w @ x.T)] for w in weights], axis=0)
    np.testing.assert_allclose(model.apply(weights, x)[:, 0], expected, rtol=1e-4, atol=1e-6)
    signs = np.array([1.0] * 5 + [-1.0] * 4)
    signed = committee(9, quadratic(0.3), signs=signs)
    np.testing.assert_allclose(
        signed.apply(weights[jnp.arange(9)], x) + signed.apply(weights, -x) * 0, signed.apply(weights, x)
    )


def test_two_layer_is_homogeneous(x64, key):
    model = two_layer(7, 3, jnp.square)
    _, params = model.init(key, (-1, 4))
    x = jax.random.normal(key, (5, 4))
    doubled = jax.tree.map(lambda leaf: 2 * leaf, params)
    np.testing.assert_allclose(model.apply(doubled, x), 8 * model.apply(params, x), rtol=1e-12)
    assert float(jnp.max(jnp.abs(params.first))) <= 4**-0.5


@pytest.mark.parametrize("make", [lambda: committee(0, jnp.square), lambda: two_layer(0, 1, jnp.square)])
def test_bad_width_is_named(make):
    with pytest.raises(ValueError, match="width"):
        make()


def test_bad_signs_are_named():
    with pytest.raises(ValueError, match="signs"):
        committee(3, jnp.square, signs=np.ones(2))
