"""Benign oscillation: a large learning rate learns the weak feature (Lu, Wu, Yang & Zou 2023).

Each sample has three patches: a weak feature y u, a strong one y v in a fraction of the samples only, and noise. SGD
with single samples trains ``f = sum_j j (1/m) sum_r sum_p relu(<w_jr, x_p>)^2``, j = +-1. A small rate fits by v, and
the samples without v by their noise, and learns little of u. A step on a sample of residual R multiplies every active
weight along v by ``1 + g R``, ``g = 2 eta |v|^2 / m``, and along u by ``1 + g R |u|^2/|v|^2``. Above g = 1 the strong
feature oscillates about a constant, so that ``sum_t log(1 + g R(t)) ~ 0``, and by Jensen's inequality the mean of R is
positive: the weak one grows exponentially, on average over samples as

    <w, u>(t) = <w, u>(0) prod_s (1 + (2 eta |u|^2 / m) R(s)),   R(s) the sum of y's residuals over n,

until it carries enough of f to calm the strong one (sections 3 and 4). On test samples without v the large rate is
right and the small one guesses. With v in half of the samples both learn u: noise then grows more slowly than u, whose
rates are as ``|noise|^2`` to ``n (1 - fraction) |u|^2``.

Run time: about 15 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from dynamics import config
from dynamics.config import Count, NonNegative, Positive, Range
from dynamics.evolve import gradient_descent
from dynamics.evolve import study as in_memory
from dynamics.losses import half_mse
from dynamics.runs.figures import measured_style, new_figure, rival_style, theory_style
from dynamics.types import Batch, Claim, Data, Objective, Observable, Record

SOURCE = "Lu, Wu, Yang & Zou 2023, 'Benign oscillation of stochastic gradient descent with large learning rates'"
SECONDS = 15
EDGE = 1.0  # gain above which the strong feature oscillates
TESTED = 200  # samples without the strong feature


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Count] = 5
    """number of draws of data and weights"""
    gain: Annotated[tuple[float, ...], Positive] = (0.2, 1.2)
    """learning rate as g = 2 eta |v|^2 / m, small then large; oscillation starts at 1, and above 1.6 it explodes"""
    fraction: Annotated[float, Range(0, 1)] = 0.9
    """share of the samples with the strong feature"""
    weak: Annotated[float, Positive] = 1.0
    """size |u| of the weak feature"""
    strong: Annotated[float, Positive] = 4.0
    """size |v| of the strong feature"""
    noise: Annotated[float, NonNegative] = 0.17
    """standard deviation of an entry of the noise patch"""
    dim: Annotated[int, Range(3)] = 400
    """entries d of a patch"""
    samples: Annotated[int, Range(2)] = 80
    """training samples n, half of each label"""
    width: Annotated[int, Count] = 20
    """filters m of each sign"""
    steps: Annotated[int, Count] = 4000
    """SGD steps, each on one sample"""
    window: Annotated[int, Range(4)] = 500
    """first steps, all of which are read: the strong feature oscillates in them"""
    init: Annotated[float, Positive] = 0.01
    """standard deviation of a weight at the start"""

    @classmethod
    def large(cls) -> Config:
        """More samples, filters and dimensions, 20 draws: some ten minutes on two cores. The paper's theorems are
        asymptotic; its experiments on CIFAR-10 are not here."""
        return cls(seeds=20, dim=1600, samples=200, width=40, steps=10000, noise=0.12)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(bool(np.all(np.diff(self.gain) > 0)), "gain", "ascending values")
        self.require(self.weak < self.strong, "weak", f"below the strong feature's {self.strong:g}")


class Result(NamedTuple):
    """``records['training']``, ``[T, gains, seeds]``, and ``['theory']`` for the window; residuals and weights of each
    class, ``[T, gains, seeds, 2]``."""

    config: Config
    records: dict[str, Record]


def apply(params, x):
    """``x [n, 3, d]``, ``params [2, m, d]`` -> ``f [n, 1]``."""
    active = jax.nn.relu(jnp.einsum("jrd,npd->njrp", params, x)) ** 2
    f = jnp.mean(jnp.sum(active, -1), -1)
    return (f[:, 0] - f[:, 1])[:, None]


def draw(config: Config, key) -> tuple[Data, jax.Array]:
    """Training samples, a fraction of which has the strong feature, test samples without it, and the weights."""
    keys = jax.random.split(key, 3)
    u, v = config.weak * jnp.eye(config.dim)[0], config.strong * jnp.eye(config.dim)[1]

    def batch(key, strong):
        y = jnp.where(jnp.arange(len(strong)) % 2 == 0, 1.0, -1.0)
        noise = config.noise * jax.random.normal(key, (len(strong), config.dim)).at[:, :2].set(0)
        return Batch(jnp.stack([y[:, None] * u, (strong * y)[:, None] * v, noise], 1), y[:, None])

    has = (np.arange(config.samples) < round(config.fraction * config.samples)).astype(np.float32)
    weights = config.init * jax.random.normal(keys[2], (2, config.width, config.dim))
    return Data(batch(keys[0], jnp.asarray(has)), batch(keys[1], jnp.zeros(TESTED))), weights


def run(config: Config, study=in_memory) -> Result:
    """Trains every (gain, seed) as one program, reading every step of the window and some later."""
    L = Objective(apply, half_mse)

    def rate(gain):
        return gain * config.width / (2 * config.strong**2)

    def values(view):
        train, test = view.data
        residual = (train.y - apply(view.params, train.x)) * train.y  # [n, 1]
        classes = jnp.concatenate([train.y > 0, train.y < 0], -1)  # [n, 2]
        with_v = classes & (train.x[:, 1, 1:2] != 0)
        along = jax.nn.relu(jnp.array([1.0, -1.0])[:, None, None] * view.params[..., :2])  # [2, m, 2]
        weak, strong = jnp.max(along, 1).T
        right = test.y * apply(view.params, test.x)
        return {
            "loss": 0.5 * jnp.mean(residual**2),
            "accuracy": jnp.mean(residual < 1),
            "residual": jnp.sum(jnp.where(classes, residual, 0), 0) / config.samples,
            "residual_with_v": jnp.sum(jnp.where(with_v, residual, 0), 0) / jnp.maximum(jnp.sum(with_v, 0), 1),
            # the same filter at all times: all grow by one factor
            "weak": config.weak * weak,
            "strong": config.strong * strong,
            "weak_margin": jnp.mean(right),
            "weak_accuracy": jnp.mean(right > 0),
        }

    window, key = min(config.window, config.steps), jax.random.key(config.seed)
    later = np.linspace(window, config.steps, 80).round().astype(int)
    record = study(
        {"gain": config.gain, "seed": range(config.seeds)},
        draw=lambda lane: draw(config, jax.random.fold_in(key, lane.seed)),
        make=lambda lane: gradient_descent(L, rate(lane.gain), batch_size=1),
        read=Observable.of_view(values),
        steps=config.steps,
        record_at=np.union1d(np.arange(window + 1), later),
        key=key,
        label="training",
    )
    return Result(config, {"training": record, "theory": theory(config, record, window)})


def theory(config: Config, record: Record, window: int) -> Record:
    """The weak feature by its product of mean residuals, and by gradient flow, under which it grows as the strong one's
    power ``|u|^2/|v|^2``."""
    ratio = (config.weak / config.strong) ** 2
    weak, strong, residual = (np.asarray(record.values[k], float)[: window + 1] for k in ("weak", "strong", "residual"))
    factor = 1 + ratio * np.asarray(config.gain)[:, None, None] * residual[:-1]
    grown = np.concatenate([np.ones((1, *factor.shape[1:])), np.cumprod(factor, 0)])
    flow = np.where(strong > 0, strong / np.where(strong[:1] > 0, strong[:1], 1), np.nan) ** ratio
    values = {"weak": weak[:1] * grown, "flow": weak[:1] * flow}
    return Record(record.step[: window + 1], record.time[: window + 1], values, record.axes)


def claims(result: Result) -> list[Claim]:
    """Means over draws of data and weights; the small rate is the large one's control."""
    cfg, values, theory = result.config, result.records["training"].values, result.records["theory"].values
    names = {
        "theorem 3.2": "accuracy on samples without the strong feature (large rate)",
        "theorem 3.3": "training accuracy (small rate)",
        "lemma 4.1": "mean residual while the strong feature oscillates (large rate)",
        "section 4": "mean log(1 + g R) while it oscillates, R of samples with it (large rate)",
        "equation 4.2": "log growth of the weak feature over that by mean residuals (large rate)",
    }
    if not cfg.gain[0] < EDGE <= cfg.gain[-1] or cfg.window >= cfg.steps or len(cfg.gain) < 2:
        note = f"needs a rate below and one above {EDGE:g}, and steps after the window"
        return [Claim.not_applicable(name, source, note) for source, name in names.items()]
    start, window = slice(cfg.window // 10, cfg.window), cfg.window
    accuracy, fitted = np.asarray(values["weak_accuracy"])[-1], np.asarray(values["accuracy"])[:, 0]
    residual = np.asarray(values["residual_with_v"], float)[start]  # [T, gains, seeds, 2]
    residual = np.where(np.isfinite(residual), residual, np.nan)
    mean, large = residual.mean((0, -1)), residual[:, -1]
    balance = np.log(np.maximum(1 + cfg.gain[-1] * large, 1e-6)).mean((0, -1))
    first_order = {"to first order": cfg.gain[-1] * mean[-1]}
    note = f"the small rate's, which settles at R = 0, {np.log1p(cfg.gain[0] * mean[0]).mean():.2g}"
    ends = [np.asarray(values["weak"], float)[[0, window], -1], *(theory[k][[0, window], -1] for k in ("weak", "flow"))]
    growth, product, flow = (np.log(np.maximum(x[1] / np.maximum(x[0], 1e-30), 1e-30)).mean(-1) for x in ends)
    return [
        Claim.at_least(names["theorem 3.2"], "theorem 3.2", accuracy[-1], 0.9, rivals={"small rate": accuracy[0]}),
        Claim.at_least(names["theorem 3.3"], "theorem 3.3", fitted[-1], 0.95, rivals={"at the start": fitted[0]}),
        Claim.at_least(names["lemma 4.1"], "lemma 4.1", mean[-1], 0.01, rivals={"small rate": mean[0]}),
        Claim.close(names["section 4"], "section 4", balance, 0, 0.02, rivals=first_order, note=note),
        Claim.close(
            names["equation 4.2"], "section 4", growth / product, 1, 0.1, rivals={"gradient flow": flow / product}
        ),
    ]


def figure(result: Result) -> Figure:
    """Training loss, the weak feature's growth over its theory, and accuracy without the strong feature."""
    cfg, record, theory = result.config, result.records["training"], result.records["theory"]
    picture, (left, middle, right) = new_figure(1, 3)
    for i, gain in enumerate(cfg.gain):
        style = measured_style(i, len(cfg.gain)) | {"markevery": (0, max(1, len(record.step) // 60))}
        label = rf"$2\eta|v|^2/m$ = {gain:g}"
        for axes, name in ((left, "loss"), (right, "weak_accuracy"), (middle, "weak")):
            values = np.asarray(record.values[name])[:, i, 0]
            axes.plot(record.step, values[:, 0] if name == "weak" else values, **style, label=label)
        middle.plot(theory.step, theory.values["weak"][:, i, 0, 0], **theory_style())
        middle.plot(
            theory.step, theory.values["flow"][:, i, 0, 0], **rival_style(), label=None if i else "gradient flow"
        )
    left.set(xlabel="step", ylabel="training loss", yscale="log")
    middle.set(xlabel="step", ylabel=r"weak feature $\langle w, u \rangle$ (lines: theory)", yscale="log")
    middle.set_xlim(0, 2 * cfg.window)
    right.set(xlabel="step", ylabel="accuracy without the strong feature", ylim=(0.4, 1.02))
    left.legend()
    middle.legend()
    return picture


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
