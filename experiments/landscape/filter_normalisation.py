"""Filter normalisation: what it makes of a slice, and what it does not (Li, Xu, Taylor, Studer & Goldstein 2018).

A random direction d is drawn with each filter (a column of incoming weights) as long as the network's, ``|d_f| =
|theta_f|``. A ReLU network is the same function when a layer is scaled by c and the next by 1/c: its slices along raw
directions change with c, those along normalised ones do not. They do change when each unit of a layer has a c of its
own, which only a direction in proportion to every weight survives. What a slice shows is, on average over directions,

    E d^T H d = sum_f |theta_f|^2 tr H_ff / m_f        (m_f weights in f, H_ff its diagonal block of the Hessian)

and not the trace of H. That skips make deep networks smooth is not run.

Run time: about 25 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import config, observe
from dynamics.config import Count, Positive, Range
from dynamics.evolve import gradient_descent
from dynamics.evolve import study as in_memory
from dynamics.losses import half_mse
from dynamics.runs.figures import measured_style, new_figure, rival_style, theory_style
from dynamics.types import Batch, Claim, Objective, Observable, Record

SOURCE = "Li, Xu, Taylor, Studer & Goldstein 2018, 'Visualizing the loss landscape of neural nets'"
SECONDS = 25
SCALES = {"none": "raw", "filter": "by filter", "weight": "by weight"}
RESCALED = {"same": "as it is", "layers": "layers rescaled", "units": "units rescaled"}


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Count] = 6
    """networks, each with its data"""
    width: Annotated[int, Count] = 16
    """units of each of two hidden layers"""
    inputs: Annotated[int, Count] = 8
    """input dimension"""
    samples: Annotated[int, Count] = 64
    """training samples"""
    steps: Annotated[int, Count] = 300
    """updates before the landscape is looked at"""
    eta: Annotated[float, Positive] = 0.1
    """learning rate"""
    directions: Annotated[int, Range(2)] = 2000
    """random directions for the mean curvature"""
    points: Annotated[int, Range(3)] = 41
    """points of a slice"""
    radius: Annotated[float, Positive] = 1.0
    """slices reach from -radius to radius"""
    factor: Annotated[float, Range(1.0, open_low=True)] = 3.0
    """c: of a layer, and typically of a unit"""

    @classmethod
    def large(cls) -> Config:
        """A wider network, more of them; two minutes of a core and 5 GB."""
        return cls(seeds=20, width=64, inputs=16, samples=256, steps=2000, directions=4000)


class Result(NamedTuple):
    """``records['slices']``: ``SCALE SCALED [1, seed, points]`` of ``SCALES`` and ``RESCALED``, ``curvature,
    curvature_error, theory, trace [1, seed]``."""

    config: Config
    records: dict[str, Record]


def network(params, x):
    """Two hidden layers of ReLU units."""
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["w"] + layer["b"])
    return x @ params[-1]["w"] + params[-1]["b"]


L = Objective(network, half_mse)


def run(config: Config, study=in_memory) -> Result:
    """Networks are trained; the landscape is read at their last step, in float64."""
    key, sizes = jax.random.key(config.seed), (config.inputs, config.width, config.width, 1)

    def draw(lane):
        kx, kt, kw = jax.random.split(jax.random.fold_in(key, lane.seed), 3)
        x = jax.random.normal(kx, (config.samples, config.inputs))
        teacher, params = (started(k, sizes) for k in (kt, kw))
        return Batch(x, network(teacher, x)), params

    with jax.enable_x64(True):
        axes = {"seed": range(config.seeds)}
        read = [Observable.of_view(functools.partial(landscape, config))]
        record = study(axes, draw, lambda lane: gradient_descent(L, config.eta), read, steps=config.steps,
                       record_at=[config.steps], key=key, label="slices")  # fmt: skip
    return Result(config, {"slices": record})


def started(key, sizes) -> list[dict]:
    keys = jax.random.split(key, len(sizes) - 1)
    return [
        {"w": jax.random.normal(k, (a, b)) * (2 / a) ** 0.5, "b": jnp.zeros(b)}
        for k, a, b in zip(keys, sizes, sizes[1:])
    ]


def landscape(config: Config, view) -> dict:
    """Slices of the network and of its rescaled twins along the same drawn direction; the mean curvature."""
    params, batch = view.params, view.batch
    kd, ku, kz = jax.random.split(view.key, 3)
    ones = [jnp.full(layer["b"].shape, config.factor) for layer in params[:-1]]
    units = [
        jnp.exp(np.log(config.factor) * jax.random.normal(k, one.shape))
        for k, one in zip(jax.random.split(ku, len(ones)), ones)
    ]
    twins = {"same": params, "layers": rescaled(params, ones), "units": rescaled(params, units)}
    readings = {}
    for scale in SCALES:
        for name, twin in twins.items():
            direction = observe.random_direction(kd, twin, scale=scale)
            line = observe.slice(L, twin, batch, direction, radius=config.radius, points=config.points)
            readings[f"{scale} {name}"] = line.loss
    gradient = jax.grad(lambda p: L(p, batch))

    def bent(key):
        direction = observe.random_direction(key, params)
        pushed = jax.jvp(gradient, (params,), (direction,))[1]
        return sum(jnp.sum(a * b) for a, b in zip(jax.tree.leaves(direction), jax.tree.leaves(pushed)))

    found = jax.lax.map(bent, jax.random.split(kz, config.directions), batch_size=250)
    theory, trace = expected_curvature(gradient, params)
    error = jnp.std(found, ddof=1) / config.directions**0.5
    return readings | {"curvature": jnp.mean(found), "curvature_error": error, "theory": theory, "trace": trace}


def rescaled(params, factors) -> list[dict]:
    """Units of each hidden layer times their factors, what reads them divided by these: the same function."""
    before, out = jnp.ones(()), []
    for layer, after in zip(params, [*factors, jnp.ones(())]):
        w = layer["w"] * after / jnp.reshape(before, (-1, 1))
        out.append({"w": w, "b": layer["b"] * after})
        before = after
    return out


def expected_curvature(gradient, params):
    """``sum_f |theta_f|^2 tr H_ff / m_f`` and ``|theta|^2 tr H / D`` over the weights, from the Hessian's diagonal."""
    weights, D = [layer["w"] for layer in params], sum(layer["w"].size for layer in params)

    def slopes(weights):
        return [layer["w"] for layer in gradient([{"w": w, "b": layer["b"]} for w, layer in zip(weights, params)])]

    diagonal = []
    for i, w in enumerate(weights):

        def entry(j, i=i, w=w):
            basis = [jnp.zeros_like(other) for other in weights]
            basis[i] = jnp.zeros(w.size).at[j].set(1.0).reshape(w.shape)
            return jnp.ravel(jax.jvp(slopes, (weights,), (basis,))[1][i])[j]

        diagonal.append(jax.lax.map(entry, jnp.arange(w.size), batch_size=64).reshape(w.shape))
    filters = sum(jnp.sum(w**2, 0) @ jnp.sum(h, 0) / w.shape[0] for w, h in zip(weights, diagonal))
    return filters, sum(jnp.sum(w**2) for w in weights) * sum(jnp.sum(h) for h in diagonal) / D


def distances(result: Result) -> dict[str, np.ndarray]:
    """Largest distance of a twin's slice from the network's, in units of its largest value, ``[seed]`` each."""
    values, out = result.records["slices"].values, {}
    for scale in SCALES:
        own = values[f"{scale} same"][0]
        for name in list(RESCALED)[1:]:
            out[f"{scale} {name}"] = np.abs(values[f"{scale} {name}"][0] - own).max(-1) / np.abs(own).max(-1)
    return out


def claims(result: Result) -> list[Claim]:
    """Over networks."""
    apart, values = distances(result), result.records["slices"].values
    logs = {name: np.log10(np.maximum(change, 1e-17)) for name, change in apart.items()}
    error = values["curvature_error"][0]
    z, other = ((values["curvature"][0] - values[name][0]) / error for name in ("theory", "trace"))
    ratio = np.mean(values["curvature"][0] / values["theory"][0])
    return [
        Claim.at_most(
            "by filter: change of a slice when layers are rescaled, largest over networks", "section 4",
            float(apart["filter layers"].max()), 1e-9, rivals={"raw directions": float(apart["none layers"].min())},
            note="but for rounding",
        ),
        Claim.at_least(
            "by filter: log10 of a slice's change when units are rescaled", "not the paper's", logs["filter units"],
            -1.0, rivals={"by weight": logs["weight units"], "layers rescaled": logs["filter layers"]},
        ),
        Claim.cells(
            "mean curvature along filter-normalised directions against sum_f |theta_f|^2 tr H_ff / m_f",
            "second moments of d", z, rivals={"|theta|^2 tr H / D": other}, note=f"mean ratio {ratio:.4f}",
        ),
    ]  # fmt: skip


def figure(result: Result):
    """Slices of one network and of its twins; the mean curvature of all against both formulas."""
    cfg, values = result.config, result.records["slices"].values
    fig, axes = new_figure(1, 4, width=3.6, height=3.3)
    at = np.linspace(-cfg.radius, cfg.radius, cfg.points)
    for ax, (scale, title) in zip(axes, SCALES.items()):
        for i, (name, label) in enumerate(RESCALED.items()):
            loss = values[f"{scale} {name}"][0, 0]
            style = theory_style() if name == "same" else measured_style(i, 3) | {"ms": 5}
            ax.plot(at, loss, label=label, **style)
        ax.set(yscale="log", xlabel="distance along the direction", title=title, xticks=[-cfg.radius, 0, cfg.radius])
    axes[0].set_ylabel("loss")
    axes[0].legend(fontsize=7)
    theory, trace = values["theory"][0], values["trace"][0]
    axes[3].errorbar(theory, values["curvature"][0], 3 * values["curvature_error"][0], ms=6, label="measured, 3 s.e.",
                     **measured_style(0))  # fmt: skip
    ends = np.array([theory.min() * 0.9, theory.max() * 1.1])
    axes[3].plot(ends, ends, label="theory", **theory_style())
    axes[3].plot(theory, trace, **(rival_style() | {"linestyle": "none", "marker": "x"}), label="|theta|^2 tr H / D")
    axes[3].set(xlabel="sum over filters of |theta_f|^2 tr H_ff / m_f", ylabel="mean curvature", title="what it shows")
    axes[3].legend(fontsize=7)
    return fig


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
