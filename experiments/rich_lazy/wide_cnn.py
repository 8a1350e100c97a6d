"""What can be learnt with wide convolutional networks? (Cagnetta, Favero & Wyart 2023).

The tangent kernel of a deep CNN with non-overlapping filters, on inputs of two patches, each a point on a circle, is
diagonal in products of Fourier modes; a mode living on d patches has eigenvalues ``|k|^(-2 nu - d)`` with nu = 1/2: the
wider a mode's support, the faster they fall. Hence functions of few patches are learnt fast: with a target of
smoothness ``nu_t`` on d patches the error of kernel regression falls as ``P^(-beta)``, ``beta = 2 nu_t/d``, set by the
effective dimension of the target and not of the input. A fully connected kernel is not so spared.

Run time: about 30 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import config
from dynamics.config import Count, Range
from dynamics.evolve import study as in_memory
from dynamics.runs.figures import measured_style, new_figure
from dynamics.statistics import power_law
from dynamics.theory.hierarchical import arc_cosine, hierarchical_ntk
from dynamics.theory.random_features import random_feature_risk
from dynamics.types import Claim, Observable, Record

SOURCE = "Cagnetta, Favero & Wyart 2023, 'What can be learnt with wide convolutional neural networks?'"
SECONDS = 30
PATCHES, DEPTH = 2, 2
SCALES = (1, 2)  # patches a mode or a target lives on: the effective dimension, since a patch is a circle


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Count] = 6
    """draws of the training inputs"""
    grid: Annotated[int, Range(64, 2048)] = 512
    """points a circle for the kernel's Fourier transform"""
    samples: Annotated[tuple[int, ...], Range(8)] = (64, 128, 256, 512, 1024)
    """training samples P, ascending"""
    test: Annotated[int, Count] = 200
    """test points"""

    @classmethod
    def paper(cls) -> Config:
        """A finer transform, more samples."""
        return cls(seeds=20, grid=1024, samples=(64, 128, 256, 512, 1024, 2048, 4096))

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(bool(np.all(np.diff(self.samples) > 0)), "samples", "ascending values")
        self.require(self.grid % 2 == 0, "grid", "even numbers")


class Result(NamedTuple):
    """``records['spectrum']``: eigenvalue against frequency by scale ``[T]``; ``records['learning']``: mean test error
    ``[1, P, seeds]`` by kernel and scale of the target; ``records['theory']``: that error against samples ``[T]``."""

    config: Config
    records: dict[str, Record]


def run(config: Config, study=in_memory) -> Result:
    """Spectrum by Fourier transform, learning curves by kernel regression averaged over random targets; in float64."""
    with jax.enable_x64(True):
        records = {"spectrum": spectrum(config), "learning": learning(config, study), "theory": theory(config)}
        return Result(config, records)


def patch_overlap(angle):
    """``(1 + cos(angle))/2``: points on a circle, with a first-layer bias, without which half the modes vanish."""
    return 0.5 * (1 + jnp.cos(angle))


def transform(config: Config, kernel) -> np.ndarray:
    """Eigenvalues ``[grid, grid]`` of a translation-invariant ``kernel(difference [..., PATCHES])``, by frequency."""
    angle = 2 * jnp.pi * jnp.arange(config.grid) / config.grid
    values = jax.jit(kernel)(jnp.stack(jnp.meshgrid(*[angle] * PATCHES, indexing="ij"), axis=-1))
    return np.maximum(np.fft.fftn(np.asarray(values)).real / config.grid**PATCHES, 1e-16)


def spectrum(config: Config) -> Record:
    """Eigenvalues at ``(k, 0)`` and ``(k, k)``: modes on one patch and on two."""
    eigenvalues = transform(config, lambda difference: student_kernel(difference, "convolutional"))
    k = np.arange(1, config.grid // 12 + 1)
    nothing = np.zeros_like(k)
    values = {f"scale {d}": eigenvalues[tuple(k if i < d else nothing for i in range(PATCHES))] for d in SCALES}
    return Record(k, k.astype(float), values)


def target_kernel(difference: jax.Array, scale: int) -> jax.Array:
    """Covariance of a random target with ``nu_t = 1/2`` on ``scale`` neighbouring patches, averaged over them.

    ``exp(-r)`` with r the chord length over a group of patches, averaged over the disjoint groups.
    """
    chord = 4 * jnp.sin(difference / 2) ** 2  # squared
    group = chord.reshape(*chord.shape[:-1], PATCHES // scale, scale).sum(-1)
    return jnp.mean(jnp.exp(-jnp.sqrt(group + 1e-24)), -1)


def student_kernel(difference: jax.Array, name: str) -> jax.Array:
    """The convolutional kernel, or the fully connected one of the same depth on all patches together."""
    overlaps = patch_overlap(difference)
    if name == "convolutional":
        return hierarchical_ntk(overlaps, DEPTH)
    sigma = theta = jnp.mean(overlaps, -1)
    for _ in range(DEPTH):
        k1, k0 = arc_cosine(sigma)
        sigma, theta = k1, k1 + theta * k0
    return theta


def learning(config: Config, study) -> Record:
    """Test error of ridgeless regression, averaged exactly over Gaussian targets of each scale."""
    key = jax.random.key(config.seed)

    @jax.jit
    def error(train, test):
        near, far = train[:, None] - train[None], test[:, None] - train[None]
        results = {}
        for name in ("convolutional", "fully connected"):
            gram = student_kernel(near, name) + 1e-10 * jnp.eye(len(train))
            weights = jnp.linalg.solve(gram, student_kernel(far, name).T)  # [P, test]
            for scale in SCALES:
                own = target_kernel(jnp.zeros(PATCHES), scale)
                cross = jnp.sum(weights * target_kernel(far, scale).T, 0)
                spread = jnp.sum(weights * (target_kernel(near, scale) @ weights), 0)
                results[f"{name}, scale {scale}"] = jnp.mean(own - 2 * cross + spread) / own
        return results

    def draw(lane):
        shape = (config.samples[-1] + config.test, PATCHES)
        angle = 2 * jnp.pi * jax.random.uniform(jax.random.fold_in(key, lane.seed), shape)
        return jax.device_get(error(angle[: lane.samples], angle[-config.test :]))

    axes, drawn = {"samples": config.samples, "seed": range(config.seeds)}, Observable.of_view(lambda view: view.params)
    return study(axes, draw, make=None, read=drawn, steps=0, data=(), label="learning")


def theory(config: Config) -> Record:
    """Learning curves from the spectra alone: kernel ridge regression's eigenframework, to far more samples."""
    samples = np.geomspace(config.samples[0], config.grid**2 / 64, 13)
    student = transform(config, lambda d: student_kernel(d, "convolutional")).ravel()
    values = {}
    for scale in SCALES:
        power = transform(config, lambda d, scale=scale: target_kernel(d, scale)).ravel()
        risk = [random_feature_risk(student, power, n, 1e12, 1e-10).test / power.sum() for n in samples]
        values[f"convolutional, scale {scale}"] = np.array([float(value) for value in risk])
    return Record(np.arange(len(samples)), samples, values)


def claims(result: Result) -> list[Claim]:
    cfg, out = result.config, []
    spectra = result.records["spectrum"]
    window = slice(11, None)  # k >= 12
    source = "Cagnetta et al. 2023, spectrum by scale"
    for scale in SCALES:
        name = f"eigenvalues of modes on {scale} patches fall as k^-p: p"
        if len(spectra.time[window]) < 3:
            out.append(Claim.not_applicable(name, source, "needs a grid of 168 or more"))
            continue
        fit = power_law(spectra.time[window], spectra.values[f"scale {scale}"][window])
        out.append(Claim.close(name, source, -fit.exponent, 1 + scale, 0.15, relative=True))
    if len(cfg.samples) < 4:
        source = "Cagnetta et al. 2023, adaptation to scale"
        return [*out, Claim.not_applicable("learning curves", source, "needs four sample counts")]
    return [*out, *learning_claims(result)]


def learning_claims(result: Result) -> list[Claim]:
    cfg, learned, theory = result.config, result.records["learning"].values, result.records["theory"]
    out, slopes = [], {name: power_law(cfg.samples[1:], values[0, 1:].T) for name, values in learned.items()}
    for scale in SCALES:
        name = f"convolutional, scale {scale}"
        at = np.exp(np.interp(np.log(cfg.samples), np.log(theory.time), np.log(theory.values[name])))
        error = np.abs(learned[name][0].mean(-1) / at - 1)
        title = f"target on {scale} patches: learning curve against its eigenframework, largest relative deviation"
        out.append(Claim.at_most(title, "Favero et al. 2021; Cagnetta et al. 2023, learning curves", error.max(), 0.1))
        late = slice(len(theory.time) - 5, None)
        fit = power_law(theory.time[late], theory.values[name][late])
        title = f"target on {scale} patches: error falls as P^-beta at many samples (eigenframework): beta"
        note = f"measured up to P = {cfg.samples[-1]}: {slopes[name]}"
        source = "Cagnetta et al. 2023, adaptation to scale"
        out.append(Claim.close(title, source, -fit.exponent, 1 / scale, 0.15, relative=True, note=note))
    gap = slopes["fully connected, scale 1"].exponent - slopes["convolutional, scale 1"].exponent
    name = "target on one patch: beta(convolutional) - beta(fully connected), measured"
    return [*out, Claim.at_least(name, "Favero et al. 2021; Cagnetta et al. 2023, learning curves", gap, 0.15)]


def figure(result: Result):
    """The spectrum by scale and the learning curves by the target's scale, with their predicted slopes."""
    cfg, spectra = result.config, result.records["spectrum"]
    fig, (modes, curves) = new_figure(1, 2)
    samples = np.asarray(cfg.samples, float)
    for i, scale in enumerate(SCALES):
        values = np.asarray(spectra.values[f"scale {scale}"])
        modes.plot(spectra.time, values, label="1 patch" if scale == 1 else f"{scale} patches", **measured_style(i, 3))
        middle = len(values) // 2
        modes.plot(spectra.time, values[middle] * (spectra.time / spectra.time[middle]) ** -(1.0 + scale), "k-", lw=1)
        local = np.exp(np.log(result.records["learning"].values[f"convolutional, scale {scale}"][0]).mean(-1))
        dense = np.exp(np.log(result.records["learning"].values[f"fully connected, scale {scale}"][0]).mean(-1))
        curves.plot(samples, local, label=f"target on {scale} patch{'es'[: 2 * (scale > 1)]}", **measured_style(i, 3))
        curves.plot(
            result.records["theory"].time, result.records["theory"].values[f"convolutional, scale {scale}"], "k-", lw=1
        )
        curves.plot(samples, dense, color="0.6", ls="--", lw=1, label="fully connected" if i == 0 else None)
    modes.set(xscale="log", yscale="log", xlabel="frequency k", ylabel="eigenvalue; lines: k^-(1 + d)")
    curves.set(xscale="log", yscale="log", xlabel="samples P", ylabel="test error; lines: eigenframework")
    modes.legend()
    curves.legend()
    return fig


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
