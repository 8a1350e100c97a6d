"""The law of weights at the end of mirror descent, and how it shows the geometry that made them (Pogodin et al. 2023).

Linear regression with more weights than samples (``X_ij ~ N(0, 1/D)``, P = alpha D targets independent of X), trained
by ``theta <- theta - eta X^T (X w - y)`` with ``theta = phi'(w)``, ends at ``argmin D_phi(w, w_0)`` subject to ``X w =
y``. There each weight obeys ``phi'(w) - phi'(w_0) = b h - c w`` with h standard normal and independent of its start:
Gaussian in the dual, as the paper has it, up to a shrinkage ``c = E[dtheta w] / s^2`` that its first order in alpha
leaves out. How ``ln|dw|`` depends on ``ln|w_0|`` tells the potentials apart: slope 0 for gradient descent, -1 for
``|w|^3/3``, +1 for exponentiated gradients at first order, and what the law says at any alpha.

Run time: about 40 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
from functools import lru_cache, partial
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import config
from dynamics.config import Count, Positive, Range
from dynamics.evolve import Drawn, log_steps, mirror
from dynamics.evolve import study as in_memory
from dynamics.geometry import power, signed_entropy
from dynamics.observe import dual_gaussianity
from dynamics.runs.figures import measured_style, new_figure, rival_style, ticks_at
from dynamics.theory.mirror import WeightLaw, gaussian_nodes, law_of, projection, weight_law
from dynamics.types import Batch, Claim, Objective, Observable, Record, View

SOURCE = "Pogodin et al. 2023, 'Synaptic weight distributions depend on the geometry of plasticity'; law derived here"
SECONDS = 40

POTENTIALS = {"|w|^2/2": power(2), "|w|^3/3": power(3), "entropy": signed_entropy()}
FIRST_ORDER = {"|w|^2/2": 0.0, "|w|^3/3": -1.0, "entropy": 1.0}  # of the slope, as alpha -> 0
RATE = {"|w|^2/2": 0.5, "|w|^3/3": 0.01, "entropy": 0.1}  # a step of |w|^3/3 has to find weights near 0
BINS = np.linspace(0.0, 4.0, 41)  # of |w|, for the figure
Name = Literal["|w|^2/2", "|w|^3/3", "entropy"]
Start = Literal["log-normal", "normal"]


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Count] = 80
    """draws of X, y and w_0"""
    weights: Annotated[int, Range(20)] = 300
    """weights D"""
    alpha: Annotated[tuple[float, ...], Range(0.0, 0.5, open_low=True)] = (0.05, 0.1, 0.2, 0.4)
    """samples a weight P/D, ascending"""
    potential: tuple[Name, ...] = ("|w|^2/2", "|w|^3/3", "entropy")
    """potentials phi"""
    start: tuple[Start, ...] = ("log-normal", "normal")
    """laws of w_0: +-exp(spread N), or N(0, 1), which is for the powers alone"""
    spread: Annotated[float, Positive] = 0.5
    """of the log-normal start"""
    variance: Annotated[float, Positive] = 1.0
    """s^2 of the targets"""
    descent_seeds: Annotated[int, Count] = 3
    """draws that are trained, at the smallest alpha"""
    descent_steps: Annotated[int, Count] = 20_000
    """steps of mirror descent"""

    @classmethod
    def large(cls) -> Config:
        """More weights, for fewer draws, trained longer; three minutes of a core."""
        return cls(seeds=32, weights=1000, descent_steps=40_000)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(bool(np.all(np.diff(self.alpha) > 0)), "alpha", "ascending values")
        self.require(min(self.alpha) * self.weights >= 1, "alpha", "at least one sample")


class Result(NamedTuple):
    """``records``: 'ends' (measured, ``[1, potential, start, alpha, seed, ...]``), 'law' (the same without seeds) and
    'descent' (``gap [T, potential, seed, potential]`` of the trained weights to the projection of each potential)."""

    config: Config
    records: dict[str, Record]


def run(config: Config, study=in_memory) -> Result:
    """Ends of mirror descent, found as projections; their law; and descent itself, on a few of the draws."""
    with jax.enable_x64(True):
        cells = {"potential": config.potential, "start": config.start, "alpha": config.alpha}
        drawn = Observable.of_view(lambda view: view.params)
        law = study(cells, partial(predicted, config), None, drawn, steps=0, data=(), label="law")

        def draw(lane):
            b, c = (law.at(potential=lane.potential, start=lane.start, alpha=lane.alpha).values[k][0] for k in "bc")
            return measured(lane.potential, *task(config, lane.start, lane.alpha, lane.seed), b, c)

        axes = cells | {"seed": range(config.seeds)}
        ends = study(axes, draw, None, drawn, steps=0, data=(), label="ends")
        return Result(config, {"ends": ends, "law": law, "descent": descend(config, study)})


def task(config: Config, start: str, alpha: float, seed: int):
    """``(w_0 [D], X [P, D], y [P])``; the draws of one seed share what they can."""
    kx, ky, kw, ks = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), seed), 4)
    n, p = config.weights, round(alpha * config.weights)
    w0 = jax.random.normal(kw, (n,))
    if start == "log-normal":
        w0 = jnp.exp(config.spread * w0) * jax.random.rademacher(ks, (n,))
    return w0, jax.random.normal(kx, (p, n)) / n**0.5, config.variance**0.5 * jax.random.normal(ky, (p,))


def readings(potential, w, w0, b, c, mean) -> dict:
    """By ``mean`` over weights: moments ``[4]`` of w, ``w - w_0`` and ``dtheta = phi'(w) - phi'(w_0)``; and of ``h =
    (dtheta + c w)/b`` its square, correlation with w_0, kurtosis, and the share of its square that goes with w_0's,
    which for a standard normal h that is independent of w_0 are ``1, 0, 3, 1``."""
    moved = potential.gradient(w) - potential.gradient(w0)
    h = (moved + c * w) / b
    square, start, both = mean(h**2), mean(w0**2), mean(h * w0)
    residues = [square, both / (square * start) ** 0.5, mean(h**4) / square**2, mean(h**2 * w0**2) / (square * start)]
    found = [mean(w**2), mean((w - w0) ** 2), mean(moved**2), mean(moved * w)]
    return {"moments": jnp.stack(found), "residues": jnp.stack(residues)}


def measured(name: str, w0, x, y, b, c) -> dict:
    """All readings of one draw's end; NaN where there is no law."""
    if not np.isfinite(b):
        return seen(name, w0, w0 * np.nan, b, c)
    found = projection(POTENTIALS[name], w0, x, y)
    return seen(name, w0, jnp.where(found.residual < 1e-9, found.w, jnp.nan), b, c)


@partial(jax.jit, static_argnums=0)
def seen(name: str, w0, w, b, c) -> dict:
    read = dual_gaussianity(POTENTIALS)
    found = read.update(read.init(View(w0, None)), View(w, None))[1]
    return readings(POTENTIALS[name], w, w0, b, c, jnp.mean) | {
        "slope": found["geometry_slope"],
        "ks": jnp.stack([found[f"dual_ks/{name}"] for name in POTENTIALS]),
        "histogram": jnp.histogram(jnp.abs(w), jnp.asarray(BINS))[0] / w.size,
    }


@lru_cache
def law(name: str, start: str, alpha: float, spread: float, variance: float) -> WeightLaw:
    h, p = gaussian_nodes()  # the signs of a log-normal start are alike
    return weight_law(
        POTENTIALS[name], alpha, np.exp(spread * h) if start == "log-normal" else h, p, target_variance=variance
    )


def predicted(config: Config, lane) -> dict:
    """What the law says; NaN for the entropy from a normal start, whose logarithm has no bound near 0."""
    if lane.potential == "entropy" and lane.start == "normal":
        return {
            "b": np.nan, "c": np.nan, "moments": np.full(4, np.nan), "residues": np.full(4, np.nan), "slope": np.nan,
            "histogram": np.full(len(BINS) - 1, np.nan),
        }  # fmt: skip
    found = law(lane.potential, lane.start, lane.alpha, config.spread, config.variance)
    return of_law(lane.potential, found, found.b, found.c) | {
        "b": found.b,
        "c": found.c,
        "slope": slope(found),
        "histogram": np.histogram(np.abs(found.w), BINS, weights=found.probability)[0],
    }


def of_law(name: str, law: WeightLaw, b: float, c: float) -> dict:
    """The ``readings`` of weights that obey a law."""
    with jax.enable_x64(True):
        probability = jnp.asarray(law.probability)
        made = readings(
            POTENTIALS[name], jnp.asarray(law.w), jnp.asarray(law.start), b, c, lambda v: jnp.sum(v * probability)
        )
        return {key: np.asarray(value) for key, value in made.items()}


def slope(law: WeightLaw) -> float:
    """Of the least-squares line of ``ln|dw|`` on ``ln|w_0|``."""

    def x(w, w0):
        return np.log(np.abs(w0)) + 0 * w

    def y(w, w0):
        return np.log(np.maximum(np.abs(w - w0), 1e-300))

    at = law._replace(start=np.where(law.start == 0, 1e-9, law.start))
    centre = at.mean(x)
    return at.mean(lambda w, w0: (x(w, w0) - centre) * y(w, w0)) / at.mean(lambda w, w0: (x(w, w0) - centre) ** 2)


def descend(config: Config, study) -> Record:
    """Mirror descent from log-normal starts at the smallest alpha."""
    alpha = config.alpha[0]
    L = Objective(lambda w, x: x @ w, lambda f, y: 0.5 * jnp.sum((f - y) ** 2))

    def draw(lane):
        w0, x, y = task(config, "log-normal", alpha, lane.seed)
        ends = jnp.stack([projection(potential, w0, x, y).w for potential in POTENTIALS.values()])
        return Drawn(w0[:, None], Batch(x, y[:, None]), {"ends": ends})

    def read(lane) -> Observable:
        return Observable.of_view(lambda view: {"gap": jnp.max(jnp.abs(view.params[:, 0] - lane.ends), axis=1)})

    return study(
        {"potential": config.potential, "seed": range(config.descent_seeds)},
        draw,
        lambda lane: mirror(L, POTENTIALS[lane.potential], RATE[lane.potential]),
        read,
        steps=config.descent_steps,
        record_at=log_steps(config.descent_steps, 40),
        key=jax.random.key(config.seed),
        label="descent",
    )


def claims(result: Result) -> list[Claim]:
    """Draws are independent; the cells of a claim share them."""
    return [*descent_claims(result), *law_claims(result), *slope_claims(result)]


def descent_claims(result: Result) -> list[Claim]:
    """At the smallest alpha, which was chosen after a result: larger ones need more steps to converge."""
    cfg, gap = result.config, result.records["descent"].values["gap"]  # [T, potential, seed, potential]
    out = []
    for place, name in enumerate(cfg.potential):
        title, source = f"{name}: log10 distance of mirror descent's end to its projection", "theorem 1 of the paper"
        if cfg.descent_steps < 10_000 or cfg.alpha[0] > 0.2:
            out.append(
                Claim.not_applicable(title, source, "needs 10,000 steps, and alpha <= 0.2: fewer do not converge")
            )
            continue
        logs = dict(zip(POTENTIALS, np.log10(np.maximum(gap[-1, place], 1e-17)).T, strict=True))
        own = logs.pop(name)
        rivals = {f"projection of {other}": values for other, values in logs.items()}
        out.append(Claim.at_most(title, source, own, -8.0, rivals=rivals))
    return out


def law_claims(result: Result) -> list[Claim]:
    """Means over draws in their standard errors, to which a share 1/(D (1 - alpha)) of the theory is added, which is
    that of large D: the inverse of a Wishart matrix has that much more at finite D."""
    cfg, ends, law = result.config, result.records["ends"].values, result.records["law"].values
    out = []
    for place, name in enumerate(cfg.potential):
        known = np.isfinite(law["b"][0, place])  # [start, alpha]
        for key, title in (
            ("moments", "mean w^2, (w-w0)^2, dtheta^2 and dtheta w against the law"),
            ("residues", "h = (dtheta + c w)/b is standard normal and independent of w0: four moments"),
        ):
            title, source = f"{name}: {title}", "law derived here"
            if cfg.seeds < 30 or not known.any():
                out.append(Claim.not_applicable(title, source, "needs 30 draws, and a start whose dual is bounded"))
                continue
            rows = ends[key][0, place][known]  # [cells, seed, 4]
            share = 1 / (cfg.weights * (1 - np.broadcast_to(cfg.alpha, known.shape)[known]))[:, None]
            error = np.hypot(rows.std(1, ddof=1) / cfg.seeds**0.5, share * np.abs(law[key][0, place][known]))
            z = {"": law[key][0, place][known], **wrong_laws(cfg, name, key, known)}
            z = {rival: (rows.mean(1) - theory) / error for rival, theory in z.items()}
            out.append(Claim.cells(title, source, z.pop(""), rivals=z))
    return out


def wrong_laws(config: Config, name: str, key: str, known) -> dict[str, np.ndarray]:
    """``{rival: [cells, 4]}``: the same readings of weights that other laws would make, from the same starts.

    A pure Gaussian in the dual has the dual variance of the right law.
    """
    potential, found = POTENTIALS[name], {}
    for start, alpha in [(s, a) for i, s in enumerate(config.start) for j, a in enumerate(config.alpha) if known[i, j]]:
        right = law(name, start, alpha, config.spread, config.variance)
        nodes = right.start[:, 0], right.probability.sum(1)
        deviation = float(of_law(name, right, right.b, right.c)["moments"][2]) ** 0.5
        others = {"pure Gaussian in the dual": law_of(potential, deviation, 0.0, *nodes)}
        for other in POTENTIALS:
            if other != name and not (other == "entropy" and start == "normal"):
                others[f"law of {other}"] = law(other, start, alpha, config.spread, config.variance)
        for rival, other in others.items():
            found.setdefault(rival, {})[start, alpha] = of_law(name, other, right.b, right.c)[key]
    return {rival: np.stack(list(cells.values())) for rival, cells in found.items() if len(cells) == known.sum()}


def slope_claims(result: Result) -> list[Claim]:
    """The geometry test, from log-normal starts."""
    cfg, out = result.config, []
    for place, name in enumerate(cfg.potential):
        titles = (
            f"{name}: slope of ln|dw| on ln|w0| against the law, every alpha",
            f"{name}: slope of ln|dw| on ln|w0| at alpha = 0.1 names the geometry",
        )
        if "log-normal" not in cfg.start or cfg.seeds < 30:
            out += [
                Claim.not_applicable(title, "derived here", "needs log-normal starts, 30 draws") for title in titles
            ]
            continue
        at = cfg.start.index("log-normal")
        rows, predicted = (result.records[key].values["slope"][0, :, at] for key in ("ends", "law"))
        error = rows[place].std(-1, ddof=1) / cfg.seeds**0.5
        rivals = {"first order in alpha": np.full(len(cfg.alpha), FIRST_ORDER[name])}
        rivals |= {f"law of {other}": predicted[i] for i, other in enumerate(cfg.potential) if other != name}
        z = {rival: (rows[place].mean(-1) - theory) / error for rival, theory in rivals.items()}
        out.append(
            Claim.cells(titles[0], "law derived here", (rows[place].mean(-1) - predicted[place]) / error, rivals=z)
        )
        if 0.1 not in cfg.alpha:
            out.append(Claim.not_applicable(titles[1], "figure 4", "needs alpha = 0.1"))
            continue
        seen = rows[:, cfg.alpha.index(0.1)]
        rivals = {f"weights made by {other}": seen[i] for i, other in enumerate(cfg.potential) if other != name}
        out.append(Claim.close(titles[1], "derived here", seen[place], FIRST_ORDER[name], 0.15, rivals=rivals))
    return out


def figure(result: Result):
    """Shrinkage and slope against alpha; the weights' distribution at the largest alpha."""
    cfg, ends, law = result.config, result.records["ends"].values, result.records["law"].values
    fig, (shrinkage, slopes, weights) = new_figure(1, 3, width=3.7, height=3.5)
    centre, width, start = (BINS[1:] + BINS[:-1]) / 2, BINS[1] - BINS[0], cfg.start[0]
    for i, name in enumerate(cfg.potential):
        style = measured_style(i, len(POTENTIALS))
        shift = 1 + 0.02 * (i - 1)  # so that error bars stand side by side
        for axes, key, take in ((shrinkage, "moments", np.s_[..., 3]), (slopes, "slope", np.s_[...])):
            rows, line = ends[key][0, i, 0][take], law[key][0, i, 0][take]
            half = 2 * rows.std(1) / cfg.seeds**0.5
            label = name if axes is shrinkage else None
            axes.errorbar(shift * np.asarray(cfg.alpha), rows.mean(1), half, ms=5, label=label, **style)
            axes.plot(cfg.alpha, line, "-", color=style["color"], lw=1)
        slopes.axhline(FIRST_ORDER[name], **rival_style(0), label=None if i else "first order")
        weights.plot(centre, ends["histogram"][0, i, 0, -1].mean(0) / width, label=name, **style | {"ms": 4})
        weights.plot(centre, law["histogram"][0, i, 0, -1] / width, "-", color=style["color"], lw=1)
    gaussian = law["moments"][0, 0, 0, :, 2]  # from a symmetric start, of |w|^2/2
    if cfg.potential[0] == "|w|^2/2":
        shrinkage.plot(cfg.alpha, gaussian, label="|w|^2/2, pure Gaussian", **rival_style(0))
    for axes in (shrinkage, slopes):
        axes.set(xlabel="samples a weight alpha", xscale="log")
        ticks_at(axes.xaxis, cfg.alpha)
        axes.legend(fontsize=8)
    shrinkage.set(ylabel=f"mean dtheta w, {start} start; lines: law", yscale="log")
    slopes.set(ylabel="slope of ln|dw| on ln|w0|; lines: law", ylim=(-1.1, 1.45))
    weights.set(xlabel=f"|w| at alpha = {cfg.alpha[-1]:g}", ylabel="density; lines: law", yscale="log")
    return fig


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
