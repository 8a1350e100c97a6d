"""Lengths kept, growing, or squared."""

from rivals import replaced

CONFIG = {"width": (8,)}


def wrong(result):
    ratio = result.records["theory"].values["ratio"]
    yield "preserved", replaced(result, "theory", ratio=0 * ratio + ratio[..., :1])
    yield "growing", replaced(result, "theory", ratio=ratio[..., ::-1])
    yield "squared", replaced(result, "theory", ratio=ratio**2)
