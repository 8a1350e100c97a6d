"""Provable emergence of features and the memorise/generalise boundary (Tian 2025, Li_2).

On the addition table of a cyclic group of M elements, hidden neurons first climb, each on its own, the energy
``E(w) = 1/2 |Y~^T sigma(X w)|^2`` with ``sigma(h) = h^2`` and ``Y~`` the centred one-hot targets. Its local maxima are
single frequencies, and all (M - 1)/2 of them are found. How many table entries are needed is set by the train fraction
``c log(M)/M``: with c well below about 2.75 the network memorises, above it generalises. The run ascends the landscape
from random starts, and trains a two-layer network end to end on both sides of the boundary (half the squared error,
summed over zero-mean outputs and averaged over samples; Adam with coupled L2), with the gradient G_F that reaches the
hidden layer logged.

Run time: about 40 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dynamics import config
from dynamics.config import Count, NonNegative, Positive, Range
from dynamics.evolve import descent, log_steps
from dynamics.evolve import study as in_memory
from dynamics.losses import half_mse
from dynamics.models.two_layer import two_layer
from dynamics.observe import accuracy, joined, loss, prefixed
from dynamics.runs.figures import measured_style, new_figure, theory_style
from dynamics.statistics import frequency_share, top_frequency, weight_norm
from dynamics.tasks.modular import operation_table, table_task
from dynamics.theory.modular import generalisation_fraction
from dynamics.types import Claim, Dynamics, Objective, Record

SOURCE = "Tian 2025, 'Provable scaling laws of feature emergence from learning dynamics of grokking'"
SECONDS = 40


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    modulus: Annotated[int, Range(5, 500)] = 23
    """group size M (odd)"""
    boundary: Annotated[tuple[float, ...], Positive] = (2.0, 2.75, 3.5)
    """train fractions in units of log(M)/M"""
    width: Annotated[int, Count] = 512
    """hidden units H"""
    optimizer: tuple[Literal["adam", "muon"], ...] = ("adam",)
    """optimisers compared at every train fraction"""
    learning_rate: Annotated[float, Positive] = 2e-3
    """learning rate"""
    weight_decay: Annotated[float, NonNegative] = 2e-4
    """L2 penalty, coupled (added to the gradient)"""
    steps: Annotated[int, Count] = 1500
    """updates of the end-to-end runs"""
    starts: Annotated[int, Count] = 256
    """random starts on the energy landscape"""
    ascent_steps: Annotated[int, Count] = 1000
    """steps of energy ascent"""

    @classmethod
    def paper(cls) -> Config:
        return cls(modulus=71, boundary=(1.5, 2.0, 2.5, 3.0, 3.5), width=2048, steps=10_000, optimizer=("adam", "muon"))

    def __post_init__(self):
        super().__post_init__()
        self.require(self.modulus % 2 == 1, "modulus", "an odd integer")
        highest = float(self.modulus / np.log(self.modulus))
        self.require(max(self.boundary) < highest, "boundary", f"below M/log(M) = {highest:.3g}, the whole table")


class Result(NamedTuple):
    """``records``: ``ascent`` with values ``[T, starts]``; each ``<optimizer>``'s ``[T, fractions, seeds]``."""

    config: Config
    records: dict[str, Record]


def run(config: Config, study=in_memory) -> Result:
    ascent, trained = climb(config, study), train(config, study)
    return Result(config, {"ascent": ascent} | {name: trained.at(optimizer=name) for name in config.optimizer})


def climb(config: Config, study) -> Record:
    """Gradient ascent of every start on the unit sphere, on the whole table."""
    m, key = config.modulus, jax.random.key(config.seed)
    starts = np.asarray(jax.random.normal(key, (config.starts, 2 * m)))

    def step(key, w, table):
        return normalised(w + 2.0 / m * jax.grad(energy)(w, table))

    def read(w, table):
        u = w[:m]
        return {"energy": energy(w, table), "share": frequency_share(u), "frequency": top_frequency(u)}

    return study(
        {"start": range(config.starts)},
        lambda lane: starts[lane.start], lambda lane: Dynamics(normalised, step, lambda w: w), [read],
        steps=config.ascent_steps, record_at=log_steps(config.ascent_steps, 40), key=key,
        data=jnp.asarray(operation_table("add", m)), label="ascent",
    )  # fmt: skip


def normalised(w):
    return w / jnp.linalg.norm(w, axis=-1, keepdims=True)


def energy(w, table):
    """``E(w) = 1/2 |Y~^T (X w)^2|^2`` for ``w [..., 2M]``; ``[...]``."""
    m = table.shape[0]
    h = (w[..., :m, None] + w[..., None, m:]) ** 2  # [..., M, M]
    sums = jnp.zeros((*h.shape[:-2], m)).at[..., table].add(h)  # over the cells with one answer
    return 0.5 * jnp.sum((sums - jnp.mean(sums, axis=-1, keepdims=True)) ** 2, axis=-1)


def train(config: Config, study) -> Record:
    """End-to-end training: ``[T, optimisers, fractions, seeds]``."""
    m, key = config.modulus, jax.random.key(config.seed)
    table, model = operation_table("add", m), two_layer(config.width, m, jnp.square)
    L = Objective(centred_outputs(model.apply), lambda f, y: half_mse(f, y - 1 / m))

    def draw(lane):
        split_key, weight_key = jax.random.split(jax.random.fold_in(key, lane.seed))
        data = table_task(split_key, table, generalisation_fraction(m, lane.boundary))
        return data, model.init(weight_key, (-1, 2 * m))[1]

    def make(lane):
        decay, rate = optax.add_decayed_weights(config.weight_decay), optax.scale_by_learning_rate(config.learning_rate)
        step = optax.scale_by_adam(b2=0.999) if lane.optimizer == "adam" else muon()
        return descent(L, optax.chain(decay, step, rate))

    return study(
        {"optimizer": config.optimizer, "boundary": config.boundary, "seed": range(config.seeds)},
        draw, make, [prefixed("train", joined(loss(), accuracy())), features], test=accuracy(), steps=config.steps,
        record_at=log_steps(config.steps, 100), key=key, label="training",
    )  # fmt: skip


def muon() -> optax.GradientTransformation:
    """Muon on both layers, its updates brought to the root mean square 0.2 that Adam's have (Liu et al. 2025)."""

    def every_matrix(updates):
        return jax.tree.map(lambda leaf: optax.contrib.MuonDimensionNumbers(), updates)

    def as_adam(updates, params):
        return jax.tree.map(lambda leaf: 0.2 * max(leaf.shape) ** 0.5 * leaf, updates)

    return optax.chain(optax.contrib.scale_by_muon(weight_dimension_numbers=every_matrix), optax.stateless(as_adam))


def centred_outputs(apply):
    """The network with its outputs' mean over classes taken off, as its targets' is."""

    def centred(params, x):
        f = apply(params, x)
        return f - jnp.mean(f, axis=1, keepdims=True)

    return centred


def features(params, batch):
    """The size of the gradient that reaches the hidden layer, its direction, and how single-tone neurons are.

    ``G_F = (Y~ - f) V / n`` with ``f = F V^T``; ``feature_direction`` is its cosine with ``Y~ Y~^T F``, the direction
    in which every neuron climbs the energy on its own (stage II).
    """
    first, second = params
    m = second.shape[0]
    hidden, y = jnp.square(batch.x @ first.T), batch.y - 1 / m
    centred = second - jnp.mean(second, axis=0)
    g_f = (y - hidden @ centred.T) @ centred / y.shape[0]
    climb, size = y @ (y.T @ hidden), jnp.linalg.norm(first, axis=1)
    return {
        "gradient_norm": jnp.linalg.norm(g_f),
        "feature_direction": jnp.sum(g_f * climb) / (jnp.linalg.norm(g_f) * jnp.linalg.norm(climb)),
        "share": jnp.sum(size * frequency_share(first[:, :m])) / jnp.sum(size),
        "weight_norm": weight_norm(params),
    }


def claims(result: Result) -> list[Claim]:
    cfg, ascent, out = result.config, result.records["ascent"].values, []
    share, frequencies = np.asarray(ascent["share"])[-1], np.unique(np.asarray(ascent["frequency"])[-1])
    highest, half = np.abs(np.asarray(ascent["energy"])[-1] / (cfg.modulus / 4) - 1).max(), (cfg.modulus - 1) // 2
    out.append(
        Claim.at_least("single-frequency share at the maxima of the energy, lowest", "theorem 2", share.min(), 0.999)
    )
    out.append(Claim.close("frequencies found among the maxima", "theorem 2", frequencies.size, half, 0))
    out.append(Claim.at_most("energy of the maxima against M/4, largest relative error", "theorem 2", highest, 1e-3))
    for name in cfg.optimizer:
        train, test = (np.asarray(result.records[name].values[f"{part}_accuracy"]) for part in ("train", "test"))
        for i, c in enumerate(cfg.boundary):
            where = f"{name}, c = {c:g}: test accuracy"
            if name == "adam" and c <= 2:
                fitted = f"{name}, c = {c:g}: train accuracy at the end, lowest seed"
                out.append(Claim.at_least(fitted, "theorem 4", train[-1, i].min(), 0.99))
                out.append(Claim.at_most(f"{where}, at the end, highest seed", "theorem 4", test[-1, i].max(), 0.05))
            elif name == "adam" and c >= 3.5:
                out.append(
                    Claim.at_least(f"{where}, best of the run, lowest seed", "theorem 4", test[:, i].max(0).min(), 0.99)
                )
            else:
                note = f"reported: {np.median(test[-1, i]):.3f} at the end (median); at the boundary either may win"
                out.append(Claim.not_applicable(where, "theorem 4", note))
    return out


def figure(result: Result) -> Any:
    """Markers: measurement (medians over seeds); lines: theory."""
    cfg, records = result.config, result.records
    page, panels = new_figure(2, 3)
    ascent, run = records["ascent"], records[cfg.optimizer[0]]
    middle = np.quantile(np.asarray(ascent.values["energy"]), (0, 0.5, 1), axis=1)
    for i, label in enumerate(("lowest start", "median start", "highest start")):
        panels[0, 0].plot(np.maximum(ascent.step, 0.7), middle[i], label=label, **measured_style(i, 3))
    panels[0, 0].axhline(cfg.modulus / 4, label="theory: M/4", **theory_style())
    panels[0, 0].set(xscale="log", xlabel="ascent step", ylabel="energy of a neuron")
    half = (cfg.modulus - 1) // 2
    counts = np.bincount(np.asarray(ascent.values["frequency"])[-1].astype(int), minlength=half + 1)[1:]
    panels[0, 1].bar(np.arange(1, half + 1), counts, color="0.75", edgecolor="black")
    panels[0, 1].axhline(cfg.starts / half, label="uniform", **theory_style())
    panels[0, 1].set(xlabel="frequency of the maximum", ylabel="starts")
    for j, name in enumerate(cfg.optimizer):
        final = np.asarray(records[name].values["test_accuracy"])[-1]
        panels[0, 2].plot(np.repeat(cfg.boundary, final.shape[1]), final.ravel(), label=name, **measured_style(j, 2))
    panels[0, 2].axvline(2.75, label="boundary c = 2.75", **theory_style())
    panels[0, 2].set(xlabel="train fraction in units of log(M)/M", ylabel="final test accuracy", ylim=(-0.05, 1.05))
    names = {"test_accuracy": "test accuracy", "gradient_norm": r"$|G_F|_F$ at the hidden layer"}
    names |= {"feature_direction": r"cosine of $G_F$ and $\tilde Y \tilde Y^T F$"}
    for panel, (name, label) in zip(panels[1], names.items()):
        for i, c in enumerate(cfg.boundary):
            value = np.median(np.asarray(run.values[name])[::2, i], axis=-1)
            panel.plot(
                np.maximum(run.step[::2], 0.7), value, label=f"c = {c:g}", **measured_style(i, len(cfg.boundary))
            )
        panel.set(xscale="log", xlabel="step", ylabel=label)
    panels[1, 1].set(yscale="log")
    for panel in panels.ravel():
        panel.legend(fontsize=7, frameon=False)
    page.suptitle(f"Addition modulo {cfg.modulus}: energy landscape (top), end-to-end training (bottom)")
    return page


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
