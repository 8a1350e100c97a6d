"""More is better: random-feature regression obeys its eigenframework (Simon, Karkada, Ghosh & Belkin 2023).

Ridge regression with k random features on n samples of a task with kernel eigenvalues ``lam_i = i^-b`` and target power
``lam_i v_i^2 = i^-a``. Two effective regularisations, ``sum L_i + ridge/kappa = n`` and ``sum L_i + k kappa/gamma = k``
with ``L_i = lam_i/(lam_i + gamma)``, predict its train and test error. At a small ridge the test error peaks where
k = n (double descent); at the best ridge more samples and more features always help.

Run time: about 40 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import config
from dynamics.config import Count, NonNegative, Positive
from dynamics.evolve import study as in_memory
from dynamics.runs.figures import measured_style, new_figure
from dynamics.theory.random_features import random_feature_risk
from dynamics.types import Claim, Observable, Record

SOURCE = "Simon, Karkada, Ghosh & Belkin 2023, 'More is better in modern machine learning'"
SECONDS = 40


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Count] = 60
    """draws of data, features, target signs and noise"""
    samples: Annotated[tuple[int, ...], Count] = (64, 128, 256)
    """training samples n, ascending"""
    features: Annotated[tuple[int, ...], Count] = (32, 64, 128, 256, 512)
    """random features k, ascending"""
    ridge: Annotated[float, Positive] = 1e-3
    """ridge of the double-descent curves"""
    modes: Annotated[int, Count] = 1024
    """eigenmodes of the task"""
    b: Annotated[float, Positive] = 1.5
    """kernel eigenvalues lam_i = i^-b"""
    a: Annotated[float, Positive] = 1.6
    """target power lam_i v_i^2 = i^-a"""
    noise: Annotated[float, NonNegative] = 0.1
    """label noise s^2"""

    @classmethod
    def paper(cls) -> Config:
        """Larger problems, more draws."""
        return cls(seeds=100, samples=(64, 128, 256, 512, 1024), features=(32, 64, 128, 256, 512, 1024), modes=4096)

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("samples", "features"):
            self.require(bool(np.all(np.diff(getattr(self, field)) > 0)), field, "ascending values")


class Result(NamedTuple):
    """``records``: 'small ridge' and 'best ridge' (``train, test [1, n, k, seeds]``), each with its theory
    (``[1, n, k]``, which also holds ``ridge``)."""

    config: Config
    records: dict[str, Record]


def run(config: Config, study=in_memory) -> Result:
    """Every (n, k) cell at the small and at its best ridge; regression is solved, not trained."""
    lam = jnp.arange(1.0, config.modes + 1) ** -config.b
    v2 = jnp.arange(1.0, config.modes + 1) ** -config.a / lam
    ridges, drawn = jnp.geomspace(1e-4, 30.0, 60), Observable.of_view(lambda view: view.params)
    cells = {"best": (0, 1), "samples": config.samples, "features": config.features}

    def theory(lane) -> dict:
        def risk(ridge):
            return random_feature_risk(lam, lam * v2, lane.samples, lane.features, ridge, config.noise)

        ridge = jnp.where(lane.best, ridges[jnp.argmin(jax.vmap(risk)(ridges).test)], config.ridge)
        return {"train": risk(ridge).train, "test": risk(ridge).test, "ridge": ridge}

    def read(lane) -> Observable:
        return Observable.of_view(lambda view: theory(lane))

    predicted = study(cells, lambda lane: (), None, read, steps=0, data=(), label="theory")
    of_seed = functools.cache(functools.partial(regression(config, lam, v2), predicted.values["ridge"][0]))

    def draw(lane) -> dict:
        at = lane.best, config.samples.index(lane.samples), config.features.index(lane.features)
        return {side: value[at] for side, value in of_seed(lane.seed).items()}

    axes, records = cells | {"seed": range(config.seeds)}, {}
    measured = study(axes, draw, None, drawn, steps=0, data=(), label="regression")
    for best, name in enumerate(("small ridge", "best ridge")):
        records |= {name: measured.at(best=best), f"{name} theory": predicted.at(best=best)}
    return Result(config, records)


def regression(config: Config, lam, v2):
    """``(ridges [2, n, k], seed) -> train and test error [2, n, k]``: all cells share a draw, and one padded shape."""
    rows, columns, modes = max(config.samples), max(config.features), config.modes

    @jax.jit
    def errors(ridges, key):
        kx, kp, kv, ke = jax.random.split(key, 4)
        x = jax.random.normal(kx, (rows, modes)) * jnp.sqrt(lam)
        project = jax.random.normal(kp, (modes, columns))
        v = jnp.sqrt(v2) * jax.random.rademacher(kv, (modes,))
        y = x @ v + config.noise**0.5 * jax.random.normal(ke, (rows,))
        seen = x @ project

        def cell(n, k, ridge):
            used, kept = jnp.arange(rows) < n, jnp.arange(columns) < k
            f = jnp.where(used[:, None] & kept, seen, 0.0) / jnp.sqrt(k)
            target = jnp.where(used, y, 0.0)
            dual = jax.scipy.linalg.solve(f @ f.T + ridge * jnp.eye(rows), target, assume_a="pos")
            learnt = project @ jnp.where(kept, f.T @ dual, 0.0) / jnp.sqrt(k)  # in mode space
            train = jnp.sum((f @ (f.T @ dual) - target) ** 2) / n
            return {"train": train, "test": jnp.sum(lam * (learnt - v) ** 2) + config.noise}

        def row(args):
            n, ridges = args
            return jax.lax.map(lambda args: cell(n, *args), (jnp.asarray(config.features), ridges))

        return jax.lax.map(lambda ridges: jax.lax.map(row, (jnp.asarray(config.samples), ridges)), ridges)

    key = jax.random.key(config.seed)
    return lambda ridges, seed: jax.device_get(errors(ridges, jax.random.fold_in(key, seed)))


def claims(result: Result) -> list[Claim]:
    records, out = result.records, []
    for name in ("small ridge", "best ridge"):
        predicted = records[f"{name} theory"].values
        for side in ("test", "train"):
            measured = records[name].values[side].mean(-1)
            error = np.abs(measured / predicted[side] - 1)
            title = f"{name}: mean {side} error against the eigenframework, median relative deviation"
            note = f"largest {error.max():.3f}"
            shown = error[predicted[side] > 1e-3]  # a train error below this is rounding of the solve
            if not shown.size:
                out.append(Claim.not_applicable(title, "eqs. 4-6", "every error is that of rounding"))
                continue
            out.append(Claim.at_most(title, "eqs. 4-6", np.median(shown), 0.03, note=note))
    best = records["best ridge theory"].values["test"][0]
    measured = records["best ridge"].values["test"][0].mean(-1)
    for axis, name in ((0, "samples"), (1, "features")):
        title = f"best ridge: test error falls with {name}"
        if best.shape[axis] < 2:
            out.append(Claim.not_applicable(title, "theorem 1", f"needs two values of {name}"))
            continue
        out.append(Claim.at_most(f"{title}, theory: largest rise", "theorem 1", np.diff(best, axis=axis).max(), 0.0))
        rise = np.diff(np.log(measured), axis=axis).max()
        out.append(Claim.at_most(f"{title}, measured: largest relative rise", "theorem 1", rise, 0.02))
    return [*out, *descent_claims(result)]


def descent_claims(result: Result) -> list[Claim]:
    cfg, out = result.config, []
    measured = result.records["small ridge"].values["test"][0].mean(-1)
    for n, row in zip(cfg.samples, measured):
        if not min(cfg.features) < n < max(cfg.features) or n not in cfg.features:
            continue
        name = f"double descent at n = {n}: features at the peak"
        inner = slice(1, None)  # the first point is the classical, underfitted end
        peak = cfg.features[inner][int(np.argmax(row[inner]))] if np.isfinite(row).all() else np.nan
        out.append(Claim.close(name, "figure 2", peak, n, 0.0))
        at = cfg.features.index(n)
        name = f"double descent at n = {n}: error at k = n over its larger neighbour's"
        out.append(Claim.at_least(name, "figure 2", row[at] / max(row[at - 1], row[at + 1]), 1.0))
    return out


def figure(result: Result):
    """Test error against features at the small ridge, and at the best one, over the eigenframework."""
    cfg = result.config
    fig, axes = new_figure(1, 2, sharey=True, width=5.0, height=4.0)
    for ax, name in zip(axes, ("small ridge", "best ridge")):
        measured, theory = (result.records[label].values["test"][0] for label in (name, f"{name} theory"))
        for i, n in enumerate(cfg.samples):
            style, half = measured_style(i, len(cfg.samples)), 2 * measured[i].std(-1) / np.sqrt(cfg.seeds)
            ax.errorbar(cfg.features, measured[i].mean(-1), half, ms=5, label=f"n = {n}", **style)
            ax.plot(cfg.features, theory[i], "-", color=style["color"], lw=1)
        ax.set(xscale="log", yscale="log", xlabel="random features k", title=f"{name}; lines: eigenframework")
        ax.legend(fontsize=8)
    fig.axes[0].set_ylabel("test error (label noise included)")
    return fig


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
