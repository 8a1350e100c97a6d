"""Deep ReLU networks preserve the expected length of curves, up to a factor in depth over width that is exact.

A curve's image after l layers without biases has on average ``prod_k E sqrt((2/n_{k-1}) chi^2_j)``, ``j ~ Bin(n_k,
1/2)``, times its length, whatever the curve: near ``exp(-5/8 sum 1/n)`` for square layers. It neither grows
exponentially with depth, as one may expect of expressive networks, nor stays.

Run time: about 15 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import config
from dynamics.config import Count, Range
from dynamics.evolve import study as in_memory
from dynamics.runs.figures import colour, new_figure, rival_style, ticks_at
from dynamics.types import Claim, Record

from ._curves import CURVES, curve
from ._draws import drawn, mean, mean_z, merged

SOURCE = "Hanin, Jeong & Rolnick 2021, 'Deep ReLU networks preserve expected length'"
SECONDS = 15


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Count] = 8
    """independent blocks of networks"""
    nets: Annotated[int, Count] = 500
    """networks of a block"""
    width: Annotated[tuple[int, ...], Count] = (8, 32)
    """widths n of all layers"""
    depth: Annotated[tuple[int, ...], Count] = (1, 2, 4, 6, 8)
    """depths at which the length is read"""
    points: Annotated[int, Range(8)] = 64
    """points of the curve at which its image's speed is read"""

    @classmethod
    def large(cls) -> Config:
        """More networks, deeper; eight minutes of a core."""
        return cls(seeds=32, width=(8, 32, 128), depth=(1, 2, 4, 8, 16, 32))


class Result(NamedTuple):
    """``records``: networks, ``ratio [1, curve, width, seed, nets, depth]``; theory, ``ratio [1, width, depth]``."""

    config: Config
    records: dict[str, Record]


def run(config: Config, study=in_memory) -> Result:
    """Images of each curve in networks of each width."""
    key, at = jax.random.key(config.seed), np.asarray(config.depth) - 1

    def draw(lane):
        stream = jax.random.fold_in(jax.random.fold_in(key, lane.seed), 10 * lane.width + CURVES.index(lane.curve))
        x, moves = curve(lane.curve, config.points)
        return {"ratio": stretched(stream, x, moves, lane.width, max(config.depth), config.nets)[:, at]}

    axes = {"curve": CURVES, "width": config.width}
    networks = drawn(study, axes | {"seed": range(config.seeds)}, draw, "networks")
    exact = np.array([[expected(n, range(L)) for L in config.depth] for n in config.width])
    values, axes = {"ratio": exact[None]}, {"width": config.width}
    return Result(config, {"networks": networks, "theory": networks._replace(values=values, axes=axes)})


@partial(jax.jit, static_argnames=("width", "depth", "nets"))
def stretched(key, x, moves, width, depth, nets):
    """Length of the image over that of the curve, ``[nets, depth]``: integrals of speeds, no chords.

    Args:
        x, moves: ``[points, 2]``, the curve and its derivative, at equal steps of the parameter.
    """

    def one(key):
        h, t, found = x, moves, []
        for layer in range(depth):
            fan_in = h.shape[-1]
            weight = jax.random.normal(jax.random.fold_in(key, layer), (fan_in, width)) * (2 / fan_in) ** 0.5
            h, t = h @ weight, t @ weight
            h, t = jax.nn.relu(h), jnp.where(h > 0, t, 0.0)
            found.append(jnp.sum(jnp.linalg.norm(t, axis=-1)))
        return jnp.stack(found) / jnp.sum(jnp.linalg.norm(moves, axis=-1))

    return jax.lax.map(one, jax.random.split(key, nets), batch_size=100)


def expected(n: int, layers) -> float:
    """The exact factor after ``layers`` layers of n units on two inputs; dead networks count as length 0."""
    from scipy.special import gammaln
    from scipy.stats import binom

    j = np.arange(1, n + 1)
    root = np.sqrt(2) * np.exp(gammaln((j + 1) / 2) - gammaln(j / 2))  # E chi_j
    chi = np.sum(binom.pmf(j, n, 0.5) * root)
    return float(np.prod([chi * np.sqrt(2 / (2 if layer == 0 else n)) for layer in layers]))


def claims(result: Result) -> list[Claim]:
    """Networks are independent; the depths of one share its layers."""
    cfg, name = result.config, "length over the curve's, every curve, width and depth"
    names = name, f"n = {min(cfg.width)}: log of the length at the last depth over the first"
    if cfg.seeds * cfg.nets < 2000 or len(cfg.depth) < 3:
        return [
            Claim.not_applicable(name, "expected length of a curve", "needs 2000 networks, three depths")
            for name in names
        ]
    rows, exact = merged(result.records["networks"].values["ratio"]), result.records["theory"].values["ratio"][0]
    layers = np.asarray(cfg.depth) - cfg.depth[0]
    first = exact[:, :1]
    wrong = {
        "preserved": first + 0 * exact,
        "grows by 5 % a layer": first * 1.05**layers,
        "the factor squared (lengths squared)": first * (exact / first) ** 2,
    }
    rivals = {key: mean_z(rows, np.broadcast_to(value, rows.shape[:-1])) for key, value in wrong.items()}
    blocks = np.asarray(result.records["networks"].values["ratio"], float)[0, 0, np.argmin(cfg.width)].mean(1)
    shrink = np.log(blocks[:, -1] / blocks[:, 0])
    exact_shrink = np.log(exact[np.argmin(cfg.width)][-1] / exact[np.argmin(cfg.width)][0])
    return [
        Claim.cells(
            names[0], "expected length of a curve", mean_z(rows, np.broadcast_to(exact, rows.shape[:-1])), rivals=rivals
        ),
        Claim.close(
            names[1], "expected length of a curve", shrink, exact_shrink, 0.05, rivals={"preserved": 0 * shrink}
        ),
    ]


def figure(result: Result):
    """Length against depth by width over the exact factor; the curves' images in one network."""
    cfg = result.config
    fig, (left, right) = new_figure(1, 2, width=4.6, height=3.6)
    found, error = mean(merged(result.records["networks"].values["ratio"]))
    depths = np.asarray(cfg.depth)
    for j, n in enumerate(cfg.width):
        tint, exact = colour(j, len(cfg.width) + 1), [expected(n, range(L)) for L in depths]
        for i, name in enumerate(CURVES):
            style = {"fmt": "os^"[i], "mfc": "none", "ms": 5.5, "color": tint}
            label = f"{name}, n = {n}" if j == 0 else f"n = {n}" if i == 0 else None
            left.errorbar(depths + 0.08 * (i - 1), found[i, j] / exact[0], error[i, j] / exact[0], label=label, **style)
        left.plot(depths, np.array(exact) / exact[0], "-", color=tint)
        left.plot(depths, np.exp(-5 / 8 * (depths - depths[0]) / n), **rival_style(2))
    left.axhline(1, label="preserved", **rival_style(0))
    left.set(xlabel="depth", ylabel=f"expected length over that of layer {depths[0]}", ylim=(0, 1.25))
    left.set_title("lines: exact; dotted: exp(-5/8 sum 1/n)", fontsize=8)
    ticks_at(left.xaxis, cfg.depth)
    left.legend(fontsize=7, loc="lower left")
    rows = merged(result.records["networks"].values["ratio"])[0, 0]
    shown = [at for at in (0, len(depths) // 2, len(depths) - 1)]
    for i, at in enumerate(shown):
        right.hist(rows[at], np.linspace(0, 5, 61), histtype="step", color=colour(i, 4), label=f"layer {depths[at]}")
        right.axvline(rows[at].mean(), color=colour(i, 4), lw=0.8, ls=":")
    right.set(xlabel=f"length of the circle's image over its own, n = {cfg.width[0]}", ylabel="networks")
    right.legend(fontsize=8)
    return fig


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
