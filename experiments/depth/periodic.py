"""What networks do outside their data: ReLU is affine, tanh constant, and snake periodic about a line.

On ``sin x``, |x| <= 2 pi. Beyond its last kink a ReLU network is affine, a tanh network tends to a constant: neither
can go on. Snake, ``x + sin(a x)^2 / a``, keeps oscillating, but fixed random features of it do not extrapolate: their
frequencies are those drawn. Trained by Adam at this size its error in the next period is 0.5, where ReLU has 3 and
predicting 0 gives 0.7: better, and far from the paper's networks, which train longer.

Run time: about 50 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import config
from dynamics.config import Count, Positive, Range
from dynamics.evolve import adam, log_steps
from dynamics.evolve import study as in_memory
from dynamics.losses import half_mse
from dynamics.runs.figures import colour, new_figure, rival_style
from dynamics.types import Batch, Claim, Objective, Observable, Record

from ._draws import drawn

SOURCE = "Ziyin, Hartwig & Ueda 2020, 'Neural networks fail to learn periodic functions and how to fix it'"
SECONDS = 50


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Count] = 16
    """draws of features, and of trained networks"""
    features: Annotated[int, Range(8)] = 200
    """random features n"""
    ridge: Annotated[float, Positive] = 1e-6
    """ridge of the random-feature fit"""
    width: Annotated[int, Range(8)] = 64
    """hidden units of the trained networks"""
    steps: Annotated[int, Count] = 6000
    """updates of Adam"""
    learning_rate: Annotated[float, Positive] = 3e-3
    """its learning rate"""
    periods: Annotated[tuple[int, ...], Count] = (1, 2, 5, 10)
    """periods beyond the data in which errors are read, the first the next"""

    @classmethod
    def large(cls) -> Config:
        """More features, wider networks, longer; four minutes of a core."""
        return cls(seeds=32, features=400, width=128, steps=12_000)


class Result(NamedTuple):
    """``records``: features, ``inside [1, activation, seed]``, ``outside [1, activation, seed, periods]`` (root mean
    squares), ``first``, ``second`` (differences far away), ``curve``; trained, ``inside, outside`` ``[T, ...]``."""

    config: Config
    records: dict[str, Record]


PHI = {"ReLU": jax.nn.relu, "tanh": jnp.tanh, "snake": lambda x: x + jnp.sin(x) ** 2}
EDGE, FAR = 2 * np.pi, 1000.0
GRID = np.linspace(-3 * EDGE, 3 * EDGE, 401)


def inputs(periods) -> tuple[np.ndarray, np.ndarray]:
    """``x`` of the data, and of both sides of each period beyond ``[periods, points]``."""
    t = np.linspace(0, EDGE, 100)
    return np.linspace(-EDGE, EDGE, 300), np.stack([np.r_[EDGE * p + t, -EDGE * p - t] for p in periods])


def run(config: Config, study=in_memory) -> Result:
    """Random features in double precision; networks trained side by side."""
    key, records = jax.random.key(config.seed), {}
    with jax.enable_x64(True):

        def draw(lane):
            stream = jax.random.fold_in(key, lane.seed)
            return fit(stream, lane.activation, config.features, config.ridge, config.periods)

        axes = {"activation": tuple(PHI), "seed": range(config.seeds)}
        records["features"] = drawn(study, axes, draw, "features")
    records["trained"] = train(config, study, key)
    return Result(config, records)


@partial(jax.jit, static_argnames=("name", "n", "periods"))
def fit(key, name, n, ridge, periods):
    """Ridge regression on n random features."""
    inside, outside = inputs(periods)
    one, two = jax.random.split(key)
    w, b = jax.random.normal(one, (n,)), jax.random.uniform(two, (n,), minval=-EDGE, maxval=EDGE)

    def features(x):
        return PHI[name](x[..., None] * w + b) / n**0.5

    A = features(inside)
    c = jnp.linalg.solve(A.T @ A + ridge * jnp.eye(n), A.T @ jnp.sin(inside))
    f = [features(jnp.asarray(x)) @ c for x in (inside, outside, FAR + np.arange(3.0), GRID)]
    rms = [jnp.sqrt(jnp.mean((value - jnp.sin(x)) ** 2, -1)) for value, x in zip(f, (inside, outside))]
    far, curve = f[2:]
    first, second = far[1] - far[0], far[2] - 2 * far[1] + far[0]
    return {"inside": rms[0], "outside": rms[1], "first": first, "second": second, "curve": curve}


def train(config: Config, study, key) -> Record:
    """One hidden layer, full batch, half mean squared error, Adam."""
    inside, outside = (jnp.asarray(x, jnp.float32) for x in inputs(config.periods))
    n = config.width

    def network(name):
        return lambda p, x: PHI[name](x @ p["w"] + p["b"]) @ p["v"] / n**0.5

    def draw(lane):
        keys = jax.random.split(jax.random.fold_in(key, 1000 + lane.seed), 3)
        w, v = jax.random.normal(keys[0], (1, n)), jax.random.normal(keys[1], (n, 1))
        return {"w": w, "b": jax.random.uniform(keys[2], (n,), minval=-EDGE, maxval=EDGE), "v": v}

    def read(lane):
        def values(view):
            f = network(lane.activation)
            rms = [
                jnp.sqrt(jnp.mean((f(view.params, x.reshape(-1, 1)).reshape(x.shape) - jnp.sin(x)) ** 2, -1))
                for x in (inside, outside)
            ]
            curve = f(view.params, jnp.asarray(GRID, jnp.float32)[:, None])[:, 0]
            return {"inside": rms[0], "outside": rms[1], "curve": curve}

        return Observable.of_view(values)

    return study(
        {"activation": tuple(PHI), "seed": range(config.seeds)},
        draw=draw,
        make=lambda lane: adam(Objective(network(lane.activation), half_mse), config.learning_rate),
        read=read,
        steps=config.steps,
        record_at=log_steps(config.steps, 20),
        key=key,
        data=Batch(inside[:, None], jnp.sin(inside)[:, None]),
        label="trained",
    )


def claims(result: Result) -> list[Claim]:
    """Draws are independent."""
    return [*feature_claims(result), *trained_claims(result)]


NOTHING = float(np.log(0.5**0.5))
"""log of the error of predicting 0"""


def feature_claims(result: Result) -> list[Claim]:
    cfg = result.config
    names = (
        "ReLU features: second over first difference at x = 1000, worst draw",
        "tanh features: first difference at x = 1000, worst draw",
        "snake features: second difference at x = 1000, median (it oscillates)",
        "snake features: log error 10 periods out (no extrapolation)",
        "log error in the next period, ReLU over snake features",
    )
    if cfg.seeds < 8 or 10 not in cfg.periods or cfg.features < 100:
        note = "needs 8 draws of 100 features, and the tenth period"
        return [Claim.not_applicable(name, "extrapolation of ReLU and tanh", note) for name in names]
    values = {key: np.asarray(value, float)[0] for key, value in result.records["features"].values.items()}
    relu, tanh, snake = range(3)
    ratio = np.abs(values["second"] / values["first"])
    far = np.log(values["outside"][snake, :, cfg.periods.index(10)])
    near = np.log(values["outside"][..., 0])
    first, second = (np.abs(values[key]) for key in ("first", "second"))
    return [
        Claim.at_most(
            names[0],
            "extrapolation of ReLU and tanh",
            ratio[relu].max(),
            1e-9,
            rivals={"snake": np.median(ratio[snake])},
        ),
        Claim.at_most(
            names[1], "extrapolation of ReLU and tanh", first[tanh].max(), 1e-3, rivals={"ReLU": np.median(first[relu])}
        ),
        Claim.at_least(names[2], "snake", np.median(second[snake]), 1e-2, rivals={"ReLU": second[relu].max()}),
        Claim.at_least(
            names[3], "not claimed by the paper", far, NOTHING, rivals={"inside": np.log(values["inside"][snake])}
        ),
        Claim.at_least(names[4], "experiments", near[relu] - near[snake], 1.0, rivals={"no difference": 0.0}),
    ]


def trained_claims(result: Result) -> list[Claim]:
    """At the last step. The paper trains longer and deeper and has errors near 0 outside."""
    cfg = result.config
    names = (
        "trained: log error in the next period, ReLU over snake",
        "trained: log error in the next period, snake",
        "trained: log error in the next period, tanh",
        "trained: log error inside, worst activation",
    )
    if cfg.seeds < 8 or cfg.steps < 3000:
        return [Claim.not_applicable(name, "experiments", "needs 8 networks and 3000 updates") for name in names]
    values = {key: np.asarray(value, float)[-1] for key, value in result.records["trained"].values.items()}
    near, inside = np.log(values["outside"][..., 0]), np.log(values["inside"])
    start = np.log(np.asarray(result.records["trained"].values["inside"], float)[0]).min(0)
    relu, tanh, snake = near
    return [
        Claim.at_least(names[0], "experiments", relu - snake, float(np.log(2)), rivals={"tanh over ReLU": tanh - relu}),
        Claim.at_most(names[1], "experiments", snake, NOTHING, rivals={"ReLU": relu, "tanh": tanh}),
        Claim.at_least(names[2], "extrapolation of ReLU and tanh", tanh, NOTHING, rivals={"snake": snake}),
        Claim.at_most(names[3], "experiments", inside.max(0), float(np.log(0.2)), rivals={"untrained": start}),
    ]


def figure(result: Result):
    """Curves of one draw, by features and by training; errors by period."""
    cfg, records = result.config, result.records
    fig, panels = new_figure(1, 3, width=3.9, height=3.5)
    for axes, name in zip(panels, ("features", "trained")):
        curve = np.asarray(records[name].values["curve"], float)[-1]
        for i, activation in enumerate(PHI):
            axes.plot(GRID / EDGE, curve[i, 0], "-", color=colour(i, 4), lw=1.2, label=activation)
        axes.plot(GRID / EDGE, np.sin(GRID), label="sin x", **rival_style(0))
        axes.axvspan(-1, 1, color="0.93", zorder=0)
        axes.set(xlabel="x / (2 pi); grey: data", ylabel=f"{name}, first draw", ylim=(-4, 4))
    panels[0].legend(fontsize=7.5)
    for j, name in enumerate(("features", "trained")):
        outside = np.log(np.asarray(records[name].values["outside"], float)[-1])
        for i, activation in enumerate(PHI):
            mean, error = outside[i].mean(0), outside[i].std(0) / cfg.seeds**0.5
            style = {"fmt": ("o--", "s-")[j], "mfc": "none", "color": colour(i, 4), "lw": 1}
            panels[2].errorbar(cfg.periods, np.exp(mean), np.exp(mean) * error, label=f"{activation}, {name}", **style)
    panels[2].axhline(0.5**0.5, label="predicting 0", **rival_style(2))
    panels[2].set(
        xscale="log", yscale="log", xlabel="period beyond the data", ylabel="error (geometric mean over draws)"
    )
    panels[2].legend(fontsize=6.5)
    return fig


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
