"""Parametrisation decides what a wide network learns (Yang & Hu 2021; Yang et al. 2022).

Weights of layer l scale as ``n^(-a) N(0, n^(-2b))`` and the learning rate as ``n^(-c)``. After a fixed number of steps
hidden features have changed by ``n^(-r)``: r = 1/2 in the standard (learning rate eta/n) and NTK parametrisations, 0
in the maximal-update one, where features are learnt at any width. There the best learning rate does not depend on width
(transfer), while in the standard one it falls as 1/n; and the coordinate check holds: activations, outputs and their
changes keep their size as n grows. Networks are trained on ``y + f_0``, so that the initial output is no noise.

Run time: about 60 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import config, stax
from dynamics.config import Count, Positive
from dynamics.evolve import Drawn, gradient_descent
from dynamics.evolve import study as in_memory
from dynamics.losses import half_mse
from dynamics.observe import loss, since_start
from dynamics.runs.figures import measured_style, new_figure, ticks_at
from dynamics.statistics import power_law
from dynamics.tasks.sphere import sphere_quadratic
from dynamics.theory import abc
from dynamics.types import Claim, Dynamics, Objective, Record

SOURCE = "Yang & Hu 2021, 'Tensor Programs IV: feature learning in infinite-width neural networks'"
SECONDS = 60
LAYERS = 3
KINDS = {"standard": abc.standard(LAYERS), "ntk": abc.ntk(LAYERS), "mup": abc.maximal_update(LAYERS)}


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Count] = 6
    """independent initial weights; the data are the same for all"""
    width: Annotated[tuple[int, ...], Count] = (64, 128, 256, 512)
    """hidden units n of both hidden layers, ascending"""
    rate: Annotated[tuple[float, ...], Positive] = tuple(float(2.0**p) for p in np.arange(-4.0, 6.1, 0.5))
    """learning rates tried at every width, ascending; over the narrowest width when standard"""
    fixed: Annotated[float, Positive] = 0.25
    """learning rate eta of the feature and coordinate checks; eta/n when standard"""
    dim: Annotated[int, Count] = 8
    """input dimension"""
    samples: Annotated[int, Count] = 32
    """training samples"""
    steps: Annotated[int, Count] = 20
    """gradient steps"""

    @classmethod
    def paper(cls) -> Config:
        """Wider networks, more seeds."""
        return cls(seeds=10, width=(64, 128, 256, 512, 1024, 2048))

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("width", "rate"):
            self.require(bool(np.all(np.diff(getattr(self, field)) > 0)), field, "ascending values")


class Result(NamedTuple):
    """``records['fixed']``: ``[2, kinds, widths, seeds]`` at the fixed rate, before and after training: loss, sizes and
    changes; ``records['rates']``: the loss ``[2, kinds, widths, rates, seeds]``."""

    config: Config
    records: dict[str, Record]


def network(kind: str, width: int):
    """Two hidden erf layers: the whole model, and the part below its readout."""
    layers = [layer for _ in range(LAYERS - 1) for layer in (stax.Dense(width, parameterization=kind), stax.Erf())]
    return stax.serial(*layers, stax.Dense(1, parameterization=kind)), stax.serial(*layers)


def run(config: Config, study=in_memory) -> Result:
    """Every seed of one parametrisation and width is one program, at the fixed rate and at all rates."""
    key = jax.random.key(config.seed)
    data = sphere_quadratic(key, config.samples, 1, config.dim).train

    @cache
    def start(kind: str, width: int, seed: int) -> Drawn:
        model, _ = network(kind, width)
        params = model.init(jax.random.split(jax.random.fold_in(key, width), config.seeds)[seed], (-1, config.dim))[1]
        return Drawn(params, values={"origin": model.apply(params, data.x)})

    def train(label: str, axes: dict, rate, read) -> Record:
        def make(lane) -> Dynamics:
            model, _ = network(lane.kind, lane.width)
            return gradient_descent(Objective(model.apply, lambda f, y: half_mse(f, y + lane.origin)), rate(lane))

        return study(
            {"kind": list(KINDS), "width": config.width, **axes, "seed": range(config.seeds)},
            draw=lambda lane: start(lane.kind, lane.width, lane.seed),
            make=make,
            read=lambda lane: [loss(), *read(lane)],
            steps=config.steps,
            key=key,
            data=data,
            label=label,
            loop=("width",),
        )

    def features(lane):
        model, body = network(lane.kind, lane.width)

        def read(first, params, batch):
            hidden, hidden0 = (body.apply(layers[:-1], batch.x) for layers in (params, first))
            return {
                "feature_change": size(hidden - hidden0) / size(hidden0),
                "hidden": size(hidden),
                "output_change": size(model.apply(params, batch.x) - model.apply(first, batch.x)),
            }

        return [since_start(read)]

    def size(array):
        return jnp.sqrt(jnp.mean(array**2))

    def rate(lane):
        return lane.rate / config.width[0] ** KINDS[lane.kind].c  # the same rates at every width

    records = {
        "fixed": train("fixed", {}, lambda lane: config.fixed / lane.width ** KINDS[lane.kind].c, features),
        "rates": train("rates", {"rate": config.rate}, rate, lambda lane: []),
    }
    return Result(config, records)


def best_rate(config: Config, loss: np.ndarray) -> np.ndarray:
    """``[seeds]``: the rate of least final ``loss [rates, seeds]``, by a parabola through the best three; NaN at an
    edge."""
    loss = np.nan_to_num(loss, nan=np.inf, posinf=np.inf)
    log_rate, found = np.log(config.rate), np.full(loss.shape[1], np.nan)
    for seed, column in enumerate(np.log(loss).T):
        i = int(np.argmin(column))
        if not 0 < i < len(column) - 1:
            continue
        found[seed] = config.rate[i]
        left, here, right = column[i - 1 : i + 2]
        if np.isfinite([left, right]).all() and left + right - 2 * here > 0:
            step = 0.5 * (left - right) / (left + right - 2 * here)
            found[seed] = np.exp(log_rate[i] + step * (log_rate[i + 1] - log_rate[i]))
    return found


def claims(result: Result) -> list[Claim]:
    cfg, out = result.config, []
    for kind, exponents in KINDS.items():
        fixed, tried = (result.records[label].at(kind=kind).values for label in ("fixed", "rates"))
        change = fixed["feature_change"][-1].T
        rates = np.stack([best_rate(cfg, loss) for loss in tried["loss"][-1]], axis=1)
        r = abc.feature_exponent(exponents)
        for name, value, predicted, tolerance, source in (
            (f"{kind}: features change as n^-r after {cfg.steps} steps: r", 1 / change, r, 0.1, "definition 3.2"),
            (f"{kind}: best learning rate ~ n^p: p", rates, -exponents.c, 0.2, "Yang et al. 2022, figure 1"),
        ):
            if len(cfg.width) < 3:
                out.append(Claim.not_applicable(name, source, "needs three widths"))
                continue
            fit = power_law(cfg.width, value)
            note = f"95 % interval {fit}, {fit.used} of {cfg.seeds} seeds"
            out.append(Claim.close(name, source, fit.exponent, predicted, tolerance, note=note))
    return [*out, *coordinate_claims(result)]


def coordinate_claims(result: Result) -> list[Claim]:
    """In the maximal-update parametrisation nothing grows or vanishes with width."""
    cfg, out = result.config, []
    for quantity in ("hidden", "output_change"):
        name = f"coordinate check, mup: size of {quantity.replace('_', ' ')} after {cfg.steps} steps ~ n^p: p"
        if len(cfg.width) < 3:
            out.append(Claim.not_applicable(name, "Yang et al. 2022, appendix D.1", "needs three widths"))
            continue
        fit = power_law(cfg.width, result.records["fixed"].at(kind="mup").values[quantity][-1].T)
        note = f"95 % interval {fit}"
        out.append(Claim.close(name, "Yang et al. 2022, appendix D.1", fit.exponent, 0.0, 0.1, note=note))
    return out


def figure(result: Result):
    """Feature change against width with its predicted slope, and the loss against the learning rate by width."""
    cfg = result.config
    fig, (features, *losses) = new_figure(1, 1 + len(KINDS), width=3.0, height=3.6)
    widths = np.asarray(cfg.width, float)
    for (kind, exponents), marker, shade in zip(KINDS.items(), "os^", (0.5, 0.25, 0.0)):
        change = result.records["fixed"].at(kind=kind).values["feature_change"][-1]
        middle = np.exp(np.log(change).mean(1))
        features.plot(widths, middle, marker, color=str(shade), label=kind)
        slope = -abc.feature_exponent(exponents)
        features.plot(widths, middle[0] * (widths / widths[0]) ** slope, "-", color=str(shade), lw=1)
    features.set(xscale="log", yscale="log", xlabel="width n", title="lines: n^-r")
    features.set_ylabel(f"relative feature change after {cfg.steps} steps")
    ticks_at(features.xaxis, cfg.width)
    features.legend(fontsize=8, loc=(0.03, 0.6))
    for ax, kind in zip(losses, KINDS):
        tried = np.median(result.records["rates"].at(kind=kind).values["loss"][-1], axis=-1)
        for i, (width, row) in enumerate(zip(cfg.width, tried)):
            style = measured_style(i, len(cfg.width)) | {"linestyle": "-", "lw": 1, "ms": 3}
            ax.plot(cfg.rate, row, label=f"n = {width}", **style)
        unit = f"learning rate x {cfg.width[0]}" if KINDS[kind].c else "learning rate"
        ax.set(xscale="log", yscale="log", xlabel=unit, title=kind)
        ax.set_ylim(1e-3, 2)
        ax.legend(fontsize=7)
    losses[0].set_ylabel(f"loss after {cfg.steps} steps")
    return fig


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
