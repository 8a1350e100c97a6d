"""Depth over width: fluctuations of a random network grow with L/n, at a rate that activation and weights decide.

The length ``G_L`` of one input after L layers of width n is random. For ReLU its logarithm is a random walk of
variance 5L/n (Gaussian weights), 3L/n (orthogonal), ``(3 + 2n/r) L/n`` (rank r), exactly known at every n and L;
critical tanh has 2/3 (L/n). A residual network with branches scaled by ``1/sqrt(L)`` has 2.675/n: width alone, no L.

Run time: about 30 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import config
from dynamics.config import Count, Positive
from dynamics.evolve import study as in_memory
from dynamics.runs.figures import MARKERS, colour, new_figure, rival_style, ticks_at
from dynamics.stax import Haar, LowRank
from dynamics.theory.finite_width import finite_width, relu_log_law
from dynamics.types import Claim, Record

from ._draws import drawn, lengths, mean_z, merged, variance, variance_z
from ._residual import log_variance, residual

SOURCE = "Roberts, Yaida & Hanin 2022, 'The Principles of Deep Learning Theory'; Hanin & Nica 2020"
SECONDS = 30


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Count] = 8
    """independent blocks of networks"""
    nets: Annotated[int, Count] = 500
    """networks of a block"""
    width: Annotated[tuple[int, ...], Count] = (16, 32, 64)
    """widths n, multiples of 16"""
    ratio: Annotated[tuple[float, ...], Positive] = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
    """depths over width L/n, multiples of 1/16"""
    residual_depth: Annotated[tuple[int, ...], Count] = (8, 32, 128)
    """depths of the residual network"""

    @classmethod
    def large(cls) -> Config:
        """Wider, deeper, more networks; three minutes of a core."""
        return cls(seeds=32, width=(16, 32, 64, 128, 256), ratio=(1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0, 2.0))

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(all(n % 16 == 0 for n in self.width), "width", "multiples of 16")
        self.require(all(16 * r % 1 == 0 for r in self.ratio), "ratio", "multiples of 1/16")


class Result(NamedTuple):
    """``records``: lengths, ``log_length [1, law, width, seed, nets, ratio]``, and its theory, ``mean, variance [1,
    law, width, ratio]``; residual, ``log_length [1, width, residual_depth, seed, nets]``, and its theory."""

    config: Config
    records: dict[str, Record]


def laws(width: int) -> dict[str, tuple]:
    """``(phi, W_std^2, law of weights)``."""
    return {
        "ReLU": (jax.nn.relu, 2.0, None),
        "ReLU, orthogonal": (jax.nn.relu, 2.0, Haar()),
        "ReLU, rank n/4": (jax.nn.relu, 2.0, LowRank(width // 4)),
        "tanh": (jnp.tanh, 1.0, None),
    }


LAWS = tuple(laws(16))


def run(config: Config, study=in_memory) -> Result:
    """Every ensemble by width, read at each depth; the residual network by width and depth."""
    key, ratios = jax.random.key(config.seed), np.asarray(config.ratio)

    def depths(width):
        return np.round(ratios * width).astype(int)

    def draw(lane):
        at, (phi, c, weights) = depths(lane.width), laws(lane.width)[lane.law]
        stream = jax.random.fold_in(key, 1000 * lane.seed + LAWS.index(lane.law))
        found = lengths(jax.random.fold_in(stream, lane.width), lane.width, int(at.max()), config.nets, phi, c, weights)
        return {"log_length": jnp.log(found[:, at - 1])}

    axes = {"law": LAWS, "width": config.width}
    records = {"lengths": drawn(study, axes | {"seed": range(config.seeds)}, draw, "lengths")}
    exact = [[theory(law, n, depths(n)) for n in config.width] for law in LAWS]
    mean_, variance_ = np.moveaxis(np.array(exact), 2, 0)[:, None]
    records["lengths theory"] = records["lengths"]._replace(values={"mean": mean_, "variance": variance_}, axes=axes)

    def draw_residual(lane):
        stream = jax.random.fold_in(jax.random.fold_in(key, 77 + lane.seed), 1000 * lane.width + lane.residual_depth)
        found = residual(stream, lane.width, lane.residual_depth, config.nets)
        return {"log_length": jnp.log(found[:, 0])}

    axes = {"width": config.width, "residual_depth": config.residual_depth}
    records["residual"] = drawn(study, axes | {"seed": range(config.seeds)}, draw_residual, "residual")
    flat = np.array([[[log_variance(L) / n for L in config.residual_depth] for n in config.width]])
    records["residual theory"] = records["residual"]._replace(values={"variance": flat}, axes=axes)
    return Result(config, records)


def theory(law: str, n: int, depths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of ``log G_L``; of tanh, to first order in 1/n: ``log K`` and ``Var G / K^2``."""
    phi, c, weights = laws(n)[law]
    if law == "tanh":
        with jax.enable_x64(True):
            found = finite_width(phi, np.full(int(depths.max()), float(n)), c**0.5)
        return np.log(np.asarray(found.K))[depths], np.asarray(found.relative)[depths]
    walk = relu_log_law(n, int(depths.max()), weights)
    return walk.mean[depths], walk.variance[depths]


def claims(result: Result) -> list[Claim]:
    """Networks are independent; the depths of a width share theirs."""
    return [*walk_claims(result), tanh_claim(result), *residual_claims(result)]


FEW = "needs some 2000 networks, and widths from 16 to 32 or more"


def few(result: Result) -> bool:
    cfg = result.config
    return cfg.seeds * cfg.nets < 2000 or max(cfg.width) < 32


def walk_claims(result: Result) -> list[Claim]:
    """Log mean and variance of each ReLU law at every (n, L), in standard errors."""
    cfg, out = result.config, []
    rows, exact = merged(result.records["lengths"].values["log_length"]), result.records["lengths theory"].values
    over_n = np.broadcast_to(cfg.ratio, exact["variance"][0, 0].shape)
    leading = {"ReLU": 5.0, "ReLU, orthogonal": 3.0, "ReLU, rank n/4": 11.0}
    for i, law in enumerate(LAWS[:3]):
        names = f"{law}: variance of log length, every n and L", f"{law}: mean of log length, every n and L"
        if few(result):
            out += [Claim.not_applicable(name, "Hanin & Nica 2020", FEW) for name in names]
            continue
        other = LAWS[(i + 1) % 3]
        wrong = exact["variance"][0, (i + 1) % 3], exact["mean"][0, (i + 1) % 3]
        for name, z, now, against in (
            (names[0], variance_z, "variance", {"leading order": leading[law] * over_n, "infinite width": 0 * over_n}),
            (names[1], mean_z, "mean", {"half the variance": -exact["variance"][0, i] / 2, "no drift": 0 * over_n}),
        ):
            against = against | {f"law of {other}": wrong[now == "mean"], "critical tanh": 2 / 3 * over_n}
            against.pop("critical tanh" if now == "mean" else "", None)
            rivals = {key: z(rows[i], value) for key, value in against.items()}
            out.append(Claim.cells(name, "Hanin & Nica 2020", z(rows[i], exact[now][0, i]), rivals=rivals))
    return out


def tanh_claim(result: Result) -> Claim:
    """First order in 1/n: allowed ``(L/n)^2`` of the theory, for n >= 32 and L/n <= 1/4."""
    cfg, name = result.config, "tanh: Var G / K^2, n >= 32, L <= n/4"
    at = np.ix_(np.asarray(cfg.width) >= 32, np.asarray(cfg.ratio) <= 0.25)
    if few(result) or not np.any(np.asarray(cfg.ratio) <= 0.25):
        return Claim.not_applicable(name, "chapter 5", FEW)
    mean_, expected = (result.records["lengths theory"].values[key][0, 3] for key in ("mean", "variance"))
    share = np.exp(merged(result.records["lengths"].values["log_length"])[3] - mean_[..., None])[at]
    over_n = np.broadcast_to(cfg.ratio, expected.shape)[at]
    allowed = over_n**2 * expected[at]
    rivals = {"ReLU's 5 L/n": 5 * over_n, "infinite width": 0 * over_n}
    rivals = {key: variance_z(share, value, allowed) for key, value in rivals.items()}
    return Claim.cells(name, "chapter 5", variance_z(share, expected[at], allowed), rivals=rivals)


def residual_claims(result: Result) -> list[Claim]:
    """Its variance is of order 1/n at every depth; allowed 2/n of the theory, the next order."""
    cfg = result.config
    names = "residual: variance of log length, every n and L", "residual: deepest over shallowest variance, widest"
    if few(result) or len(cfg.residual_depth) < 2:
        return [Claim.not_applicable(name, "derived here", FEW) for name in names]
    rows = merged(result.records["residual"].values["log_length"][..., None])[..., 0, :]
    expected = result.records["residual theory"].values["variance"][0]
    n, L = np.asarray(cfg.width)[:, None], np.asarray(cfg.residual_depth)
    wrong = {"increments alone, 2/n": 2 / n + 0 * L, "plain network, 5 L/n": 5 * L / n, "infinite width": 0.0 * L / n}
    rivals = {key: variance_z(rows, value, 2 / n * expected) for key, value in wrong.items()}
    z = variance_z(rows, expected, 2 / n * expected)
    blocks = np.asarray(result.records["residual"].values["log_length"], float)[0, -1].var(-1)  # [L, seeds]
    plain = np.asarray(result.records["lengths"].values["log_length"], float)[0, 0, -1].var(-2)  # [seeds, ratio]
    ratio, control = np.log(blocks[-1] / blocks[0]), np.log(plain[:, -1] / plain[:, 0])
    limit = np.log(expected[-1, -1] / expected[-1, 0])
    note = f"logarithm; L = {L[0]} to {L[-1]}; the plain network's, L/n = {cfg.ratio[0]:g} to {cfg.ratio[-1]:g}"
    return [
        Claim.cells(names[0], "derived here", z, rivals=rivals),
        Claim.close(names[1], "derived here", ratio, limit, 0.1, rivals={"plain network": control}, note=note),
    ]


def figure(result: Result):
    """Variance of log length against L/n over the exact laws; n times that of the residual network against L."""
    cfg = result.config
    fig, (walk, flat) = new_figure(1, 2, width=4.6, height=3.8)
    found, error = variance(merged(result.records["lengths"].values["log_length"]))
    exact = result.records["lengths theory"].values["variance"][0]
    slopes, marks = (5.0, 3.0, 11.0, 2 / 3), [MARKERS[j % len(MARKERS)] for j in range(len(cfg.width))]
    for i, law in enumerate(LAWS):
        tint = colour(i, len(LAWS) + 1)
        for j, marker in enumerate(marks):
            label = law if j == len(cfg.width) // 2 else None
            walk.errorbar(cfg.ratio, found[i, j], error[i, j], fmt=marker, ms=4.5, mfc="none", color=tint, label=label)
            walk.plot(cfg.ratio, exact[i, j], "-", color=tint, lw=0.8)
        leading = None if i else "5, 3, 11, 2/3 times L/n"
        walk.plot(cfg.ratio, slopes[i] * np.asarray(cfg.ratio), label=leading, **rival_style(2))
    walk.set(xscale="log", yscale="log", xlabel="depth over width L/n", ylabel="variance of log length; lines: theory")
    ticks_at(walk.xaxis, cfg.ratio)
    walk.legend(fontsize=7.5)
    shown = ", ".join(f"{mark} {n}" for n, mark in zip(cfg.width, ("circles", "squares", "triangles")))
    walk.set_title(f"plain networks; n: {shown}", fontsize=8)
    rows = merged(result.records["residual"].values["log_length"][..., None])[..., 0, :]
    found, error = variance(rows)
    depths = np.asarray(cfg.residual_depth)
    for j, (n, marker) in enumerate(zip(cfg.width, marks)):
        style = {"fmt": marker, "ms": 5, "mfc": "none", "color": colour(j, len(cfg.width) + 1)}
        flat.errorbar(depths, n * found[j], n * error[j], label=f"residual, n = {n}", **style)
    grid = np.unique(np.geomspace(min(depths), max(depths), 40).round().astype(int))
    flat.plot(grid, [log_variance(L) for L in grid.tolist()], "k-", label="theory, to 2.675")
    flat.plot(grid, 0 * grid + 2.0, label="increments alone", **rival_style(0))
    flat.plot(grid, 5.0 * grid, label="plain ReLU, 5 L", **rival_style(1))
    flat.set(xscale="log", yscale="log", ylim=(1, 1000), xlabel="depth L", ylabel="n x variance of log length")
    ticks_at(flat.xaxis, cfg.residual_depth)
    flat.set_title("residual network: no L", fontsize=8)
    flat.legend(fontsize=7.5)
    return fig


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
