"""Benign oscillation: a large learning rate learns the weak feature (Lu, Wu, Yang & Zou 2023).

Each sample has three patches: a weak feature y u, a strong one y v and noise. The network ``f = sum_j j (1/m) sum_r
    sum_p relu(<w_jr, x_p>)^2``, j = +-1, fits by v alone when eta is small. Every active weight along a feature is
    multiplied by ``1 + (2 eta |.|^2 / m) R(t)``, R the mean residual of its class. At large eta the strong one
    oscillates about a constant, so that ``sum_t log(1 + a R(t)) ~ 0``, and by Jensen's inequality the mean of R is
    positive: the weak one grows exponentially,

    <w, u>(t) = <w, u>(0) prod_s (1 + (2 eta |u|^2 / m) R(s)),

until it carries enough of f to calm the strong one (sections 3 and 4). Theory is this product on the measured
residuals.

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
from dynamics.config import Count, NonNegative, Positive
from dynamics.evolve import every, gradient_descent
from dynamics.evolve import study as in_memory
from dynamics.losses import half_mse
from dynamics.runs.figures import measured_style, new_figure, theory_style
from dynamics.types import Batch, Claim, Data, Objective, Observable, Record

SOURCE = "Lu, Wu, Yang & Zou 2023, 'Benign oscillation of stochastic gradient descent with large learning rates'"
SECONDS = 15
EDGE = 2.0  # gain above which the strong feature oscillates


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Count] = 5
    """number of draws of data and weights"""
    gain: Annotated[tuple[float, ...], Positive] = (0.2, 2.6)
    """learning rate as 2 eta |v|^2 / m, small then large; half of it acts on each class, oscillation starts at 2"""
    weak: Annotated[float, Positive] = 1.0
    """size |u| of the weak feature"""
    strong: Annotated[float, Positive] = 4.0
    """size |v| of the strong feature"""
    noise: Annotated[float, NonNegative] = 0.1
    """standard deviation of an entry of the noise patch"""
    dim: Annotated[int, config.Range(3)] = 30
    """entries d of a patch"""
    samples: Annotated[int, config.Range(2)] = 20
    """training samples n, half of each label"""
    width: Annotated[int, Count] = 10
    """filters m of each sign"""
    steps: Annotated[int, Count] = 1500
    """gradient steps"""
    init: Annotated[float, Positive] = 0.05
    """standard deviation of a weight at the start"""

    @classmethod
    def paper(cls) -> Config:
        """More samples and dimensions."""
        return cls(dim=200, samples=100, width=40, steps=5000, noise=0.05)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(bool(np.all(np.diff(self.gain) > 0)), "gain", "ascending values")
        self.require(self.weak < self.strong, "weak", f"below the strong feature's {self.strong:g}")


class Result(NamedTuple):
    """``records['training']`` and ``['theory']``, each ``[T, gains, seeds]``."""

    config: Config
    records: dict[str, Record]


def apply(params, x):
    """``x [n, 3, d]``, ``params [2, m, d]`` -> ``f [n, 1]``."""
    active = jax.nn.relu(jnp.einsum("jrd,npd->njrp", params, x)) ** 2
    f = jnp.mean(jnp.sum(active, -1), -1)
    return (f[:, 0] - f[:, 1])[:, None]


def draw(config: Config, key) -> tuple[Data, jax.Array]:
    """Training samples with all patches, test samples without the strong one, and the weights."""
    keys = jax.random.split(key, 3)
    y = jnp.where(jnp.arange(config.samples) % 2 == 0, 1.0, -1.0)
    u, v = config.weak * jnp.eye(config.dim)[0], config.strong * jnp.eye(config.dim)[1]

    def batch(key, strong):
        noise = config.noise * jax.random.normal(key, (config.samples, config.dim))
        return Batch(jnp.stack([y[:, None] * u, strong * y[:, None] * v, noise], 1), y[:, None])

    weights = config.init * jax.random.normal(keys[2], (2, config.width, config.dim))
    return Data(batch(keys[0], 1.0), batch(keys[1], 0.0)), weights


def run(config: Config, study=in_memory) -> Result:
    """Trains every (gain, seed) as one program, reading every step."""
    L = Objective(apply, half_mse)

    def rate(gain):
        return gain * config.width / (2 * config.strong**2)

    def values(view):
        train, test = view.data
        residual = (train.y - apply(view.params, train.x)) * train.y
        return {
            "loss": 0.5 * jnp.mean(residual**2),
            "residual": jnp.sum(jnp.where(train.y > 0, residual, 0)) / config.samples,
            # the same filter at all times: all grow by one factor
            "weak": jnp.max(config.weak * jax.nn.relu(view.params[0, :, 0])),
            "weak_margin": jnp.mean(test.y * apply(view.params, test.x)),
        }

    key = jax.random.key(config.seed)
    record = study(
        {"gain": config.gain, "seed": range(config.seeds)},
        draw=lambda lane: draw(config, jax.random.fold_in(key, lane.seed)),
        make=lambda lane: gradient_descent(L, rate(lane.gain)),
        read=Observable.of_view(values),
        steps=config.steps,
        record_at=every(1, config.steps),
        key=key,
        label="training",
    )
    eta, residual, weak = rate(np.asarray(config.gain))[:, None], record.values["residual"], record.values["weak"]
    factor = 1 + 2 * eta * config.weak**2 / config.width * residual[:-1]
    grown = np.concatenate([np.ones((1, *factor.shape[1:])), np.cumprod(factor, 0)])
    theory = record._replace(values={"weak": weak[:1] * grown})
    return Result(config, {"training": record, "theory": theory})


def claims(result: Result) -> list[Claim]:
    cfg, values = result.config, result.records["training"].values
    predicted = result.records["theory"].values["weak"]
    error = np.abs(predicted[-1] / values["weak"][-1] - 1)
    third = values["residual"][cfg.steps // 10 : cfg.steps // 3].mean(0)
    margin, large, small = values["weak_margin"][-1], cfg.gain[-1] >= EDGE, cfg.gain[0] < EDGE
    settings = [
        (
            large,
            "mean residual while it oscillates (large rate), worst seed",
            "lemma 4.1",
            third[-1].min(),
            0.005,
            True,
        ),
        (small, "mean residual (small rate), worst seed", "section 3", np.abs(third[0]).max(), 0.005, False),
        (large, "margin on weak-only data (large rate), worst seed", "theorem 3.2", margin[-1].min(), 0.1, True),
        (small, "margin on weak-only data (small rate), worst seed", "theorem 3.3", margin[0].max(), 0.05, False),
    ]
    found = []
    for applies, name, source, measured, bound, above in settings:
        judge = Claim.at_least if above else Claim.at_most
        note = f"no rate {'of at least' if above else 'below'} {EDGE:g}"
        found.append(judge(name, source, measured, bound) if applies else Claim.not_applicable(name, source, note))
    name = "weak feature against its product of residuals, median relative error"
    found.append(Claim.at_most(name, "section 4", np.median(error), 0.05))
    return found


def figure(result: Result) -> Figure:
    """Training loss, and the weak feature's growth over its theory."""
    cfg, record = result.config, result.records["training"]
    picture, (left, right) = new_figure(1, 2)
    for i, gain in enumerate(cfg.gain):
        style = measured_style(i, len(cfg.gain)) | {"markevery": (0, max(1, cfg.steps // 60))}
        label = rf"$2\eta|v|^2/m$ = {gain:g}"
        left.semilogy(record.step, record.values["loss"][:, i, 0], **style, label=label)
        right.semilogy(record.step, record.values["weak"][:, i, 0], **style, label=label)
        right.semilogy(record.step, result.records["theory"].values["weak"][:, i, 0], **theory_style())
    left.set(xlabel="step", ylabel="training loss")
    right.set(xlabel="step", ylabel=r"weak feature $\langle w, u \rangle$ (lines: theory)")
    left.legend()
    right.legend()
    return picture


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
