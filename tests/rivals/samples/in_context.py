"""Theories without a term, of another context or of all tasks; risks exchanged; tasks without effect."""

from dynamics.experiments.samples import in_context as experiment
from rivals import replaced

CONFIG = {"seeds": 3, "tasks": (4, 64), "dim": 8, "length": 16, "steps": 600, "rate": 0.05, "batch": 256}


def wrong(result):
    attention, theory, tested = (result.records[name].values for name in ("attention", "theory", "tested"))
    for rival, label in experiment.RIVALS.items():
        other = {name: theory[f"{name} {rival}"] for name in ("old", "new")}
        yield f"theory {label}", replaced(result, "theory", **other)
    yield (
        "risk without the term",
        replaced(result, "tested", **{"old z": tested["old z bare"], "new z": tested["new z bare"]}),
    )
    yield "tasks exchanged", replaced(result, "attention", old=attention["old"][:, ::-1], new=attention["new"][:, ::-1])
    yield "old tasks for new ones", replaced(result, "attention", old=attention["new"], new=attention["old"])
    yield "networks that learn nothing", replaced(result, "attention", old=0 * attention["old"] + attention["old"][:1])
    still = {name: 0 * attention[name] + attention[name][:, :1] for name in ("old", "new")}
    yield "tasks without effect", replaced(result, "attention", **still)
