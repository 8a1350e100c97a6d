"""Infinitely wide and deep: the activation picks the classifier (Radhakrishnan, Belkin & Uhler 2023).

The tangent kernel of ever deeper, infinitely wide networks, used as an interpolating classifier on the positive part
of a sphere, becomes one of three classical rules by the dual activation ``phi^``: majority vote where ``phi^(0) > 0``;
the nearest neighbour where ``phi^(0) = phi^'(0) = 0``; and otherwise the singular kernel ``|x - z|^-alpha``, with
``alpha = -2 log phi^'(0) / log phi^'(1)``. Only the last can be consistent: with alpha the dimension of the data its
error falls (slowly) to the Bayes error as samples grow, while one neighbour errs at ``2 eta (1 - eta)`` under label
noise eta.

Run time: about 60 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Annotated, NamedTuple

import jax
import numpy as np

from dynamics import config
from dynamics.config import Count, Range
from dynamics.evolve import study as in_memory
from dynamics.runs.figures import measured_style, new_figure, rival_style, ticks_at
from dynamics.statistics import power_law
from dynamics.theory.infinite_depth import dual_with_singularity, limiting_classifier, log_deep_ntk
from dynamics.types import Claim, Observable, Record

SOURCE = "Radhakrishnan, Belkin & Uhler 2023, 'Wide and deep neural networks achieve consistency for classification'"
SECONDS = 60
OTHERS = {"half the exponent": 0.5, "twice the exponent": 2.0}  # rivals of the singular rule
NEAREST = 40  # the nearest-neighbour kernel falls as exp(-2^L): deeper ones leave the range of float64 logarithms


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Count] = 48
    """draws of training and test points"""
    depth: Annotated[tuple[int, ...], Count] = (1, 10, 100, 1000, 10000)
    """hidden layers L, ascending"""
    samples: Annotated[tuple[int, ...], Range(8)] = (64, 128, 256, 512, 1024)
    """training samples n, ascending"""
    dim: Annotated[int, Range(2)] = 2
    """dimension of the sphere, and the singularity alpha of the consistent network"""
    noise: Annotated[float, Range(0.0, 0.5, open_high=True)] = 0.15
    """label noise eta: the Bayes error"""
    test: Annotated[int, Count] = 1000
    """test points"""

    @classmethod
    def large(cls) -> Config:
        """More samples, deeper networks: the paper proves limits and draws them for a few points.

        Six minutes of a core.
        """
        return cls(depth=(1, 10, 100, 1000, 10_000, 100_000), samples=(64, 128, 256, 512, 1024, 2048))

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("depth", "samples"):
            self.require(bool(np.all(np.diff(getattr(self, field)) > 0)), field, "ascending values")


class Result(NamedTuple):
    """``records['depth']``: agreement ``[1, depths, seeds]`` of each network with each rule, 'NETWORK, RULE';
    ``records['samples']``: test error of the deepest networks ``[1, samples, seeds]``; ``records['kernel']``: kernels
    against distance ``[T]``."""

    config: Config
    records: dict[str, Record]


def duals(config: Config) -> dict[str, tuple[float, ...]]:
    """Dual activations that end at each rule."""
    return {
        "nearest": (0.0, 0.0, 1.0),
        "singular": dual_with_singularity(float(config.dim)),
        "majority": (0.2, 0.2, 0.3, 0.3),
    }


def run(config: Config, study=in_memory) -> Result:
    """Interpolates with kernels of growing depth, in float64: deep kernels span hundreds of orders of magnitude."""
    key, most, deepest = jax.random.key(config.seed), config.samples[-1], config.depth[-1]
    middle = (config.samples[len(config.samples) // 2] - 1) | 1  # odd: a majority vote cannot tie

    @functools.cache
    def kernel(name: str, depth: int) -> Kernel:
        return tabulate(duals(config)[name], min(depth, NEAREST) if name == "nearest" else depth)

    @functools.cache
    def agreement(seed: int) -> dict:
        x, y, _ = draw(config, jax.random.fold_in(key, seed), most)
        x, y, test = x[:middle], y[:middle], x[most:]
        rules = {rule: limiting_rule(rule, config.dim, x, y, test) for rule in (*duals(config), *OTHERS)}
        gaps, found = log_gaps(x, test), {}
        for depth in config.depth:
            networks = {name: classify(kernel(name, depth), *gaps, y) for name in duals(config)}
            pairs = itertools.product(networks, rules)
            found[depth] = {f"{name}, {rule}": np.mean(networks[name] == rules[rule]) for name, rule in pairs}
        return found

    @functools.cache
    def errors(seed: int) -> dict:
        x, y, clean = draw(config, jax.random.fold_in(key, seed), most)
        gaps = log_gaps(x[:most], x[most:])

        def error(name: str, n: int) -> float:
            found = classify(kernel(name, deepest), gaps[0][:n, :n], gaps[1][:, :n], y[:n])
            return risk(config, found, clean[most:])

        return {n: {name: error(name, n) for name in duals(config)} for n in config.samples}

    def read(label, draw, **axes) -> Record:
        drawn = Observable.of_view(lambda view: view.params)
        return study(axes | {"seed": range(config.seeds)}, draw, None, drawn, steps=0, data=(), label=label)

    with jax.enable_x64(True):
        records = {
            "depth": read("depth", lambda lane: agreement(lane.seed)[lane.depth], depth=config.depth),
            "samples": read("samples", lambda lane: errors(lane.seed)[lane.samples], samples=config.samples),
            "kernel": kernel_against_distance(config),
        }
    return Result(config, records)


def draw(config: Config, key, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points on the positive sphere, noisy labels, and the clean labels ``sign(x_1 - 0.85 x_2)`` (the Bayes rule)."""
    kx, ke = jax.random.split(key)
    x = np.abs(np.asarray(jax.random.normal(kx, (most + config.test, config.dim + 1))))
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    clean = np.where(x[:, 0] > 0.85 * x[:, 1], 1.0, -1.0)
    flips = np.asarray(jax.random.bernoulli(ke, config.noise, (len(x),)))
    return x, np.where(flips, -clean, clean), clean


class Kernel(NamedTuple):
    """``log Theta_L`` as a table over ``log(1 - t)``: a deep recursion is run on 2000 overlaps, not on every pair."""

    log_gap: np.ndarray
    log_theta: np.ndarray
    top: float

    def __call__(self, log_gap: np.ndarray) -> np.ndarray:
        """``log Theta_L`` by linear interpolation, relative to ``log Theta_L(1)``."""
        return np.interp(log_gap, self.log_gap, self.log_theta) - self.top


def tabulate(dual: tuple[float, ...], depth: int) -> Kernel:
    log_gap = np.linspace(np.log(1e-15), -1e-9, 2000)
    log_theta = log_deep_ntk(-np.expm1(log_gap), dual, depth)
    return Kernel(log_gap, np.asarray(log_theta), float(log_deep_ntk(1.0, dual, depth)))


def log_gaps(x: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``log(1 - t)`` of the overlaps among the training points, and of the test points with them."""
    train, cross = (np.log(np.maximum(1 - points @ x.T, 1e-15)) for points in (x, test))
    return train, cross


def classify(kernel: Kernel, train: np.ndarray, cross: np.ndarray, y: np.ndarray) -> np.ndarray:
    """``sign(y K^-1 k(x))`` from ``log_gaps``; a positive factor of each ``k(x)`` changes no sign."""
    gram = np.exp(kernel(train))
    np.fill_diagonal(gram, 1.0 + 1e-9)  # shallow polynomial kernels have finite rank
    log_cross = kernel(cross)
    near = np.exp(log_cross - log_cross.max(axis=1, keepdims=True))
    return np.where(near @ np.linalg.solve(gram, y) > 0, 1.0, -1.0)


def risk(config: Config, found: np.ndarray, clean: np.ndarray) -> float:
    """Test error averaged over the test points' label noise: ``eta + (1 - 2 eta) P(found is not the Bayes label)``."""
    return config.noise + (1 - 2 * config.noise) * float(np.mean(found != clean))


def limiting_rule(name: str, alpha: float, x: np.ndarray, y: np.ndarray, test: np.ndarray) -> np.ndarray:
    """The classifier at infinite depth, or one of ``OTHERS``: with another exponent."""
    alpha *= OTHERS.get(name, 1.0)
    distance = np.linalg.norm(test[:, None] - x[None], axis=-1)
    if name == "nearest":
        return y[np.argmin(distance, axis=1)]
    if name == "majority":
        return np.full(len(test), 1.0 if y.sum() > 0 else -1.0)
    return np.where((distance**-alpha) @ y > 0, 1.0, -1.0)


def kernel_against_distance(config: Config) -> Record:
    """``Theta_L`` against distance: of the singular network, shallow and deepest, and of the majority's."""
    distance, (shallow, *_, deepest) = np.geomspace(0.05, 0.5, 20), (*config.depth, config.depth[-1])
    values = {"distance": distance}
    for label, name, depth in (
        ("theta", "singular", deepest),
        ("shallow", "singular", shallow),
        ("majority", "majority", deepest),
    ):
        log_theta = np.asarray(log_deep_ntk(1 - distance**2 / 2, duals(config)[name], depth))
        values[label] = np.exp(log_theta - log_theta[-1])
    return Record(np.arange(len(distance)), distance, values)


def claims(result: Result) -> list[Claim]:
    """The rivals of each network's limit are the rules of the others, and the shallowest network."""
    cfg, out, source = result.config, [], "Radhakrishnan et al. 2023, taxonomy"
    for name, dual in duals(cfg).items():
        agreement = result.records["depth"].values
        others = [rule for rule in duals(cfg) if rule != name] + (list(OTHERS) if name == "singular" else [])
        rivals = {rule: agreement[f"{name}, {rule}"][0, -1] for rule in others}
        rivals[f"depth {cfg.depth[0]}"] = agreement[f"{name}, {name}"][0, 0]
        title = f"{limiting_classifier(dual)}: deepest network agrees with its limit"
        out.append(Claim.at_least(title, source, agreement[f"{name}, {name}"][0, -1], 0.98, rivals=rivals))
    kernel = result.records["kernel"].values
    slopes = {name: -power_law(kernel["distance"], kernel[name]).exponent for name in ("theta", "shallow", "majority")}
    title, rivals = "singular: Theta ~ |x - z|^-alpha: alpha", {"majority's network": slopes["majority"]}
    rivals[f"depth {cfg.depth[0]}"] = slopes["shallow"]
    out.append(Claim.close(title, source, slopes["theta"], cfg.dim, 0.1, relative=True, rivals=rivals))
    if cfg.depth[-1] < 10_000 or len(cfg.depth) < 2:
        out = [Claim.not_applicable(claim.name, source, "needs depths up to 10000") for claim in out]
    return [*out, *consistency_claims(result)]


def consistency_claims(result: Result) -> list[Claim]:
    cfg, errors = result.config, {name: value[0] for name, value in result.records["samples"].values.items()}
    names = (
        "singular: paired fall of the test error from fewest to most samples",
        "nearest: test error - 2 eta (1 - eta) at most samples",
        "at most samples: error of the singular network over the nearest neighbour's",
    )
    source, cover = "Radhakrishnan et al. 2023, consistency", "Cover & Hart 1967"
    large = cfg.depth[-1] >= 10_000 and len(cfg.samples) > 2 and cfg.samples[-1] >= 512 and cfg.noise >= 0.05
    if not large or cfg.seeds < 2:
        note = "needs two seeds, a depth of 10000, three sample counts up to 512 or more, and label noise of 0.05"
        return [Claim.not_applicable(name, of, note) for name, of in zip(names, (source, cover, source))]
    singular, nearest, majority = (errors[name] for name in ("singular", "nearest", "majority"))
    excess = singular.mean(-1) - cfg.noise
    note = f"excess over Bayes {excess[0]:.3f} -> {excess[-1]:.3f}"
    limit = 2 * cfg.noise * (1 - cfg.noise)
    one = {"Bayes error": cfg.noise - limit, "the singular network's": singular[-1] - limit}
    worse = {"no better than a neighbour": nearest[-1] / nearest[-1], "majority": majority[-1] / nearest[-1]}
    fall = {"samples have no effect": 0.0}
    return [
        Claim.at_least(names[0], source, singular[0] - singular[-1], 0.0, rivals=fall, note=note),
        Claim.close(names[1], cover, nearest[-1] - limit, 0.0, 0.03, rivals=one),
        Claim.at_most(names[2], source, singular[-1] / nearest[-1], 0.95, rivals=worse),
    ]


def figure(result: Result):
    """Agreement with the limit against depth, test error against samples, and the kernel's singularity."""
    cfg, records = result.config, result.records
    fig, (depth, samples, kernel) = new_figure(1, 3, width=3.8)
    for i, name in enumerate(duals(cfg)):
        style = measured_style(i, 3) | {"linestyle": "-"}
        agreement = records["depth"].values
        depth.plot(cfg.depth, agreement[f"{name}, {name}"][0].mean(-1), label=name, **style)
        if name == "singular":
            for j, rule in enumerate(OTHERS):
                rival = agreement[f"singular, {rule}"][0].mean(-1)
                depth.plot(cfg.depth, rival, label=f"singular, {rule}", **rival_style(j))
        samples.plot(cfg.samples, records["samples"].values[name][0].mean(-1), label=name, **style)
    depth.set(xscale="log", xlabel="depth L", ylabel="agreement with the infinite-depth rule")
    samples.axhline(cfg.noise, color="black", ls="--", label="Bayes")
    samples.axhline(2 * cfg.noise * (1 - cfg.noise), color="black", ls=":", label="2 eta (1 - eta)")
    samples.set(xscale="log", xlabel="training samples n", ylabel="test error of the deepest networks")
    values = records["kernel"].values
    kernel.plot(values["distance"], values["theta"], label=f"L = {cfg.depth[-1]}", **measured_style(0))
    line = (values["distance"] / values["distance"][-1]) ** -float(cfg.dim)
    kernel.plot(values["distance"], line, "k-", label=f"|x - z|^-{cfg.dim}")
    kernel.set(xscale="log", yscale="log", xlabel="distance |x - z|", ylabel="Theta_L (scaled)")
    kernel.plot(values["distance"], values["shallow"], label=f"L = {cfg.depth[0]}", **rival_style())
    ticks_at(samples.xaxis, cfg.samples)
    ticks_at(kernel.xaxis, (0.05, 0.1, 0.2, 0.5))
    for ax, place in ((depth, "lower right"), (samples, (0.45, 0.42)), (kernel, "upper right")):
        ax.legend(fontsize=7, loc=place)
    return fig


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
