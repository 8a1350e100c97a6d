"""Small starts learn one rank at a time (Jacot et al. 2021; Li, Luo & Lyu 2021).

A depth-3 linear net with loss ``1/2 |S - W_3 W_2 W_1|_F^2`` starts from Gaussian weights of standard deviation
``sigma/sqrt(n)``. With sigma small, training passes from saddle to saddle: the loss rests at ``1/2 sum_{j>i} s_j^2``
while i modes are learnt, and the effective rank of the product falls to about one before it climbs by one a stage. With
sigma = 1 there are no plateaus and the rank never falls so far: the whole spectrum is learnt at once.

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
from dynamics.runs.figures import colour, new_figure
from dynamics.statistics import effective_rank
from dynamics.theory.deep_linear import saddle_losses
from dynamics.types import Batch, Claim, Objective, Record

SOURCE = "Jacot, Ged, Simsek, Hongler & Gabriel 2021, 'Saddle-to-saddle dynamics in deep linear networks'"
SECONDS = 15


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
    def paper(cls) -> Config:
        """A smaller start and step: longer plateaus, cleaner ranks."""
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
        record_at=every(max(1, config.steps // 400), config.steps),
        key=key,
        data=Batch(jnp.eye(n), ((left * strength) @ right.T).T),
        label="descent",
    )
    plateaus = {"loss": np.asarray(saddle_losses(config.strength))}
    steps = np.arange(len(plateaus["loss"]))
    return Result(config, {"descent": record, "saddles": Record(steps, steps, plateaus)})


def plateaus(result: Result, scale: int) -> np.ndarray:
    """``[seeds, stages]``: the loss where it falls slowest, stage by stage; NaN where a run never enters one.

    Stage i is the stretch of training between the geometric means of neighbouring predicted plateaus.
    """
    exact = result.records["saddles"].values["loss"][:-1]
    edges = np.concatenate([[np.inf], np.sqrt(exact[:-1] * exact[1:]), [exact[-1] / 4]])
    losses = np.asarray(result.records["descent"].values["loss"])[:, scale]
    found = np.full((losses.shape[1], len(exact)), np.nan)
    for seed, loss in enumerate(losses.T):
        slope = np.abs(np.gradient(np.log(loss)))
        for i, (high, low) in enumerate(pairwise(edges)):
            stage = np.flatnonzero((loss < high) & (loss >= low))
            if stage.size:
                found[seed, i] = loss[stage[np.argmin(slope[stage])]]
    return found


def claims(result: Result) -> list[Claim]:
    cfg, out = result.config, []
    exact = result.records["saddles"].values["loss"]
    values = result.records["descent"].values
    learning = values["loss"] > 0.1 * exact[-2]  # while the weakest mode is still being learnt
    learnt = np.isfinite(values["loss"]).all(axis=0) & ~learning[-1]  # a run that diverged or is not done has no rank
    rank = np.where(learning, values["effective_rank"], np.inf).min(axis=0)
    rank = np.where(learnt, rank, np.nan)  # [scales, seeds]
    for i, scale in enumerate(cfg.scale):
        name = f"sigma = {scale:g}: smallest effective rank while learning"
        if scale <= 0.1:
            measured = np.median(plateaus(result, i), axis=0)
            for stage in range(1, min(4, len(exact) - 1)):
                title = f"sigma = {scale:g}: plateau {stage + 1} of the loss, over its prediction"
                ratio = measured[stage] / exact[stage]
                out.append(Claim.close(title, "Jacot et al. 2021, section 4", ratio, 1.0, 0.02))
            out.append(Claim.at_most(name, "Li, Luo & Lyu 2021, figure 1", rank[i].max(), 1.2))
        elif scale >= 1 and len(cfg.strength) >= 5:
            out.append(Claim.at_least(name, "Jacot et al. 2021, figure 1", rank[i].min(), 5.0))
        else:
            note = "needs sigma <= 0.1, or sigma >= 1 and five singular values"
            out.append(Claim.not_applicable(name, "Jacot et al. 2021, figure 1", note))
    return out


def figure(result: Result):
    """Loss with its plateaus, singular values, and effective rank along training."""
    cfg, record = result.config, result.records["descent"]
    fig, (loss, modes, rank) = new_figure(1, 3, width=3.7, height=3.6)
    for i, scale in enumerate(cfg.scale):
        style = {"linestyle": ("-", "--", ":", "-.")[i % 4], "color": colour(i, len(cfg.scale))}
        loss.plot(record.time, record.values["loss"][:, i, 0], label=f"sigma = {scale:g}", **style)
        rank.plot(record.time, record.values["effective_rank"][:, i, 0], label=f"sigma = {scale:g}", **style)
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
