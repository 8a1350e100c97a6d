"""What the groups of opposing samples do to a run: without them, and under Adam in the place of gradient descent."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.axes import Axes

from dynamics import observe
from dynamics.evolve import Drawn, descent, every, gradient_descent
from dynamics.runs.figures import measured_style, rival_style, theory_style
from dynamics.statistics import first_step
from dynamics.types import Batch, Claim, Data, Objective, Observable, Record

from ._digits import late

LEFT_OUT = ("the groups", "as many at random", "others at random", "the largest losses")
"""What is left out, by its number."""
CASES = ((0, 0), (0, 1), (0, 2), (1, 0), (2, 0))
"""Kind of data and what is left out of it from the start on, of the axis ``case``."""
BLIND = 1e3
"""eps of an Adam blind to its second moment: ``eta eps m / (sqrt(v) + eps) = eta m`` up to ``sqrt(v)/eps``."""
RULES = {"GD": (0, 1), "first moment alone": (1, 1), "second moment alone": (0, 0), "Adam": (1, 0)}
"""Places on the axes ``memory`` and ``eps`` of ``run_rules``."""
SOURCE = "section 4, from memory"


def run_removed(config, L: Objective, kinds, start, found, at, study) -> dict[str, Record]:
    """Trains without the groups, without as many other samples, and on all.

    Args:
        config: that of the experiment.
        kinds: data of each kind.
        start: ``seed -> params``.
        found: ``(kind, seed) -> params`` at the spike.
        at: what is read there, ``[1, data, seeds, n]``: 'order' of the samples, whose first and last are the groups,
            and their 'losses'.

    Returns:
        'without' ``[T, case, seeds]`` and 'whole' ``[T, data, seeds]``, from the start: the loss that is trained on,
        before each step; 'after' ``[T, left, seeds]``, from the spike on the data: that outside the groups.
    """
    key, size = jax.random.key(config.seed), 2 * config.group

    def parts(kind: int, left: int, seed: int) -> Data:
        (x, y), cell = kinds[kind].train, (0, kind, seed)
        outside = kept = np.sort(np.roll(np.asarray(at["order"][cell], int), config.group)[size:])
        if LEFT_OUT[left] == "the largest losses":
            kept = np.sort(np.argsort(-np.asarray(at["losses"][cell]))[size:])
        elif left:
            own = jax.random.fold_in(jax.random.fold_in(key, 1 + left), seed)
            kept = np.sort(np.asarray(jax.random.permutation(own, config.samples))[size:])
        return Data(Batch(x[kept], y[kept]), Batch(x[outside], y[outside]))

    def make(lane):
        return gradient_descent(L, config.eta)

    def train(label, axis, data):
        own = Observable.of_view(lambda view: {"loss": view.state.loss})
        return study(
            {**axis, "seed": range(config.seeds)},
            lambda lane: Drawn(start(lane.seed), data(lane)),
            make, [own], steps=config.steps, record_at=1 + every(1, config.steps - 1), key=key, label=label,
        )  # fmt: skip

    without = train("without", {"case": range(len(CASES))}, lambda lane: parts(*CASES[int(lane.case)], lane.seed))
    whole = train("whole", {"data": range(len(kinds))}, lambda lane: kinds[lane.data])
    after = study(
        {"left": range(len(LEFT_OUT)), "seed": range(config.seeds)},
        lambda lane: Drawn(found(0, lane.seed), parts(0, lane.left, lane.seed)),
        make, test=[observe.loss()], steps=config.window, record_at=every(1, config.window), key=key, label="after",
    )  # fmt: skip
    return {"without": without, "whole": whole, "after": after}


def run_rules(config, L: Objective, data, start, losses, study) -> Record:
    """Adam with and without the memory of its first moment, and both blind to the second: every sample's loss.

    Blind and without memory it is gradient descent at ``config.eta``; blind, with memory, the same with the gradient
    averaged over ten steps (momentum with dampening), which changes no slow motion. Values are ``[T, 2, 2, seeds, n]``.
    """

    def make(lane):
        eta = jnp.where(lane.eps > 1, config.eta * lane.eps, config.adam_eta)
        return descent(L, optax.adam(eta, b1=lane.memory, eps=lane.eps))

    return study(
        {"memory": (0.0, 0.9), "eps": (1e-8, BLIND), "seed": range(config.seeds)},
        draw=lambda lane: start(lane.seed),
        make=make,
        read=[lambda params, batch: {"losses": losses(L, params, batch)}],
        steps=config.steps, record_at=every(1, config.steps), key=jax.random.key(config.seed), data=data, label="rules",
    )  # fmt: skip


def first_rise(record: Record) -> np.ndarray:
    """The first step that raises the loss by a thousandth of that at the start, of all but ``T``."""
    loss = np.asarray(record.values["loss"])
    return first_step(record.step[:-1], np.diff(loss, axis=0), 1e-3 * loss[0], "above")


def removal_claims(records: dict[str, Record], config, kinds) -> list[Claim]:
    """Without the groups the loss first rises later, and a spike that has begun grows less; runs on all are paired.

    Args:
        records: of ``run_removed``, with 'spike' and 'edge', of runs on all samples.
        config: that of the experiment.
        kinds: names; the first is the data, the others are its controls.
    """
    share, source = 2 * config.group / config.samples, "section 2, by removal"
    times, due = first_rise(records["without"]), first_rise(records["whole"])
    with np.errstate(invalid="ignore"):  # NaN where neither rises
        later = {case: times[i] / due[case[0]] for i, case in enumerate(CASES)}  # [seeds]
    name = "trained without the groups: step of the loss' first rise, over that with all samples"
    rivals = {f"without {LEFT_OUT[1]}": (later[0, 1] + later[0, 2]) / 2}
    note = ", ".join(f"{kind} {later[i, 0].mean():.2f}" for i, kind in enumerate(kinds) if i)
    claim = Claim.at_least(name, source, later[0, 0], 1 + share / 2, rivals=rivals, note=note)
    found = [claim.within(records["without"], times[0], due[0])]

    order = np.asarray(records["spike"].values["order"][0, 0], int)[None]
    outside = np.asarray(records["edge"].values["losses"])[:, 0]
    outside = np.take_along_axis(outside, order[..., config.group : -config.group], -1).mean(-1)
    usual = np.maximum(growth(outside), 1e-6)
    less = growth(np.asarray(records["after"].values["test_loss"])) / usual  # [left, seeds]
    name = "groups left out from the spike on: growth of the others' loss, over that with all samples"
    note = f"without {LEFT_OUT[3]} {less[3].mean():.2f}"
    rivals = {f"without {LEFT_OUT[1]}": less[1:3].mean(0)}
    return [*found, Claim.at_most(name, source, less[0], 0.5, rivals=rivals, note=note)]


def growth(loss) -> np.ndarray:
    """The largest of ``loss [T, ...]`` over the first, less 1."""
    return loss.max(0) / loss[0] - 1


def movement(losses, group: int) -> dict[str, np.ndarray]:
    """How the losses of a run's own groups move, ``[..., seeds]``; groups of the step that raises the mean loss most.

    ``share``: movement of a sample in the groups over the mean one, ``at_random`` of as many samples; ``path``: length
    of the groups' path over their displacement, 1 where all goes one way.

    Args:
        losses: ``[T, ..., seeds, n]``.
        group: samples in each of the two.
    """
    change = np.diff(np.asarray(losses), axis=0)
    worst = np.argmax(change.mean(-1), 0)[None, ..., None]
    order = np.argsort(np.take_along_axis(change, worst, 0)[0], -1)
    rows = np.concatenate([order[..., :group], order[..., -group:]], -1)
    size, net = np.abs(change).sum(0), np.abs(losses[-1] - losses[0])
    own, moved = (np.take_along_axis(x, rows, -1) for x in (size, net))
    return {
        "share": own.mean(-1) / size.mean(-1),
        "at_random": size[..., : 2 * group].mean(-1) / size.mean(-1),  # of the samples, which are shuffled
        "path": own.sum(-1) / moved.sum(-1),
    }


def end(losses) -> np.ndarray:
    """Mean loss of the last twentieth of ``losses [T, ..., n]``."""
    return late(np.asarray(losses).mean(-1), 1 / 20).mean(0)


def rule_claims(rules: Record, stable: Record, config) -> list[Claim]:
    """Adam against gradient descent, and what each moment does; means over seeds, which are paired.

    Args:
        rules: of ``run_rules``.
        stable: stable descent after as many steps, ``losses [T, 1, seeds, n]``.
        config: that of the experiment.
    """
    losses = np.asarray(rules.values["losses"])
    moves = movement(losses, config.group)
    share, path = ({rule: moves[key][at] for rule, at in RULES.items()} for key in ("share", "path"))
    name = "gradient descent: movement of a loss in its groups over the mean movement"
    rivals = {rule: share[rule] for rule in ("Adam", "first moment alone")}
    rivals["samples at random"] = moves["at_random"][RULES["GD"]]
    found = [Claim.at_least(name, SOURCE, share["GD"], 1.25, rivals=rivals)]
    for rule in ("Adam", "first moment alone"):
        name = f"{rule}: path of the losses of its groups over their displacement"
        rivals = {other: path[other] for other in ("GD", "second moment alone")}
        found.append(Claim.at_most(name, SOURCE, path[rule], 1.5, rivals=rivals))
    last, calm = end(losses), np.asarray(stable.values["losses"])[0, 0].mean(-1)
    below = {rule: np.log10(last[at] / last[RULES["GD"]]) for rule, at in RULES.items()}
    name = "Adam: loss after as many steps over gradient descent's, log10"
    rivals = {
        "first moment alone": below["first moment alone"],
        f"stable descent (eta = {config.stable_eta:g})": np.log10(calm / last[RULES["GD"]]),
    }
    return [*found, Claim.at_most(name, SOURCE, below["Adam"], -0.3, rivals=rivals)]


def draw_removed(axis: Axes, record: Record, reading: str, xlabel: str) -> None:
    """Loss of the first seed without the groups, and without as many other samples of the data."""
    loss = np.asarray(record.values[reading])[..., 0]
    for i in [i for i in (3, 1, 0) if "left" in record.axes or i < 3]:
        style = rival_style(i > 2) if i else {**measured_style(0, 2), "linestyle": "-", "marker": ""}
        axis.semilogy(record.step, loss[:, i], **style, label=f"without {LEFT_OUT[i]}")
    ylabel = "loss of the others, outside the groups" if "left" in record.axes else "training loss"
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.legend()


def draw_rules(axis: Axes, rules: Record, group: int) -> None:
    """Loss reached, over how far the groups' losses went for it."""
    losses = np.asarray(rules.values["losses"])
    path, last = movement(losses, group)["path"], end(losses) / losses[0].mean(-1)
    for i, (rule, at) in enumerate(RULES.items()):
        style = measured_style(i, len(RULES)) | {"linestyle": "none"}
        axis.loglog(path[at], last[at], **style, label=rule)
    axis.axvline(1, **theory_style(), label="all one way")
    axis.set(xlabel="path of the groups' losses\nover their displacement", ylabel="loss at the end over the start")
    axis.legend()
