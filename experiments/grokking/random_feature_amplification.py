"""Random features are amplified into learned ones (Frei, Chatterji & Bartlett 2022).

The XOR clusters ``+-mu_1 -> +1``, ``+-mu_2 -> -1`` in unit noise, more samples than dimensions, a share p of the labels
flipped, are learned by ``f = sum_j a_j relu(w_j . x)``, ``a_j = +-1/sqrt(m)`` fixed, by full-batch gradient descent on
the logistic loss from small weights. Every linear classifier is at chance; the network's error comes down to the noise
rate, on fresh samples and on the training set alike. While f is small, neurons do not feel one another: on the
population, with ``u_k = w . mu_k/|w|`` and ``s = sign a``,

    dw/dt = |a| s (1 - 2p)/8 [mu_1 (2 Phi(u_1) - 1) - mu_2 (2 Phi(u_2) - 1) + 2 (w/|w|) (phi(u_1) - phi(u_2))]

so the weak random correlation of a neuron with the axis of its own sign is amplified, and that with the other decays.
The run lays this amplification of single neurons over the network's; rivals are this theory with a term dropped, a
linear classifier, and the network's own kernel frozen at its start, which fits the flipped labels.

Run time: about 20 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

from dynamics import config
from dynamics.config import Count, Positive, Range
from dynamics.evolve import Drawn, gradient_descent, log_steps
from dynamics.evolve import study as in_memory
from dynamics.losses import accuracy, logistic
from dynamics.models.two_layer import committee
from dynamics.observe import prefixed, scores
from dynamics.runs.figures import measured_style, new_figure, rival_style, theory_style
from dynamics.tasks.clusters import xor_clusters
from dynamics.types import Array, Batch, Claim, Data, Dynamics, Objective, Observable, Record

SOURCE = "Frei, Chatterji & Bartlett 2022, 'Random feature amplification: feature learning and generalization in neural networks'"  # noqa: E501
SECONDS = 20
EARLY = 0.1  # the theory of independent neurons holds while the loss has lost less than this share of ln 2
RIVALS = {
    "label noise ignored": lambda p: (1 / (1 - 2 * p), 1.0, 1.0),
    "other axis left alone": lambda p: (1.0, 0.0, 1.0),
    "no term along the neuron": lambda p: (1.0, 1.0, 0.0),
    "half the rate": lambda p: (0.5, 1.0, 1.0),
}  # factors of the rate, of the other axis' term and of the term along w


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    dimension: Annotated[int, Range(2)] = 50
    """input dimension d"""
    samples: Annotated[int, Count] = 2000
    """training samples n, more than d"""
    separation: Annotated[float, Positive] = 6.0
    """norm |mu| of the cluster centres, in units of the noise per coordinate"""
    flips: Annotated[float, Range(0, 0.5, open_high=True)] = 0.15
    """probability p of a flipped label"""
    width: Annotated[int, Range(2)] = 100
    """hidden units m"""
    init: Annotated[float, Positive] = 3e-4
    """standard deviation of the initial weights"""
    learning_rate: Annotated[float, Positive] = 0.01
    """step size"""
    steps: Annotated[int, Count] = 1000
    """updates"""
    test_samples: Annotated[int, Count] = 4000
    """fresh samples, labels clean"""

    @classmethod
    def large(cls) -> Config:
        """More dimensions, samples and neurons; the paper's theorem is one of rates and names no sizes.

        A minute and a half of a core, 3 GB.
        """
        return cls(dimension=100, samples=4000, width=400, separation=8.0, steps=1500)


class Result(NamedTuple):
    """``network`` with values ``[T, seeds]``, cosines and sizes ``[T, seeds, m]``; ``theory``, these alone; ``rivals``,
    the same of ``RIVALS`` ``[T, rivals, seeds, m]``; ``fixed``: accuracies ``[1, seeds]`` of the least-squares
    classifier and of the network's kernel frozen at the start."""

    config: Config
    records: dict[str, Record]


class Setting(NamedTuple):
    """``a [m]``, the readout; the centres ``means [2, d]``."""

    readout: Array
    means: Array


def run(config: Config, study=in_memory) -> Result:
    def drawn(lane) -> Drawn:
        setting, weights, data = draw(config, lane.seed)
        return Drawn(weights, data, {"setting": setting})

    def network(lane) -> Dynamics:
        apply = committee(config.width, jax.nn.relu, signs=config.width * lane.setting.readout).apply
        return gradient_descent(Objective(apply, logistic), config.learning_rate)

    def along(lane):
        return lambda weights, batch: cosines(weights, lane.setting)

    still = partial(study, {"seed": range(config.seeds)}, drawn, key=jax.random.key(config.seed))
    record_at, begun = log_steps(config.steps, 60), max(config.steps // 10, 1)  # theory holds in the beginning
    record_at_first = [step for step in record_at if step <= begun]
    train, test = prefixed("train", scores(accuracy=accuracy, loss=logistic)), scores(accuracy=accuracy)
    fixed = Observable.of_view(lambda view: linear(view.data) | frozen(view.params, view.data))
    terms = jnp.asarray([rival(config.flips) for rival in RIVALS.values()])
    wrong = partial(
        study, {"rival": range(len(RIVALS)), "seed": range(config.seeds)}, drawn, key=jax.random.key(config.seed)
    )
    return Result(config, {
        "network": still(network, lambda lane: [train, along(lane)], test=test, steps=config.steps,
                         record_at=record_at, label="network"),
        "theory": still(lambda lane: amplification(config, lane.setting), along, steps=begun,
                        record_at=record_at_first, label="theory"),
        "rivals": wrong(lambda lane: amplification(config, lane.setting, terms[lane.rival]), along, steps=begun,
                        record_at=record_at_first, label="rivals"),
        "fixed": still(None, fixed, steps=0, label="fixed"),
    })  # fmt: skip


def draw(config: Config, seed: int) -> tuple[Setting, Array, Data]:
    task_key, weight_key, sign_key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), seed), 3)
    sizes = config.samples, config.test_samples, config.dimension
    data, means = xor_clusters(task_key, *sizes, config.separation, config.flips)
    signs = jnp.where(jnp.arange(config.width) % 2, 1.0, -1.0) / config.width**0.5
    weights = config.init * jax.random.normal(weight_key, (config.width, config.dimension))
    return Setting(jax.random.permutation(sign_key, signs), means), weights, data


def amplification(config: Config, setting: Setting, terms=(1.0, 1.0, 1.0)) -> Dynamics:
    """Descent of independent neurons on the population, as long as the network's output is small.

    ``terms``: factors of the rate, of the term of the axis of the other sign and of the term along w (``RIVALS``).
    """
    (mu1, mu2), a = setting.means, setting.readout[:, None]
    rate, other, along = terms
    first, second = jnp.where(a > 0, 1.0, other), jnp.where(a > 0, other, 1.0)

    def step(key, w, data):
        size = jnp.linalg.norm(w, axis=1, keepdims=True)
        u1, u2 = w @ mu1[:, None] / size, w @ mu2[:, None] / size
        axes = first * mu1 * (2 * norm.cdf(u1) - 1) - second * mu2 * (2 * norm.cdf(u2) - 1)
        drift = axes + along * 2 * w / size * (norm.pdf(u1) - norm.pdf(u2))
        return w + rate * config.learning_rate * a * (1 - 2 * config.flips) / 8 * drift

    return Dynamics(lambda w: w, step, lambda w: w, config.learning_rate)


def cosines(weights: Array, setting: Setting):
    """Cosine of every neuron with the axis of its own sign (mu_1 for a > 0) and with the other, its norm; ``[m]``."""
    size = jnp.linalg.norm(weights, axis=1)
    along = weights @ setting.means.T / jnp.linalg.norm(setting.means, axis=1) / size[:, None]
    own = jnp.where(setting.readout > 0, along[:, 0], along[:, 1])
    return {"own_cosine": own, "other_cosine": jnp.where(setting.readout > 0, along[:, 1], along[:, 0]), "size": size}


def linear(data: Data) -> dict[str, Array]:
    fit = jnp.linalg.lstsq(data.train.x, data.train.y)[0]
    test: Batch = data.test
    return {"linear_test_accuracy": accuracy(test.x @ fit, test.y)}


def frozen(weights: Array, data: Data) -> dict[str, Array]:
    """The interpolation by the network's kernel at the start, ``x.x' (1/m) sum_j 1(w_j.x > 0) 1(w_j.x' > 0)``."""

    def kernel(x, z):
        on, lit = ((points @ weights.T > 0).astype(x.dtype) for points in (x, z))
        return (x @ z.T) * (on @ lit.T) / len(weights)

    train, test = data.train, data.test
    k = kernel(train.x, train.x)
    ridge = 1e-5 * jnp.trace(k) / len(k)  # float32
    dual = jax.scipy.linalg.solve(k + ridge * jnp.eye(len(k)), train.y, assume_a="pos")
    readings = {"train": (k @ dual, train.y), "test": (kernel(test.x, train.x) @ dual, test.y)}
    return {f"frozen_{part}_accuracy": accuracy(*pair) for part, pair in readings.items()}


def early(result: Result) -> np.ndarray:
    """Which steps ``[T]`` recorded for the theory lie before the first at which any seed's loss has left ln 2."""
    loss = np.asarray(result.records["network"].values["train_loss"])[: len(result.records["theory"].step)]
    return np.cumprod((loss > (1 - EARLY) * np.log(2)).all(axis=1)).astype(bool)


def noisy(result: Result, accuracy: Any) -> np.ndarray:
    """Error on fresh samples whose labels are flipped as in training, from the accuracy on clean ones."""
    clean, p = 1 - np.asarray(accuracy, float), result.config.flips
    return p + (1 - 2 * p) * clean


class Growth(NamedTuple):
    """Root mean squares over neurons ``[..., seeds]`` in units of the start's: along the axis of the neuron's own sign,
    along the other, and beside both."""

    own: np.ndarray
    other: np.ndarray
    beside: np.ndarray


def growth(record: Record, at: int) -> Growth:
    """Of the weights from the start to record ``at``."""
    own, other, size = (np.asarray(record.values[name], float) for name in ("own_cosine", "other_cosine", "size"))
    parts = own * size, other * size, size * np.sqrt(np.maximum(1 - own**2 - other**2, 0))
    return Growth(*(np.sqrt(np.mean(part[at] ** 2, -1) / np.mean(part[0] ** 2, -1)) for part in parts))


def turned(result: Result) -> int:
    """The record at which half of the theory's weights (in square) lie along the axis of their own sign."""
    own, before = np.asarray(result.records["theory"].values["own_cosine"]), early(result)
    return int(np.argmin(np.abs(np.mean(own[before] ** 2, axis=(1, 2)) - 0.5)))


def claims(result: Result) -> list[Claim]:
    """Draws are seeds.

    The tolerances of the three rates are for n samples in place of the population, which push a neuron along an axis by
    about ``eta |a|/2 sqrt((|mu|^2/2 + 1)/(2n))`` a step, a tenth of its start in the quick preset. They were set with
    the measurement known (0.98, 0.11 and 0.87 at base seed 0). Single neurons that descend on the samples themselves
    account for the difference: there the network has 0.993 of their growth, 0.001 less along the other axis, and 0.992
    of their shrinking.
    """
    cfg, values = result.config, {k: np.asarray(v) for k, v in result.records["network"].values.items()}
    fixed = {name: np.asarray(value)[0] for name, value in result.records["fixed"].values.items()}
    own, other = values["own_cosine"], values["other_cosine"]
    source, law = "theorem 3.1", "section 4"
    ends = {"network": values["test_accuracy"][-1], "untrained network": values["test_accuracy"][0]}
    ends |= {"linear classifier": fixed["linear_test_accuracy"], "frozen kernel": fixed["frozen_test_accuracy"]}
    excess = {name: noisy(result, accuracy) - cfg.flips for name, accuracy in ends.items()}
    memorised, frozen = (
        cfg.flips - (1 - one) for one in (values["train_accuracy"][-1], fixed["frozen_train_accuracy"])
    )
    typical = np.median(np.abs(own), axis=2)
    kept, shuffled = (_kept(own[0], np.roll(own[-1], shift, axis=-1), cfg.dimension) for shift in (0, 1))
    chance, found = (np.abs(ends[name] - 0.5) for name in ("linear classifier", "network"))
    at = turned(result)
    network, theory, wrong = (growth(result.records[name], at) for name in ("network", "theory", "rivals"))
    rivals = {name: Growth(*(part[i] for part in wrong)) for i, name in enumerate(RIVALS)}
    own_rate = {name: rivals[name].own / theory.own for name in ("label noise ignored", "half the rate")}
    shrunk = {name: (1 - one.beside) / (1 - theory.beside) for name, one in rivals.items() if name in SHRINKS}
    return [
        Claim.at_most("error on fresh noisy samples less the noise rate", source, excess.pop("network"), 0.02,
                      rivals=excess),
        Claim.at_most("training error below the noise rate (memorised)", source, memorised, 0.05,
                      rivals={"frozen kernel": frozen}),
        Claim.at_most("least-squares linear classifier's distance from chance", "section 2", chance, 0.05,
                      rivals={"network": found}),
        Claim.at_least("neurons' cosine with the axis of their own sign at the end, median", law, typical[-1], 0.8,
                       rivals={"random features, as at the start": typical[0],
                               "the other axis": np.median(np.abs(other[-1]), axis=1)}),
        Claim.at_least("neurons with a cosine above 1/sqrt(d) that keep its sign", law, kept, 0.9,
                       rivals={"another neuron's sign": shuffled}),
        Claim.close("growth along the own axis over theory's, neurons half turned", law, network.own / theory.own, 1.0,
                    0.05, rivals=own_rate),
        Claim.close("weights left along the other axis, less theory's, neurons half turned", law,
                    network.other - theory.other, 0.0, 0.2,
                    rivals={name: rivals[name].other - theory.other for name in ("other axis left alone",)}),
        Claim.close("shrinking beside both axes over theory's, neurons half turned", law,
                    (1 - network.beside) / (1 - theory.beside), 1.0, 0.25, rivals=shrunk),
    ]  # fmt: skip


SHRINKS = ("label noise ignored", "no term along the neuron", "half the rate")


def _kept(start: np.ndarray, end: np.ndarray, dimension: int) -> np.ndarray:
    """Of each seed's neurons that are strong at the start, the share whose cosine keeps its sign; ``[seeds]``."""
    strong = np.abs(start) > 1 / dimension**0.5
    return np.sum(strong & (start * end > 0), axis=-1) / np.maximum(strong.sum(-1), 1)


def figure(result: Result) -> Any:
    """Markers: medians over seeds, and over neurons where there are some; lines: theory, grey: rivals."""
    cfg, records, before = result.config, result.records, early(result)
    record, theory = records["network"], records["theory"]
    page, panels = new_figure(1, 3)
    step = np.maximum(record.step, 0.7)
    train = 1 - np.asarray(record.values["train_accuracy"])
    fresh = noisy(result, record.values["test_accuracy"])
    for i, (name, value) in enumerate((("train", train), ("fresh, labels as noisy", fresh))):
        panels[0].plot(step, np.median(value, axis=1), label=name, **measured_style(2 * i, 3))
    panels[0].axhline(cfg.flips, label="theory at the end: noise rate", **theory_style())
    for i, name in enumerate(("linear", "frozen")):
        error = np.median(noisy(result, records["fixed"].values[f"{name}_test_accuracy"]))
        label = "fresh, linear classifier" if name == "linear" else "fresh, kernel frozen at the start"
        panels[0].axhline(error, label=label, **rival_style(i))
    drawn = {"own_cosine": ("half the rate", "label noise ignored"), "other_cosine": ("other axis left alone",)}
    for i, (name, wrong) in enumerate(drawn.items()):
        label = name.split("_")[0] + " axis"
        lines = [(theory, theory_style(i)), (record, {"label": label, **measured_style(2 * i, 3)})]
        for at, one in enumerate(wrong):
            held = {name: np.asarray(records["rivals"].values[name])[:, list(RIVALS).index(one)]}
            lines.append((theory._replace(values=held), {"label": one, **rival_style(i + at)}))
        for shown, style in lines:
            value = np.median(np.abs(np.asarray(shown.values[name])), axis=(1, 2))
            cut = slice(None) if shown is record else np.flatnonzero(before)
            panels[1].plot(step[: len(value)][cut], value[cut], **style)
    for i, at in enumerate((0, turned(result))):
        values = [np.asarray(r.values["own_cosine"])[at].ravel()[::3] for r in (theory, record)]
        panels[2].plot(*values, label=f"own axis, step {record.step[at]}", **measured_style(2 * i, 3))
    panels[2].plot([-1, 1], [-1, 1], label="theory", **theory_style())
    panels[2].set(xlabel="cosine of a neuron, theory", ylabel="cosine of a neuron, network")
    panels[0].set(xscale="log", xlabel="step", ylabel="error", ylim=(0, 0.8))
    panels[1].set(xscale="log", xlabel="step", ylabel="median |cosine| with an axis", ylim=(0, 1.6))
    for panel in panels:
        panel.legend(fontsize=7, frameon=False)
    page.suptitle(f"Random feature amplification: d = {cfg.dimension}, n = {cfg.samples}, noise rate {cfg.flips:g}")
    return page


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
