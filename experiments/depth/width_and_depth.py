"""Width and depth commute in residual networks scaled by 1/sqrt(L), and in no plain network.

``Y += W relu(Y) / sqrt(L)``, ``W ~ N(0, 1/n)``. The covariance of two inputs tends to the ODE ``q' = q/2, p' = (q/2)
f(p/q)`` (f the arc-cosine map) in whatever order n and L grow: its error is ``O(1/sqrt n)`` at every depth, and ``E q
= (1 + 1/(2L))^L`` at every width. ``n Var log q`` comes to 2.675, of which 2 are the layers' own increments and the
rest their memory of which units are positive. A plain network's error grows as ``sqrt(5 L/n)``.

Run time: about 30 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import config
from dynamics.config import Count, Range
from dynamics.evolve import study as in_memory
from dynamics.runs.figures import colour, new_figure, rival_style, theory_style, ticks_at
from dynamics.types import Claim, Record

from ._draws import drawn, lengths, mean_z, merged, variance, variance_z
from ._residual import expected_length, log_variance, product, product_at, residual

SOURCE = "Hayou & Yang 2023, 'Width and depth limits commute in residual networks'"
SECONDS = 30


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Count] = 10
    """independent blocks of networks"""
    nets: Annotated[int, Count] = 80
    """networks of a block, each with a pair of inputs"""
    width: Annotated[tuple[int, ...], Count] = (16, 64, 256)
    """widths n"""
    depth: Annotated[tuple[int, ...], Count] = (4, 32, 256)
    """depths L"""
    correlation: Annotated[float, Range(-0.9, 0.9)] = 0.2
    """correlation of the two inputs"""

    @classmethod
    def large(cls) -> Config:
        """More and larger networks; two minutes of a core."""
        return cls(seeds=20, nets=200, width=(16, 64, 256, 1024), depth=(4, 32, 256, 512))


class Result(NamedTuple):
    """``records``: residual, ``gram [1, width, depth, seed, nets, 3]`` (``q_1, q_2, p``); plain, ``log_length [1,
    width, depth, seed, nets, 1]``; theory, ``q, p [1, depth]``, ``log_variance`` (times n)."""

    config: Config
    records: dict[str, Record]


def run(config: Config, study=in_memory) -> Result:
    """Residual and plain networks at every width and depth."""
    key = jax.random.key(config.seed)

    def stream(lane, which):
        at = jax.random.fold_in(jax.random.fold_in(key, lane.seed), 2 * lane.width + which)
        return jax.random.fold_in(at, lane.depth)

    def branches(lane):
        return {"gram": residual(stream(lane, 0), lane.width, lane.depth, config.nets, config.correlation)}

    def plain(lane):
        found = lengths(stream(lane, 1), lane.width, lane.depth, config.nets)
        return {"log_length": jnp.log(found[:, -1:])}

    axes = {"width": config.width, "depth": config.depth, "seed": range(config.seeds)}
    records = {"residual": drawn(study, axes, branches, "residual"), "plain": drawn(study, axes, plain, "plain")}
    values = {
        "q": expected_length(config.depth),
        "p": np.array([product_at(config.correlation, L) for L in config.depth]),
        "log_variance": np.array([log_variance(L) for L in config.depth]),
    }
    once = np.zeros(1, int)
    records["theory"] = Record(once, once, {k: v[None] for k, v in values.items()}, {"depth": config.depth})
    return Result(config, records)


def root_mean_square(result: Result) -> tuple[np.ndarray, np.ndarray]:
    """``sqrt(n)`` times the residual RMS of p - theory and the plain std of log length, ``[width, depth, seed]``."""
    n = np.sqrt(np.asarray(result.config.width))[:, None, None]
    gram = np.asarray(result.records["residual"].values["gram"], float)[0, ..., 2]
    off = gram - result.records["theory"].values["p"][0][None, :, None, None]
    plain = np.asarray(result.records["plain"].values["log_length"], float)[0, ..., 0]
    plain = np.where(np.isfinite(plain), plain, np.nan)
    return n * np.sqrt((off**2).mean(-1)), n * np.nanstd(plain, -1)


def claims(result: Result) -> list[Claim]:
    """Networks are independent; statistics of spread are given by block."""
    cfg = result.config
    names = (
        "E q against (1 + 1/(2L))^L, every width and depth",
        "log ratio of the error of p, deepest over middle depth, all widths",
        "power of n in the error of p, deepest",
        "n Var log q against theory, n >= 64",
        "p(1) of the ODE against 1024 layers",
    )
    if cfg.seeds * cfg.nets < 400 or len(cfg.width) < 3 or len(cfg.depth) < 3:
        return [
            Claim.not_applicable(name, "the limits commute", "needs 400 networks, three widths and depths")
            for name in names
        ]
    gram = merged(result.records["residual"].values["gram"])  # [width, depth, 3, nets]
    theory = {name: value[0] for name, value in result.records["theory"].values.items()}
    spread, plain = root_mean_square(result)
    n = np.asarray(cfg.width, float)[:, None]
    q, shape = gram[:, :, 0], np.ones((len(cfg.width), 1))
    wrong = {"e^(1/2) at every depth": np.exp(0.5), "1: lengths are kept": 1.0, "e": np.e}
    rivals = {key: mean_z(q, value * shape * np.ones(len(cfg.depth))) for key, value in wrong.items()}
    flat, grows = (np.log(rows[:, -1] / rows[:, -2]).mean(0) for rows in (spread, plain))
    power, slope = np.log(np.asarray(cfg.width, float)), spread[:, -1] / np.sqrt(n)
    power = np.polyfit(power, np.log(slope), 1)[0]
    wide = (n >= 64) & np.ones(len(cfg.depth), bool)
    expected, allowed = theory["log_variance"] / n, 2 / n**2 * theory["log_variance"]

    def against(value):
        return variance_z(np.log(q), value, allowed)[wide]

    depths = np.asarray(cfg.depth)
    rivals_of_log = {"plain network, 5 L/n": against(5 * depths / n), "infinite width": against(0 * depths / n)}
    limit = product(cfg.correlation)
    return [
        Claim.cells(names[0], "the limits commute", mean_z(q, theory["q"] * shape), rivals=rivals),
        Claim.close(names[1], "the limits commute", flat, 0, float(np.log(1.15)), rivals={"plain network": grows}),
        Claim.close(names[2], "the limits commute", power, -0.5, 0.05, rivals={"1/n": power - 0.5, "no n": 0 * power}),
        Claim.cells(names[3], "derived here", against(expected), rivals=rivals_of_log),
        Claim.close(
            names[4],
            "identity: the map's limit is the ODE, to O(1/L)",
            product_at(cfg.correlation, 1024),
            limit,
            1e-3,
            rivals={"p keeps the correlation": cfg.correlation * np.exp(0.5)},
        ),
    ]


def figure(result: Result):
    """Error of p times sqrt(n) against depth beside the plain network's; p; n Var log q."""
    cfg, (spread, plain) = result.config, root_mean_square(result)
    fig, (left, middle, right) = new_figure(1, 3, width=3.7, height=3.6)
    depths = np.asarray(cfg.depth)
    gram = merged(result.records["residual"].values["gram"])
    v, dv = variance(np.log(gram[:, :, 0]))
    for i, n in enumerate(cfg.width):
        style = {"color": colour(i, len(cfg.width) + 1), "mfc": "none", "ms": 5.5, "label": f"n = {n}"}
        error = spread[i].std(-1, ddof=1) / cfg.seeds**0.5
        left.errorbar(depths, spread[i].mean(-1), error, fmt="os^Dv"[i % 5], **style)
        left.plot(depths, plain[i].mean(-1), "x", color=style["color"])
        mean, error = gram[i, :, 2].mean(-1), gram[i, :, 2].std(-1)
        middle.errorbar(depths * 1.12**i, mean, error, fmt="os^Dv"[i % 5], **style)
        right.errorbar(depths, n * v[i], n * dv[i], fmt="os^Dv"[i % 5], **style)
    grid = np.geomspace(min(depths), max(depths), 30).round().astype(int)
    left.plot(grid, np.sqrt(5 * grid), label="plain, sqrt(5 L) (crosses)", **rival_style(0))
    left.set(ylabel="sqrt(n) x RMS error of p", yscale="log", ylim=(0.5, 200))
    each_depth = [product_at(cfg.correlation, L) for L in grid.tolist()]
    middle.plot(grid, each_depth, label="map of L layers", **theory_style())
    middle.axhline(product(cfg.correlation), label="ODE", **rival_style(1))
    middle.set(ylabel="p: mean and spread over networks", ylim=(-0.1, 1.5))
    right.plot(grid, [log_variance(L) for L in grid.tolist()], label="theory", **theory_style())
    right.axhline(2, label="increments alone", **rival_style(0))
    right.set(ylabel="n Var log q", ylim=(0, 4))
    for axes in (left, middle, right):
        axes.set(xscale="log", xlabel="depth L")
        ticks_at(axes.xaxis, cfg.depth)
        axes.legend(fontsize=7)
    return fig


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
