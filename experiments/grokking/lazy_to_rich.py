"""Grokking as the transition from lazy to rich training (Kumar, Bordelon, Gershman & Pehlevan 2023).

A two-layer network ``f = (alpha/N) sum_i phi(w_i.x)``, ``phi(h) = h + (eps/2) h^2``, with its readout fixed at one,
learns ``y = (beta.x)^2/2`` by gradient descent on the mean squared error ``(1/P) sum (f - f_0 - y)^2`` (no factor 1/2),
at ``eta = eta0 N/alpha^2`` and without weight decay. The kernel at the start is misaligned with the labels: it fits the
training set first, lazily, as a linear model would: train loss falls to ``1 - D/P`` of its start, test loss rises to
``1/(1 - D/P)``, and the features have hardly moved. The network generalises once its weights have turned towards beta,
the later the larger the output scale alpha and the smaller eps. The run shows train and test loss of the network over
the theory of the same data at infinite width (their exact reduction to the mean and second moment of the weights) and
over training with the kernel frozen, for several alphas, eps, sample counts and seeds. The control that is rich from
the start has the smallest alpha and the largest eps.

Run time: about 60 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple

import numpy as np

from dynamics import config
from dynamics.config import Count, Positive, Range
from dynamics.evolve import study as in_memory
from dynamics.runs.figures import measured_style, new_figure, rival_style, theory_style, ticks_at
from dynamics.statistics import first_step, value_at
from dynamics.types import Claim, Record

from ._curves import middle, overlay, visible
from ._lazy_to_rich import (
    FALL,
    TERMS,
    after_largest,
    at_steps,
    delay,
    exponent,
    last,
    lazy,
    network_and_theories,
    plateau,
    trained,
)

SOURCE = "Kumar, Bordelon, Gershman & Pehlevan 2023, 'Grokking as the transition from lazy to rich training dynamics'"
SECONDS = 60


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    alpha: Annotated[tuple[float, ...], Positive] = (0.125, 0.25, 0.5)
    """output scale alpha (large = lazy)"""
    seeds: Annotated[int, Range(1, 4096)] = 9
    """number of independent seeds, run side by side; one draw of data and weights scatters by half"""
    eps: Annotated[float, Positive] = 0.03
    """weight eps of the quadratic term: small = initial kernel misaligned with the labels"""
    samples: Annotated[int, Count] = 220
    """training samples P"""
    window: Annotated[tuple[int, ...], Count] = (40, 440)
    """further sample counts P, run at the smallest alpha: too few to generalise, enough to show no delay"""
    aligned: Annotated[tuple[float, ...], Positive] = (0.06, 0.12)
    """further eps, run at the smallest alpha; the largest is the control that is rich from the start"""
    dimension: Annotated[int, Range(2)] = 40
    """input dimension D"""
    width: Annotated[int, Count] = 200
    """hidden units N"""
    eta0: Annotated[float, Positive] = 3.0
    """learning rate in units of N/alpha^2"""
    steps: Annotated[int, Count] = 5000
    """updates"""
    window_steps: Annotated[int, Count] = 2000
    """updates of the runs over samples and eps"""
    fresh: Annotated[int, Range(2)] = 4000
    """fresh samples for the sampled test loss; the kernel-label alignment takes the first 1000"""

    @classmethod
    def paper(cls) -> Config:
        """The paper's figure 1 (D = 100, P = 550, N = 500, eps = .02, alpha = 1), and two smaller output scales.

        The lanes over samples and eps are ours. About 4e14 FLOPs: two hours on two cores, under six minutes of an H100.
        18 of 22 claims hold there. Alignment grows 1.39 and 2.77 times, where the claims, of the quick sizes, ask for 2
        and 6; the theory's median error is .0001, but most readings are early and a frozen kernel's is .002, too small
        to be rejected; and the exact reduction is .019 off at one reading, for .01.
        """
        return cls(
            alpha=(0.25, 0.5, 1.0), eps=0.02, samples=550, window=(100, 1100), aligned=(0.04, 0.08), dimension=100,
            width=500, eta0=1.0, steps=100_000, window_steps=30_000,
        )  # fmt: skip


class Result(NamedTuple):
    """Records with values ``[T, alphas, seeds]``; in ``window`` and ``eps`` ``[T, samples or eps, seeds]``.

    ``network``; ``infinite width``, its theory; ``exact reduction``, the theory from the network's own weights (first
    seed); the first two again as ``network, window`` and ``network, eps``; ``lazy``, the theory with the initial
    kernel, ``[T, eps, seeds]``.
    """

    config: Config
    records: dict[str, Record]


def run(config: Config, study=in_memory) -> Result:
    seeds = range(config.seeds)
    records = network_and_theories(config, study, {"alpha": config.alpha, "seed": seeds}, config.steps, kernel=True)
    records["lazy"] = lazy(config, study, {"eps": (config.eps, *config.aligned), "seed": seeds})
    for suffix, axis in {", window": {"samples": config.window}, ", eps": {"eps": config.aligned}}.items():
        for name in ("network", "infinite width"):
            axes = {**axis, "seed": seeds}
            records[name + suffix] = trained(config, study, name, axes, config.window_steps, suffix, kernel=True)
    return Result(config, records)


@np.errstate(invalid="ignore", divide="ignore")  # a run that diverged reads NaN, which holds no claim
def claims(result: Result) -> list[Claim]:
    return [*lazy_first(result), *delays(result), *theories(result), *sample_window(result)]


def lazy_first(result: Result) -> Iterator[Claim]:
    """At the largest alpha, against the control; by seed."""
    cfg, records, source = result.config, result.records, "figure 1"
    top, eps = max(cfg.alpha), max(cfg.aligned)
    lazy = plateau(records["network"].at(alpha=top), records["lazy"].at(eps=cfg.eps))
    rich = plateau(records["network, eps"].at(eps=eps), records["lazy"].at(eps=eps))
    left = 1 - cfg.dimension / cfg.samples
    if left <= 0 or len(records["network"].step) < 20:
        yield Claim.not_applicable("lazy first", source, "needs P > D and 20 recorded steps")
        return
    where = f"alpha = {top:g}, when test loss is largest"
    name = f"{where}: train loss over its start is 1 - D/P"
    yield Claim.close(name, source, lazy.train, left, 0.02, rivals={"test loss": lazy.test, "nothing fitted": 1.0})
    rivals = {"no rise": 1.0, "the train loss": lazy.train, "rich from the start": rich.test}
    yield Claim.close(f"{where}: it is 1/(1 - D/P) of its start", source, lazy.test, 1 / left, 0.02, rivals=rivals)
    rivals = {"no rise": 1 - lazy.frozen_test, "rich from the start": rich.test - rich.frozen_test}
    name = f"{where}: it lies so far from the frozen kernel's largest"
    yield Claim.close(name, "lazy limit", lazy.test - lazy.frozen_test, 0, 0.02, rivals=rivals)
    rivals = {"rich from the start": rich.deviation}
    name = f"{where}: train loss has left the frozen kernel's by, at most"
    yield Claim.at_most(name, "lazy limit", lazy.deviation, 0.025, rivals=rivals)
    rivals = {"rich from the start": rich.features}
    name = f"{where}: features have moved, of their movement in all"
    yield Claim.at_most(name, source, lazy.features, 0.03, rivals=rivals)
    kept = {f"without its {word}": lazy.sampled / (1 - lazy.terms[term]) for term, word in TERMS.items()}
    name = f"{where}: loss on fresh points over its formula"
    yield Claim.close(name, "eq. 6", lazy.sampled, 1, 0.02, rivals=kept)
    network = records["network"].at(alpha=top)
    end = np.asarray(network.values["test_loss"])[-1] / network.values["test_loss"][0]
    frozen = at_steps(records["lazy"].at(eps=cfg.eps), "test_loss", network.step[[0, -1]])
    rivals, few = {"kernel frozen": frozen[1] / frozen[0]}, int(np.argmin(cfg.window))
    if cfg.window[few] <= cfg.dimension:
        rivals["P <= D"] = last(records["network, window"], "test_loss")[few]
    name, largest = f"alpha = {top:g}: test loss at the end over its start", int(np.argmax(cfg.alpha))
    (_, fallen), (_, due) = (delay(records[key]).at(largest) for key in ("network", "infinite width"))
    yield Claim.at_most(name, source, end, FALL, rivals=rivals).within(network, fallen, due=[due], at_end=True)
    every, theirs = records["network"], records["infinite width"]
    falls, foretold = (
        {name: first_step(one.step, *after_largest(one.values[f"test_{name}"])) for name in TERMS}
        for one in (every, theirs)
    )
    for early, late in itertools.pairwise(TERMS):
        ahead = np.log(falls[late] / falls[early]).mean(axis=0)  # over alphas
        name = f"log of the {TERMS[late]}'s time of fall over the {TERMS[early]}'s"
        claim = Claim.at_least(name, "eq. 6", ahead, 0.0, rivals={"they fall together": 0.0})
        yield claim.within(every, falls[late], falls[early], due=[foretold[late], foretold[early]])


def delays(result: Result) -> Iterator[Claim]:
    """How the times of fall grow with alpha and shrink with eps, by seed."""
    cfg, records, source = result.config, result.records, "figures 2, 3"
    order, small = np.argsort(cfg.alpha), int(np.argmin(cfg.alpha))
    top = int(order[-1])
    found, predicted, window = (delay(records[name]) for name in ("network", "infinite width", "network, window"))
    ratio, many, network = np.log(found.ratio), int(np.argmax(cfg.window)), records["network"]
    name = f"alpha = {cfg.alpha[top]:g}: log delay te/tr"
    if cfg.window[many] >= 2 * cfg.samples:
        rivals = {f"P = {cfg.window[many]}": np.log(window.ratio[many])}
        claim = Claim.at_least(name, "figure 1", ratio[top], math.log(2), rivals=rivals)
        claim = claim.within(network, *found.at(top), due=predicted.at(top))
        due = delay(records["infinite width, window"]).at(many)
        name = next(iter(rivals))
        yield claim.controls_within(records["network, window"], {name: window.at(many)}, {name: due})
    else:
        yield Claim.not_applicable(name, "figure 1", f"no P in the window >= 2 x samples = {2 * cfg.samples}")
    if len(cfg.alpha) > 1:
        name = f"log delay te/tr at alpha = {cfg.alpha[top]:g} over that at {cfg.alpha[small]:g}"
        rivals = {"alpha has no effect": 0.0}
        claim = Claim.at_least(name, source, ratio[top] - ratio[small], 0.0, rivals=rivals)
        yield claim.within(network, *found.at([top, small]), due=predicted.at([top, small]))
        slopes = [exponent(cfg.alpha, times.test) for times in (found, predicted)]
        claim = power("alpha", slopes, {"alpha has no effect": 0.0, "sqrt(alpha)": 0.5, "alpha^2": 2.0})
        yield claim.within(network, found.test, predicted.test, due=[predicted.test, found.test])
    else:
        yield Claim.not_applicable("test time grows with alpha", source, "one alpha")
    every, rows = (cfg.eps, *cfg.aligned), []
    for name, times in (("network", found), ("infinite width", predicted)):
        rows.append(np.vstack([times.test[small], delay(records[f"{name}, eps"]).test]))
    slopes = [exponent(every, row) for row in rows]
    rivals = {"eps has no effect": 0.0, "1/sqrt(eps)": -0.5, "1/eps^2, as the kernel's part": -2.0}
    yield power("eps", slopes, rivals).within(network, *rows, due=rows[::-1])
    aligned = np.asarray(network.values["alignment"])
    read = np.isfinite(aligned).all(axis=(1, 2))
    few, control = int(np.argmin(cfg.window)), np.asarray(records["network, window"].values["alignment"])
    control = control[np.isfinite(control).all(axis=(1, 2))][:, few]
    for i, least in {top: 2, small: 6}.items():
        name, grown = f"alpha = {cfg.alpha[i]:g}: growth of kernel-label alignment on fresh points", aligned[read][:, i]
        rivals = {f"P = {cfg.window[few]}": control[-1] / control[0]}
        claim = Claim.at_least(name, "section 4", grown[-1] / grown[0], least, rivals=rivals)
        yield claim.within(network, found.test[i], due=[predicted.test[i]], at_end=True)
    norm = [value_at(network.step, network.values["weight_norm"], time)[top] for time in (found.train, found.test)]
    name = f"alpha = {cfg.alpha[top]:g}: log weight norm from train to test time (it rises)"
    claim = Claim.at_least(name, "section 4", np.log(norm[1] / norm[0]), 0.05, rivals={"norm keeps still": 0.0})
    yield claim.within(network, *found.at(top), due=predicted.at(top))


def power(variable: str, slopes, rivals: dict[str, float]) -> Claim:
    """The exponent of the test time in ``variable``, of the network and of the infinite-width theory."""
    measured, predicted = slopes
    name = f"exponent of the test time in {variable}"
    return Claim.close(name, "eq. 3-6, infinite width", measured, predicted.mean(), 0.1, rivals=rivals)


def theories(result: Result) -> Iterator[Claim]:
    """The theories' test loss on the network's, at every recorded step; by seed."""
    cfg, records = result.config, result.records
    network, infinite = records["network"], records["infinite width"]
    test, predicted = (np.asarray(record.values["test_loss"]) for record in (network, infinite))
    frozen = at_steps(records["lazy"].at(eps=cfg.eps), "test_loss", network.step)[:, None]
    fallen, due = delay(network).test, delay(infinite).test  # until then the network and the frozen kernel are one
    others = {
        "kernel frozen": frozen,
        "twice the rate": at_steps(infinite, "test_loss", 2 * np.asarray(infinite.step)),
        f"eps = {cfg.aligned[0]:g}": at_steps(records["infinite width, eps"], "test_loss", network.step)[:, :1],
    }
    for word, statistic, most in (("median", np.median, 0.05), ("95th percentile", _high, 0.10)):
        error, *wrong = (statistic(np.abs(test / one - 1), axis=(0, 1)) for one in (predicted, *others.values()))
        name = f"infinite-width theory against the network's test loss, relative error, {word}"
        claim = Claim.at_most(name, "eq. 3-6", error, most, rivals=dict(zip(others, wrong)))
        yield claim.controls_within(network, {"kernel frozen": [fallen]}, {"kernel frozen": [due]})
    exact = np.asarray(records["exact reduction"].values["test_loss"])
    error, infinitely = (np.abs(test[:, :, :1] / one[:, :, :1] - 1).max() for one in (exact, predicted))
    name, rivals = "exact reduction against the network's test loss, largest error", {"N = infinity": infinitely}
    yield Claim.at_most(name, "eq. 3", error, 0.01, rivals=rivals)


def _high(values, axis):
    return np.quantile(values, 0.95, axis=axis)


def sample_window(result: Result) -> Iterator[Claim]:
    cfg, source, small = result.config, "figure 5", int(np.argmin(result.config.alpha))
    window, main = result.records["network, window"], result.records["network"]
    train, test, enough = last(window, "train_loss"), last(window, "test_loss"), last(main, "test_loss")[small]
    times, slow, due = delay(window), delay(main).at(small), delay(result.records["infinite width, window"])
    expected, usual = delay(result.records["infinite width"]).at(small), f"P = {cfg.samples}"
    for i, samples in enumerate(cfg.window):
        if samples <= cfg.dimension:
            name = f"P = {samples}: final train loss over its start (fitted all the same)"
            claim = Claim.at_most(name, source, train[i], FALL, rivals={"nothing fitted": 1.0})
            yield claim.within(window, times.train[i], due=[due.train[i]], at_end=True)
            name = f"P = {samples}: final test loss over its start (never generalises)"
            claim = Claim.at_least(name, source, test[i], 0.9, rivals={usual: enough})
            yield claim.controls_within(main, {usual: [slow.test]}, {usual: [expected.test]})
        elif samples >= 2 * cfg.samples:
            name = f"P = {samples}: delay te/tr (no delay)"
            claim = Claim.at_most(name, source, times.ratio[i], 2, rivals={usual: slow.ratio})
            claim = claim.within(window, *times.at(i), due=due.at(i), least=times.at(i).least(window))
            yield claim.controls_within(main, {usual: slow}, {usual: expected})
        else:
            note = "the claims concern P <= D (too few) and P >= 2 x samples (enough)"
            yield Claim.not_applicable(f"P = {samples}", source, note)


def figure(result: Result) -> Any:
    """Markers: the network; black: infinite width, same data; grey: kernel frozen, rich control. Medians over seeds."""
    cfg, records = result.config, result.records
    page, grid = new_figure(2, 4, width=3.7)
    panels = grid.ravel()
    lowest, highest = int(np.argmin(cfg.alpha)), int(np.argmax(cfg.alpha))
    for panel, i in zip(panels[:2], (lowest, highest)):
        overlay(panel, records, "train_loss", [("", i, "train")])
        overlay(panel, records, "test_loss", [("", i, "test")], first=2)
        frozen = records["lazy"]
        for j, part in enumerate(("train", "test")):
            curve = middle(frozen, f"{part}_loss", 0)
            panel.plot(visible(frozen.step), curve, label=f"{part}, kernel frozen", **rival_style(j))
        panel.set(title=f"alpha = {cfg.alpha[i]:g}, P = {cfg.samples}", ylabel="loss")
    start, left = middle(records["network"], "test_loss", highest)[0], 1 - cfg.dimension / cfg.samples
    if left > 0:
        panels[1].axhline(start / left, color="black", linewidth=0.6, label="1/(1 - D/P) of its start")
    window = [(", window", i, samples) for i, samples in enumerate(cfg.window)] + [("", lowest, cfg.samples)]
    window = [(suffix, i, f"P = {samples}") for suffix, i, samples in sorted(window, key=lambda cell: cell[2])]
    overlay(panels[2], records, "test_loss", window)
    panels[2].set(title=f"sample window, alpha = {cfg.alpha[lowest]:g}", ylabel="test loss")
    times(panels[3], cfg, records)
    alphas = [("", i, f"alpha = {alpha:g}") for i, alpha in enumerate(cfg.alpha)]
    control = records["network, eps"]
    rich = int(np.argmax(cfg.aligned))
    for panel, name, label in (
        (panels[4], "alignment", "NTK-label alignment"),
        (panels[5], "feature_distance", "kernel movement, features' part"),
    ):
        overlay(panel, records, name, alphas)
        read = np.isfinite(middle(control, name, rich))
        rival = middle(control, name, rich)[read]
        panel.plot(visible(control.step)[read], rival, label=f"rich: eps = {cfg.aligned[rich]:g}", **rival_style())
        panel.set(ylabel=label)
    panels[5].set_yscale("log")
    for i, (name, label) in enumerate(TERMS.items()):
        overlay(panels[6], records, f"test_{name}", [("", highest, label)], first=i)
    panels[6].set_title(f"alpha = {cfg.alpha[highest]:g}")
    panels[6].set(ylabel="terms of the test loss", yscale="log", ylim=(1e-5, 1))
    many = [("", lowest, f"eps = {cfg.eps:g}")] + [(", eps", i, f"eps = {eps:g}") for i, eps in enumerate(cfg.aligned)]
    overlay(panels[7], records, "test_loss", many)
    panels[7].set(ylabel="test loss", title="delay shrinks with eps")
    for panel in np.delete(panels, 3):
        panel.set(xscale="log", xlabel="step")
        panel.legend(fontsize=7, frameon=False)
    page.suptitle("Grokking from lazy to rich: network (markers) and infinite-width theory (black lines)")
    return page


def times(panel, cfg: Config, records) -> None:
    """When train and test loss fall, against alpha: every seed, and the theory's median."""
    order = np.argsort(cfg.alpha)
    alpha, measured, predicted = np.array(cfg.alpha)[order], delay(records["network"]), delay(records["infinite width"])
    for i, name in enumerate(("train", "test")):
        fall, line = getattr(measured, name)[order], np.median(getattr(predicted, name)[order], axis=1)
        label = f"{name} loss < {FALL:g} of its start"
        panel.plot(alpha, line, **theory_style(i))
        panel.plot(np.repeat(alpha, fall.shape[1]), fall.ravel(), label=label, **measured_style(2 * i, 3))
    reached = "log" if np.isfinite(measured).any() else "linear"
    panel.set(xscale="log", yscale=reached, xlabel="output scale alpha", ylabel="step", title="delay grows with alpha")
    if len(alpha) <= 6:
        ticks_at(panel.xaxis, alpha)
    panel.legend(fontsize=7, frameon=False)


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
