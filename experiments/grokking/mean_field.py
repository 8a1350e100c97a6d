"""Grokking from lazy to rich, by dynamical mean field theory: the proportional limit of ``grokking.lazy_to_rich``.

At ``kappa = P/D`` fixed the training of ``f = alpha (c.x + (eps/2) x^T (M - 1) x)`` on ``y = (beta.x)^2/2`` is that of
one sample in a self-averaging bath of weights, beside two coherent vectors: the mean weight c and the direction u in
which M grows (``theory.dmft.proportional``). D is left in the seed of u along beta alone, 1/D, and in the labels of the
training set. Train loss falls while test loss rises, as the bath fits the samples one by one; then u, which has grown
from its seed, generalises. A theory that leaves u inside the bath fits the training set too early, and one without the
seed never generalises. The delay grows with D, faster than its logarithm: u grows exponentially only until the bath has
fitted the labels.

Of base seeds 0, 100, 200 one claim fails at 200: single runs scatter about their own theory by .65 +- .25 of the data's
own scatter (.5 is allowed; with other labels 1.06); eight draws are few for it. In preset ``large`` the step at which
the test loss falls is no later than the line in log D through D = 60 and 120 has it (-1.4 +- 3.3 steps at D = 480): the
theory's bend beyond it, seen at D to 3840 without noise, is below what eight draws resolve.

Run time: about 200 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import config
from dynamics.config import Count, Positive
from dynamics.evolve import Drawn
from dynamics.evolve import study as in_memory
from dynamics.runs.figures import measured_style, new_figure, rival_style, theory_style
from dynamics.statistics import first_step
from dynamics.tasks.teachers import quadratic_teacher
from dynamics.theory import lazy_to_rich as reduced
from dynamics.theory.dmft import inputs_of, proportional, seed_share
from dynamics.types import Claim, Estimate, Observable, Record

SOURCE = "Kumar, Bordelon, Gershman & Pehlevan 2023, 'Grokking as the transition from lazy to rich training dynamics'"
SECONDS = 200
FALL = 0.7  # test loss below this share of its start, after its largest, is generalisation; the bath alone stays above
LOSSES = ("train_loss", "test_loss")


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Count] = 8
    """draws of the training set"""
    dimension: Annotated[tuple[int, ...], Count] = (60, 120, 240)
    """input dimensions D, ascending; the last is the run that is shown"""
    kappa: Annotated[float, Positive] = 5.0
    """samples per dimension P/D"""
    alpha: Annotated[float, Positive] = 0.1
    """output scale"""
    eps: Annotated[float, Positive] = 0.1
    """weight of the quadratic term"""
    rate: Annotated[float, Positive] = 5 / 3
    """k = 2 eta0/(alpha D); in the runs over kappa it is changed with kappa"""
    steps: Annotated[int, Count] = 60
    """updates"""
    few: Annotated[tuple[float, ...], Positive] = (1.0, 2.0, 3.0)
    """smaller kappa, ascending, at the last dimension"""
    limit: Annotated[tuple[float, ...], Positive] = (60, 240, 960, 3840)
    """dimensions of the theory alone, without noise"""

    @classmethod
    def large(cls) -> Config:
        """D to 480 and 80 steps. Twenty minutes on two cores."""
        return cls(dimension=(60, 120, 240, 480), steps=80, limit=(60, 240, 960, 3840, 15_360))

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("dimension", "few"):
            self.require(bool(np.all(np.diff(getattr(self, field)) > 0)), field, "ascending values")
        self.require(min(self.dimension) > 1, "dimension", ">= 2")


class Result(NamedTuple):
    """Records at every step.

    ``data`` and ``theory`` ``[T, dimension, seed]``; at the last dimension, for half the seeds, ``bath`` ``[T, seed]``,
    u inside the bath, and ``few data``, ``few theory`` ``[T, few, seed]``; ``large seed`` ``[T, seed]``, the theory of
    the last dimension with the first one's seed; the theory alone, ``limit [T, limit]`` and ``seedless [T]``.
    """

    config: Config
    records: dict[str, Record]


def run(config: Config, study=in_memory) -> Result:
    half = range(max(min(2, config.seeds), config.seeds // 2))
    sizes, few = {"dimension": config.dimension, "seed": range(config.seeds)}, {"few": config.few, "seed": half}
    records = {"data": trained(config, study, sizes, "data"), "few data": trained(config, study, few, "few data")}
    records["theory"] = predicted(config, study, sizes, "theory")
    records["few theory"] = predicted(config, study, few, "few theory")
    records["bath"] = predicted(config, study, {"seed": half}, "bath", spike="bath")
    every = {"seed": range(config.seeds)}
    records["large seed"] = predicted(config, study, every, "large seed", seed_of=config.dimension[0])
    records["limit"] = predicted(config, study, {"limit": config.limit}, "limit")
    seedless = predicted(config, study, {"limit": (np.inf,)}, "seedless", spike="none")
    records["seedless"] = Record(seedless.step, seedless.time, {k: v[:, 0] for k, v in seedless.values.items()})
    return Result(config, records)


def numbers(config: Config, lane) -> tuple[int, float, float]:
    """``(D, kappa, rate)`` of a lane; the rate keeps ``rate/kappa``, the step of one sample."""
    kappa = float(lane.get("few", config.kappa))
    return int(lane.get("dimension", config.dimension[-1])), kappa, config.rate * kappa / config.kappa


def task(config: Config, lane):
    """A training set and its teacher; cells of one seed at one size share them."""
    dim, kappa, _ = numbers(config, lane)
    key = jax.random.fold_in(jax.random.key(config.seed), lane.seed)
    return quadratic_teacher(key, round(kappa * dim), 1, dim)


def trained(config: Config, study, axes, label: str) -> Record:
    """Gradient descent at N = infinity, exactly, on each training set."""

    def draw(lane) -> Drawn:
        data, beta = task(config, lane)
        return Drawn(reduced.infinite_width(len(beta)), data, {"beta": beta})

    def make(lane):
        dim, _, rate = numbers(config, lane)
        return reduced.reduction(config.alpha, config.eps, rate * config.alpha * dim / 2)

    def read(lane, view):
        now, start, (x, y) = view.params, view.state.start, view.batch
        error = reduced.output(reduced.change(view.state), x, config.alpha, config.eps) - y[:, 0]
        test = reduced.population_loss(now, start, lane.beta, config.alpha, config.eps)
        return {"train_loss": jnp.mean(error**2), "test_loss": test["test_loss"]}

    return study(
        axes,
        draw=draw,
        make=make,
        read=lambda lane: Observable.of_view(functools.partial(read, lane)),
        steps=config.steps,
        record_at=np.arange(config.steps + 1),
        key=jax.random.key(config.seed),
        label=label,
        loop=[name for name in axes if name == "few"],
    )


def predicted(config: Config, study, axes, label: str, spike: str = "coherent", seed_of=None) -> Record:
    """The mean field theory, of each training set's fields and norms where ``seed`` is an axis."""
    key = jax.random.key(config.seed)
    model: dict[str, Any] = {"alpha": config.alpha, "eps": config.eps}

    @functools.cache
    def zeta(kappa: float, rate: float):
        return seed_share(kappa, config.steps, key, **model, rate=rate)[-1]

    def draw(lane) -> dict:
        (dim, kappa, rate), inputs, of_samples = numbers(config, lane), None, key
        if "seed" in axes:
            data, beta = task(config, lane)
            inputs, of_samples = inputs_of(data.train.x, beta), jax.random.fold_in(key, lane.seed)
        share = 1.0 if spike != "coherent" else zeta(kappa, rate)
        settings = model | {"dim": seed_of or lane.get("limit", dim), "rate": rate, "zeta": share, "spike": spike}
        return proportional(kappa, config.steps, of_samples, inputs=inputs, noise=False, **settings).values

    record = study(axes, draw, None, Observable.of_view(lambda view: view.params), steps=0, data=(), label=label)
    step = np.arange(config.steps + 1)
    kept = (*LOSSES, "train_error", "lane_failed", "seed_share")
    return Record(step, step, {name: np.moveaxis(record.values[name][0], -1, 0) for name in kept}, record.axes)


def claims(result: Result) -> list[Claim]:
    return [*curves(result), *delays(result), *few_samples(result)]


def pair(result: Result, theory: str = "theory", data: str = "data", at: int = -1):
    """``{loss: (theory, data) [T, draws]}`` at one place of the first axis, without the draws whose lane failed."""
    of_theory, of_data = result.records[theory].values, result.records[data].values
    pick = (lambda v: v) if theory == "bath" else (lambda v: v[:, at])
    sound = ~np.asarray(pick(of_theory["lane_failed"]))[-1].astype(bool)
    return {
        name: (np.asarray(pick(of_theory[name]))[:, sound], np.asarray(of_data[name])[:, at, : len(sound)][:, sound])
        for name in LOSSES
    }


def largest(theory, data, where=slice(None)) -> Estimate:
    """The largest relative deviation of mean ``[T, draws]`` curves, with the error of the paired draws there."""
    theory, data = theory[where], data[where]
    shares = (theory - data) / data.mean(-1, keepdims=True)
    i, n = int(np.argmax(np.abs(shares.mean(-1)))), data.shape[-1]
    return Estimate(np.abs(shares[i].mean()), shares[i].std(ddof=1) / n**0.5 if n > 1 else np.inf, n)


def curves(result: Result) -> Iterator[Claim]:
    """Mean losses of theory and data at the last D, at every step; and each draw's own curve."""
    cfg, both, bath = result.config, pair(result), pair(result, "bath")
    names = (
        "mean test loss, theory against data, largest relative deviation over all steps",
        "mean train loss while above .02, theory against data, largest relative deviation",
        "scatter of log test loss about the theory of the same labels, over the data's own, late half",
    )
    if both["test_loss"][0].shape[-1] < 3 or cfg.dimension[-1] < 200 or cfg.steps < 40:
        yield from (
            Claim.not_applicable(name, "proportional limit", "needs D >= 200, 40 steps, 3 draws") for name in names
        )
        return
    seedless = {name: np.asarray(result.records["seedless"].values[name])[:, None] for name in LOSSES}
    test, train = both["test_loss"], both["train_loss"]
    failed = f"failed lanes: {cfg.seeds - test[0].shape[-1]}"
    rivals = {"no seed": largest(seedless["test_loss"] + 0 * test[1], test[1])}
    yield Claim.at_most(names[0], "proportional limit", largest(*test), 0.08, rivals=rivals, note=failed)
    above = train[1].mean(-1) > 0.02
    rivals = {"u inside the bath": largest(*bath["train_loss"], above[: len(bath["train_loss"][0])])}
    yield Claim.at_most(names[1], "proportional limit", largest(*train, above), 0.2, rivals=rivals, note=failed)
    late = slice(cfg.steps // 2, None)
    logs = [np.log(curve[late]) for curve in test]

    def scatter(one, other):
        """By draw: rms of the deviation less its mean over draws, over the rms of the data's own."""
        gap, own = one - other, other - other.mean(-1, keepdims=True)
        return np.sqrt(np.mean((gap - gap.mean(-1, keepdims=True)) ** 2, 0) / np.mean(own**2))

    others = [scatter(np.roll(logs[0], shift, axis=-1), logs[1]) for shift in range(1, logs[0].shape[-1])]
    rivals = {"labels of the other draws, mean": np.mean(others, 0)}
    yield Claim.at_most(names[2], "proportional limit", scatter(*logs), 0.5, rivals=rivals)


def fall(record: Record) -> np.ndarray:
    """Step at which test loss, after its largest, is below ``FALL`` of its start: ``[*axes]``; inf if never."""
    test = np.asarray(record.values["test_loss"], float)
    rising = np.arange(len(test)).reshape(-1, *(1,) * (test.ndim - 1)) < np.argmax(test, axis=0)
    return first_step(record.step, np.where(rising, np.inf, test), FALL * test[0])


def delays(result: Result) -> Iterator[Claim]:
    """When test loss falls, against D."""
    cfg, source = result.config, "seed of u, 1/(D zeta)"
    measured, theory, large = (fall(result.records[name]) for name in ("data", "theory", "large seed"))
    names = (
        f"D = {cfg.dimension[-1]}: log of the step at which test loss falls, theory over data",
        "step at which test loss falls, beyond the line in log D through the two smallest D",
    )
    if len(cfg.dimension) < 2:
        yield from (Claim.not_applicable(name, source, "needs two D") for name in names)
        return
    small, data = f"seed of D = {cfg.dimension[0]}, same labels", result.records["data"]
    with np.errstate(invalid="ignore", divide="ignore"):  # what has not generalised holds no claim
        shift, rivals = np.log(theory[-1] / measured[-1]), {small: np.log(large / measured[-1])}
    claim = Claim.close(names[0], source, shift, 0.0, 0.05, rivals=rivals)
    claim = claim.within(data, measured[-1], theory[-1], due=[theory[-1], measured[-1]])
    yield claim.controls_within(result.records["large seed"], {small: [large]})
    if cfg.dimension[-1] < 8 * cfg.dimension[0] or len(cfg.dimension) < 3:
        yield Claim.not_applicable(names[1], source, "needs three D, over a factor of 8")
        return
    x = np.log(cfg.dimension)
    with np.errstate(invalid="ignore"):
        line = measured[1] + (measured[1] - measured[0]) * (x[-1] - x[1]) / (x[1] - x[0])
        claim = Claim.at_least(names[1], source, measured[-1] - line, 0.0, rivals={"linear in log D": 0.0})
    yield claim.within(data, measured[[0, 1, -1]], due=[theory[[0, 1, -1]]])


def few_samples(result: Result) -> Iterator[Claim]:
    """Fewer samples per dimension: later, or no, generalisation, as the theory says."""
    cfg, records, source = result.config, result.records, "kappa, at one step of a sample"
    enough = {name: np.asarray(records[name].values["test_loss"])[:, -1] for name in ("data", "theory")}
    for i, kappa in enumerate(cfg.few):
        names = (
            f"kappa = {kappa:g}: mean test loss, theory against data, largest relative deviation over all steps",
            f"kappa = {kappa:g}: last test loss over its start (not generalised)",
        )
        theory, data = pair(result, "few theory", "few data", i)["test_loss"]
        if data.shape[-1] < 2 or cfg.dimension[-1] < 200 or cfg.steps < 40:
            yield from (Claim.not_applicable(name, source, "needs D >= 200, 40 steps, two draws") for name in names)
            continue
        rivals = {"kappa has no effect": largest(enough["theory"][:, : data.shape[-1]], data)}
        yield Claim.at_most(names[0], source, largest(theory, data), 0.08, rivals=rivals)
        rivals = {"kappa has no effect": enough["data"][-1] / enough["data"][0]}
        if kappa <= 0.6 * cfg.kappa:
            yield Claim.at_least(names[1], source, data[-1] / data[0], FALL, rivals=rivals)


def figure(result: Result) -> Any:
    """Losses of the data's draws under the theory's; single training sets; the delay against D; few samples."""
    page, panels = new_figure(1, 4, width=3.6, height=3.6)
    for panel, draw in zip(panels, (losses, single, against_dimension, few)):
        draw(panel, result)
        panel.legend(fontsize=7, frameon=False)
    return page


def middle(draws: np.ndarray, statistic=np.mean) -> np.ndarray:
    """A statistic over the last axis; NaN without draws."""
    return statistic(draws, axis=-1) if draws.shape[-1] else np.full(draws.shape[:-1], np.nan)


def losses(panel, result: Result) -> None:
    """Bands and bars: standard deviations of the draws."""
    cfg, step = result.config, np.asarray(result.records["data"].step)
    for i, name in enumerate(LOSSES):
        theory, data = pair(result)[name]
        style, centre, spread = measured_style(2 * i, 3), middle(theory), middle(theory, np.std)
        panel.fill_between(step, centre - spread, centre + spread, color=style["color"], alpha=0.25, linewidth=0)
        panel.plot(step, centre, **theory_style(), label=None if i else "theory, band: its draws")
        shown, label = (
            slice(None, None, max(1, cfg.steps // 30)),
            f"{name.split('_')[0]}, {data.shape[-1]} training sets",
        )
        bars = middle(data, np.std)[shown]
        panel.errorbar(step[shown], middle(data)[shown], bars, ms=4, lw=0.7, label=label, **style)
        bath, seedless = middle(pair(result, "bath")[name][0]), result.records["seedless"].values[name]
        panel.plot(step, bath, **rival_style(0), label=None if i else "u in the bath")
        panel.plot(step, seedless, **rival_style(1), label=None if i else "no seed")
    title = f"D = {cfg.dimension[-1]}, P = {round(cfg.kappa * cfg.dimension[-1])}"
    panel.set(yscale="log", ylim=(3e-3, 1.3), xlabel="step", ylabel="loss", title=title)


def single(panel, result: Result) -> None:
    theory, data = pair(result)["test_loss"]
    for i, at in enumerate((result.config.steps // 4, result.config.steps // 2, result.config.steps)):
        panel.plot(theory[at], data[at], **measured_style(i, 3), label=f"step {at}")
    panel.axline((0.5, 0.5), slope=1, **theory_style())
    panel.set(xlabel="test loss, theory of the labels", ylabel="test loss of that run", title="single training sets")


def against_dimension(panel, result: Result) -> None:
    """The step at which test loss falls, with standard errors, where every draw's does."""
    cfg, limit = result.config, fall(result.records["limit"])
    for name, style in (("data", measured_style(0, 3)), ("theory", {**theory_style(1), "marker": "+"})):
        times = fall(result.records[name])
        times = np.where(np.isfinite(times).all(-1, keepdims=True), times, np.nan)
        panel.errorbar(cfg.dimension, times.mean(-1), times.std(-1) / cfg.seeds**0.5, label=name, **style)
    panel.plot(cfg.limit, limit, **theory_style(), label="theory, without noise")
    if len(limit) > 1 and np.isfinite(limit[:2]).all():
        x = np.log(cfg.limit)
        line = limit[0] + (limit[1] - limit[0]) * (x - x[0]) / (x[1] - x[0])
        panel.plot(cfg.limit, line, **rival_style(), label="linear in log D")
    label = f"step of test loss < {FALL:g} of its start"
    panel.set(xscale="log", title="delay against D", xlabel="dimension D", ylabel=label)


def few(panel, result: Result) -> None:
    cfg, step = result.config, np.asarray(result.records["data"].step)
    for i, kappa in enumerate(cfg.few):
        theory, data = pair(result, "few theory", "few data", i)["test_loss"]
        panel.plot(step[::2], middle(data)[::2], ms=4, label=f"kappa = {kappa:g}", **measured_style(i, len(cfg.few)))
        panel.plot(step, middle(theory), **theory_style())
    panel.set(xlabel="step", ylabel="test loss", title=f"few samples, D = {cfg.dimension[-1]}")


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
