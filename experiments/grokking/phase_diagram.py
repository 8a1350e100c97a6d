"""Phase diagrams of the delay from lazy to rich: output scale, sample count, misalignment (Kumar et al. 2023).

The network of ``lazy_to_rich`` over a grid of output scales alpha, sample counts P and non-linearities eps; eps sets
how much of the initial kernel ``K_0`` lies along the labels, so small eps is strong misalignment. Each cell is the
ratio of the steps at which test and train loss fall below a tenth of their start: too few samples never generalise
(blank), enough show no delay, and between the two the delay grows with alpha and with 1/eps. The theory is the
infinite-width reduction on the same data.

Weights ``sigma`` times larger are ours at ``(alpha sigma, eps sigma)`` (identity: ``f`` depends on ``alpha sigma wbar``
and ``alpha eps sigma^2 M``), so the exponents a of alpha and e of eps give that of sigma. At a fixed learning rate,
where steps count ``1/alpha^2`` as often, the time of generalisation goes as ``alpha^(a-2) sigma^(a-2+e)``: it collapses
on ``sigma^2 alpha`` where ``a - e = 2``.

Labels turn the dial too: ``y = sqrt(n) u_k``, along the kth eigenvector of the initial kernel on all training and test
points. Readouts of one sign cannot fit them (``M >= 0`` bounds the quadratic form of f from one side), so these
networks have both; the theory is the same reduction on two populations. The larger k, the later train loss falls and
the longer test loss waits, after it has risen as the frozen kernel's does. Features that move fit some ten times sooner
than that kernel, at a higher test loss: a quadratic form of full rank has no direction to be found.

Run time: about 100 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import config
from dynamics.config import Count, Positive, Range
from dynamics.evolve import study as in_memory
from dynamics.runs.figures import measured_style, new_figure, rival_style, theory_style, ticks_at
from dynamics.statistics import label_alignment
from dynamics.tasks.teachers import quadratic_teacher
from dynamics.theory.lazy_to_rich import infinite_width, kernel
from dynamics.types import Claim, Record

from . import _eigenvector_labels, lazy_to_rich
from ._lazy_to_rich import TERMS, delay, exponent, trained

SOURCE = "Kumar, Bordelon, Gershman & Pehlevan 2023, figures 2-5"
SECONDS = 100
NAMES = ("network", "infinite width")


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Range(1, 4096)] = 3
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
    eigenvector: Annotated[tuple[int, ...], Range(1)] = (1, 70, 100)
    """indices k of the initial kernel's eigenvectors that are labels, ascending: at the most samples, the largest alpha
    and the smallest eps; about the first D are linear in x"""
    eigenvector_points: Annotated[int, Count] = 200
    """test points of those runs: the eigenvectors are those on training and test points together"""
    eigenvector_steps: Annotated[int, Count] = 2000
    """updates of those runs"""

    @classmethod
    def paper(cls) -> Config:
        """The sizes of the paper's figure 1, over grids of ours: 3e14 FLOPs.

        An hour and a half of two cores. Along eigenvectors 200 and 300 the test loss ends at half of its start.
        """
        return cls(
            alpha=(0.125, 0.25, 0.5), samples=(100, 200, 300, 550, 1100), eps=(0.05, 0.1), dimension=100, width=500,
            eta0=1.0, steps=20_000, eigenvector=(1, 200, 300), eigenvector_steps=40_000,
        )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        rank = min(max(self.samples) + self.eigenvector_points, self.dimension * (self.dimension + 3) // 2)
        fits = max(self.eigenvector) <= rank and bool(np.all(np.diff(self.eigenvector) > 0))
        self.require(fits, "eigenvector", f"ascending, at most the kernel's rank, {rank}")


class Result(NamedTuple):
    """``network`` and ``infinite width``, ``[T, eps, alphas, samples, seeds]``; beside them ``NAME, eigenvectors`` of
    ``_eigenvector_labels``, ``[T, eigenvectors, seeds]``."""

    config: Config
    records: dict[str, Record]


def run(config: Config, study=in_memory) -> Result:
    same = {name: getattr(config, name) for name in ("seed", "seeds", "dimension", "width", "eta0")}
    axes = {"eps": config.eps, "alpha": config.alpha, "samples": config.samples, "seed": range(config.seeds)}
    lazy = lazy_to_rich.Config(**same)
    records = {name: trained(lazy, study, name, axes, config.steps) for name in NAMES}
    return Result(config, records | _eigenvector_labels.run(config, study))


def initial_alignment(config: Config) -> np.ndarray:
    """Alignment of the infinite-width ``K_0`` with the labels on 2000 fresh points, for each eps."""
    task = quadratic_teacher(jax.random.key(config.seed), 1, 2000, config.dimension)
    x, y = task.data.test
    start = infinite_width(config.dimension, x.dtype)
    return np.array([float(label_alignment(kernel(start, x, x, jnp.asarray(eps)), y)) for eps in config.eps])


@np.errstate(invalid="ignore", divide="ignore")  # a run that never generalises holds no claim
def claims(result: Result) -> list[Claim]:
    cfg, source = result.config, "figures 2-5"
    found, theirs = (delay(result.records[name]) for name in NAMES)  # [eps, alphas, samples, seeds]
    both = np.isfinite(found.test) & np.isfinite(theirs.test)
    largest, smallest = int(np.argmax(cfg.samples)), int(np.argmin(cfg.alpha))

    def error(predicted):
        """Median over the cells that generalise, by seed."""
        off = np.where(both & np.isfinite(predicted), np.abs(found.test / predicted - 1), np.nan)
        return np.array([np.median(one[np.isfinite(one)]) if np.isfinite(one).any() else np.nan for one in off.T])

    others = {
        "alpha has no effect": theirs.test[:, [smallest]] + 0 * theirs.test,
        "eps the other way": theirs.test[::-1],
        "half the rate": 2 * theirs.test,
    }
    rivals = {name: error(other) for name, other in others.items() if name != "eps the other way" or len(cfg.eps) > 1}
    name = "time of generalisation against theory, median relative error"
    note = "recorded steps are the resolution: 0 is the same record"
    network = result.records[NAMES[0]]
    claim = Claim.at_most(name, source, error(theirs.test), 0.1, rivals=rivals, note=note)
    out = [claim.within(network, found.test, due=[theirs.test])]

    def agree(generalises):
        return np.mean(np.isfinite(found.ratio) == generalises, axis=(0, 1, 2))

    finite = np.isfinite(theirs.ratio)
    rivals = {"every cell generalises": agree(True), "P has no effect": agree(finite[:, :, [largest]])}
    name = "share of cells where network and theory agree on whether it generalises"
    out.append(Claim.at_least(name, source, agree(finite), 0.95, rivals=rivals))
    few = np.array(cfg.samples) <= cfg.dimension
    never = np.isinf(found.ratio).mean(axis=(0, 1))  # [samples, seeds]
    name = "share of cells with P <= D that fit and never generalise"
    if few.any() and not few.all():
        rivals = {f"P = {cfg.samples[largest]}": never[largest]}
        claim = Claim.at_least(name, source, never[few].mean(axis=0), 1, rivals=rivals)
        claim = claim.within(network, found.train[:, :, few], due=[theirs.train[:, :, few]], at_end=True)
        most = {next(iter(rivals)): [found.test[:, :, largest]]}
        out.append(claim.controls_within(network, most, {next(iter(rivals)): [theirs.test[:, :, largest]]}))
    else:
        out.append(Claim.not_applicable(name, source, f"needs P <= D = {cfg.dimension} and larger ones"))
    if few.any():
        ends = {k: np.asarray(v)[[0, -1]][..., few, :] for k, v in result.records["network"].values.items()}
        fresh, whole = ends["sampled_test_loss"], ends["test_loss"]
        over = {name: fresh / (whole - ends[f"test_{name}"]) for name in ("mean", "power")}
        rivals = {f"without its {TERMS[name]}": one.mean(axis=(0, 1, 2, 3)) for name, one in over.items()}
        name = "P <= D: loss on fresh points over its formula, mean of start and end"
        note = "the linear part's share scatters too much for few seeds to miss it: lazy_to_rich has that rival"
        over_formula = (fresh / whole).mean(axis=(0, 1, 2, 3))
        out.append(Claim.close(name, "eq. 6", over_formula, 1, 0.05, rivals=rivals, note=note))
    last = result.records["network"].step[-1]
    ratio = np.log(found.ratio).mean(axis=0)[smallest]  # [samples, seeds]
    # a rival that never generalises counts as the last step: its delay is a bound from below
    bound = np.log(np.minimum(found.test, last) / found.train).mean(axis=0)[smallest]
    bound = np.where(np.isfinite(bound), bound, np.nan)
    most = int(np.argmax(np.where(few | np.isnan(bound).any(axis=1), -np.inf, bound.mean(axis=1))))
    name = f"alpha = {cfg.alpha[smallest]:g}: log delay at the largest P"
    if max(cfg.samples) >= 10 * cfg.dimension:
        rivals = {f"P = {cfg.samples[most]}": bound[most]}
        claim = Claim.at_most(name, source, ratio[largest], math.log(2.5), rivals=rivals)
        at = (slice(None), smallest, largest)
        out.append(claim.within(network, *found.at(*at), due=theirs.at(*at), least=bound[largest]))
    else:
        out.append(Claim.not_applicable(name, source, f"no P >= 10 D = {10 * cfg.dimension}"))
    return out + powers(result, found, theirs) + _eigenvector_labels.claims(cfg, result.records)


def powers(result: Result, found, theirs) -> list[Claim]:
    """Figure 3e: times and delays over alpha and eps, averaged over the sample counts that always generalise."""
    cfg, source, network = result.config, "figure 3e", result.records[NAMES[0]]
    if len(cfg.alpha) < 2 or len(cfg.eps) < 2:
        return [Claim.not_applicable("times over alpha and eps", source, "needs two alphas and two eps")]
    kept = np.isfinite(found.test).all(axis=(0, 1)) & np.isfinite(theirs.test).all(axis=(0, 1))  # [samples, seeds]

    def slopes(x, times, axis):
        """By seed, averaged over the other axis and the kept sample counts."""
        times = np.moveaxis(times, axis, 0)
        slope = exponent(x, times.reshape(len(x), -1)).reshape(times.shape[1:]).mean(axis=0)
        return np.array([np.mean(one[keep]) if keep.any() else np.nan for one, keep in zip(slope.T, kept.T)])

    out, power, theory = [], {}, {}
    few = "1/sqrt(eps), which few seeds cannot reject, is a rival in lazy_to_rich"
    for axis, (name, x, rivals, note) in enumerate((
        ("eps", cfg.eps, {"eps has no effect": 0.0, "1/eps^2": -2.0}, few),
        ("alpha", cfg.alpha, {"alpha has no effect": 0.0, "sqrt(alpha)": 0.5, "alpha^2": 2.0}, ""),
    )):  # fmt: skip
        power[name], theory[name] = (slopes(x, times.test, axis) for times in (found, theirs))
        what = f"exponent of the time of generalisation in {name}"
        claim = Claim.close(what, source, power[name], theory[name].mean(), 0.1, rivals=rivals, note=note)
        out.append(claim.within(network, found.test, theirs.test, due=[theirs.test, found.test]))
        gap = slopes(x, found.test - found.train, axis)
        make, bound = (Claim.at_most, -0.3) if name == "eps" else (Claim.at_least, 0.3)
        rival = {f"{name} has no effect": 0.0}
        claim = make(f"exponent of the delay in steps in {name}", source, gap, bound, rivals=rival)
        out.append(claim.within(network, *found, due=theirs))
    rivals = {"sigma alpha": 1.0, "sigma^4 alpha": 4.0, "alpha alone": 0.0}
    sigma, predicted = ((one["alpha"] - 2 + one["eps"]) / (one["alpha"] - 2) for one in (power, theory))
    name = "power of sigma that goes with alpha in the time of generalisation at a fixed learning rate"
    note = "the paper's collapse on sigma^2 alpha has 2: at these alpha and eps theory and network have it nearly"
    claim = Claim.close(name, "collapse on sigma^2 alpha", sigma, predicted.mean(), 0.1, rivals=rivals, note=note)
    return [*out, claim.within(network, found.test, theirs.test, due=[theirs.test, found.test])]


def spread(count: int, most: int) -> np.ndarray:
    """At most ``most`` of ``count`` indices, evenly, first and last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def figure(result: Result) -> Any:
    """Top: measured delay over alpha and P, one map an eps (six at most); bottom: its cuts (markers) on theory.

    The last column: labels along eigenvectors."""
    cfg = result.config
    medians = (np.median(delay(result.records[name]).ratio, -1) for name in ("network", "infinite width"))
    measured, predicted = (np.where(np.isfinite(median), median, np.nan) for median in medians)
    maps = spread(len(cfg.eps), 6)
    page, panels = new_figure(2, len(maps) + 2, width=3.9)
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
    panels[0, -2].plot(cfg.eps, initial_alignment(cfg), **measured_style(0))
    panels[0, -2].set(xlabel="eps", ylabel=r"alignment of $K_0$ with the labels", title="the dial of misalignment")
    steps = [np.median(delay(result.records[name]).test, -1).min(axis=2) for name in NAMES]  # at the best P
    steps = [np.where(np.isfinite(one), one, np.nan) for one in steps]
    for i, (eps, best, theirs) in enumerate(zip(cfg.eps, *steps)):
        panels[1, -2].plot(cfg.alpha, best, label=f"eps = {eps:g}", **measured_style(i, len(cfg.eps)))
        panels[1, -2].plot(cfg.alpha, theirs, **theory_style(i))
    flat = steps[1][0, np.argmin(cfg.alpha)] + 0 * np.asarray(cfg.alpha)
    panels[1, -2].plot(cfg.alpha, flat, label="alpha has no effect", **rival_style())
    scale = "log" if np.isfinite(steps).any() else "linear"
    panels[1, -2].set(xscale="log", yscale=scale, xlabel="output scale alpha", ylabel="step of test loss < .1, best P")
    if len(cfg.alpha) <= 6:
        ticks_at(panels[1, -2].xaxis, cfg.alpha)
    panels[1, -2].legend(fontsize=7, frameon=False)
    for side, panel in zip(("train", "test"), panels[:, -1]):
        _eigenvector_labels.panel(panel, cfg, result.records, side)
    panels[0, -1].set_title("labels along eigenvector k of $K_0$")
    page.suptitle("Where grokking lives: delay over output scale, samples and misalignment")
    return page


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
