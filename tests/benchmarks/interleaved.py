"""Ratios of speed: two functions timed in turn in one process, so that a drifting machine moves both alike."""

import time

import jax
import numpy as np

ON_CPUS = jax.default_backend() == "cpu"
"""Where a benchmark asks for a ratio: those asked were found on CPUs; an accelerator's are printed."""

clock = time.process_time if ON_CPUS else time.perf_counter
"""CPU seconds of this process, since machines are shared; where it waits for an accelerator, wall seconds."""


def spent(function, *args) -> float:
    """Seconds of one call by ``clock``, results waited for."""
    begin = clock()
    jax.block_until_ready(function(*args))
    return clock() - begin


def seconds(function, *args) -> float:
    """Wall seconds of one call, results waited for."""
    begin = time.perf_counter()
    jax.block_until_ready(function(*args))
    return time.perf_counter() - begin


def matmul():
    """A nullary function: the seconds of one FLOP in a float32 product of 1024 rows, 8192 on an accelerator."""
    rows = 1024 if ON_CPUS else 8192
    square = jax.random.normal(jax.random.key(0), (rows, rows))
    product = jax.jit(lambda a: jax.numpy.matmul(a, a, precision="highest"))
    spent(product, square)
    return lambda: spent(product, square) / (2 * rows**3)


def ratio(new, reference, rounds: int = 7) -> tuple[float, float, float]:
    """Medians over interleaved rounds: ``(seconds of new, seconds of reference, reference / new)``, after one warm-up.

    The ratio is the median of each round's own ratio: above 1, ``new`` is faster.
    """
    seconds(new), seconds(reference)
    pairs = np.array([(seconds(new), seconds(reference)) for _ in range(rounds)])
    return *np.median(pairs, axis=0), float(np.median(pairs[:, 1] / pairs[:, 0]))
