"""Every layer and activation of ``stax`` against networks drawn at finite width: one table, complete by construction.

With one hidden layer, kernels of finite networks are unbiased at any width: preactivations are Gaussian, the readout is
linear. Layers that mix channels or share weights over time have a bias ``O(1 / width)`` and stand under ``WIDE``.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics import stax

X = jax.random.normal(jax.random.key(10), (3, 5))
UNIT = X * jnp.sqrt(5 / jnp.sum(X**2, -1, keepdims=True))  # preactivations of variance 1, as Hermite takes them
SEQUENCES = jax.random.normal(jax.random.key(11), (3, 4, 2))
IMAGES = jax.random.normal(jax.random.key(12), (3, 3, 4, 2))
GRAPHS = jax.random.bernoulli(jax.random.key(13), 0.5, (3, 4, 4))
TOKENS = jnp.array([[0, 3, 3, 1], [2, 3, 0, 1], [4, 4, 4, 4]])


class Case(NamedTuple):
    """A network of hidden width ``width`` as ``model(width)``, its inputs, and how many are drawn."""

    model: object
    x: jax.Array = X
    width: int = 16
    draws: int = 2000
    apply: Any = None
    kernel: Any = None


def activation(layer):
    return Case(lambda n: stax.serial(stax.Dense(n, 1.2, 0.3), layer, stax.Dense(4, 1.1, 0.2)))


def readout(law):
    """A law of the readout's weights: entries of covariance 1, so that both kernels are unbiased."""
    return Case(lambda n: stax.serial(stax.Dense(n, 1.2, 0.3), stax.Relu(), stax.Dense(4, 1.1, 0.2, weights=law)))


def positions(*layers, x=SEQUENCES, **options):
    """A layer on the activations of a convolution."""
    size = (2,) * (x.ndim - 2)
    head = stax.Flatten(), stax.Dense(4, 1.1, 0.2)

    def model(n):
        made = [layer(n) if callable(layer) and not hasattr(layer, "init") else layer for layer in layers]
        return stax.serial(stax.Conv(n, size, None, "SAME", 1.2, 0.3), stax.Relu(), *made, *head)

    return Case(model, x, **options)


def branches(join):
    def model(n):
        one = stax.serial(stax.Dense(n, 1.2, 0.3), stax.Relu(), stax.Dense(n, 0.9, 0.1))
        two = stax.serial(stax.Dense(n, 0.8, 0.2), stax.Erf(), stax.Dense(n, 1.3))
        return stax.serial(stax.FanOut(2), stax.parallel(one, two), join, stax.Dense(4, 1.1, 0.2))

    return Case(model)


WIDE = {"width": 128, "draws": 200}
ATTENTION = {"n_chan_key": 256, "n_chan_val": 16, "n_heads": 64, "W_key_std": 1.2, "b_std": 0.2}

NETWORKS = {
    "ABRelu": activation(stax.ABRelu(-0.3, 1.4)),
    "Abs": activation(stax.Abs()),
    "Aggregate": positions(lambda n: stax.Aggregate(1), lambda n: stax.GlobalAvgPool())._replace(
        apply={"pattern": GRAPHS}, kernel={"pattern": (GRAPHS, GRAPHS)}
    ),
    "AvgPool": positions(stax.AvgPool((2,), (1,), "SAME")),
    "Conv": Case(
        lambda n: stax.serial(
            stax.Conv(n, (2, 3), (1, 2), "SAME", 1.2, 0.3),
            stax.Relu(),
            stax.Conv(4, (3, 2), None, "VALID", 1.1, 0.2),
            stax.Flatten(),
        ),
        IMAGES,
        draws=500,
    ),
    "ConvLocal": positions(lambda n: stax.ConvLocal(4, (2,), None, "SAME", 1.1, 0.2)),
    "ConvTranspose": positions(lambda n: stax.ConvTranspose(4, (2,), (2,), "SAME", 1.1, 0.2)),
    "Cos": activation(stax.Cos(1.1, 0.8, 0.4)),
    "Dense": activation(stax.Identity()),
    "DotGeneral": positions(
        lambda n: stax.DotGeneral(rhs=jnp.array([0.0, 1, 2, -1]), dimension_numbers=(((1,), (0,)), ((), ())))
    ),
    "Dropout": activation(stax.serial(stax.Relu(), stax.Dropout(0.7))),
    "Elementwise": activation(stax.Elementwise(jnp.square, lambda k, q, r: 2 * k**2 + q * r)),
    "ElementwiseNumerical": activation(stax.ElementwiseNumerical(jax.nn.softplus, 15)),
    "Embedding": Case(
        lambda n: stax.serial(
            stax.Embedding(5, n, 1.3), stax.Dense(n, 1.1, 0.2), stax.Relu(), stax.Flatten(), stax.Dense(4)
        ),
        TOKENS,
        **WIDE,
    ),
    "Erf": activation(stax.Erf(1.2, 0.7, 0.3)),
    "Exp": activation(stax.Exp(0.7, 0.4)),
    "FanInConcat": branches(stax.FanInConcat()),
    "FanInProd": branches(stax.FanInProd()),
    "FanInSum": branches(stax.FanInSum()),
    "FanOut": branches(stax.FanInSum()),
    "Flatten": positions(),
    "Gabor": activation(stax.Gabor()),
    "Gaussian": activation(stax.Gaussian(1.2, -0.4)),
    "Gelu": activation(stax.Gelu()),
    "GlobalAvgPool": positions(lambda n: stax.GlobalAvgPool()),
    "GlobalSelfAttention": positions(
        lambda n: stax.GlobalSelfAttention(n, attention_mechanism="RELU", **ATTENTION), width=128, draws=100
    ),
    "GlobalSumPool": positions(lambda n: stax.GlobalSumPool()),
    "Haar": readout(stax.Haar()),
    "Hermite": Case(lambda n: stax.serial(stax.Dense(n, 1.0), stax.Hermite(2), stax.Dense(4, 1.1, 0.2)), UNIT),
    "ImageResize": positions(lambda n: stax.ImageResize((-1, 3, -1), "linear")),
    "Index": positions(lambda n: stax.Index(stax.Slice[:, 1:3])),
    "Identity": activation(stax.Identity()),
    "LayerNorm": activation(stax.LayerNorm())._replace(**WIDE),
    "LeakyRelu": activation(stax.LeakyRelu(0.2)),
    "LowRank": readout(stax.LowRank(3)),
    "Monomial": activation(stax.Monomial(2)),
    "Polynomial": activation(stax.Polynomial([0.2, 0.5, -0.3])),
    "RMSNorm": activation(stax.RMSNorm())._replace(**WIDE),
    "Rbf": activation(stax.Rbf(0.6)),
    "RectifiedMonomial": activation(stax.RectifiedMonomial(2)),
    "Relu": activation(stax.Relu()),
    "Rnn": Case(
        lambda n: stax.serial(stax.Rnn(n, stax.Erf(), 1.2, 0.8, 0.3, True), stax.GlobalAvgPool(), stax.Dense(4, 1.1)),
        SEQUENCES,
        **WIDE,
    ),
    "Series": activation(stax.Series(jax.nn.softplus)),
    "Sigmoid": activation(stax.Sigmoid()),
    "Sigmoid_like": activation(stax.Sigmoid_like()),
    "Sign": activation(stax.Sign()),
    "Silu": activation(stax.Silu()),
    "Sin": activation(stax.Sin(1.1, 0.8, 0.4)),
    "Softplus": activation(stax.Softplus()),
    "Sparse": readout(stax.Sparse(0.3)),
    "SumPool": positions(stax.SumPool((2,), (2,), "CIRCULAR")),
    "Tanh": activation(stax.Tanh()),
    "parallel": branches(stax.FanInSum()),
    "repeat": Case(
        lambda n: stax.serial(stax.Dense(n), stax.repeat(stax.serial(stax.Relu(), stax.Dense(n, 1.2, 0.1)), 2)), **WIDE
    ),
    "serial": activation(stax.serial(stax.Relu())),
}
NO_NETWORK = {
    "AggregateImplementation": "no layer",
    "AttentionMechanism": "no layer",
    "MaskedArray": "no layer",
    "Padding": "no layer",
    "PositionalEmbedding": "no layer",
    "Slice": "no layer",
    "unmask_fn": "no layer",
    "ExpNormalized": "has no finite layer; tests/fixtures/make_stax.py has it",
    "Kernel": "no layer",
    "batch": "no layer",
    "estimated_kernel_fn": "no layer",
    "hermite_series": "no layer",
    "monte_carlo_kernel_fn": "no layer",
}
# What neural-tangents defines is held against its stored answers in the quick suite too (tests/test_stax.py).
QUICK = {"Dense", "Relu", "Tanh", "AvgPool"}
LATER = {name for name in NETWORKS if name not in QUICK}
LISTED = [pytest.param(name, marks=pytest.mark.slow) if name in LATER else name for name in NETWORKS]


def missing(names):
    """A sentence for each public name of ``stax`` that no entry covers."""
    return [
        f"stax.{name} has no entry: add to NETWORKS in tests/test_stax_table.py one network in which it stands between "
        f"weight layers ({name!r}: activation(stax.{name}()) for a nonlinearity), or a reason to NO_NETWORK"
        for name in names
        if name not in NETWORKS and name not in NO_NETWORK
    ]


def drawn(case):
    """Means and standard errors ``[n, n]`` of the kernels of ``case.draws`` networks, and the limit's kernels."""
    model = case.model(case.width)

    def kernels(key):
        init_key, rng = jax.random.split(key)
        params = model.init(init_key, case.x.shape)[1]
        apply = functools.partial(model.apply, inputs=case.x, rng=rng, **(case.apply or {}))
        f, slopes = apply(params), jax.jacrev(apply)(params)
        n, outputs = len(case.x), f.size // len(case.x)
        rows = [jnp.reshape(s, (n, outputs, -1)) for s in jax.tree.leaves(slopes)]
        f = f.reshape(n, -1)
        return f @ f.T / outputs, sum(jnp.einsum("iop,jop->ij", s, s) for s in rows) / outputs

    found = jax.jit(lambda keys: jax.lax.map(kernels, keys, batch_size=100 if case.width < 64 else 5))(
        jax.random.split(jax.random.key(0), case.draws)
    )
    whole = jax.jit(lambda x: model.kernel(x, None, ("nngp", "ntk"), **(case.kernel or {})))(case.x)
    limit = list(whole)
    return [(k.mean(0), k.std(0, ddof=1) / len(k) ** 0.5, exact) for k, exact in zip(found, limit, strict=True)]


def check(case):
    """Every entry of both kernels within five standard errors."""
    for name, (mean, error, exact) in zip(("nngp", "ntk"), drawn(case), strict=True):
        sigma = np.asarray((mean - exact) / (error + 1e-6 * np.abs(exact).max()))
        assert np.max(np.abs(sigma)) < 5, (name, sigma)


@pytest.mark.parametrize("name", LISTED)
def test_kernels_are_those_of_drawn_networks(name):
    check(NETWORKS[name])


def test_every_layer_is_in_the_table():
    assert not missing(stax.__all__), "\n".join(missing(stax.__all__))


def test_the_table_rejects_a_layer_without_entry_and_a_wrong_ntk():
    assert "stax.Swish has no entry: add to NETWORKS" in missing(["Swish"])[0]
    init, apply, kernel = stax.Relu()

    def wrong(k):
        out = kernel(k)
        return out.replace(ntk=0.9 * out.ntk)

    with pytest.raises(AssertionError, match="ntk"):
        check(activation((init, apply, wrong)))
