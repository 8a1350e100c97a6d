"""Features from margin maximisation (Morwani, Edelman, Oncescu, Zhao & Kakade 2023).

A network ``f_c(x) = sum_i w_i[c] (u_i . x)^k`` is trained on the whole table of a group, ``k = 2`` on two one-hots, or
on all of {-1, 1}^n with the product of k inputs as the answer: cross-entropy plus ``lambda |theta|^(k+1)`` with
``|theta|^(k+1) = sum_i |(u_i, w_i)|_2^(k+1)``. For small lambda it maximises the margin over that norm, and theory
knows the maximum: ``sqrt(2/27) / (sqrt(p) (p - 1))`` for addition modulo p, ``2 / (3 sqrt(3 |G|) sum d^(5/2))`` for the
symmetric group with representations of dimension d, ``k! sqrt(2 (k + 1)^-(k+1))`` for the parity; and its networks:
every neuron in one irreducible representation (a sinusoid of one frequency, and all frequencies have equal parts of the
norm), or on the k inputs alone. At finite lambda the maximum lies between the smallest margin and the mean margin that
the softmax weighs; for addition and parity the two agree. The control of addition is the usual penalty, the sum of
squares, which attains less.

Run time: about 30 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dynamics import config
from dynamics.config import Positive, Range
from dynamics.evolve import descent, log_steps
from dynamics.evolve import study as in_memory
from dynamics.models.two_layer import TwoLayerParams, two_layer
from dynamics.runs.figures import measured_style, new_figure, rival_style, theory_style, ticks_at
from dynamics.statistics import component_power, component_share, irreducible_components
from dynamics.tasks.modular import operation_table
from dynamics.theory.modular import group_margin, max_margin, output_margins, parity_margin
from dynamics.types import Array, Batch, Claim, Dynamics, Objective, Record

SOURCE = "Morwani et al. 2023, 'Feature emergence via margin maximization: case studies in algebraic tasks'"
SECONDS = 30
ALIVE = 1e-3  # share of a living neuron in the norm |theta|^(k+1), in units of the largest


class Task(NamedTuple):
    """``add`` modulo ``size``, ``permute`` of ``size`` letters, or ``parity`` of the first ``degree`` of ``size``.

    ``degree`` is also the power k of the activation.
    """

    kind: str
    size: int
    degree: int = 2

    @classmethod
    def of(cls, words: str) -> Task | None:
        """From ``add 11``, ``permute 3`` or ``parity 10 4``; None for anything else."""
        kind, *numbers = words.split()
        counts = [int(number) for number in numbers if number.isdecimal()]
        if len(counts) != len(numbers) or len(counts) != (2 if kind == "parity" else 1):
            return None
        allowed = {
            "add": counts[0] % 2 == 1 and 3 <= counts[0] <= 300,
            "permute": 3 <= counts[0] <= 5,
            "parity": 2 <= counts[-1] <= counts[0] <= 16,
        }
        return cls(kind, *counts) if allowed.get(kind) else None

    @property
    def feature(self) -> str:
        return {"add": "frequency", "permute": "representation", "parity": "set of inputs"}[self.kind]

    def data(self) -> Batch:
        """All inputs ``x [N, d]`` and answers ``y [N]``."""
        if self.kind == "parity":
            x = np.array(list(itertools.product((1.0, -1.0), repeat=self.size)))
            return Batch(jnp.asarray(x), jnp.asarray(x[:, : self.degree].prod(1) < 0, jnp.int32))
        table = operation_table(self.kind, self.size)  # pyright: ignore[reportArgumentType]
        a, b = np.indices(table.shape).reshape(2, -1)
        hot = np.eye(len(table))
        return Batch(jnp.asarray(np.concatenate([hot[a], hot[b]], axis=1)), jnp.asarray(table.ravel()))

    @property
    def dimensions(self) -> list[int]:
        """Of the representations of the symmetric group."""
        sizes = irreducible_components(operation_table("permute", self.size)).sizes
        return [round(size**0.5) for size in sizes.tolist()]

    @property
    def best(self) -> float:
        """The theory's largest margin."""
        if self.kind == "permute":
            return group_margin(self.dimensions)
        return max_margin(self.size) if self.kind == "add" else parity_margin(self.degree)

    @property
    def wrong(self) -> tuple[str, float]:
        """A wrong theory, and its largest margin."""
        if self.kind == "permute":
            d = np.array(self.dimensions)
            return "d^2 in place of d^(5/2)", self.best * float(np.sum(d[1:] ** 2.5) / np.sum(d[1:] ** 2))
        if self.kind == "add":
            return "p in place of p - 1", self.best * (self.size - 1) / self.size
        return "k in place of k + 1", parity_margin(self.degree - 1) * self.degree

    def features(self) -> Any:
        """``u [H, d] -> (share of its feature [H], the feature's number [H])``."""
        if self.kind == "parity":
            return lambda u: (jnp.sum(u[:, : self.degree] ** 2, 1) / jnp.sum(u**2, 1), jnp.ones(len(u)))
        table = operation_table(self.kind, self.size)  # pyright: ignore[reportArgumentType]
        components = irreducible_components(table)

        def read(u):
            power = component_power(u[:, : len(table)], components)
            return component_share(u[:, : len(table)], components), 1 + jnp.argmax(power, axis=-1)

        return read

    @property
    def parts(self) -> np.ndarray:
        """The theory's share of every feature in the norm, in the limit of small lambda."""
        if self.kind == "permute":
            weights = np.array(self.dimensions[1:]) ** 2.5
        else:
            weights = np.ones({"add": (self.size - 1) // 2, "parity": 1}[self.kind])
        return weights / weights.sum()


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    task: tuple[str, ...] = ("add 11", "permute 3", "parity 10 4")
    """what is learned: add P (odd), permute LETTERS (3 to 5), parity INPUTS K"""
    width: Annotated[int, Range(1)] = 64
    """hidden units H; 4 (p - 1) suffice, 2 (sum d^3) for permutations, 2^(k - 1) for a parity"""
    penalty: Annotated[float, Positive] = 1e-3
    """lambda, weight of the norm penalty"""
    learning_rate: Annotated[float, Positive] = 1e-2
    """learning rate of Adam at the start; it falls to 0 as a cosine"""
    steps: Annotated[int, Range(10)] = 4000
    """updates"""

    @classmethod
    def permute(cls) -> Config:
        """The symmetric group on four letters: 15 seconds of a core."""
        return cls(task=("permute 4",), width=160, seeds=3, penalty=1e-4)

    @classmethod
    def paper(cls) -> Config:
        """The paper's groups, parity, 500 neurons and penalty of addition.

        Its network of S_5 has 2000 neurons and a penalty of 1e-7, that of the parity 40 and 1e-3. It needs a GPU: S_5
        alone is 10^15 operations; two minutes of an H100. One of the five networks of addition lacks a tenth of a
        frequency, and their mean, .996 +- .004, does not reject p in place of p - 1 (.986): 8 of 9 claims.
        """
        return cls(task=("add 71", "permute 5", "parity 10 4"), width=500, penalty=1e-4, steps=20_000)

    def __post_init__(self):
        super().__post_init__()
        good = all(Task.of(words) for words in self.task) and len(set(self.task)) == len(self.task)
        self.require(good, "task", "different ones of 'add P' (odd), 'permute LETTERS' (3 to 5), 'parity INPUTS K'")


class Result(NamedTuple):
    """``records[task]`` with values ``[T, powers, seeds]``, or ``[T, powers, seeds, H]`` for single neurons; ``power``
    is that of the penalty's norms: k + 1, and for addition the control's 2."""

    config: Config
    records: dict[str, Record]


def run(config: Config, study=in_memory) -> Result:
    return Result(config, {words: train(config, words, study) for words in config.task})


def train(config: Config, words: str, study) -> Record:
    task, key = Task.of(words), jax.random.key(config.seed)
    assert task is not None
    data, read = task.data(), partial(readings, task.degree, task.features())
    model = two_layer(config.width, int(data.y.max()) + 1, lambda h: h**task.degree)
    return study(
        {"power": (task.degree + 1.0, 2.0)[: 2 if task.kind == "add" else 1], "seed": range(config.seeds)},
        draw=lambda lane: model.init(jax.random.fold_in(key, lane.seed), (-1, data.x.shape[1]))[1],
        make=lambda lane: maximise_margin(config, model.apply, lane.power),
        read=[read],
        steps=config.steps,
        record_at=log_steps(config.steps, 60),
        key=key,
        data=data,
        label=words,
    )


def maximise_margin(config: Config, apply, power) -> Dynamics:
    """Adam on cross-entropy over all inputs plus the penalty."""

    def fit(params: TwoLayerParams, batch: Batch):
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(apply(params, batch.x), batch.y))

    L = Objective.of(fit, lambda params: config.penalty * jnp.sum(squared_norms(params) ** (power / 2)))
    return descent(L, optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.steps)))


def squared_norms(params: TwoLayerParams) -> Array:
    """Of every neuron; ``[H]``."""
    return jnp.sum(params.first**2, axis=1) + jnp.sum(params.second**2, axis=0)


def readings(degree: int, features, params: TwoLayerParams, batch: Batch):
    size = squared_norms(params) ** ((degree + 1) / 2)
    margins = output_margins((batch.x @ params.first.T) ** degree @ params.second.T, batch.y)
    smallest, mean = (margin / jnp.sum(size) for margin in margins)
    share, feature = features(params.first)
    return {
        "margin": smallest, "softmax_margin": mean, "size": size / jnp.max(size), "share": share, "feature": feature,
    }  # fmt: skip


def claims(result: Result) -> list[Claim]:
    return [claim for words, record in result.records.items() for claim in claims_of(words, record)]


def claims_of(words: str, record: Record) -> Iterator[Claim]:
    """Draws are seeds; the rivals are the start, the sum of squares as penalty, and a wrong theory."""
    task = Task.of(words)
    assert task is not None
    values = {name: np.asarray(value) for name, value in record.values.items()}
    theorem = {"add": "theorem 7", "permute": "theorem 9", "parity": "theorem 8"}[task.kind]
    end, start = ({k: v[at, 0] for k, v in values.items()} for at in (-1, 0))
    control = {f"{k}, control": v[-1, 1] for k, v in values.items() if len(record.axes["power"]) > 1}
    other, margin = task.wrong
    over = {k: v / task.best for k, v in (end | control).items() if "margin" in k}
    before = {k: start[k] / task.best for k in ("margin", "softmax_margin")}
    rivals = {other: np.full(len(over["margin"]), margin / task.best)}
    if task.kind != "permute":
        wrong = {"as at the start": before["margin"]} | rivals
        wrong |= {"sum of squares as penalty": over["margin, control"]} if control else {}
        yield Claim.close(f"{words}: margin over its maximum", theorem, over["margin"], 1.0, 0.01, rivals=wrong)
    note = f"the smallest, {over['margin'].max():.3f} of it at most, rises to 1 as 1/log(1/lambda)"
    name = f"{words}: margin in the softmax's mean over its maximum"
    rivals |= {"as at the start": before["softmax_margin"]}
    yield Claim.close(name, theorem, over["softmax_margin"], 1.0, 0.01, rivals=rivals,
                      note=note if task.kind == "permute" else "")  # fmt: skip
    lowest, first = (np.where(one["size"] > ALIVE, one["share"], 1.0).min(-1) for one in (end, start))
    yield Claim.at_least(f"{words}: share of one {task.feature}, lowest living neuron", theorem, lowest, 0.99,
                         rivals={"as at the start": first})  # fmt: skip
    if task.kind == "add":
        yield Claim.close(f"{words}: a frequency's part of the norm over an equal one, smallest", theorem,
                          smallest_part(end, task.parts), 1.0, 0.01,
                          rivals={"as at the start": smallest_part(start, task.parts)})  # fmt: skip


def smallest_part(values: dict[str, np.ndarray], parts: np.ndarray) -> np.ndarray:
    """The share of the norm that neurons of one feature have over ``parts [features]``, smallest; ``[seeds]``."""
    size, feature = values["size"], values["feature"].astype(int)
    own = np.stack([np.sum(size * (feature == i + 1), axis=-1) for i in range(len(parts))])
    return (own / size.sum(-1) / parts[:, None]).min(0)


def figure(result: Result) -> Any:
    """Markers: lowest seed (margins) and living neurons (share, numbers); lines: theory; grey: the control."""
    records = result.records
    page, panels = new_figure(len(records), 3)
    for row, (words, record) in zip(np.atleast_2d(panels), records.items()):
        task = Task.of(words)
        assert task is not None
        values = {k: np.asarray(v) for k, v in record.values.items()}
        step = np.maximum(record.step, 0.7)
        control = len(record.axes["power"]) > 1
        for i, (name, label) in enumerate((("margin", "smallest"), ("softmax_margin", "in the softmax's mean"))):
            curve = values[name].min(axis=2) / task.best
            row[0].plot(step, curve[:, 0], label=label, **measured_style(2 * i, 3))
            if control:
                words_of_both = {"label": "sum of squares as penalty"} if i == 0 else {}
                row[0].plot(step, curve[:, 1], **words_of_both, **rival_style(i))
        row[0].axhline(1, label="theory", **theory_style())
        row[0].set(xscale="log", xlabel="step", ylabel=f"{words}: margin over its maximum", ylim=(-0.6, 1.3))
        row[1].plot(step, np.median(values["share"][:, 0], axis=(1, 2)), label="median neuron", **measured_style(0))
        row[1].axhline(1, label="theory", **theory_style())
        row[1].set(xscale="log", xlabel="step", ylabel=f"share of one {task.feature}")
        features = np.arange(1, len(task.parts) + 1)
        for i in range(2 if control else 1):
            size, feature = (values[name][-1, i] for name in ("size", "feature"))
            own = [np.mean(np.sum(size * (feature == f), -1) / size.sum(-1)) for f in features]
            style = measured_style(0) if i == 0 else rival_style() | {"marker": "x", "linestyle": "none"}
            row[2].plot(features, own, label=("network", "sum of squares as penalty")[i], **style)
        row[2].plot(features, task.parts, "_", color="black", ms=16, label=r"theory, $\lambda \to 0$")
        row[2].set(xlabel=f"{task.feature} (number)", ylabel="part of the norm", ylim=(0, 1.1 * max(task.parts)))
        ticks_at(row[2].xaxis, features)
        for panel in row:
            panel.legend(fontsize=7, frameon=False, loc="lower right" if panel is row[0] else "best")
    page.suptitle("Margin maximisation")
    return page


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
