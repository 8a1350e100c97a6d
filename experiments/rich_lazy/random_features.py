"""More is better: random-feature regression obeys its eigenframework (Simon, Karkada, Ghosh & Belkin 2023).

Ridge regression with k random features on n samples of a task with kernel eigenvalues ``lam_i = i^-b`` and target power
``lam_i v_i^2 = i^-a``. Two effective regularisations, ``sum L_i + ridge/kappa = n`` and ``sum L_i + k kappa/gamma = k``
with ``L_i = lam_i/(lam_i + gamma)``, predict its train and test error. At a small ridge the test error peaks where
k = n (double descent); at the best ridge more samples and more features always help. With many features to overfit is
obligatory: at the best ridge the train error is far below the test error, and a ridge that keeps it at half costs.

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
from dynamics.runs.figures import measured_style, new_figure, rival_style
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
    def large(cls) -> Config:
        """Larger problems, more draws; sizes of ours, where the paper has MNIST, CIFAR-10 and their synthetic twins.
        Six minutes of a core."""
        return cls(samples=(64, 128, 256, 512), features=(32, 64, 128, 256, 512, 1024), modes=2048)

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("samples", "features"):
            self.require(bool(np.all(np.diff(getattr(self, field)) > 0)), field, "ascending values")


RIDGES = ("small ridge", "best ridge", "train half of test")
MANY = 4  # features a sample from which on the last of these is run


class Result(NamedTuple):
    """``records``: each of ``RIDGES`` (``train, test [1, n, k, seeds]``) and its theory (``[1, n, k]``, with the
    ``ridge``); the last at ``MANY`` features a sample, its ridge and measured errors 0 elsewhere."""

    config: Config
    records: dict[str, Record]


def run(config: Config, study=in_memory) -> Result:
    """Every (n, k) cell at each of its ridges; regression is solved, not trained."""
    lam = jnp.arange(1.0, config.modes + 1) ** -config.b
    v2 = jnp.arange(1.0, config.modes + 1) ** -config.a / lam
    ridges, drawn = jnp.geomspace(1e-4, 30.0, 60), Observable.of_view(lambda view: view.params)
    cells = {"which": range(len(RIDGES)), "samples": config.samples, "features": config.features}

    def theory(lane) -> dict:
        def risk(ridge):
            return random_feature_risk(lam, lam * v2, lane.samples, lane.features, ridge, config.noise)

        found = jax.vmap(risk)(ridges)
        half = ridges[jnp.argmin(jnp.abs(found.train / found.test - 0.5))]
        half = jnp.where(lane.features >= MANY * lane.samples, half, 0.0)
        ridge = jnp.stack([jnp.asarray(config.ridge), ridges[jnp.argmin(found.test)], half])[lane.which]
        at = risk(jnp.where(ridge > 0, ridge, config.ridge))
        return {"train": at.train, "test": at.test, "ridge": ridge}

    def read(lane) -> Observable:
        return Observable.of_view(lambda view: theory(lane))

    predicted = study(cells, lambda lane: (), None, read, steps=0, data=(), label="theory")
    of_seed = functools.cache(functools.partial(regression(config, lam, v2), predicted.values["ridge"][0]))

    def draw(lane) -> dict:
        at = lane.which, config.samples.index(lane.samples), config.features.index(lane.features)
        return {side: value[at] for side, value in of_seed(lane.seed).items()}

    axes, records = cells | {"seed": range(config.seeds)}, {}
    measured = study(axes, draw, None, drawn, steps=0, data=(), label="regression")
    for which, name in enumerate(RIDGES):
        records |= {name: measured.at(which=which), f"{name} theory": predicted.at(which=which)}
    return Result(config, records)


def regression(config: Config, lam, v2):
    """``(ridges [3, n, k], seed) -> train and test error [3, n, k]``: all cells share a draw, and one padded shape."""
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
            return jax.lax.cond(ridge > 0, solved, lambda *_: {"train": 0.0, "test": 0.0}, n, k, ridge)

        def solved(n, k, ridge):
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
    """Draws are independent; all cells share each. The worst cell is the one of least favourable mean."""
    return [*error_claims(result), *monotone_claims(result), *overfitting_claims(result)]


def error_claims(result: Result) -> list[Claim]:
    """Mean errors against the eigenframework's and that of wrong settings, in standard errors.

    To each is added a share 1/min(n, k) of the theory, which is that of large n and k; what it would be without that
    is in the note.
    """
    cfg, out = result.config, []
    for name in RIDGES[:2]:
        measured, predicted = (result.records[label].values for label in (name, f"{name} theory"))
        wrong = {
            "no label noise": eigenframework(cfg, predicted["ridge"][0], noise=0.0),
            "the kernel itself": eigenframework(cfg, predicted["ridge"][0], many=True),
            "twice the samples": eigenframework(cfg, predicted["ridge"][0], samples=2),
        }
        for side in ("test", "train"):
            rows, theory = measured[side][0], predicted[side][0]  # [n, k, draws], [n, k]
            title, shown = f"{name}: mean {side} error against the eigenframework", theory > 1e-3  # less is rounding
            if cfg.seeds < 20 or not shown.any():
                out.append(Claim.not_applicable(title, "eqs. 4-6", "needs 20 draws, and errors above rounding"))
                continue
            mean, limit = rows.mean(-1)[shown], theory[shown] / np.minimum(*sizes(cfg))[shown]
            alone = rows.std(-1, ddof=1)[shown] / cfg.seeds**0.5
            error = np.hypot(alone, limit)
            rivals = {key: (mean - value[side][shown]) / error for key, value in wrong.items()}
            note = f"largest relative deviation {np.abs(mean / theory[shown] - 1).max():.3f}"
            note += f"; {np.abs((mean - theory[shown]) / alone).max():.1f} without the share 1/min(n, k)"
            out.append(Claim.cells(title, "eqs. 4-6", (mean - theory[shown]) / error, rivals=rivals, note=note))
    return out


def eigenframework(config: Config, ridges, *, noise=None, many=False, samples=1) -> dict[str, np.ndarray]:
    """``train`` and ``test [n, k]`` at ``ridges [n, k]``."""
    lam = jnp.arange(1.0, config.modes + 1) ** -config.b
    target, noise = jnp.arange(1.0, config.modes + 1) ** -config.a, config.noise if noise is None else noise
    n, k = sizes(config)
    n, k = samples * n, np.full_like(k, np.inf) if many else k
    risk = jax.vmap(lambda n, k, ridge: random_feature_risk(lam, target, n, k, ridge, noise))
    found = risk(*(jnp.asarray(np.ravel(value)) for value in (n, k, ridges)))
    return {name: np.reshape(np.asarray(getattr(found, name)), n.shape) for name in ("train", "test")}


def sizes(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """n and k of each cell, ``[n, k]``."""
    n, k = np.meshgrid(np.asarray(config.samples, float), np.asarray(config.features, float), indexing="ij")
    return n, k


def monotone_claims(result: Result) -> list[Claim]:
    """Along samples and features at the best ridge; the small ridge, which does not obey, is the rival."""
    cfg, out = result.config, []
    small, best = (np.log(result.records[name].values["test"][0]) for name in RIDGES[:2])  # [n, k, draws]
    for axis, name in ((0, "samples"), (1, "features")):
        title = f"best ridge: log test error falls with {name}, largest rise"
        if best.shape[axis] < 2 or cfg.seeds < 3:
            out.append(Claim.not_applicable(title, "theorem 1", f"needs two values of {name} and three draws"))
            continue
        rise, other = (worst(np.diff(curve, axis=axis)) for curve in (best, small))
        out.append(Claim.at_most(title, "theorem 1", rise, 0.0, rivals={"small ridge": other}))
    title = "double descent, small ridge: log test error at k = n over that of its larger neighbour, smallest over n"
    inside = [n for n in cfg.samples if n in cfg.features[1:-1]]
    if not inside or cfg.seeds < 3:
        return [*out, Claim.not_applicable(title, "figure 2", "needs k = n inside the features, and three draws")]
    peaks = []
    for curve in (small, best):
        at = [(curve[cfg.samples.index(n)], cfg.features.index(n)) for n in inside]
        peaks.append(worst(np.stack([np.maximum(row[i - 1], row[i + 1]) - row[i] for row, i in at])))
    return [*out, Claim.at_least(title, "figure 2", -peaks[0], 0.1, rivals={"best ridge": -peaks[1]})]


def worst(cells: np.ndarray) -> np.ndarray:
    """``[draws]`` of the cell of largest mean, of ``[..., draws]``."""
    flat = np.reshape(cells, (-1, cells.shape[-1]))
    return flat[np.argmax(flat.mean(-1))]


def overfitting_claims(result: Result) -> list[Claim]:
    """With ``MANY`` features a sample the best ridge overfits, and one that does not costs."""
    cfg = result.config
    n, k = sizes(cfg)
    many, few = k >= MANY * n, k <= n
    titles = (
        f"k >= {MANY} n: train over test error at the best ridge, largest over cells",
        f"k >= {MANY} n: log test error at train = test/2 over the best, smallest over cells",
    )
    if not many.any() or not few.any() or cfg.seeds < 3:
        return [
            Claim.not_applicable(name, "section 5", "needs many and few features, and three draws") for name in titles
        ]
    best, half = (result.records[name].values for name in RIDGES[1:])
    share, cost = best["train"][0] / best["test"][0], np.log(half["test"][0][many] / best["test"][0][many])
    rivals = {"k <= n, smallest": -worst(-share[few])}
    return [
        Claim.at_most(titles[0], "section 5", worst(share[many]), 0.25, rivals=rivals),
        Claim.at_least(titles[1], "section 5", -worst(-cost), 0.05, rivals={"no cost": 0.0}),
    ]


def figure(result: Result):
    """Test error against features at the small ridge, and at the best one, over the eigenframework."""
    cfg = result.config
    fig, axes = new_figure(1, 2, sharey=True, width=5.0, height=4.0)
    not_fitted = result.records[RIDGES[2]].values["test"][0].mean(-1)
    for ax, name in zip(axes, RIDGES):
        measured, theory = (result.records[label].values["test"][0] for label in (name, f"{name} theory"))
        for i, n in enumerate(cfg.samples):
            style, half = measured_style(i, len(cfg.samples)), 2 * measured[i].std(-1) / np.sqrt(cfg.seeds)
            ax.errorbar(cfg.features, measured[i].mean(-1), half, ms=5, label=f"n = {n}", **style)
            ax.plot(cfg.features, theory[i], "-", color=style["color"], lw=1)
            if name == RIDGES[1] and not_fitted[i].any():
                shown, label = np.where(not_fitted[i] > 0, not_fitted[i], np.nan), f"n = {n}, {RIDGES[2]}"
                ax.plot(cfg.features, shown, label=label, **(style | {"color": "0.6"}))
            ridges = result.records[f"{name} theory"].values["ridge"][0]
            if i == len(cfg.samples) - 1:
                kernel = eigenframework(cfg, ridges, many=True)["test"][i]
                ax.plot(cfg.features, kernel, label=f"n = {n}, the kernel itself", **rival_style(0))
        ax.set(xscale="log", yscale="log", xlabel="random features k", title=f"{name}; lines: eigenframework")
        ax.legend(fontsize=8)
    fig.axes[0].set_ylabel("test error (label noise included)")
    return fig


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
