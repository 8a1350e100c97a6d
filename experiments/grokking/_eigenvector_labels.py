"""The dial of misalignment by labels: y along an eigenvector of the initial kernel, over its index and seed.

Half of the readouts are +1 and half -1: with ones alone ``M >= 0`` bounds the network's quadratic form from below by
``-alpha eps/2``, and no such network fits a form of trace zero, which almost all eigenvectors beyond the linear are.
"""

from __future__ import annotations

import functools
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics.evolve import Drawn, gradient_descent, log_steps
from dynamics.losses import mse
from dynamics.models.scaling import scaled
from dynamics.models.two_layer import committee, quadratic
from dynamics.runs.figures import measured_style, rival_style, theory_style
from dynamics.statistics import first_step, value_at
from dynamics.theory import lazy_to_rich as theory
from dynamics.types import Batch, Claim, Data, Dynamics, Model, Objective, Observable, Record

from ._curves import middle, visible
from ._lazy_to_rich import Delay, at_steps, frozen

SIGNS = {"network": (1.0, -1.0), "infinite width": (1.0, -1.0), "one sign": (1.0,)}  # of readouts, in equal parts
SOURCE = "labels along eigenvectors"
RECORDED = 160  # steps: they are the resolution of times
LATE = 100  # the frozen kernel, which has a closed form, is followed for so many times as long
HALF = 0.5  # a loss has fallen when it is below this share of its value at step 0


def run(config: Any, study) -> dict[str, Record]:
    """``NAME, eigenvectors``: ``train_loss`` and ``test_loss`` ``[T, eigenvectors, seeds]``, for ``frozen`` too.

    ``one sign`` is the theory of a network whose readouts are all one.
    """
    axes = {"eigenvector": config.eigenvector, "seed": range(config.seeds)}
    of_seed = functools.cache(partial(points, config))
    trained = {
        name: study(
            axes,
            draw=partial(draw, config, of_seed, name),
            make=partial(dynamics, config, name),
            read=Observable.of_view(losses),
            steps=config.eigenvector_steps,
            record_at=log_steps(config.eigenvector_steps, RECORDED),
            label=f"{name}, eigenvectors",
        )
        for name in SIGNS
    }
    records = trained | {"frozen": late(config, study, axes, of_seed)}
    return {f"{name}, eigenvectors": record for name, record in records.items()}


def cell(config: Any) -> tuple[int, float, float]:
    """``(P, alpha, eps)`` of these runs: lazy and misaligned, with the most samples."""
    return max(config.samples), max(config.alpha), min(config.eps)


def points(config: Any, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs ``[n, D]`` of training and test points together, and eigenvectors ``[n, n]``, that of the largest first.

    Their signs are such that the first component is positive.
    """
    samples, _, eps = cell(config)
    key, shape = (
        jax.random.fold_in(jax.random.key(config.seed), seed),
        (samples + config.eigenvector_points, config.dimension),
    )
    x = np.asarray(jax.random.normal(jax.random.fold_in(key, 1), shape), float) / config.dimension**0.5
    gram = x @ x.T
    modes = np.linalg.eigh(gram * (1 + eps**2 * gram))[1][:, ::-1]
    return x, modes * np.copysign(1.0, modes[0])


def draw(config: Any, of_seed, name: str, lane) -> Drawn:
    """``y = sqrt(n) u_k`` on the points of the lane's seed; the network's targets are ``y + f_0``."""
    samples, (x, modes) = cell(config)[0], of_seed(lane.seed)
    x, y = jnp.asarray(x, float), jnp.asarray(len(x) ** 0.5 * modes[:, [lane.eigenvector - 1]], float)
    one = theory.infinite_width(config.dimension, x.dtype)
    params = start = jax.tree.map(lambda leaf: jnp.stack([leaf] * len(SIGNS[name])), one)
    if name == "network":
        key = jax.random.fold_in(jax.random.key(config.seed), lane.seed)
        params = jax.random.normal(jax.random.fold_in(key, 2), (config.width, config.dimension))
        y = y + network(config).apply(params, x)
    return Drawn(params, Data(Batch(x[:samples], y[:samples]), Batch(x[samples:], y[samples:])), {"start": start})


def network(config: Any) -> Model:
    _, alpha, eps = cell(config)
    return scaled(committee(config.width, quadratic(eps), signs=np.resize(SIGNS["network"], config.width)), alpha)


def dynamics(config: Any, name: str, lane) -> Dynamics:
    """Descent on the network's weights, or on the order parameters of its populations at infinite width."""
    (_, alpha, eps), signs = cell(config), np.array(SIGNS[name])
    if name == "network":
        return gradient_descent(Objective(network(config).apply, mse), config.eta0 * config.width / alpha**2)

    def f(at, x):
        moved = theory.change(theory.ReductionState(at, lane.start))
        return theory.output(theory.signed(moved, signs), x, alpha, eps)[:, None]

    return theory.reduction(alpha, eps, config.eta0, signs)._replace(objective=Objective(f, mse))


def losses(view):
    L = view.loss("eigenvector_labels")
    return {f"{side}_loss": L(view.params, getattr(view.data, side)) for side in ("train", "test")}


def late(config: Any, study, axes, of_seed) -> Record:
    """Descent with the kernel of the start: the same function for readouts of any signs."""
    _, alpha, eps = cell(config)
    start, record_at = theory.infinite_width(config.dimension), log_steps(LATE * config.eigenvector_steps, 2 * RECORDED)

    def losses(lane, view, at):
        moved = theory.change(theory.ReductionState(at, start))
        of = {"train": view.data.train, "test": view.data.test}
        return {f"{name}_loss": mse(theory.output(moved, x, alpha, eps)[:, None], y) for name, (x, y) in of.items()}

    drawn = partial(draw, config, of_seed, "one sign")
    return frozen(config, study, axes, drawn, losses, record_at, "frozen, eigenvectors", lambda lane: (alpha, eps))


class Curves(NamedTuple):
    """Losses over their start ``[T, eigenvectors, seeds]``, and the steps at which they fall below ``HALF`` of it."""

    train: np.ndarray
    test: np.ndarray
    falls: Delay

    @classmethod
    def of(cls, record: Record) -> Curves:
        held = [np.asarray(record.values[f"{side}_loss"]) for side in ("train", "test")]
        train, test = (loss / loss[0] for loss in held)
        return cls(train, test, Delay(*(first_step(record.step, one, HALF) for one in (train, test))))


def claims(config: Any, records: dict[str, Record]) -> list[Claim]:
    """The network's curves are those of its two populations: the later eigenvector is fitted later, generalises less.

    The frozen kernel is late by a multiple, and lower where it has fitted as much: moving features find a solution
    sooner, not a better one.
    """
    network, infinite, one, slow = (records[f"{name}, eigenvectors"] for name in (*SIGNS, "frozen"))
    first, last = config.eigenvector[0], config.eigenvector[-1]
    if not first <= config.dimension < last:
        note = f"needs a linear eigenvector, k <= D = {config.dimension}, and one beyond"
        return [Claim.not_applicable("labels along eigenvectors", SOURCE, note)]
    found, theirs, single, lazily = (Curves.of(record) for record in (network, infinite, one, slow))
    out, fitted, due = [], [found.falls.train[-1]], [theirs.falls.train[-1]]
    for side in ("train", "test"):
        measured, predicted = getattr(found, side), getattr(theirs, side)
        others = {
            "kernel frozen": at_steps(slow, f"{side}_loss", network.step) / slow.values[f"{side}_loss"][0],
            "labels along the next eigenvector": np.roll(predicted, -1, axis=1),
            "readouts of one sign": getattr(single, side),
        }
        error, *wrong = (
            np.sqrt(np.mean((measured - other) ** 2, axis=(0, 1))) for other in (predicted, *others.values())
        )
        name = f"eigenvectors: {side} loss over its start against the theory of two populations, root mean square"
        claim = Claim.at_most(name, SOURCE, error, 0.02, rivals=dict(zip(others, wrong)))
        early = [name for name in others if "next" not in name]  # which the network leaves when its features have moved
        out.append(claim.controls_within(network, dict.fromkeys(early, fitted), dict.fromkeys(early, due)))
    control = f"k = {first}"
    note = "recorded steps are the resolution: 0 is the same record"
    for name, of, needs in (
        ("train loss halved", lambda falls: falls.train, 1),
        ("delay of the test loss", lambda falls: falls.ratio, 2),
    ):
        measured, predicted, wrong = (np.log(of(curves.falls)) for curves in (found, theirs, lazily))
        rivals = {control: measured[0] - predicted[-1], "kernel frozen": wrong[-1] - predicted[-1]}
        name = f"k = {last}: log {name} against theory"
        claim = Claim.close(name, SOURCE, measured[-1] - predicted[-1], 0, 0.1, rivals=rivals, note=note)
        out.append(claim.within(network, *found.falls.at(-1)[:needs], due=theirs.falls.at(-1)[:needs]))
    name, most = f"k = {last}: largest test loss over its start", found.test.max(axis=0)
    claim = Claim.at_least(name, SOURCE, most[-1], 1.1, rivals={control: most[0]})
    out.append(claim.within(network, *fitted, due=due, at_end=True))
    judged = ends(config, found, lazily, slow.step)
    return out + [claim.within(network, *fitted, due=due, at_end=True) for claim in judged]


def ends(config: Any, found: Curves, lazily: Curves, steps: np.ndarray) -> list[Claim]:
    """What test loss comes to, where the training points leave the quadratic function open."""
    first, last = config.eigenvector[0], config.eigenvector[-1]
    names = (
        f"test loss at the end over its start, k = {last} less k = {first}",
        f"k = {last}: test loss at the end over its start, less that of the frozen kernel at the same train loss",
    )
    enough = config.dimension * (config.dimension + 3) // 2
    if cell(config)[0] >= enough:
        note = f"P >= D (D + 3)/2 = {enough} points say all about a quadratic function"
        return [Claim.not_applicable(name, SOURCE, note) for name in names]
    level = np.maximum(found.train[-1, -1], lazily.train[-1, -1])  # by seed
    as_far = value_at(steps, lazily.test[:, -1], first_step(steps, lazily.train[:, -1], level))
    rise, above = found.test[-1, -1] - found.test[-1, 0], found.test[-1, -1] - as_far
    return [
        Claim.at_least(names[0], SOURCE, rise, 0.1, rivals={"k has no effect": 0.0}),
        Claim.at_least(names[1], SOURCE, above, 0.0, rivals={"features change the speed alone": 0.0}),
    ]


def panel(axes, config: Any, records: dict[str, Record], side: str) -> None:
    """Medians over seeds of one loss by eigenvector: the network on its theory, and the kernel frozen."""
    network, infinite, slow = (records[f"{name}, eigenvectors"] for name in ("network", "infinite width", "frozen"))
    count = len(config.eigenvector)
    for i, k in enumerate(config.eigenvector):
        found, theirs, wrong = (middle(one, f"{side}_loss", i) for one in (network, infinite, slow))
        axes.plot(visible(infinite.step), theirs / theirs[0], **theory_style(i))
        shown = slice(None, None, max(1, len(found) // 25))
        axes.plot(visible(network.step)[shown], (found / found[0])[shown], label=f"k = {k}", **measured_style(i, count))
        label = "kernel frozen" if i == count - 1 else None
        axes.plot(visible(slow.step), wrong / wrong[0], label=label, **rival_style(i))
    axes.set(xscale="log", xlabel="step", ylabel=f"{side} loss / start")
    axes.legend(fontsize=7, frameon=False, loc="upper right")
