"""Depths and widths exchanged, a symmetry more or less in every network."""

from rivals import replaced

CONFIG = {"seeds": 80}


def wrong(result):
    missing = result.records["rank"].values["missing"]
    for name, depths in {"depth has no effect": [0, 0, 0], "deeper, fewer symmetries": [2, 1, 0]}.items():
        yield name, replaced(result, "rank", missing=missing[:, :, depths])
    yield "a third layer changes nothing", replaced(result, "rank", missing=missing[:, :, [0, 1, 1]])
    yield "width has no effect", replaced(result, "rank", missing=missing[:, [0, 0]])
    yield "widths exchanged", replaced(result, "rank", missing=missing[:, ::-1])
    yield "a symmetry less", replaced(result, "rank", missing=missing - 1)
    yield "a symmetry more", replaced(result, "rank", missing=missing + 1)
