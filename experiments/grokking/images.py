"""Grokking images: less delay as the output scale falls (Kumar et al. 2023).

A ReLU network with one hidden layer and large initial weights learns a few hundred digits of scikit-learn (or MNIST) by
full-batch AdamW on half the squared error to one-hot labels. Its output is multiplied by alpha: the larger the random
function at the start, the longer the network needs, after it has fitted the training set, to forget it elsewhere. At a
small alpha the same large weights generalise at once, without weight decay too: no one norm of the weights marks
generalisation. The network is homogeneous of degree two, ``f ~ alpha |w|^2``, and its norm decays as
``exp(-eta lambda t)``, so a factor on alpha moves the time of generalisation by ``ln(factor) / (2 eta lambda)``.

Run time: about 45 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
import math
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
from dynamics.runs.figures import measured_style, new_figure, rival_style, theory_style
from dynamics.statistics import first_step, time_ratio, value_at
from dynamics.tasks.images import digits, mnist
from dynamics.types import Claim, Data, Objective, Record

from ._mechanism import mechanism

SOURCE = "Kumar et al. 2023, section 5 (images)"
SECONDS = 45


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
    steps: Annotated[int, Count] = 10_000
    """updates"""

    @classmethod
    def paper(cls) -> Config:
        """The paper's MNIST; ``--dataset digits`` does without a download.

        2e15 operations: ten minutes of an H100 that another run shared, half a day on two cores; on digits a tenth of
        it. Not all claims hold: at alpha = .001 test accuracy .75 comes at twice the step of 99 % train accuracy, and
        without weight decay not within 30,000 updates; with it the networks end at .919.
        """
        alpha = (0.001, 0.01, 0.1, 0.5)
        return cls(dataset="mnist", alpha=alpha, scale=150.0, samples=1000, weight_decay=0.03, steps=300_000)

    def __post_init__(self):
        super().__post_init__()
        self.require(self.dataset != "digits" or self.samples <= 1700, "samples", "at most 1700 for digits")


class Result(NamedTuple):
    """Records ``network``, ``[T, alphas, seeds]``, and ``no decay``, ``[T, seeds]``, at the smallest alpha."""

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

    def train(alphas, decay, steps, label):
        def make(lane):
            optimizer = optax.adamw(config.learning_rate, weight_decay=decay)
            return descent(Objective(scaled(model, lane.alpha).apply, half_mse), optimizer)

        return study(
            {"alpha": alphas, "seed": range(config.seeds)},
            draw, make, [prefixed("train", joined(accuracy(), loss())), seldom(mechanism(), 10)],
            test=[accuracy(), loss()], steps=steps,
            record_at=np.union1d(log_steps(steps, 40), every(max(steps // 100, 1), steps)), key=key, label=label,
        )  # fmt: skip

    lowest, short = min(config.alpha), max(config.steps // 10, 1)
    still = train((lowest,), 0.0, short, "no decay").at(alpha=lowest)
    return Result(
        config, {"network": train(config.alpha, config.weight_decay, config.steps, "network"), "no decay": still}
    )


class Times(NamedTuple):
    """Steps ``[..., seeds]`` to 99 % train accuracy and to ``level`` test accuracy; at least 1, inf if never."""

    train: np.ndarray
    test: np.ndarray

    @property
    def delay(self) -> np.ndarray:
        """Log of test time over train time."""
        return np.log(time_ratio(self.test, self.train))

    def least(self, record: Record) -> np.ndarray:
        """What the delay is at least: with the run's last step in the place of a test time that was not reached."""
        return np.log(np.minimum(self.test, record.step[-1]) / self.train)


def times(config: Config, record: Record) -> Times:
    levels = {"train": 0.99, "test": config.level}
    found = (first_step(record.step, record.values[f"{k}_accuracy"], level, "above") for k, level in levels.items())
    return Times(*(np.maximum(steps, 1) for steps in found))


@np.errstate(invalid="ignore", divide="ignore")  # a run that never generalises holds no claim
def claims(result: Result) -> list[Claim]:
    cfg, record, source = result.config, result.records["network"], "section 5, images"
    due = cfg.due()
    found, order = times(cfg, record), np.argsort(cfg.alpha)
    top, low = int(order[-1]), int(order[0])
    below = [int(i) for i in order if cfg.alpha[i] <= 0.5 * (1 + 1e-6) * cfg.alpha[top]]
    if not below:
        return [Claim.not_applicable("delay falls with alpha", source, "no two alphas are a doubling apart")]
    high, small, delay = f"alpha = {cfg.alpha[top]:g}", f"alpha = {cfg.alpha[low]:g}", found.delay
    early = value_at(record.step, record.values["test_accuracy"], found.train)
    seldom_read = np.isfinite(np.asarray(record.values["weight_norm"])).all(axis=(1, 2))
    read = np.asarray(record.step)[seldom_read]
    norm = np.asarray(record.values["weight_norm"])[seldom_read]
    norm = np.log(value_at(read, norm, np.where(found.test <= read[-1], found.test, np.inf)))
    control, at = result.records["no decay"], {i: Times(*(steps[i] for steps in found)) for i in (top, low)}
    still, fitted = times(cfg, control), {high: delay[top]}
    out = [
        Claim.at_least(f"{high}: log delay test / train", source, delay[top], math.log(3), rivals={small: delay[low]})
        .within(record, *at[top], due=due)
        .controls_within(record, {small: at[low]}, due=due),
        Claim.at_most(f"{small}: log delay test / train", source, delay[low], 0, rivals=fitted)
        .within(record, *at[low], least=at[low].least(record), due=due)
        .controls_within(record, {high: at[top]}, due=due),
        Claim.at_most(f"{small}, no weight decay: log delay test / train", source, still.delay, 0, rivals=fitted)
        .within(control, *still, least=still.least(control), due=due)
        .controls_within(record, {high: at[top]}, due=due),
        Claim.at_most(f"{high}: test accuracy when train is at 99 %", source, early[top], 0.4,
                      rivals={small: early[low]})
        .within(record, at[top].train, due=due)
        .controls_within(record, {small: [at[low].train]}, due=due),
    ]  # fmt: skip
    end = np.asarray(record.values["test_accuracy"])[-1]
    claim = Claim.at_least(f"{small}: test accuracy at the end", source, end[low], 0.92, rivals={high: end[top]})
    out.append(claim.within(record, at[low].test, at_end=True, due=due))
    name, rivals = f"log weight norm when it generalises, {small} over {high}", {"one norm for all": 0.0}
    claim = Claim.at_least(name, source, norm[low] - norm[top], 0.3, rivals=rivals)
    out.append(claim.within(record, at[low].test, at[top].test, due=due))
    near = below[-1]
    clock = np.log(cfg.alpha[top] / cfg.alpha[near]) / (2 * cfg.learning_rate * cfg.weight_decay)
    shift = (found.test[top] - found.test[near]) / clock
    name = f"time of generalisation, {high} less alpha = {cfg.alpha[near]:g}, over ln(factor) / (2 eta lambda)"
    rivals = {"alpha has no effect": 0.0, "f ~ |w|": 2.0, "f ~ |w|^4": 0.5}
    claim = Claim.close(name, "f ~ alpha |w|^2", shift, 1, 0.2, rivals=rivals)
    out.append(claim.within(record, at[top].test, found.test[near], due=[found.test[near] + clock, np.inf]))
    return out


def figure(result: Result) -> Any:
    """Markers: medians over seeds, train open, test filled; black: clock of f ~ alpha |w|^2; grey: one norm for all."""
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
    panels[1].axhline(np.median(found.test[top]), label="one norm for all", **rival_style())
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
