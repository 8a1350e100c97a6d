"""Grokking by plain gradient descent, with no weight decay at all (Kumar et al. 2023; Gromov 2023).

``f = V (W x)^2 / (2 p N)`` with standard normal weights learns addition modulo p by full-batch gradient descent on the
squared error (mean over samples and outputs). It fits the training set, and generalises later although nothing shrinks
the weights: their norm only grows. What changes is the kernel, which leaves its start and lines up with the labels. A
larger output scale alpha, at a learning rate divided by alpha^2 (the same kernel speed), makes training lazier.

Run time: about 60 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import config
from dynamics.config import Count, Positive, Range
from dynamics.evolve import every, gradient_descent
from dynamics.evolve import study as in_memory
from dynamics.losses import mse
from dynamics.models.scaling import scaled
from dynamics.models.two_layer import TwoLayerParams, two_layer
from dynamics.observe import accuracy, joined, loss, prefixed, seldom
from dynamics.runs.figures import measured_style, new_figure, theory_style
from dynamics.statistics import first_step, frequency_share, time_ratio, value_at, weight_norm
from dynamics.tasks.modular import operation_table, table_task
from dynamics.types import Claim, Model, Objective, Record
from experiments.grokking._mechanism import mechanism

SOURCE = "Kumar et al. 2023, section 5 and appendix (modular arithmetic with vanilla gradient descent)"
SECONDS = 60


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Range(1, 4096)] = 3
    """number of independent seeds, run side by side"""
    modulus: Annotated[int, Range(3, 500)] = 23
    """modulus p"""
    train_fraction: Annotated[float, Range(0, 1, open_low=True, open_high=True)] = 0.9
    """share of the pairs in the training set"""
    width: Annotated[int, Count] = 100
    """hidden units N"""
    alpha: Annotated[float, Positive] = 1.0
    """output scale, in units of 1/(2 p N)"""
    learning_rate: Annotated[float, Positive] = 100.0
    """learning rate at alpha = 1; divided by alpha^2"""
    steps: Annotated[int, Count] = 32_000
    """updates"""

    @classmethod
    def paper(cls) -> Config:
        return cls(seeds=5, width=500, modulus=31, steps=200_000)


class Result(NamedTuple):
    """``records['network']`` with values ``[T, seeds]``."""

    config: Config
    records: dict[str, Record]


def network(config: Config, alpha=1.0) -> Model:
    """Gromov's network with standard normal weights, times ``alpha``."""
    p, width = config.modulus, config.width
    inner = scaled(two_layer(width, p, jnp.square), alpha / (2 * p * width))

    def init(key, input_shape):
        first, second = jax.random.split(key)
        shape = (input_shape[0], p)
        return shape, TwoLayerParams(jax.random.normal(first, (width, 2 * p)), jax.random.normal(second, (p, width)))

    return Model(init, inner.apply)


def run(config: Config, study=in_memory) -> Result:
    return Result(config, {"network": train(config, study, (config.alpha,)).at(alpha=config.alpha)})


def train(config: Config, study, alphas: tuple[float, ...]) -> Record:
    """Every output scale on every seed: ``[T, alphas, seeds]``."""
    p, table, key = config.modulus, operation_table("add", config.modulus), jax.random.key(config.seed)

    def draw(lane):
        split_key, weight_key = jax.random.split(jax.random.fold_in(key, lane.seed))
        return table_task(split_key, table, config.train_fraction), network(config).init(weight_key, (-1, 2 * p))[1]

    def make(lane):
        L = Objective(network(config, lane.alpha).apply, lambda f, y: mse(f, y) / p)
        return gradient_descent(L, config.learning_rate / lane.alpha**2)

    def read(params, batch):
        return {"frequency_share": jnp.mean(frequency_share(params.first[:, :p])), "norm": weight_norm(params)}

    return study(
        {"alpha": alphas, "seed": range(config.seeds)},
        draw, make, [read, prefixed("train", joined(accuracy(), loss())), seldom(mechanism(), 5)],
        test=[accuracy(), loss()], steps=config.steps, record_at=every(max(config.steps // 100, 1), config.steps),
        key=key, label="network",
    )  # fmt: skip


def claims(result: Result) -> list[Claim]:
    record = result.records["network"]
    values = {name: np.asarray(value) for name, value in record.values.items()}
    train = first_step(record.step, values["train_accuracy"], 0.95, "above")
    test = first_step(record.step, values["test_accuracy"], 0.9, "above")
    early = value_at(record.step, values["test_accuracy"], train)
    growth = value_at(record.step, values["norm"], test) / value_at(record.step, values["norm"], train)
    kernel = {k: v[np.isfinite(v).all(axis=1)] for k, v in values.items() if k in ("alignment", "kernel_distance")}
    gain = kernel["alignment"][-1] / kernel["alignment"][0]
    source = "vanilla gradient descent"
    return [
        Claim.at_least("delay: test 90 % / train 95 %, median", source, np.median(time_ratio(test, train)), 1.2),
        Claim.at_most("test accuracy when train is at 95 %, median", source, np.median(early), 0.2),
        Claim.at_least("test accuracy at the end, worst seed", source, values["test_accuracy"][-1].min(), 0.9),
        Claim.at_least("weight norm when it generalises over the norm when it fits, lowest", source, growth.min(), 1.0),
        Claim.at_least("kernel distance at the end, lowest", source, kernel["kernel_distance"][-1].min(), 0.5),
        Claim.at_least("growth of kernel-label alignment, lowest", source, gain.min(), 1.1),
        Claim.at_least(
            "single-frequency share at the end", "Gromov 2023, eq. 5", values["frequency_share"][-1].min(), 0.65
        ),
    ]


def figure(result: Result) -> Any:
    """Markers: medians over seeds; lines: the start, and a network of single frequencies."""
    record, cfg = result.records["network"], result.config
    page, panels = new_figure(1, 4, width=3.7)

    def draw(panel, name, place, label=None):
        value = np.median(np.asarray(record.values[name]), axis=1)
        read = np.flatnonzero(np.isfinite(value))[:: 1 if np.isnan(value).any() else 3]
        panel.plot(record.step[read], value[read], label=label, **measured_style(place, 3))

    for i, part in enumerate(("train", "test")):
        draw(panels[0], f"{part}_accuracy", 2 * i, part)
    draw(panels[1], "norm", 0, "weight norm")
    panels[1].axhline(np.median(record.values["norm"][0]), label="at the start", **theory_style(1))
    draw(panels[2], "kernel_distance", 0, "distance from the start")
    draw(panels[2], "alignment", 2, "alignment with the labels")
    draw(panels[3], "frequency_share", 0, "network")
    panels[3].axhline(1, label="theory: one frequency a neuron", **theory_style())
    labels = ("accuracy", r"$|\theta|_2$", "NTK", "top frequency's share")
    panels[2].set_yscale("log")
    for panel, label in zip(panels, labels):
        panel.set(xlabel="step", ylabel=label)
        panel.legend(fontsize=7, frameon=False)
    page.suptitle(f"Plain gradient descent, no weight decay: addition modulo {cfg.modulus}")
    return page


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
