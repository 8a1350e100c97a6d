"""On the edge of chaos inputs merge as a power of depth, and the activation's smoothness picks the power.

With c the correlation of two inputs after l critical layers, ReLU has ``1 - c ~ 9 pi^2 / (2 l^2)`` and an activation
with two derivatives ``1 - c ~ beta / l``, ``beta = 2 E phi'^2 / (q E phi''^2)`` at the fixed point q of the length.
Off the edge the approach is exponential. The maps are iterated and laid over networks of width 1000.

Run time: about 20 s for the quick preset on two CPU cores.
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
from dynamics.runs.figures import colour, new_figure, rival_style
from dynamics.stax.activations.quadrature import gaussian_panels
from dynamics.theory.activations import moments_of
from dynamics.theory.signal_propagation import critical_line, length_map
from dynamics.types import Claim, Record

from ._draws import drawn, mean, mean_z, merged

SOURCE = "Hayou, Doucet & Rousseau 2019, 'On the impact of the activation function on deep neural networks training'"
SECONDS = 20


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Count] = 8
    """independent blocks of networks"""
    nets: Annotated[int, Count] = 8
    """networks of a block, each with a pair of inputs"""
    width: Annotated[int, Count] = 1000
    """width n of the networks"""
    depth: Annotated[tuple[int, ...], Count] = (10, 30, 100)
    """layers at which networks are read"""
    layers: Annotated[int, Range(60)] = 3000
    """layers of the infinitely wide network"""
    correlation: Annotated[float, Range(-0.9, 0.9)] = 0.2
    """correlation of the two inputs"""

    @classmethod
    def large(cls) -> Config:
        """More and wider networks; a minute of a core."""
        return cls(seeds=32, width=4000, depth=(10, 30, 100, 300), layers=30_000)


class Result(NamedTuple):
    """``records``: map, ``versine [T, activation]`` = 1 - c at the fixed q; off, the same at 95 % of W_std; length,
    ``deviation [T, activation]`` of q from it, a share; networks, ``versine [1, network, seed, nets, depth]``."""

    config: Config
    records: dict[str, Record]


ACTIVATIONS = {
    "ReLU": (stax.Relu(), jax.nn.relu, 1.0),
    "tanh, q = 0.5": (jnp.tanh, jnp.tanh, 0.5),
    "tanh, q = 1.5": (jnp.tanh, jnp.tanh, 1.5),
    "SiLU, q = 0.5": (jax.nn.silu, jax.nn.silu, 0.5),
    "GELU, q = 0.5": (stax.Gelu(), partial(jax.nn.gelu, approximate=False), 0.5),
}
"""By name: what the maps take, the function of the networks, the fixed point q."""
DRAWN = ("ReLU", "tanh, q = 1.5")


def run(config: Config, study=in_memory) -> Result:
    """The maps of every activation, and networks of two of them, in double precision."""
    with jax.enable_x64(True):
        records = {"map": iterated(config, 1.0), "off": iterated(config, 0.95), "length": deviations()}
        key = jax.random.key(config.seed)

        def draw(lane):
            stream = jax.random.fold_in(jax.random.fold_in(key, lane.seed), DRAWN.index(lane.network))
            _, phi, q = ACTIVATIONS[lane.network]
            edge = critical_line(ACTIVATIONS[lane.network][0], q)
            return {"versine": pairs(stream, config, phi, q, edge.W_std**2, edge.b_std**2)}

        axes = {"network": DRAWN, "seed": range(config.seeds)}
        records["networks"] = drawn(study, axes, draw, "networks")
    return Result(config, records)


def iterated(config: Config, factor: float) -> Record:
    """``1 - c`` at layers 0, 1, ... for ``W_std = factor`` times the edge's, at the variance q."""
    found = []
    for activation, _, q in ACTIVATIONS.values():
        edge, moments, q = critical_line(activation, q), moments_of(activation), jnp.asarray(q)
        chi = factor**2 * edge.W_std**2

        @jax.jit
        def path(start, moments=moments, q=q, chi=chi):
            def layer(v, _):
                v = chi * moments(q, v * q)[1] / q
                return v, v

            return jax.lax.scan(layer, start, length=config.layers)[1]

        start = jnp.asarray(1 - config.correlation)
        found.append(np.r_[start, path(start)])
    steps = np.arange(config.layers + 1)
    return Record(steps, steps, {"versine": np.stack(found, 1)}, {"activation": tuple(ACTIVATIONS)})


def deviations(layers: int = 20, start: float = 1e-4) -> Record:
    """``q_l / q - 1`` on the edge, from ``start``: its growth by layer is ``Critical.length_slope``."""
    found = []
    for activation, _, q in ACTIVATIONS.values():
        edge = critical_line(activation, q)
        step = jax.jit(length_map(activation, edge.W_std, edge.b_std))
        path = [jnp.asarray(q * (1 + start))]
        for _ in range(layers):
            path.append(step(path[-1]))
        found.append(np.array(path) / q - 1)
    steps = np.arange(layers + 1)
    return Record(steps, steps, {"deviation": np.stack(found, 1)}, {"activation": tuple(ACTIVATIONS)})


@partial(jax.jit, static_argnames=("config", "phi"))
def pairs(key, config: Config, phi, q, weight, bias):
    """``1 - c`` of pairs of inputs at each depth ``[nets, depths]``; layers drawn in law given both activations."""
    n, nets = config.width, config.nets
    gram = jnp.full(nets, q), jnp.full(nets, q), jnp.full(nets, (1 - config.correlation) * q)

    def layer(gram, key):
        a, b, gap = gram  # variances, and (a + b)/2 - covariance: half that of the difference
        z1, z2 = jax.random.normal(key, (2, nets, n))
        half = (a - b) / 2 + gap  # covariance of the first with the difference
        across = jnp.sqrt(jnp.maximum(2 * gap - half**2 / a, 0))
        h1 = jnp.sqrt(a)[:, None] * z1
        h2 = h1 - (half / jnp.sqrt(a))[:, None] * z1 - across[:, None] * z2
        f1, f2 = phi(h1), phi(h2)
        a, b = (weight * jnp.mean(f**2, -1) + bias for f in (f1, f2))
        gap = weight * jnp.mean((f1 - f2) ** 2, -1) / 2
        versine = (gap - (jnp.sqrt(a) - jnp.sqrt(b)) ** 2 / 2) / jnp.sqrt(a * b)
        return (a, b, gap), versine

    found = jax.lax.scan(layer, gram, jax.random.split(key, max(config.depth)))[1]
    return found.T[:, jnp.asarray(config.depth) - 1]


def law(name: str) -> tuple[float, int]:
    """``(coefficient, power)`` of ``1 - c ~ coefficient / l^power``."""
    if name == "ReLU":
        return 9 * np.pi**2 / 2, 2
    _, phi, q = ACTIVATIONS[name]
    nodes, weights = gaussian_panels()
    with jax.enable_x64(True):
        first = jax.vmap(jax.grad(phi))
        x = jnp.sqrt(q) * jnp.asarray(nodes)
        slope, bend = (np.sum(weights * np.asarray(f(x)) ** 2) for f in (first, jax.vmap(jax.grad(jax.grad(phi)))))
    return float(2 * slope / (q * bend)), 1


def claims(result: Result) -> list[Claim]:
    """The maps have no error; networks are independent."""
    return [*map_claims(result), length_claim(result), network_claim(result)]


def map_claims(result: Result) -> list[Claim]:
    """Slopes over the last two thirds of log depth, coefficients at a third of the depth (ReLU: at its end)."""
    cfg, rows, source = result.config, result.records["map"].values["versine"], "rates on the edge of chaos"
    names = (
        "ReLU: log slope of 1 - c",
        "smooth activations: log slope of 1 - c, worst of them",
        "ReLU: 1 - c over its law",
        "smooth activations: 1 - c over its law, worst of them",
    )
    if cfg.layers < 3000:
        return [Claim.not_applicable(name, source, "needs 3000 layers") for name in names]
    third, last = cfg.layers // 3, cfg.layers
    slope = np.log(rows[last] / rows[third]) / np.log(last / third)
    off = np.maximum(result.records["off"].values["versine"], 1e-300)
    decay = np.log(off[third] / off[third // 2]) / np.log(2)  # exponential: steeper than any power
    coefficient, power = np.array([law(name) for name in ACTIVATIONS]).T
    at_third, at_last = (rows[layer] * layer**power / coefficient for layer in (third, last))
    smooth = slice(1, None)

    def worst(values, aim):
        return values[smooth][np.argmax(np.abs(values[smooth] - aim))]

    wrong = {"beta twice as large": worst(at_third, 1) / 2, "beta half as large": 2 * worst(at_third, 1)}
    wrong["one beta for all"] = worst(at_third * coefficient / coefficient[1], 1)
    note = "; ".join(f"{k} {v:.4f}" for k, v in zip(ACTIVATIONS, at_third))
    off_edge = {"off the edge": decay[1]}
    return [
        Claim.close(names[0], source, slope[0], -2, 0.03, rivals={"smooth law": worst(slope, -1), **off_edge}),
        Claim.close(names[1], source, worst(slope, -1), -1, 0.02, rivals={"ReLU": slope[0], **off_edge}),
        Claim.close(names[2], source, at_last[0], 1, 0.015, rivals={"half the coefficient": 2 * at_last[0]}),
        Claim.close(names[3], source, worst(at_third, 1), 1, 0.015, rivals=wrong, note=note),
    ]


def length_claim(result: Result) -> Claim:
    """GELU's edge at q = 0.5 is none that a deep network stays on: its length leaves q, tanh's comes to it."""
    deviation = result.records["length"].values["deviation"]
    rate = np.log(deviation[-1] / deviation[0]) / (len(deviation) - 1)
    at = tuple(ACTIVATIONS).index("GELU, q = 0.5")
    with jax.enable_x64(True):
        slope = float(critical_line(*(ACTIVATIONS["GELU, q = 0.5"][i] for i in (0, 2))).length_slope)
    note = "; ".join(f"{name} {value:+.3f}" for name, value in zip(ACTIVATIONS, rate))
    rivals = {"tanh": rate[at - 3], "marginal, as ReLU": 0.0}
    name = "GELU: log growth of a deviation of length a layer, against length_slope"
    return Claim.close(name, "derived here", rate[at], float(np.log(slope)), 0.005, rivals=rivals, note=note)


def network_claim(result: Result) -> Claim:
    """Against the iterated map, not its law, which is 20 % off at 100 layers of ReLU."""
    cfg, name = result.config, f"networks of width {result.config.width}: 1 - c against the map, every depth"
    if cfg.seeds * cfg.nets < 40 or cfg.width < 500:
        return Claim.not_applicable(name, "mean-field maps", "needs some 40 networks of width 500")
    rows, at = merged(result.records["networks"].values["versine"]), np.asarray(cfg.depth)
    order = [tuple(ACTIVATIONS).index(name) for name in DRAWN]
    exact, off = (result.records[key].values["versine"][at][:, order].T for key in ("map", "off"))
    laws = np.array([law(name) for name in DRAWN])
    asymptotic = laws[:, :1] / at ** laws[:, 1:]
    wrong = {"the other activation": exact[::-1], "W_std 5 % below the edge": off, "the law alone": asymptotic}
    rivals = {key: mean_z(rows, value) for key, value in wrong.items()}
    return Claim.cells(name, "mean-field maps", mean_z(rows, exact), rivals=rivals)


def figure(result: Result):
    """1 - c against depth: maps, laws, networks; and the ratio of maps to laws."""
    fig, (left, right) = new_figure(1, 2, width=4.6, height=3.8)
    step, rows = result.records["map"].step[1:], result.records["map"].values["versine"][1:]
    off, at = result.records["off"].values["versine"][1:], np.asarray(result.config.depth)
    found, error = mean(merged(result.records["networks"].values["versine"]))
    for i, name in enumerate(ACTIVATIONS):
        (coefficient, power), tint = law(name), colour(i, len(ACTIVATIONS) + 1)
        left.plot(step, rows[:, i], "-", color=tint, lw=1.2, label=name)
        tail = step >= 30
        left.plot(step[tail], coefficient / step[tail] ** power, **rival_style(2))
        if name in DRAWN:
            j = DRAWN.index(name)
            left.errorbar(at, found[j], error[j], fmt="os"[j], ms=6, mfc="none", color=tint, zorder=5)
        right.plot(step, rows[:, i] * step**power / coefficient, "-", color=tint, lw=1.2)
    left.plot(step, off[:, 2], label="tanh, 5 % below the edge", **rival_style(0))
    left.set(xscale="log", yscale="log", ylim=(rows.min() / 3, 2), xlabel="layer l", ylabel="1 - correlation")
    left.set_title(f"lines: maps; dotted: laws; markers: networks, n = {result.config.width}", fontsize=8)
    left.legend(fontsize=7.5, loc="lower left")
    right.axhline(1, color="black", lw=0.8)
    right.set(xscale="log", ylim=(0, 1.3), xlabel="layer l", ylabel="1 - correlation, over its law")
    return fig


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
