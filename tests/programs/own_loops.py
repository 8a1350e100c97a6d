"""Training loops as people have them, watched by three more lines: an nnx CNN with BatchNorm and dropout, and
transformers on tokens in nnx and linen."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from flax.training.train_state import TrainState

from dynamics import losses, models, observe
from dynamics.types import Batch, Objective


class CNN(nnx.Module):
    def __init__(self, rngs, features=8, classes=10):
        self.conv = nnx.Conv(1, features, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(features, rngs=rngs)
        self.drop = nnx.Dropout(0.2, rngs=rngs)
        self.out = nnx.Linear(16 * features, classes, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x)))
        return self.out(self.drop(x.reshape(x.shape[0], -1)))


def cnn_loop(x, y, steps, observables, width=8, **options):
    model = CNN(nnx.Rngs(0), width)
    optimizer = nnx.Optimizer(model, optax.adam(3e-3), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x, y):
        def loss(model):
            return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

        optimizer.update(model, nnx.grad(loss)(model))

    L = Objective(models.from_flax(model), losses.cross_entropy)  # 1
    watch = observe.watch(L, observables, Batch(x[:64], y[:64]), optimizer=optax.adam(3e-3), **options)  # 2
    rng = np.random.default_rng(0)
    for i in range(steps):
        watch(i, model, optimizer)  # 3
        rows = rng.integers(0, len(x), 32)
        step(model, optimizer, x[rows], y[rows])
    return watch, L, model, optimizer


class Block(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x, mask):
        h = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=2)(h, h, mask=mask)
        h = nn.LayerNorm()(x)
        return x + nn.Dense(self.width)(nn.gelu(nn.Dense(4 * self.width)(h)))


class Transformer(nn.Module):
    """Predicts the next token; 2 blocks."""

    vocabulary: int = 32
    width: int = 32

    @nn.compact
    def __call__(self, tokens):
        place = self.param("place", nn.initializers.normal(0.02), (tokens.shape[1], self.width))
        x = nn.Embed(self.vocabulary, self.width)(tokens) + place
        for _ in range(2):
            x = Block(self.width)(x, nn.make_causal_mask(tokens))
        return nn.Dense(self.vocabulary)(nn.LayerNorm()(x))  # [n, T, V]


def next_token_loss(f, y):
    """Mean over the positions whose label is not -1."""
    seen = y >= 0
    each = optax.softmax_cross_entropy_with_integer_labels(f, jnp.maximum(y, 0))
    return jnp.sum(jnp.where(seen, each, 0)) / jnp.sum(seen)


def transformer_loop(tokens, steps, observables, width=32, vocabulary=32, **options):
    model = Transformer(vocabulary, width)
    inputs, labels = tokens[:, :-1], tokens[:, 1:]
    params = model.init(jax.random.key(0), inputs[:1])["params"]
    state = TrainState.create(apply_fn=model.apply, params=params, tx=optax.adam(1e-3))

    @jax.jit
    def step(state, inputs, labels):
        def loss(params):
            return next_token_loss(state.apply_fn({"params": params}, inputs), labels)

        return state.apply_gradients(grads=jax.grad(loss)(state.params))

    L = Objective(lambda params, x: model.apply({"params": params}, x), next_token_loss)  # 1
    watch = observe.watch(L, observables, Batch(inputs[:16], labels[:16]), optimizer=state.tx, **options)  # 2
    rng = np.random.default_rng(0)
    for i in range(steps):
        watch(i, state)  # 3
        rows = rng.integers(0, len(tokens), 16)
        state = step(state, inputs[rows], labels[rows])
    return watch, L, state
