"""Lazy training is a matter of scale (Chizat, Oyallon & Bach 2019).

Train ``F = alpha (h(w) - h(w_0))`` on the loss ``(1/2P) sum (F - y)^2 / alpha^2``: as alpha grows the weights need to
move less, ``|w - w_0| ~ 1/alpha``, and the tangent kernel stays where it was. A one-hidden-layer erf network of width n
in NTK parametrisation has ``|K - K_0|/|K_0| ~ 1/(alpha sqrt(n))^2`` near the boundary and ``1/alpha`` far inside the
lazy regime, so that the boundary ``|K - K_0| = |K_0|`` lies at ``alpha* ~ n^(-1/2)``: the (alpha, n) phase diagram.
Theory is the linearised network after the same number of steps: its loss and test error, and the kernel at its weights.

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
from dynamics.losses import half_mse, mse
from dynamics.runs.figures import new_figure, rival_style
from dynamics.statistics import kernel_distance, weight_norm
from dynamics.tasks.sphere import sphere_quadratic
from dynamics.types import Claim, Dynamics, Model, Objective, Observable, Record

from ._hinge import until

SOURCE = "Chizat, Oyallon & Bach 2019, 'On lazy training in differentiable programming'"
SECONDS = 60
LAZY, RICH = 10.0, 0.1  # output scales from, and up to which a network of these widths is called so


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
    def large(cls) -> Config:
        """A finer diagram: 19 output scales, six widths, 16 seeds; sizes of ours, where Chizat et al. train two-layer
        ReLU nets on a teacher's data and VGG-11 on CIFAR-10. 10 minutes on two cores."""
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
        data = sphere_quadratic(key, config.samples, 256, config.dim)
        start = model.init(jax.random.fold_in(key, lane.width), (-1, config.dim))[1]
        x = data.train.x
        values = {"start": start, "origin": model.apply(start, x), "kernel": ntk(x, None, start)}
        return Drawn(start, data, values)

    def make(lane) -> Dynamics:
        L = Objective(network(lane.width)[0].apply, lambda h, y: half_mse(h, lane.origin + y / lane.alpha))
        return until(gradient_descent(L, rate(lane)), lambda state: lane.alpha**2 * state.loss < config.target_loss)

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


def rate(lane) -> jax.Array:
    """The learning rate of h."""
    return jnp.minimum(1.0, lane.alpha * lane.width**0.5 / 2)


def compare(lane, view) -> dict:
    """Movement of weights and kernel, loss and test error: trained, and of the linearisation after as many steps."""
    (model, ntk), (x, y), test, state = network(lane.width), view.batch, view.data.test, view.state
    eigenvalues, modes = jnp.linalg.eigh(lane.kernel)
    left = (1.0 - rate(lane) * eigenvalues / len(x)) ** state.step
    weights = modes @ ((1.0 - left) / eigenvalues * (modes.T @ y[:, 0])) / lane.alpha
    (move,) = jax.vjp(lambda w: model.apply(w, x), lane.start)[1](weights[:, None])
    origin, slope = jax.jvp(lambda w: model.apply(w, test.x), (lane.start,), (move,))

    def movement(params, prefix=""):
        moved = weight_norm(jax.tree.map(jnp.subtract, params, lane.start))
        return {
            f"{prefix}kernel_distance": kernel_distance(ntk(x, None, params), lane.kernel),
            f"{prefix}weight_change": moved / weight_norm(lane.start),
        }

    found = movement(view.params) | movement(jax.tree.map(jnp.add, lane.start, move), "theory_")
    found |= {"loss": lane.alpha**2 * state.loss, "theory_loss": 0.5 * jnp.mean((left * (modes.T @ y[:, 0])) ** 2)}
    found |= {"test": mse(lane.alpha * (model.apply(view.params, test.x) - origin), test.y), "steps": state.step}
    return found | {"theory_test": mse(lane.alpha * slope, test.y), "untrained": mse(0.0 * test.y, test.y)}


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
    """Over seeds, which all output scales and widths share."""
    return [*boundary_claims(result), *lazy_claims(result), *function_claims(result)]


def boundary_claims(result: Result) -> list[Claim]:
    """The rivals: the boundary of a network that is linear in its weights, and the lazy law 1/alpha extrapolated."""
    cfg, name = result.config, "boundary |K - K0| = |K0| at alpha* ~ n^p: p"
    records = [result.records[f"width {width}"] for width in cfg.width]
    lazy = np.asarray(cfg.alpha) >= LAZY
    if len(cfg.width) < 3 or not lazy.any():
        return [Claim.not_applicable(name, "section 1.3", f"needs three widths and an output scale of {LAZY:g}")]
    stars = np.stack([boundary(cfg, record) for record in records])  # [widths, seeds]
    if np.min(stars[np.isfinite(stars)], initial=np.inf) < 0.015:
        return [Claim.not_applicable(name, "section 1.3", "the boundary lies where the step cap binds, alpha <= .015")]
    product = [trained(cfg, record, "kernel_distance")[lazy] * np.array(cfg.alpha)[lazy, None] for record in records]
    extrapolated = np.exp(np.log(product).mean(1))  # [widths, seeds]: where c/alpha = 1
    reached = np.mean([np.isfinite(trained(cfg, record, "loss")) for record in records])
    note = f"alpha* n^(1/2) = {np.exp(np.mean(np.log(stars) + 0.5 * np.log(cfg.width)[:, None])):.2f}; "
    note += f"{reached:.0%} of all runs reached the target loss"
    slope, lazily = (slopes(cfg.width, curve) for curve in (stars, extrapolated))
    rivals = {"lazy law 1/alpha extrapolated": lazily, "no effect of width": 0.0}
    return [Claim.close(name, "section 1.3", slope, -0.5, 0.05, rivals=rivals, note=note)]


def slopes(x, rows) -> np.ndarray:
    """``[seeds]``: p of ``x^p`` by least squares in the logarithms of ``rows [n, seeds]``."""
    return np.polyfit(np.log(x), np.log(rows), 1)[0] if np.all(np.isfinite(rows)) else np.full(rows.shape[1], np.nan)


def sides(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Which output scales are lazy, and which rich and yet within reach of the step cap: ``[alphas]`` each."""
    alpha = np.asarray(config.alpha)
    return alpha >= LAZY, (alpha >= 0.02) & (alpha <= RICH)


def lazy_claims(result: Result) -> list[Claim]:
    """The worst width inside each seed; the rival is the rich side of the narrowest, where all this fails."""
    cfg, out, (lazy, rich) = result.config, [], sides(result.config)
    alpha, rival = np.asarray(cfg.alpha), f"alpha <= {RICH:g}, n = {cfg.width[0]}"
    for quantity, title in (("weight_change", "weight change"), ("kernel_distance", "kernel change")):
        name = f"{title} ~ alpha^p for alpha >= {LAZY:g}: largest |p + 1| over widths"
        other = f"{title}, alpha >= {LAZY:g}: relative error of the linearised theory, largest over widths"
        if lazy.sum() < 3 or rich.sum() < 2:
            note = f"needs three output scales from {LAZY:g}, and two from .02 to {RICH:g}"
            out += [Claim.not_applicable(one, "theorem 2.3", note) for one in (name, other)]
            continue
        value, theory = both(result, quantity)
        powers = [np.abs([slopes(alpha[at], rows[at]) + 1 for rows in value]) for at in (lazy, rich)]
        out.append(Claim.at_most(name, "theorem 2.3", powers[0].max(0), 0.05, rivals={rival: powers[1][0]}))
        error = np.abs(value / theory - 1)  # [widths, alphas, seeds]
        rivals = {rival: error[0, rich].mean(0)}
        out.append(Claim.at_most(other, "theorem 2.3", error[:, lazy].mean(1).max(0), 0.05, rivals=rivals))
    return out


def both(result: Result, quantity: str) -> tuple[np.ndarray, np.ndarray]:
    """A reading and its linearised theory, ``[widths, alphas, seeds]``; NaN where a run is not trained."""
    cfg = result.config
    measured = [trained(cfg, result.records[f"width {n}"], quantity) for n in cfg.width]
    return np.stack(measured), np.stack([result.records[f"theory {n}"].values[quantity][0] for n in cfg.width])


def function_claims(result: Result) -> list[Claim]:
    """What the lazy network computes: the linearised one's loss after as many steps, and its predictions."""
    cfg, (lazy, rich) = result.config, sides(result.config)
    none = np.stack([result.records[f"width {n}"].values["untrained"][0] for n in cfg.width])
    names = (
        f"loss after as many steps, alpha >= {LAZY:g}: |log| of it over the linearised network's, largest over widths",
        f"test error, alpha >= {LAZY:g}: |log| of it over the linearised network's, largest over widths",
        f"test error, alpha >= {LAZY:g}: over that of F = 0, largest over widths",
    )
    if not lazy.any() or not rich.any():
        return [Claim.not_applicable(name, "theorem 2.3", "needs both sides of the boundary") for name in names]
    out, (loss, loss_theory), (test, test_theory) = [], both(result, "loss"), both(result, "test")
    losses, errors, zero = (
        np.abs(np.log(value)) for value in (loss / loss_theory, test / test_theory, none / test_theory)
    )
    for name, off, bound, rivals in (
        (names[0], losses, 0.1, {f"alpha <= {RICH:g}, n = {cfg.width[0]}": losses[0, rich].mean(0)}),
        (names[1], errors, 0.02, {"F = 0": zero[:, lazy].mean(1).min(0)}),
    ):
        out.append(Claim.at_most(name, "theorem 2.3", off[:, lazy].mean(1).max(0), bound, rivals=rivals))
    share = (test / none)[:, lazy].mean(1).max(0)
    return [*out, Claim.at_most(names[2], "the task", share, 0.8, rivals={"no effect of training": 1.0})]


def draw_boundary(ax, result: Result, line: np.ndarray) -> None:
    """The mean (of logarithms) ``alpha*`` of each width that has one, and ``alpha* ~ n^(-1/2)`` along ``line``."""
    stars = {n: boundary(result.config, result.records[f"width {n}"]) for n in result.config.width}
    found = {n: np.exp(np.log(star[np.isfinite(star)]).mean()) for n, star in stars.items() if np.isfinite(star).any()}
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
        fig.colorbar(mesh, ax=diagram, label="log10 |K - K0| / |K0|")
        diagram.set_title("blank: target loss not reached", fontsize=9)
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
    (lazy, _), first = sides(cfg), min(cfg.width)
    if lazy.any():
        narrow = trained(cfg, result.records[f"width {first}"], "kernel_distance")
        last = float(np.median(narrow[lazy], axis=-1)[-1])
        alpha = np.asarray(cfg.alpha)
        curves.plot(alpha, last * alpha.max() / alpha, label=f"1/alpha, n = {first}", **rival_style())
    curves.axhline(1, color="grey", ls=":", lw=1)
    curves.set(xscale="log", yscale="log", xlabel="output scale alpha", ylabel="kernel change |K - K0| / |K0|")
    curves.set_title("markers: network; lines: linearised theory", fontsize=9)
    curves.legend(fontsize=8)
    return fig


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
