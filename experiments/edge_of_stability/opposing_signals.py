"""Outliers with opposing signals have an outsized effect on optimisation (Rosenfeld & Risteski 2023).

At the edge of stability the iterate swings along the top eigenvector, and the samples that feel it come in two groups
whose losses move against each other: what lowers one raises the other, and the next step reverses both. Between
consecutive steps the change of a sample's loss, ``d_i(t) = l_i(t+1) - l_i(t)``, is then anticorrelated in time, while
under stable descent it keeps its sign (section 2, figures 1 and 2). The two groups with the largest changes have
opposing gradients.

First a toy (section 3.2, simplified): linear two-layer network ``f = (x W) a`` on ``x = (y, s)``, where s = +-beta on
a tenth of the samples, independent of the label y; the top eigenvector comes to lie along s. Then digits.

Run time: about 30 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from matplotlib.figure import Figure

from dynamics import config, linalg, operators
from dynamics.config import Count, Positive
from dynamics.evolve import every, gradient_descent
from dynamics.evolve import study as in_memory
from dynamics.losses import half_mse
from dynamics.observe import seldom
from dynamics.runs.figures import measured_style, new_figure
from dynamics.types import Batch, Claim, Data, Objective, Record
from experiments.edge_of_stability._digits import setting

SOURCE = (
    "Rosenfeld & Risteski 2023, 'Outliers with opposing signals have an outsized effect on neural network optimization'"
)
SECONDS = 30


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Count] = 2
    """number of initialisations"""
    eta: Annotated[float, Positive] = 0.4
    """learning rate at the edge of stability"""
    stable_eta: Annotated[float, Positive] = 0.02
    """learning rate of the stable control"""
    steps: Annotated[int, Count] = 800
    """gradient steps before the measurement"""
    window: Annotated[int, config.Range(4)] = 60
    """consecutive steps measured"""
    group: Annotated[int, Count] = 10
    """samples in each of the two groups"""
    strength: Annotated[float, Positive] = 8.0
    """size beta of the opposing feature of the toy"""
    samples: Annotated[int, config.Range(20, 1797)] = 300
    """training digits n"""
    width: Annotated[int, Count] = 50
    """tanh units of a hidden layer"""
    depth: Annotated[int, Count] = 3
    """hidden layers"""

    @classmethod
    def paper(cls) -> Config:
        """1000 digits, two layers of 200, five seeds."""
        return cls(seeds=5, samples=1000, width=200, depth=2, steps=3000, window=200)


class Result(NamedTuple):
    """Losses of each sample in ``records['edge']``, ``['stable']`` (``[T, seeds, n]``) and ``['toy']`` (``[T, 1, n]``).

    At the last step, ``['edge']`` has the ``cosine [T, seeds]`` between the two groups' gradients, and ``['toy']``
    the ``alignment [T, 1]``, the top eigenvector's share on s.
    """

    config: Config
    records: dict[str, Record]


def run(config: Config, study=in_memory) -> Result:
    """Digits at the edge and in the stable control, then the toy."""
    data, L, start = setting(config)

    def along(eta, label, *last):
        seeds = {"seed": range(config.seeds)}
        return follow(config, L, eta, study, seeds, lambda lane: start(lane.seed), data, label, *last)

    edge = along(config.eta, "edge", opposition(config, L))
    return Result(config, {"edge": edge, "stable": along(config.stable_eta, "stable"), "toy": run_toy(config, study)})


def follow(config: Config, L: Objective, eta: float, study, axes, draw, data: Data, label: str, *last) -> Record:
    """Every sample's loss over the last ``window`` steps, and what ``last`` reads at their end (and start)."""

    def losses(params, batch):
        return {"losses": 0.5 * jnp.sum((L.apply(params, batch.x) - batch.y) ** 2, -1)}

    return study(
        axes,
        draw,
        make=lambda lane: gradient_descent(L, eta),
        read=[losses, *(seldom(read, config.window) for read in last)],
        steps=config.steps + config.window,
        record_at=config.steps + every(1, config.window),
        key=jax.random.key(config.seed),
        data=data,
        label=label,
    )


def opposition(config: Config, L: Objective):
    """Reads the cosine between the gradients of the two groups whose losses the next step moves most, up and down.

    A step moves a sample's loss by its gradient at the step's middle, times the step, up to the third order; at either
    end the oscillation has carried many samples across their own minimum.
    """

    def read(params, batch):
        def losses(p):
            return 0.5 * jnp.sum((L.apply(p, batch.x) - batch.y) ** 2, -1)

        step = jax.tree.map(lambda g: -config.eta * g, jax.grad(L)(params, batch))
        middle, after = (jax.tree.map(lambda p, d, part=part: p + part * d, params, step) for part in (0.5, 1.0))
        order = jnp.argsort(losses(after) - losses(params))
        fell, rose = (
            ravel_pytree(jax.grad(L)(middle, Batch(batch.x[rows], batch.y[rows])))[0]
            for rows in (order[: config.group], order[-config.group :])
        )
        return {"cosine": jnp.vdot(fell, rose) / (jnp.linalg.norm(fell) * jnp.linalg.norm(rose))}

    return read


def toy(config: Config) -> tuple[Data, tuple]:
    """200 samples; a tenth carry +-beta in s, half of them for each label."""
    y = np.where(np.arange(200) % 2, 1.0, -1.0)
    s = np.zeros(200)
    s[:20] = config.strength * np.where(np.arange(20) // 2 % 2, 1.0, -1.0)
    key = jax.random.key(config.seed)
    params = (0.3 * jax.random.normal(key, (2, 8)), 0.3 * jax.random.normal(jax.random.fold_in(key, 1), (8, 1)))
    batch = Batch(jnp.asarray(np.stack([y, s], 1), jnp.float32), jnp.asarray(y[:, None], jnp.float32))
    return Data(batch), params


def run_toy(config: Config, study) -> Record:
    data, params = toy(config)
    L = Objective(lambda params, x: x @ params[0] @ params[1], half_mse)

    def share(params, batch):
        matvec, size, _, unravel = operators.hessian(L, params, batch)
        top, _ = linalg.extreme_eigenvalues(matvec, jax.random.normal(jax.random.key(0), (size,)), 20)
        weights = unravel(top.vector)[0]
        return {"alignment": jnp.sum(weights[1] ** 2) / jnp.sum(weights**2)}

    # The opposing feature alone has curvature |a|^2 mean(s^2), and |a|^2 grows to about 1 once y is learnt.
    eta = 1.5 / (0.1 * config.strength**2)
    return follow(config, L, eta, study, {"seed": [config.seed]}, lambda lane: params, data, "toy", share)


def persistence(losses: np.ndarray, group: int) -> np.ndarray:
    """Mean over time of the cosine between successive changes of the 2 ``group`` largest movers, ``[seeds]``."""
    change = np.diff(losses, axis=0)  # [T - 1, seeds, n]
    found = []
    for run in np.moveaxis(change, 1, 0):
        movers = np.argsort(-np.abs(run).mean(0))[: 2 * group]
        now, after = run[:-1, movers], run[1:, movers]
        size = np.sqrt(np.sum(now**2, 1) * np.sum(after**2, 1))
        found.append(np.mean(np.sum(now * after, 1) / np.where(size > 0, size, 1)))
    return np.array(found)


def claims(result: Result) -> list[Claim]:
    cfg, records = result.config, result.records
    edge, stable = (persistence(records[name].values["losses"], cfg.group) for name in ("edge", "stable"))
    cosine, alignment = records["edge"].values["cosine"][-1], records["toy"].values["alignment"][-1, 0]
    name = "correlation of successive loss changes, largest movers"
    return [
        Claim.at_most(f"{name}, at the edge (eta = {cfg.eta:g}), worst seed", "figure 2", edge.max(), -0.5),
        Claim.at_least(f"{name}, stable (eta = {cfg.stable_eta:g}), worst seed", "section 2", stable.min(), 0.5),
        Claim.at_most("cosine of the two groups' gradients, worst seed", "figure 1", cosine.max(), 0.0),
        Claim.at_least("toy: share of the top eigenvector on the opposing feature", "section 3.2", alignment, 0.9),
    ]


def figure(result: Result) -> Figure:
    """Losses of the largest movers at the edge, and of the same ranks in the stable control."""
    picture, axes = new_figure(1, 2)
    for panel, name in zip(axes, ("edge", "stable"), strict=True):
        record = result.records[name]
        losses = np.asarray(record.values["losses"])[:, 0]
        order = np.argsort(losses[-1] - losses[-2])
        size = result.config.group
        for i, (rows, label) in enumerate(((order[:size], "fell last"), (order[-size:], "rose last"))):
            style = measured_style(i, 2) | {"linestyle": "-" if i else "--"}
            panel.plot(record.step, losses[:, rows].mean(1), **style, label=f"group that {label}")
        panel.set(xlabel="step", ylabel=f"mean loss of the group ({name})")
        panel.legend()
    return picture


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
