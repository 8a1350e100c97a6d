"""What deep mean-field theory costs in times T, points P, samples S and layers L: CPU seconds and fitted exponents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interleaved import clock

from dynamics.theory.dmft import deep

pytestmark = pytest.mark.benchmark
BASE = {"T": 16, "P": 3, "S": 4000, "L": 2}
GRID = {"T": (16, 32, 64, 96), "P": (3, 6, 12, 18), "S": (2000, 4000, 8000, 16_000), "L": (1, 2, 3, 4)}


def seconds(T, P, S, L, draws=1, repeats=3):
    """CPU seconds of a draw: the first call, compiled, and the best of the others."""
    x, y = jax.random.normal(jax.random.key(0), (P, 20)), jnp.asarray((-1.0) ** np.arange(P))
    found = []
    for repeat in range(1 + repeats):
        start = clock()
        key, numbers = jax.random.key(repeat), {"gamma": 1.0, "eta": 0.02, "samples": S, "draws": draws}
        limit = deep(jnp.tanh, x, y, depth=L, steps=T - 1, key=key, **numbers)
        jax.block_until_ready(limit)
        found.append(clock() - start)
    assert not limit.failed.any()
    return found[0], min(found[1:])


def test_cost_table():
    """A draw costs at most as S (T P)^2 and L; sixteen times and three points, eight draws of 2000: under 60 s."""
    first, again = seconds(**BASE | {"S": 2000}, draws=8)
    print(f"\nL = 2, P = 3, T = 16, S = 2000, 8 draws: {first:.1f} s with compilation, {again:.2f} s again")
    assert first < 60
    for name, values in GRID.items():
        cost = [seconds(**BASE | {name: value})[1] for value in values]
        exponent = np.polyfit(np.log(values[1:]), np.log(cost[1:]), 1)[0]
        print(f"{name} = {values}: {', '.join(f'{one:.2f}' for one in cost)} s a draw; exponent {exponent:.2f}")
        assert exponent < {"T": 2.6, "P": 2.6, "S": 1.3, "L": 1.5}[name]
