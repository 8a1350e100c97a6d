"""Copies of a block of layers are a loop: the numbers of layers in turn, in a program that does not grow."""

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import users_environment

from dynamics import stax
from dynamics.stax.layers import in_turn
from dynamics.stax.layers.in_turn import named, repetition, same


def weights(width=16, W_std=1.4):
    return stax.Dense(width, W_std, 0.1)


def residual():
    branch = stax.serial(stax.Relu(), weights())
    return stax.serial(stax.FanOut(2), stax.parallel(branch, stax.Identity()), stax.FanInSum())


NETWORKS = {
    "one layer": lambda: [weights()] * 4,
    "pairs": lambda: [weights(), stax.Erf()] * 4,
    "with normalisation": lambda: [weights(), stax.LayerNorm(), stax.Gelu()] * 3,
    "residual blocks": lambda: [weights(), *[residual()] * 4],
    "two kinds": lambda: [*[weights(), stax.Relu()] * 3, *[weights(8, 1.2), stax.Erf()] * 3],
}


@pytest.fixture
def loops(monkeypatch):
    """How often a loop is made, from three copies on."""
    made, again = [], in_turn.again
    monkeypatch.setattr(in_turn, "FEWEST", 3)
    monkeypatch.setattr(in_turn, "again", lambda *args: made.append(args[-1]) or again(*args))
    return made


@pytest.mark.parametrize("name", NETWORKS)
def test_a_loop_has_the_numbers_of_its_layers(name, loops, x64, monkeypatch):
    x1, x2 = (jax.random.normal(jax.random.key(n), (n, 3)) for n in (4, 2))

    def values(x1, x2):
        ntk = stax.serial(*NETWORKS[name](), stax.Dense(1)).kernel
        return ntk(x1, None, ("nngp", "ntk")), ntk(x1, x2, "ntk"), jax.grad(lambda x: ntk(x, x2, "ntk").sum())(x1)

    found = jax.jit(values)(x1, x2)
    assert len(loops) == 3 * (1 + (name == "two kinds"))
    monkeypatch.setattr(in_turn, "FEWEST", 10**9)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13), found, jax.jit(values)(x1, x2))


def test_masked_images_and_rules_that_change_the_kernel(loops, x64, monkeypatch):
    """A mask stays in the loop's Kernel; 'VALID' convolutions shrink the Kernel, so that there is no loop."""
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 1)).at[0, :2].set(np.nan)
    layers = [stax.Conv(4, (3, 3), padding="SAME"), stax.Relu()] * 3
    shrinking = [stax.Conv(4, (2, 2), padding="VALID"), stax.Relu()] * 3
    tail = stax.GlobalAvgPool(), stax.Dense(1)

    def ntk(*layers):
        kernel = stax.serial(*layers, *tail).kernel
        return jax.jit(lambda x: kernel(x, None, "ntk", mask_constant=np.nan))(x)

    found = ntk(*layers)
    assert loops == [2]
    ntk(*shrinking)
    assert loops == [2]
    monkeypatch.setattr(in_turn, "FEWEST", 10**9)
    np.testing.assert_allclose(found, ntk(*layers), rtol=1e-12)


def test_a_gradient_to_what_the_copies_share(loops, x64):
    x = jax.random.normal(jax.random.key(0), (3, 4))

    def value(W_std):
        return stax.serial(*[weights(8, W_std), stax.Erf()] * 4, stax.Dense(1)).kernel(x, None, "ntk").sum()

    step = 1e-5
    slope = (value(1.2 + step) - value(1.2 - step)) / (2 * step)
    assert loops == [3, 3]
    np.testing.assert_allclose(jax.jit(jax.grad(value))(1.2), slope, rtol=1e-8)
    assert len(loops) == 3


def test_a_thousand_layers_are_a_program_of_a_few(x64):
    x = jax.random.normal(jax.random.key(0), (3, 4))
    deep = stax.serial(*[weights(), stax.Relu()] * 1000, stax.Dense(1)).kernel
    looped = stax.serial(stax.repeat(stax.serial(weights(), stax.Relu()), 1000), stax.Dense(1)).kernel
    np.testing.assert_allclose(deep(x, None, "ntk"), looped(x, None, "ntk"), rtol=1e-12)
    gradient = jax.grad(lambda x: deep(x, None, "ntk").sum())
    assert len(jax.jit(gradient).lower(x).as_text()) < 1e6


MADE_ANEW = """
from dynamics import stax
from dynamics.stax.layers.in_turn import named
def block():
    return stax.FanOut(2), stax.parallel(stax.serial(stax.Dense(8, 1.4), stax.Gelu()), stax.Identity()), stax.FanInSum()
made = [stax.Dense, stax.Conv, stax.LayerNorm, stax.Relu, stax.Erf, stax.Gelu, stax.Tanh, stax.Sin, stax.AvgPool]
made += [stax.LeakyRelu, stax.Cos, stax.Rbf, stax.Softplus]
given = {stax.Dense: (8, 1.4, 0.1), stax.Conv: (8, (3, 3)), stax.AvgPool: ((2, 2),), stax.LeakyRelu: (0.1,)}
layers = [make(*given.get(make, ())).kernel for _ in range(2) for make in made]
assert named(layers) == [*range(len(made))] * 2, named(layers)
assert named([stax.serial(*block()).kernel for _ in range(3)]) == [0, 0, 0]
"""


def test_layers_that_are_made_anew_are_the_same():
    """Without the checks of these tests, which write each function anew."""
    done = subprocess.run([sys.executable, "-c", MADE_ANEW], capture_output=True, text=True, env=users_environment())
    assert done.returncode == 0, done.stderr


def test_what_is_the_same():
    @dataclasses.dataclass
    class Setting:
        value: float

    table = np.ones(3)
    one, other = (lambda x, at=at: table[at] * x for at in (1, 2))
    assert same(one, one)
    assert not same(one, other)
    assert same(Setting(0.5), Setting(0.5))
    assert not same(Setting(0.0), Setting(-0.0))
    assert not same(Setting(1), Setting(1.0))
    assert not same(np.ones(3), np.ones(3))
    assert not same(stax.Elementwise(jnp.tanh).kernel, stax.Elementwise(jnp.sin).kernel)
    assert not same(stax.Relu().kernel, stax.LeakyRelu(0.1).kernel)
    assert not same(weights().kernel, weights(W_std=1.5).kernel)
    assert not same(weights().kernel, weights(17).kernel)
    layers = weights().kernel, stax.Relu().kernel, weights(3).kernel
    assert named([*layers, layers[1]]) == [0, 1, 2, 1]


@pytest.mark.parametrize(
    ("names", "at", "found"),
    [
        ([0, 1] * 8, 0, (2, 8)), ([0, 1] * 8 + [0], 0, (2, 8)), ([0, 1] * 7, 0, (1, 1)), ([0] * 9, 0, (1, 9)),
        ([2] + [0, 1] * 8, 1, (2, 8)), ([2] + [0, 1] * 8, 0, (1, 1)), ([0, 0, 1] * 8, 0, (3, 8)), ([], 0, (1, 1)),
    ],
)  # fmt: skip
def test_the_block_that_covers_most(names, at, found):
    assert repetition(names, at) == found
