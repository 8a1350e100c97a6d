"""Grokking modular arithmetic (Power et al. 2022; Gromov 2023; Morwani et al. 2023).

A two-layer network without biases, ``f = V phi(W [hot(a), hot(b)])`` on two one-hots, learns the table ``c = a o b`` of
a group from part of its cells, by full-batch AdamW on cross-entropy. It memorises within tens of steps; with weight
decay it generalises much later, once each neuron has settled on a single irreducible representation, as the
maximum-margin theory predicts: a frequency k modulo p (for multiplication, of the discrete logarithm), one
representation of S_n for permutations. All of them are used, and the margin over ``|theta|_{2,3}^3`` rises towards its
maximum, ``sqrt(2/27)/(sqrt(p) (p - 1))`` for addition. Without weight decay, the control, it never generalises.

Run time: about 30 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dynamics import config
from dynamics.config import Count, NonNegative, Positive, Range
from dynamics.evolve import descent, log_steps
from dynamics.evolve import study as in_memory
from dynamics.losses import cross_entropy
from dynamics.models.two_layer import two_layer
from dynamics.observe import accuracy, joined, loss, prefixed, seldom
from dynamics.runs.figures import measured_style, new_figure, rival_style, theory_style
from dynamics.statistics import (
    Components,
    component_power,
    component_share,
    first_step,
    irreducible_components,
    time_ratio,
    value_at,
    weight_norm,
)
from dynamics.tasks.modular import Operation, operation_table, table_task
from dynamics.theory.modular import group_margin, max_margin, normalised_margin
from dynamics.types import Array, Claim, Objective, Record

from ._mechanism import mechanism

SOURCE = "Gromov 2023, 'Grokking modular arithmetic'; Morwani et al. 2023, 'Feature emergence via margin maximization'"
SECONDS = 30
ACTIVATIONS = {"square": jnp.square, "relu": jax.nn.relu}


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    operation: Operation = "add"
    """the group operation: add or subtract modulo p, multiply modulo a prime p, permute p letters"""
    modulus: Annotated[int, Range(2, 1000)] = 53
    """modulus p (number of letters for permute)"""
    train_fraction: Annotated[float, Range(0, 1, open_low=True, open_high=True)] = 0.33
    """share of the table's cells in the training set"""
    width: Annotated[int, Count] = 128
    """hidden units H"""
    activation: tuple[Literal["square", "relu"], ...] = ("square",)
    """activations phi, one network each"""
    weight_decay: Annotated[tuple[float, ...], NonNegative] = (1.0, 0.0)
    """decoupled weight decay of AdamW; 0 is the control that never generalises"""
    learning_rate: Annotated[float, Positive] = 1e-2
    """learning rate of AdamW"""
    steps: Annotated[int, Count] = 2000
    """updates"""

    def __post_init__(self):
        super().__post_init__()
        operation_table(self.operation, self.modulus)
        self.require(self.operation != "permute" or self.modulus >= 3, "modulus", "3 to 6 letters")

    def components(self) -> Components:
        """The representations of the group (that of addition for subtraction, whose table is none)."""
        group = "add" if self.operation == "subtract" else self.operation
        return irreducible_components(operation_table(group, self.modulus))

    @classmethod
    def permute(cls) -> Config:
        """The symmetric group S_5, 120 elements; four minutes of a core. The margin is not yet positive at its end."""
        return cls(operation="permute", modulus=5, train_fraction=0.5, width=256, seeds=1, steps=2500)

    @classmethod
    def relu(cls) -> Config:
        """A ReLU network: more data and more steps; a minute and a half of a core."""
        return cls(modulus=43, train_fraction=0.4, activation=("square", "relu"), steps=3000)

    @classmethod
    def large(cls) -> Config:
        """Gromov's p = 97, with AdamW on cross-entropy where he has the mean squared error.

        About 20 times the quick preset's work: nine minutes of a core.
        """
        return cls(modulus=97, train_fraction=0.3, width=256, steps=3000)


class Result(NamedTuple):
    """``records[activation]`` with values ``[T, weight decays, seeds]``."""

    config: Config
    records: dict[str, Record]


def run(config: Config, study=in_memory) -> Result:
    table, key = operation_table(config.operation, config.modulus), jax.random.key(config.seed)

    def network(lane):
        return two_layer(config.width, len(table), ACTIVATIONS[lane.activation])

    def draw(lane):
        split_key, weight_key = jax.random.split(jax.random.fold_in(key, lane.seed))
        weights = network(lane).init(weight_key, (-1, 2 * len(table)))[1]
        return table_task(split_key, table, config.train_fraction), weights

    def make(lane):
        optimizer = optax.adamw(config.learning_rate, b1=0.9, b2=0.98, weight_decay=lane.weight_decay)
        return descent(Objective(network(lane).apply, cross_entropy), optimizer)

    learned = partial(read, jnp.asarray(table), config.components())
    record = study(
        {"activation": config.activation, "weight_decay": config.weight_decay, "seed": range(config.seeds)},
        draw, make, [learned, prefixed("train", joined(loss(), accuracy())), seldom(mechanism(), 10)],
        test=[loss(), accuracy()], steps=config.steps, record_at=log_steps(config.steps, 120), key=key,
        label="network",
    )  # fmt: skip
    return Result(config, {name: record.at(activation=name) for name in config.activation})


def read(table: Array, components: Components, params, batch):
    """``frequency_share`` and ``frequencies``: of representations, which are frequencies for a cyclic group."""
    first, second = params
    n = second.shape[0]
    power = component_power(first[:, :n], components)
    size = jnp.sqrt(jnp.sum(first**2, axis=1) * jnp.sum(second**2, axis=0))
    alive = size > 0.05 * jnp.max(size)
    used = jnp.zeros(power.shape[-1]).at[jnp.argmax(power, axis=-1)].max(alive)
    share, has_share = component_share(first[:, :n], components), jnp.any(first[:, :n] != 0, axis=1)  # not what decayed
    return {
        "norm": weight_norm(params),
        "frequency_share": jnp.mean(share, where=has_share),
        "frequencies": jnp.sum(used),
        "margin": normalised_margin(first, second, table),
    }


class Times(NamedTuple):
    """Steps ``[weight decays, seeds]`` to 99 % accuracy (inf if never); test accuracy when train gets there, or NaN."""

    train: np.ndarray
    test: np.ndarray
    test_when_fitted: np.ndarray


def times(record: Record) -> Times:
    train, test = (np.asarray(record.values[f"{part}_accuracy"]) for part in ("train", "test"))
    fitted, generalised = (first_step(record.step, curve, 0.99, "above") for curve in (train, test))
    return Times(fitted, generalised, value_at(record.step, test, fitted))


def claims(result: Result) -> list[Claim]:
    return [claim for name, record in result.records.items() for claim in claims_of(result.config, name, record)]


def claims_of(cfg: Config, name: str, record: Record) -> Iterator[Claim]:
    """Draws are seeds (weights and split); the rivals of a run with weight decay are its start, and the run without."""
    found = times(record)
    due = cfg.due()
    power, gromov = "Power et al. 2022, figure 1", "Gromov 2023, eq. 5; Morwani et al. 2023, theorem 9"
    values = {key: np.asarray(value) for key, value in record.values.items()}
    train, test, share = (values[key] for key in ("train_accuracy", "test_accuracy", "frequency_share"))
    control = next((i for i, decay in enumerate(cfg.weight_decay) if decay == 0), None)
    decays = [i for i, decay in enumerate(cfg.weight_decay) if decay > 0]

    def without(values: np.ndarray) -> dict[str, np.ndarray]:
        return {} if control is None else {"no weight decay": values[control]}

    for i in decays:
        where = f"{name}, weight decay {cfg.weight_decay[i]:g}"
        early, high = found.test_when_fitted[i], 0.5 if name == "relu" else 0.99
        fitted, generalised = found.train[i], first_step(record.step, test[:, i], high, "above")
        yield Claim.at_most(f"{where}: test accuracy at train 99 %", power, early, 0.05,
                            rivals={"as at the end": test[-1, i]}).within(record, fitted, due=due)  # fmt: skip
        claim = Claim.at_least(f"{where}: test accuracy at the end", power, test[-1, i], high,
                               rivals={"as when fitted": early} | without(test[-1]))  # fmt: skip
        yield claim.within(record, generalised, at_end=True, due=due)
        if name != "relu":
            delay = np.log10(np.where(np.isfinite(found.test[i]), time_ratio(found.test[i], found.train[i]), np.nan))
            claim = Claim.at_least(f"{where}: log10 of delay test 99 % / train 99 %", power, delay, 1,
                                   rivals={"no delay": np.zeros_like(delay)})  # fmt: skip
            yield claim.within(record, fitted, generalised, due=due)
        kind = "representation" if cfg.operation == "permute" else "frequency"
        claim = Claim.at_least(f"{where}: single-{kind} share at the end", gromov, share[-1, i], 0.65,
                               rivals={"as at the start": share[0, i]} | without(share[-1]))  # fmt: skip
        yield claim.within(record, generalised, at_end=True, due=due)
        if name == "square":
            margin, what = values["margin"], f"{where}: margin over all pairs at the end"
            claim = Claim.at_least(what, "Morwani et al. 2023", margin[-1, i], 0,
                                   rivals={"as at the start": margin[0, i]} | without(margin[-1]),
                                   note=_of_largest(cfg, margin[-1, i]))  # fmt: skip
            yield claim.within(record, generalised, at_end=True, due=due)
    if control is not None:
        where = f"{name}, weight decay 0"
        rivals = {"as at the start": train[0, control], "its test accuracy": test[-1, control]}
        claim = Claim.at_least(
            f"{where}: train accuracy at the end", "control", train[-1, control], 0.99, rivals=rivals
        )
        yield claim.within(record, found.train[control], at_end=True, due=due)
        best = test.max(0)
        rivals = {f"weight decay {cfg.weight_decay[i]:g}": best[i] for i in decays}
        name = f"{where}: highest test accuracy of the run"
        claim = Claim.at_most(name, "control", best[control], 0.05, rivals=rivals)
        names = dict(zip(rivals, decays))
        yield claim.controls_within(record, {rival: [found.test[i]] for rival, i in names.items()}, due=due)


def _of_largest(cfg: Config, margin: np.ndarray) -> str:
    """The margin in units of the largest, for the note, where theory knows it."""
    if cfg.operation == "permute":
        largest = group_margin([round(size**0.5) for size in cfg.components().sizes.tolist()])
    elif cfg.operation in ("add", "subtract") and cfg.modulus % 2 and cfg.modulus > 2:
        largest = max_margin(cfg.modulus)
    else:
        return ""
    return f"{np.mean(margin) / largest:.2f} of the largest"


def figure(result: Result) -> Any:
    """Markers: median over seeds, with weight decay (filled) and, grey, without; lines: theory, and chance in grey."""
    cfg, names = result.config, list(result.records)
    n = len(operation_table(cfg.operation, cfg.modulus))
    page, panels = new_figure(len(names), 4, width=3.7)
    for row, name in zip(np.atleast_2d(panels), names):
        record = result.records[name]
        for column, readings in enumerate(
            (("train_accuracy", "test_accuracy"), ("frequency_share",), ("margin",), ("norm",))
        ):
            for i, decay in enumerate(cfg.weight_decay):
                for j, reading in enumerate(readings):
                    style = measured_style(2 * i + j, 2 * len(cfg.weight_decay))
                    style |= {"markerfacecolor": "0.75"} if decay else {"color": "0.6", "zorder": 1}
                    label = f"{reading.split('_')[0] + ', ' if len(readings) > 1 else ''}weight decay = {decay:g}"
                    value = np.median(np.asarray(record.values[reading])[::3, i], axis=-1)
                    row[column].plot(np.maximum(record.step[::3], 0.7), value, label=label, **style)
            label = LABELS[readings[0]]
            if cfg.operation == "permute":
                label = label.replace("frequency", "representation")
            row[column].set(xscale="log", xlabel="step", ylabel=f"{name}: {label}")
        row[0].axhline(1 / n, label="chance", **rival_style())
        row[0].set_ylim(-0.05, 1.8)  # room for the legend
        row[1].axhline(1, label="theory: one a neuron", **theory_style())
        if n % 2 and cfg.operation == "add":
            row[2].axhline(max_margin(n), label="theory: largest margin", **theory_style())
        for panel in row:
            panel.legend(fontsize=7, frameon=False)
    task = f"permutations of {cfg.modulus}" if cfg.operation == "permute" else f"{cfg.operation} modulo {cfg.modulus}"
    page.suptitle(f"{task}, train fraction {cfg.train_fraction:g}")
    return page


LABELS = {
    "train_accuracy": "accuracy",
    "frequency_share": "top frequency's share",
    "margin": r"margin over all pairs / $|\theta|_{2,3}^3$",
    "norm": r"weight norm $|\theta|_2$",
}


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
