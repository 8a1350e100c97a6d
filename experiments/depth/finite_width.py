"""Finite width to first order in 1/n, and beyond it for ReLU: variance and shift of a random network's length.

The conditional variance ``G_l`` of a layer's preactivations has variance ``V_l / n`` and mean ``K_l + G1_l / n``; V
and G1 follow from the infinite-width map K alone. There are two classes: ``V / K^2 -> 2 l / 3`` for odd smooth
activations at criticality, ``(6 (1 + a^4)/(1 + a^2)^2 - 1) l`` for leaky ReLU of slope a (5 l for ReLU). For ReLU all
of log G is known, so that one sees where first order ends: at L/n of a quarter.

Run time: about 15 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import config, stax
from dynamics.config import Count, Range
from dynamics.evolve import study as in_memory
from dynamics.runs.figures import measured_style, new_figure, rival_style, theory_style
from dynamics.theory.finite_width import finite_width, relu_log_law, relu_second_moment
from dynamics.types import Claim, Record

from ._draws import drawn, lengths, mean, mean_z, merged, variance, variance_z

SOURCE = "Roberts, Yaida & Hanin 2022, 'The Principles of Deep Learning Theory'"
SECONDS = 15


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Count] = 8
    """independent blocks of networks"""
    nets: Annotated[int, Count] = 2000
    """networks of a block"""
    width: Annotated[tuple[int, ...], Count] = (32, 64)
    """widths n"""
    depth: Annotated[tuple[int, ...], Count] = (2, 4, 8)
    """depths at which tanh is read"""
    relu_depth: Annotated[tuple[int, ...], Count] = (2, 4, 8, 32, 64)
    """depths at which ReLU is read"""
    solver_depth: Annotated[int, Range(8)] = 4000
    """layers of the infinite-width map"""

    @classmethod
    def large(cls) -> Config:
        """More networks, wider; half a minute of a core."""
        return cls(seeds=32, width=(32, 64, 128, 256), depth=(2, 4, 8, 16))


class Result(NamedTuple):
    """``records``: tanh, ReLU, ``length [1, width, seed, nets, depth]``; tanh theory, ``K, V, G1 [1, depth]``; ReLU
    theory, ``mean, variance, square [1, width, depth]``; slopes, ``V [T, activation]`` over ``K^2``."""

    config: Config
    records: dict[str, Record]


LEAK = 0.5
CLASSES = {
    "tanh": (jnp.tanh, 1.0, 2 / 3),
    "sin": (stax.Sin(), 1.0, 2 / 3),
    "erf": (stax.Erf(), np.pi / 4, 2 / 3),
    "ReLU": (stax.Relu(), 2.0, 5.0),
    "leaky ReLU": (stax.LeakyRelu(LEAK), 2 / (1 + LEAK**2), 6 * (1 + LEAK**4) / (1 + LEAK**2) ** 2 - 1),
}
"""By name: the activation, ``W_std^2`` at criticality, the limit of ``V / (K^2 l)``."""


def run(config: Config, study=in_memory) -> Result:
    """Ensembles of tanh and ReLU; their theory; V of five activations."""
    key, records = jax.random.key(config.seed), {}
    for name, phi, c, depths in (("tanh", jnp.tanh, 1.0, config.depth), ("ReLU", jax.nn.relu, 2.0, config.relu_depth)):
        at = np.asarray(depths) - 1

        def draw(lane, name=name, phi=phi, c=c, at=at):
            stream = jax.random.fold_in(jax.random.fold_in(key, len(name)), 1000 * lane.seed + lane.width)
            return {"length": lengths(stream, lane.width, int(at.max()) + 1, config.nets, phi, c)[:, at]}

        records[name] = drawn(study, {"width": config.width, "seed": range(config.seeds)}, draw, name)
    once = np.zeros(1, int)
    records["tanh theory"] = Record(once, once, first_order(config.depth), {})
    walks = [relu_theory(n, config.relu_depth) for n in config.width]
    values = {name: np.stack([walk[name] for walk in walks])[None] for name in walks[0]}
    records["ReLU theory"] = Record(once, once, values, {"width": config.width})
    with jax.enable_x64(True):
        paths = [finite_width(phi, np.ones(config.solver_depth), c**0.5).relative for phi, c, _ in CLASSES.values()]
        steps = np.arange(config.solver_depth + 1)
        records["slopes"] = Record(steps, steps, {"V": np.stack(paths, 1)}, {"activation": tuple(CLASSES)})
    return Result(config, records)


def first_order(depths) -> dict[str, np.ndarray]:
    """K, V and G^1 of critical tanh at each depth, ``[1, depths]``."""
    with jax.enable_x64(True):
        found = finite_width(jnp.tanh, np.ones(max(depths)))
        return {name: np.asarray(value)[None, list(depths)] for name, value in zip(("K", "V", "G1"), found)}


def relu_theory(width: int, depths) -> dict[str, np.ndarray]:
    """Log mean, log variance, ``E G^2 / (E G)^2`` at each depth."""
    at, walk = list(depths), relu_log_law(width, max(depths))
    square = relu_second_moment(width, max(depths))
    return {"mean": walk.mean[at], "variance": walk.variance[at], "square": square[at]}


def claims(result: Result) -> list[Claim]:
    """Networks are independent; the depths of a width share theirs."""
    return [*tanh_claims(result), *relu_claims(result), *class_claims(result)]


FEW = "needs some 8000 networks, n >= 32 and L <= n/4"


def tanh_claims(result: Result) -> list[Claim]:
    """V and G^1 at n >= 32 and L <= n/4; the next order is allowed for, a share L/n of the theory (V: its square)."""
    cfg, n = result.config, np.asarray(result.config.width)[:, None]
    names = "tanh: n Var G / K^2 against V / K^2", "tanh: n (E G / K - 1) against G^1 / K"
    over_n, right = np.asarray(cfg.depth) / n, (n >= 32) & (np.asarray(cfg.depth) <= n / 4)
    if cfg.seeds * cfg.nets < 8000 or not right.any():
        return [Claim.not_applicable(name, "chapter 5", FEW) for name in names]
    K, V, G1 = (result.records["tanh theory"].values[name] for name in ("K", "V", "G1"))
    share = merged(result.records["tanh"].values["length"]) / K[0][:, None]
    relative, shift = V / K**2 / n, G1 / K / n
    wrong = {
        "ReLU's 5 L": 5 * over_n,
        "infinite width": 0 * over_n,
        "V without its memory": relative[:, :1] + 0 * over_n,
    }

    def against(theory):
        return variance_z(share, theory, over_n**2 * relative)[right]

    def shifted(theory):
        return mean_z(share - 1, theory, over_n * shift)[right]

    return [
        Claim.cells(names[0], "chapter 5", against(relative), rivals={key: against(v) for key, v in wrong.items()}),
        Claim.cells(
            names[1], "chapter 5", shifted(shift), rivals={"no shift": shifted(0 * shift), "up": shifted(-shift)}
        ),
    ]


def relu_claims(result: Result) -> list[Claim]:
    """Log mean and log variance at every L; the raw second moment, whose tail few networks show, to L/n = 1/4."""
    cfg, n = result.config, np.asarray(result.config.width)[:, None]
    over_n = np.asarray(cfg.relu_depth) / n
    names = (
        "ReLU: mean of log G, every n and L",
        "ReLU: variance of log G, every n and L",
        "ReLU: E G^2 / (E G)^2 = (1 + 5/n)^L to L/n = 1/4",
    )
    if cfg.seeds * cfg.nets < 8000 or not np.any(over_n <= 0.25) or not np.any(over_n >= 1):
        return [Claim.not_applicable(name, "Hanin & Nica 2020", FEW) for name in names]
    rows = merged(result.records["ReLU"].values["length"])
    logs = np.log(np.where(rows > 0, rows, np.nan))
    theory = {name: value[0] for name, value in result.records["ReLU theory"].values.items()}
    right, square = over_n <= 0.25, rows**2
    zero = 0 * over_n
    return [
        Claim.cells(
            names[0],
            "Hanin & Nica 2020",
            mean_z(logs, theory["mean"]),
            rivals={"first order": mean_z(logs, -2.5 * over_n), "infinite width": mean_z(logs, zero)},
        ),
        Claim.cells(
            names[1],
            "Hanin & Nica 2020",
            variance_z(logs, theory["variance"]),
            rivals={"first order": variance_z(logs, 5 * over_n), "tanh's class": variance_z(logs, 2 / 3 * over_n)},
        ),
        Claim.cells(
            names[2],
            "Hanin & Nica 2020",
            mean_z(square, theory["square"])[right],
            rivals={
                "infinite width": mean_z(square, zero + 1)[right],
                "tanh's class": mean_z(square, 1 + 2 / 3 * over_n)[right],
            },
        ),
    ]


def class_claims(result: Result) -> list[Claim]:
    """``V / (K^2 l)`` at the end of the map: the first class comes to 2/3 as log l / l, the second is there at once."""
    cfg = result.config
    names = "odd smooth activations: V / (K^2 l), worst of three", "ReLU and leaky ReLU: V / (K^2 l) over its value"
    if cfg.solver_depth < 2000:
        return [Claim.not_applicable(name, "chapter 5", "needs 2000 layers of the map") for name in names]
    slope = result.records["slopes"].values["V"][-1] / cfg.solver_depth
    limit = np.array([c for *_, c in CLASSES.values()])
    worst = slope[:3][np.argmax(np.abs(slope[:3] - 2 / 3))]
    ratio = slope[3:] / limit[3:]
    ratio = ratio[np.argmax(np.abs(ratio - 1))]
    one = {"one class: the other's 2/3": slope[3] / (2 / 3), "ReLU's 5 for both": slope[4] / 5}
    return [
        Claim.close(names[0], "chapter 5", worst, 2 / 3, 0.01, rivals={"one class: ReLU": slope[3]}),
        Claim.close(names[1], "chapter 5", ratio, 1, 0.001, rivals=one),
    ]


def figure(result: Result):
    """tanh: variance and shift times n; ReLU: relative variance and log variance against L/n."""
    cfg, records = result.config, result.records
    fig, (left, middle, right) = new_figure(1, 3, width=3.8, height=3.6)
    grid = np.arange(1, 2 * max(cfg.depth) + 1)
    smooth = first_order(grid)
    K, depths = records["tanh theory"].values["K"][0], np.asarray(cfg.depth)
    rows = merged(records["tanh"].values["length"]) / K[:, None]
    (v, dv), (m, dm) = variance(rows), mean(rows - 1)
    for i, n in enumerate(cfg.width):
        style = measured_style(i, len(cfg.width) + 1)
        left.errorbar(depths, n * v[i], n * dv[i], label=f"Var, n = {n}", **style)
        left.errorbar(depths, n * m[i], n * dm[i], **style | {"marker": "x^D*"[i % 4], "label": f"shift, n = {n}"})
    left.plot(grid, (smooth["V"] / smooth["K"] ** 2)[0], label="theory", **theory_style())
    left.plot(grid, (smooth["G1"] / smooth["K"])[0], **theory_style())
    left.plot(grid, 5 * grid, label="ReLU's 5 L", **rival_style(0))
    left.set(xlabel="depth L", ylabel="n x (relative variance, shift) of tanh", ylim=(-9, 16))
    left.legend(fontsize=7)
    rows = merged(records["ReLU"].values["length"])
    (square, error), (v, dv) = mean(rows**2), variance(np.log(np.where(rows > 0, rows, np.nan)))
    for i, n in enumerate(cfg.width):
        style, over_n = measured_style(i, len(cfg.width) + 1), np.asarray(cfg.relu_depth) / n
        middle.errorbar(over_n, np.log(square[i]), error[i] / square[i], label=f"log E G^2, n = {n}", **style)
        middle.plot(over_n, np.log(records["ReLU theory"].values["square"][0, i]), "-", color=style["color"], lw=1)
        right.errorbar(over_n, v[i], dv[i], label=f"Var log G, n = {n}", **style)
        right.plot(over_n, records["ReLU theory"].values["variance"][0, i], "-", color=style["color"], lw=1)
    for axes in (middle, right):
        line = np.geomspace(min(cfg.relu_depth) / max(cfg.width), max(cfg.relu_depth) / min(cfg.width), 20)
        axes.plot(line, 5 * line, label="5 L/n", **rival_style(0))
        axes.plot(line, 2 / 3 * line, label="2/3 L/n", **rival_style(2))
        axes.set(xscale="log", yscale="log", xlabel="depth over width L/n")
        axes.legend(fontsize=7)
    middle.set_ylabel("log of E G^2 over (E G)^2, ReLU")
    right.set_ylabel("variance of log G, ReLU; lines: exact")
    return fig


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
