"""Grokking real digits from large initial weights (Liu, Michaud & Tegmark 2022, Omnigrok).

A ReLU network trained on few images with AdamW fits them fast whatever the size of its weights, and generalises when
their norm comes down to the zone in which networks generalise. Starting ``scale`` times too large, the norm decays as
``|w(t)| = |w_0| exp(-eta lambda t)`` while the training set stays fitted, so it is the clock of generalisation:
``t_80 = ln(|w_0|/|w_80|) / (eta lambda)``. Controls: the usual scale and a strong weight decay show no delay, no weight
decay never generalises. Loss: half the squared error on one-hot labels, mean over samples (AdamW does not feel its
scale).

Run time: about 110 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
import optax

from dynamics import config, stax
from dynamics.config import Count, Positive, Range
from dynamics.evolve import Drawn, descent, every, log_steps
from dynamics.evolve import study as in_memory
from dynamics.losses import half_mse
from dynamics.observe import accuracy, joined, loss, prefixed, seldom
from dynamics.runs.figures import measured_style, new_figure, theory_style
from dynamics.statistics import first_step, time_ratio, value_at, weight_norm
from dynamics.tasks.images import digits
from dynamics.types import Claim, Model, Objective, Record
from experiments.grokking._mechanism import mechanism

SOURCE = "Liu, Michaud & Tegmark 2022, 'Omnigrok: grokking beyond algorithmic data'"
SECONDS = 110


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Range(1, 4096)] = 3
    """number of independent seeds, run side by side"""
    scale: Annotated[float, Positive] = 8.0
    """factor on the usual initial weights"""
    weight_decay: Annotated[float, Positive] = 0.1
    """decoupled weight decay lambda of AdamW"""
    strong_decay: Annotated[float, Positive] = 1.0
    """weight decay of the control without delay"""
    learning_rate: Annotated[float, Positive] = 1e-3
    """learning rate eta of AdamW"""
    width: Annotated[int, Count] = 200
    """hidden units in each of two layers"""
    samples: Annotated[int, Range(10, 1700)] = 200
    """training images"""
    steps: Annotated[int, Count] = 10_000
    """updates of the main run and of the control without weight decay"""
    control_steps: Annotated[int, Count] = 2500
    """updates of the two controls without delay"""

    @classmethod
    def paper(cls) -> Config:
        return cls(samples=1000, steps=100_000, control_steps=10_000, weight_decay=0.01, strong_decay=0.1)


class Result(NamedTuple):
    """Records ``large``, ``no decay``, ``usual scale`` and ``strong decay`` with values ``[T, seeds]``."""

    config: Config
    records: dict[str, Record]


def run(config: Config, study=in_memory) -> Result:
    scale, decay = config.scale, config.weight_decay
    slow = {"large": (scale, decay), "no decay": (scale, 0.0)}
    fast = {"usual scale": (1.0, decay), "strong decay": (scale, config.strong_decay)}
    records = train(config, study, slow, config.steps, "large and no decay")
    return Result(config, records | train(config, study, fast, config.control_steps, "usual scale and strong decay"))


def network(width: int) -> Model:
    """Two ReLU layers; weights of the usual variance ``1/(3 fan_in)``, biases start at zero."""
    dense = [stax.Dense(n, 3**-0.5, 0.0, parameterization="standard") for n in (width, width, 10)]
    return stax.serial(dense[0], stax.Relu(), dense[1], stax.Relu(), dense[2])


def train(config: Config, study, settings: dict[str, tuple[float, float]], steps: int, label: str) -> dict[str, Record]:
    """Every setting, ``(factor on the usual weights, weight decay)``, on every seed; records ``[T, seeds]``."""
    model, key = network(config.width), jax.random.key(config.seed)
    L = Objective(model.apply, half_mse)

    def draw(lane):
        (scale, decay), own = [*settings.values()][lane.setting], jax.random.fold_in(key, lane.seed)
        shuffle = int(jax.random.randint(own, (), 0, 2**31 - 1))
        weights = jax.tree.map(lambda leaf: scale * leaf, model.init(own, (-1, 64))[1])
        return Drawn(weights, digits(config.samples, seed=shuffle), {"weight_decay": decay})

    def norm(params, batch):
        return {"norm": weight_norm(params)}

    record = study(
        {"setting": range(len(settings)), "seed": range(config.seeds)},
        draw, lambda lane: descent(L, optax.adamw(config.learning_rate, weight_decay=lane.weight_decay)),
        [norm, prefixed("train", joined(accuracy(), loss())), seldom(mechanism(), 12)], test=[accuracy(), loss()],
        steps=steps, record_at=np.union1d(log_steps(steps, 60), every(max(steps // 100, 1), steps)), key=key,
        label=label,
    )  # fmt: skip
    return {name: record.at(setting=i) for i, name in enumerate(settings)}


class Times(NamedTuple):
    """Per seed: steps to 99 % train and 80 % test accuracy, inf if never, latter by the norm clock, NaN if never."""

    train: np.ndarray
    test: np.ndarray
    clock: np.ndarray


def times(config: Config, record: Record, decay: float) -> Times:
    train, test = (np.asarray(record.values[f"{part}_accuracy"]) for part in ("train", "test"))
    norm = np.asarray(record.values["norm"])
    fitted, generalised = (first_step(record.step, *at, "above") for at in ((train, 0.99), (test, 0.8)))
    clock = np.log(norm[0] / value_at(record.step, norm, generalised)) / (config.learning_rate * decay)
    return Times(fitted, generalised, clock)


def ratio(late: np.ndarray, early: np.ndarray) -> np.ndarray:
    """``time_ratio`` of steps that count as 1 when they are 0."""
    return time_ratio(np.maximum(late, 1), np.maximum(early, 1))


def claims(result: Result) -> list[Claim]:
    cfg, records = result.config, result.records
    found = {name: times(cfg, record, cfg.weight_decay) for name, record in records.items()}
    large, test = found["large"], np.asarray(records["large"].values["test_accuracy"])
    early = value_at(records["large"].step, test, large.train)
    off = np.abs(ratio(large.clock, large.test) - 1)
    never, memorised = (np.asarray(records["no decay"].values[f"{part}_accuracy"]) for part in ("test", "train"))
    controls = {name: ratio(found[name].test, found[name].train).max() for name in ("usual scale", "strong decay")}
    return [
        Claim.at_most("test accuracy when train is at 99 %, worst seed", "figure 4", early.max(), 0.3),
        Claim.at_least(
            "delay: test 80 % / train 99 %, worst seed", "figure 4", ratio(large.test, large.train).min(), 4
        ),
        Claim.at_least("test accuracy at the end, worst seed", "figure 4", test[-1].min(), 0.8),
        Claim.at_most("usual scale: delay, worst seed", "figure 4", controls["usual scale"], 1.5),
        Claim.at_most("strong weight decay: delay, worst seed", "figure 4", controls["strong decay"], 1.5),
        Claim.at_least("no weight decay: train accuracy at the end, worst seed", "figure 4", memorised[-1].min(), 0.99),
        Claim.at_most("no weight decay: highest test accuracy of the run, worst seed", "figure 4", never.max(), 0.3),
        Claim.at_most(
            "weight-norm clock against the measured delay, largest relative error", "section 2", off.max(), 0.1
        ),
    ]


def figure(result: Result) -> Any:
    """Markers: medians over seeds; lines: exponential decay of the norm and the time it foretells."""
    cfg, records = result.config, result.records
    page, panels = new_figure(2, 3)
    titles = ("large", "no decay", "usual scale", "strong decay")
    for panel, name in zip(panels.ravel()[[0, 1, 3, 4]], titles):
        record = records[name]
        for i, part in enumerate(("train", "test")):
            value = np.median(np.asarray(record.values[f"{part}_accuracy"])[::3], axis=1)
            panel.plot(np.maximum(record.step[::3], 0.7), value, label=part, **measured_style(2 * i, 3))
        panel.set(
            xscale="log", xlabel="step", ylabel="accuracy", title=TITLES[name].format(cfg=cfg), ylim=(-0.02, 1.05)
        )
    clock = np.median(times(cfg, records["large"], cfg.weight_decay).clock)
    panels[0, 0].axvline(clock, label="weight-norm clock", **theory_style())
    panels[0, 0].legend(fontsize=7, frameon=False)
    decays = (cfg.weight_decay, 0.0, cfg.weight_decay, cfg.strong_decay)
    for i, (name, decay) in enumerate(zip(titles, decays)):
        record = records[name]
        norm = np.median(np.asarray(record.values["norm"]), axis=1)
        panels[0, 2].plot(record.step, norm[0] * np.exp(-cfg.learning_rate * decay * record.step), **theory_style(i))
        panels[0, 2].plot(record.step[::6], norm[::6], label=name, **measured_style(i, 4))
        kernel = np.median(np.asarray(record.values["alignment"]), axis=1)
        read = np.isfinite(kernel)
        panels[1, 2].plot(np.maximum(record.step[read], 0.7), kernel[read], label=name, **measured_style(i, 4))
    floor = np.median(np.asarray(records["usual scale"].values["norm"])) / 3
    panels[0, 2].set(yscale="log", xlabel="step", ylabel="weight norm; lines: decay alone", ylim=(floor, None))
    panels[1, 2].set(xscale="log", xlabel="step", ylabel="NTK-label alignment")
    for panel in panels[:, 2]:
        panel.legend(fontsize=7, frameon=False)
    page.suptitle(f"Digits, {cfg.samples} training images: the weight norm tells when the network generalises")
    return page


TITLES = {
    "large": "scale {cfg.scale:g}, weight decay {cfg.weight_decay:g}",
    "no decay": "scale {cfg.scale:g}, no weight decay",
    "usual scale": "scale 1, weight decay {cfg.weight_decay:g}",
    "strong decay": "scale {cfg.scale:g}, weight decay {cfg.strong_decay:g}",
}


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
