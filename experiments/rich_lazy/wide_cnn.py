"""What can be learnt with wide convolutional networks? (Cagnetta, Favero & Wyart 2023).

The tangent kernel of a deep CNN with non-overlapping filters, on inputs of four patches, each a point on a circle, is
diagonal in products of Fourier modes; a mode living on s neighbouring patches (s = 1, 2, 4) has an eigenvalue
``|k|^(-2 nu - s)`` with nu = 1/2: the wider a mode's support, the faster they fall. Hence functions of few patches are
learnt fast: with P samples the modes above an eigenvalue ``P^(-1 - 2 nu/4)`` are learnt, most of them of the widest
support, and what is left of a target of smoothness ``nu_t`` on s patches falls as ``P^(-beta)``,

    beta = (2 nu_t/s) (1 + 2 nu/4) / (1 + 2 nu/s),

set by the target's s, and not by the input alone. A fully connected kernel learns all of them as slowly as one of four
patches, ``beta = 2 nu_t/4``. ``2 nu_t/s``, the rate of a network that sees s patches and no more, is a rival.

Run time: about 30 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import config
from dynamics.config import Count, Range
from dynamics.evolve import study as in_memory
from dynamics.runs.figures import measured_style, new_figure, rival_style
from dynamics.statistics import power_law
from dynamics.theory.hierarchical import arc_cosine, hierarchical_ntk
from dynamics.theory.random_features import random_feature_risk
from dynamics.types import Claim, Observable, Record

SOURCE = "Cagnetta, Favero & Wyart 2023, 'What can be learnt with wide convolutional neural networks?'"
SECONDS = 30
PATCHES, DEPTH = 4, 3
SCALES = (1, 2, 4)  # patches a mode or a target lives on: the effective dimension, since a patch is a circle
NEXT = {1: 2, 2: 1, 4: 2}  # the nearest other scale, a rival
STUDENTS = ("convolutional", "fully connected")
MANY = 2048  # samples from which the eigenframework's curves are fitted


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Count] = 6
    """draws of the training inputs"""
    grid: Annotated[int, Range(128, 16384)] = 1024
    """points a circle for the Fourier transform of modes on one patch; 1/8 of it for two, 48 for four"""
    samples: Annotated[tuple[int, ...], Range(8)] = (64, 128, 256, 512, 1024)
    """training samples P, ascending"""
    test: Annotated[int, Count] = 200
    """test points"""

    @classmethod
    def large(cls) -> Config:
        """More draws, samples and modes.

        The paper's networks have filters of 2 or 3 pixels, its kernels are regressed with up to about 10^4 samples.
        Needs 8 GB and about four minutes on two cores.
        """
        return cls(seeds=20, grid=2048, samples=(64, 128, 256, 512, 1024, 2048, 4096))

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(bool(np.all(np.diff(self.samples) > 0)), "samples", "ascending values")
        self.require(self.grid % 64 == 0, "grid", "multiples of 64")


class Result(NamedTuple):
    """By student and scale: ``records['spectrum']``, eigenvalue against frequency ``[T]``, NaN beyond the transform;
    ``records['learning']``, mean test error ``[1, P, seeds]``; ``records['theory']``, that error against samples
    ``[T]``."""

    config: Config
    records: dict[str, Record]


def run(config: Config, study=in_memory) -> Result:
    """Spectrum by Fourier transform, learning curves by kernel regression averaged over random targets; in float64."""
    with jax.enable_x64(True):
        students = {
            (name, scale): transform(config, functools.partial(student_kernel, name=name), scale)
            for name in STUDENTS
            for scale in SCALES
        }
        records = {"spectrum": spectrum(config, students), "learning": learning(config, study)}
        return Result(config, records | {"theory": theory(config, students)})


def transform(config: Config, kernel, scale: int) -> np.ndarray:
    """Eigenvalues ``[grid/2 + 1] * scale`` of modes on the first patches, by frequency.

    ``kernel(difference [..., PATCHES])`` is even in each difference: a cosine transform of the first patches, a mean
    over the others (on nodes that cluster where the kernel is not smooth).
    """
    grid = {1: config.grid, 2: max(config.grid // 8, 32), 4: 48}[scale]
    nodes, weights = np.polynomial.legendre.leggauss(12)
    u = (nodes + 1) / 2
    axes = [np.pi * np.arange(grid // 2 + 1) / (grid // 2)] * scale + [np.pi * u**3] * (PATCHES - scale)
    values = np.asarray(jax.jit(kernel)(jnp.stack(jnp.meshgrid(*axes, indexing="ij"), axis=-1)))
    for _ in range(PATCHES - scale):
        values = values @ (1.5 * weights * u**2)
    from scipy.fft import dctn

    return dctn(values, type=1) / grid**scale


def spectrum(config: Config, students: dict) -> Record:
    """Eigenvalues at ``(k, 0, 0, 0)``, ``(k, k, 0, 0)`` and ``(k, k, k, k)``: modes on one, two and four patches."""
    k, values = np.arange(1, config.grid // 2 + 1), {}
    for (name, scale), found in students.items():
        along = found[(np.arange(1, len(found)),) * scale]
        values[f"{name}, scale {scale}"] = np.pad(along, (0, len(k) - len(along)), constant_values=np.nan)
    return Record(k, k.astype(float), values)


def target_kernel(difference: jax.Array, scale: int) -> jax.Array:
    """Covariance of a random target with ``nu_t = 1/2`` on ``scale`` neighbouring patches, averaged over them.

    ``exp(-r)`` with r the chord length over a group of patches, averaged over the disjoint groups.
    """
    chord = 4 * jnp.sin(difference / 2) ** 2  # squared
    group = chord.reshape(*chord.shape[:-1], PATCHES // scale, scale).sum(-1)
    return jnp.mean(jnp.exp(-jnp.sqrt(group + 1e-24)), -1)


def student_kernel(difference: jax.Array, name: str) -> jax.Array:
    """The convolutional kernel, or the fully connected one of the same depth on all patches together.

    A patch has the overlap ``(1 + cos)/2``: a first-layer bias, without which half the modes vanish.
    """
    overlaps = 0.5 * (1 + jnp.cos(difference))
    if name == "convolutional":
        return hierarchical_ntk(overlaps, DEPTH)
    sigma = theta = jnp.mean(overlaps, -1)
    for _ in range(DEPTH):
        k1, k0 = arc_cosine(sigma)
        sigma, theta = k1, k1 + theta * k0
    return theta


def learning(config: Config, study) -> Record:
    """Test error of ridgeless regression, averaged exactly over Gaussian targets of each scale."""
    key, most = jax.random.key(config.seed), config.samples[-1]

    @jax.jit
    def errors(x):
        difference = x[:, None] - x[None, :most]  # training inputs, then test ones
        students = {name: student_kernel(difference, name) for name in STUDENTS}
        targets = {scale: target_kernel(difference, scale) for scale in SCALES}
        results = {count: {} for count in config.samples}
        for count, found in results.items():
            for name, kernel in students.items():
                gram = kernel[:count, :count] + 1e-10 * jnp.eye(count)
                weights = jnp.linalg.solve(gram, kernel[most:, :count].T)  # [P, test]
                for scale, target in targets.items():
                    cross = jnp.sum(weights * target[most:, :count].T, 0)
                    spread = jnp.sum(weights * (target[:count, :count] @ weights), 0)
                    own = target[0, 0]
                    found[f"{name}, scale {scale}"] = jnp.mean(own - 2 * cross + spread) / own
        return results

    @functools.cache
    def of_seed(seed: int):
        shape = (most + config.test, PATCHES)
        return jax.device_get(errors(2 * jnp.pi * jax.random.uniform(jax.random.fold_in(key, seed), shape)))

    axes, drawn = {"samples": config.samples, "seed": range(config.seeds)}, Observable.of_view(lambda view: view.params)
    return study(axes, lambda lane: of_seed(lane.seed)[lane.samples], None, drawn, steps=0, data=(), label="learning")


def modes(transformed: dict) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalue and number of every mode: on one patch, on two neighbours, and on what no pair of neighbours holds.

    ``transformed`` is ``{scale: its transform}``.
    """
    eigenvalues, counts = [], []
    for scale, found in transformed.items():
        k = np.indices(found.shape)
        on = k > 0
        kept = on.all(0) if scale < PATCHES else (on[:2].any(0) & on[2:].any(0)) | ~on.any(0)
        signs = np.where(k == len(found) - 1, 1, 2.0) ** on  # k and -k, the same at the highest frequency
        eigenvalues.append(found[kept])
        counts.append((PATCHES // scale * signs.prod(0))[kept])
    return np.maximum(np.concatenate(eigenvalues), 1e-18), np.concatenate(counts)


@jax.jit
def left(eigenvalues, powers, counts, samples):
    """Test error ``[scales]`` of ridgeless regression on targets of ``powers [scales, modes]``."""

    def error(power):
        return random_feature_risk(eigenvalues, power, samples, jnp.inf, 1e-10, multiplicities=counts).test

    return jax.vmap(error)(powers)


def theory(config: Config, students: dict) -> Record:
    """Learning curves from the spectra alone: kernel ridge regression's eigenframework, to far more samples."""
    samples = np.append(np.geomspace(config.samples[0], MANY, 6)[:-1], MANY * 2.0 ** np.arange(4))
    targets, values = {}, {}
    for of in SCALES:
        target = functools.partial(target_kernel, scale=of)
        targets[of] = modes({scale: transform(config, target, scale) for scale in SCALES})
    for name in STUDENTS:
        student, counts = modes({scale: students[name, scale] for scale in SCALES})
        powers = np.stack([power / (power @ counts) for power, _ in targets.values()])
        risk = np.stack([left(student, powers, counts, n) for n in samples])
        values |= {f"{name}, scale {scale}": risk[:, i] for i, scale in enumerate(SCALES)}
    return Record(np.arange(len(samples)), samples, values)


def rate(scale: int) -> float:
    """beta of a target on ``scale`` patches with ``nu = nu_t = 1/2``, in the module's docstring."""
    return (1 / scale) * (1 + 1 / PATCHES) / (1 + 1 / scale)


def claims(result: Result) -> list[Claim]:
    """Spectra and asymptotic rates have no draws; learning curves are paired with their rivals draw by draw."""
    cfg, out, found = result.config, [], {}
    spectra, source = result.records["spectrum"], "Cagnetta et al. 2023, spectrum by scale"
    for scale, window in zip(SCALES, (slice(11, 60), slice(5, 20), slice(2, 8))):
        for student in STUDENTS:
            values = np.abs(spectra.values[f"{student}, scale {scale}"][window])
            seen = np.isfinite(values)
            enough = seen.sum() == window.stop - window.start
            found[student, scale] = -power_law(spectra.time[window], values).exponent if enough else np.nan
    for scale in SCALES:
        name = f"eigenvalues of modes on {scale} patches fall as k^-p: p"
        if cfg.grid < 1024:
            out.append(Claim.not_applicable(name, source, "needs a grid of 1024 or more"))
            continue
        rivals = {f"as modes on {NEXT[scale]}": found["convolutional", NEXT[scale]]}
        if scale < PATCHES:
            rivals["fully connected"] = found["fully connected", scale]
        out.append(
            Claim.close(name, source, found["convolutional", scale], 1 + scale, 0.15, relative=True, rivals=rivals)
        )
    return [*out, *rate_claims(result), *learning_claims(result)]


def rate_claims(result: Result) -> list[Claim]:
    """The eigenframework's exponents at many samples."""
    cfg, theory, out = result.config, result.records["theory"], []
    late, source = theory.time >= 0.99 * MANY, "Cagnetta et al. 2023, adaptation to scale"
    found = {name: -power_law(theory.time[late], values[late]).exponent for name, values in theory.values.items()}
    for scale in SCALES:
        title = f"target on {scale} patches: error falls as P^-beta at many samples (eigenframework): beta"
        if cfg.grid < 1024:
            out.append(Claim.not_applicable(title, source, "needs a grid of 1024 or more"))
            continue
        rivals = {f"as a target on {NEXT[scale]}": found[f"convolutional, scale {NEXT[scale]}"]}
        if scale < PATCHES:
            rivals = {"2 nu_t/s": 1 / scale, "fully connected": found[f"fully connected, scale {scale}"]}
        measured = found[f"convolutional, scale {scale}"]
        out.append(Claim.close(title, source, measured, rate(scale), 0.1, relative=True, rivals=rivals))
    return out


def learning_claims(result: Result) -> list[Claim]:
    """Level and slope of the measured curves against the eigenframework's at the same samples, and scale by scale."""
    cfg, learned, theory = result.config, result.records["learning"].values, result.records["theory"]
    source, out, slopes = "Favero et al. 2021; Cagnetta et al. 2023, learning curves", [], {}
    if len(cfg.samples) < 4 or cfg.seeds < 2:
        return [Claim.not_applicable("learning curves", source, "needs two seeds and four sample counts")]

    def predicted(name: str) -> np.ndarray:
        return np.interp(np.log(cfg.samples), np.log(theory.time), np.log(theory.values[name]))

    def slope(log_error: np.ndarray) -> np.ndarray:
        return np.asarray(-np.polyfit(np.log(cfg.samples), log_error, 1)[0])

    for scale in SCALES:
        name, title = f"convolutional, scale {scale}", f"target on {scale} patches: measured error"
        log_error = np.log(learned[name][0])  # [P, seeds]
        slopes[scale] = slope(log_error)
        others = {f"of a target on {s}": f"convolutional, scale {s}" for s in SCALES if s != scale}
        if scale < PATCHES:  # functions of all patches are learnt by both
            others["fully connected"] = f"fully connected, scale {scale}"
        level = {key: predicted(other).mean() for key, other in others.items()}
        text = f"{title}, mean logarithm, as in its eigenframework"
        out.append(Claim.close(text, source, log_error.mean(0), predicted(name).mean(), 0.05, rivals=level))
        rivals = {key: slope(predicted(other)) for key, other in others.items()}
        text = f"{title} falls as P^-beta up to {cfg.samples[-1]}, beta as in its eigenframework"
        out.append(Claim.close(text, source, slopes[scale], slope(predicted(name)), 0.03, rivals=rivals))
    gap = slopes[1] - slope(np.log(learned["fully connected, scale 1"][0]))
    name = "target on one patch: beta(convolutional) - beta(fully connected), measured"
    out.append(Claim.at_least(name, source, gap, 0.15, rivals={"locality has no effect": 0.0}))
    for few, many in itertools.pairwise(SCALES):
        name = f"beta(target on {few}) - beta(target on {many}), measured"
        rivals = {"scale has no effect": 0.0}
        out.append(Claim.at_least(name, source, slopes[few] - slopes[many], 0.05, rivals=rivals))
    return out


def figure(result: Result):
    """The spectrum by scale and the learning curves by the target's scale, over their predictions."""
    cfg, spectra, theory = result.config, result.records["spectrum"], result.records["theory"]
    fig, (modes_at, curves) = new_figure(1, 2)
    for i, scale in enumerate(SCALES):
        name, style = f"scale {scale}", measured_style(i, 3)
        values = np.abs(spectra.values[f"convolutional, {name}"])
        seen = np.isfinite(values) & (spectra.time <= {1: 100, 2: 20, 4: 8}[scale])
        k, values = spectra.time[seen], values[seen]
        label = "1 patch" if scale == 1 else f"{scale} patches"
        modes_at.plot(k, values, label=label, **style | {"ms": 4})
        middle = len(values) // 2
        modes_at.plot(k, values[middle] * (k / k[middle]) ** -(1.0 + scale), "k-", lw=1)
        error = np.exp(np.log(result.records["learning"].values[f"convolutional, {name}"][0]).mean(-1))
        curves.plot(cfg.samples, error, label=f"target on {label}", **style)
        curves.plot(theory.time, theory.values[f"convolutional, {name}"], "k-", lw=1)
        dense = theory.values[f"fully connected, {name}"]
        curves.plot(theory.time, dense, label="fully connected" if i == 0 else None, **rival_style())
        naive = theory.values[f"convolutional, {name}"][-1] * (theory.time / theory.time[-1]) ** -(1.0 / scale)
        if scale == 1:
            curves.plot(theory.time[-5:], naive[-5:], label="P^(-2 nu_t/s)", **rival_style(1))
    modes_at.set(xscale="log", yscale="log", xlabel="frequency k", ylabel="eigenvalue; lines: k^-(1 + s)")
    curves.set(xscale="log", yscale="log", xlabel="samples P", ylabel="test error; lines: eigenframework")
    modes_at.legend(fontsize=8)
    curves.legend(fontsize=7)
    return fig


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
