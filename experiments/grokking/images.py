"""Grokking images: less delay as the output scale falls (Kumar et al. 2023).

A ReLU network with one hidden layer and large initial weights learns a few hundred digits of scikit-learn (or MNIST) by
full-batch AdamW on half the squared error to one-hot labels. Its output is multiplied by alpha: the larger the random
function at the start, the longer the network needs, after it has fitted the training set, to forget it elsewhere. The
network is homogeneous of degree two, ``f ~ alpha |w|^2``, and its norm decays as ``exp(-eta lambda t)``, so a factor on
alpha moves the time of generalisation by ``ln(factor) / (2 eta lambda)``.

Run time: about 80 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal, NamedTuple

import jax
import numpy as np
import optax

from dynamics import config, stax
from dynamics.config import Count, Positive, Range
from dynamics.evolve import descent, every, log_steps
from dynamics.evolve import study as in_memory
from dynamics.losses import half_mse
from dynamics.models.scaling import scaled
from dynamics.observe import accuracy, joined, loss, prefixed, seldom
from dynamics.runs.figures import measured_style, new_figure, theory_style
from dynamics.statistics import first_step, time_ratio
from dynamics.tasks.images import digits, mnist
from dynamics.types import Claim, Data, Objective, Record
from experiments.grokking._mechanism import mechanism

SOURCE = "Kumar et al. 2023, section 5 (images)"
SECONDS = 80


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Range(1, 4096)] = 3
    """number of independent seeds, run side by side"""
    dataset: Literal["digits", "mnist"] = "digits"
    """8 x 8 digits of scikit-learn, or MNIST from checked files"""
    download: bool = False
    """fetch MNIST where it is not on disk yet"""
    alpha: Annotated[tuple[float, ...], Positive] = (0.1, 1.0, 2.0)
    """output scale alpha"""
    scale: Annotated[float, Positive] = 8.0
    """factor on the usual initial weights"""
    samples: Annotated[int, Range(10, 50_000)] = 200
    """training images"""
    width: Annotated[int, Count] = 200
    """hidden units"""
    learning_rate: Annotated[float, Positive] = 1e-3
    """learning rate eta of AdamW"""
    weight_decay: Annotated[float, Positive] = 0.1
    """decoupled weight decay lambda of AdamW"""
    level: Annotated[float, Range(0, 1)] = 0.75
    """test accuracy that counts as generalising"""
    steps: Annotated[int, Count] = 12_000
    """updates"""

    @classmethod
    def paper(cls) -> Config:
        return cls(
            dataset="mnist",
            alpha=(0.001, 0.01, 0.1, 0.5),
            scale=150.0,
            samples=1000,
            weight_decay=0.01,
            steps=1_000_000,
        )

    def __post_init__(self):
        super().__post_init__()
        self.require(self.dataset != "digits" or self.samples <= 1700, "samples", "at most 1700 for digits")


class Result(NamedTuple):
    """``records['network']`` with values ``[T, alphas, seeds]``."""

    config: Config
    records: dict[str, Record]


def load(config: Config, shuffle: int) -> Data:
    """Images of one seed.

    Raises:
        FileNotFoundError: MNIST is not on disk and may not be downloaded; names the file, its hash and its mirrors.
    """
    if config.dataset == "mnist":
        return mnist(config.samples, 5000, download=config.download, seed=shuffle)
    return digits(config.samples, seed=shuffle)


def run(config: Config, study=in_memory) -> Result:
    pixels, key = 784 if config.dataset == "mnist" else 64, jax.random.key(config.seed)
    dense = [stax.Dense(n, config.scale / 3**0.5, parameterization="standard") for n in (config.width, 10)]
    model = stax.serial(dense[0], stax.Relu(), dense[1])

    def draw(lane):
        own = jax.random.fold_in(key, lane.seed)
        shuffle = int(jax.random.randint(own, (), 0, 2**31 - 1))
        return load(config, shuffle), model.init(own, (-1, pixels))[1]

    def make(lane):
        optimizer = optax.adamw(config.learning_rate, weight_decay=config.weight_decay)
        return descent(Objective(scaled(model, lane.alpha).apply, half_mse), optimizer)

    record = study(
        {"alpha": config.alpha, "seed": range(config.seeds)},
        draw, make, [prefixed("train", joined(accuracy(), loss())), seldom(mechanism(), 10)],
        test=[accuracy(), loss()], steps=config.steps,
        record_at=np.union1d(log_steps(config.steps, 40), every(max(config.steps // 100, 1), config.steps)),
        key=key, label="network",
    )  # fmt: skip
    return Result(config, {"network": record})


class Times(NamedTuple):
    """Steps ``[alphas, seeds]`` to 99 % train accuracy and to ``level`` test accuracy; at least 1, inf if never."""

    train: np.ndarray
    test: np.ndarray


def times(config: Config, record: Record) -> Times:
    levels = {"train": 0.99, "test": config.level}
    found = (first_step(record.step, record.values[f"{k}_accuracy"], level, "above") for k, level in levels.items())
    return Times(*(np.maximum(steps, 1) for steps in found))


def claims(result: Result) -> list[Claim]:
    cfg, source = result.config, "section 5, images"
    found, order = times(cfg, result.records["network"]), np.argsort(cfg.alpha)
    highest, lowest = cfg.alpha[order[-1]], cfg.alpha[order[0]]
    below = [i for i in order if cfg.alpha[i] <= 0.5 * (1 + 1e-6) * highest]
    if not below:
        return [Claim.not_applicable("delay falls with alpha", source, "no two alphas are a doubling apart")]
    with np.errstate(invalid="ignore"):
        delay = np.median(found.test - found.train, axis=1)[order]
        shift, low = np.median(found.test[order[-1]] - found.test[below[-1]]), cfg.alpha[below[-1]]
    clock = np.log(highest / low) / (2 * cfg.learning_rate * cfg.weight_decay)
    ratio = np.median(time_ratio(found.test, found.train), axis=1)[order[-1]]
    name = f"shift of the time of generalisation from alpha = {low:g} to {highest:g} over ln(factor) / (2 eta lambda)"
    return [
        Claim.at_least(f"delay test / train at alpha = {highest:g}, median", source, ratio, 3),
        Claim.at_most(
            f"gap in steps at alpha = {lowest:g} over that at {highest:g}", source, time_ratio(delay[0], delay[-1]), 0.5
        ),
        Claim.close(name, "weight-norm clock", shift / clock, 1.0, 0.2),
    ]


def figure(result: Result) -> Any:
    """Markers: medians over seeds, train open, test filled; line: the weight-norm clock."""
    cfg, record = result.config, result.records["network"]
    page, panels = new_figure(1, 4, width=3.7)
    step, found, count = np.maximum(record.step, 0.7), times(cfg, record), len(cfg.alpha)
    for i, alpha in enumerate(cfg.alpha):
        for part, extra in (("train", {}), ("test", {"markerfacecolor": "0.75"})):
            value = np.median(np.asarray(record.values[f"{part}_accuracy"])[::4, i], axis=1)
            panels[0].plot(step[::4], value, label=f"{part}, alpha = {alpha:g}", **measured_style(i, count) | extra)
        for panel, name in ((panels[2], "alignment"), (panels[3], "weight_norm")):
            value = np.median(np.asarray(record.values[name])[:, i], axis=1)
            read = np.isfinite(value)
            panel.plot(record.step[read], value[read], label=f"alpha = {alpha:g}", **measured_style(i, count))
    for i, part in enumerate(Times._fields):
        reached = getattr(found, part)
        panels[1].plot(np.repeat(cfg.alpha, reached.shape[1]), reached.ravel(), label=part, **measured_style(2 * i, 3))
    top = int(np.argmax(cfg.alpha))
    alphas = np.geomspace(min(cfg.alpha), max(cfg.alpha), 50)
    clock = np.median(found.test[top]) + np.log(alphas / max(cfg.alpha)) / (2 * cfg.learning_rate * cfg.weight_decay)
    panels[1].plot(alphas, clock, label="weight-norm clock", **theory_style())
    panels[0].set(xscale="log", xlabel="step", ylabel="accuracy")
    panels[1].set(
        xscale="log", xlabel="output scale alpha", ylabel=f"step of accuracy .99, {cfg.level:g}", ylim=(0, None)
    )
    panels[2].set(xlabel="step", ylabel="NTK-label alignment")
    panels[3].set(yscale="log", xlabel="step", ylabel=r"weight norm $|\theta|_2$")
    for panel in panels:
        panel.legend(fontsize=7, frameon=False)
    page.suptitle(f"{cfg.dataset}, {cfg.samples} training images: the delay grows with the output scale")
    return page


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
