"""What a newcomer gets wrong: every message names the argument, what came, and what to write instead."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import config as jaxtyping_config

from dynamics import observe
from dynamics.evolve import descent, every, gradient_descent, simulate
from dynamics.losses import half_mse
from dynamics.models import from_equinox, from_flax
from dynamics.types import Batch, Data

KEY = jax.random.key(0)
X = jnp.linspace(-1.0, 1.0, 12).reshape(6, 2)
GOOD = Batch(X, X[:, :1])
W = jnp.ones((2, 1))


def apply(w, x):
    return x @ w


TRAINING = gradient_descent(apply, half_mse, 0.1)


def run(data=GOOD, *, f=apply, loss=half_mse, start=None, key=KEY, steps=2, at=(0, 2), readout=None):
    training = gradient_descent(f, loss, 0.1)
    start = training.init(W) if start is None else start
    return simulate(training, readout or (lambda state, data: {}), start, data, steps, key, at)


def read(observable):
    return run(readout=observe.readout(TRAINING, observable))


class Dropped(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.Dropout(0.5, deterministic=False)(x))


CASES = {
    "no targets": (lambda: run(Batch(X, None)), "y: got NoneType; allowed: an array"),
    "rows differ": (lambda: run(Batch(X, X[:3, :1])), r"y: got shape \(3, 1\); allowed: the shape of f, \(6, 1\)"),
    "names as targets": (lambda: run(Batch(X, np.array(["cat", "dog"] * 3))), "data.y: got <U3; .*one_hot"),
    "objects as inputs": (lambda: run(Batch(np.full((6, 2), None), X)), "data.x: got object; allowed: an array"),
    "lists": (lambda: run(Batch(X.tolist(), X[:, :1])), "data.x: got a list; allowed: an array"),
    "no samples": (lambda: run(Batch(X[:0], X[:0, :1])), r"data.x: got shape \(0, 2\); .*at least one sample"),
    "several outputs": (lambda: run(f=lambda w, x: (x @ w, x)), "f: got tuple; .*a model returns one array"),
    "arguments swapped": (lambda: run(f=half_mse, loss=apply), "shape"),
    "loss a vector": (lambda: run(loss=lambda f, y: (f - y) ** 2), r"loss: got shape \(6, 1\); allowed: a scalar"),
    "loss a word": (lambda: run(loss="mse"), "loss: got 'mse'; allowed: a function"),
    "rate nan": (lambda: gradient_descent(apply, half_mse, float("nan")), "learning_rate: got nan; allowed: a finite"),
    "rate a word": (lambda: gradient_descent(apply, half_mse, "0.1"), "learning_rate: got '0.1'; allowed"),
    "rate for optimizer": (lambda: descent(apply, half_mse, 0.1), "optimizer: got 0.1; allowed: an optax"),
    "optimizer not made": (lambda: descent(apply, half_mse, optax.adam), "the function adam; call it, as in optax"),
    "whole params": (lambda: TRAINING.init({"w": jnp.ones((2, 1), int)}), r"params\['w'\]: got int\d+; allowed: float"),
    "params a number": (lambda: TRAINING.init(3), "params: got int"),
    "no params": (lambda: TRAINING.init(None), "params: got NoneType without arrays"),
    "key a number": (lambda: run(key=0), r"key: got 0; allowed: a PRNG key, e.g. jax.random.key\(0\)"),
    "steps a word": (lambda: run(steps="3"), "steps: got '3'; allowed: an integer"),
    "steps too many": (lambda: run(steps=2**31), "steps: got 2147483648; .* below 2\\^31"),
    "every 0": (lambda: every(0, 10), "every: got interval=0"),
    "every 2.5": (lambda: every(2.5, 10), "every: got interval=2.5, .*integers"),
    "readout a number": (lambda: run(readout=lambda s, d: s.loss), "readout: got .*; allowed: a dictionary"),
    "readout an observable": (lambda: run(readout=observe.ntk(apply)), r"observable; allowed: observe.readout\("),
    "factory not called": (lambda: read(observe.joined(observe.weight_ranks)), "got the factory weight_ranks; call it"),
    "observable a number": (lambda: read(3.0), "observable: got float; allowed"),
    "no test set": (
        lambda: run(readout=observe.readout(TRAINING, test=observe.weight_ranks())),
        r"test: the data is Batch; allowed: Data\(train, test\)",
    ),
    "empty test set": (
        lambda: run(Data(GOOD, None), readout=observe.readout(TRAINING, test=observe.weight_ranks())),
        r"test: .*; allowed: Data\(train, test\)",
    ),
    "one output, flat": (
        lambda: observe.ntk(lambda w, x: (x @ w)[:, 0]).init(W, GOOD),
        r"f: got shape \(6,\); allowed: .*f\[:, None\]",
    ),
    "model for function": (lambda: observe.ntk(from_flax(nn.Dense(1))), "got a Model; pass its function"),
    "module for function": (
        lambda: observe.sharpness(nn.Dense(1), half_mse).init(W, GOOD),
        "got the module Dense; .*from_flax",
    ),
    "dropout without a switch": (
        lambda: from_flax(Dropped()).init(KEY, (-1, 2)),
        "Dropped draws random numbers .* `train` or `deterministic`",
    ),
    "equinox dropout": (
        lambda: from_equinox(lambda key: eqx.nn.Dropout(0.5)).init(KEY, (-1, 2)),
        "make: the module draws random numbers; allowed: dropout with inference=True",
    ),
    "readout a plain observable": (lambda: run(readout=observe.scores(apply, loss=half_mse)), "got an observable"),
    "equinox module, made": (
        lambda: from_equinox(eqx.nn.Linear(2, 1, key=KEY)),
        r"got the module Linear; .*lambda key: Linear\(",
    ),
}  # fmt: skip


@pytest.fixture
def as_users_meet_it():
    """Without the type checks that only these tests install."""
    jaxtyping_config.update("jaxtyping_disable", True)
    yield
    jaxtyping_config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("as_users_meet_it")
@pytest.mark.parametrize("case", CASES)
def test_the_message_says_what_to_change(case):
    wrong, words = CASES[case]
    with pytest.raises((TypeError, ValueError), match=words):
        wrong()
