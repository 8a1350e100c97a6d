"""Bridges to flax and equinox against the libraries' own forward passes; scale and centring; state that is carried."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dynamics import stax
from dynamics.empirical import empirical_ntk_fn
from dynamics.evolve import gradient_descent, simulate
from dynamics.losses import half_mse
from dynamics.models import antisymmetric, centred, from_equinox, from_flax, frozen, scaled
from dynamics.observe import loss
from dynamics.types import Batch, Model, Objective, StatefulModel


class BatchNormNet(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(nn.Dense(8)(x))
        return nn.Dense(2)(nn.Dropout(0.5, deterministic=not train)(x))


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(4, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.5, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        return self.last(self.drop(self.norm(self.first(x))))


@pytest.fixture
def batch(key):
    return Batch(jax.random.normal(key, (16, 4)) + 3.0, jnp.ones((16, 2)))


def test_linen_module_gives_the_modules_own_output(key, batch):
    module = nn.Sequential([nn.Dense(5), nn.relu, nn.Dense(2)])
    model = from_flax(module)
    assert isinstance(model, Model)
    init, apply, kernel = model
    shape, params = init(key, (-1, 4))
    assert shape == (-1, 2)
    assert kernel is None
    np.testing.assert_array_equal(apply(params, batch.x), module.apply({"params": params}, batch.x))


def test_nnx_module_gives_the_modules_own_output(key, batch):
    module = nnx.Linear(4, 2, rngs=nnx.Rngs(0))
    shape, params = from_flax(module).init(key, (-1, 4))
    assert shape == (-1, 2)
    np.testing.assert_array_equal(from_flax(module).apply(params, batch.x), module(batch.x))


def test_equinox_module_gives_the_modules_own_output(key, batch):
    model = from_equinox(lambda k: eqx.nn.MLP(4, 2, 8, 2, key=k))
    shape, params = model.init(key, (-1, 4))
    assert shape == (-1, 2)
    expected = jax.vmap(eqx.nn.MLP(4, 2, 8, 2, key=key))(batch.x)
    np.testing.assert_allclose(model.apply(params, batch.x), expected, rtol=1e-6)


@pytest.mark.parametrize("module", [BatchNormNet(), NnxNet(nnx.Rngs(0))], ids=["linen", "nnx"])
def test_collections_and_dropout_keys_are_carried(module, key, batch):
    """The running mean follows its recursion m' = m/2 + mean(h)/2, and dropout follows the key."""
    model = from_flax(module)
    assert isinstance(model, StatefulModel)
    _, (params, state) = model.init(key, (-1, 4))
    f, after = model.apply(params, state, batch.x, key)
    means = [leaf for leaf in jax.tree.leaves(after) if getattr(leaf, "shape", None) == (8,)]
    first = params["Dense_0" if isinstance(module, nn.Module) else "first"]
    hidden = batch.x @ jnp.asarray(first["kernel"][...]) + jnp.asarray(first["bias"][...])
    expected = hidden.mean(0) / 2
    assert any(np.allclose(mean, expected, rtol=1e-4, atol=1e-5) for mean in means)
    again, _ = model.apply(params, state, batch.x, key)
    other, _ = model.apply(params, state, batch.x, jax.random.key(1))
    np.testing.assert_array_equal(f, again)
    assert not np.allclose(f, other)
    still = frozen(model, state)
    np.testing.assert_array_equal(still.apply(params, batch.x), model.evaluate(params, state, batch.x))


def test_a_stateful_model_trains_inside_the_loop(key, batch):
    model = from_flax(BatchNormNet())
    run, start = gradient_descent(Objective(model, half_mse), 0.1), model.init(key, (-1, 4))[1]
    state, record = simulate(run, start, batch, train=[loss()], steps=60, key=key)
    evaluated = half_mse(model.evaluate(state.params, state.model_state, batch.x), batch.y)
    np.testing.assert_allclose(record.values["loss"][1], evaluated, rtol=1e-5)
    assert record.values["loss"][1] < 0.05 * record.values["loss"][0]
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), state.model_state, start[1])
    assert max(jax.tree.leaves(moved)) > 0.1


def test_state_without_a_training_switch_is_refused(key):
    class Silent(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.BatchNorm(use_running_average=False)(x)

    with pytest.raises(TypeError, match=r"batch_stats.*train"):
        from_flax(Silent()).init(key, (-1, 4))
    with pytest.raises(TypeError, match=r"^module: got function"):
        from_flax(lambda x: x)


def test_scale_and_centring(precision, key, batch):
    """alpha f, zero at the start, and the same Jacobian as f but for alpha."""
    model = from_flax(nn.Dense(2))
    _, params = model.init(key, (-1, 4))
    large = scaled(model, 7.0)
    np.testing.assert_allclose(large.apply(params, batch.x), 7.0 * model.apply(params, batch.x), rtol=1e-6)
    zero = centred(large.apply, params)
    np.testing.assert_array_equal(zero(params, batch.x), 0)
    assert large.init(key, (-1, 4))[0] == (-1, 2)
    for a, b in zip(
        *(jax.tree.leaves(jax.jacobian(lambda p, f=f: f(p, batch.x))(params)) for f in (zero, large.apply))
    ):
        np.testing.assert_array_equal(a, b)


def test_an_antisymmetric_model_starts_at_zero_with_the_models_kernel(x64, key):
    inner = stax.serial(stax.Dense(6), stax.Erf(), stax.Dense(2))
    model, x = antisymmetric(inner), jax.random.normal(key, (5, 3))
    _, params = model.init(key, x.shape)
    np.testing.assert_array_equal(model.apply(params, x), 0)
    assert model.kernel is inner.kernel
    ntk, own = empirical_ntk_fn(model.apply), empirical_ntk_fn(inner.apply)
    np.testing.assert_allclose(ntk(x, None, params), own(x, None, params[0]), rtol=1e-12)
    # along the descent on random labels the kernel's first derivative vanishes, that of the model alone does not
    L, batch = Objective(model.apply, half_mse), Batch(x, jax.random.normal(key, (5, 2)))
    slope = jax.grad(L)(params, batch)
    _, change = jax.jvp(lambda p: ntk(x, None, p), (params,), (slope,))
    _, alone = jax.jvp(lambda p: own(x, None, p), (params[0],), (slope[0],))
    assert float(jnp.abs(change).max()) < 1e-12 < 1e-3 < float(jnp.abs(alone).max())
