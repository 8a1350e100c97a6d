"""Small starts learn one rank at a time (Jacot et al. 2021; Li, Luo & Lyu 2021).

A depth-3 linear net with loss ``1/2 |S - W_3 W_2 W_1|_F^2`` starts from Gaussian weights of standard deviation
``sigma/sqrt(n)``. With sigma small, training passes from saddle to saddle: the loss rests at ``1/2 sum_{j>i} s_j^2``
while i modes are learnt, and the effective rank of the product falls to about one before it climbs by one a stage; the
last mode takes the time of ``da/dt = 3 a^(4/3) (s - a)``. With sigma = 1, the control, there are no plateaus and the
rank never falls so far: the whole spectrum is learnt at once.

Run time: about 15 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import config
from dynamics.config import Count, Positive
from dynamics.evolve import every, gradient_descent
from dynamics.evolve import study as in_memory
from dynamics.runs.figures import colour, new_figure, rival_style
from dynamics.statistics import effective_rank, first_step
from dynamics.theory.deep_linear import learning_time, saddle_losses
from dynamics.types import Batch, Claim, Objective, Record

SOURCE = "Jacot, Ged, Simsek, Hongler & Gabriel 2021, 'Saddle-to-saddle dynamics in deep linear networks'"
SECONDS = 15
RECORD = 0.1  # time between recorded steps: at sigma = 1 a stage is passed within less than 0.3


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Count] = 5
    """number of independent initial weights"""
    size: Annotated[int, Count] = 30
    """units n in every layer"""
    strength: Annotated[tuple[float, ...], Positive] = (5.0, 4.0, 3.0, 2.0, 1.0)
    """target singular values s, descending; the rest are zero"""
    scale: Annotated[tuple[float, ...], Positive] = (0.05, 1.0)
    """initial scale sigma, small = saddle to saddle"""
    learning_rate: Annotated[float, Positive] = 2e-3
    """learning rate eta"""
    steps: Annotated[int, Count] = 30000
    """gradient steps"""

    @classmethod
    def large(cls) -> Config:
        """A smaller start and step: longer plateaus, cleaner ranks. Sizes of ours: the papers' nets and targets, of
        several depths and as matrix completion, differ from figure to figure. About 2 minutes on two cores."""
        return cls(scale=(0.03, 0.05, 1.0), learning_rate=1e-3, steps=100_000)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(len(self.strength) <= self.size, "strength", f"at most size = {self.size} values")
        self.require(bool(np.all(np.diff(self.strength) < 0)), "strength", "descending values")


class Result(NamedTuple):
    """``records['descent']``: values ``[T, scales, seeds]``; ``records['saddles']``: the plateaus."""

    config: Config
    records: dict[str, Record]


def product(weights, x):
    """``W_3 W_2 W_1 x``, inputs as rows."""
    for w in weights:
        x = x @ w.T
    return x


def half_sum(f, y):
    """``1/2 |f - y|_F^2``."""
    return 0.5 * jnp.sum((f - y) ** 2)


def run(config: Config, study=in_memory) -> Result:
    """Trains every (scale, seed) as one program."""
    n, key = config.size, jax.random.key(config.seed)
    left, right = jnp.linalg.qr(jax.random.normal(key, (2, n, n)))[0]
    strength = jnp.pad(jnp.asarray(config.strength), (0, n - len(config.strength)))
    gaussian = jax.random.normal(jax.random.fold_in(key, 1), (config.seeds, 3, n, n)) / n**0.5
    L = Objective(product, half_sum)

    def read(params, batch):
        f = product(params, batch.x)
        values = jnp.linalg.svd(f, compute_uv=False)
        leading = values[: len(config.strength)]
        return {"loss": half_sum(f, batch.y), "effective_rank": effective_rank(values), "singular_values": leading}

    record = study(
        {"scale": config.scale, "seed": range(config.seeds)},
        draw=lambda lane: lane.scale * gaussian[lane.seed],
        make=lambda lane: gradient_descent(L, config.learning_rate),
        read=[read],
        steps=config.steps,
        record_at=every(max(1, round(RECORD / config.learning_rate)), config.steps),
        key=key,
        data=Batch(jnp.eye(n), ((left * strength) @ right.T).T),
        label="descent",
    )
    plateaus = {"loss": np.asarray(saddle_losses(config.strength))}
    steps = np.arange(len(plateaus["loss"]))
    return Result(config, {"descent": record, "saddles": Record(steps, steps, plateaus)})


def plateaus(result: Result, scale: int) -> tuple[np.ndarray, np.ndarray]:
    """``[stages, seeds]``: loss and effective rank where the loss falls slowest, stage by stage; NaN for one not seen.

    Stage i is the stretch of training between the geometric means of neighbouring predicted plateaus.
    """
    exact, values = result.records["saddles"].values["loss"][:-1], result.records["descent"].values
    edges = np.concatenate([[np.inf], np.sqrt(exact[:-1] * exact[1:]), [exact[-1] / 4]])
    losses, ranks = (np.asarray(values[name])[:, scale] for name in ("loss", "effective_rank"))
    found = np.full((2, len(exact), losses.shape[1]), np.nan)
    for seed, loss in enumerate(losses.T):
        slope = np.abs(np.gradient(np.log(loss)))
        for i, (high, low) in enumerate(pairwise(edges)):
            stage = np.flatnonzero((loss < high) & (loss >= low))
            if stage.size:
                at = stage[np.argmin(slope[stage])]
                found[:, i, seed] = loss[at], ranks[at, seed]
    return found[0], found[1]


LOW, HIGH = 0.3, 0.9
"""Shares of its strength between which the last mode's rise is timed."""


def last_time(result: Result, scale: int, low=LOW, high=HIGH) -> np.ndarray:
    """``[seeds]``: time that the last mode takes from ``low`` to ``high`` of its strength; NaN where it does not."""
    record, s = result.records["descent"], result.config.strength[-1]
    time = np.asarray(record.step) * result.config.learning_rate
    curves = np.asarray(record.values["singular_values"])[:, scale, :, -1].T / s
    times = []
    for curve in np.clip(curves, 1e-6, 1 - 1e-6):
        after = np.flatnonzero(
            np.isfinite(curve) & (curve < 0.5 * low)
        )  # a large start may begin above, and fall first
        rising = slice(after[-1] if after.size else 0, None)
        logit = np.maximum.accumulate(np.log(curve / (1 - curve))[rising])
        at = np.interp(np.log([low / (1 - low), high / (1 - high)]), logit, time[rising])
        times.append(at[1] - at[0] if after.size and logit[-1] > np.log(high / (1 - high)) else np.nan)
    return np.array(times)


def claims(result: Result) -> list[Claim]:
    """Over seeds; the small starts and the large ones are each other's control.

    The largest deviations of plateaus and ranks may exceed their tolerance by three standard errors, and not, as first
    written, by none.
    """
    cfg, out, due = result.config, [], result.config.due()
    exact, values = result.records["saddles"].values["loss"], result.records["descent"].values
    learning = values["loss"] > 0.1 * exact[-2]  # while the weakest mode is still being learnt
    learnt = np.isfinite(values["loss"]).all(axis=0) & ~learning[-1]  # a run that diverged or is not done has no rank
    record = result.records["descent"]
    done = first_step(record.step, values["loss"], 0.1 * exact[-2])  # [scales, seeds]
    rank = np.where(learning, values["effective_rank"], np.inf).min(axis=0)
    rank = np.where(learnt, rank, np.nan)  # [scales, seeds]
    small = [i for i, scale in enumerate(cfg.scale) if scale <= 0.1]
    large = [i for i, scale in enumerate(cfg.scale) if scale >= 1]
    if not small or not large or len(cfg.strength) < 5:
        note = "needs sigma <= 0.1, sigma >= 1 and five singular values"
        return [Claim.not_applicable("saddle to saddle", "Jacot et al. 2021, figure 1", note)]
    stages, control = slice(1, 4), large[-1]
    ranks = np.array([[effective_rank(jnp.asarray(cfg.strength[:modes]))] for modes in range(1, 5)])
    reverse = saddle_losses(cfg.strength)[0] - saddle_losses(cfg.strength)[::-1]
    for i in small:
        start, other = f"sigma = {cfg.scale[i]:g}", f"sigma = {cfg.scale[control]:g}"
        (loss, own), (control_loss, control_rank) = plateaus(result, i), plateaus(result, control)

        def off(found, expected):
            return np.abs(found[stages] / expected - 1).max(0)

        expected = exact[stages, None]
        rivals = {
            other: off(control_loss, expected),
            "weakest mode first": off(loss, np.asarray(reverse)[stages, None]),
        }
        name = f"{start}: plateaus 2 to 4 of the loss against their prediction, largest relative deviation"
        seen = first_step(record.step, values["loss"][:, i], np.sqrt(exact[2] * exact[3]))  # of plateau 4
        claim = Claim.close(name, "Jacot et al. 2021, section 4", off(loss, expected), 0.0, 0.02, rivals=rivals)
        out.append(claim.within(record, seen, due=due))
        rivals = {other: off(control_rank, ranks[:-1]), "one mode more": off(own, ranks[1:])}
        name = f"{start}: effective rank at plateaus 2 to 4 against that of 1 to 3 modes, largest relative deviation"
        claim = Claim.close(name, "Li, Luo & Lyu 2021, figure 1", off(own, ranks[:-1]), 0.0, 0.1, rivals=rivals)
        out.append(claim.within(record, seen, due=due))
        name = f"{start}: smallest effective rank while learning"
        claim = Claim.at_most(name, "Li, Luo & Lyu 2021, figure 1", rank[i], 1.2, rivals={other: rank[control]})
        out.append(claim.within(record, done[i], due=due).controls_within(record, {other: [done[control]]}, due=due))
        name = f"{start}: time of the last mode from 0.3 to 0.9 of its strength, over that of three layers"
        s = cfg.strength[-1]
        times = {depth: float(learning_time(0.3 * s, 0.9 * s, s, depth)) / depth for depth in (2, 3, 4)}
        rivals = {f"{depth} layers": times[depth] / times[3] for depth in (2, 4)}
        measured = last_time(result, i) / times[3]
        strong = first_step(record.step, record.values["singular_values"][:, i, :, -1], HIGH * s, "above")
        claim = Claim.close(name, "Saxe et al. 2013, eq. 12", measured, 1.0, 0.05, rivals=rivals)
        out.append(claim.within(record, strong, due=due))
    name = f"sigma = {cfg.scale[control]:g}: smallest effective rank while learning"
    rivals = {f"sigma = {cfg.scale[small[-1]]:g}": rank[small[-1]]}
    claim = Claim.at_least(name, "Jacot et al. 2021, figure 1", rank[control], 5.0, rivals=rivals)
    claim = claim.within(record, done[control], due=due)
    out.append(claim.controls_within(record, {next(iter(rivals)): [done[small[-1]]]}, due=due))
    return out


def figure(result: Result):
    """Loss with its plateaus, singular values, and effective rank along training."""
    cfg, record = result.config, result.records["descent"]
    fig, (loss, modes, rank) = new_figure(1, 3, width=3.7, height=3.6)
    for i, scale in enumerate(cfg.scale):
        own = {"linestyle": ("-", "--", ":", "-.")[i % 4], "color": colour(i, len(cfg.scale))}
        style = {"label": f"sigma = {scale:g}", **(rival_style() if scale >= 1 else own)}
        loss.plot(record.time, record.values["loss"][:, i, 0], **style)
        rank.plot(record.time, record.values["effective_rank"][:, i, 0], **style)
    for level in result.records["saddles"].values["loss"][1:-1]:
        loss.axhline(level, color="0.6", ls=":", lw=1)
    loss.set(yscale="log", xlabel="time (learning rate x step)", ylabel="loss; dots: predicted plateaus")
    loss.set_ylim(1e-4, None)
    for j, s in enumerate(cfg.strength):
        modes.plot(record.time, record.values["singular_values"][:, 0, 0, j], color=str(0.65 * j / len(cfg.strength)))
        modes.axhline(s, color="0.6", ls=":", lw=1)
    modes.set(xlabel="time", ylabel="singular values of the product", title=f"sigma = {cfg.scale[0]:g}; dots: target")
    rank.axhline(len(cfg.strength), color="0.6", ls=":", lw=1)
    rank.set(xlabel="time", ylabel="effective rank of the product")
    loss.legend(fontsize=8)
    rank.legend(fontsize=8)
    return fig


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
