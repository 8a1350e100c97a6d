"""Infinitely wide networks on all 1797 digits (Arora et al. 2020; Canatar, Bordelon & Pehlevan 2021).

Kernel regression with the NTK of a five-layer ReLU network: every digit is predicted from all the others by
``f_i = y_i - (A^-1 y)_i / (A^-1)_ii``, ``A = K + ridge I``: one factorisation for 1797 fits. Beside it the network's
NNGP, a Gaussian and a linear kernel. With eigenvalues ``lam_i`` and target coefficients ``v_i`` on the digits,

    sum_i lam_i/(lam_i + kappa) + ridge/kappa = n,    E = sum_i (kappa v_i/(lam_i + kappa))^2 / (1 - sum_i L_i^2 / n)

predicts the learning curve, ``L_i = lam_i/(lam_i + kappa)``.

Run time: about 60 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import config, stax
from dynamics.config import Count, Positive, Range
from dynamics.evolve import study as in_memory
from dynamics.losses import accuracy
from dynamics.runs.figures import new_figure, ticks_at
from dynamics.tasks.images import digits
from dynamics.theory import predict
from dynamics.theory.random_features import random_feature_risk
from dynamics.types import Claim, Observable, Record

SOURCE = "Arora et al. 2020, 'Harnessing the power of infinitely wide deep nets on small-data tasks'"
SECONDS = 60
KERNELS = ("ntk", "nngp", "gaussian", "linear")


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Count] = 10
    """random training sets of each size"""
    layers: Annotated[int, Range(2, 1000)] = 5
    """layers of weights of the ReLU network"""
    samples: Annotated[tuple[int, ...], Range(2, 1700)] = (25, 50, 100, 200, 400, 800)
    """training samples n of the learning curves, ascending"""
    ridge: Annotated[float, Positive] = 1e-4
    """added to the kernel's diagonal, in units of its mean"""

    @classmethod
    def paper(cls) -> Config:
        """More training sets."""
        return cls(seeds=50)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(bool(np.all(np.diff(self.samples) > 0)), "samples", "ascending values")


class Result(NamedTuple):
    """``records[kernel]``: ``held_out`` (leave-one-out accuracy), seconds for the ``kernel`` and the ``fit``, ``[1]``;
    ``score [1, n, seeds]`` on digits not trained on, ``error [1, n, seeds]`` (squared, over all), ``predicted [1, n]``.
    """

    config: Config
    records: dict[str, Record]


def run(config: Config, study=in_memory) -> Result:
    """All digits at once, then subsets; regression is solved, not trained."""
    data = digits().train
    x, y = jnp.asarray(data.x), jnp.asarray(data.y)
    return Result(config, {name: run_kernel(config, name, x, y, study) for name in KERNELS})


def kernel_of(config: Config, name: str) -> Callable[[jax.Array], jax.Array]:
    """``x [n, d] -> [n, n]``; the Gaussian kernel's width is the median distance."""
    if name == "linear":
        return lambda x: x @ x.T
    if name == "gaussian":
        return gaussian
    hidden = [layer for _ in range(config.layers - 1) for layer in (stax.Dense(1, 2**0.5, 0.1), stax.Relu())]
    kernel = stax.serial(*hidden, stax.Dense(1, 2**0.5, 0.1)).kernel
    assert kernel is not None
    return lambda x: kernel(x, None, name)


def gaussian(x):
    norms = jnp.sum(x**2, -1)
    squares = jnp.maximum(norms[:, None] + norms - 2 * x @ x.T, 0)
    return jnp.exp(-squares / jnp.median(squares))


def run_kernel(config: Config, name: str, x, y, study) -> Record:
    compute = jax.jit(kernel_of(config, name))
    fit = jax.jit(lambda k: predict.leave_one_out(k, y, config.ridge))
    k, key = jax.block_until_ready(compute(x)), jax.random.key(config.seed)
    held_out = accuracy(jax.block_until_ready(fit(k)), y)
    once = {"kernel": elapsed(compute, x), "fit": elapsed(fit, k), "held_out": held_out}
    once |= {"predicted": theory(config, k, y)}

    def draw(lane):
        return jax.device_get(regress(k, y, jax.random.fold_in(key, lane.seed), config.ridge, lane.samples))

    axes, drawn = {"samples": config.samples, "seed": range(config.seeds)}, Observable.of_view(lambda view: view.params)
    record = study(axes, draw, make=None, read=drawn, steps=0, data=(), label=name)
    return record._replace(values={name: np.asarray(value)[None] for name, value in once.items()} | record.values)


def elapsed(fn: Callable, *args) -> float:
    """Wall seconds of a call of a compiled function."""
    begin = time.perf_counter()
    jax.block_until_ready(fn(*args))
    return time.perf_counter() - begin


@partial(jax.jit, static_argnames="n")
def regress(k, y, key, ridge: float, n: int) -> dict[str, jax.Array]:
    """Accuracy on the rest and squared error over all digits of regression on n random digits."""
    order = jax.random.permutation(key, len(y))
    train, rest = order[:n], order[n:]
    scaled = ridge * jnp.mean(jnp.diag(k))
    fit = predict.gp_inference(k[train][:, train], y[train], scaled, diag_reg_absolute_scale=True)
    f = fit(get="ntk", k_test_train=k[:, train])
    return {"score": accuracy(f[rest], y[rest]), "error": jnp.mean(jnp.sum((f - y) ** 2, -1))}


def theory(config: Config, k, y) -> np.ndarray:
    """Squared error ``[n]`` from the kernel's eigenvalues and the targets' coefficients on all digits."""
    values, vectors = np.linalg.eigh(np.asarray(k, float))
    lam, v2 = np.maximum(values, 1e-12 * values[-1]) / len(y), np.sum((vectors.T @ np.asarray(y, float)) ** 2, -1)
    ridge = config.ridge * float(jnp.mean(jnp.diag(k)))
    many = 1e9  # features: the kernel itself
    with jax.enable_x64(True):
        risk = jax.vmap(lambda n: random_feature_risk(lam, v2 / len(y), n, many, ridge).test)
        return np.asarray(risk(jnp.asarray(config.samples, float)))


def claims(result: Result) -> list[Claim]:
    cfg, records = result.config, result.records
    held_out = {name: float(record.values["held_out"][0]) for name, record in records.items()}
    spent = {name: float(records["ntk"].values[name][0]) for name in ("kernel", "fit")}
    note = f"1797 digits: kernel {spent['kernel']:.2f} s, all 1797 fits {spent['fit']:.2f} s"
    title = f"{cfg.layers}-layer NTK: leave-one-out accuracy on all digits"
    out = [Claim.at_least(title, SOURCE, held_out["ntk"], 0.98, note=note)]
    for name, least in (("linear", 0.0), ("gaussian", -0.005)):
        title = f"leave-one-out accuracy, NTK - {name} kernel"
        out.append(Claim.at_least(title, "Arora et al. 2020, table 1", held_out["ntk"] - held_out[name], least))
    for name in ("ntk", "gaussian"):
        values, small = records[name].values, np.asarray(cfg.samples) <= 1797 / 4
        title = f"{name}: learning curve against its theory, median relative deviation at n <= 449"
        source = "Canatar et al. 2021, eqs. 3-5 and figure 2"
        if not small.any():
            out.append(Claim.not_applicable(title, source, "needs a training set of at most 449 digits"))
            continue
        ratio = values["error"][0].mean(-1) / values["predicted"][0]
        out.append(Claim.at_most(title, source, np.median(np.abs(ratio - 1)[small]), 0.15))
    return out


def figure(result: Result):
    """Learning curves over theory, and accuracy against training samples with leave-one-out at the end."""
    cfg = result.config
    fig, (error, score) = new_figure(1, 2, width=5.0, height=4.0)
    for marker, shade, name in zip("os^v", ("0.0", "0.35", "0.55", "0.75"), KERNELS):
        values = result.records[name].values
        error.plot(cfg.samples, values["error"][0].mean(-1), marker, color=shade, label=name)
        error.plot(cfg.samples, values["predicted"][0], "-", color=shade, lw=1)
        share = 1 - np.append(values["score"][0].mean(-1), values["held_out"][0])
        score.plot([*cfg.samples, 1796], share, f"{marker}-", ms=4, lw=1, color=shade, label=name)
    error.set(xscale="log", yscale="log", xlabel="training samples n", title="markers: measured; lines: theory")
    error.set_ylabel("squared error over all digits")
    score.set(xscale="log", yscale="log", xlabel="training samples n", title="last point: leave one out")
    score.set_ylabel("share misclassified")
    for ax, ticks in ((error, cfg.samples), (score, (*cfg.samples, 1796))):
        ticks_at(ax.xaxis, ticks)
    error.legend(fontsize=8)
    return fig


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
