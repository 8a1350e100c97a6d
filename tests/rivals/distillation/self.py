"""Students of other weights or ridges, teachers as students, errors and weights of other ridges, draws of noise."""

import numpy as np

from rivals import replaced

CONFIG = {"seeds": 4, "draws": 40, "width": 512}


def wrong(result):
    kernel, theory, student = (result.records[name].values for name in ("kernel", "theory", "student"))
    for name in ("doubled", "halved"):
        yield f"one distillation is {name} ridge", replaced(result, "theory", slope=theory[name] - theory["teacher"])
    yield "twice the slope", replaced(result, "theory", slope=2 * theory["slope"])
    teacher = np.broadcast_to(result.records["teacher"].values["test"][:, None], student["test"].shape)
    yield "students that learn nothing new", replaced(result, "student", test=teacher)
    yield "weights exchanged", replaced(result, "student", test=student["test"][:, ::-1])
    yield "teachers of other data", replaced(result, "student", test=np.roll(student["test"], 1, axis=3))
    yield (
        "distilling always helps",
        replaced(result, "kernel", student=np.minimum(kernel["student"], kernel["teacher"])),
    )
    yield "weights always positive", replaced(result, "kernel", xi=np.abs(kernel["xi"]))
    yield "ridges reversed", replaced(result, "kernel", xi=kernel["xi"][..., ::-1])
    gain = kernel["xi"] * np.sqrt(kernel["square"] + 0.3 * kernel["teacher"])
    yield "a gain at every ridge", replaced(result, "kernel", xi=np.abs(gain) / np.sqrt(kernel["square"]))
