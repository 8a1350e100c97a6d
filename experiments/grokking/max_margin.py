"""Features from margin maximisation (Morwani, Edelman, Oncescu, Zhao & Kakade 2023).

A quadratic network ``f_c(a, b) = sum_i w_i[c] (u_i[a] + v_i[b])^2`` is trained on the whole table of a group,
cross-entropy plus ``lambda |theta|_{2,3}^3`` with ``|theta|_{2,3}^3 = sum_i |(u_i, v_i, w_i)|_2^3``. For small lambda
it maximises the margin over that norm, and theory knows the maximum, ``sqrt(2/27) / (sqrt(p) (p - 1))`` for addition
modulo p and ``2 / (3 sqrt(3 |G|) sum d^(5/2))`` for the symmetric group with representations of dimension d, and its
networks: every neuron in one irreducible representation (a sinusoid of one frequency), every one of them used. At
finite lambda the maximum lies between the smallest margin and the mean margin that the softmax weighs; for addition
the two agree.

Run time: about 15 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dynamics import config
from dynamics.config import Positive, Range
from dynamics.evolve import descent, log_steps
from dynamics.evolve import study as in_memory
from dynamics.models.two_layer import TwoLayerParams, two_layer
from dynamics.runs.figures import measured_style, new_figure, theory_style
from dynamics.statistics import Components, component_power, component_share, irreducible_components
from dynamics.tasks.modular import operation_table
from dynamics.theory.modular import group_margin, max_margin, normalised_margin, softmax_margin
from dynamics.types import Claim, Dynamics, Objective, Record

SOURCE = "Morwani et al. 2023, 'Feature emergence via margin maximization: case studies in algebraic tasks'"
SECONDS = 15
KIND = {"add": "frequency", "permute": "representation"}
PLURAL = {"add": "frequencies", "permute": "representations"}


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    operation: Literal["add", "permute"] = "add"
    """addition modulo p, or the composition of permutations"""
    modulus: Annotated[int, Range(3, 300)] = 11
    """odd modulus p, or the number of letters (at most 5)"""
    width: Annotated[int, Range(1)] = 64
    """hidden units H; 4 (p - 1) suffice, 2 (sum d^3) for permutations"""
    penalty: Annotated[float, Positive] = 1e-3
    """lambda, weight of the norm penalty"""
    learning_rate: Annotated[float, Positive] = 1e-2
    """learning rate of Adam at the start; it falls to 0 as a cosine"""
    steps: Annotated[int, Range(10)] = 4000
    """updates"""

    @classmethod
    def presets(cls):
        return {**super().presets(), "permute": cls.permute}

    @classmethod
    def permute(cls) -> Config:
        """The symmetric group on three letters."""
        return cls(operation="permute", modulus=3)

    @classmethod
    def paper(cls) -> Config:
        return cls(modulus=71, width=500, penalty=1e-4, steps=20_000)

    def __post_init__(self):
        super().__post_init__()
        odd = self.operation == "permute" or self.modulus % 2 == 1
        self.require(odd, "modulus", "an odd integer")
        self.require(self.operation == "add" or self.modulus <= 5, "modulus", "3 to 5 letters")

    @property
    def table(self) -> np.ndarray:
        return operation_table(self.operation, self.modulus)

    @property
    def components(self) -> Components:
        return irreducible_components(self.table)

    @property
    def best(self) -> float:
        """The theory's largest margin."""
        if self.operation == "add":
            return max_margin(self.modulus)
        return group_margin([round(size**0.5) for size in self.components.sizes.tolist()])


class Result(NamedTuple):
    """``records['network']`` with values ``[T, seeds]``, or ``[T, seeds, H]`` for single neurons."""

    config: Config
    records: dict[str, Record]


def run(config: Config, study=in_memory) -> Result:
    p, key = len(config.table), jax.random.key(config.seed)
    model = two_layer(config.width, p, jnp.square)
    record = study(
        {"seed": range(config.seeds)},
        draw=lambda lane: model.init(jax.random.fold_in(key, lane.seed), (-1, 2 * p))[1],
        make=lambda lane: maximise_margin(config),
        read=[partial(read, config.components)],
        steps=config.steps,
        record_at=log_steps(config.steps, 60),
        key=key,
        data=jnp.asarray(config.table),
        label="network",
    )
    return Result(config, {"network": record})


def maximise_margin(config: Config) -> Dynamics:
    """Adam on cross-entropy over all pairs plus the penalty; ``data`` is the table."""

    def fit(params: TwoLayerParams, table):
        p = table.shape[0]
        u, v = params.first[:, :p], params.first[:, p:]
        f = jnp.einsum("ch,hab->abc", params.second, (u[:, :, None] + v[:, None, :]) ** 2)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(f, table))

    L = Objective.of(fit, lambda params: config.penalty * jnp.sum(neuron_norms(params) ** 3))
    return descent(L, optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.steps)))


def neuron_norms(params: TwoLayerParams):
    return jnp.sqrt(jnp.sum(params.first**2, axis=1) + jnp.sum(params.second**2, axis=0))


def read(components: Components, params: TwoLayerParams, table):
    p = table.shape[0]
    size, u = neuron_norms(params), params.first[:, :p]
    weights = params.first, params.second, table
    readings = {"margin": normalised_margin(*weights), "softmax_margin": softmax_margin(*weights)}
    return readings | {"size": size / jnp.max(size),
                       "share": component_share(u, components),
                       "frequency": 1 + jnp.argmax(component_power(u, components), axis=-1)}  # fmt: skip


def claims(result: Result) -> list[Claim]:
    cfg, values = result.config, {k: np.asarray(v)[-1] for k, v in result.records["network"].values.items()}
    best, alive = cfg.best, values["size"] > 0.05
    theorem = "theorem 7" if cfg.operation == "add" else "theorem 9"
    count, kind = len(cfg.components.sizes) - 1, KIND[cfg.operation]
    used = min(len(set(f[a].tolist())) for f, a in zip(values["frequency"], alive))
    ratio, mean = (values[name] / best for name in ("margin", "softmax_margin"))
    smallest = Claim.close("margin over its maximum, worst seed", theorem, ratio.min(), 1.0, 0.01)
    if cfg.operation == "permute":
        note = f"rises to 1 as 1/log(1/lambda); the smallest is {ratio.min():.3f}"
        name = "margin over its maximum, largest of the seeds (no network exceeds it)"
        smallest = Claim.at_most(name, theorem, ratio.max(), 1.0, note=note)
    worst = mean[np.argmax(np.abs(mean - 1))]
    return [
        smallest,
        Claim.close("margin in the softmax's mean over its maximum, worst seed", theorem, worst, 1.0, 0.01),
        Claim.at_least(f"share of one {kind}, lowest living neuron", theorem, values["share"][alive].min(), 0.99),
        Claim.close(f"number of {PLURAL[cfg.operation]} used, worst seed", theorem, used, count, 0),
    ]


def figure(result: Result) -> Any:
    """Markers: every seed (margin) and every living neuron (share); lines: theory."""
    record, cfg = result.records["network"], result.config
    values = {k: np.asarray(v) for k, v in record.values.items()}
    alive, half = values["size"][-1] > 0.05, len(cfg.components.sizes) - 1
    page, panels = new_figure(1, 3)
    step = np.maximum(record.step, 0.7)
    for i, (name, label) in enumerate((("margin", "smallest"), ("softmax_margin", "in the softmax's mean"))):
        panels[0].plot(step, values[name].min(axis=1) / cfg.best, label=label, **measured_style(2 * i, 3))
    panels[0].axhline(1, label="theory", **theory_style())
    panels[0].set(xscale="log", xlabel="step", ylabel="margin over its maximum, lowest seed")
    panels[1].plot(step, np.median(values["share"], axis=(1, 2)), label="median neuron", **measured_style(0))
    panels[1].axhline(1, label="theory", **theory_style())
    panels[1].set(xscale="log", xlabel="step", ylabel=f"top {KIND[cfg.operation]}'s share")
    counts = np.bincount(values["frequency"][-1][alive].astype(int), minlength=half + 1)[1:] / cfg.seeds
    panels[2].bar(np.arange(1, half + 1), counts, color="0.75", edgecolor="black")
    panels[2].set(xlabel=f"{KIND[cfg.operation]} (number)", ylabel="living neurons a seed")
    for panel in panels[:2]:
        panel.legend(fontsize=7, frameon=False)
    task = f"addition modulo {cfg.modulus}" if cfg.operation == "add" else f"permutations of {cfg.modulus}"
    page.suptitle(f"Margin maximisation on {task}")
    return page


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
