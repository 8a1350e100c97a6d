"""Schemes in one another's place, widths without effect, layers exchanged."""

import numpy as np

from rivals import replaced

CONFIG = {"seeds": 6, "width": (64, 128, 512)}


def wrong(result):
    values = result.records["check"].values
    for name, order in (
        ("standard and muP", [1, 0, 2]),
        ("muP and u-muP", [0, 2, 1]),
        ("standard and u-muP", [2, 1, 0]),
    ):
        yield f"{name} exchanged", replaced(result, "check", **{kind: held[:, order] for kind, held in values.items()})
    change, activation = values["change"], values["activation"]
    yield "width has no effect", replaced(result, "check", change=np.broadcast_to(change[..., :1], change.shape))
    yield "layers exchanged", replaced(result, "check", change=change[:, :, ::-1])
    yield "relu without its factor", replaced(result, "check", activation=activation / 2**0.5)
    yield (
        "output of size one",
        replaced(result, "check", activation=np.broadcast_to(activation[..., :1], activation.shape)),
    )
