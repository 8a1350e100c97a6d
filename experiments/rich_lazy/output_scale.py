"""Lazy training is a matter of scale (Chizat, Oyallon & Bach 2019).

Train ``F = alpha (h(w) - h(w_0))`` on the loss ``(1/2P) sum (F - y)^2 / alpha^2``: as alpha grows the weights need to
move less, ``|w - w_0| ~ 1/alpha``, and the tangent kernel stays where it was. A one-hidden-layer erf network of width n
in NTK parametrisation has ``|K - K_0|/|K_0| ~ 1/(alpha sqrt(n))^2`` near the boundary and ``1/alpha`` far inside the
lazy regime, so that the boundary ``|K - K_0| = |K_0|`` lies at ``alpha* ~ n^(-1/2)``: the (alpha, n) phase diagram.
Theory is the kernel at the weights that the linearised network reaches in the same number of steps.

The factor alpha is trained as what it is, a rescaled target: h is trained on ``h(w_0) + y/alpha`` by gradient descent
with learning rate min(1, alpha sqrt(n)/2) until the loss of F is below 1e-4.

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
from dynamics.config import Count, Positive
from dynamics.empirical import empirical_ntk_fn
from dynamics.evolve import Drawn, gradient_descent
from dynamics.evolve import study as in_memory
from dynamics.losses import half_mse
from dynamics.runs.figures import new_figure
from dynamics.statistics import kernel_distance, power_law, weight_norm
from dynamics.tasks.sphere import sphere_quadratic
from dynamics.types import Claim, Dynamics, Model, Objective, Observable, Record
from experiments.rich_lazy._hinge import until

SOURCE = "Chizat, Oyallon & Bach 2019, 'On lazy training in differentiable programming'"
SECONDS = 60


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Count] = 8
    """number of independent draws of data and weights"""
    alpha: Annotated[tuple[float, ...], Positive] = tuple(float(10.0**p) for p in np.arange(-2.5, 2.1, 0.5))
    """output scale alpha (large = lazy), ascending"""
    width: Annotated[tuple[int, ...], Count] = (128, 512, 2048)
    """hidden units n, ascending"""
    dim: Annotated[int, Count] = 8
    """input dimension d"""
    samples: Annotated[int, Count] = 16
    """training samples P"""
    target_loss: Annotated[float, Positive] = 1e-4
    """a run stops once (1/2P) sum (F - y)^2 is below this"""
    steps: Annotated[int, Count] = 3000
    """gradient steps at most"""

    @classmethod
    def paper(cls) -> Config:
        """A finer diagram: 19 output scales, six widths, 16 seeds."""
        alpha = tuple(float(10.0**p) for p in np.arange(-2.5, 2.1, 0.25))
        return cls(seeds=16, alpha=alpha, width=(64, 128, 256, 512, 1024, 2048))

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("alpha", "width"):
            self.require(bool(np.all(np.diff(getattr(self, field)) > 0)), field, "ascending values")


class Result(NamedTuple):
    """``records['width n']`` and ``records['theory n']``: values ``[1, alphas, seeds]`` at the end of training."""

    config: Config
    records: dict[str, Record]


@cache
def network(width: int) -> tuple[Model, Callable]:
    """One hidden erf layer, NTK parametrisation, no biases; and its kernel ``(x1, x2, params) -> [n, n]``."""
    model = stax.serial(stax.Dense(width), stax.Erf(), stax.Dense(1))
    return model, jax.jit(empirical_ntk_fn(model.apply))


def run(config: Config, study=in_memory) -> Result:
    """Trains every (alpha, seed) of each width as one program; at its end a run reads its kernel and the theory's."""
    keys = jax.random.split(jax.random.key(config.seed), config.seeds)

    def draw(lane) -> Drawn:
        (model, ntk), key = network(lane.width), keys[lane.seed]
        data = sphere_quadratic(key, config.samples, 1, config.dim).train
        start = model.init(jax.random.fold_in(key, lane.width), (-1, config.dim))[1]
        values = {"start": start, "origin": model.apply(start, data.x), "kernel": ntk(data.x, None, start)}
        return Drawn(start, data, values)

    def make(lane) -> Dynamics:
        L = Objective(network(lane.width)[0].apply, lambda h, y: half_mse(h, lane.origin + y / lane.alpha))
        eta = jnp.minimum(1.0, lane.alpha * lane.width**0.5 / 2)
        return until(gradient_descent(L, eta), lambda state: lane.alpha**2 * state.loss < config.target_loss)

    record = study(
        {"width": config.width, "alpha": config.alpha, "seed": range(config.seeds)},
        draw=draw,
        make=make,
        read=lambda lane: Observable.of_view(lambda view: compare(lane, view)),
        steps=config.steps,
        record_at=[config.steps],
        key=jax.random.key(config.seed),
        loop=("width",),
    )
    records = {}
    for width in config.width:
        one = record.at(width=width)
        theory = {name[7:]: value for name, value in one.values.items() if name.startswith("theory_")}
        own = {name: value for name, value in one.values.items() if not name.startswith("theory_")}
        records |= {f"width {width}": one._replace(values=own), f"theory {width}": one._replace(values=theory)}
    return Result(config, records)


def compare(lane, view) -> dict:
    """Movement of weights and kernel: of the trained network, and of its linearisation after as many steps."""
    (model, ntk), (x, y), state = network(lane.width), view.batch, view.state
    eigenvalues, modes = jnp.linalg.eigh(lane.kernel)
    learnt = 1.0 - (1.0 - view.dynamics.dt * eigenvalues / len(x)) ** state.step
    weights = modes @ (learnt / eigenvalues * (modes.T @ y[:, 0])) / lane.alpha
    (move,) = jax.vjp(lambda w: model.apply(w, x), lane.start)[1](weights[:, None])

    def movement(params, prefix=""):
        moved = weight_norm(jax.tree.map(jnp.subtract, params, lane.start))
        return {
            f"{prefix}kernel_distance": kernel_distance(ntk(x, None, params), lane.kernel),
            f"{prefix}weight_change": moved / weight_norm(lane.start),
        }

    found = movement(view.params) | movement(jax.tree.map(jnp.add, lane.start, move), "theory_")
    return found | {"loss": lane.alpha**2 * state.loss, "steps": state.step}


def trained(config: Config, record: Record, quantity: str) -> np.ndarray:
    """``[alphas, seeds]`` of a width's reading; NaN where the run did not reach ``target_loss``."""
    reached = np.asarray(record.values["loss"])[0] < config.target_loss
    return np.where(reached, np.asarray(record.values[quantity])[0], np.nan)


def boundary(config: Config, record: Record) -> np.ndarray:
    """``alpha*`` of each seed, where the kernel distance crosses 1 (interpolated in logarithms); NaN without one."""
    distance = trained(config, record, "kernel_distance")
    log_alpha, found = np.log(config.alpha), np.full(config.seeds, np.nan)
    for seed, column in enumerate(np.log(distance).T):
        above = np.flatnonzero(column > 0)
        if above.size and above[-1] + 1 < column.size and np.all(np.isfinite(column[above[-1] :])):
            i = above[-1]
            found[seed] = np.exp(np.interp(0, column[[i + 1, i]], log_alpha[[i + 1, i]]))
    return found


def claims(result: Result) -> list[Claim]:
    cfg = result.config
    return [*boundary_claims(result), *(claim for width in cfg.width for claim in lazy_claims(result, width))]


def boundary_claims(result: Result) -> list[Claim]:
    cfg, name = result.config, "boundary |K - K0| = |K0| at alpha* ~ n^p: p"
    if len(cfg.width) < 3:
        return [Claim.not_applicable(name, "section 1.3", "needs three widths")]
    stars = np.stack([boundary(cfg, result.records[f"width {width}"]) for width in cfg.width], axis=1)
    if np.min(stars[np.isfinite(stars)], initial=np.inf) < 0.015:
        return [Claim.not_applicable(name, "section 1.3", "the boundary lies where the step cap binds, alpha <= .015")]
    fit = power_law(cfg.width, stars)
    reached = [np.isfinite(trained(cfg, result.records[f"width {n}"], "loss")).mean() for n in cfg.width]
    note = f"95 % interval {fit}, {fit.used} of {cfg.seeds} seeds; alpha* = {fit.prefactor:.2f} n^p; "
    note += f"{np.mean(reached):.0%} of all runs reached the target loss"
    return [Claim.close(name, "section 1.3", fit.exponent, -0.5, 0.05, note=note)]


def lazy_claims(result: Result, width: int) -> list[Claim]:
    cfg, out = result.config, []
    record, predicted = result.records[f"width {width}"], result.records[f"theory {width}"].values
    lazy = np.asarray(cfg.alpha) >= 10
    for quantity, title in (("weight_change", "weight change"), ("kernel_distance", "kernel change")):
        name = f"{title} at n = {width} ~ alpha^p for alpha >= 10: p"
        if lazy.sum() < 3:
            out.append(Claim.not_applicable(name, "theorem 2.3", "needs three output scales of 10 or more"))
            continue
        value = trained(cfg, record, quantity)
        fit = power_law(np.asarray(cfg.alpha)[lazy], value[lazy].T)
        note = f"95 % interval {fit}, {fit.used} of {cfg.seeds} seeds"
        out.append(Claim.close(name, "theorem 2.3", fit.exponent, -1.0, 0.05, note=note))
        error = np.median(np.abs(value[lazy] / predicted[quantity][0][lazy] - 1))
        name = f"{title} at n = {width}, alpha >= 10: relative error of the linearised theory, median"
        out.append(Claim.at_most(name, "theorem 2.3", error, 0.05))
    return out


def draw_boundary(ax, result: Result, line: np.ndarray) -> None:
    """The median ``alpha*`` of each width that has one, and ``alpha* ~ n^(-1/2)`` along the widths ``line``."""
    stars = {n: boundary(result.config, result.records[f"width {n}"]) for n in result.config.width}
    found = {n: np.median(star[np.isfinite(star)]) for n, star in stars.items() if np.isfinite(star).any()}
    if not found:
        ax.set_title("no run crosses |K - K0| = |K0|", fontsize=9)
        return
    ax.plot(list(found.values()), list(found), "o", color="white", mec="black", label="measured |K - K0| = |K0|")
    product = np.exp(np.mean([np.log(star * n**0.5) for n, star in found.items()]))
    ax.plot(product / np.sqrt(line), line, "k--", label=f"alpha* = {product:.2f} / sqrt(n)")
    ax.legend(loc="upper right", fontsize=8)


def figure(result: Result):
    """The (alpha, n) phase diagram with the boundary, and the kernel's movement along alpha over the theory."""
    cfg = result.config
    fig, (diagram, curves) = new_figure(1, 2, width=5.0, height=4.0)
    distance = np.stack([trained(cfg, result.records[f"width {n}"], "kernel_distance") for n in cfg.width])
    level = np.median(np.log10(distance), axis=-1)  # [widths, alphas]
    if len(cfg.width) > 1 and len(cfg.alpha) > 1:
        mesh = diagram.pcolormesh(cfg.alpha, cfg.width, level, shading="nearest", cmap="cividis", vmin=-3, vmax=3)
        fig.colorbar(mesh, ax=diagram, label="log10 |K - K0| / |K0|\n(blank: target loss not reached)")
    line = np.geomspace(min(cfg.width) / 2, max(cfg.width) * 2)
    diagram.set(xscale="log", yscale="log", xlabel="output scale alpha", ylabel="width n")
    diagram.set_ylim(min(line), max(line))
    draw_boundary(diagram, result, line)
    for marker, shade, width in zip("os^vD<", np.linspace(0.1, 0.6, len(cfg.width)), cfg.width):
        measured, predicted = (
            np.median(np.asarray(result.records[f"{side} {width}"].values["kernel_distance"])[0], axis=-1)
            for side in ("width", "theory")
        )
        curves.plot(cfg.alpha, measured, marker, color=str(shade), label=f"n = {width}")
        curves.plot(cfg.alpha, predicted, "-", color=str(shade), lw=1)
    curves.axhline(1, color="grey", ls=":", lw=1)
    curves.set(xscale="log", yscale="log", xlabel="output scale alpha", ylabel="kernel change |K - K0| / |K0|")
    curves.set_title("markers: network; lines: linearised theory", fontsize=9)
    curves.legend(fontsize=8)
    return fig


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
