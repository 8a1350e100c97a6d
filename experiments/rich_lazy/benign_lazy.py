"""Benign overfitting in lazy training (Zhu, Liu, Chrysos, Locatello & Cevher 2023).

A deep ReLU network in NTK parametrisation is trained by gradient descent on two Gaussian clusters at ``+-mu`` in high
dimension, a share of the labels flipped. Wide networks stay lazy (the weights move by O(1) while their norm grows with
width) and fit every label, noise included. Where the clusters are well separated this does no harm: the clean
test error goes to zero, while with little separation the same overfitting costs dearly. Fitting is possible because the
smallest eigenvalue of the tangent kernel stays away from zero: on the data it is that of the infinite-width kernel up
to ``n^(-1/2)``, and it bounds the rate of training, ``loss(t) <= exp(-2 lam_min t/P) loss(0)``.

Run time: about 60 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import config, stax
from dynamics.config import Count, Positive, Range
from dynamics.empirical import empirical_ntk_fn
from dynamics.evolve import Drawn, gradient_descent, log_steps
from dynamics.evolve import study as in_memory
from dynamics.losses import accuracy, half_mse
from dynamics.observe import scores, seldom
from dynamics.runs.figures import measured_style, new_figure, ticks_at
from dynamics.statistics import power_law, weight_norm
from dynamics.types import Batch, Claim, Data, Model, Objective, Record

SOURCE = "Zhu, Liu, Chrysos, Locatello & Cevher 2023, 'Benign overfitting in deep neural networks under lazy training'"
SECONDS = 60


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Count] = 6
    """draws of data and weights"""
    width: Annotated[tuple[int, ...], Count] = (64, 128, 256)
    """units n of both hidden layers, ascending"""
    separation: Annotated[tuple[float, ...], Positive] = (0.5, 2.0, 8.0, 16.0)
    """distance |mu| of the clusters from the origin, in units of the noise along one direction, ascending"""
    dim: Annotated[int, Count] = 300
    """input dimension d"""
    samples: Annotated[int, Count] = 60
    """training samples P"""
    flips: Annotated[float, Range(0.0, 0.5, open_high=True)] = 0.1
    """share of flipped training labels"""
    steps: Annotated[int, Count] = 400
    """gradient steps, at learning rate P/lam_max of the infinite-width kernel"""

    @classmethod
    def paper(cls) -> Config:
        """Wider networks, more samples."""
        return cls(seeds=10, width=(64, 128, 256, 512, 1024, 2048), dim=500, samples=150, steps=2000)

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("width", "separation"):
            self.require(bool(np.all(np.diff(getattr(self, field)) > 0)), field, "ascending values")


class Result(NamedTuple):
    """``records['width n']``: values ``[T, separations, seeds]``; rates and eigenvalues at the first row, NaN after."""

    config: Config
    records: dict[str, Record]


@cache
def network(width: int) -> tuple[Model, Callable]:
    """Two hidden ReLU layers, NTK parametrisation, He scaling; and its kernel ``(x1, x2, params) -> [n, n]``."""
    hidden = [layer for _ in range(2) for layer in (stax.Dense(width, W_std=2**0.5), stax.Relu())]
    model = stax.serial(*hidden, stax.Dense(1))
    return model, jax.jit(empirical_ntk_fn(model.apply))


def draw(config: Config, key, separation) -> Data:
    """Clusters at ``+-mu`` with unit noise in every direction; inputs are scaled to unit mean square."""
    km, ky, kx = jax.random.split(key, 3)
    n = config.samples + 1000
    mean = jax.random.normal(km, (config.dim,))
    y = jax.random.rademacher(ky, (n, 1), dtype=float)
    x = y * separation * mean / jnp.linalg.norm(mean) + jax.random.normal(kx, (n, config.dim))
    x = x / jnp.sqrt(jnp.mean(x**2))
    flipped = jnp.arange(config.samples)[:, None] < round(config.flips * config.samples)
    train = Batch(x[: config.samples], jnp.where(flipped, -1.0, 1.0) * y[: config.samples])
    return Data(train, Batch(x[config.samples :], y[config.samples :]))


def run(config: Config, study=in_memory) -> Result:
    """Every separation and seed of one width is one program."""
    keys = jax.random.split(jax.random.key(config.seed), config.seeds)
    kernel = network(1)[0].kernel
    assert kernel is not None

    @jax.jit
    def spectrum(x):
        return jnp.linalg.eigvalsh(kernel(x, None, "ntk"))

    @cache
    def drawn(separation: float, seed: int) -> tuple[Data, jax.Array]:
        data = draw(config, keys[seed], separation)
        return data, spectrum(data.train.x)

    def start(lane) -> Drawn:
        data, limit = drawn(lane.separation, lane.seed)
        params = network(lane.width)[0].init(jax.random.fold_in(keys[lane.seed], lane.width), (-1, config.dim))[1]
        return Drawn(params, data, {"start": params, "limit": limit})

    def centred(lane):
        """``f - f_0``: a random initial output would be noise that no training removes from the test points."""
        apply = network(lane.width)[0].apply
        return lambda params, x: apply(params, x) - apply(lane.start, x)

    def kernels(lane):
        def read(params, batch):
            smallest = jnp.linalg.eigvalsh(network(lane.width)[1](batch.x, None, params))[0]
            return {"smallest": smallest, "smallest_limit": lane.limit[0], "rate": rate(lane)}

        return seldom(read, config.steps + 1)  # at the start

    def rate(lane):
        return config.samples / lane.limit[-1]

    def movement(lane):
        return lambda params, batch: {"movement": weight_norm(jax.tree.map(jnp.subtract, params, lane.start))}

    def error(f, y):
        return 1 - accuracy(f, y)

    record = study(
        {"width": config.width, "separation": config.separation, "seed": range(config.seeds)},
        draw=start,
        make=lambda lane: gradient_descent(Objective(centred(lane), half_mse), rate(lane)),
        read=lambda lane: [scores(train_loss=half_mse, train_error=error), movement(lane), kernels(lane)],
        test=scores(error=error),
        steps=config.steps,
        record_at=log_steps(config.steps, 25),
        key=jax.random.key(config.seed),
        loop=("width",),
    )
    return Result(config, {f"width {n}": record.at(width=n) for n in config.width})


def claims(result: Result) -> list[Claim]:
    cfg, out = result.config, []
    widest = result.records[f"width {cfg.width[-1]}"].values
    fitted = widest["train_error"][-1].max()
    out.append(
        Claim.at_most(
            "every training label is fitted, flips included: largest train error",
            "Zhu et al. 2023, benign overfitting",
            fitted,
            0.0,
        )
    )
    test = widest["test_error"][-1].mean(-1)
    far, near = cfg.separation[-1] >= 16, cfg.separation[0] <= 1
    name = f"benign: clean test error at |mu| = {cfg.separation[-1]:g}"
    if far:
        out.append(Claim.at_most(name, "Zhu et al. 2023, benign overfitting", test[-1], 0.01))
    else:
        out.append(Claim.not_applicable(name, "Zhu et al. 2023, benign overfitting", "needs a separation of 16"))
    if near:
        name = f"not benign: clean test error at |mu| = {cfg.separation[0]:g}"
        out.append(Claim.at_least(name, "Zhu et al. 2023, benign overfitting", test[0], 0.2))
    return [*out, *kernel_claims(result)]


def kernel_claims(result: Result) -> list[Claim]:
    cfg, out = result.config, []
    widest = result.records[f"width {cfg.width[-1]}"]
    records = [result.records[f"width {n}"].values for n in cfg.width]
    error = np.stack([np.abs(v["smallest"][0] / v["smallest_limit"][0] - 1).mean(0) for v in records], axis=1)
    moved = np.stack([v["movement"][-1].mean(0) for v in records], axis=1)  # [seeds, widths]
    name = "smallest NTK eigenvalue: relative distance from infinite width ~ n^p, at least as n^-1/2: p"
    lazy = "lazy: the weights' movement |w - w_0| keeps its size, ~ n^p: p"
    if len(cfg.width) < 3:
        out += [
            Claim.not_applicable(title, "Zhu et al. 2023, smallest NTK eigenvalue", "needs three widths")
            for title in (name, lazy)
        ]
    else:
        fit = power_law(cfg.width, error)
        out.append(
            Claim.at_most(
                name, "Zhu et al. 2023, smallest NTK eigenvalue", fit.exponent, -0.4, note=f"95 % interval {fit}"
            )
        )
        fit = power_law(cfg.width, moved)
        out.append(
            Claim.close(lazy, "Zhu et al. 2023, lazy training", fit.exponent, 0.0, 0.15, note=f"95 % interval {fit}")
        )
    excess = (records[-1]["train_loss"] / bound(cfg, widest)[1]).max()
    name = "training at least at rate lam_min(K_inf)/2: largest loss over its bound"
    return [*out, Claim.at_most(name, "Zhu et al. 2023, training under the smallest NTK eigenvalue", excess, 1.001)]


def bound(config: Config, record: Record) -> tuple[np.ndarray, np.ndarray]:
    """Times, and ``exp(-2 (lam_min / 2) t / P) loss(0)``, each ``[T, separations, seeds]``."""
    loss, smallest, rate = (record.values[name][0] for name in ("train_loss", "smallest_limit", "rate"))
    time = record.step[:, None, None] * rate
    return time, np.exp(-smallest * time / config.samples) * loss


def figure(result: Result):
    """Train and test error against separation, training loss over its bound, and the smallest eigenvalue."""
    cfg = result.config
    record = result.records[f"width {cfg.width[-1]}"]
    widest, (time, least) = record.values, bound(cfg, record)
    fig, (benign, rate, eigen) = new_figure(1, 3, width=3.8)
    for i, (name, label) in enumerate((("train_error", "train (noisy labels)"), ("test_error", "test (clean labels)"))):
        rows = widest[name][-1]
        style = measured_style(i, 2) | {"linestyle": "-"}
        benign.plot(cfg.separation, rows.mean(-1), label=label, **style)
    benign.axhline(cfg.flips, color="black", ls=":", label="share of flips")
    benign.set(xscale="log", xlabel="separation |mu|", ylabel=f"error at width {cfg.width[-1]}")
    for i, s in enumerate(cfg.separation):
        style = measured_style(i, len(cfg.separation))
        rate.plot(time[1:, i, 0], widest["train_loss"][1:, i, 0], label=f"|mu| = {s:g}", **style)
        rate.plot(time[1:, i, 0], least[1:, i, 0], "k-", lw=0.8)
    rate.set(xscale="log", yscale="log", xlabel="time", ylabel="train loss; lines: bound by lam_min / 2")
    rate.set_ylim(1e-8, 10)
    for i, n in enumerate(cfg.width):
        values = result.records[f"width {n}"].values
        eigen.plot(
            cfg.separation, values["smallest"][0].mean(-1), label=f"n = {n}", **measured_style(i, len(cfg.width))
        )
    eigen.plot(cfg.separation, widest["smallest_limit"][0].mean(-1), "k-", label="infinite width")
    eigen.set(xscale="log", xlabel="separation |mu|", ylabel="smallest NTK eigenvalue")
    eigen.set_ylim(bottom=0)
    for ax in (benign, eigen):
        ticks_at(ax.xaxis, cfg.separation)
    for ax, place in ((benign, "upper right"), (rate, "lower left"), (eigen, "lower left")):
        ax.legend(fontsize=8, loc=place)
    return fig


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
