"""From memory to generalisation: two denoisers trained on disjoint halves of the data (Kadkhodaie et al. 2024).

The best linear denoiser of N points at noise ``s^2`` is ``D = C (C + s^2 I)^{-1}``, C their covariance. Two of them on
disjoint data differ much while each remembers its own, and agree once there are enough: random matrices give distance
and test error without a fit, through the effective ridge ``s^2 = kappa (1 - (1/N) sum_i l_i/(l_i + kappa))`` in the
place of ``s^2``. The distance has a peak, then falls as 1/N. Networks on 8 x 8 digits lie on the same axes (preset
``digits``), beside the linear theory of these images.

Run time: about 15 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import config
from dynamics.config import Count, NonNegative, Positive, Range
from dynamics.evolve import study as in_memory
from dynamics.runs.figures import colour, measured_style, new_figure, rival_style, ticks_at
from dynamics.theory.denoisers import linear_denoisers
from dynamics.theory.resolvents import resolvent
from dynamics.types import Claim, Observable, Record

from ._networks import DIGITS, digit_halves, images, network_claims, networks

SOURCE = (
    "Kadkhodaie, Guth, Simoncelli & Mallat 2024, 'Generalization in diffusion models arises from geometry-adaptive "
    "harmonic representations'"
)
SECONDS = 15
SECTION = "figures 1-2, linear denoisers"
SIDES = ("distance", "test")
MANY = 50  # samples from which the theory's relative errors are small


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Count] = 40
    """draws of two halves"""
    dimension: Annotated[int, Range(8)] = 200
    """dimension d of the Gaussian data, whose variances have mean 1"""
    samples: Annotated[tuple[int, ...], Range(2)] = (2, 5, 10, 20, 50, 100, 200, 400, 1000, 4000, 16000, 32000)
    """samples N in each half, ascending"""
    decay: Annotated[tuple[float, ...], NonNegative] = (1.0, 0.5)
    """variances fall as i^-decay"""
    noise: Annotated[tuple[float, ...], Positive] = (0.1, 1.0)
    """noise s^2, one for each decay"""
    network_samples: Annotated[tuple[int, ...], Range(1, DIGITS)] = (25, 50, 100, 200, 400, 800)
    """digits in each half that the networks are trained on, ascending"""
    network_seeds: Annotated[int, Count] = 2
    """splits of the digits, and starts"""
    network_steps: Annotated[int, NonNegative] = 0
    """Adam steps of the networks on fresh noise; 0 for none of them"""
    width: Annotated[int, Count] = 24
    """channels of the networks"""
    sigma: Annotated[float, Positive] = 0.3
    """the noise's standard deviation on digits, whose pixels lie in [0, 1]"""

    @classmethod
    def digits(cls) -> Config:
        """Convolutional networks on 8 x 8 digits too: a quarter of an hour on two cores."""
        return cls(network_steps=1500)

    @classmethod
    def large(cls) -> Config:
        """Wider networks, trained four times as long; the paper's see 10^5 images of 80 x 80 pixels.

        An hour on two cores, 97 CPU minutes.
        """
        samples = (*cls.samples[:-1], 64000)
        return cls(seeds=100, dimension=400, samples=samples, network_steps=6000, width=32)

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("samples", "network_samples"):
            self.require(bool(np.all(np.diff(getattr(self, field)) > 0)), field, "ascending values")
        self.require(len(self.noise) == len(self.decay), "noise", "one for each decay")


class Result(NamedTuple):
    """``records``: 'measured' (``distance, test [1, decay, N, seed]``), its 'theory' ``[1, decay, N]``; the same of
    linear denoisers of 'digits' and 'digits theory'; 'networks' (``distance, test, asymmetry [T, N, seed]``)."""

    config: Config
    records: dict[str, Record]


def run(config: Config, study=in_memory) -> Result:
    """Linear denoisers in float64, networks in float32."""
    with jax.enable_x64(True):
        records = {"measured": linear(config, study)}
        axes = {name: values for name, values in records["measured"].axes.items() if name != "seed"}
        grid = theory_grid(config, config.samples)
        records["theory"] = records["measured"]._replace(values=grid, axes=axes)
        records |= digits(config, study)
    if config.network_steps:
        records["networks"] = networks(config, study)
    return Result(config, records)


def variances(config: Config, decay: float) -> np.ndarray:
    """``l_i``, in proportion to ``i^-decay``, of mean 1."""
    found = np.arange(1.0, config.dimension + 1) ** -decay
    return found / found.mean()


def linear(config: Config, study) -> Record:
    """Denoisers of two halves of Gaussian data, and their exact errors over fresh data and noise."""
    key = jax.random.key(config.seed)

    def draw(lane) -> dict:
        lam, noise = jnp.asarray(variances(config, lane.decay)), config.noise[config.decay.index(lane.decay)]
        own = jax.random.fold_in(jax.random.fold_in(key, lane.seed), lane.samples)
        return gaussian(own, lam, noise, float(lane.samples))

    axes = {"decay": config.decay, "samples": config.samples, "seed": range(config.seeds)}
    read = Observable.of_view(lambda view: view.params)
    return study(axes, draw, None, read, steps=0, data=(), label="linear")


@jax.jit
def compared(halves, truth, noise) -> dict:
    """``distance`` and mean ``test`` error per dimension of the denoisers of two sample covariances ``[2, d, d]``, on
    data of covariance ``truth [d, d]`` and their noise."""
    d = len(truth)

    def denoiser(C):
        return jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(C + noise * jnp.eye(d)), True), C)

    D = jax.lax.map(denoiser, halves)
    apart, residual = D[0] - D[1], D - jnp.eye(d)
    distance = jnp.sum(apart * (apart @ truth)) + noise * jnp.sum(apart**2)
    test = jnp.sum(residual * (residual @ truth)) + noise * jnp.sum(D**2)
    return {"distance": distance / d, "test": test / (2 * d)}


@jax.jit
def gaussian(key, lam, noise, samples) -> dict:
    """``compared`` on two halves of Gaussian data."""

    def covariance(key):
        x = triangle(key, samples, len(lam)) * jnp.sqrt(lam / samples)
        return x.T @ x

    return compared(jax.lax.map(covariance, jax.random.split(key)), jnp.diag(lam), noise)


def triangle(key, samples, d: int) -> jax.Array:
    """``X [d, d]``, upper triangular, with the law of ``X^T X`` that so many standard normal rows have.

    Of the rows ``Q R`` it is R: ``R_ii^2 ~ chi^2_{samples - i}``, ``R_ij ~ N(0, 1)`` for i < samples (Bartlett 1934).
    """
    one, two = jax.random.split(key)
    left = samples - jnp.arange(float(d))
    diagonal = jnp.sqrt(jax.random.chisquare(one, jnp.maximum(left, 1.0)))
    rows = jnp.triu(jax.random.normal(two, (d, d)), 1) + jnp.diag(diagonal)
    return jnp.where(left[:, None] > 0, rows, 0.0)


def predicted(lam, samples, noise, wrong=None) -> dict[str, np.ndarray]:
    """``distance`` and ``test [N]``; ``wrong(resolvent, s^2)`` gives another theory's resolvent."""
    with jax.enable_x64(True):
        exact = [resolvent(lam, float(n), noise) for n in samples]
        found = [linear_denoisers(R if wrong is None else wrong(R, noise), noise) for R in exact]
        return {name: np.array([float(getattr(errors, name)) for errors in found]) for name in SIDES}


def theory_grid(config: Config, samples, wrong=None) -> dict[str, np.ndarray]:
    """``distance`` and ``test [1, decay, N]`` of the Gaussian data."""
    settings = zip(config.decay, config.noise)
    rows = [predicted(variances(config, decay), samples, noise, wrong) for decay, noise in settings]
    return {name: np.stack([row[name] for row in rows])[None] for name in SIDES}


WRONG = {
    "kappa = s^2": lambda R, noise: R._replace(kappa=jnp.asarray(noise)),
    "both halves in one": lambda R, noise: resolvent(R.eigenvalues, 2 * float(R.samples), noise),
}


def digits(config: Config, study) -> dict[str, Record]:
    """Linear denoisers of two halves of the digits, whose mean is known, and the theory from the covariance of all."""
    centre, axes = images().mean(0), {"network_samples": config.network_samples, "seed": range(config.seeds)}

    def draw(lane) -> dict:
        train, test = (np.float64(x - centre).reshape(*x.shape[:-3], 64) for x in digit_halves(config, lane.seed))
        some = train[: lane.network_samples]
        halves = np.einsum("nhi,nhj->hij", some, some) / len(some)
        return compared(jnp.asarray(halves), jnp.asarray(test.T @ test / len(test)), config.sigma**2)

    read = Observable.of_view(lambda view: view.params)
    measured = study(axes, draw, None, read, steps=0, data=(), label="digits")
    values = {name: curve[None] for name, curve in digit_theory(config, config.network_samples).items()}
    axes = {"network_samples": measured.axes["network_samples"]}
    return {"digits": measured, "digits theory": measured._replace(values=values, axes=axes)}


def digit_theory(config: Config, samples, wrong=None) -> dict[str, np.ndarray]:
    """That of Gaussian data of the digits' covariance, ``[N]``."""
    C = np.cov(images().reshape(-1, 64).T.astype(float), ddof=0)
    return predicted(np.maximum(np.linalg.eigvalsh(C), 0), samples, config.sigma**2, wrong)


def claims(result: Result) -> list[Claim]:
    return [*theory_claims(result), *shape_claims(result), *digit_claims(result), *network_claims(result)]


def theory_claims(result: Result) -> list[Claim]:
    """Seeds are independent draws; of the cells' means the worst is claimed."""
    cfg, out = result.config, []
    N = np.asarray(cfg.samples)
    many = N >= MANY
    wrong = {name: theory_grid(cfg, cfg.samples, change) for name, change in WRONG.items()}
    bounds = {"distance": 0.03, "test": 0.01}
    titles = {side: f"{side} of the linear denoisers, N >= {MANY}: largest relative deviation" for side in bounds}
    joint = "{} of the linear denoisers, every N >= " + str(MANY)
    between = many & (N <= 400)
    last = f"distance by kappa = s^2, {MANY} <= N <= 400: least relative deviation"
    if cfg.seeds < 20 or not between.any():
        names = [*titles.values(), *(joint.format(side) for side in bounds), last]
        return [Claim.not_applicable(name, SECTION, f"needs 20 seeds, and {MANY} <= N <= 400") for name in names]
    for side, bound in bounds.items():
        rows, theory = (result.records[name].values[side][0] for name in ("measured", "theory"))
        mean, error = rows.mean(-1), rows.std(-1, ddof=1) / cfg.seeds**0.5

        def off(curve, mean=mean):
            return float(np.abs(mean / curve - 1)[:, many].max())

        other = {name: values[side][0] for name, values in wrong.items()}
        rivals = {name: off(curve) for name, curve in other.items()}
        out.append(Claim.at_most(titles[side], SECTION, off(theory), bound, rivals=rivals))
        spread = np.hypot(error, theory / cfg.dimension)[:, many]  # the theory's own error is a share 1/d
        z = {name: (mean - curve)[:, many] / spread for name, curve in other.items()}
        note = f"share 1/d of the theory allowed; {np.abs((mean - theory) / error)[:, many].max():.1f} without"
        title = joint.format(side)
        out.append(Claim.cells(title, SECTION, (mean - theory)[:, many] / spread, rivals=z, note=note))
    mean = result.records["measured"].values["distance"][0].mean(-1)
    least, right = (
        float(np.abs(values["distance"][0] / mean - 1)[:, between].min())
        for values in (wrong["kappa = s^2"], result.records["theory"].values)
    )
    usual = wrong["kappa = s^2"]["distance"][0, 0] / mean[0] - 1
    note = f"variances ~ i^-{cfg.decay[0]:g}: " + ", ".join(
        f"{usual[i]:+.2f} at {N[i]}" for i in np.flatnonzero(N >= 400)
    )
    return [*out, Claim.at_least(last, SECTION, least, 0.05, rivals={"the effective ridge": right}, note=note)]


def shape_claims(result: Result) -> list[Claim]:
    """The distance's peak, and its law, where the theory has them within the samples."""
    cfg, distance = result.config, result.records["measured"].values["distance"][0]  # [decay, N, seed]
    N, log = np.asarray(cfg.samples, float), np.log(distance)
    titles = (
        "log distance at its peak over that at fewest samples, least over spectra",
        "log distance at its peak over that at most samples, least over spectra",
        "slope of log distance at the largest N",
        "N x distance at the largest N over its limit, largest deviation",
    )
    top, due = distance.mean(-1).argmax(1), result.records["theory"].values["distance"][0].argmax(1)
    if cfg.seeds < 3 or due.min() < 1 or due.max() > len(N) - 4 or N[-1] < 100 * cfg.dimension:
        note = "needs N from below the peak to 100 d, four beyond the peak"
        return [Claim.not_applicable(title, SECTION, note) for title in titles]
    peak = np.take_along_axis(log, top[:, None, None], 1)[:, 0]  # [decay, seed]
    limit = np.array([first_order(variances(cfg, *setting[:1]), setting[1]) for setting in zip(cfg.decay, cfg.noise)])

    def slope(i):
        return (log[:, i] - log[:, i - 1]) / np.log(N[i] / N[i - 1])

    at = [[np.log(N[0] / N[i])] for i in top]  # were it 1/N at all N
    rise, fall = peak - log[:, 0], peak - log[:, -1]
    middle = int(due.max()) + 1
    ratio = float(np.abs(N[-1] * distance[:, -1].mean(-1) / limit - 1).max())
    early = float(np.abs(N[middle] * distance[:, middle].mean(-1) / limit - 1).max())
    return [
        Claim.at_least(titles[0], SECTION, rise[rise.mean(1).argmin()], 0.2, rivals={"1/N at every N": np.max(at)}),
        Claim.at_least(
            titles[1], SECTION, fall[fall.mean(1).argmin()], np.log(50.0),
            rivals={"1/N from the peak, root": 0.5 * np.log(N[-1] / N[top]).max()},
        ),
        Claim.close(
            titles[2], SECTION, slope(-1).mean(0), -1.0, 0.03,
            rivals={"1/sqrt(N)": -0.5, f"slope at N = {N[middle]:g}": slope(middle).mean(0)},
        ),
        Claim.at_most(titles[3], SECTION, ratio, 0.05, rivals={f"at N = {N[middle]:g}": early}),
    ]  # fmt: skip


def first_order(lam: np.ndarray, noise: float) -> float:
    """``lim N x distance``, by first-order perturbation of D in ``C - L``."""
    return 2 * np.sum(lam * noise**2 / (lam + noise) ** 2) * np.sum(lam / (lam + noise)) / len(lam)


def digit_claims(result: Result) -> list[Claim]:
    """Theory of Gaussian data on images, which are not; the test error's bound was chosen after a result."""
    cfg, out = result.config, []
    measured, theory = (result.records[name].values for name in ("digits", "digits theory"))
    for side, bound in (("distance", 0.15), ("test", 0.02)):
        title = f"{side} of linear denoisers of digits against theory, largest relative deviation"
        if cfg.seeds < 20:
            out.append(Claim.not_applicable(title, SECTION, "needs 20 seeds"))
            continue
        mean, right = measured[side][0].mean(-1), theory[side][0]
        off = np.abs(mean / right - 1)
        rivals = {
            name: float(np.abs(mean / digit_theory(cfg, cfg.network_samples, change)[side] - 1).max())
            for name, change in WRONG.items()
        }
        out.append(Claim.at_most(title, "figure 2's axes", float(off.max()), bound, rivals=rivals))
    return out


def figure(result: Result):
    """Distance and test error against N: linear denoisers of Gaussian data, and of digits with the networks."""
    cfg, records = result.config, result.records
    fig, axes = new_figure(1, 3, width=3.9, height=3.6)
    fine = np.unique(np.geomspace(cfg.samples[0], cfg.samples[-1], 60).round())
    theory, wrong = theory_grid(cfg, fine), theory_grid(cfg, fine, WRONG["kappa = s^2"])
    for ax, side in zip(axes, SIDES):
        for i, (decay, noise_power) in enumerate(zip(cfg.decay, cfg.noise)):
            style, rows = measured_style(2 * i, 4), records["measured"].values[side][0, i]
            label = f"variances ~ i^-{decay:g}, s^2 = {noise_power:g}"
            ax.plot(cfg.samples, rows.mean(-1), ms=5, label=label, **style)
            ax.plot(fine, theory[side][0, i], "-", color=style["color"], lw=1)
            usual = np.where(fine >= MANY, wrong[side][0, i], np.nan)
            usual = np.where(usual > 0, usual, np.nan)
            ax.plot(fine, usual, label=None if i else "kappa = s^2", **rival_style(0))
        ax.set(xscale="log", yscale="log", xlabel="samples N in each half", ylabel=f"{side} per dimension")
        ax.set_title("lines: random matrices", fontsize=8)
        ax.set_ylim(0.6 * theory[side].min(), 2 * theory[side].max())
    axes[0].legend(fontsize=7, loc="lower left")
    fine = np.unique(np.geomspace(cfg.network_samples[0], cfg.network_samples[-1], 40).round())
    theory, ax = digit_theory(cfg, fine), axes[2]
    for i, side in enumerate(SIDES):
        tint = colour(2 * i, 4)
        style = measured_style(2 * i, 4)
        ax.plot(cfg.network_samples, records["digits"].values[side][0].mean(-1), ms=5, label=f"linear, {side}", **style)
        ax.plot(fine, theory[side], "-", color=tint, lw=1)
        if "networks" in records:
            rows = records["networks"].values[side][-1]
            ax.plot(cfg.network_samples, rows.mean(-1), "x--", color=tint, lw=0.8, label=f"CNN, {side}")
    ax.set(xscale="log", yscale="log", xlabel="digits in each half", ylabel="per pixel")
    ticks_at(ax.xaxis, cfg.network_samples)
    ax.set_title(f"8 x 8 digits, noise {cfg.sigma:g}", fontsize=8)
    ax.legend(fontsize=7)
    return fig


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
