"""The boundary of trainability is smooth for one datum and fractal for more (after Sohl-Dickstein 2024).

A linear network ``f = w.(W^T x/sqrt n)/n`` of any width n, on P data, moves exactly by ``P(P+1)/2 + P + 1`` numbers.
With ``H = XW``, ``M = HH^T``, ``p = Hw``, ``B = |w|^2``, ``G = XX^T``, ``s = n^-3/2``, ``d = 2s(sp - y)/P`` and
``g = Gd``:

    M' = M - eta0 (gp^T + pg^T) + eta0^2 B gg^T          (rate eta0 of W, eta1 of w)
    p' = p - eta1 Md - eta0 B g + eta0 eta1 (p.d) g
    B' = B - 2 eta1 p.d + eta1^2 d^T M d

Which rates keep the loss bounded is drawn from this map, in float64, and zoomed into. For P = 1 the boundary is a
curve, also for ReLU. For P = 2, of 6 numbers, it is a fractal for most draws, and on average of larger dimension for
more data: width has no part in it. The dimension depends on the draw and grows with the zoom, where the paper has one
number a condition. Its rule, a mean of the last 20 losses below the first, also parts chaos that stays bounded, at
random: by it a fifth of the draws of P = 1 look rough.

Run time: about 60 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import config
from dynamics.backend import by_backend
from dynamics.config import Count, Range
from dynamics.evolve import outcome_map
from dynamics.evolve import study as in_memory
from dynamics.runs.figures import measured_style, new_figure, theory_style
from dynamics.statistics import boundary, box_dimension, pair_dimension
from dynamics.types import Claim, Observable, Record

SOURCE = "Sohl-Dickstein 2024, 'The boundary of neural network trainability is fractal'"
SECONDS = 60
RATES = (-1.0, 5.0)  # log10 of both rates
MOST = 1e6  # loss, in units of the first, from which on a path counts as diverged


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Count] = 48
    """draws of network and data, for the dimensions"""
    data: Annotated[tuple[int, ...], Range(1, 16)] = (1, 2, 4)
    """numbers of data P, ascending"""
    points: Annotated[int, Range(64, 4096)] = 256
    """pixels along each axis of the pictures, a multiple of 4"""
    coarse: Annotated[int, Range(16, 4096)] = 64
    """pixels along each axis for the dimensions of every draw, a multiple of 4"""
    levels: Annotated[int, Range(1, 16)] = 6
    """pictures, each four times closer than the one before"""
    steps: Annotated[int, Count] = 300
    """updates"""
    width: Annotated[int, Count] = 16
    """hidden units n"""

    @classmethod
    def large(cls) -> Config:
        """512 pixels, eight levels, four numbers of data; thirteen minutes of a core."""
        return cls(seeds=48, data=(1, 2, 4, 8), points=512, coarse=128, levels=8)

    @classmethod
    def paper(cls) -> Config:
        """Its number of steps, with 512 pixels for its 4096; eight minutes of a core.

        7 of 8 claims hold: the dimension of four data is above that of two by .098 +- .034, 2.9 standard errors for 3.
        """
        return cls(points=512, coarse=128, levels=8, steps=1000)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(bool(np.all(np.diff(self.data) > 0)), "data", "ascending numbers")
        for field in ("points", "coarse"):
            self.require(getattr(self, field) % 4 == 0, field, "multiples of 4")


class Result(NamedTuple):
    """``records``: ``dimension`` (``box, pair [1, P, seed, level]``), ``network`` (share of pixels of the network's
    label, of the map and of the map to first order: ``map, first_order [1, P]``), ``picture`` (``shade [1, P, level, r,
    r]``: how slowly it converges, or minus how slowly it diverges, and ``corner [1, P, level, 2]``, log10 of the lowest
    rates) of the draw nearest to the mean; ``relu dimension`` and
    ``relu picture``: of a ReLU network on one datum."""

    config: Config
    records: dict[str, Record]


def run(config: Config, study=in_memory) -> Result:
    """Every number of data and draw; one program for each number of data."""
    drawn = Observable.of_view(lambda view: view.params)

    def read(name, axes, draw):
        with jax.enable_x64(True):
            return study(axes, draw, None, [drawn], steps=0, data=(), key=jax.random.key(config.seed), label=name)

    def dimensions(maps) -> dict:
        found = [(box_dimension(boundary(one.label)).value, pair_dimension(one.label).value) for one in maps]
        found += [(np.nan, np.nan)] * (config.levels - len(maps))
        return {name: np.array(values) for name, values in zip(("box", "pair"), zip(*found))}

    def of_draw(lane):
        return dimensions(zoomed(config, lane.data, lane.seed, config.coarse))

    def of_relu(lane):
        return dimensions(zoomed(config, 1, lane.seed, config.coarse, relu_outcome))

    draws = range(-(-config.seeds // 8))
    records = {"dimension": read("dimension", {"data": config.data, "seed": range(config.seeds)}, of_draw)}
    records["relu dimension"] = read("relu dimension", {"seed": draws}, of_relu)
    records["network"] = read("network", {"data": config.data}, lambda lane: agreement(config, lane.data))
    shown = dict(zip(config.data, map(typical, records["dimension"].values["box"][0, :, :, -1])))

    def picture(lane):
        return stacked(config, zoomed(config, lane.data, shown[lane.data], config.points))

    def relu_picture(lane):
        return stacked(config, zoomed(config, 1, lane.seed, config.points // 4, relu_outcome))

    records["picture"] = read("picture", {"data": config.data}, picture)
    records["relu picture"] = read("relu picture", {"seed": [0]}, relu_picture)
    return Result(config, records)


def typical(values) -> int:
    """The draw nearest to the mean."""
    apart = np.abs(values - np.mean(values[np.isfinite(values)])) if np.isfinite(values).any() else values
    return int(np.argmin(np.where(np.isfinite(apart), apart, np.inf)))


def drawn_network(config: Config, P: int, seed: int) -> dict:
    """Unit Gaussian weights and data, in float64."""
    rng, n = np.random.default_rng([config.seed, P, seed]), config.width
    x, y, first, second = rng.normal(size=(P, n)), rng.normal(size=P), rng.normal(size=(n, n)), rng.normal(size=n)
    return {"x": x, "y": y, "W": first, "w": second}


def cached(pixels: int) -> int | None:
    """As many as a CPU's cache holds of networks, whose states are larger; elsewhere the default."""
    return by_backend(pixels, None)


def zoomed(config: Config, P: int, seed: int, points: int, outcome=None):
    """The maps of one draw, level by level."""
    parallel = None if outcome is None else cached(1024)
    outcome, given = outcome or linear_outcome, drawn_network(config, P, seed)
    return outcome_map(
        outcome(config.steps), RATES, RATES, given, points=points, levels=config.levels, parallel=parallel
    )


def judged(steps: int, forward, move, start, y):
    """``(bounded, shade)`` of the path of a state: whether its loss stays below ``MOST`` times the first."""
    first = jnp.mean((forward(start) - y) ** 2)

    def step(t, carry):
        state, highest, shade = carry
        loss = jnp.mean((forward(state) - y) ** 2) / first
        loss = jnp.where(loss < MOST, loss, MOST)  # a NaN too
        return move(state), jnp.maximum(highest, loss), shade + jnp.minimum(loss, 1 / jnp.maximum(loss, 1 / MOST))

    _, highest, shade = jax.lax.fori_loop(0, steps, step, (start, jnp.zeros(()), jnp.zeros(())))
    return highest < MOST, shade


@functools.cache
def linear_outcome(steps: int, second_order: float = 1.0):
    """``(log10 eta0, log10 eta1, draw) -> (converged, shade)`` by the exact map, written out number by number."""

    def outcome(a, b, given):
        eta0, eta1 = 10.0**a, 10.0**b
        P, n = given["x"].shape
        H, s, K = given["x"] @ given["W"], n**-1.5, range(P)
        G, M, p, B = given["x"] @ given["x"].T, H @ H.T, H @ given["w"], given["w"] @ given["w"]
        pairs = [(i, j) for i in K for j in range(i, P)]
        start = {ij: M[ij] for ij in pairs}, [p[i] for i in K], B

        def move(state):
            M, p, B = state
            d = [2 * s * (s * p[i] - given["y"][i]) / P for i in K]
            u = [eta0 * sum(G[i, j] * d[j] for j in K) for i in K]
            Md = [sum(M[min(i, j), max(i, j)] * d[j] for j in K) for i in K]
            pd, curved = sum(p[i] * d[i] for i in K), second_order * sum(d[i] * Md[i] for i in K)
            cross = second_order * eta1 * pd - B
            M = {(i, j): M[i, j] - u[i] * p[j] - p[i] * u[j] + second_order * B * u[i] * u[j] for i, j in pairs}
            return M, [p[i] - eta1 * Md[i] + cross * u[i] for i in K], B - 2 * eta1 * pd + eta1**2 * curved

        return judged(steps, lambda state: jnp.stack([s * q for q in state[1]]), move, start, given["y"])

    return outcome


@functools.cache
def network_outcome(steps: int, phi=lambda z: z):
    """The same of the network itself, its weights moved by its gradients."""

    def outcome(a, b, given):
        eta0, eta1 = 10.0**a, 10.0**b
        x, y, n = given["x"], given["y"], given["x"].shape[1]

        def forward(weights):
            return phi(x @ weights[0] / n**0.5) @ weights[1] / n

        def move(weights):
            slopes = jax.grad(lambda weights: jnp.mean((forward(weights) - y) ** 2))(weights)
            return weights[0] - eta0 * slopes[0], weights[1] - eta1 * slopes[1]

        return judged(steps, forward, move, (given["W"], given["w"]), y)

    return outcome


@functools.cache
def relu_outcome(steps: int):
    """A ReLU network on one datum, which W enters by ``h = W^T x`` alone: ``h' = h - eta0 |x|^2 dL/dh``."""

    def outcome(a, b, given):
        eta0, eta1 = 10.0**a, 10.0**b
        (x,), y, n = given["x"], given["y"], given["x"].shape[1]

        def forward(state):
            h, w = state
            return (jnp.sqrt(2.0) * jax.nn.relu(h / n**0.5) @ w / n)[None]

        def move(state):
            at_h, at_w = jax.grad(lambda state: jnp.mean((forward(state) - y) ** 2))(state)
            return state[0] - eta0 * (x @ x) * at_h, state[1] - eta1 * at_w

        return judged(steps, forward, move, (x @ given["W"], given["w"]), y)

    return outcome


def agreement(config: Config, P: int) -> dict:
    """Share of pixels of the first picture on which maps have the network's label."""
    given, points = drawn_network(config, P, 0), min(config.points, 64)

    def label(outcome):
        return outcome_map(outcome, RATES, RATES, given, points=points, parallel=cached(256))[0].label

    truth = label(network_outcome(config.steps))
    maps = {"map": linear_outcome(config.steps), "first_order": linear_outcome(config.steps, second_order=0.0)}
    return {name: np.mean(label(one) == truth) for name, one in maps.items()}


def stacked(config: Config, maps) -> dict:
    """Pictures as one array; of levels that there are not, NaN."""
    shade = [np.where(one.label, one.shade, -one.shade).astype(np.float32) for one in maps]
    corner = [np.array([one.x[0], one.y[0]]) for one in maps]
    missing = config.levels - len(maps)
    shade, corner = shade + [np.full_like(shade[0], np.nan)] * missing, corner + [np.full(2, np.nan)] * missing
    return {"shade": np.stack(shade), "corner": np.stack(corner)}


def claims(result: Result) -> list[Claim]:
    """Over independent draws of network and data."""
    cfg, out = result.config, []
    box, pair = (result.records["dimension"].values[name][0] for name in ("box", "pair"))  # [P, seed, level]
    share = {name: values[0] for name, values in result.records["network"].values.items()}
    out.append(
        Claim.at_least(
            "share of pixels on which map and network agree, smallest over P",
            "the reduction",
            float(np.min(share["map"])),
            0.999,
            rivals={"the map to first order in the rates": float(np.min(share["first_order"]))},
        )
    )
    titles = (
        "ReLU, P = 1: box dimension of the last level",
        "P = 1: box dimension of the last level",
        "P = 1: pair dimension of the last level",
        "P = 2: box dimension of the last level",
        "P = 2: distance of box and pair dimension, last level",
        "dimension over the zoomed levels by both, P = 4 minus P = 2",
        "dimension over the zoomed levels by both, P = 2 minus P = 1",
    )
    if cfg.seeds < 8 or not {1, 2, 4} <= set(cfg.data) or cfg.levels < 3 or np.isnan(box[:, :, -1]).any():
        return out + [
            Claim.not_applicable(t, "figures 1-2", "needs P = 1, 2, 4, three levels, 8 draws") for t in titles
        ]
    last = {P: (box[i, :, -1], pair[i, :, -1]) for i, P in enumerate(cfg.data)}
    zoomed = {P: (box[i, :, 1:] + pair[i, :, 1:]).mean(-1) / 2 for i, P in enumerate(cfg.data)}
    rival, relu = "as for P = 4", result.records["relu dimension"].values["box"][0, :, -1]
    relu = relu[np.isfinite(relu)]  # of some draws all pixels are of one phase
    apart, smooth = np.abs(last[2][0] - last[2][1]), np.abs(last[2][0] - 1)
    return [
        *out,
        Claim.close(titles[0], "not the paper's", relu, 1.0, 0.03, rivals={rival: last[4][0]}),
        Claim.close(titles[1], "theory: a curve", last[1][0], 1.0, 0.03, rivals={rival: last[4][0]}),
        Claim.close(titles[2], "theory: a curve", last[1][1], 1.0, 0.03, rivals={rival: last[4][1]}),
        Claim.at_least(titles[3], "figures 1-2", last[2][0], 1.2, rivals={"as for P = 1": last[1][0]}),
        Claim.at_most(titles[4], "two estimators", apart, 0.15, rivals={"a smooth boundary": smooth}),
        Claim.at_least(titles[5], "rises with P", zoomed[4] - zoomed[2], 0.0, rivals={"width makes it, not P": 0.0}),
        Claim.at_least(titles[6], "rises with P", zoomed[2] - zoomed[1], 0.0, rivals={"width makes it, not P": 0.0}),
    ]


def figure(result: Result):
    """A strip of zooms for each number of data, the next picture framed; the dimension by level, over the draws."""
    cfg, picture, relu = result.config, result.records["picture"].values, result.records["relu picture"].values
    strips = [(f"P = {P}", *(picture[name][0, i] for name in ("shade", "corner"))) for i, P in enumerate(cfg.data)]
    strips.append(("ReLU, P = 1", relu["shade"][0, 0], relu["corner"][0, 0]))
    dimensions = [
        {name: values[0, i] for name, values in result.records["dimension"].values.items()}
        for i in range(len(cfg.data))
    ]
    dimensions.append({name: values[0] for name, values in result.records["relu dimension"].values.items()})
    fig, axes = new_figure(len(strips), cfg.levels + 1, width=2.1, height=2.15)
    for row, (name, shades, corners), found in zip(axes, strips, dimensions):
        for level, ax in enumerate(row[:-1]):
            draw_picture(ax, shades[level], level, corners[level : level + 2])
        row[0].set_ylabel(name, fontsize=10)
        for i, (kind, values) in enumerate(found.items()):  # [seed, level]
            known = np.isfinite(values)
            count = np.maximum(known.sum(0), 1)
            mean = np.sum(values, 0, where=known) / count
            spread = np.sqrt(np.sum((values - mean) ** 2, 0, where=known) / count)
            style = measured_style(i, 2) | {"linestyle": "-", "lw": 1}
            row[-1].errorbar(np.arange(cfg.levels) + 0.1 * i, mean, spread, ms=4, label=kind, **style)
        row[-1].set(ylim=(0.8, 2.05), xlabel="level", ylabel="dimension")
        row[-1].axhline(1.0, **theory_style())
    for level, ax in enumerate(axes[0][:-1]):
        ax.set_title(f"{4**level} x" if level else "log10 of both rates, -1 to 5", fontsize=9)
    axes[0][-1].legend(fontsize=7)
    return fig


def draw_picture(ax, shade, level: int, corners) -> None:
    """One picture, with a frame around the next; ``corners [1 or 2, 2]``."""
    from matplotlib.patches import Rectangle

    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    ax.spines[:].set_visible(False)
    if np.isnan(shade).all():
        ax.text(0.5, 0.5, "one phase", transform=ax.transAxes, ha="center", fontsize=8)
        return
    ax.imshow(painted(shade).swapaxes(0, 1), origin="lower", interpolation="antialiased")
    if len(corners) > 1 and np.isfinite(corners).all():
        side = len(shade) / 4
        tile = np.round((corners[1] - corners[0]) * 4 ** (level + 1) / (RATES[1] - RATES[0]))
        ax.add_patch(Rectangle(tuple(tile * side - 0.5), side, side, fill=False, color="white", lw=1.2))


def painted(shade: np.ndarray) -> np.ndarray:
    """``[r, r, 3]``: blues where it trains, reds where it does not, lighter the slower, in equal shares of each."""
    import matplotlib

    rgb = np.zeros((*shade.shape, 3))
    for sign, name in ((1, "GnBu_r"), (-1, "OrRd_r")):
        inside = sign * shade > 0
        values = np.abs(shade[inside])
        rank = np.searchsorted(np.sort(values), values) / max(values.size - 1, 1)
        rgb[inside] = matplotlib.colormaps[name](0.05 + 0.85 * rank)[:, :3]
    return rgb


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
