"""Random features are amplified into learned ones (Frei, Chatterji & Bartlett 2022).

The XOR clusters ``+-mu_1 -> +1``, ``+-mu_2 -> -1`` in unit noise, more samples than dimensions, a share p of the labels
flipped, are learned by ``f = sum_j a_j relu(w_j . x)``, ``a_j = +-1/sqrt(m)`` fixed, by full-batch gradient descent on
the logistic loss from small weights. Every linear classifier is at chance; the network's error comes down to the noise
rate, on fresh samples and on the training set alike. While f is small, neurons do not feel one another: on the
population, with ``u_k = w . mu_k/|w|`` and ``s = sign a``,

    dw/dt = |a| s (1 - 2p)/8 [mu_1 (2 Phi(u_1) - 1) - mu_2 (2 Phi(u_2) - 1) + 2 (w/|w|) (phi(u_1) - phi(u_2))]

so the weak random correlation of a neuron with the axis of its own sign is amplified, and that with the other decays.
The run lays this amplification of single neurons over the network's.

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
from dynamics.runs.figures import measured_style, new_figure, theory_style
from dynamics.tasks.clusters import xor_clusters
from dynamics.types import Array, Batch, Claim, Data, Dynamics, Objective, Observable, Record

SOURCE = "Frei, Chatterji & Bartlett 2022, 'Random feature amplification: feature learning and generalization in neural networks'"  # noqa: E501
SECONDS = 20
EARLY = 0.1  # the theory of independent neurons holds while the loss has lost less than this share of ln 2


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
    def paper(cls) -> Config:
        """A larger instance: the theorem is one of rates and names no sizes."""
        return cls(dimension=200, samples=10_000, width=1000, separation=8.0, steps=3000)


class Result(NamedTuple):
    """``network`` with values ``[T, seeds]``, cosines ``[T, seeds, m]``; ``theory``, its cosines alone;
    ``linear``: the least-squares classifier's test accuracy ``[1, seeds]``."""

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
    moving = partial(still, steps=config.steps, record_at=log_steps(config.steps, 60))
    train, test = prefixed("train", scores(accuracy=accuracy, loss=logistic)), scores(accuracy=accuracy)
    classifier = Observable.of_view(lambda view: {"test_accuracy": linear(view.data)})
    return Result(config, {
        "network": moving(network, lambda lane: [train, along(lane)], test=test, label="network"),
        "theory": moving(lambda lane: amplification(config, lane.setting), along, label="theory"),
        "linear": still(None, classifier, steps=0, label="linear"),
    })  # fmt: skip


def draw(config: Config, seed: int) -> tuple[Setting, Array, Data]:
    task_key, weight_key, sign_key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), seed), 3)
    sizes = config.samples, config.test_samples, config.dimension
    data, means = xor_clusters(task_key, *sizes, config.separation, config.flips)
    signs = jnp.where(jnp.arange(config.width) % 2, 1.0, -1.0) / config.width**0.5
    weights = config.init * jax.random.normal(weight_key, (config.width, config.dimension))
    return Setting(jax.random.permutation(sign_key, signs), means), weights, data


def amplification(config: Config, setting: Setting) -> Dynamics:
    """Descent of independent neurons on the population, as long as the network's output is small."""
    (mu1, mu2), a = setting.means, setting.readout[:, None]

    def step(key, w, data):
        size = jnp.linalg.norm(w, axis=1, keepdims=True)
        u1, u2 = w @ mu1[:, None] / size, w @ mu2[:, None] / size
        axes = mu1 * (2 * norm.cdf(u1) - 1) - mu2 * (2 * norm.cdf(u2) - 1)
        drift = axes + 2 * w / size * (norm.pdf(u1) - norm.pdf(u2))
        return w + config.learning_rate * a * (1 - 2 * config.flips) / 8 * drift

    return Dynamics(lambda w: w, step, lambda w: w, config.learning_rate)


def cosines(weights: Array, setting: Setting):
    """Cosine of every neuron with the axis of its own sign (mu_1 for a > 0) and with the other; ``[m]`` each."""
    along = weights @ setting.means.T / jnp.linalg.norm(setting.means, axis=1)
    along = along / jnp.linalg.norm(weights, axis=1, keepdims=True)
    own = jnp.where(setting.readout > 0, along[:, 0], along[:, 1])
    return {"own_cosine": own, "other_cosine": jnp.where(setting.readout > 0, along[:, 1], along[:, 0])}


def linear(data: Data) -> Array:
    fit = jnp.linalg.lstsq(data.train.x, data.train.y)[0]
    test: Batch = data.test
    return accuracy(test.x @ fit, test.y)


def early(result: Result) -> np.ndarray:
    """Which recorded steps ``[T]`` lie before the first at which any seed's loss has left ln 2."""
    loss = np.asarray(result.records["network"].values["train_loss"])
    return np.cumprod((loss > (1 - EARLY) * np.log(2)).all(axis=1)).astype(bool)


def noisy(result: Result) -> np.ndarray:
    """Error on fresh samples whose labels are flipped as in training, ``[T, seeds]``."""
    clean, p = 1 - np.asarray(result.records["network"].values["test_accuracy"]), result.config.flips
    return p + (1 - 2 * p) * clean


def claims(result: Result) -> list[Claim]:
    cfg, values = result.config, {k: np.asarray(v) for k, v in result.records["network"].values.items()}
    own, theory = values["own_cosine"], np.asarray(result.records["theory"].values["own_cosine"])
    memorised = cfg.flips - (1 - values["train_accuracy"][-1])
    typical, before = np.median(np.abs(own), axis=2), early(result)
    error = np.median(np.abs(own - theory)[before], axis=2) / typical[before]
    strong = np.abs(own[0]) > 1 / cfg.dimension**0.5
    kept = np.mean((own[-1] * own[0] > 0)[strong])
    off, source = np.abs(np.asarray(result.records["linear"].values["test_accuracy"]) - 0.5).max(), "theorem 3.1"
    excess = noisy(result)[-1].max() - cfg.flips
    return [
        Claim.at_most("error on fresh noisy samples less the noise rate, worst seed", source, excess, 0.02),
        Claim.at_most("training error below the noise rate (memorised), worst seed", source, memorised.max(), 0.05),
        Claim.at_most("least-squares linear classifier's distance from chance, worst seed", "section 2", off, 0.05),
        Claim.at_most("neurons' cosine with their own axis at the start, median", "section 4", typical[0].max(), 0.2),
        Claim.at_least("neurons' cosine with their own axis at the end, median", "section 4", typical[-1].min(), 0.8),
        Claim.at_least("neurons with a cosine above 1/sqrt(d) that keep its sign", "section 4", kept, 0.9),
        Claim.at_most("amplification of single neurons against theory while f is small", "section 4", error.max(), 0.1),
    ]


def figure(result: Result) -> Any:
    """Markers: medians over seeds, and over neurons where there are some; lines: theory."""
    cfg, records, before = result.config, result.records, early(result)
    record, theory = records["network"], records["theory"]
    page, panels = new_figure(1, 3)
    step = np.maximum(record.step, 0.7)
    train = 1 - np.asarray(record.values["train_accuracy"])
    for i, (name, value) in enumerate((("train", train), ("fresh, labels as noisy", noisy(result)))):
        panels[0].plot(step, np.median(value, axis=1), label=name, **measured_style(2 * i, 3))
    panels[0].axhline(cfg.flips, label="theory at the end: noise rate", **theory_style())
    panels[0].axhline(0.5, label="any linear classifier", **theory_style(1))
    for i, name in enumerate(("own_cosine", "other_cosine")):
        label = name.split("_")[0] + " axis"
        for panel_record, style in ((theory, theory_style(i)), (record, {"label": label, **measured_style(2 * i, 3)})):
            value = np.median(np.abs(np.asarray(panel_record.values[name])), axis=(1, 2))
            shown = before if panel_record is theory else slice(None)
            panels[1].plot(step[shown], value[shown], **style)
    predicted = np.median(np.abs(np.asarray(theory.values["own_cosine"])), axis=(1, 2))[before]
    for i, at in enumerate((0, int(np.argmin(np.abs(predicted - 0.5))))):
        values = [np.asarray(r.values["own_cosine"])[at].ravel()[::3] for r in (theory, record)]
        panels[2].plot(*values, label=f"own axis, step {record.step[at]}", **measured_style(2 * i, 3))
    panels[2].plot([-1, 1], [-1, 1], label="theory", **theory_style())
    panels[2].set(xlabel="cosine of a neuron, theory", ylabel="cosine of a neuron, network")
    panels[0].set(xscale="log", xlabel="step", ylabel="error", ylim=(0, 0.6))
    panels[1].set(xscale="log", xlabel="step", ylabel="median |cosine| with an axis")
    for panel in panels:
        panel.legend(fontsize=7, frameon=False)
    page.suptitle(f"Random feature amplification: d = {cfg.dimension}, n = {cfg.samples}, noise rate {cfg.flips:g}")
    return page


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
