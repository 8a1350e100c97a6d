"""What the papers of this family share: standardised digits and the tanh network on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from dynamics import stax
from dynamics.evolve import every
from dynamics.losses import half_mse
from dynamics.runs.figures import measured_style, new_figure, theory_style
from dynamics.tasks import images
from dynamics.types import Claim, Data, Model, Objective, Observable, Record


def digits(samples: int, seed: int) -> Data:
    """``samples`` of the 8 x 8 digits, each pixel (0 to 16) standardised by its std + .01, one-hot targets."""
    return jax.tree.map(jnp.asarray, images.digits(samples, seed=seed, scale="standard", epsilon=1e-2 / 16))


def network(width: int, depth: int) -> Model:
    """``depth`` tanh layers; weights have the variance of ``U(+-1/sqrt(fan_in))``, biases start at 0."""
    dense = {"W_std": 3**-0.5, "b_std": 0.0, "parameterization": "standard"}
    layers = [layer for _ in range(depth) for layer in (stax.Dense(width, **dense), stax.Tanh())]
    return stax.serial(*layers, stax.Dense(10, **dense))


def setting(config, loss=half_mse, data: Data | None = None) -> tuple[Data, Objective, Callable[[int], Any]]:
    """``(data, L, start)``: digits unless given, the tanh network's objective, and ``start(number)`` of a seed.

    Args:
        config: ``samples``, ``width``, ``depth`` and ``seed``.
        loss: of the objective.
        data: what it is trained on.
    """
    data = digits(config.samples, config.seed) if data is None else data
    model, key = network(config.width, config.depth), jax.random.key(config.seed)

    def start(number: int) -> Any:
        return model.init(jax.random.fold_in(key, number), (-1, data.train.x.shape[1]))[1]

    return data, Objective(model.apply, loss), start


def late(values, share: float = 1 / 3) -> np.ndarray:
    """The last ``share`` of a record's rows."""
    values = np.asarray(values)
    return values[-max(1, round(len(values) * share)) :]


def train_grid(config, make, read, study, *, loss=half_mse, data: Data | None = None, at=None) -> Record:
    """Trains the tanh network for every (eta, seed) as one program; values are ``[T, etas, seeds]``.

    Args:
        config: that of ``setting``, and ``eta``, ``seeds``, ``steps`` and ``record_every``.
        make: ``(L, eta) -> Dynamics``.
        read: ``eta -> observables``; the training loss before the last update is read besides.
        study: the pure or the durable one.
        loss, data: as in ``setting``.
        at: recorded steps; every ``record_every`` unless given.
    """
    data, L, start = setting(config, loss, data)
    last = Observable.of_view(lambda view: {"loss": view.state.loss})
    return study(
        {"eta": config.eta, "seed": range(config.seeds)},
        draw=lambda lane: start(lane.seed),
        make=lambda lane: make(L, lane.eta),
        read=lambda lane: [*read(lane.eta), last],
        steps=config.steps,
        record_at=every(config.record_every, config.steps) if at is None else at,
        key=jax.random.key(config.seed),
        data=data,
        label="descent",
        stream=stream(config),
    )


def stream(config):
    """The number of a cell's noise: rates share it, seeds never do."""
    usual = type(config)().seeds
    return lambda index: usual * next(iter(index.values())) + index["seed"]


def ends_early(column, level: float, span: float, usual: float) -> bool:
    """Whether ``column [T, seeds]`` stays below ``level`` only for want of time: all finite, some seed below it, and a
    training time ``span`` below 80 % of ``usual``, the shortest of the quick preset."""
    column = np.asarray(column)
    return bool(np.all(np.isfinite(column)) and np.any(column.max(0) <= level) and span < 0.8 * usual)


def hovering_claims(ratio, config, source: str, low: float, high: float, symbol: str) -> list[Claim]:
    """Each rate's mean over seeds of the last third of ``ratio [T, etas, seeds]`` lies in [low, high]."""
    found, quick = [], type(config)()
    for i, eta in enumerate(config.eta):
        name = f"eta = {eta:g}: {symbol} over the last third, mean over seeds"
        column = np.asarray(ratio)[:, i]
        if ends_early(column, 0.97, config.steps * eta, quick.steps * min(quick.eta)):
            found.append(Claim.not_applicable(name, source, "a run ends before it reaches the threshold"))
            continue
        seeds = late(column).mean(0)
        note = f"seeds {np.array2string(seeds, precision=3)}"
        found.append(Claim.between(name, source, seeds.mean(), low, high, note=note))
    return found


def ratio_figure(config, record: Record, ratio, ylabel: str, threshold: str) -> Figure:
    """Loss and ``ratio [T, etas, seeds]`` of the first seed along training, over the line at 1, the ``threshold``."""
    picture, (left, right) = new_figure(1, 2)
    for i, eta in enumerate(config.eta):
        style = measured_style(i, len(config.eta)) | {"markevery": max(1, len(record.step) // 40)}
        left.semilogy(record.step, np.asarray(record.values["loss"])[:, i, 0], **style, label=f"$\\eta$ = {eta:g}")
        right.plot(record.step, np.asarray(ratio)[:, i, 0], **style, label=f"$\\eta$ = {eta:g}")
    right.axhline(1, **theory_style(), label=threshold)
    left.set(xlabel="step", ylabel="training loss")
    right.set(xlabel="step", ylabel=ylabel)
    left.legend()
    right.legend()
    return picture
