"""Analytic kernels against neural-tangents, interleaved in one process, both jitted.

Speed is the ratio of the least CPU times of interleaved rounds, which the machine's other work disturbs least (that of
the medians is printed beside it). Memory is the peak that the compiled programs declare: arguments, outputs and
temporaries, less what they share.
"""

import warnings

import jax
import numpy as np
import pytest
from interleaved import ON_CPUS, spent

from dynamics import stax
from dynamics.interop import neural_tangents

pytestmark = [pytest.mark.benchmark, pytest.mark.gpu]


def fully_connected(s):
    return s.serial(*[layer for _ in range(3) for layer in (s.Dense(512, 1.4, 0.1), s.Relu())], s.Dense(1))


def cntk(s):
    conv = [layer for _ in range(4) for layer in (s.Conv(64, (3, 3), None, "SAME", 1.4, 0.1), s.Relu())]
    return s.serial(*conv, s.GlobalAvgPool(), s.Dense(1))


def myrtle(s):
    conv, pool = s.serial(s.Conv(64, (3, 3), None, "SAME", 1.4, 0.1), s.Relu()), s.AvgPool((2, 2), (2, 2))
    return s.serial(conv, conv, pool, conv, pool, conv, s.GlobalAvgPool(), s.Dense(1))


def seconds(functions, x, rounds):
    """Median and least time of each function, called in turn after a warm-up."""
    for fn in functions.values():
        spent(fn, x)
    found = [{name: spent(fn, x) for name, fn in functions.items()} for _ in range(rounds)]
    times = {name: [one[name] for one in found] for name in functions}
    return {name: (float(np.median(each)), min(each)) for name, each in times.items()}


def memory(compiled):
    """Bytes at the peak of a compiled function, and those of its temporaries."""
    found = compiled.memory_analysis()
    kept = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return kept + found.temp_size_in_bytes, found.temp_size_in_bytes


@pytest.mark.parametrize(
    ("network", "shape", "least"),
    [(fully_connected, (2000, 100), 6.0), (cntk, (16, 8, 8, 3), 5.0), (myrtle, (16, 8, 8, 3), 8.0)],
)
def test_ratio_to_neural_tangents(network, shape, least, record_property):
    x = jax.random.normal(jax.random.key(0), shape)
    with warnings.catch_warnings(), jax.default_matmul_precision("highest"):
        warnings.simplefilter("ignore")
        theirs = network(neural_tangents.load().stax)[2]
        ours = network(stax)[2]
        functions = {
            name: jax.jit(lambda x, fn=fn: fn(x, None, "ntk")).lower(x).compile()
            for name, fn in (("theirs", theirs), ("ours", ours))
        }
        times = seconds(functions, x, 15)
    (peak, temporary), (their_peak, their_temporary) = (memory(functions[name]) for name in ("ours", "theirs"))
    ratio, best = (times["theirs"][i] / times["ours"][i] for i in (0, 1))
    record_property("ratio", best)
    print(
        f"{network.__name__}: {1e3 * times['ours'][1]:.2f} ms, {best:.1f}x (median {ratio:.1f}x), "
        f"peak {peak / 1e6:.3f} MB against {their_peak / 1e6:.3f} MB, "
        f"of it temporary {temporary / 1e6:.3f} MB against {their_temporary / 1e6:.3f} MB"
    )
    assert best >= least or not ON_CPUS
    assert peak <= their_peak or not ON_CPUS
