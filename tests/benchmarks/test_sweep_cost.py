"""How a sweep's time and memory grow with its cells, recorded points and parameters: a table with fitted exponents."""

import jax
import numpy as np
import pytest
from interleaved import seconds
from test_sweep import memory, plan, sweep

pytestmark = pytest.mark.benchmark


def exponent(sizes, values):
    """The slope of ``log values`` in ``log sizes`` over the four largest, with its standard error."""
    x, y = np.log(np.array(sizes[-4:], float)), np.log(np.array(values[-4:], float))
    slope, offset = np.polyfit(x, y, 1)
    spread = np.sum((y - slope * x - offset) ** 2) / (len(x) - 2)
    return slope, np.sqrt(spread / np.sum((x - x.mean()) ** 2))


def table(name, sizes, plans):
    """Prints seconds (the quickest of three runs) and bytes by size; returns the exponents of both."""
    times, sums = [], []
    for made in plans:
        run = sweep(made)
        seconds(run)
        times.append(min(seconds(run) for _ in range(3)))
        sums.append(memory(made))
        jax.clear_caches()
    print(f"\n| {name} | seconds | MB |\n|---|---|---|")
    for row in zip(sizes, times, np.array(sums) / 1e6):
        print("| {} | {:.4f} | {:.3g} |".format(*row))
    (time, time_error), (space, space_error) = exponent(sizes, times), exponent(sizes, sums)
    print(f"| exponent | {time:.2f} +- {time_error:.2f} | {space:.2f} +- {space_error:.2f} |")
    return time, space


def test_cost_by_cells():
    sizes = [1, 4, 16, 64, 256, 1024, 4096]
    time, space = table("cells (20 steps)", sizes, (plan(count, 20) for count in sizes))
    assert time < 1.15
    assert space < 1.05


def test_cost_by_recorded_points():
    """64 cells of 1024 steps; a reading is one loss a cell."""
    sizes = [4, 16, 64, 256, 1024]
    made = (plan(64, 1024, np.linspace(0, 1024, points).astype(int)) for points in sizes)
    time, space = table("recorded points (64 cells, 1024 steps)", sizes, made)
    assert time < 1.0
    assert space < 1.05


def test_cost_by_parameters():
    """4 cells of 20 steps, from 3 thousand to 4 million parameters each."""
    widths = [32, 128, 512, 2048]
    sizes = [64 * width + width**2 + 3 * width + 1 for width in widths]
    time, space = table("parameters (4 cells, 20 steps)", sizes, (plan(4, 20, (), width) for width in widths))
    assert time < 1.15
    assert space < 1.05
