"""Layers beyond neural-tangents: embeddings, recurrent networks, random attention matrices; reductions and sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynamics as nt
from dynamics import stax
from dynamics.models.rnn import rnn

NAMES = ("nngp", "ntk", "nngp_standard_error", "ntk_standard_error")
TOKENS = jnp.array([[0, 3, 3, 1], [2, 3, 0, 1], [4, 4, 4, 4]])


def assert_sampled(model, x, key, n_samples):
    """``model.kernel`` within three standard errors (root mean square) of the kernels of ``n_samples`` networks."""
    sampled = nt.monte_carlo_kernel_fn(model.init, model.apply, key, n_samples)(x, None, NAMES)
    exact = model.kernel(x, None, ("nngp", "ntk"))
    for name in ("nngp", "ntk"):
        # The limit's own error is O(1 / width), below a standard error for the widths and samples used here.
        sigma = np.abs(getattr(exact, name) - getattr(sampled, name)) / getattr(sampled, f"{name}_standard_error")
        assert np.sqrt(np.mean(sigma**2)) < 3, (name, sigma)


@pytest.mark.parametrize("kind", [pytest.param("ntk", marks=pytest.mark.slow), "standard", "mup"])
@pytest.mark.parametrize("tail", ["positions", pytest.param("flat", marks=pytest.mark.slow)])
def test_embedding_is_a_weight_layer_on_one_hot_inputs(kind, tail, x64):
    """One-hot vectors of variance 1: the same NNGP; Dense('standard') counts fan_in, 'mup' shrinks with it."""
    size, width = 5, 16
    after = [stax.Dense(8, 1.2, 0.1), stax.Relu()]
    after += [stax.GlobalAvgPool() if tail == "positions" else stax.Flatten(), stax.Dense(1)]
    embedded = jax.jit(stax.serial(stax.Embedding(size, width, 1.3, kind), *after).kernel, static_argnums=2)
    # Dense in 'ntk' on sqrt(size) one-hot vectors is 1.3 E[x]; the other two only scale its NTK.
    factor = {"ntk": 1, "standard": 1 / 1.3**2, "mup": width}[kind]
    dense = jax.jit(stax.serial(stax.Dense(width, 1.3), *after).kernel, static_argnums=2)
    one_hot = size**0.5 * jax.nn.one_hot(TOKENS, size, dtype=jnp.float64)
    for pair in ((0, None), (0, 1)):
        a, b = (None if i is None else (TOKENS, TOKENS[:2])[i] for i in pair)
        c, d = (None if i is None else (one_hot, one_hot[:2])[i] for i in pair)
        np.testing.assert_allclose(embedded(a, b, "nngp"), dense(c, d, "nngp"), rtol=1e-12)
        if factor == 1:
            np.testing.assert_allclose(embedded(a, b, "ntk"), dense(c, d, "ntk"), rtol=1e-12)
    alone = jax.jit(stax.Embedding(size, width, 1.3, kind).kernel)(TOKENS)
    plain = stax.Dense(width, 1.3).kernel(one_hot)
    np.testing.assert_allclose(alone.ntk, factor * plain.ntk, rtol=1e-12, atol=1e-14)  # rounding where tokens differ
    np.testing.assert_allclose(alone.cov1, plain.cov1, rtol=1e-12, atol=1e-14)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ntk", "standard", "mup"])
def test_embedding_within_three_standard_errors_of_monte_carlo(kind, key):
    model = stax.serial(
        stax.Embedding(6, 128, 1.3, kind), stax.Dense(128, 1.1, 0.2), stax.Relu(), stax.Flatten(), stax.Dense(1)
    )
    assert_sampled(model, TOKENS, key, 60)


def test_embedding_of_tokens_and_positions_and_of_single_tokens(x64):
    """A sum of two embeddings of one input; tokens without positions."""
    two = stax.serial(stax.FanOut(2), stax.parallel(stax.Embedding(6, 8), stax.Embedding(6, 8, 0.5)), stax.FanInSum())
    np.testing.assert_allclose(two.kernel(TOKENS).nngp, 1.25 * stax.Embedding(6, 8).kernel(TOKENS).nngp, atol=1e-14)
    single = stax.serial(stax.Embedding(6, 8), stax.Dense(8, 1.1), stax.Erf(), stax.Dense(1))
    flat = stax.serial(stax.Embedding(6, 8), stax.Dense(8, 1.1), stax.Erf(), stax.Flatten(), stax.Dense(1))
    found = single.kernel(TOKENS[0], None, "ntk")
    np.testing.assert_allclose(found, flat.kernel(TOKENS[0][:, None], None, "ntk"), rtol=1e-12)
    # Equal tokens have equal rows, different ones are independent.
    assert found[1, 1] == found[1, 2]
    assert found[0, 1] < found[1, 2]


def recurrent(activation, sequences=False, width=64):
    head = [stax.GlobalAvgPool()] if sequences else []
    return stax.serial(stax.Rnn(width, activation, 1.2, 0.8, 0.3, sequences), *head, stax.Dense(1, 1.1))


def test_rnn_fed_only_at_its_start_is_a_deep_network(x64):
    """Without bias and with zeros after the first step, tied and untied weights have one kernel."""
    tied = stax.serial(stax.Rnn(8, stax.Relu(), 1.3, 0.9), stax.Dense(1))
    untied = stax.serial(stax.Dense(8, 0.9), *[stax.Relu(), stax.Dense(8, 1.3)] * 3, stax.Relu(), stax.Dense(1))
    x = jax.random.normal(jax.random.key(0), (5, 3))
    driven = jnp.zeros((5, 4, 3)).at[:, 0].set(x)
    for get in ("nngp", "ntk"):
        np.testing.assert_allclose(tied.kernel(driven, None, get), untied.kernel(x, None, get), rtol=1e-12)
        np.testing.assert_allclose(tied.kernel(driven, driven[:2], get), untied.kernel(x, x[:2], get), rtol=1e-12)


def test_rnn_of_one_step_is_a_dense_layer_at_every_position(x64):
    x = jax.random.normal(jax.random.key(0), (4, 1, 3))
    dense = stax.serial(stax.Dense(8, 0.8, 0.3), stax.Relu(), stax.GlobalAvgPool(), stax.Dense(1, 1.1))
    np.testing.assert_allclose(
        recurrent(stax.Relu(), True).kernel(x, None, "ntk"), dense.kernel(x, None, "ntk"), rtol=1e-12
    )


@pytest.mark.parametrize("sequences", [False, True])
def test_rnn_kernel_is_one_function_of_its_inputs(sequences, x64):
    """The pairs i <= j, two sets of inputs, full covariances where the diagonal suffices; and differentiable."""
    kernel_fn = recurrent(stax.Relu(), sequences).kernel
    x = jax.random.normal(jax.random.key(0), (4, 5, 3))

    @jax.jit
    def kernels(x):
        return kernel_fn(x, None, "ntk"), kernel_fn(x, x[:2], "ntk"), kernel_fn(x, None, "ntk", diagonal_spatial=False)

    whole, part, full = kernels(x)
    np.testing.assert_allclose(part, whole[:, :2], rtol=1e-11)
    np.testing.assert_allclose(full, whole, rtol=1e-11)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(kernel_fn(x, None, "ntk"))))(x)
    assert bool(jnp.all(jnp.isfinite(gradient)))


@pytest.mark.slow
@pytest.mark.parametrize("sequences", [True, False])
def test_rnn_within_three_standard_errors_of_monte_carlo(sequences, key):
    x = jax.random.normal(jax.random.key(3), (3, 4, 2))
    assert_sampled(recurrent(stax.Erf(), sequences, 128), x, key, 60)


@pytest.mark.slow
def test_rnn_monte_carlo_error_falls_with_width(key):
    """The distance of the sampled mean from the recursion is O(1 / width)."""
    x, off = jax.random.normal(jax.random.key(3), (3, 4, 2)), []
    for width in (8, 32, 128):
        model = recurrent(stax.Relu(), True, width)
        exact = model.kernel(x, None, "ntk")
        found = nt.monte_carlo_kernel_fn(model.init, model.apply, key, 4000 // width * 16)(x, None, "ntk")
        off.append(np.linalg.norm(found - exact) / np.linalg.norm(exact))
    assert off[0] > 8 * off[2], off


def test_rnn_nngp_is_that_of_the_recurrent_model(key):
    """``dynamics.models.rnn`` with leak 1 has the same states under the 'standard' parameterization."""
    x = jax.random.normal(jax.random.key(3), (3, 4, 2))
    model = rnn(256, 1, gain=1.3)
    sampled = nt.monte_carlo_kernel_fn(model.init, lambda p, x, **_: model.apply(p, x), key, 300)(x, None, NAMES[::2])
    exact = stax.serial(stax.Rnn(8, stax.Relu(), 1.3), stax.Dense(1)).kernel(x, None, "nngp")
    assert np.sqrt(np.mean(((exact - sampled.nngp) / sampled.nngp_standard_error) ** 2)) < 3


BAD = [
    (lambda: stax.Embedding(0, 3), "vocabulary"),
    (lambda: stax.Embedding(3, 0), "out_dim"),
    (lambda: stax.Embedding(3, 4).kernel(jnp.ones((2, 3))), "integer"),
    (lambda: stax.Embedding(3, 4).kernel(TOKENS, TOKENS[:, :2]), "x2"),
    (lambda: stax.serial(stax.Dense(3), stax.Embedding(3, 4)).kernel(TOKENS), "Embedding"),
    (lambda: stax.serial(stax.Embedding(3, 4), stax.Embedding(3, 4)).kernel(TOKENS), "first"),
    (lambda: stax.Rnn(0, stax.Relu()), "units"),
    (lambda: stax.Rnn(4, stax.Relu()).kernel(jnp.ones((2, 3))), "spatial"),
    (lambda: stax.Rnn(4, stax.Relu()).init(jax.random.key(0), (2, 3)), "spatial"),
]


@pytest.mark.parametrize(("call", "named"), BAD)
def test_bad_input_is_named_in_one_sentence(call, named):
    with pytest.raises(ValueError, match=named) as caught:
        call()
    assert "\n" not in str(caught.value)


def attention(mechanism, **options):
    return stax.GlobalSelfAttention(
        64, 64, 64, 64, False, 1.2, 0.9, 0.8, 1.1, 0.3, attention_mechanism=mechanism, **options
    )


@pytest.mark.slow
@pytest.mark.parametrize("positions", [False, True])
def test_sampled_attention_equals_the_closed_kernel_of_linear_attention(positions, x64, key):
    """IDENTITY has a closed form, so the estimator must agree within its own standard errors."""
    from dynamics.stax.layers import attention_kernels as kernels

    x = jax.random.normal(jax.random.key(1), (3, 3, 4))
    before = stax.serial(stax.Dense(8, 1.1, 0.2), stax.Relu(), stax.Dense(8))
    for other in (None,) if positions else (None, x[:2] + 0.1):
        k = before.kernel(x, other)
        plain = kernels.Covariances(k.cov1, k.cov2, k.nngp, k.ntk)
        embedded = plain
        if positions:
            added = 0.49 * jnp.eye(3)
            embedded = kernels.Covariances(*(None if c is None else c + added for c in plain))
        scales = kernels.Scales(0.96, 0.99, 0.3)
        exact = kernels.bilinear(plain, embedded, scales, positions)
        found = kernels.sampled(plain, embedded, lambda x: x, scales, positions, key, 2000)
        for name in ("cov1", "nngp", "ntk"):
            sigma = (getattr(found.mean, name) - getattr(exact, name)) / getattr(found.standard_error, name)
            assert 0.3 < np.sqrt(np.mean(np.asarray(sigma) ** 2)) < 3, name


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", ["SOFTMAX", "RELU"])
def test_sampled_attention_within_three_standard_errors_of_finite_networks(mechanism, key):
    def network(key):
        layer = attention(mechanism, n_samples=2000, key=key)
        return stax.serial(stax.Dense(256, 1.1, 0.2), layer, stax.Flatten(), stax.Dense(1))

    x = jax.random.normal(jax.random.key(1), (3, 3, 4))
    limit = stax.estimated_kernel_fn(network, jax.random.key(2), 4)(x)
    model = network(key)
    sampled = nt.monte_carlo_kernel_fn(model.init, model.apply, key, 200)(x, None, NAMES)
    for name in ("nngp", "ntk"):
        error = f"{name}_standard_error"
        spread = np.hypot(getattr(limit, error), getattr(sampled, error))
        sigma = (getattr(limit, name) - getattr(sampled, name)) / spread
        assert np.sqrt(np.mean(np.asarray(sigma) ** 2)) < 3, (name, sigma)


@pytest.mark.slow
def test_standard_errors_of_sampled_attention_fall_as_the_root_of_the_samples(key):
    x = jax.random.normal(jax.random.key(1), (2, 3, 4))

    def network(n_samples):
        return lambda key: stax.serial(attention("SOFTMAX", n_samples=n_samples, key=key), stax.Flatten())

    few, many = (stax.estimated_kernel_fn(network(n), key, 40)(x) for n in (8, 128))
    # 40 estimates give each error to sqrt(1 / 80) = 11 %, four entries to less; the ratio is sqrt(16) = 4.
    ratio = np.mean(few.ntk_standard_error) / np.mean(many.ntk_standard_error)
    assert 2.5 < ratio < 6.4
    assert np.all(np.abs(few.ntk - many.ntk) < 5 * np.hypot(few.ntk_standard_error, many.ntk_standard_error))


def test_softmax_kernel_without_samples_says_what_it_needs():
    layer = attention("SOFTMAX")
    with pytest.raises(ValueError, match="n_samples and key"):
        layer.kernel(jnp.ones((2, 3, 4)))
    with pytest.raises(ValueError, match="n_samples"):
        attention("SOFTMAX", n_samples=1)
    with pytest.raises(ValueError, match="n_estimates"):
        stax.estimated_kernel_fn(lambda key: layer, jax.random.key(0), 1)


@pytest.mark.slow
def test_numpy_inputs_go_through_every_layer():
    from test_stax import make_stax

    for name, (network, shape) in make_stax.NETWORKS.items():
        init, apply, _ = network(stax)
        x = np.asarray(make_stax.inputs(shape)[0], np.float32)
        _, params = init(jax.random.key(0), x.shape)
        try:
            alike = [apply(params, inputs, rng=jax.random.key(1)) for inputs in (x, jnp.asarray(x))]
        except ValueError as error:
            if "no finite network" not in str(error):
                raise
            continue
        np.testing.assert_array_equal(*alike, err_msg=name)


def test_known_tokens_are_checked_inside_jit_too(key):
    tokens, (_, params) = jnp.array([[0, 2]]), stax.Embedding(3, 4).init(key, (1, 2))
    whole = jax.jit(lambda p: stax.Embedding(3, 4).apply(p, tokens))(params)
    np.testing.assert_allclose(whole, stax.Embedding(3, 4).apply(params, tokens), rtol=1e-6)
    with pytest.raises(ValueError, match="inputs: got token 3; allowed: 0 to"):
        jax.jit(lambda p, beyond=tokens + 1: stax.Embedding(3, 4).apply(p, beyond))(params)
