"""Linear regions along a curve: Rice's formula, from the infinite-width kernel of each layer.

A ReLU unit bends the network where its preactivation changes sign. At infinite width the preactivations of layer l are
Gaussian with the kernel K, and along a curve x(s) they change sign ``n/pi int sqrt(r/q - (m/q)^2) ds`` times, ``q = K,
m = dK/ds', r = d^2K/ds ds'``: curve, interval and biases decide, not the number of neurons alone. The paper finds more
regions on a tractrix than on a circle; here, on |t| <= 3 and with biases of deviation 1/2, there are fewer.

Run time: about 20 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import config, stax
from dynamics.config import Count, NonNegative, Range
from dynamics.evolve import study as in_memory
from dynamics.observe import breakpoints
from dynamics.runs.figures import colour, new_figure, rival_style
from dynamics.theory.regions import crossing_probabilities
from dynamics.types import Claim, Record, View

from ._curves import CURVES, curve
from ._draws import drawn, mean_z, merged

SOURCE = "Tiwari & Konidaris 2022, 'Effects of data geometry in early deep learning'; Hanin & Rolnick 2019"
SECONDS = 20


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Count] = 8
    """independent blocks of networks"""
    nets: Annotated[int, Count] = 100
    """networks of a block"""
    width: Annotated[tuple[int, ...], Count] = (16, 64)
    """widths n of all layers"""
    depth: Annotated[int, Range(2)] = 3
    """layers"""
    b_std: Annotated[float, NonNegative] = 0.5
    """standard deviation of the biases"""
    points: Annotated[int, Range(8)] = 1000
    """points of a curve between which sign changes are counted"""

    @classmethod
    def large(cls) -> Config:
        """More networks, wider, deeper; five minutes of a core."""
        return cls(seeds=16, nets=200, width=(16, 64, 256), depth=6, points=2000)


class Result(NamedTuple):
    """``records``: networks, ``breakpoints [1, curve, width, seed, nets, layer]``; theory, ``breakpoints [1, curve,
    layer]`` a unit, ``rate [1, curve, layer, segments]``."""

    config: Config
    records: dict[str, Record]


def run(config: Config, study=in_memory) -> Result:
    """Every curve in networks of every width, and the kernel's count."""
    key = jax.random.key(config.seed)

    def draw(lane):
        stream = jax.random.fold_in(jax.random.fold_in(key, lane.seed), 10 * lane.width + CURVES.index(lane.curve))
        x = jnp.asarray(curve(lane.curve, config.points)[0], jnp.float32)
        return {"breakpoints": counted(stream, x, lane.width, config)}

    axes = {"curve": CURVES, "width": config.width}
    networks = drawn(study, axes | {"seed": range(config.seeds)}, draw, "networks")
    rate = np.array([[expected(name, layer, config) for layer in range(config.depth)] for name in CURVES])[None]
    values, axes = {"breakpoints": rate.sum(-1), "rate": rate}, {"curve": CURVES}
    return Result(config, {"networks": networks, "theory": networks._replace(values=values, axes=axes)})


def layers(width: int, config: Config) -> tuple:
    """The first layer, and one that follows: weight variance 2/fan_in, biases."""
    dense = stax.Dense(width, 2**0.5, config.b_std)
    return dense, stax.serial(stax.Relu(), dense)


@partial(jax.jit, static_argnames=("width", "config"))
def counted(key, x, width, config: Config):
    """Sign changes of each layer's preactivations, all units, ``[nets, layer]``."""
    first, later = layers(width, config)

    def preactivations(params, x):
        h, found = x, {}
        for i, own in enumerate(params):
            h = (later if i else first).apply(own, h)
            found[str(i)] = h
        return found

    count = breakpoints(preactivations, x)

    def one(key):
        keys, shape, params = jax.random.split(key, config.depth), x.shape, []
        for i in range(config.depth):
            shape, own = (later if i else first).init(keys[i], shape)
            params.append(own)
        read = count.update((), View(params, None))[1]
        return jnp.stack([read[f"breakpoints/{i}"] for i in range(config.depth)])

    return jax.lax.map(one, jax.random.split(key, config.nets), batch_size=10)


def expected(name: str, layer: int, config: Config) -> np.ndarray:
    """Probability of a sign change on every segment, in double precision."""
    with jax.enable_x64(True):
        first, later = layers(1, config)
        model: Any = stax.serial(first, *[later] * layer)
        return np.asarray(
            jax.jit(partial(crossing_probabilities, model.kernel))(jnp.asarray(curve(name, config.points)[0]))
        )


def claims(result: Result) -> list[Claim]:
    """Networks are independent; layers of a network are not. (l-1)/n of the theory is allowed in layer l."""
    cfg = result.config
    names = (
        "breakpoints of layer 1, every curve and width",
        "breakpoints of deeper layers, every curve and width, to (l-1)/n",
        "all layers: circle over tractrix, widest network",
    )
    if cfg.seeds * cfg.nets < 400 or cfg.points < 500 or max(cfg.width) < 32:
        note = "needs 400 networks of width 32, 500 points"
        return [Claim.not_applicable(name, "Rice 1945", note) for name in names]
    rows = merged(result.records["networks"].values["breakpoints"])  # [curve, width, layer, nets]
    n, layer = np.asarray(cfg.width)[:, None], np.arange(cfg.depth)
    exact = result.records["theory"].values["breakpoints"][0][:, None] * n
    one = exact.mean(0, keepdims=True) + 0 * exact
    lengths = np.array([np.linalg.norm(np.diff(curve(name, cfg.points)[0], axis=0), axis=1).sum() for name in CURVES])
    by_length = (lengths / lengths[0])[:, None, None] * exact[:1]
    wrong = {"as many on any curve": one, "in proportion to the curve's length": by_length}
    first, deeper = (
        {key: mean_z(rows, v, v * layer / n)[..., at] for key, v in wrong.items()} for at in (slice(1), slice(1, None))
    )
    deeper["as many in every layer"] = mean_z(rows, exact[..., :1] + 0 * exact, exact * layer / n)[..., 1:]
    total = np.asarray(result.records["networks"].values["breakpoints"], float)[0, :, -1].sum(-1).mean(-1)
    ratio = total[0] / total[1]  # [seed]
    theory = exact[0, -1].sum() / exact[1, -1].sum()
    control = {"the same": total[0] / total[0], "paper: more on the tractrix": total[1] / total[0]}
    return [
        Claim.cells(names[0], "Rice 1945", mean_z(rows, exact)[..., :1], rivals=first),
        Claim.cells(names[1], "Rice 1945", mean_z(rows, exact, exact * layer / n)[..., 1:], rivals=deeper),
        Claim.close(
            names[2],
            "regions on the tractrix",
            ratio,
            theory,
            0.06,
            rivals=control,
            note="the paper has more on the tractrix",
        ),
    ]


def figure(result: Result):
    """Breakpoints a unit by layer and curve over Rice's formula; where on the curves they are; one network."""
    cfg, theory = result.config, result.records["theory"].values
    fig, (left, middle, right) = new_figure(1, 3, width=3.7, height=3.6)
    rows = merged(result.records["networks"].values["breakpoints"])
    layer = np.arange(1, cfg.depth + 1)
    for i, name in enumerate(CURVES):
        tint = colour(i, len(CURVES) + 1)
        for j, n in enumerate(cfg.width):
            mean, error = rows[i, j].mean(-1) / n, rows[i, j].std(-1) / n / rows.shape[-1] ** 0.5
            label = f"{name}, n = {n}"
            left.errorbar(layer + 0.06 * j, mean, error, fmt="os^Dv"[j % 5], color=tint, mfc="none", label=label)
        left.plot(layer, theory["breakpoints"][0, i], "-", color=tint)
        x = curve(name, cfg.points)[0]
        moved = np.linalg.norm(np.diff(x, axis=0), axis=1)
        rate = theory["rate"][0, i, -1] / np.maximum(moved, 1e-12)
        at = np.linspace(-1, 1, len(rate))
        middle.plot(at[moved > 1e-6], rate[moved > 1e-6], "-", color=tint, label=name)
        right.plot(*x.T, "-", color=tint, lw=3, alpha=0.5)
    left.axhline(theory["breakpoints"][0, :, 0].mean(), label="as many on any curve", **rival_style(0))
    left.set(xlabel="layer", ylabel="breakpoints a unit; lines: Rice", ylim=(0, 2.2), xticks=layer)
    left.legend(fontsize=6.5, ncol=2, loc="lower left")
    middle.set(xlabel="along the curve", ylabel=f"breakpoints a unit and length, layer {cfg.depth}", ylim=(0, None))
    middle.set_xticks([-1, 0, 1], labels=["start", "middle", "end"])
    middle.legend(fontsize=7)
    _draw_one(right, cfg)
    return fig


def _draw_one(axes, cfg: Config) -> None:
    """The lines and folds of one network of width 16 in the plane."""
    grid = np.linspace(-1.8, 1.8, 200)
    x = jnp.asarray(np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2), jnp.float32)
    first, later = layers(16, cfg)
    keys, h = jax.random.split(jax.random.key(cfg.seed), cfg.depth), x
    for i in range(cfg.depth):
        layer = later if i else first
        h = layer.apply(layer.init(keys[i], h.shape)[1], h)
        for unit in np.asarray(h).T:
            if np.ptp(np.sign(unit)) > 0:
                axes.contour(
                    grid, grid, unit.reshape(200, 200), [0.0], colors=[colour(i, cfg.depth + 1)], linewidths=0.5
                )
    axes.set(aspect="equal", xlabel="input 1", ylabel="input 2", xlim=(-1.8, 1.8), ylim=(-1.8, 1.8))
    axes.set_title("one network, n = 16: its kinks by layer, and the curves", fontsize=8)


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
