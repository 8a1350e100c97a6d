"""Hidden symmetries: how often a ReLU network has no more than those of its units (Grigsby, Lindsey & Rolnick 2023).

Scaling a unit's incoming weights by c and its outgoing ones by 1/c changes nothing, so the functional dimension, the
rank of ``df(x_i)/dtheta`` over many x, is at most the number of parameters less that of hidden units. Networks that
reach it have no further symmetry. Their share is near 1 with one hidden layer and falls with every further one. That
it rises with width, as in the paper, is not seen for two inputs: there it falls.

Run time: about 50 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import config, observe
from dynamics.config import Count, NonNegative, Positive, Range
from dynamics.evolve import study as in_memory
from dynamics.runs.figures import measured_style, new_figure, rival_style, ticks_at
from dynamics.types import Claim, Observable, Record

SOURCE = "Grigsby, Lindsey & Rolnick 2023, 'Hidden symmetries of ReLU networks'"
SECONDS = 50


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Count] = 80
    """networks"""
    depth: Annotated[tuple[int, ...], Range(1, 8)] = (1, 2, 3)
    """hidden layers, ascending"""
    width: Annotated[tuple[int, ...], Count] = (3, 5)
    """units of each hidden layer"""
    inputs: Annotated[int, Count] = 2
    """input dimension"""
    bias: Annotated[float, NonNegative] = 0.1
    """standard deviation of the biases; weights have He's"""
    samples: Annotated[int, Range(2)] = 20
    """points in units of the number of parameters"""
    scale: Annotated[float, Positive] = 3.0
    """points lie at e^-scale to e^scale from the origin"""

    @classmethod
    def large(cls) -> Config:
        """More networks, points and a further layer; three minutes of a core."""
        return cls(seeds=100, depth=(1, 2, 3, 4), samples=40)

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("depth", "width"):
            self.require(bool(np.all(np.diff(getattr(self, field)) > 0)), field, "ascending values")


class Result(NamedTuple):
    """``records['rank']``: ``missing`` (D less hidden units less the rank), ``gap``, ``half`` (missing by half of the
    points), ``[1, width, depth, seed]``."""

    config: Config
    records: dict[str, Record]


def run(config: Config, study=in_memory) -> Result:
    """Ranks of drawn networks, in float64; nothing is trained."""
    key = jax.random.key(config.seed)

    def draw(lane):
        sizes = (config.inputs, *[lane.width] * lane.depth, 1)
        keys = jax.random.split(jax.random.fold_in(key, lane.seed), len(sizes) + 1)
        params = [
            {
                "w": jax.random.normal(k, (a, b)) * (2 / a) ** 0.5,
                "b": config.bias * jax.random.normal(jax.random.fold_in(k, 1), (b,)),
            }
            for k, a, b in zip(keys, sizes, sizes[1:])
        ]
        count = config.samples * sum(leaf.size for leaf in jax.tree.leaves(params))
        u = jax.random.normal(keys[-1], (count, config.inputs))
        far = jnp.exp(config.scale * jax.random.uniform(keys[-2], (count, 1), minval=-1.0))
        return (), {"params": params, "x": far * u / jnp.linalg.norm(u, axis=1, keepdims=True)}

    def read(view):
        params, x = view.params["params"], view.params["x"]
        units = sum(layer["b"].size for layer in params[:-1])
        whole, half = (
            observe.functional_dimension(network, params, some, batch_size=1024) for some in (x, x[: len(x) // 2])
        )
        most = whole.parameters - units
        return {
            "missing": jnp.asarray(most - whole.rank),
            "half": jnp.asarray(most - half.rank),
            "gap": jnp.asarray(whole.gap),
        }

    axes = {"width": config.width, "depth": config.depth, "seed": range(config.seeds)}
    with jax.enable_x64(True):
        record = study(axes, draw, None, [Observable.of_view(read)], steps=0, loop=("width", "depth"), label="rank")
    return Result(config, {"rank": record})


def network(params, x):
    """ReLU layers and a linear output."""
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["w"] + layer["b"])
    return x @ params[-1]["w"] + params[-1]["b"]


def claims(result: Result) -> list[Claim]:
    """Networks are independent; those of different width or depth share a number, not a draw."""
    cfg, values = result.config, {name: read[0] for name, read in result.records["rank"].values.items()}
    missing = values["missing"]  # [width, depth, seed]
    grown = float(np.mean(values["half"] != missing))
    out = [
        Claim.at_least(
            "D less hidden units less the rank, smallest", "lemma: unit scalings", float(missing.min()), 0.0,
            rivals={"one symmetry more": float(missing.min()) - 1}, note=f"smallest gap 1e{values['gap'].min():.1f}",
        )
    ]  # fmt: skip
    share = np.mean(missing == 0, 0)  # [depth, seed], over widths
    titles = (
        "one hidden layer: share without further symmetry",
        "share of two hidden layers less half that of one",
        "share of three hidden layers less half that of two",
        "two inputs: dimensions lacking, the widest less the narrowest, over two and three layers",
    )
    if cfg.seeds < 20 or not {1, 2, 3} <= set(cfg.depth) or len(cfg.width) < 2 or cfg.inputs != 2:
        return out + [Claim.not_applicable(t, "figure 2", "needs 1-3 layers, two widths, 20 networks") for t in titles]
    one, two, three = (share[cfg.depth.index(depth)] for depth in (1, 2, 3))
    deep = missing[:, [cfg.depth.index(depth) for depth in (2, 3)]].mean(1)  # [width, seed]
    note = f"half of the points miss in {grown:.0%} of the networks: regions not hit count as symmetries"
    return [
        *out,
        Claim.at_least(titles[0], "figure 2", one, 0.95, rivals={"as for two layers": two}),
        Claim.at_most(titles[1], "figure 2", two - one / 2, 0.0, rivals={"no effect of depth": one / 2}, note=note),
        Claim.at_most(titles[2], "figure 2", three - two / 2, 0.0, rivals={"no effect of depth": two / 2}, note=note),
        Claim.at_least(titles[3], "not the paper's", deep[-1] - deep[0], 0.0, rivals={"no effect of width": 0.0}),
    ]


def figure(result: Result):
    """Share of networks without further symmetry, and how much dimension the others lack."""
    cfg, missing = result.config, result.records["rank"].values["missing"][0]
    fig, axes = new_figure(1, 2, width=4.4, height=3.2)
    for i, width in enumerate(cfg.width):
        share, style = np.mean(missing[i] == 0, -1), measured_style(i, len(cfg.width))
        error = np.sqrt(np.maximum(share * (1 - share), 1 / cfg.seeds) / cfg.seeds)
        axes[0].errorbar(cfg.depth, share, error, label=f"width = {width}", **(style | {"linestyle": "-", "lw": 0.8}))
        axes[1].errorbar(cfg.depth, missing[i].mean(-1), missing[i].std(-1) / cfg.seeds**0.5, **style)
    axes[0].plot(cfg.depth, 0.5 ** (np.array(cfg.depth) - 1.0), label="a half a layer", **rival_style())
    axes[0].set(xlabel="hidden layers", ylabel="share without further symmetry", ylim=(-0.03, 1.05))
    axes[1].set(xlabel="hidden layers", ylabel="dimensions lacking, mean")
    for ax in axes:
        ticks_at(ax.xaxis, cfg.depth)
    axes[0].legend(fontsize=8)
    return fig


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
