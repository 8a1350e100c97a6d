"""Numbers given as arguments: what passes, and what is refused in one sentence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics.arguments import BELOW_ONE, FINITE, POSITIVE, check_counts, check_numbers
from dynamics.evolve import gradient_descent
from dynamics.losses import mse
from dynamics.types import Objective

L = Objective(lambda w, x: x @ w, mse)
NUMBERS = (1, 0.5, np.float32(0.5), np.int64(3), np.array(0.5), jnp.float32(0.5), jnp.asarray(0.5, jnp.bfloat16))


@pytest.mark.parametrize("value", NUMBERS, ids=[type(value).__name__ for value in NUMBERS])
def test_one_number_passes_in_every_form(value):
    check_numbers(x=(value, POSITIVE))
    with pytest.raises(ValueError, match=r"x: got -.*; allowed: a number > 0"):
        check_numbers(x=(-value, POSITIVE))


@pytest.mark.parametrize("value", ["1", None, True, np.True_, jnp.array(True), 1j, np.complex64(1), jax.random.key(0)])
def test_what_is_no_real_number_is_refused(value):
    with pytest.raises(TypeError, match=r"x: got .*; allowed: a number > 0"):
        check_numbers(x=(value, POSITIVE))


def test_an_array_stands_for_one_number_where_many_may():
    lanes = jnp.array([0.1, 0.9])
    check_numbers(many=True, x=(lanes, BELOW_ONE), y=([0.1, 0.2], FINITE))
    with pytest.raises(ValueError, match=r"x: got shape \(2,\); allowed: one number"):
        check_numbers(x=(lanes, BELOW_ONE))
    with pytest.raises(ValueError, match=r"x: got \[0.1 1. \]; allowed: a number >= 0 and < 1"):
        check_numbers(many=True, x=(np.array([0.1, 1.0]), BELOW_ONE))
    with pytest.raises(TypeError, match=r"x: got complex64"):
        check_numbers(many=True, x=(lanes + 1j, BELOW_ONE))


def test_what_is_traced_passes_if_it_is_real():
    def checked(x):
        check_numbers(x=(x, POSITIVE))
        return x

    assert jax.vmap(checked)(jnp.array([-1.0, 1.0])).shape == (2,)
    with pytest.raises(TypeError, match=r"x: got .*complex64.*; allowed: a number > 0"):
        jax.jit(checked)(1j)


def test_counts_are_integers():
    check_counts(steps=1, seeds=np.int64(3))
    check_counts(0, modes=0)
    for value in (0, 2.0, True, np.True_, "3", None, np.float32(1)):
        with pytest.raises(ValueError, match=r"steps: got .*; allowed: an integer >= 1"):
            check_counts(steps=value)


@pytest.mark.usefixtures("as_users_meet_it")
def test_rates_of_lanes_are_checked_each():
    gradient_descent(L, jnp.array([0.1, 0.2]), momentum=jnp.array([0.0, 0.9]), batch_size=np.int64(2))
    with pytest.raises(ValueError, match=r"learning_rate: got .*; allowed: a finite number, or an optax schedule"):
        gradient_descent(L, np.array([0.1, np.nan]))
    for rate in (None, "0.1", True):
        with pytest.raises(TypeError, match=r"learning_rate: got .*; allowed: a finite number, or an optax schedule"):
            gradient_descent(L, rate)


def test_rows_of_several_lengths_are_no_numbers():
    with pytest.raises(TypeError, match=r"p: got \[\[1\], \[1, 2\]\]; allowed: a number > 0"):
        check_numbers(many=True, p=([[1], [1, 2]], POSITIVE))
