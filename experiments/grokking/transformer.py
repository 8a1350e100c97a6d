"""A one-layer transformer groks modular addition (Nanda et al. 2023; Kumar et al. 2023).

One attention layer and one MLP without normalisation, full-batch AdamW on cross-entropy. Test loss falls long after
train loss, but the algorithm, ``cos(w_k (a + b - c))`` over a few key frequencies, grows all along: the excluded loss
(logits without the waves of ``w_k (a + b)``, on the training set) rises while the test loss still stands, the
restricted loss (these waves alone) falls before the test loss does, and the embedding's power gathers in few
frequencies (Gini coefficient). The output scale alpha multiplies the logits.

Run time: about 90 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dynamics import config
from dynamics.config import Count, NonNegative, Positive, Range
from dynamics.evolve import descent, log_steps
from dynamics.evolve import study as in_memory
from dynamics.losses import accuracy, cross_entropy
from dynamics.models.scaling import scaled
from dynamics.models.transformer import TransformerParams, transformer
from dynamics.runs.figures import measured_style, new_figure, theory_style
from dynamics.statistics import first_step, frequency_power, gini, sum_components, time_ratio, value_at, weight_norm
from dynamics.tasks.modular import operation_table, table_task
from dynamics.types import Claim, Objective, Observable, Record, View

SOURCE = "Nanda et al. 2023, 'Progress measures for grokking via mechanistic interpretability'; Kumar et al. 2023"
SECONDS = 90


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Range(1, 4096)] = 3
    """number of independent seeds, run side by side"""
    modulus: Annotated[int, Range(5, 500)] = 43
    """modulus p"""
    train_fraction: Annotated[float, Range(0, 1, open_low=True, open_high=True)] = 0.6
    """share of the pairs in the training set"""
    width: Annotated[int, Range(4)] = 48
    """residual stream d, a multiple of the four heads"""
    alpha: Annotated[tuple[float, ...], Positive] = (1.0,)
    """output scale alpha on the logits"""
    learning_rate: Annotated[float, Positive] = 3e-3
    """learning rate of AdamW"""
    weight_decay: Annotated[float, NonNegative] = 1.0
    """decoupled weight decay of AdamW"""
    key_frequencies: Annotated[int, Count] = 5
    """number of key frequencies read by the restricted and excluded loss"""
    steps: Annotated[int, Count] = 1600
    """updates"""

    @classmethod
    def paper(cls) -> Config:
        """Nanda's setting, at Kumar's output scales."""
        return cls(
            seeds=8, modulus=113, train_fraction=0.3, width=128, alpha=(0.05, 0.25, 0.5, 1.0), learning_rate=1e-3,
            steps=40_000,
        )  # fmt: skip

    def __post_init__(self):
        super().__post_init__()
        self.require(self.width % 4 == 0, "width", "a multiple of 4, the number of heads")
        self.require(self.key_frequencies <= self.modulus // 2, "key_frequencies", f"at most {self.modulus // 2}")


class Result(NamedTuple):
    """``records['network']`` with values ``[T, alphas, seeds]``."""

    config: Config
    records: dict[str, Record]


def run(config: Config, study=in_memory) -> Result:
    p, table, key = config.modulus, operation_table("add", config.modulus), jax.random.key(config.seed)
    model = transformer(p + 1, p, config.width)

    def draw(lane):
        split_key, weight_key = jax.random.split(jax.random.fold_in(key, lane.seed))
        return table_task(split_key, table, config.train_fraction, tokens=True), model.init(weight_key, (-1, 3))[1]

    def make(lane):
        optimizer = optax.adamw(config.learning_rate, b2=0.98, weight_decay=config.weight_decay)
        return descent(Objective(scaled(model, lane.alpha).apply, cross_entropy), optimizer)

    record = study(
        {"alpha": config.alpha, "seed": range(config.seeds)},
        draw, make, Observable.of_view(partial(read, config)), steps=config.steps,
        record_at=log_steps(config.steps, 120), key=key, label="network",
    )  # fmt: skip
    return Result(config, {"network": record})


def read(config: Config, view: View):
    """Scores from the logits of all pairs; the key frequencies are the strongest waves of a + b in these logits."""
    params: TransformerParams = view.params
    p = config.modulus
    a, b = (grid.ravel() for grid in jnp.meshgrid(jnp.arange(p), jnp.arange(p), indexing="ij"))
    logits = view.f("read")(params, jnp.stack([a, b, jnp.full_like(a, p)], axis=1)).reshape(p, p, p)
    waves = jnp.abs(jnp.fft.fft2(logits, axes=(0, 1))[jnp.arange(1, p // 2 + 1), jnp.arange(1, p // 2 + 1)]) ** 2
    keys = jax.lax.top_k(jnp.sum(waves, axis=1), config.key_frequencies)[1] + 1
    restricted, excluded = sum_components(logits, keys)
    power = jnp.sum(frequency_power(params.embed[:p].T), axis=0)
    readings = {"weight_norm": weight_norm(params), "gini": gini(power)}
    for name, batch in view.data._asdict().items():
        f, rest = logits[batch.x[:, 0], batch.x[:, 1]], excluded[batch.x[:, 0], batch.x[:, 1]]
        readings |= {f"{name}_accuracy": accuracy(f, batch.y), f"{name}_loss": cross_entropy(f, batch.y)}
        readings[f"excluded_{name}_loss"] = cross_entropy(rest, batch.y)
    right = jax.nn.one_hot((a + b) % p, p)
    readings["restricted_loss"] = cross_entropy(restricted.reshape(-1, p), right)
    return readings


def claims(result: Result) -> list[Claim]:
    """Medians over seeds: the time of generalisation varies widely between them."""
    cfg, record = result.config, result.records["network"]
    values = {name: np.asarray(value) for name, value in record.values.items()}
    train, test = (first_step(record.step, values[f"{part}_accuracy"], 0.95, "above") for part in ("train", "test"))
    late, early_at = (first_step(record.step, values[f"{part}_loss"], 0.5) for part in ("test", "restricted"))
    lead, delay = time_ratio(late, early_at), time_ratio(test, train)
    out, source = [], "Nanda et al. 2023, section 5"
    for i, alpha in enumerate(cfg.alpha):
        early = {name: value_at(record.step, values[name], train)[i] for name in ("test_accuracy", "gini")}
        memorised = np.median(values["excluded_train_loss"][-1, i] - values["train_loss"][-1, i])
        measures = {
            "delay test 95 % / train 95 %": (np.median(delay[i]), 3),
            "time of test loss 0.5 over that of restricted loss 0.5": (np.median(lead[i]), 1.2),
            "excluded less full train loss at the end, nats": (memorised, 1),
            "growth of the embedding's Gini coefficient after fitting": (
                np.median(values["gini"][-1, i] / early["gini"]),
                1.5,
            ),
        }
        out += [Claim.at_least(f"alpha = {alpha:g}: {name}", source, *pair) for name, pair in measures.items()]
        name = f"alpha = {alpha:g}: test accuracy when train is at 95 %"
        out.append(Claim.at_most(name, "figure 1", np.median(early["test_accuracy"]), 0.5))
    return out


def figure(result: Result) -> Any:
    """Markers: medians over seeds at the first alpha (losses) and at every alpha (accuracy, norm)."""
    cfg, record = result.config, result.records["network"]
    page, panels = new_figure(1, 4, width=3.7)
    step = np.maximum(record.step, 1)

    def draw(panel, name, style, label, cell=0):
        panel.plot(step[::2], np.median(np.asarray(record.values[name])[::2, cell], axis=-1), label=label, **style)

    for i, alpha in enumerate(cfg.alpha):
        style = measured_style(i, len(cfg.alpha))
        draw(panels[0], "train_accuracy", style, f"train, alpha = {alpha:g}", i)
        draw(panels[0], "test_accuracy", style | {"markerfacecolor": "0.75"}, f"test, alpha = {alpha:g}", i)
        draw(panels[3], "weight_norm", style, f"alpha = {alpha:g}", i)
    for i, name in enumerate(("train_loss", "test_loss", "restricted_loss", "excluded_train_loss")):
        draw(panels[1], name, measured_style(i, 4), name.replace("_", " "))
    panels[1].axhline(np.log(cfg.modulus), label="chance, ln p", **theory_style(1))
    draw(panels[2], "gini", measured_style(0), "embedding")
    labels = (
        "accuracy",
        "cross-entropy (nats)",
        "Gini coefficient of frequencies",
        r"weight norm $|\theta|_2$",
    )
    for panel, label in zip(panels, labels):
        panel.set(xscale="log", xlabel="step", ylabel=label)
        panel.legend(fontsize=7, frameon=False)
    panels[1].set(yscale="log")
    page.suptitle(f"One-layer transformer, addition modulo {cfg.modulus}")
    return page


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
