"""Theories of other targets, of other kernels and of twice the digits; shuffled labels; kernels exchanged."""

import numpy as np

from rivals import replaced

CONFIG = {"seeds": 10, "population": 500, "samples": (25, 50, 200)}


def wrong(result):
    ntk, linear = (result.records[name].values for name in ("ntk", "linear"))
    for name in ("flat", "bias"):
        yield name, replaced(result, "ntk", predicted=ntk[name])
    yield "another kernel's theory", replaced(result, "ntk", predicted=linear["predicted"])
    yield "twice the digits", replaced(result, "ntk", predicted=np.roll(ntk["predicted"], -1, axis=-1))
    yield "no test error", replaced(result, "ntk", error=0 * ntk["error"])
    yield "shuffled labels", replaced(result, "ntk", held_out=ntk["shuffled"], score=0.1 + 0 * ntk["score"])
    yield "no activation", result._replace(records={**result.records, "ntk": result.records["linear"]})
