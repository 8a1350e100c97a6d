"""Feature learning at infinite width: dynamical mean-field theory from lazy to rich (Bordelon & Pehlevan 2022).

Networks of two hidden tanh layers, ``f = w . phi(h^2)/(gamma N)``, take steps ``eta gamma^2 N`` on half the sum of
squared errors over P points with labels that alternate. At small richness gamma their kernels stay where they were and
the tangent kernel tells all; at gamma of order one every layer's kernel grows towards the labels, however wide the
network. ``theory.dmft.deep`` gives outputs, loss, the kernel ``Phi^l`` of each layer and the tangent kernel's alignment
with the labels in that limit, step by step, without a fitted number. The frozen kernel, gradients taken to be
independent of the features, and a response that comes a step late are told apart from it.

Run time: about 60 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import config, stax
from dynamics.config import Count, Positive, Range
from dynamics.evolve import Drawn, gradient_descent
from dynamics.evolve import study as in_memory
from dynamics.runs.figures import measured_style, new_figure, rival_style
from dynamics.statistics import kernel_alignment, kernel_distance
from dynamics.theory.dmft import deep
from dynamics.types import Batch, Claim, Model, Objective, Observable, Record

SOURCE = "Bordelon & Pehlevan 2022, 'Self-consistent dynamical field theory of kernel evolution'"
SECONDS = 60
THEORIES = {"theory": "exact", "independent gradients": "none", "late response": "delayed"}


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Count] = 32
    """networks of each gamma"""
    gamma: Annotated[tuple[float, ...], Positive] = (0.03, 0.1, 0.3, 1.0, 3.0)
    """richness gamma, ascending"""
    width: Annotated[int, Count] = 500
    """hidden units N of each layer"""
    points: Annotated[int, Range(3, 64)] = 4
    """training points P"""
    dim: Annotated[int, Count] = 8
    """input dimension D"""
    eta: Annotated[float, Positive] = 0.1
    """learning rate: a network steps by eta gamma^2 N"""
    steps: Annotated[int, Count] = 20
    """updates"""
    samples: Annotated[int, Count] = 2000
    """neurons of one draw of the theory"""
    draws: Annotated[int, Range(1, 1024)] = 16
    """draws of the theory"""

    @classmethod
    def large(cls) -> Config:
        """Networks twice as wide, a finer grid of gamma; sizes of ours, where the paper has width 2500 and the first
        images of CIFAR-10. Seven minutes of a core and 3 GB."""
        gamma = (0.03, 0.06, 0.1, 0.2, 0.3, 0.6, 1.0, 2.0, 3.0)
        return cls(gamma=gamma, width=1000, samples=4000)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(bool(np.all(np.diff(self.gamma) > 0)), "gamma", "ascending values")
        needed = 4 * (2 * self.points * (self.steps + 1) + 1)
        self.require(self.samples > needed, "samples", f"more than {needed}, 8 for each point and time")


class Result(NamedTuple):
    """``records['networks']`` by gamma and seed, ``['theory']`` by gamma and draw: ``f [T, gamma, n, P]``, ``features
    [T, gamma, n, 2, P, P]``, ``ntk [T, gamma, n, P, P]``; like it the wrong ones, ``independent gradients``, ``late
    response`` and ``frozen kernel``."""

    config: Config
    records: dict[str, Record]


@cache
def network(width: int) -> tuple[Model, Callable]:
    """Two hidden tanh layers in NTK parametrisation; ``(params, x) -> f [P]`` and ``phi(h^l), g^l [2, P, width]``."""
    layers = [stax.Dense(width), stax.Tanh(), stax.Dense(width), stax.Tanh(), stax.Dense(1)]
    first, second, readout = layers[::2]

    def fields(params, x):
        def rest(shift):
            one = first.apply(params[0], x) + shift[0]
            two = second.apply(params[2], jnp.tanh(one)) + shift[1]
            return jnp.sum(readout.apply(params[4], jnp.tanh(two))), jnp.tanh(jnp.stack([one, two]))

        slopes, features = jax.grad(rest, has_aux=True)(jnp.zeros((2, len(x), width)))
        return features, slopes * width**0.5  # g = sqrt(N) df/dh of the network in NTK parametrisation

    return stax.serial(*layers), fields


def run(config: Config, study=in_memory) -> Result:
    """Networks of every gamma as one program; the theory and two wrong ones; the frozen kernel follows from it."""
    batch = data(config)
    records = {"networks": networks(config, batch, study)}
    records |= {name: limit(config, batch, name, study) for name in THEORIES}
    return Result(config, records | {"frozen kernel": frozen(config, records["theory"], np.asarray(batch.y[:, 0]))})


def data(config: Config) -> Batch:
    """P points on the sphere with labels that alternate."""
    x = jax.random.normal(jax.random.fold_in(jax.random.key(config.seed), 0), (config.points, config.dim))
    x = x / jnp.linalg.norm(x, axis=1, keepdims=True) * config.dim**0.5
    return Batch(x, jnp.asarray((-1.0) ** np.arange(config.points))[:, None])


def networks(config: Config, batch: Batch, study) -> Record:
    """Trained networks and their kernels, read at every step."""
    (model, fields), key = network(config.width), jax.random.key(config.seed)
    kernel = batch.x @ batch.x.T / config.dim

    def draw(lane) -> Drawn:
        start = model.init(jax.random.fold_in(key, 1 + lane.seed), (-1, config.dim))[1]
        return Drawn(start, None, {"origin": model.apply(start, batch.x)})

    def output(lane, params, x):
        return (model.apply(params, x) - lane.origin) / (lane.gamma * config.width**0.5)

    def make(lane):
        L = Objective(lambda params, x: output(lane, params, x), lambda f, y: 0.5 * jnp.sum((f - y) ** 2))
        return gradient_descent(L, config.eta * lane.gamma**2 * config.width)

    def read(lane) -> Observable:
        def kernels(view):
            both = fields(view.params, view.batch.x)
            features, g = (jnp.einsum("lan,lbn->lab", one, one) / config.width for one in both)
            ntk = jnp.sum(jnp.stack([kernel, *features]) * jnp.stack([*g, jnp.ones_like(kernel)]), 0)
            return {"f": output(lane, view.params, view.batch.x)[:, 0], "features": features, "ntk": ntk}

        return Observable.of_view(kernels)

    return study(
        {"gamma": config.gamma, "seed": range(config.seeds)}, draw, make, read, steps=config.steps,
        record_at=range(config.steps + 1), key=key, data=batch, label="networks",
    )  # fmt: skip


def limit(config: Config, batch: Batch, name: str, study) -> Record:
    """One of ``THEORIES``: a draw of it is a lane, so that its errors are found as those of networks are."""
    key = jax.random.fold_in(jax.random.key(config.seed), 2**31 - 1)

    def read(lane) -> Observable:
        def draw(view):
            found = deep(
                stax.Tanh(), batch.x, batch.y[:, 0], depth=2, gamma=lane.gamma, eta=config.eta, steps=config.steps,
                key=jax.random.fold_in(key, lane.draw), samples=config.samples, draws=1, responses=THEORIES[name],
            )  # fmt: skip
            features = jnp.einsum("ltatb->tlab", found.features.value)
            return {"f": found.f.value, "features": features, "ntk": found.ntk.value, "failed": found.failed[0]}

        return Observable.of_view(draw)

    axes = {"gamma": config.gamma, "draw": range(config.draws)}
    found = study(axes, lambda lane: (), None, read, steps=0, data=(), label=name)
    values, at = dict(found.values), np.arange(config.steps + 1)
    values |= {one: np.moveaxis(values[one][0], 2, 0) for one in ("f", "features", "ntk")}
    return found._replace(step=at, time=config.eta * at, values=values)


def frozen(config: Config, theory: Record, y: np.ndarray) -> Record:
    """Descent with the kernels of the start."""
    values = {name: np.broadcast_to(theory.values[name][:1], theory.values[name].shape) for name in ("features", "ntk")}
    f = [np.zeros(theory.values["f"].shape[1:])]
    for _ in range(config.steps):
        f.append(f[-1] + config.eta * np.einsum("gnab,gnb->gna", values["ntk"][0], y - f[-1]))
    return theory._replace(values={"f": np.stack(f), **values})


def readings(result: Result, name: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """``{quantity: (value, standard error)}``, ``[T, gamma, ...]``, of the mean over networks or draws, by jackknife:
    outputs, their loss, the layers' kernels, the tangent kernel and its alignment with the labels."""
    values = result.records[name].values
    y = (-1.0) ** np.arange(result.config.points)
    rows = {key: np.moveaxis(np.asarray(values[key], float), 2, 0) for key in ("f", "features", "ntk")}
    count = len(rows["f"])

    def of(f, features, ntk):
        labels = jnp.broadcast_to(jnp.asarray(np.outer(y, y)), ntk.shape)
        alignment = np.asarray(kernel_alignment(jnp.asarray(ntk), labels), float)
        loss = 0.5 * np.sum((f - y) ** 2, -1)
        return {"f": f, "loss": loss, "features": features, "ntk": ntk, "alignment": alignment}

    total = {key: value.sum(0) for key, value in rows.items()}
    whole = of(**{key: value / count for key, value in total.items()})
    if count < 2:
        return {key: (value, np.full_like(value, np.nan)) for key, value in whole.items()}
    parts = [of(**{key: (total[key] - value[i]) / (count - 1) for key, value in rows.items()}) for i in range(count)]
    error = {key: (count - 1) / count**0.5 * np.std([part[key] for part in parts], 0) for key in whole}
    return {key: (value, error[key]) for key, value in whole.items()}


def claims(result: Result) -> list[Claim]:
    """Means over networks against means over draws, in standard errors of both, every step and every gamma."""
    cfg, out = result.config, []
    names = {
        "f": "outputs at every step, point and gamma",
        "loss": "loss of the mean output at every step and gamma",
        "features": "kernels of both layers at every step, pair and gamma",
        "ntk": "tangent kernel at every step, pair and gamma",
        "alignment": "alignment of the tangent kernel with the labels at every step and gamma",
    }
    if cfg.seeds < 16 or cfg.draws < 8 or cfg.width < 200:
        return [
            Claim.not_applicable(name, "eqs. 6-11", "needs 16 networks of 200 and 8 draws") for name in names.values()
        ]
    if any(np.any(record.values.get("failed", False)) for record in result.records.values()):
        return [Claim.not_applicable(name, "eqs. 6-11", "a lane of the theory has failed") for name in names.values()]
    measured = readings(result, "networks")
    others = {name: readings(result, name) for name in (*THEORIES, "frozen kernel")}
    for quantity, name in names.items():
        z = {other: deviations(measured[quantity], found[quantity]) for other, found in others.items()}
        rivals = {other: value for other, value in z.items() if other != "theory"}
        if quantity in ("f", "loss"):
            rivals.pop("late response")  # its outputs are hardly wrong
        (value, _), (theory, _) = measured[quantity], others["theory"][quantity]
        note = f"largest deviation {np.max(np.abs(value - theory)):.3g}"
        out.append(Claim.cells(name, "eqs. 6-11", z["theory"], rivals=rivals, note=note))
    return out


def deviations(measured, theory) -> np.ndarray:
    """In standard errors of the difference; 0 where both are exact (the start's outputs)."""
    (value, error), (other, spread) = measured, theory
    both = np.hypot(error, spread)
    return np.where(both > 1e-6, (value - other) / np.where(both > 1e-6, both, 1.0), 0.0)


def change(read: dict, layer: int) -> np.ndarray:
    """``[gamma]``: how far the mean kernel of a layer has moved at the end."""
    kernels = jnp.asarray(read["features"][0][:, :, layer])
    return np.asarray(kernel_distance(kernels[-1], kernels[0]))


def figure(result: Result):
    """Loss along training, how far the kernel of each layer moves, and the tangent kernel's alignment with labels."""
    cfg, steps = result.config, result.records["networks"].step
    fig, (loss, moved, aligned) = new_figure(1, 3, width=3.9, height=3.8)
    read = {name: readings(result, name) for name in result.records}
    for i, gamma in enumerate(cfg.gamma):
        style = measured_style(i, len(cfg.gamma))
        for ax, quantity in ((loss, "loss"), (aligned, "alignment")):
            value, error = (one[:, i] for one in read["networks"][quantity])
            ax.errorbar(steps, value, 2 * error, ms=3.5, label=f"gamma = {gamma:g}", **style)
            ax.plot(steps, read["theory"][quantity][0][:, i], "-", color=style["color"], lw=1)
    for ax, quantity in ((loss, "loss"), (aligned, "alignment")):
        ax.plot(
            steps, read["frozen kernel"][quantity][0][:, -1], label="frozen kernel", **rival_style(0) | {"zorder": 5}
        )
        ax.set(xlabel="step")
    loss.set(yscale="log", ylabel="loss of the mean output")
    aligned.set(ylabel="tangent kernel's alignment with labels")
    aligned.set_title("frozen kernel: as at the smallest gamma", fontsize=9)
    loss.set_title(f"markers: {cfg.seeds} networks of N = {cfg.width}; lines: theory", fontsize=9)
    loss.legend(fontsize=7)
    for layer, marker in enumerate("os"):
        colour = measured_style(2 * layer, 3)["color"]
        moved.plot(
            cfg.gamma, change(read["networks"], layer), marker, color=colour, mfc="white", label=f"layer {layer + 1}"
        )
        moved.plot(cfg.gamma, change(read["theory"], layer), "-", color=colour, lw=1)
        label = None if layer else "independent gradients"
        moved.plot(cfg.gamma, change(read["independent gradients"], layer), label=label, **rival_style(1))
    moved.set(
        xscale="log", yscale="log", xlabel="richness gamma", ylabel="kernel change |Phi - Phi0| / |Phi0| at the end"
    )
    moved.set_title("frozen kernel: no change", fontsize=9)
    moved.legend(fontsize=7)
    return fig


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
