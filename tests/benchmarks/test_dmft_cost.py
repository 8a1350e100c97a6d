"""CPU seconds of the proportional mean field theory in steps T and samples S, and whether lanes at S = 640 hold."""

import jax
import numpy as np
import pytest
from interleaved import clock

from dynamics.theory.dmft import proportional

pytestmark = pytest.mark.benchmark
MODEL = {"dim": 240, "alpha": 0.1, "eps": 0.1, "rate": 5 / 3, "zeta": 0.56}


def seconds(steps, samples, repeats=2):
    """CPU seconds of a pass, compiled."""

    def run(seed):
        start = clock()
        record = proportional(5.0, steps, jax.random.key(seed), samples, **MODEL)
        jax.block_until_ready(record.values["test_loss"])
        return clock() - start

    run(0)
    return min(run(1 + seed) for seed in range(repeats))


def test_cost_table():
    """``T^p S^q``: T^3 in arithmetic, T^2 where the derivatives' array is read once a step; S, and S^2 of the noise."""
    steps, samples = (20, 40, 80), (324, 648, 1296)
    table = np.array([[seconds(T, S) for S in samples] for T in steps])
    print("\nCPU s        " + "".join(f"S = {S:<8}" for S in samples))
    for T, row in zip(steps, table):
        print(f"T = {T:<8}" + "".join(f"{value:<12.2f}" for value in row))
    in_T = np.polyfit(np.log(steps), np.log(table[:, -1]), 1)[0]
    in_S = np.polyfit(np.log(samples), np.log(table[-1]), 1)[0]
    print(f"exponents: T {in_T:.2f} (S = {samples[-1]}), S {in_S:.2f} (T = {steps[-1]})")
    assert 2 < in_T < 4
    assert 0.7 < in_S < 1.7
    assert table[-1, 1] < 40


def test_lanes_hold_to_the_end():
    """T = 80: the share of 16 draws that fail by their own diagnostics, and the spread of those that do not."""
    samples = 648
    runs = [proportional(5.0, 80, jax.random.key(seed), samples, **MODEL).values for seed in range(16)]
    lost = np.array([bool(run["lane_failed"][-1]) for run in runs])
    test = np.array([float(run["test_loss"][-1]) for run in runs])[~lost]
    print(f"\nS = {samples}: {lost.sum()} of 16 failed; test loss {test.mean():.3f} +- {test.std():.3f}")
    assert lost.mean() <= 0.25
