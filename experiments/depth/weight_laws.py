"""Weights of other laws: the same kernel, other fluctuations.

Random networks with Gaussian, orthogonal, low-rank or sparse weights have one infinite-width kernel, that of the
entries' variance. At finite width the laws part, exactly: a ReLU layer multiplies ``E G^2 / (E G)^2`` by ``1 + 5/n``
(Gaussian), ``1 + 3/(n+2)`` (orthogonal), ``(1 + 5/n)(1 + 2/r)/(1 + 2/n)`` (rank r), and ``log G`` is a random walk for
all three. The networks are those of ``stax.Dense(weights=...)``, every matrix drawn.

Run time: about 40 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import config, stax
from dynamics.config import Count, Range
from dynamics.evolve import study as in_memory
from dynamics.runs.figures import colour, new_figure, rival_style, ticks_at
from dynamics.theory.finite_width import relu_log_law, relu_second_moment
from dynamics.types import Claim, Record

from ._draws import drawn, mean, mean_z, merged, variance, variance_z

SOURCE = (
    "Nait Saada, Naderi & Tanner 2024, 'Beyond IID weights: sparse and low-rank networks are also Gaussian processes'"
)
SECONDS = 40


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Count] = 8
    """independent blocks of networks"""
    nets: Annotated[int, Count] = 1500
    """networks of a block"""
    width: Annotated[int, Range(4)] = 16
    """width n"""
    rank: Annotated[tuple[int, ...], Count] = (8, 4)
    """ranks r of the low-rank laws, below n"""
    density: Annotated[float, Range(0.01, 1.0)] = 0.25
    """share of entries that a sparse law keeps"""
    depth: Annotated[tuple[int, ...], Count] = (1, 2, 4, 8)
    """depths L at which lengths are read"""

    @classmethod
    def large(cls) -> Config:
        """More networks, wider; two minutes of a core."""
        return cls(seeds=16, nets=4000, width=32, rank=(16, 8, 4), depth=(1, 2, 4, 8, 16))

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(max(self.rank) < self.width, "rank", f"below the width {self.width}")


class Result(NamedTuple):
    """``records``: networks, ``length [1, law, seed, nets, depth]``; theory, ``mean, variance, square [1, law,
    depth]`` (NaN where a law has no random walk)."""

    config: Config
    records: dict[str, Record]


def laws(config: Config) -> dict[str, stax.Haar | stax.LowRank | stax.Sparse | None]:
    low = {f"rank {r}": stax.LowRank(r) for r in config.rank}
    return (
        {"Gaussian": None, "orthogonal": stax.Haar()}
        | low
        | {f"density {config.density:g}": stax.Sparse(config.density)}
    )


def run(config: Config, study=in_memory) -> Result:
    """Every law at every depth."""
    key, at, every = jax.random.key(config.seed), np.asarray(config.depth), laws(config)

    def draw(lane):
        stream = jax.random.fold_in(jax.random.fold_in(key, lane.seed), list(every).index(lane.law))
        return {"length": lengths(stream, config.width, max(config.depth), config.nets, every[lane.law])[:, at - 1]}

    axes = {"law": tuple(every)}
    networks = drawn(study, axes | {"seed": range(config.seeds)}, draw, "networks")
    exact = [theory(config, law) for law in every.values()]
    values = {name: np.stack([one[name] for one in exact])[None] for name in exact[0]}
    return Result(config, {"networks": networks, "theory": networks._replace(values=values, axes=axes)})


@partial(jax.jit, static_argnames=("width", "depth", "nets", "law"))
def lengths(key, width, depth, nets, law):
    """``G_1, ..., G_depth [nets, depth]`` of networks made of ``stax`` layers, Gaussian the first."""
    first = stax.Dense(width, 2**0.5)
    later = stax.serial(stax.Relu(), stax.Dense(width, 2**0.5, weights=law))
    x = jnp.full((1, width), 0.5**0.5)  # preactivations of variance 1

    def one(key):
        start, *keys = jax.random.split(key, depth + 1)

        def layer(h, key):
            return later.apply(later.init(key, h.shape)[1], h), 2 * jnp.mean(jax.nn.relu(h) ** 2)

        h = first.apply(first.init(start, x.shape)[1], x)
        return jax.lax.scan(layer, h, jnp.stack(keys))[1]

    return jax.lax.map(one, jax.random.split(key, nets), batch_size=250)


def theory(config: Config, law) -> dict[str, np.ndarray]:
    at, n, deepest = list(config.depth), config.width, max(config.depth)
    square = relu_second_moment(n, deepest, law)[at]
    if isinstance(law, stax.Sparse):
        return {"mean": np.full(len(at), np.nan), "variance": np.full(len(at), np.nan), "square": square}
    walk = relu_log_law(n, deepest, law)
    return {"mean": walk.mean[at], "variance": walk.variance[at], "square": square}


def claims(result: Result) -> list[Claim]:
    """Networks are independent; the depths of a law share theirs."""
    cfg, values, every = result.config, result.records["theory"].values, laws(result.config)
    rows, depths = merged(result.records["networks"].values["length"]), np.asarray(cfg.depth)
    later = depths > 1
    few = cfg.seeds * cfg.nets < 4000 or not np.any(depths == 2) or depths.max() < 4
    few = "needs some 4000 networks and depths from 2 to 4 or more" if few else ""
    out = [kernel_claim(result, rows, few)]
    for i, name in enumerate(every):
        names = f"{name}: variance of log G at every L", f"{name}: mean of log G at every L"
        other = list(every).index("Gaussian" if i else "orthogonal")
        if isinstance(every[name], stax.Sparse):
            continue
        if few:
            out += [Claim.not_applicable(one, "derived here", few) for one in names]
            continue
        logs = np.log(np.where(rows[i] > 0, rows[i], np.nan))
        for one, z, key in ((names[0], variance_z, "variance"), (names[1], mean_z, "mean")):
            theory, wrong = values[key][0, i], values[key][0, other]
            rivals = {f"as {list(every)[other]}": z(logs, wrong)[later], "infinite width": z(logs, 0 * theory)}
            out.append(Claim.cells(one, "derived here", z(logs, theory), rivals=rivals))
    return [*out, *square_claims(result, rows, few)]


def kernel_claim(result: Result, rows: np.ndarray, few: str) -> Claim:
    """``E G_L = G_0`` for every law to L = 4; beyond, the mean lives in a tail that few networks show."""
    cfg, name = result.config, "every law has the Gaussian kernel: E G to L = 4"
    if few:
        return Claim.not_applicable(name, "the same Gaussian process", few)
    right, depths = np.asarray(cfg.depth) <= 4, np.asarray(cfg.depth)
    unscaled = (max(cfg.rank) / cfg.width) ** (depths - 1.0)
    rivals = {"low rank without the factor n/r": mean_z(rows, unscaled + 0 * rows[..., 0])[2:3, right]}
    return Claim.cells(name, "the same Gaussian process", mean_z(rows, 1 + 0 * rows[..., 0])[:, right], rivals=rivals)


def square_claims(result: Result, rows: np.ndarray, few: str) -> list[Claim]:
    """Raw second moments where their tails are drawn: orthogonal to L = 4, low rank and sparse at L = 2."""
    cfg, every, out = result.config, laws(result.config), []
    exact, depths = result.records["theory"].values["square"][0], np.asarray(cfg.depth)
    for name, most in (("orthogonal", 4), *((law, 2) for law in list(every)[2:])):
        title, i = f"{name}: E G^2 / (E G)^2 to L = {most}", list(every).index(name)
        if few:
            out.append(Claim.not_applicable(title, "derived here", few))
            continue
        right, square = (depths <= most) & (depths > 1), rows[i] ** 2
        rivals = {
            "as Gaussian": mean_z(square, exact[0])[right],
            "infinite width": mean_z(square, 1 + 0 * exact[0])[right],
        }
        out.append(Claim.cells(title, "derived here", mean_z(square, exact[i])[right], rivals=rivals))
    return out


def figure(result: Result):
    """Mean and variance of log G by depth; the raw second moment."""
    cfg, every, values = result.config, laws(result.config), result.records["theory"].values
    rows, depths = merged(result.records["networks"].values["length"]), np.asarray(cfg.depth)
    fig, (left, middle, right) = new_figure(1, 3, width=3.7, height=3.6)
    logs = np.log(np.where(rows > 0, rows, np.nan))
    panels = (left, "mean", mean, logs), (middle, "variance", variance, logs), (right, "square", mean, rows**2)
    for axes, key, statistic, data in panels:
        found, error = statistic(data)
        for i, name in enumerate(every):
            style = {"color": colour(i, len(every)), "mfc": "none", "ms": 5.5, "fmt": "os^DvP*"[i % 7]}
            axes.errorbar(depths, found[i], error[i], label=name, **style)
            axes.plot(depths, values[key][0, i], "-", color=style["color"], lw=1)
        axes.axhline(float(key == "square"), label="infinite width", **rival_style(0))
        axes.set(xscale="log", xlabel="depth L")
        ticks_at(axes.xaxis, cfg.depth)
    left.set_ylabel(f"mean of log G, n = {cfg.width}; lines: exact")
    middle.set_ylabel("variance of log G")
    right.set(ylabel="E G^2 / (E G)^2 (sample)", yscale="log")
    left.legend(fontsize=7)
    return fig


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
