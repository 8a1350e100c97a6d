"""What the papers of this family share: standardised digits and the tanh network on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from dynamics import stax
from dynamics.evolve import every
from dynamics.losses import half_mse
from dynamics.observe import seldom
from dynamics.runs.figures import measured_style, new_figure, theory_style
from dynamics.tasks import images
from dynamics.types import Claim, Data, Model, Objective, Observable, Record

SELDOM = 10
"""Recorded steps between two readings of what ``train_grid`` keeps apart."""
MOST = {"digits": 1797, "cifar10": 50_000}
"""Training samples of each data set."""


def digits(samples: int, seed: int) -> Data:
    """``samples`` of the 8 x 8 digits, each pixel (0 to 16) standardised by its std + .01, one-hot targets."""
    return jax.tree.map(jnp.asarray, images.digits(samples, seed=seed, scale="standard", epsilon=1e-2 / 16))


def cifar10(samples: int, seed: int) -> Data:
    """``samples`` of CIFAR-10, each pixel standardised, one-hot targets, and all of its test.

    Its file must be at hand: ``python -c 'from dynamics.tasks import cifar10; cifar10(download=True)'`` fetches it.
    """
    return jax.tree.map(jnp.asarray, images.cifar10(samples, seed=seed, scale="standard"))


def check_data(config) -> None:
    """Raises ValueError unless ``data`` has that many ``samples``."""
    config.require(config.samples <= MOST[config.data], "samples", f"at most the {MOST[config.data]} of {config.data}")


def network(width: int, depth: int) -> Model:
    """``depth`` tanh layers; weights have the variance of ``U(+-1/sqrt(fan_in))``, biases start at 0."""
    dense = {"W_std": 3**-0.5, "b_std": 0.0, "parameterization": "standard"}
    layers = [layer for _ in range(depth) for layer in (stax.Dense(width, **dense), stax.Tanh())]
    return stax.serial(*layers, stax.Dense(10, **dense))


def setting(config, loss=half_mse, data: Data | None = None) -> tuple[Data, Objective, Callable[[int], Any]]:
    """``(data, L, start)``: the config's data unless given, the tanh network's objective, ``start(number)`` of a seed.

    Args:
        config: ``samples``, ``width``, ``depth`` and ``seed``; ``data``, digits where there is none.
        loss: of the objective.
        data: what it is trained on.
    """
    if data is None:
        known = {"digits": digits, "cifar10": cifar10}
        data = known[getattr(config, "data", "digits")](config.samples, config.seed)
    model, key = network(config.width, config.depth), jax.random.key(config.seed)

    def start(number: int) -> Any:
        return model.init(jax.random.fold_in(key, number), (-1, data.train.x.shape[1]))[1]

    return data, Objective(model.apply, loss), start


def late(values, share: float = 1 / 3) -> np.ndarray:
    """The last ``share`` of a record's rows."""
    values = np.asarray(values)
    return values[-max(1, round(len(values) * share)) :]


def train_grid(config, make, read, study, *, loss=half_mse, data: Data | None = None, at=None) -> Record:
    """Trains the tanh network for every (eta, seed) as one program; values are ``[T, etas, seeds]``.

    Args:
        config: that of ``setting``, and ``eta``, ``seeds``, ``steps`` and ``record_every``.
        make: ``(L, eta) -> Dynamics``.
        read: ``eta -> observables``; the training loss before the last update is read besides, and ``held_out``.
        study: the pure or the durable one.
        loss, data: as in ``setting``.
        at: recorded steps; every ``record_every`` unless given.
    """
    data, L, start = setting(config, loss, data)
    last = Observable.of_view(lambda view: {"loss": view.state.loss})

    return study(
        {"eta": config.eta, "seed": range(config.seeds)},
        draw=lambda lane: start(lane.seed),
        make=lambda lane: make(L, lane.eta),
        read=lambda lane: [*read(lane.eta), last],
        test=[] if data.test is None else [seldom(held_out(L), SELDOM)],
        steps=config.steps,
        record_at=every(config.record_every, config.steps) if at is None else at,
        key=jax.random.key(config.seed),
        data=data,
        label="descent",
        stream=stream(config),
    )


def held_out(L: Objective):
    """Reads the loss on a batch, and that against its labels in another order."""

    def read(params, batch):
        f = L.apply(params, batch.x)
        return {"loss": L.loss(f, batch.y), "shuffled": L.loss(f, jnp.roll(batch.y, 1, 0))}

    return read


def stream(config):
    """The number of a cell's noise: as many a rate as the quick preset has seeds, so that more steps or rates change
    none; a seed beyond those meets the noise of an earlier seed at a later rate."""
    usual = type(config)().seeds
    return lambda index: usual * index["eta"] + index["seed"]


def ends_early(column, level: float, span: float, usual: float) -> bool:
    """Whether ``column [T, seeds]`` stays below ``level`` only for want of time: all finite, some seed below it, and a
    training time ``span`` below 80 % of ``usual``, the shortest of the quick preset."""
    column = np.asarray(column)
    return bool(np.all(np.isfinite(column)) and np.any(column.max(0) <= level) and span < 0.8 * usual)


def hovering_claims(
    ratio, config, source: str, low: float, high: float, symbol: str, levels: Mapping[str, float] | None = None
) -> list[Claim]:
    """Each rate's mean of the last third of ``ratio [T, etas, seeds]`` over seeds lies in [low, high].

    Rivals are the sharpness at the start (a frozen kernel), the level that another rate has (one that no rate sets) and
    ``levels``, other thresholds over the claimed one.
    """
    found, quick, ratio, etas = [], type(config)(), np.asarray(ratio), np.asarray(config.eta)
    hovering = late(ratio).mean(0)  # [etas, seeds]
    for i, eta in enumerate(config.eta):
        name = f"eta = {eta:g}: {symbol} over the last third"
        if ends_early(ratio[:, i], 0.97, config.steps * eta, quick.steps * min(quick.eta)):
            found.append(Claim.not_reached(name, source, config.steps, "a run ends before it reaches the threshold"))
            continue
        far = np.argmax(np.abs(np.log(etas / eta)))
        rivals = {"as at the start": ratio[0, i], **(levels or {})}
        if abs(np.log(etas[far] / eta)) > 0.25:
            rivals[f"as at eta = {etas[far]:g}"] = hovering[far] * eta / etas[far]
        note = f"seeds {np.array2string(hovering[i], precision=3)}"
        claim = Claim.between(name, source, hovering[i], low, high, rivals=rivals, note=note)
        below = ends_early(ratio[:, far], 0.97, config.steps * etas[far], quick.steps * min(quick.eta))
        if claim.agrees and below and list(claim.standing) == [f"as at eta = {etas[far]:g}"]:
            note = f"eta = {etas[far]:g}, a control, ends before it reaches the threshold"
            claim = Claim.not_reached(name, source, config.steps, note)
        found.append(claim)
    return found


def falling_claims(record: Record, ratio, config, source: str) -> list[Claim]:
    """At the edge the loss goes on falling: at the end against where ``ratio [T, etas, seeds]`` first exceeds .9; means
    over rates; and ``learnt_claim``."""
    name, quick = "loss at the end over that where the threshold is reached, log10", type(config)()
    loss, above = np.asarray(record.values["loss"], float), np.asarray(ratio) > 0.9
    short = config.steps * min(config.eta) < 0.8 * quick.steps * min(quick.eta)
    if short and not above.any(0).all() and np.all(np.isfinite(ratio)):
        found = [Claim.not_reached(name, source, config.steps, "a run ends before it reaches the threshold")]
    else:
        reached = np.take_along_axis(loss, np.maximum(np.argmax(above, 0), 1)[None], 0)[0]  # [etas, seeds]
        held = above.any(0) & np.isfinite(loss[-1]) & (loss[-1] > 0)
        fall = np.where(held, np.log10(np.where(held, loss[-1], 1) / np.where(held, reached, 1)), np.nan).mean(0)
        found = [Claim.at_most(name, source, fall, -0.3, rivals={"it stays there": 0.0})]
    if "test_loss" in record.values and not short:
        found.append(learnt_claim(record, source, SELDOM))
    return found


def learnt_claim(record: Record, source: str, interval: int = 1) -> Claim:
    """Control: the loss on samples kept apart, read at every ``interval``-th recorded step, is that of their own
    labels, not of others; means over all but seeds."""
    test, shuffled = (
        np.asarray(record.values[f"test_{key}"], float)[::interval][-1] for key in ("loss", "shuffled")
    )  # [..., seeds]
    apart = np.log10(test / shuffled).reshape(-1, test.shape[-1]).mean(0)
    name = "control: loss on samples kept apart over that with their labels shuffled, at the end, log10"
    return Claim.at_most(name, source, apart, -0.3, rivals={"any labels": 0.0})


def ratio_figure(config, record: Record, ratio, ylabel: str, threshold: str) -> Figure:
    """Loss and ``ratio [T, etas, seeds]`` of the first seed along training, over the line at 1, the ``threshold``."""
    picture, (left, right) = new_figure(1, 2)
    for i, eta in enumerate(config.eta):
        style = measured_style(i, len(config.eta)) | {"markevery": max(1, len(record.step) // 40)}
        left.semilogy(record.step, np.asarray(record.values["loss"])[:, i, 0], **style, label=f"$\\eta$ = {eta:g}")
        right.plot(record.step, np.asarray(ratio)[:, i, 0], **style, label=f"$\\eta$ = {eta:g}")
    right.axhline(1, **theory_style(), label=threshold)
    left.set(xlabel="step", ylabel="training loss")
    right.set(xlabel="step", ylabel=ylabel)
    left.legend()
    right.legend()
    return picture
