"""Layers refuse what they cannot mean: one sentence that names the argument and its value."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics import stax
from dynamics.stax.kernel import inputs

SEQUENCES = jnp.ones((2, 4, 3))
CONTRACTED = (((0,), (0,)), ((), ()))


def channels_first(*layers):
    return stax.serial(stax.Dense(4, channel_axis=1), *layers).kernel(jnp.ones((2, 3, 4, 5)))


BAD = [
    (lambda: stax.Dense(3, W_std=-1.0), "W_std: got -1.0; allowed: a number >= 0"),
    (lambda: stax.Conv(3, (2, 2), b_std=-0.5), "b_std: got -0.5; allowed: a number >= 0"),
    (lambda: stax.Conv(3, (2, 2), (1,)), "strides"),
    (lambda: stax.serial(stax.Dense(3), stax.Relu), "serial: got Relu at 1; allowed: .* call it"),
    (lambda: stax.parallel(jnp.tanh), "parallel: got"),
    (lambda: stax.GlobalSelfAttention(1, 1, 1, 0), "n_heads"),
    (lambda: stax.FanInSum().init(jax.random.key(0), [(1, 3), (1, 4)]), "FanInSum: got branches of shapes"),
    (lambda: stax.FanInConcat(7).init(jax.random.key(0), [(1, 3), (1, 4)]), "axis: got 7 for inputs"),
    (lambda: stax.serial(stax.Dense(4), stax.LayerNorm(5)).kernel(jnp.ones((2, 3))), "axis: got 5 for inputs"),
    (lambda: stax.Dense(1).kernel(jnp.ones((2, 3)), None, 3), "get: got 3; allowed: None"),
    (lambda: stax.Dense(1).kernel(jnp.ones((2, 3)), diagonal_batch=False), "diagonal_batch: got False"),
    (
        lambda: stax.Embedding(3, 4).apply((jnp.ones((3, 4)),), jnp.array([[0, 3]])),
        "inputs: got token 3; allowed: 0 to",
    ),
    (lambda: stax.Embedding(3, 4).apply((jnp.ones((3, 4)),), jnp.array([[-1, 9]])), "inputs: got token -1"),
    (
        lambda: stax.serial(stax.Relu(), stax.Relu()).kernel(jnp.ones((2, 3))),
        "inputs: got those of a nonlinearity; allowed: Gaussian ones",
    ),
    (lambda: channels_first(stax.GlobalAvgPool()), "channel_axis: got 3 for an input .* allowed: 1"),
    (lambda: channels_first(stax.Flatten(0, 1), stax.Dense(1)), "batch_axis: got 0 for an input"),
    (lambda: stax.Dense(1).kernel(jnp.ones((2, 0))), "x1: got .* allowed: real numbers, at least one channel"),
    (lambda: stax.Dense(1).kernel(jnp.ones((2, 3), complex)), "x1: got complex.* allowed: real numbers"),
    (lambda: stax.Dense(1).kernel(jnp.ones((2, 3)), None, ("ntk", "ntk")), "get: got .*; allowed: each attribute once"),
    (lambda: stax.Dense(1).kernel(jnp.ones((2, 3)), None, ("ntk", 3)), "get: got 3; allowed: "),
    (
        lambda: stax.Dense(1).kernel(stax.Dense(1).kernel(jnp.eye(2)), jnp.eye(2)),
        "x2: got .* beside a Kernel; allowed: None",
    ),
    (lambda: stax.Kernel.from_covariances(jnp.eye(2)), "cov1 None"),
    (lambda: stax.AvgPool((1,)).kernel(SEQUENCES, mask_constant=1.0), "mask_constant: got a mask with 3 channels"),
    (lambda: stax.Rnn(4, stax.Relu()).kernel(SEQUENCES, mask_constant=1.0), "mask_constant: got masked inputs of Rnn"),
    (lambda: stax.Aggregate().kernel(SEQUENCES, pattern=jnp.ones((2, 4, 4))), "pattern: got .* allowed: a pair"),
    (
        lambda: stax.Aggregate().kernel(SEQUENCES, SEQUENCES, pattern=(jnp.ones((2, 4, 4)), None)),
        "pattern: got one of two",
    ),
    (lambda: stax.Aggregate().apply((), SEQUENCES, pattern=jnp.ones((2, 3, 4))), "pattern: got shape"),
    (lambda: stax.Aggregate(implementation="SPARSE").apply((), SEQUENCES, pattern=jnp.ones((2, 4, 4))), "pattern: got"),
    (lambda: stax.Aggregate(2).apply((), SEQUENCES, pattern=jnp.ones((2, 4, 4))), "aggregate_axis: got 2"),
    (lambda: stax.DotGeneral(lhs=1.0, rhs=1.0), "lhs, rhs: got both"),
    (
        lambda: stax.DotGeneral(rhs=jnp.ones(2), dimension_numbers=CONTRACTED).kernel(SEQUENCES),
        "dimension_numbers: got",
    ),
    (lambda: stax.ImageResize((-1, 2, -1), "cubic").kernel(SEQUENCES), "method: got 'cubic'"),
    (lambda: stax.ImageResize((3, 2, -1), "linear").kernel(SEQUENCES), "shape: got"),
    (lambda: stax.Index(stax.Slice[0]).kernel(SEQUENCES), "idx: got 0; allowed in kernel_fn"),
    (lambda: stax.Index(stax.Slice[..., :1]).kernel(SEQUENCES), "idx: got .* allowed in kernel_fn"),
    (lambda: stax.Index(None).kernel(SEQUENCES), "idx: got None; allowed: integers"),
]


@pytest.mark.parametrize(("call", "named"), BAD)
def test_bad_input_is_named_in_one_sentence(call, named):
    with pytest.raises(ValueError, match=named) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_kernels_above_the_memory_are_refused_with_the_way_out(monkeypatch):
    monkeypatch.setattr(inputs, "free_bytes", lambda devices: 500)
    for args in ((jnp.ones((9, 3)),), (jnp.ones((9, 3)), jnp.ones((8, 3)))):
        with pytest.raises(ValueError, match=r"x1, x2: got .*; allowed: what fits .* tiles: batch"):
            stax.Dense(1).kernel(*args)


def test_tokens_outside_the_vocabulary_are_nan_under_jit():
    found = jax.jit(stax.Embedding(3, 2).apply)((jnp.ones((3, 2)),), jnp.array([0, -1, 3]))
    assert jnp.isnan(found).all(-1).tolist() == [False, True, True]


def test_a_layer_written_for_neural_tangents(x64):
    """Covariances replaced by name: the same numbers as the layer of the gap."""

    def doubled(k, **kwargs):
        cov2 = None if k.cov2 is None else 4 * k.cov2
        return k.replace(nngp=4 * k.nngp, ntk=4 * k.ntk, cov1=4 * k.cov1, cov2=cov2)

    own = (lambda rng, shape: (shape, ()), lambda params, x, **kwargs: 2 * x, doubled)
    x = jax.random.normal(jax.random.key(0), (4, 3))
    networks = [stax.serial(stax.Dense(8, 1.2 * w, 0.1 * w), *more, stax.Relu()) for w, more in ((1, [own]), (2, []))]
    for args in ((x,), (x, x[:2])):
        found, expected = (network.kernel(*args) for network in networks)
        np.testing.assert_allclose(found.nngp, expected.nngp, rtol=1e-10)
        np.testing.assert_allclose(found.cov1, expected.cov1, rtol=1e-12)
    np.testing.assert_array_equal(found.astuple()[2], found.asdict()["cov1"])


def test_traced_scales_pass():
    """Gradients to hyper-parameters go through the checks."""
    slope = jax.grad(lambda w: jnp.sum(stax.Dense(1, w, w).kernel(jnp.eye(2), None, "nngp")))(0.5)
    assert slope == 2 * 0.5 * (1 + 4)  # sum of w^2 (x x^T / 2 + 1) over four entries
