"""Random features of bounded weights do not approximate: the range of the weights decides, not their number.

Features ``tanh(w x + b)`` with w and b uniform in [-lambda, lambda], least squares on ``sin(8 pi x)``, |x| <= 1. At
lambda = 1 the features span a dozen directions to the cut of 1e-8, and eight times as many gain nothing; at lambda =
10 they gain five orders of magnitude. The floor here is that of the numerical rank, a stand-in for the paper's bound:
with weights in a band a fast target needs coefficients that no precision carries.

Run time: about 40 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
from functools import lru_cache, partial
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import config
from dynamics.config import Count, Positive, Range
from dynamics.evolve import study as in_memory
from dynamics.runs.figures import colour, new_figure, rival_style, ticks_at
from dynamics.types import Claim, Record

from ._draws import drawn

SOURCE = (
    "Li, Sonoda, Cao, Wang & Liang 2023, 'How powerful are shallow neural networks with bandlimited random weights?'"
)
SECONDS = 40


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Count] = 10
    """draws of the features"""
    features: Annotated[tuple[int, ...], Count] = (50, 100, 400)
    """numbers of features n"""
    band: Annotated[tuple[float, ...], Positive] = (1.0, 3.0, 10.0, 30.0)
    """bounds lambda of weights and biases"""
    frequency: Annotated[tuple[float, ...], Positive] = (2.0, 8.0)
    """targets sin(frequency pi x)"""
    points: Annotated[int, Range(16)] = 500
    """points on [-1, 1]"""
    cut: Annotated[float, Range(1e-14, 1e-2)] = 1e-8
    """singular values below this share of the largest do not count"""

    @classmethod
    def large(cls) -> Config:
        """More draws and features; 22 minutes of a core."""
        return cls(seeds=100, features=(50, 100, 200, 400, 800), points=3000)


class Result(NamedTuple):
    """``records``: fits, ``error [1, band, features, seed, frequency]`` (root mean square over that of the target),
    ``rank [1, band, features, seed]``."""

    config: Config
    records: dict[str, Record]


def run(config: Config, study=in_memory) -> Result:
    """Least squares for every band and number, in double precision."""
    with jax.enable_x64(True):
        key, frequency = jax.random.key(config.seed), jnp.asarray(config.frequency)

        def draw(lane):
            found = fit(
                jax.random.fold_in(key, lane.seed), lane.band, frequency, lane.features, config.points, config.cut
            )
            return dict(zip(("error", "rank"), found, strict=True))

        axes = {"band": config.band, "features": config.features, "seed": range(config.seeds)}
        return Result(config, {"fits": drawn(study, axes, draw, "fits")})


@partial(jax.jit, static_argnames=("n", "points"))
def fit(key, band, frequency, n, points, cut):
    """``error [frequency]`` of the truncated least squares, and the rank that the cut leaves."""
    x = jnp.linspace(-1, 1, points)[:, None]
    w, b = band * jax.random.uniform(key, (2, n), minval=-1.0)
    y = jnp.sin(jnp.pi * x * frequency)
    u, s, _ = jnp.linalg.svd(jnp.tanh(x * w + b), full_matrices=False)
    u = jnp.where(s > cut * s[0], u, 0.0)
    left = y - u @ (u.T @ y)
    return jnp.sqrt(jnp.mean(left**2, 0) / jnp.mean(y**2, 0)), jnp.sum(s > cut * s[0]).astype(float)


@lru_cache
def operator_rank(band: float, cut: float, nodes: int = 30) -> int:
    """The rank that the cut leaves of infinitely many features: an integral over w and b (Gauss-Legendre)."""
    x, (at, p) = np.linspace(-1, 1, 300)[:, None], np.polynomial.legendre.leggauss(nodes)
    w, b = (band * axis.ravel() for axis in np.meshgrid(at, at))
    s = np.linalg.svd(np.tanh(x * w + b) * np.sqrt(np.outer(p, p).ravel()), compute_uv=False)
    return int(np.sum(s > cut * s[0]))


def claims(result: Result) -> list[Claim]:
    """Draws of features are independent; logarithms of errors."""
    cfg, source = result.config, "lower bound of the error"
    names = (
        "lambda = 1: log error, most features over fewest",
        "lambda = 10: the same",
        "lambda = 1: rank that the cut leaves, most over fewest features",
        "lambda = 1: log error, slow target over fast",
        "lambda = 1: log rank over that of infinitely many features, every number",
    )
    if not {1.0, 10.0} <= set(cfg.band) or max(cfg.features) < 8 * min(cfg.features) or len(cfg.frequency) < 2:
        note = "needs lambda = 1 and 10, eight times as many features, two targets"
        return [Claim.not_applicable(name, source, note) for name in names]
    values = {key: np.asarray(value, float)[0] for key, value in result.records["fits"].values.items()}
    error, one, ten = np.log(values["error"]), cfg.band.index(1.0), cfg.band.index(10.0)
    fast, slow = error[..., -1], error[..., 0]  # [band, features, seed]
    gain, wide = fast[one, -1] - fast[one, 0], fast[ten, -1] - fast[ten, 0]
    rank = values["rank"][one]
    exact, others = operator_rank(1.0, cfg.cut), {"lambda = 10": np.log(rank / operator_rank(10.0, cfg.cut))}
    others["as many as features"] = np.log(rank / np.asarray(cfg.features)[:, None])
    others = {key: value[-1] for key, value in others.items()}
    ranks = {"as many as features": np.log(max(cfg.features) / min(cfg.features))}
    return [
        Claim.close(names[0], source, gain, 0, 0.05, rivals={"lambda = 10": wide, "1/sqrt n": -0.5 * np.log(8)}),
        Claim.at_most(names[1], source, wide, -6.9, rivals={"lambda = 1": gain, "1/sqrt n": -0.5 * np.log(8)}),
        Claim.close(names[2], "numerical", np.log(rank[-1] / rank[0]), 0, 0.25, rivals=ranks, note=f"{rank.mean(1)}"),
        Claim.at_most(
            names[3], "the band against the target's frequency", slow[one, -1] - fast[one, -1], -3.0,
            rivals={"no frequency": 0.0},
        ),
        Claim.close(
            names[4], "numerical", np.log(rank / exact).mean(0), 0, 0.08, rivals=others, note=f"the operator's: {exact}"
        ),
    ]  # fmt: skip


def figure(result: Result):
    """Error against the number of features by band, for each target; rank."""
    cfg = result.config
    values = {key: np.asarray(value, float)[0] for key, value in result.records["fits"].values.items()}
    fig, panels = new_figure(1, 1 + len(cfg.frequency), width=3.7, height=3.5)
    for i, band in enumerate(cfg.band):
        style = {"fmt": "os^Dv"[i % 5] + "-", "mfc": "none", "color": colour(i, len(cfg.band)), "lw": 1, "ms": 5}
        for j, axes in enumerate(panels[:-1]):
            logs = np.log(values["error"][i, ..., j])
            low, high = (np.exp(np.quantile(logs, q, axis=-1)) for q in (0.1, 0.9))
            middle = np.exp(np.median(logs, -1))
            bars = np.maximum([middle - low, high - middle], 0)
            axes.errorbar(cfg.features, middle, bars, label=f"lambda = {band:g}", **style)
        panels[-1].plot(cfg.features, values["rank"][i].mean(-1), style.pop("fmt"), **style)
    for j, axes in enumerate(panels[:-1]):
        line = np.asarray(cfg.features, float)
        axes.plot(line, np.sqrt(line[0] / line), label="1/sqrt n", **rival_style(0))
        axes.set(yscale="log", ylabel=f"error on sin({cfg.frequency[j]:g} pi x): median, 10 to 90 %")
    panels[-1].plot(cfg.features, cfg.features, **rival_style(0))
    panels[-1].set(yscale="log", ylabel=f"rank at the cut {cfg.cut:g}")
    for axes in panels:
        axes.set(xscale="log", xlabel="features n")
        ticks_at(axes.xaxis, cfg.features)
    panels[0].legend(fontsize=7.5)
    return fig


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
