"""Tasks that flip, and two-layer linear networks on them, for ``solvable``: their training and their claims."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from dynamics.evolve import Drawn, every, gradient_descent, over_tasks, task_readings
from dynamics.tasks.streams import label_flips
from dynamics.theory.deep_linear import imbalance
from dynamics.types import Batch, Claim, Objective, Record

DERIVED = "derived here"
START = 0.5  # the imbalance c at the start
MOST = 100_000  # steps of a task, at most


def flipping(dynamics, tolerance, batch, error, read):
    """``dynamics`` on a batch whose labels change their sign when ``error(params, batch)`` is below the tolerance."""
    return over_tasks(
        dynamics, label_flips(batch), steps=MOST, before=read, after=read, error=error, fit=tolerance, leave=True
    )


def growth(record: Record) -> np.ndarray:
    """By how much each task ages more than the one before, ``[*axes, ...]``: the geometric mean over tasks."""
    age = np.concatenate([np.asarray(record.values["before_age"])[1:2], np.asarray(record.values["after_age"])[1:]])
    steps = np.diff(age, axis=0)
    count = np.isfinite(age).sum(0) - 1
    last = np.take_along_axis(steps, np.maximum(count - 1, 0)[None], 0)[0]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(count > 1, (last / steps[0]) ** (1 / np.maximum(count - 1, 1)), np.nan)


linear = Objective.of(lambda w, batch: 0.5 * jnp.sum((w[1] @ w[0] @ batch.x - batch.y) ** 2))


def run_linear(config, study, label: str) -> Record:
    """Two-layer linear networks on ``+-S``: 'modes', along those of S, imbalance START s in each; 'linear', at random.

    The former would not stay aligned in any other frame, where rounding mixes modes.
    """
    s, key, aligned = np.asarray(config.modes), jax.random.key(config.seed), label == "modes"
    count, tolerance = (30 if aligned else 20), 1e-2
    n, h = len(s), config.width

    def draw(lane) -> Drawn:
        if aligned:
            a, c = (1 - tolerance) * s, START * s
            both, frame = np.hypot(c, 2 * a), np.eye(h, n)
            u, v = np.sqrt((both + c) / 2), -np.sqrt((both - c) / 2)
            return Drawn([jnp.asarray(frame * u), jnp.asarray((frame * v).T)], None, {"target": jnp.diag(s)})
        one, two, left, right = jax.random.split(jax.random.fold_in(key, lane.seed), 4)
        left, right = (jnp.linalg.qr(jax.random.normal(k, (n, n)))[0] for k in (left, right))
        w = [jax.random.normal(one, (h, n)) / n**0.5, jax.random.normal(two, (n, h)) / h**0.5]
        return Drawn(w, None, {"target": (left * s) @ right.T})

    def make(lane):
        batch = Batch(jnp.eye(n), lane.target)

        def error(w, part):
            return jnp.max(jnp.abs(w[1] @ w[0] - part.y))

        def read(w, part):
            D = imbalance(w)[0]
            g = jax.grad(linear)(w, part)
            moved = imbalance([weight - lane.eta * slope for weight, slope in zip(w, g)])[0]
            off = jnp.abs(moved - D - lane.eta**2 * (g[1].T @ g[1] - g[0] @ g[0].T))
            size = sum(jnp.sum(weight**2) for weight in w)
            age = -jnp.log(jnp.abs(jnp.diagonal(D)[:n]))
            return {"age": age, "imbalance": jnp.linalg.norm(D), "off": jnp.max(off) / size}

        return flipping(gradient_descent(linear, lane.eta), tolerance, batch, error, read)

    return study(
        {"eta": (0.04, 0.02) if aligned else (0.1, 0.05), "seed": range(1 if aligned else config.seeds)},
        draw=draw,
        make=make,
        read=task_readings(),
        steps=count,
        record_at=every(1, count),
        key=key,
        label=label,
    )


def linear_claims(result) -> list[Claim]:
    """Two-layer linear networks."""
    cfg, modes, random = result.config, result.records["modes"], result.records["linear"]
    rate = np.asarray(modes.axes["eta"])[:, None, None] * np.asarray(cfg.modes)
    found = (growth(modes) - 1) / rate
    alike = (growth(modes) - 1) / np.mean(rate, -1, keepdims=True)
    name = "linear network, modes s: growth of age a task, less 1, over eta s, furthest from 1"
    out = [_furthest(name, found, 0.15, {"modes age alike": alike} if len(set(cfg.modes)) > 1 else {})]
    off = float(np.nanmax(np.concatenate([random.values["after_off"], random.values["before_off"]])))
    name = "linear network: D <- D + eta^2 (G_2^T G_2 - G_1 G_1^T), largest error over |W|^2"
    out.append(Claim.at_most(name, "identity", off, 1e-12))
    time, size = np.log(random.values["time_to_fit"]), np.log(random.values["after_imbalance"])
    name = "random linear networks: log of the steps to learn again, last task over the third"
    out.append(
        Claim.at_least(name, DERIVED, (time[-1] - time[3]).mean(0), math.log(1.2), rivals={"gradient flow": 0.0})
    )
    name = "random linear networks: log of the imbalance |D|, last task over the first"
    return [*out, Claim.at_most(name, DERIVED, (size[-1] - size[1]).mean(0), -1.0, rivals={"gradient flow": 0.0})]


def _furthest(name: str, found, tolerance: float, rivals) -> Claim:
    """Claims that all are 1: the furthest is; of a rival the furthest too."""
    worst = {key: float(np.ravel(x)[np.argmax(np.abs(np.ravel(x) - 1))]) for key, x in {"": found, **rivals}.items()}
    measured = worst.pop("")
    return Claim.close(name, DERIVED, measured, 1.0, tolerance, rivals=worst)
