"""Infinite depth at finite width: the limit is a diffusion, and what depth does to the signal changes sign with width.

A residual ReLU network ``Y += W relu(Y) / sqrt(L)`` of fixed width n becomes ``dY = |phi(Y)| / sqrt(n) dB`` as L
grows. Of k active units, ``d log|phi| = dB/sqrt(n) + (k/2 - 1)/n dt``; the active set keeps its law, so that given
that some unit starts alive ``E log |phi_1|/|phi_0| = 1/(4 (1 - 2^-n)) - 1/n``: negative up to n = 3, positive from n =
4, and 1/4 at infinite width. One unit is geometric Brownian motion.

Run time: about 20 s for the quick preset on two CPU cores.
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
from dynamics.runs.figures import colour, measured_style, new_figure, rival_style, theory_style, ticks_at
from dynamics.types import Claim, Record

from ._draws import drawn, mean, mean_z, merged, variance

SOURCE = "Hayou 2022, 'On the infinite-depth limit of finite-width neural networks'"
SECONDS = 20


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Count] = 20
    """independent blocks of networks"""
    nets: Annotated[int, Count] = 1000
    """networks of a block"""
    width: Annotated[tuple[int, ...], Count] = (1, 2, 3, 4, 5, 6, 8, 16)
    """widths n"""
    depth: Annotated[int, Range(8)] = 200
    """layers L"""

    @classmethod
    def large(cls) -> Config:
        """Deeper, more networks, wider; a minute of a core."""
        return cls(seeds=50, nets=2000, depth=400, width=(1, 2, 3, 4, 5, 6, 8, 16, 32))


class Result(NamedTuple):
    """``records``: networks, ``log_ratio [1, width, seed, nets]``, -inf or NaN of dead ones; theory, ``mean, variance
    [1, width]``; path, ``log_ratio [T, width]``, of one block's mean."""

    config: Config
    records: dict[str, Record]


def run(config: Config, study=in_memory) -> Result:
    """Networks drawn in law at every width."""
    key = jax.random.key(config.seed)

    def draw(lane):
        stream = jax.random.fold_in(jax.random.fold_in(key, lane.seed), lane.width)
        end, path = log_ratios(stream, lane.width, config.depth, config.nets)
        return {"log_ratio": end, "path": path}

    axes = {"width": config.width}
    networks = drawn(study, axes | {"seed": range(config.seeds)}, draw, "networks")
    n = np.asarray(config.width, float)
    values = {"mean": drift(n)[None], "variance": (1 + active_memory()) / n[None]}
    return Result(config, {"networks": networks, "theory": networks._replace(values=values, axes=axes)})


def drift(n):
    """``1/(4 (1 - 2^-n)) - 1/n``."""
    return 1 / (4 * (1 - 0.5**n)) - 1 / n


def active_memory() -> float:
    """What the wandering of k adds to ``n Var log |phi_1|/|phi_0| = 1 + ...``, to leading order in 1/n: 0.05.

    ``Var int k/(2n) dt`` with ``Var k = n/4`` and signs correlated as ``(2/pi) arcsin(e^(-|t-s|/4))``.
    """
    t = (np.arange(400) + 0.5) / 400
    return float(np.mean(2 / np.pi * np.arcsin(np.exp(-np.abs(t[:, None] - t) / 4))) / 16)


@partial(jax.jit, static_argnames=("width", "depth", "nets"))
def log_ratios(key, width, depth, nets):
    """``log |phi_1| / |phi_0| [nets]`` of networks with a unit alive at the start, NaN of others; its mean by layer."""
    start, key = jax.random.split(key)
    Y = jax.random.normal(start, (nets, width))

    def size(Y):
        return jnp.linalg.norm(jax.nn.relu(Y), axis=-1)

    first = size(Y)
    alive = first > 0

    def layer(Y, key):
        Y = Y + size(Y)[:, None] / (width * depth) ** 0.5 * jax.random.normal(key, Y.shape)
        return Y, jnp.sum(jnp.where(alive, jnp.log(size(Y) / jnp.where(alive, first, 1)), 0)) / jnp.sum(alive)

    Y, path = jax.lax.scan(layer, Y, jax.random.split(key, depth))
    return jnp.where(alive, jnp.log(size(Y) / jnp.where(alive, first, 1)), jnp.nan), path


def claims(result: Result) -> list[Claim]:
    """Networks are independent; 1/L is allowed for finite depth."""
    cfg, n = result.config, np.asarray(result.config.width, float)
    names = (
        "E log |phi_1|/|phi_0|, every n",
        "n = 4: E log |phi_1|/|phi_0| > 0",
        "n = 3: E log |phi_1|/|phi_0| < 0",
        "n Var log |phi_1|/|phi_0|, worst n",
    )
    if cfg.seeds * cfg.nets < 10_000 or not {3, 4} <= set(cfg.width) or cfg.depth < 100:
        return [
            Claim.not_applicable(name, "the limiting diffusion", "needs n = 3, 4, 10^4 networks, L >= 100")
            for name in names
        ]
    rows = merged(np.asarray(result.records["networks"].values["log_ratio"], float)[..., None])[:, 0]
    theory = result.records["theory"].values["mean"][0]
    allowed = 1 / cfg.depth
    wrong = {
        "infinite width, 1/4": 0.25 + 0 * n,
        "dead networks count, 1/4 - 1/n": 0.25 - 1 / n,
        "half the noise, 1/4 - 1/(2n)": drift(n) + 0.5 / n,
    }
    rivals = {key: mean_z(rows, value, allowed) for key, value in wrong.items()}
    blocks = np.nanmean(np.asarray(result.records["networks"].values["log_ratio"], float)[0], -1)  # [width, seed]
    three, four = (blocks[cfg.width.index(at)] for at in (3, 4))
    v, _ = variance(rows)
    exact = result.records["theory"].values["variance"][0] * n
    scaled = v * n
    worst = scaled[np.argmax(np.abs(scaled - exact))]
    one = exact[0] * v / v.mean()
    rivals_of_v = {"one variance for all": one[np.argmax(np.abs(one - exact))], "2/n": worst / 2}
    note = "; ".join(f"{size}: {value:.3f}" for size, value in zip(cfg.width, scaled))
    return [
        Claim.cells(names[0], "the limiting diffusion", mean_z(rows, theory, allowed), rivals=rivals),
        Claim.at_least(names[1], "the limiting diffusion", four, 0.0, rivals={"n = 3": three}),
        Claim.at_most(names[2], "the limiting diffusion", three, 0.0, rivals={"n = 4": four, "infinite width": 0.25}),
        Claim.close(names[3], "derived here", worst, float(exact[0]), 0.08, rivals=rivals_of_v, note=f"by n {note}"),
    ]


def figure(result: Result):
    """Drift and variance by width; the mean along depth."""
    cfg, n = result.config, np.asarray(result.config.width, float)
    rows = merged(np.asarray(result.records["networks"].values["log_ratio"], float)[..., None])[:, 0]
    fig, (left, middle, right) = new_figure(1, 3, width=3.7, height=3.5)
    (m, dm), (v, dv) = mean(rows), variance(rows)
    grid = np.geomspace(n.min(), n.max(), 100)
    left.errorbar(n, m, dm, label="networks", **measured_style(0))
    left.plot(grid, drift(grid), label="1/(4(1 - 2^-n)) - 1/n", **theory_style())
    left.axhline(0.25, label="infinite width, 1/4", **rival_style(0))
    left.plot(grid, 0.25 - 1 / grid, label="1/4 - 1/n", **rival_style(2))
    left.axhline(0, color="black", lw=0.6)
    left.set(xscale="log", xlabel="width n", ylabel="E log |phi_1|/|phi_0|", ylim=(-0.8, 0.35))
    left.legend(fontsize=7.5)
    middle.errorbar(n, v, dv, **measured_style(0))
    middle.plot(grid, (1 + active_memory()) / grid, label="(1 + 0.05) / n", **theory_style())
    middle.set(xscale="log", yscale="log", xlabel="width n", ylabel="Var log |phi_1|/|phi_0|")
    middle.legend(fontsize=8)
    for axes in (left, middle):
        ticks_at(axes.xaxis, cfg.width)
    path = np.asarray(result.records["networks"].values["path"], float)[0].mean(1)  # [width, L]
    t = np.arange(1, cfg.depth + 1) / cfg.depth
    for i, size in enumerate(cfg.width):
        right.plot(t, path[i], "-", color=colour(i, len(cfg.width) + 1), lw=1, label=f"n = {size}")
        right.plot(t, drift(size) * t, "k:", lw=0.8)
    right.axhline(0, color="black", lw=0.6)
    right.set(xlabel="layer over depth t", ylabel="E log |phi_t|/|phi_0|; dotted: theory")
    right.legend(fontsize=7, ncol=2)
    return fig


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
