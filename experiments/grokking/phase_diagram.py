"""Phase diagrams of the delay from lazy to rich: output scale, sample count, misalignment (Kumar et al. 2023).

The network of ``lazy_to_rich`` over a grid of output scales alpha, sample counts P and non-linearities eps; eps sets
how much of the initial kernel ``K_0`` lies along the labels, so small eps is strong misalignment. Each cell is the
ratio of the steps at which test and train loss fall below a tenth of their start: too few samples never generalise
(blank), enough show no delay, and between the two the delay grows with alpha. The theory is the infinite-width
reduction on the same data.

Run time: about 120 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import config
from dynamics.config import Count, Positive, Range
from dynamics.evolve import study as in_memory
from dynamics.runs.figures import measured_style, new_figure, theory_style, ticks_at
from dynamics.statistics import label_alignment
from dynamics.tasks.teachers import quadratic_teacher
from dynamics.theory.lazy_to_rich import infinite_width, kernel
from dynamics.types import Claim, Record
from experiments.grokking import lazy_to_rich
from experiments.grokking._lazy_to_rich import delay, network_and_theories

SOURCE = "Kumar, Bordelon, Gershman & Pehlevan 2023, figures 2-5"
SECONDS = 120


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Range(1, 4096)] = 2
    """number of independent seeds, run side by side"""
    alpha: Annotated[tuple[float, ...], Positive] = (0.1, 0.2, 0.4)
    """output scales alpha"""
    samples: Annotated[tuple[int, ...], Count] = (30, 100, 150, 200, 300)
    """sample counts P"""
    eps: Annotated[tuple[float, ...], Positive] = (0.1, 0.2)
    """weights eps of the quadratic term"""
    dimension: Annotated[int, Range(2)] = 30
    """input dimension D"""
    width: Annotated[int, Count] = 200
    """hidden units N"""
    eta0: Annotated[float, Positive] = 1.25
    """learning rate in units of N/alpha^2; the richest cells with P = D can diverge from about 2.5 on"""
    steps: Annotated[int, Count] = 6000
    """updates"""

    @classmethod
    def paper(cls) -> Config:
        return cls(
            seeds=5, alpha=(0.0625, 0.125, 0.25, 0.5, 1.0, 2.0), samples=(100, 200, 300, 400, 550, 800, 1100),
            eps=(0.01, 0.02, 0.05, 0.1), dimension=100, width=500, eta0=1.0, steps=100_000,
        )  # fmt: skip


class Result(NamedTuple):
    """``network``, ``infinite width``, ``exact reduction`` (first seed): ``[T, eps, alphas, samples, seeds]``."""

    config: Config
    records: dict[str, Record]


def run(config: Config, study=in_memory) -> Result:
    same = {name: getattr(config, name) for name in ("seed", "seeds", "dimension", "width", "eta0")}
    axes = {"eps": config.eps, "alpha": config.alpha, "samples": config.samples, "seed": range(config.seeds)}
    return Result(config, network_and_theories(lazy_to_rich.Config(**same), study, axes, config.steps))


def initial_alignment(config: Config) -> np.ndarray:
    """Alignment of the infinite-width ``K_0`` with the labels on 2000 fresh points, for each eps."""
    task = quadratic_teacher(jax.random.key(config.seed), 1, 2000, config.dimension)
    x, y = task.data.test
    start = infinite_width(config.dimension, x.dtype)
    return np.array([float(label_alignment(kernel(start, x, x, jnp.asarray(eps)), y)) for eps in config.eps])


def claims(result: Result) -> list[Claim]:
    cfg, out, source = result.config, [], "figures 2-5"
    ratios = [delay(result.records[name]).ratio for name in ("network", "infinite width")]
    for eps, each, theirs in zip(cfg.eps, *ratios):  # [alphas, samples, seeds]
        measured, predicted = np.median(each, -1), np.median(theirs, -1)
        both = np.isfinite(measured) & np.isfinite(predicted)
        error = np.median(np.abs(measured[both] / predicted[both] - 1)) if both.any() else np.nan
        out.append(Claim.at_most(f"eps = {eps:g}: delay against theory, median relative error", source, error, 0.1))
        agree = np.mean(np.isfinite(each) == np.isfinite(theirs))
        name = f"eps = {eps:g}: share of runs where network and theory agree on whether it generalises"
        out.append(Claim.at_least(name, source, agree, 0.95))
        few = measured[:, np.array(cfg.samples) <= cfg.dimension]
        name = f"eps = {eps:g}: share of cells with P <= D that fit and never generalise"
        if few.size:
            out.append(Claim.at_least(name, source, np.isinf(few).mean(), 1))
        else:
            out.append(Claim.not_applicable(name, source, f"no P <= D = {cfg.dimension}"))
        name = f"eps = {eps:g}: delay at the largest P, smallest alpha"
        if max(cfg.samples) >= 10 * cfg.dimension:
            many = measured[np.argmin(cfg.alpha), np.argmax(cfg.samples)]
            out.append(Claim.at_most(name, source, many, 2.5))
        else:
            out.append(Claim.not_applicable(name, source, f"no P >= 10 D = {10 * cfg.dimension}"))
    return out


def spread(count: int, most: int) -> np.ndarray:
    """At most ``most`` of ``count`` indices, evenly, first and last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def figure(result: Result) -> Any:
    """Top: measured delay over alpha and P, one map an eps (six at most); bottom: its cuts (markers) on theory."""
    cfg = result.config
    medians = (np.median(delay(result.records[name]).ratio, -1) for name in ("network", "infinite width"))
    measured, predicted = (np.where(np.isfinite(median), median, np.nan) for median in medians)
    maps = spread(len(cfg.eps), 6)
    page, panels = new_figure(2, len(maps) + 1, width=3.9)
    for column, i in enumerate(maps):
        shown, norm = measured[i], "log" if np.isfinite(measured[i]).any() else None
        image = panels[0, column].imshow(shown, origin="lower", aspect="auto", cmap="viridis", norm=norm)
        page.colorbar(image, ax=panels[0, column], label="test / train time (blank: never)")
        for axis, values in ((panels[0, column].xaxis, cfg.samples), (panels[0, column].yaxis, cfg.alpha)):
            ticks = spread(len(values), 8)
            axis.set_ticks(ticks, [f"{values[at]:g}" for at in ticks])
        panels[0, column].set(xlabel="samples P", ylabel="output scale alpha", title=f"eps = {cfg.eps[i]:g}")
        panels[0, column].grid(False)
        for j, alpha in enumerate(cfg.alpha):
            style = measured_style(j, len(cfg.alpha))
            panels[1, column].plot(cfg.samples, shown[j], label=f"alpha = {alpha:g}", **style)
            panels[1, column].plot(cfg.samples, predicted[i, j], **theory_style(j))
        panels[1, column].set(xlabel="samples P", ylabel="test time / train time")
        panels[1, column].set_yscale("log" if np.isfinite(shown).any() else "linear")
        panels[1, column].legend(fontsize=7, frameon=False)
    panels[0, -1].plot(cfg.eps, initial_alignment(cfg), **measured_style(0))
    panels[0, -1].set(xlabel="eps", ylabel=r"alignment of $K_0$ with the labels", title="the dial of misalignment")
    for i, eps in enumerate(cfg.eps):
        best = np.fmin.reduce(measured[i], axis=-1)
        panels[1, -1].plot(cfg.alpha, best, label=f"eps = {eps:g}", **measured_style(i, len(cfg.eps)))
    panels[1, -1].set(xscale="log", xlabel="output scale alpha", ylabel="smallest delay over P")
    if len(cfg.alpha) <= 6:
        ticks_at(panels[1, -1].xaxis, cfg.alpha)
    panels[1, -1].legend(fontsize=7, frameon=False)
    page.suptitle("Where grokking lives: delay over output scale, samples and misalignment")
    return page


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
