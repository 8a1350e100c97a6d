"""Parametrisation decides what a wide network learns (Yang & Hu 2021; Yang et al. 2022).

Weights of layer l scale as ``n^(-a) N(0, n^(-2b))`` and the learning rate as ``n^(-c)``. After a fixed number of steps
hidden features have changed by ``n^(-r)``: r = 1/2 in the standard (learning rate eta/n) and NTK parametrisations, 0
in the maximal-update one, where features are learnt at any width. There the best learning rate does not depend on width
(transfer), while in the standard one it falls as 1/n; and the coordinate check holds: changes of the outputs keep their
size as n grows, as they do not in the control, standard networks of any width trained at one rate. Networks are trained
on ``y + f_0``, so that the initial output is no noise.

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
from dynamics.runs.figures import measured_style, new_figure, rival_style, ticks_at
from dynamics.statistics import power_law
from dynamics.tasks.sphere import sphere_quadratic
from dynamics.theory import abc
from dynamics.types import Claim, Dynamics, Objective, Record

SOURCE = "Yang & Hu 2021, 'Tensor Programs IV: feature learning in infinite-width neural networks'"
SECONDS = 60
LAYERS = 3
KINDS = {"standard": abc.standard(LAYERS), "ntk": abc.ntk(LAYERS), "mup": abc.maximal_update(LAYERS)}
CONTROL = "standard, one rate"  # c = 0: the rate that suits the widest is used at every width


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
    def large(cls) -> Config:
        """Wider networks, more seeds; the papers' networks read CIFAR-10, Word2Vec, Omniglot and language.

        About five minutes on two cores.
        """
        return cls(seeds=10, width=(64, 128, 256, 512, 1024, 2048))

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("width", "rate"):
            self.require(bool(np.all(np.diff(getattr(self, field)) > 0)), field, "ascending values")


class Result(NamedTuple):
    """``records['fixed']``: ``[2, kinds + 1, widths, seeds]`` at the fixed rate, before and after training: loss and
    changes, the control last; ``records['rates']``: the loss ``[2, kinds, widths, rates, seeds]``;
    ``records['linear']``: the least loss ``[1]`` of a linear function of the inputs."""

    config: Config
    records: dict[str, Record]


def network(kind: str, width: int):
    """Two hidden erf layers: the whole model, and the part below its readout."""
    kind = "standard" if kind == CONTROL else kind
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

    def train(label: str, kinds: list, axes: dict, rate, read) -> Record:
        def make(lane) -> Dynamics:
            model, _ = network(lane.kind, lane.width)
            return gradient_descent(Objective(model.apply, lambda f, y: half_mse(f, y + lane.origin)), rate(lane))

        return study(
            {"kind": kinds, "width": config.width, **axes, "seed": range(config.seeds)},
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
                "output_change": size(model.apply(params, batch.x) - model.apply(first, batch.x)),
            }

        return [since_start(read)]

    def size(array):
        return jnp.sqrt(jnp.mean(array**2))

    def rate(lane):
        return lane.rate / config.width[0] ** KINDS[lane.kind].c  # the same rates at every width

    def fixed(lane):
        return config.fixed / (config.width[-1] if lane.kind == CONTROL else lane.width ** KINDS[lane.kind].c)

    x, y = (np.asarray(leaf, float) for leaf in data)
    least = 0.5 * np.mean((y - x @ np.linalg.lstsq(x, y, rcond=None)[0]) ** 2)
    records = {
        "fixed": train("fixed", [*KINDS, CONTROL], {}, fixed, features),
        "rates": train("rates", list(KINDS), {"rate": config.rate}, rate, lambda lane: []),
        "linear": Record(np.zeros(1, int), np.zeros(1), {"loss": np.array([least])}),
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
    """Exponents seed by seed; the rival of each parametrisation is what networks of another one do on the same data."""
    cfg, out = result.config, []
    if len(cfg.width) < 3:
        return [Claim.not_applicable("powers of the width", "definition 3.2", "needs three widths")]
    fixed, rates = result.records["fixed"], result.records["rates"]
    changes = {kind: power_law(cfg.width, 1 / fixed.at(kind=kind).values["feature_change"][-1].T) for kind in KINDS}
    best = {
        kind: power_law(cfg.width, np.stack([best_rate(cfg, loss) for loss in row], axis=1))
        for kind, row in zip(KINDS, rates.values["loss"][-1])
    }
    for kind, other in (("standard", "mup"), ("ntk", "mup"), ("mup", "ntk")):
        name = f"{kind}: features change as n^-r after {cfg.steps} steps: r"
        fit, rivals = changes[kind], {f"{other} networks": changes[other].slopes}
        options = {"rivals": rivals, "note": f"95 % interval {fit}, {fit.used} of {cfg.seeds} seeds"}
        out.append(Claim.close(name, "definition 3.2", fit.slopes, abc.feature_exponent(KINDS[kind]), 0.1, **options))
    for kind, other in (("standard", "mup"), ("ntk", "standard"), ("mup", "standard")):
        name, source = f"{kind}: best learning rate ~ n^p: p", "Yang et al. 2022, figure 1"
        fit, rivals = best[kind], {f"{other} networks": best[other].slopes}
        options = {"rivals": rivals, "note": f"95 % interval {fit}, {fit.used} of {cfg.seeds} seeds"}
        out.append(Claim.close(name, source, fit.slopes, -KINDS[kind].c, 0.2, **options))
    name = f"coordinate check, mup: size of output change after {cfg.steps} steps ~ n^p: p"
    fit, control = (power_law(cfg.width, fixed.at(kind=k).values["output_change"][-1].T) for k in ("mup", CONTROL))
    options = {"rivals": {CONTROL: control.slopes}, "note": f"95 % interval {fit}"}
    out.append(Claim.close(name, "Yang et al. 2022, appendix D.1", fit.slopes, 0.0, 0.1, **options))
    return [*out, transfer_claim(result)]


def transfer_claim(result: Result) -> Claim:
    """The widest network's loss at the rate that is best for the narrowest, as a share of the start's, which is also
    what a network that diverged is held to have."""
    cfg, learnt = result.config, {}
    for kind, losses in zip(KINDS, np.moveaxis(result.records["rates"].values["loss"], 0, 1)):
        start, end = (np.nan_to_num(row, nan=np.inf, posinf=np.inf) for row in losses)  # [widths, rates, seeds]
        end = np.minimum(end / start, 1.0)
        learnt[kind] = end[-1, int(np.argmin(end[0].mean(-1)))]
    start = result.records["rates"].values["loss"][0].min()
    rivals = {"standard networks": learnt["standard"]}
    rivals["best linear function"] = result.records["linear"].values["loss"][0] / start
    name = f"mup: loss at n = {cfg.width[-1]} and the best rate of n = {cfg.width[0]}, over the start's"
    if cfg.width[-1] < 4 * cfg.width[0]:
        return Claim.not_applicable(name, "Yang et al. 2022, figure 1", "needs widths that differ by 4 or more")
    return Claim.at_most(name, "Yang et al. 2022, figure 1", learnt["mup"], 0.06, rivals=rivals)


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
        ax.axhline(result.records["linear"].values["loss"][0], label="best linear function", **rival_style())
        ax.set_ylim(1e-3, 2)
        ax.legend(fontsize=7)
    losses[0].set_ylabel(f"loss after {cfg.steps} steps")
    return fig


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
