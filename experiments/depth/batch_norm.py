"""Batch normalisation without exploding gradients: orthogonal weights, as many neurons as samples.

``X' = BN(W X)``, linear, X ``[d, n]`` with n = d and BN scaling every row to unit norm. With Haar W representations
become isometric: near an isometry a layer rotates the defect E of ``X = (I + E) U`` and deletes its diagonal, so that
``log mean eig - mean log eig`` of ``X X^T``, the gap, shrinks by ``d/(d+2)`` a layer. Backwards the antisymmetric part
of ``g X^T`` is conserved, the symmetric one decays by ``d/(d+2)``: gradients neither explode nor vanish. With Gaussian
W they explode.

Run time: about 40 s for the quick preset on two CPU cores.
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
from dynamics.statistics import isometry_gap
from dynamics.stax import Haar
from dynamics.types import Claim, Record

from ._draws import drawn

SOURCE = "Meterez, Joudaki, Orabona, Immer, Rätsch & Daneshmand 2023, 'Towards training without depth limits'"
SECONDS = 40


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Count] = 64
    """independent networks"""
    size: Annotated[tuple[int, ...], Range(3)] = (8, 16, 32)
    """numbers d of neurons and of samples of which the gap's contraction is read"""
    gradient_size: Annotated[int, Range(3)] = 12
    """d of the gradients"""
    depth: Annotated[int, Range(8)] = 200
    """layers through which gradients are followed"""
    depths: Annotated[tuple[int, ...], Count] = (25, 50, 100, 200, 400)
    """depths of the networks whose first and last gradients are compared"""
    layers: Annotated[int, Count] = 20
    """layers over which the gap's contraction is averaged"""
    defect: Annotated[float, Range(1e-6, 0.1)] = 1e-3
    """size of E at the start"""

    @classmethod
    def large(cls) -> Config:
        """More networks, larger d; a minute of a core."""
        return cls(seeds=256, size=(8, 16, 32, 64), depths=(25, 50, 100, 200, 400, 800))


class Result(NamedTuple):
    """``records``: contraction, ``ratio, gap [1, size, seed]``; gradients, ``square [1, seed, depth + 1]`` over its
    start, ``floor [1, seed]`` (|A|^2); growth, ``growth`` (log) and ``gap [1, law, depths, seed]``."""

    config: Config
    records: dict[str, Record]


LAWS = ("Haar", "Gaussian")


def run(config: Config, study=in_memory) -> Result:
    """Contraction near isometry, gradients of isometric networks, growth from random data; in double precision."""
    with jax.enable_x64(True):
        key, records = jax.random.key(config.seed), {}

        def contracted(lane):
            stream = jax.random.fold_in(jax.random.fold_in(key, lane.seed), lane.size)
            return contraction(stream, lane.size, config.layers, config.defect)

        def followed(lane):
            stream = jax.random.fold_in(jax.random.fold_in(key, 1), lane.seed)
            return gradients(stream, config.gradient_size, config.depth)

        def grown(lane):
            stream = jax.random.fold_in(jax.random.fold_in(key, 2 + LAWS.index(lane.law)), lane.seed)
            return growth(stream, config.gradient_size, lane.depths, lane.law == "Haar")

        seeds = {"seed": range(config.seeds)}
        records["contraction"] = drawn(study, {"size": config.size} | seeds, contracted, "contraction")
        records["gradients"] = drawn(study, seeds, followed, "gradients")
        records["growth"] = drawn(study, {"law": LAWS, "depths": config.depths} | seeds, grown, "growth")
    return Result(config, records)


def haar(key, d):
    return Haar().draw(key, d, d) / d**0.5


def normalised(Z):
    return Z / jnp.linalg.norm(Z, axis=1, keepdims=True)


def gap_of(X):
    return isometry_gap(jnp.linalg.svd(X, compute_uv=False))


@partial(jax.jit, static_argnames=("d", "layers"))
def contraction(key, d, layers, defect):
    """Mean ratio of successive gaps near isometry, and the first gap."""
    start, key = jax.random.split(key)
    X = normalised(jnp.eye(d) + defect * jax.random.normal(start, (d, d)))

    def layer(X, key):
        after = normalised(haar(key, d) @ X)
        return after, gap_of(after) / gap_of(X)

    return {"ratio": jnp.mean(jax.lax.scan(layer, X, jax.random.split(key, layers))[1]), "gap": gap_of(X)}


def backward(Z, g):
    """Through BN: each row's gradient loses its part along the row and is divided by the row's norm."""
    norm = jnp.linalg.norm(Z, axis=1, keepdims=True)
    U = Z / norm
    return (g - jnp.sum(g * U, 1, keepdims=True) * U) / norm


@partial(jax.jit, static_argnames=("d", "depth"))
def gradients(key, d, depth):
    """An isometric network: ``|g_k|^2 / |g_0|^2`` after k layers backwards, and the antisymmetric share of M_0."""
    one, two, key = jax.random.split(key, 3)
    U = haar(one, d)
    M = jax.random.normal(two, (d, d))
    M = M - jnp.diag(jnp.diag(M))  # M_0 = g_0 U^T has no diagonal
    M = M / jnp.linalg.norm(M)

    def layer(carry, key):
        g, U = carry
        W = haar(key, d)
        before = W.T @ U  # U = W before, already normalised
        g = backward(before, W.T @ g)
        return (g, before), jnp.sum(g**2)

    square = jax.lax.scan(layer, (M @ U, U), jax.random.split(key, depth))[1]
    return {"square": jnp.concatenate([jnp.ones(1), square]), "floor": jnp.sum((M - M.T) ** 2) / 4}


@partial(jax.jit, static_argnames=("d", "depth", "orthogonal"))
def growth(key, d, depth, orthogonal):
    """``log |g_1|^2 / |g_L|^2`` from random data: weights drawn, no isometry assumed; and the data's gap."""
    one, two, key = jax.random.split(key, 3)
    X = normalised(jax.random.normal(one, (d, d)) + 2 * jnp.eye(d))
    keys = jax.random.split(key, depth)

    def weight(key):
        return haar(key, d) if orthogonal else jax.random.normal(key, (d, d)) / d**0.5

    def forward(X, key):
        Z = weight(key) @ X
        return normalised(Z), Z

    _, Z = jax.lax.scan(forward, X, keys)

    def back(g, scanned):
        key, Z = scanned
        g = backward(Z, g)
        return weight(key).T @ g, jnp.sum(g**2)

    squares = jax.lax.scan(back, jax.random.normal(two, (d, d)), (keys, Z), reverse=True)[1]
    return {"growth": jnp.log(squares[0] / squares[-1]), "gap": gap_of(X)}


def claims(result: Result) -> list[Claim]:
    """Networks are independent."""
    return [*isometry_claims(result), *gradient_claims(result), *growth_claims(result)]


FEW = "needs some 40 networks, 60 layers, several sizes and depths"


def few(cfg: Config) -> bool:
    return cfg.seeds < 40 or cfg.depth < 60 or len(cfg.size) < 2 or len(cfg.depths) < 3 or min(cfg.depths) < 20


def isometry_claims(result: Result) -> list[Claim]:
    """The first gap is allowed beside the error: what the linear law leaves out."""
    cfg, name = result.config, "gap near isometry: mean contraction a layer against d/(d+2)"
    if few(cfg):
        return [Claim.not_applicable(name, "derived here (the paper has a bound)", FEW)]
    values = {k: np.asarray(v, float)[0] for k, v in result.records["contraction"].values.items()}
    d = np.asarray(cfg.size, float)
    mean, error = values["ratio"].mean(-1), values["ratio"].std(-1, ddof=1) / cfg.seeds**0.5
    error = np.hypot(error, values["gap"].mean(-1))
    wrong = {"1 - 1/d^2": 1 - 1 / d**2, "1 - 1/d": 1 - 1 / d, "no contraction": 1 + 0 * d}
    rivals = {key: (mean - value) / error for key, value in wrong.items()}
    note = "; ".join(f"d = {size}: {value:.4f}" for size, value in zip(cfg.size, mean))
    return [
        Claim.cells(
            name, "derived here (the paper has a bound)", (mean - d / (d + 2)) / error, rivals=rivals, note=note
        )
    ]


def gradient_claims(result: Result) -> list[Claim]:
    """``|g_k|^2 = |A|^2 + |S|^2 (d/(d+2))^k``, each network by its own A and S; and its floor."""
    cfg = result.config
    names = (
        "|g_k|^2 against |A|^2 + |S|^2 (d/(d+2))^k, every k",
        "|g_k|^2 - |A|^2 in the end, worst network, over |S|^2",
    )
    if few(cfg):
        return [Claim.not_applicable(name, "derived here", FEW) for name in names]
    square, floor = (np.asarray(result.records["gradients"].values[key], float)[0] for key in ("square", "floor"))
    k, d = np.arange(1, cfg.depth + 1), cfg.gradient_size
    shown = k <= 60
    left = (square[:, 1:] - floor[:, None]) / (1 - floor[:, None])
    mean, error = left.mean(0), left.std(0, ddof=1) / cfg.seeds**0.5

    def against(value):
        return ((mean - value) / error)[shown]

    decay = d / (d + 2)
    rivals = {
        "conserved": against(1.0),
        "vanishes with A": against(decay**k - (floor / (1 - floor)).mean() * (1 - decay**k)),
        "depth of order d^2": against((1 - 1 / d**2) ** k),
    }
    worst = np.max(np.abs(left[:, -1]))
    expected = decay**cfg.depth
    note = f"floors {floor.min():.2f} to {floor.max():.2f} of the start; mean |S|^2 part {expected:.1e}"
    control = {"decays away": float(np.max(floor / (1 - floor)))}
    return [
        Claim.cells(names[0], "derived here", against(decay**k), rivals=rivals),
        Claim.at_most(names[1], "derived here", worst, 1e-3, rivals=control, note=note),
    ]


def growth_claims(result: Result) -> list[Claim]:
    """Slope of the log growth in log L: of Haar none, of Gaussian weights much."""
    cfg = result.config
    names = "Haar: log gradient growth by depth, slope in L/100", "Gaussian: the same"
    if few(cfg):
        return [Claim.not_applicable(name, "gradients do not explode", FEW) for name in names]
    rows = np.asarray(result.records["growth"].values["growth"], float)[0]  # [law, depths, seed]
    depths = np.asarray(cfg.depths, float) / 100
    centred = depths - depths.mean()
    haar_slope, gauss_slope = np.einsum("lks,k->ls", rows, centred) / (centred**2).sum()
    note = "log growth by depth: " + ", ".join(f"{v:.2f}" for v in rows[0].mean(-1))
    gauss_note = "log growth by depth: " + ", ".join(f"{v:.2f}" for v in rows[1].mean(-1))
    return [
        Claim.close(
            names[0], "gradients do not explode", haar_slope, 0, 0.05, rivals={"Gaussian": gauss_slope}, note=note
        ),
        Claim.at_least(
            names[1], "gradients do not explode", gauss_slope, 0.5, rivals={"Haar": haar_slope}, note=gauss_note
        ),
    ]


def figure(result: Result):
    """Contraction by d; gradients backwards over theory; growth by depth."""
    cfg, records = result.config, result.records
    fig, (left, middle, right) = new_figure(1, 3, width=3.7, height=3.5)
    d = np.asarray(cfg.size, float)
    ratio = np.asarray(records["contraction"].values["ratio"], float)[0]
    style = measured_style(0) | {"label": "networks"}
    left.errorbar(d, 1 - ratio.mean(-1), ratio.std(-1) / cfg.seeds**0.5, **style)
    grid = np.geomspace(d.min(), d.max(), 30)
    left.plot(grid, 2 / (grid + 2), label="2/(d + 2)", **theory_style())
    left.plot(grid, 1 / grid**2, label="1/d^2", **rival_style(0))
    left.set(xscale="log", yscale="log", xlabel="neurons and samples d", ylabel="1 - contraction of the gap a layer")
    ticks_at(left.xaxis, cfg.size)
    left.legend(fontsize=8)
    square, floor = (np.asarray(records["gradients"].values[key], float)[0] for key in ("square", "floor"))
    k, decay = np.arange(square.shape[1]), cfg.gradient_size / (cfg.gradient_size + 2)
    for row in square[:20]:
        middle.plot(k, row, "-", color="0.85", lw=0.7, zorder=0)
    shown = k <= 60
    middle.plot(k[shown][::3], square.mean(0)[shown][::3], label="mean", **measured_style(0))
    theory = floor.mean() + (1 - floor.mean()) * decay**k
    middle.plot(k, theory, label="|A|^2 + |S|^2 (d/(d+2))^k", **theory_style())
    middle.plot(k, decay**k, label="without A", **rival_style(0))
    middle.set(
        xlim=(0, 60), ylim=(0, 1.05), xlabel="layers backwards k", ylabel=f"|g_k|^2 / |g_0|^2, d = {cfg.gradient_size}"
    )
    middle.legend(fontsize=8)
    rows = np.asarray(records["growth"].values["growth"], float)[0]
    for i, law in enumerate(LAWS):
        mean, error = rows[i].mean(-1), rows[i].std(-1) / cfg.seeds**0.5
        right.errorbar(cfg.depths, mean, error, fmt="os"[i], mfc="none", color=colour(i, 3), label=law)
    right.set(xlabel="depth L", ylabel="log of |g_1|^2 over |g_L|^2")
    right.legend(fontsize=8)
    return fig


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
