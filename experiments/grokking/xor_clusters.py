"""Benign overfitting and grokking on XOR clusters (Xu, Wang, Frei, Vardi & Hu 2023).

``f = sum_j a_j relu(w_j.x)`` with ``a_j = +-1/sqrt(m)`` fixed learns high-dimensional clusters, ``+-mu_1 -> +1`` and
``+-mu_2 -> -1``, by full-batch gradient descent on the logistic loss ``(1/n) sum log(1 + exp(-y f))``, some training
labels flipped. After one step the network is nearly linear: it fits every training label, flipped ones too, and is no
better than chance on fresh points, as any linear classifier: of the clusters at ``+mu`` and ``-mu``, whose sizes differ
by chance, it gets the larger right and the other wrong. Later its neurons line up with ``+-mu_1`` and ``+-mu_2`` and it
generalises while it still fits the noise. The controls interpolate the same samples: a linear classifier, and the
network's own kernel frozen at its start. Descent moves W within the span of the data, ``W = W_0 + A^T X``, so the run
needs only ``n x n`` Gram matrices and is exact at any input dimension.

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
from dynamics.evolve import log_steps
from dynamics.evolve import study as in_memory
from dynamics.losses import accuracy, logistic
from dynamics.observe.seldom import seldom
from dynamics.runs.figures import measured_style, new_figure, rival_style, theory_style
from dynamics.statistics import effective_rank, kernel_distance, label_alignment
from dynamics.tasks.clusters import xor_clusters
from dynamics.types import Array, Claim, Dynamics, Record

SOURCE = "Xu, Wang, Frei, Vardi & Hu 2023, 'Benign overfitting and grokking in ReLU networks for XOR cluster data'"
SECONDS = 60
RANK_EVERY = 4  # recorded steps between readings of the learned weights' rank


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    dimension: Annotated[int, Range(2)] = 40_000
    """input dimension p"""
    samples: Annotated[int, Count] = 200
    """training samples n"""
    separation: Annotated[float, Positive] = 2.5 * 200**0.5
    """norm |mu| of the cluster centres, in units of the noise per coordinate; the paper's is 2.5 sqrt(p/n)"""
    width: Annotated[int, Range(2)] = 4000
    """hidden units m; the network of the first step is linear, at chance, up to 1/sqrt(m)"""
    flips: Annotated[float, Range(0, 0.5, open_high=True)] = 0.05
    """probability of a flipped training label"""
    init: Annotated[float, Positive] = 1e-6
    """standard deviation of the initial weights; beyond a few 1e-6 they still show in the network after one step"""
    learning_rate: Annotated[float, Positive] = 0.01
    """step size"""
    steps: Annotated[int, Count] = 200
    """updates"""
    test_samples: Annotated[int, Count] = 1000
    """fresh samples, labels clean"""

    @classmethod
    def paper(cls) -> Config:
        """The paper's figure, in which no sample is ever fitted well enough to lose weight in the loss: a minute."""
        return cls(width=1000, init=1e-15, learning_rate=1e-12, steps=1000)

    def __post_init__(self):
        super().__post_init__()
        points = self.samples + self.test_samples + 2
        self.require(self.dimension > points, "dimension", f"more than the {points} points and centres")


class Result(NamedTuple):
    """``records['network']`` with values ``[T, seeds]``."""

    config: Config
    records: dict[str, Record]


class Grams(NamedTuple):
    """Inner products with the training inputs X, for one set of points.

    Attributes:
        gram: ``[k, n]``, points times X^T.
        start: ``[k, m]``, points times W_0^T.
        y: ``[k, 1]`` labels; for the cluster centres unused zeros.
    """

    gram: Array
    start: Array
    y: Array


class Spans(NamedTuple):
    """``train``, ``test`` and the two ``centres``; readout ``signs [m]``; ``norms [m]``, ``|w_j|^2`` at the start."""

    train: Grams
    test: Grams
    centres: Grams
    signs: Array
    norms: Array


def run(config: Config, study=in_memory) -> Result:
    network = study(
        {"seed": range(config.seeds)},
        draw=lambda lane: (spans(config, lane.seed), jnp.zeros((config.samples, config.width))),
        make=lambda lane: dual_descent(config.learning_rate),
        read=[read, seldom(read_rank, RANK_EVERY), seldom(read_controls, config.steps + 1)],
        steps=config.steps, record_at=log_steps(config.steps, 40), key=jax.random.key(config.seed), label="network",
    )  # fmt: skip
    return Result(config, {"network": network})


def spans(config: Config, seed: int) -> Spans:
    """Data and initial weights of one seed, reduced to their inner products.

    With V all points and centres, ``V W_0^T`` is Gaussian with covariance ``init^2 V V^T`` and is drawn without W_0;
    the rest of ``|w_j|^2`` is chi-squared with the dimensions left.
    """
    task_key, weight_key, rest_key, sign_key = jax.random.split(
        jax.random.fold_in(jax.random.key(config.seed), seed), 4
    )
    n, k = config.samples, config.samples + config.test_samples + 2
    (train, test), means = xor_clusters(
        task_key, n, config.test_samples, config.dimension, config.separation, config.flips
    )
    points = jnp.concatenate([train.x, test.x, means])
    gram, drawn = points @ points.T, jax.random.normal(weight_key, (k, config.width))
    start = config.init * jnp.linalg.cholesky(gram) @ drawn
    rest = 2 * jax.random.gamma(rest_key, (config.dimension - k) / 2, (config.width,))
    signs = jax.random.rademacher(sign_key, (config.width,), start.dtype) / config.width**0.5

    def grams(rows: slice, y):
        return Grams(gram[rows, :n], start[rows], y)

    centres = grams(slice(k - 2, k), jnp.zeros((2, 1)))
    norms = config.init**2 * (jnp.sum(drawn**2, axis=0) + rest)
    return Spans(grams(slice(n), train.y), grams(slice(n, k - 2), test.y), centres, signs, norms)


def preactivation(coefficients: Array, at: Grams) -> Array:
    """``x . w_j`` for ``W = W_0 + A^T X`` with coefficients A ``[n, m]``; ``[k, m]``."""
    return at.start + at.gram @ coefficients


def dual_descent(rate) -> Dynamics:
    """Gradient descent on W in the coordinates A: ``A <- A - rate dL/dh``, since ``dL/dW = (dL/dh)^T X``."""

    def step(key, coefficients, data: Spans):
        def loss(h):
            return logistic((jax.nn.relu(h) @ data.signs)[:, None], data.train.y)

        return coefficients - rate * jax.grad(loss)(preactivation(coefficients, data.train))

    return Dynamics(lambda coefficients: coefficients, step, lambda coefficients: coefficients, rate)


def read(coefficients, data: Spans):
    """Accuracies, and the share of each neuron's weight along the axis of its own sign (mu_1 for +, mu_2 for -)."""
    readings = {}
    for name, at in (("train", data.train), ("test", data.test)):
        f = (jax.nn.relu(preactivation(coefficients, at)) @ data.signs)[:, None]
        readings |= {f"{name}_accuracy": accuracy(f, at.y), f"{name}_loss": logistic(f, at.y)}
    readings["linear_agreement"] = accuracy(f, at.gram @ data.train.y)  # with the first step's linear classifier
    size = data.norms + jnp.sum(coefficients * (2 * data.train.start + data.train.gram @ coefficients), axis=0)
    toward = preactivation(coefficients, data.centres) ** 2  # [2, m]
    own = jnp.where(data.signs > 0, toward[0], toward[1])
    readings |= {"own_axis_share": jnp.sum(own) / jnp.sum(toward), "weight_norm": jnp.sqrt(jnp.sum(size))}
    return readings | read_kernel(coefficients, data.train)


def read_kernel(coefficients, train: Grams):
    """Movement and label alignment of the NTK ``K = X X^T * (1/m) relu'(h) relu'(h)^T`` on the training points."""

    def kernel(h):
        on = (h > 0).astype(h.dtype)
        return train.gram * (on @ on.T) / h.shape[1]

    k = kernel(preactivation(coefficients, train))
    return {"kernel_distance": kernel_distance(k, kernel(train.start)), "alignment": label_alignment(k, train.y)}


def read_controls(coefficients, data: Spans):
    """What interpolates the training set without features, and what fits no flipped label.

    ``linear_`` and ``frozen_test_accuracy``: of the classifiers ``k(x, X) K^-1 y`` with ``K = X X^T`` and with the
    network's kernel at the start; ``nearest_centre_accuracy``: on the training labels.
    """
    train, test, (first, second) = data.train, data.test, jnp.abs(data.centres.gram)
    on, lit = ((at.start > 0).astype(train.y.dtype) for at in (train, test))
    kernels = {
        "linear": (train.gram, test.gram),
        "frozen": (train.gram * (on @ on.T) / on.shape[1], test.gram * (lit @ on.T) / on.shape[1]),
    }
    readings = {
        f"{name}_test_accuracy": accuracy(across @ jax.scipy.linalg.solve(k, train.y, assume_a="pos"), test.y)
        for name, (k, across) in kernels.items()
    }
    nearest = jnp.where(first > second, 1.0, -1.0)[:, None]
    return readings | {"nearest_centre_accuracy": accuracy(nearest, train.y)}


def read_rank(coefficients, data: Spans):
    """Effective rank of the learned ``A^T X``, through the triangular factor of its transpose: m may be large."""
    factor = jnp.linalg.qr((jnp.linalg.cholesky(data.train.gram).T @ coefficients).T, mode="r")  # [n, n]
    return {"effective_rank": effective_rank(jnp.linalg.svd(factor, compute_uv=False))}


def claims(result: Result) -> list[Claim]:
    """On t = 1 and on the end of the run; draws are seeds."""
    values = {name: np.asarray(value) for name, value in result.records["network"].values.items()}
    train, test, share, linear = (
        values[name] for name in ("train_accuracy", "test_accuracy", "own_axis_share", "linear_agreement")
    )
    ends = {name: values[f"{name}_test_accuracy"][0] for name in ("linear", "frozen")}
    clean = {"no flipped label fitted": values["nearest_centre_accuracy"][0]}
    chance = np.abs(test - 0.5)
    first, end, figure3 = "theorem 2", "theorem 1", "figure 3"
    return [
        Claim.at_least("train accuracy after one step, flipped labels included", first, train[1], 1,
                       rivals={"as at the start": train[0]} | clean),
        Claim.at_most("distance of test accuracy from chance after one step", first, chance[1], 0.05,
                      rivals={"as at the end": chance[-1]}),
        Claim.at_least("agreement with the linear classifier sum y x on fresh points after one step", first, linear[1],
                       0.95, rivals={"as at the start": linear[0], "as at the end": linear[-1]}),
        Claim.at_least("final test accuracy", end, test[-1], 0.95,
                       rivals={"as after one step": test[1], "linear interpolation": ends["linear"],
                               "kernel frozen at the start": ends["frozen"]}),
        Claim.at_least("final train accuracy, flipped labels included", end, train[-1], 1, rivals=clean),
        Claim.at_least("share of weight on the axis of the neuron's own sign at the end", figure3, share[-1], 0.95,
                       rivals={"as at the start": share[0], "as after one step": share[1]}),
    ]  # fmt: skip


def figure(result: Result) -> Any:
    """Markers: median over seeds and, faint, every seed; black: what the theorems predict, grey: the controls."""
    record, cfg = result.records["network"], result.config
    step = np.maximum(record.step, 0.7)
    page, panels = new_figure(1, 3)
    for i, name in enumerate(("train_accuracy", "test_accuracy")):
        label = "train, flipped labels included" if i == 0 else "test, clean labels"
        panels[0].plot(step, np.median(record.values[name], axis=1), label=label, **measured_style(2 * i, 3))
    panels[0].axhline(1, label="theory at the end", **theory_style())
    panels[0].axhline(0.5, label="theory at t = 1: linear, at chance", **theory_style(1))
    controls = {
        "nearest_centre_accuracy": "train, no flipped label fitted",
        "linear_test_accuracy": "test, linear interpolation",
        "frozen_test_accuracy": "test, kernel frozen at the start",
    }
    for i, (name, label) in enumerate(controls.items()):
        panels[0].axhline(np.median(record.values[name][0]), label=label, **rival_style(i))
    for panel, name in ((panels[1], "own_axis_share"), (panels[2], "linear_agreement")):
        panel.plot(step, record.values[name], color="0.8", linewidth=0.8)
        panel.plot(step, np.median(record.values[name], axis=1), **measured_style(0))
    panels[0].set_ylim(0.4, 1.8)  # room for the legend
    panels[1].axhline(1, label="theory: neurons on the axis of their own sign", **theory_style())
    panels[2].axhline(1, label="theory at t = 1", **theory_style(1))
    labels = ("accuracy", "weight on the own axis", r"agreement with $\sum_i y_i x_i$")
    for panel, label in zip(panels, labels):
        panel.set(xscale="log", xlabel="step", ylabel=label)
        panel.legend(fontsize=7, frameon=False)
    page.suptitle(f"XOR clusters: p = {cfg.dimension}, n = {cfg.samples}, {cfg.flips:.0%} of labels flipped")
    return page


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
