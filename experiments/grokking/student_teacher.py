"""A student groks its teacher, the more the larger its output scale (Kumar et al. 2023).

A tanh network 5-100-100-5 learns a fresh network of its own architecture from 100 samples, by full-batch AdamW on the
squared error ``(1/n) sum |f - y|^2``. Its output is multiplied by alpha: a large alpha makes a large random function at
the start, which is corrected on the training set within few steps, while the kernel has hardly moved, and elsewhere
only slowly, as it does move. The delay between train and test falls away as alpha falls. At a large alpha the weights
feel little of the loss, and their norm decays as ``exp(-eta lambda t)``.

Run time: about 45 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dynamics import config, stax
from dynamics.config import Count, NonNegative, Positive, Range
from dynamics.evolve import descent, log_steps
from dynamics.evolve import study as in_memory
from dynamics.losses import mse
from dynamics.models.scaling import scaled
from dynamics.observe import prefixed, seldom
from dynamics.runs.figures import measured_style, new_figure, rival_style, theory_style, ticks_at
from dynamics.statistics import first_step, time_ratio
from dynamics.tasks.teachers import network_teacher
from dynamics.types import Claim, Model, Objective, Observable, Record

from ._mechanism import at_step, mechanism

SOURCE = "Kumar et al. 2023, section 5 and appendix (student and teacher)"
SECONDS = 45


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Range(1, 4096)] = 3
    """number of independent seeds, run side by side"""
    alpha: Annotated[tuple[float, ...], Positive] = (1.0, 4.0, 8.0)
    """output scale alpha (large = lazy)"""
    samples: Annotated[int, Count] = 100
    """training samples"""
    width: Annotated[int, Count] = 100
    """hidden units in each of two layers"""
    learning_rate: Annotated[float, Positive] = 3e-4
    """learning rate of AdamW"""
    weight_decay: Annotated[float, NonNegative] = 0.05
    """decoupled weight decay of AdamW"""
    level: Annotated[float, Range(0, 1, open_low=True)] = 0.1
    """a loss has fallen below this share of the mean squared target"""
    steps: Annotated[int, Count] = 20_000
    """updates"""

    @classmethod
    def paper(cls) -> Config:
        """The paper's network, samples and AdamW, as the quick preset; more output scales (ours) and steps.

        Its decay clock fails (the weights it ends with no longer shrink: 1.8 of it), and so, barely, does the last
        doubling of the gap (1.97 times). About 2e13 FLOPs: ten minutes on two cores.
        """
        return cls(seeds=5, alpha=(0.5, 1.0, 2.0, 4.0, 8.0, 16.0), steps=100_000)


class Result(NamedTuple):
    """``records['network']`` with values ``[T, alphas, seeds]``."""

    config: Config
    records: dict[str, Record]


def network(width: int) -> Model:
    dense = [stax.Dense(n, parameterization="standard", b_std=0.0) for n in (width, width, 5)]
    return stax.serial(dense[0], stax.Tanh(), dense[1], stax.Tanh(), dense[2])


def run(config: Config, study=in_memory) -> Result:
    model, key = network(config.width), jax.random.key(config.seed)

    def draw(lane):
        task_key, weight_key = jax.random.split(jax.random.fold_in(key, lane.seed))
        return network_teacher(task_key, model, config.samples, 1000, 5), model.init(weight_key, (-1, 5))[1]

    def make(lane):
        optimizer = optax.adamw(config.learning_rate, weight_decay=config.weight_decay)
        return descent(Objective(scaled(model, lane.alpha).apply, mse), optimizer)

    record = study(
        {"alpha": config.alpha, "seed": range(config.seeds)},
        draw, make, [prefixed("train", relative_loss()), seldom(mechanism(), 4)], test=relative_loss(),
        steps=config.steps, record_at=log_steps(config.steps, 120), key=key, label="network",
    )  # fmt: skip
    return Result(config, {"network": record})


def relative_loss() -> Observable:
    """Reads ``loss`` in units of the mean squared target of the test set."""

    def read(view):
        y = view.data.test.y
        return {"loss": view.objective(view.params, view.batch) / mse(jnp.zeros_like(y), y)}

    return Observable.of_view(read)


class Times(NamedTuple):
    """Steps ``[alphas, seeds]`` at which each loss has fallen below ``level``; at least 1, inf if never."""

    train: np.ndarray
    test: np.ndarray

    @property
    def delay(self) -> np.ndarray:
        """Log of test time over train time."""
        return np.log(time_ratio(self.test, self.train))


def times(config: Config, record: Record) -> Times:
    parts = (first_step(record.step, record.values[f"{part}_loss"], config.level) for part in ("train", "test"))
    return Times(*(np.maximum(part, 1) for part in parts))


@np.errstate(invalid="ignore", divide="ignore")  # a run that never generalises holds no claim
def claims(result: Result) -> list[Claim]:
    cfg, record, source = result.config, result.records["network"], "appendix, student and teacher"
    due = cfg.due()
    found, order = times(cfg, record), np.argsort(cfg.alpha)
    apart = doublings(cfg.alpha, order)
    if len(apart) < 2:
        return [Claim.not_applicable("delay falls with alpha", source, "no two alphas are a doubling apart")]
    top, low, delay = int(order[-1]), int(order[0]), found.delay
    high, small = f"alpha = {cfg.alpha[top]:g}", f"alpha = {cfg.alpha[low]:g}"
    both = (found.train[[top, low]], found.test[[top, low]])
    least = np.log(np.minimum(found.test[low], record.step[-1]) / found.train[low]) - delay[top]
    out = [
        Claim.at_least(f"{high}: log delay test / train", source, delay[top], math.log(3), rivals={small: delay[low]})
        .within(record, found.train[top], found.test[top], due=due)
        .controls_within(record, {small: [found.train[low], found.test[low]]}, due=due),
        Claim.at_most(
            f"log delay at {small} over that at {high}", source, delay[low] - delay[top], math.log(0.7),
            rivals={"alpha has no effect": 0.0},
        ).within(record, *both, least=least, due=due),
    ]  # fmt: skip
    ahead = found.test - found.train
    gap = np.log(np.where(ahead > 0, ahead, np.nan))
    for one, next_one in itertools.pairwise(apart):
        name = f"log gap in steps at alpha = {cfg.alpha[next_one]:g} over that at {cfg.alpha[one]:g}"
        rivals = {"alpha has no effect": 0.0}
        none = int(np.sum(ahead[one] <= 0))
        if none and np.all(ahead[next_one] > 0):  # one that is lost again refutes
            note = f"no gap to compare with in {none} of {cfg.seeds} seeds"
            out.append(Claim.not_applicable(name, source, note))
            continue
        claim = Claim.at_least(name, source, gap[next_one] - gap[one], math.log(2), rivals=rivals)
        out.append(claim.within(record, *(steps[[one, next_one]] for steps in found), due=due))
    read = np.isfinite(np.asarray(record.values["kernel_distance"])).all(axis=(1, 2))
    step, moved, norm = record.step[read], *(record.values[k][read] for k in ("kernel_distance", "weight_norm"))
    fitted, generalised = (at_step(step, moved, time) for time in found)
    name, rivals = f"{high}: kernel distance when the training set is fitted", {"when it generalises": generalised[top]}
    claim = Claim.at_most(name, source, fitted[top], 0.15, rivals=rivals).within(record, found.train[top], due=due)
    out.append(claim.controls_within(record, {"when it generalises": [found.test[top]]}, due=due))
    name = f"{high}: log growth of the kernel distance from fit to generalisation"
    growth = np.log(generalised / fitted)
    rivals = {"kernel frozen": 0.0, small: growth[low]}
    claim = Claim.at_least(name, source, growth[top], math.log(2), rivals=rivals)
    claim = claim.within(record, found.train[top], found.test[top], due=due)
    out.append(claim.controls_within(record, {small: [found.train[low], found.test[low]]}, due=due))
    decayed = norm / norm[0] * np.exp(cfg.learning_rate * cfg.weight_decay * step)[:, None, None]
    name = f"{high}: weight norm at the end over exp(-eta lambda t) of its start"
    rivals = {"no decay": decayed[-1, top] * norm[0, top] / norm[-1, top], small: decayed[-1, low]}
    out.append(Claim.close(name, "decoupled weight decay", decayed[-1, top], 1, 0.02, rivals=rivals))
    return out


def doublings(alpha: tuple[float, ...], order: np.ndarray) -> list[int]:
    """The smallest alpha, the next that is at least twice as large, and so on."""
    kept = [int(order[0])]
    for i in order:
        kept += [int(i)] if alpha[i] >= 2 * (1 - 1e-6) * alpha[kept[-1]] else []
    return kept


def figure(result: Result) -> Any:
    """Markers: medians over seeds (times: every seed); train open, test filled; grey: alpha without effect."""
    cfg, record = result.config, result.records["network"]
    page, panels = new_figure(1, 4, width=3.7)
    step, found, count = np.maximum(record.step, 0.7), times(cfg, record), len(cfg.alpha)
    for i, alpha in enumerate(cfg.alpha):
        filled = {"markerfacecolor": "0.75"}
        for part, extra in (("train", {}), ("test", filled)):
            value = np.median(np.asarray(record.values[f"{part}_loss"])[::3, i], axis=1)
            panels[0].plot(step[::3], value, label=f"{part}, alpha = {alpha:g}", **measured_style(i, count) | extra)
        for panel, name in ((panels[2], "alignment"), (panels[3], "kernel_distance")):
            value = np.median(np.asarray(record.values[name])[:, i], axis=1)
            read = np.isfinite(value)
            panel.plot(step[read], value[read], label=f"alpha = {alpha:g}", **measured_style(i, count))
    panels[0].axhline(cfg.level, label="level of the two times", **theory_style(1))
    for i, part in enumerate(Times._fields):
        reached = getattr(found, part)
        panels[1].plot(np.repeat(cfg.alpha, reached.shape[1]), reached.ravel(), label=part, **measured_style(2 * i, 3))
    flat = np.median(found.test[int(np.argmin(cfg.alpha))])
    if np.isfinite(flat):
        panels[1].axhline(flat, label="test, alpha has no effect", **rival_style())
    panels[0].set(xscale="log", yscale="log", xlabel="step", ylabel="loss over mean squared target")
    reached = "log" if np.isfinite(found).any() else "linear"
    panels[1].set(xscale="log", yscale=reached, xlabel="output scale alpha", ylabel=f"step of loss < {cfg.level:g}")
    ticks_at(panels[1].xaxis, cfg.alpha)
    panels[2].set(xscale="log", xlabel="step", ylabel="NTK-label alignment")
    panels[3].set(xscale="log", xlabel="step", ylabel=r"kernel distance $|K_t - K_0|_F / |K_0|_F$")
    for panel in panels:
        panel.legend(fontsize=7, frameon=False)
    page.suptitle(f"Student and teacher, {cfg.samples} samples: the delay grows with the output scale")
    return page


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
