"""Grokking as the transition from lazy to rich training (Kumar, Bordelon, Gershman & Pehlevan 2023).

A two-layer network ``f = (alpha/N) sum_i phi(w_i.x)``, ``phi(h) = h + (eps/2) h^2``, with its readout fixed at one,
learns ``y = (beta.x)^2/2`` by gradient descent on the mean squared error ``(1/P) sum (f - f_0 - y)^2`` (no factor 1/2),
at ``eta = eta0 N/alpha^2`` and without weight decay. The kernel at the start is misaligned with the labels: it fits the
training set first, lazily, and generalises only once the weights have turned towards beta. The larger the output scale
alpha, the longer that takes. The run shows train and test loss of the network over the theory of the same data at
infinite width (their exact reduction to the mean and second moment of the weights), the lazy baseline, the alignment of
the kernel with the labels and its distance from the start, for several alphas, seeds and sample counts.

Run time: about 75 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Annotated, Any, NamedTuple

import numpy as np

from dynamics import config
from dynamics.config import Count, Positive, Range
from dynamics.evolve import study as in_memory
from dynamics.runs.figures import measured_style, new_figure, theory_style, ticks_at
from dynamics.types import Claim, Record
from experiments.grokking._lazy_to_rich import FALL, delay, lazy, network_and_theories

SOURCE = "Kumar, Bordelon, Gershman & Pehlevan 2023, 'Grokking as the transition from lazy to rich training dynamics'"
SECONDS = 75


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    alpha: Annotated[tuple[float, ...], Positive] = (0.1, 0.2, 0.4)
    """output scale alpha (large = lazy)"""
    seeds: Annotated[int, Range(1, 4096)] = 9
    """number of independent seeds, run side by side; medians of fewer draws of data and weights scatter by half"""
    eps: Annotated[float, Positive] = 0.1
    """weight eps of the quadratic term: small = initial kernel misaligned with the labels"""
    samples: Annotated[int, Count] = 300
    """training samples P"""
    window: Annotated[tuple[int, ...], Count] = (60, 600)
    """further sample counts P, run at the smallest alpha: too few to generalise, enough to show no delay"""
    dimension: Annotated[int, Range(2)] = 60
    """input dimension D"""
    width: Annotated[int, Count] = 200
    """hidden units N"""
    eta0: Annotated[float, Positive] = 5.0
    """learning rate in units of N/alpha^2"""
    steps: Annotated[int, Count] = 4000
    """updates"""
    window_steps: Annotated[int, Count] = 1000
    """updates of the runs in the window"""
    fresh: Annotated[int, Range(2)] = 1500
    """fresh samples for the sampled test loss and the kernel-label alignment"""

    @classmethod
    def paper(cls) -> Config:
        """The setting of the paper's figure 1, over three output scales."""
        return cls(
            alpha=(0.25, 0.5, 1.0), eps=0.02, samples=550, window=(100, 1100), dimension=100, width=500, eta0=1.0,
            steps=100_000, window_steps=100_000,
        )  # fmt: skip


class Result(NamedTuple):
    """Records with values ``[T, alphas, seeds]`` or, in ``window``, ``[T, samples, seeds]``.

    ``network``; ``infinite width``, its theory; ``exact reduction``, the theory from the network's own weights (first
    seed); ``lazy``, the theory with the initial kernel; the first three again as ``network, window`` and so on.
    """

    config: Config
    records: dict[str, Record]


def run(config: Config, study=in_memory) -> Result:
    seeds = range(config.seeds)
    records = network_and_theories(config, study, {"alpha": config.alpha, "seed": seeds}, config.steps, kernel=True)
    records["lazy"] = lazy(config, study)
    window = {"samples": config.window, "seed": seeds}
    return Result(config, records | network_and_theories(config, study, window, config.window_steps, ", window"))


@np.errstate(invalid="ignore")  # a run that diverged reads NaN, which holds no claim
def claims(result: Result) -> list[Claim]:
    cfg, network, infinite = result.config, result.records["network"], result.records["infinite width"]
    found, out = delay(network), []
    median = np.median(found.ratio, axis=1)
    order = np.argsort(cfg.alpha)
    for i, least in {order[-1]: 5, order[0]: 4}.items():
        out.append(Claim.at_least(f"delay te/tr at alpha = {cfg.alpha[i]:g}", "figure 1", median[i], least))
    pairs = list(itertools.pairwise(doublings(cfg.alpha, order)))
    for low, high in pairs:
        growth = np.median(found.test[high] / found.test[low])
        per_doubling = growth ** (1 / np.log2(cfg.alpha[high] / cfg.alpha[low]))
        name = f"generalisation time per doubling of alpha, {cfg.alpha[low]:g} to {cfg.alpha[high]:g}"
        out.append(Claim.between(name, "figure 2", per_doubling, 1.6, 2.6))
    if not pairs:
        name = "generalisation time per doubling of alpha"
        out.append(Claim.not_applicable(name, "figure 2", "no two alphas are a doubling apart"))
    test, predicted = (np.asarray(r.values["test_loss"]) for r in (network, infinite))
    error = np.abs(test / predicted - 1)
    name = "infinite-width theory against the network's test loss, relative error"
    out.append(Claim.at_most(f"{name}, median", "eq. 3-6", np.median(error), 0.05))
    out.append(Claim.at_most(f"{name}, 95th percentile", "eq. 3-6", np.quantile(error, 0.95), 0.10))
    exact = np.asarray(result.records["exact reduction"].values["test_loss"])
    error = np.abs(test[:, :, :1] / exact - 1)
    out.append(
        Claim.at_most("exact reduction against the network's test loss, largest error", "eq. 3", error.max(), 0.01)
    )
    aligned = np.asarray(network.values["alignment"])
    aligned = aligned[np.isfinite(aligned).all(axis=(1, 2))]
    growth = np.median(aligned[-1] / aligned[0], axis=-1).min()
    out.append(Claim.at_least("growth of kernel-label alignment on fresh points", "section 4", growth, 6))
    window = result.records["network, window"]
    train, test = (np.asarray(window.values[f"{part}_loss"]) for part in ("train", "test"))
    ratios = np.median(delay(window).ratio, axis=1)
    for i, samples in enumerate(cfg.window):
        if samples <= cfg.dimension:
            name = f"P = {samples}: final train loss over its start (fitted all the same)"
            out.append(Claim.at_most(name, "figure 5", (train[-1, i] / train[0, i]).max(), FALL))
            name = f"P = {samples}: final test loss over its start (never generalises)"
            out.append(Claim.at_least(name, "figure 5", (test[-1, i] / test[0, i]).min(), 0.9))
        elif samples >= 2 * cfg.samples:
            out.append(Claim.at_most(f"P = {samples}: delay te/tr (no delay)", "figure 5", ratios[i], 2))
        else:
            note = "the claims concern P <= D (too few) and P >= 2 x samples (enough)"
            out.append(Claim.not_applicable(f"P = {samples}", "figure 5", note))
    return out


def doublings(alpha: tuple[float, ...], order: np.ndarray) -> list[int]:
    """The smallest alpha, the next that is at least twice as large, and so on."""
    kept = [int(order[0])]
    for i in order:
        kept += [int(i)] if alpha[i] >= 2 * (1 - 1e-6) * alpha[kept[-1]] else []
    return kept


def figure(result: Result) -> Any:
    """Markers are the network, black lines the infinite-width theory of the same data; medians over seeds."""
    cfg, records = result.config, result.records
    page, grid = new_figure(2, 4, width=3.7)
    panels = grid.ravel()
    lowest, highest = int(np.argmin(cfg.alpha)), int(np.argmax(cfg.alpha))
    for panel, i in zip(panels[:2], (lowest, highest)):
        overlay(panel, records, "train_loss", [("", i, "train")])
        overlay(panel, records, "test_loss", [("", i, "test")], first=2)
        frozen = records["lazy"]
        panel.plot(visible(frozen.step), middle(frozen, "test_loss", 0), ":", color="0.4", label="test, kernel frozen")
        panel.set(title=f"alpha = {cfg.alpha[i]:g}, P = {cfg.samples}", ylabel="loss")
    window = [(", window", i, samples) for i, samples in enumerate(cfg.window)] + [("", lowest, cfg.samples)]
    window = [(suffix, i, f"P = {samples}") for suffix, i, samples in sorted(window, key=lambda cell: cell[2])]
    overlay(panels[2], records, "test_loss", window)
    panels[2].set(title=f"sample window, alpha = {cfg.alpha[lowest]:g}", ylabel="test loss")
    times(panels[3], cfg, records)
    alphas = [("", i, f"alpha = {alpha:g}") for i, alpha in enumerate(cfg.alpha)]
    for panel, name, label in (
        (panels[4], "alignment", "NTK-label alignment"),
        (panels[5], "kernel_distance", r"kernel distance $|K_t - K_0|_F / |K_0|_F$"),
        (panels[7], "effective_rank", "effective rank of M"),
    ):
        overlay(panel, records, name, alphas)
        panel.set(ylabel=label)
    terms = {"test_mean": "mean output", "test_power": "quadratic form", "test_linear": "linear part"}
    for i, (name, label) in enumerate(terms.items()):
        overlay(panels[6], records, name, [("", lowest, label)], first=i)
    panels[6].set(ylabel=f"terms of the test loss, alpha = {cfg.alpha[lowest]:g}", yscale="log", ylim=(1e-6, 1))
    for panel in np.delete(panels, 3):
        panel.set(xscale="log", xlabel="step")
        panel.legend(fontsize=7, frameon=False)
    page.suptitle("Grokking from lazy to rich: network (markers) and infinite-width theory (black lines)")
    return page


def overlay(panel, records, name: str, cells, first: int = 0) -> None:
    """Median over seeds of the network on the theory, for each cell ``(records' suffix, index, label)``."""
    for place, (suffix, i, label) in enumerate(cells, start=first):
        network, infinite = records["network" + suffix], records["infinite width" + suffix]
        read = np.flatnonzero(np.isfinite(middle(network, name, i)))
        shown = read[:: max(1, read.size // 25)]
        panel.plot(visible(infinite.step)[read], middle(infinite, name, i)[read], **theory_style(place))
        style = measured_style(place, max(3, len(cells)))
        panel.plot(visible(network.step)[shown], middle(network, name, i)[shown], label=label, **style)


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


def middle(record: Record, name: str, cell: int) -> np.ndarray:
    return np.median(np.asarray(record.values[name])[:, cell], axis=-1)


def visible(step) -> np.ndarray:
    """Step 0 drawn at 0.7 on a logarithmic axis."""
    return np.maximum(np.asarray(step, float), 0.7)


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
