"""Dissecting SGD noise: when the temperature T = eta/B sets what is learnt (Sclocchi, Geiger & Wyart 2023).

Hinge loss with margin 1 on ``F = alpha (f - f_0)``, divided by alpha, so that one step is
``dw = T sum_batch [y F < 1] y grad f``, until every sample has its margin. Small T: gradient flow, ``|dw| ~ 1/alpha``
when lazy. Large T: noise decides, ``|dw|/|w_0| ~ T``, more the more samples P there are to fit, so that the ``T_c`` at
which the network escapes the kernel regime falls with P. In a perceptron whose data have density ``|x_1|^chi`` at the
boundary, the noisy end state has ``w_1/|w_perp| ~ P^(1/(1+chi))``: it must grow until the samples nearest to the
boundary are right. The (alpha, T) phase diagram on the parity of digits is one vmapped program; a run that diverges is
never counted as fitted.

Run time: about 90 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import config, stax
from dynamics.config import Count, Positive, Range
from dynamics.empirical import empirical_ntk_fn
from dynamics.evolve import Drawn
from dynamics.evolve import study as in_memory
from dynamics.runs.figures import measured_style, new_figure, ticks_at
from dynamics.statistics import kernel_distance, power_law, weight_norm
from dynamics.tasks.images import digits, mnist
from dynamics.types import Batch, Claim, Dynamics, Observable, Record
from experiments.rich_lazy._hinge import hinge_sgd, run_perceptron

SOURCE = "Sclocchi, Geiger & Wyart 2023, 'Dissecting the effects of SGD noise in distinct regimes of deep learning'"
SECONDS = 90
ESCAPE = 0.1  # relative movement of the weights that ends the kernel regime
POWERS_OF_TWO = tuple(float(2.0**p) for p in range(-6, 16, 3))


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Count] = 3
    """initial weights of the images' network"""
    dataset: Literal["digits", "mnist"] = "digits"
    """images whose parity is learnt: 8 x 8 digits of scikit-learn, or MNIST (downloaded once)"""
    alpha: Annotated[tuple[float, ...], Positive] = POWERS_OF_TWO
    """output scale alpha, ascending; the largest is used for the laws in T and P"""
    temperature: Annotated[tuple[float, ...], Positive] = tuple(float(2.0**p) for p in range(-11, 5, 2))
    """T = learning rate / batch size, ascending"""
    samples: Annotated[tuple[int, ...], Range(32, 60_000)] = (128, 256, 512, 1024)
    """training samples P of the T_c sweep; the phase diagram uses 512, or the largest if there is no 512"""
    hidden: Annotated[int, Count] = 32
    """units in both hidden layers of the network"""
    batch: Annotated[int, Count] = 16
    """batch size B of the network"""
    updates: Annotated[int, Range(50)] = 6000
    """SGD steps of the network, at most"""
    chi: Annotated[tuple[float, ...], Range(0.0)] = (1.0, 3.0)
    """exponents of the perceptron's density at the boundary"""
    perceptron_samples: Annotated[tuple[int, ...], Count] = (256, 512, 1024, 2048, 4096)
    """training samples P of the perceptron, ascending"""
    perceptron_seeds: Annotated[int, Count] = 16
    """draws of the perceptron's data"""
    perceptron_updates: Annotated[int, Range(1024)] = 2**18
    """SGD steps of the perceptron (d = 16, B = 4, eta = 1024), at most"""

    @classmethod
    def paper(cls) -> Config:
        """A finer phase diagram, more seeds, longer training."""
        alpha, temperature = (tuple(float(2.0**p) for p in np.arange(low, high)) for low, high in ((-6, 16), (-12, 6)))
        return cls(seeds=4, alpha=alpha, temperature=temperature, updates=50_000, perceptron_updates=2**21)

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("alpha", "temperature", "samples", "perceptron_samples"):
            self.require(bool(np.all(np.diff(getattr(self, field)) > 0)), field, "ascending values")
        self.require(self.dataset == "mnist" or self.samples[-1] <= 1797, "samples", "at most 1797 for digits")


class Result(NamedTuple):
    """``records``: 'perceptron' ``[1, chi, P, seeds]``, 'phase' ``[1, alpha, T, seeds]``, 'samples' ``[1, P, T,
    seeds]``; every reading is NaN where the run diverged or did not fit its training set."""

    config: Config
    records: dict[str, Record]


def run(config: Config, study=in_memory) -> Result:
    """The perceptron, then the network on images, over (alpha, T) and over (P, T)."""
    return Result(config, {"perceptron": run_perceptron(config, study), **run_images(config, study)})


def images_task(config: Config):
    """The network d-h-h-1 with gelu, and the parity of the images."""
    layers = [layer for _ in range(2) for layer in (stax.Dense(config.hidden), stax.Gelu())]
    load = partial(mnist, download=True) if config.dataset == "mnist" else digits
    split = load(max(config.samples), 0, seed=config.seed, target="parity", scale="standard").train
    return stax.serial(*layers, stax.Dense(1)), Batch(jnp.asarray(split.x), jnp.asarray(split.y))


def run_images(config: Config, study) -> dict[str, Record]:
    (model, data), usual = images_task(config), Config()
    keys = jax.random.split(jax.random.key(config.seed), config.seeds)
    ntk, blocks = jax.jit(partial(empirical_ntk_fn(model.apply), data.x[:64], None)), -(-config.updates // 50)

    def read(lane, view):
        params, updates, fitted = view.state
        moved = weight_norm(jax.tree.map(jnp.subtract, params, lane.start))
        values = {
            "weight_change": moved / weight_norm(lane.start),
            "kernel_distance": kernel_distance(ntk(params), lane.kernel),
            "updates": updates,
        }
        return {name: jnp.where(fitted, value, jnp.nan) for name, value in values.items()} | {"fitted": fitted * 1.0}

    def train(label, axis, values, most, number) -> Record:
        """Over ``axis`` and the temperatures, at the largest alpha and ``most`` samples where the axis is not these."""
        used = Batch(data.x[:most], data.y[:most])

        @jax.jit
        def start(key) -> Drawn:
            w = model.init(key, (-1, data.x.shape[-1]))[1]
            return Drawn(w, values={"start": w, "origin": model.apply(w, used.x), "kernel": ntk(w)})

        def make(lane) -> Dynamics:
            at = {"alpha": config.alpha[-1], "samples": most, **lane}
            settings = at["alpha"], at["temperature"], at["samples"], at["origin"]
            return hinge_sgd(model.apply, *settings, batch=config.batch, block=50)

        return study(
            {axis: values, "temperature": config.temperature, "seed": range(config.seeds)},
            draw=lambda lane: start(keys[lane.seed]),
            make=make,
            read=lambda lane: Observable.of_view(partial(read, lane)),
            steps=blocks,
            record_at=[blocks],
            key=jax.random.key(config.seed),
            data=used,
            label=label,
            stream=lambda at: number(at[axis], at["temperature"]) * usual.seeds + at["seed"],
        )

    alphas, temperatures, counts = len(usual.alpha), len(usual.temperature), len(usual.samples)
    samples, most = config.samples, middle(config.samples)
    return {
        "phase": train("phase", "alpha", config.alpha, most, lambda i, j: i * temperatures + j),
        "samples": train(
            "samples", "samples", samples, samples[-1], lambda i, j: alphas * temperatures + j * counts + i
        ),
    }


def middle(samples: tuple[int, ...]) -> int:
    """The phase diagram's number of samples."""
    return 512 if 512 in samples else samples[-1]


def critical_temperature(config: Config, record: Record) -> np.ndarray:
    """``T_c [seeds, P]``: where ``|dw|/|w_0|`` reaches ``ESCAPE``, the kernel regime's end (log interpolation)."""
    change = np.asarray(record.values["weight_change"])[0]  # [P, T, seeds]
    found = np.full((config.seeds, len(config.samples)), np.nan)
    log_t = np.log(config.temperature)
    for i, row in enumerate(change):
        for seed, column in enumerate(np.log(row.T / ESCAPE)):
            after = np.flatnonzero((column[1:] > 0) & (column[:-1] <= 0))
            if after.size:
                j = after[0]
                found[seed, i] = np.exp(np.interp(0.0, column[j : j + 2], log_t[j : j + 2]))
    return found


def claims(result: Result) -> list[Claim]:
    cfg, records, out = result.config, result.records, []
    ratio = records["perceptron"].values["ratio"][0]  # [chi, P, seeds]
    for chi, values in zip(cfg.chi, ratio):
        name, source = f"perceptron, chi = {chi:g}: w_1/|w_perp| ~ P^p: p", "Sclocchi et al. 2023, perceptron"
        if len(cfg.perceptron_samples) < 3:
            out.append(Claim.not_applicable(name, source, "needs three sample counts"))
            continue
        fit = power_law(cfg.perceptron_samples, values.T)
        note = f"95 % interval {fit}, {fit.used} of {cfg.perceptron_seeds} seeds fitted throughout"
        out.append(Claim.close(name, source, fit.exponent, 1 / (1 + chi), 0.06, note=note))
    return [*out, *temperature_claims(result), *sample_claims(result)]


def temperature_claims(result: Result) -> list[Claim]:
    """At the largest alpha the weights' movement is set by the noise alone."""
    cfg, record = result.config, result.records["phase"]
    change = record.values["weight_change"][0, -1]  # [T, seeds]
    usable = np.isfinite(change).all(-1)
    name, source = (
        f"{cfg.dataset}, alpha = {cfg.alpha[-1]:g}: |dw|/|w_0| ~ T^p: p",
        "Sclocchi et al. 2023, change of the weights",
    )
    fits_all = (
        f"{int(record.values['fitted'].sum())} of {record.values['fitted'].size} runs of the phase diagram fitted"
    )
    if len(cfg.temperature) < 3 or cfg.alpha[-1] < 1000:
        return [Claim.not_applicable(name, source, f"needs alpha >= 1000 and three temperatures; {fits_all}")]
    if usable.sum() < 3:
        return [Claim.close(name, source, np.nan, 1.0, 0.1, note=f"fewer than three temperatures fitted; {fits_all}")]
    fit = power_law(np.asarray(cfg.temperature)[usable], change[usable].T)
    note = f"95 % interval {fit}, {usable.sum()} of {len(usable)} temperatures; {fits_all}"
    return [Claim.close(name, source, fit.exponent, 1.0, 0.1, note=note)]


def sample_claims(result: Result) -> list[Claim]:
    cfg = result.config
    name, source = (
        f"{cfg.dataset}: T_c ~ P^p, upper end of the 95 % interval of p (T_c falls with P)",
        "Sclocchi et al. 2023, critical temperature",
    )
    critical = critical_temperature(cfg, result.records["samples"])
    crossed, fitted = np.isfinite(critical).all(axis=1).any(), result.records["samples"].values["fitted"].any()
    if len(cfg.samples) < 3 or cfg.seeds < 2 or (fitted and not crossed):
        return [Claim.not_applicable(name, source, "needs two seeds and three P whose crossing lies inside the grid")]
    fit = power_law(cfg.samples, critical)
    return [Claim.at_most(name, source, fit.high, 0.0, note=f"p = {fit}, {fit.used} of {cfg.seeds} seeds")]


def mean_of_fitted(values: np.ndarray) -> np.ndarray:
    """Mean over seeds that fitted; NaN where none did."""
    fitted = np.isfinite(values)
    total = np.where(fitted, values, 0.0).sum(-1)
    return np.where(fitted.any(-1), total / np.maximum(fitted.sum(-1), 1), np.nan)


def figure(result: Result):
    """The perceptron's exponents, the (alpha, T) phase diagram of the kernel's movement, and T_c against P."""
    cfg, records = result.config, result.records
    fig, (simple, phase, critical) = new_figure(1, 3, width=4.0)
    size = np.asarray(cfg.perceptron_samples, float)
    for i, (chi, values) in enumerate(zip(cfg.chi, records["perceptron"].values["ratio"][0])):
        middle_ratio = np.exp(mean_of_fitted(np.log(values)))
        simple.plot(size, middle_ratio, label=f"chi = {chi:g}", **measured_style(i, len(cfg.chi)))
        simple.plot(size, middle_ratio[-1] * (size / size[-1]) ** (1 / (1 + chi)), "k-", lw=1)
    simple.set(xscale="log", yscale="log", xlabel="samples P", ylabel="w_1 / |w_perp|; lines: P^(1/(1+chi))")
    ticks_at(simple.xaxis, cfg.perceptron_samples)
    simple.legend(fontsize=8)
    level = np.log10(np.exp(mean_of_fitted(np.log(records["phase"].values["kernel_distance"][0]))))
    if min(level.shape) > 1:
        drawn = phase.pcolormesh(cfg.temperature, cfg.alpha, level, shading="nearest", cmap="cividis")
    else:
        drawn = phase.scatter(*np.meshgrid(cfg.temperature, cfg.alpha), c=level, cmap="cividis")
        phase.set(xlim=(cfg.temperature[0] / 2, 2 * cfg.temperature[-1]), ylim=(cfg.alpha[0] / 2, 2 * cfg.alpha[-1]))
    fig.colorbar(drawn, ax=phase, label="log10 |K - K_0| / |K_0|")
    noisy = records["phase"].values["weight_change"][0, -1] / np.asarray(cfg.temperature)[:, None]
    escape = ESCAPE / np.exp(mean_of_fitted(np.log(noisy).ravel()))
    if np.isfinite(escape):
        phase.axvline(escape, color="black", ls="--", label=f"lazy: |dw| / |w_0| = {ESCAPE:g}")
        phase.legend(fontsize=8, loc="lower left")
    phase.set(xscale="log", yscale="log", xlabel="temperature T = eta/B (blank: not fitted)")
    phase.set_ylabel("output scale alpha")
    for i, (p, row) in enumerate(zip(cfg.samples, records["samples"].values["weight_change"][0])):
        critical.plot(cfg.temperature, mean_of_fitted(row), label=f"P = {p}", **measured_style(i, len(cfg.samples)))
    line = mean_of_fitted(records["samples"].values["weight_change"][0, -1])
    unit = mean_of_fitted(line / np.asarray(cfg.temperature))
    critical.plot(cfg.temperature, unit * np.asarray(cfg.temperature), "k-", lw=1, label="~ T")
    critical.axhline(ESCAPE, color="grey", ls=":")
    critical.set(xscale="log", yscale="log", xlabel="temperature T")
    critical.set_ylabel(f"|dw| / |w_0| at alpha = {cfg.alpha[-1]:g}")
    critical.set_title(f"T_c: where |dw| / |w_0| = {ESCAPE:g}", fontsize=9)
    critical.legend(fontsize=8)
    return fig


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
