"""Loss of plasticity solved exactly: two weights that learn a sign, which flips whenever it is learned.

``f = u v`` descends on ``(f - s)^2/2``; s = +-1 flips once ``|f - s| < tol``. Only the imbalance ``c = u^2 - v^2``
carries f past the saddle at 0, and a step of size eta takes it to ``c (1 - eta^2 (f - s)^2)``: ``L = ln 1/c`` obeys
``L <- L + eta asinh(2/c)`` a task, so that ``L + ln 4`` grows as ``(1 + eta)^k`` and with it, at the rate ``1/eta``,
the time to learn again. Gradient flow conserves c and never ages. Weight decay makes weights small, and ages faster;
noise renews c. In two-layer linear networks each mode of strength s ages by itself, at ``1 + eta s``: the strong ones
first; networks drawn at random age too.

u and v agree in all digits at L = 36 and rounding would keep c there; the run is in ``p, m = (u +- v)/sqrt 2``, of
which ``f = (p^2 - m^2)/2``, ``c = 2 p m`` and gradient descent is the same.

Run time: about 15 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dynamics import config
from dynamics.config import Count, NonNegative, Positive, Range
from dynamics.evolve import (
    Drawn,
    descent,
    every,
    gradient_descent,
    over_tasks,
    shrink_and_perturb,
    task_readings,
)
from dynamics.evolve import study as in_memory
from dynamics.losses import half_mse
from dynamics.runs.figures import colour, measured_style, new_figure, rival_style, theory_style
from dynamics.tasks.streams import label_flips
from dynamics.theory.deep_linear import imbalance
from dynamics.theory.plasticity import aged, relearning_steps
from dynamics.types import Batch, Claim, Objective, Record

SOURCE = "this repository; explains Dohare et al. 2024, 'Loss of plasticity in deep continual learning'"
SECONDS = 15
START = 0.5  # the imbalance c at the start
MOST = 100_000  # steps of a task, at most


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Count] = 8
    """draws of the noise, and of the linear networks"""
    eta: Annotated[tuple[float, ...], Range(0.0, 0.3, open_low=True)] = (0.1, 0.05, 0.02)
    """learning rates"""
    fine: Annotated[tuple[float, ...], Range(0.0, 0.3, open_low=True)] = (0.08, 0.04, 0.02, 0.01)
    """learning rates at which the order of the law's error is measured"""
    tolerance: Annotated[float, Range(0.0, 0.2, open_low=True)] = 0.01
    """tol, at which a sign counts as learned"""
    old: Annotated[float, Range(1.5, 20.0)] = 8.0
    """times by which age grows in a run: ln(old)/eta tasks"""
    decay: Annotated[tuple[float, ...], NonNegative] = (0.0, 0.01)
    """weight decay of the remedies"""
    noise: Annotated[tuple[float, ...], NonNegative] = (0.0, 0.001, 0.01)
    """noise of each step on each weight, of the remedies"""
    tasks: Annotated[int, Range(2)] = 60
    """tasks under the remedies"""
    modes: Annotated[tuple[float, ...], Positive] = (2.0, 1.0, 0.5)
    """strengths s of the linear network's modes"""
    width: Annotated[int, Count] = 5
    """hidden units of the linear network"""

    @classmethod
    def large(cls) -> Config:
        """Finer steps, more noise and tasks; twenty minutes on two cores."""
        return cls(
            seeds=32, eta=(0.1, 0.05, 0.02, 0.01, 0.005), fine=(0.08, 0.04, 0.02, 0.01, 0.005, 0.0025),
            decay=(0.0, 0.003, 0.01), noise=(0.0, 1e-4, 1e-3, 1e-2), tasks=100,
        )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.width >= len(self.modes), "width", "a hidden unit for each mode")


class Result(NamedTuple):
    """``records`` by task: 'flips' ``[K, eta]`` and 'fine' (at tol = 1e-5), 'remedies' ``[K, decay, noise, seed]``,
    'modes' ``[K, eta, seed]`` (with ``age [.., mode]``) and 'linear', networks that are drawn at random."""

    config: Config
    records: dict[str, Record]


def run(config: Config, study=in_memory) -> Result:
    """Everything in float64."""
    with jax.enable_x64(True):
        records = {
            "flips": run_flips(config, study, "flips", config.eta, config.tolerance),
            "fine": run_flips(config, study, "fine", config.fine, 1e-5),
            "remedies": run_remedies(config, study),
            "modes": run_linear(config, study, "modes"),
            "linear": run_linear(config, study, "linear"),
        }
    return Result(config, records)


def f(w, x):
    """``x u v`` in ``p, m = (u +- v)/sqrt 2``."""
    return x * (w["p"] ** 2 - w["m"] ** 2) / 2


def start(tolerance: float) -> dict[str, Any]:
    """``u v = -(1 - tol)``, ``u^2 - v^2 = START``."""
    a = -(1 - tolerance)
    both = math.hypot(START, 2 * a)  # u^2 + v^2
    p = math.sqrt((both + 2 * a) / 2) if a > 0 else START / math.sqrt(2 * (both - 2 * a))
    return {"p": jnp.asarray(p), "m": jnp.asarray(START / 2 / p)}


def readings(w, batch) -> dict[str, Any]:
    return {"age": -math.log(2) - jnp.log(jnp.abs(w["p"])) - jnp.log(jnp.abs(w["m"])), "f": f(w, 1.0)}


SIGN = Batch(np.ones((1, 1)), np.ones((1, 1)))
L = Objective(f, half_mse)


def flipping(dynamics, tolerance, read=readings, batch=SIGN, error=None):
    """``dynamics`` on signs that flip when they are learned."""
    off = error or (lambda w, part: jnp.abs(f(w, part.x) - part.y)[0, 0])
    return over_tasks(
        dynamics, label_flips(batch), steps=MOST, before=read, after=read, error=off, fit=tolerance, leave=True
    )


def run_flips(config: Config, study, label: str, eta, tolerance) -> Record:
    """Gradient descent; ``ln(old)/eta`` tasks, or ten for the fine steps."""

    def tasks(lane):
        return 10 if label == "fine" else round(math.log(config.old) / math.log1p(lane.eta))

    return study(
        {"eta": eta},
        draw=lambda lane: Drawn(start(tolerance)),
        make=lambda lane: flipping(gradient_descent(L, lane.eta), tolerance),
        read=task_readings(),
        steps=tasks,
        record_at=lambda lane: every(1, tasks(lane)),
        key=jax.random.key(config.seed),
        label=label,
    )


def run_remedies(config: Config, study) -> Record:
    """Weight decay and noise at eta = .05, tol = .1; every seed has its noise."""
    tolerance, eta = 0.1, 0.05

    def method(lane):
        decayed = optax.chain(optax.add_decayed_weights(lane.decay), optax.sgd(eta))
        seed = jax.random.fold_in(jax.random.key(config.seed), lane.seed)
        shaken = shrink_and_perturb(1.0, lane.noise, seed=jax.random.bits(seed))
        return flipping(descent(L, optax.chain(decayed, shaken)), tolerance)

    return study(
        {"decay": config.decay, "noise": config.noise, "seed": range(config.seeds)},
        draw=lambda lane: Drawn(start(tolerance)),
        make=method,
        read=task_readings(),
        steps=config.tasks,
        record_at=every(1, config.tasks),
        key=jax.random.key(config.seed),
        label="remedies",
    )


def run_linear(config: Config, study, label: str) -> Record:
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

        return flipping(gradient_descent(linear, lane.eta), tolerance, read, batch, error)

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


linear = Objective.of(lambda w, batch: 0.5 * jnp.sum((w[1] @ w[0] @ batch.x - batch.y) ** 2))


def growth(record: Record) -> np.ndarray:
    """By how much each task ages more than the one before, ``[*axes, ...]``: the geometric mean over tasks."""
    age = np.concatenate([np.asarray(record.values["before_age"])[1:2], np.asarray(record.values["after_age"])[1:]])
    steps = np.diff(age, axis=0)
    count = np.isfinite(age).sum(0) - 1
    last = np.take_along_axis(steps, np.maximum(count - 1, 0)[None], 0)[0]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(count > 1, (last / steps[0]) ** (1 / np.maximum(count - 1, 1)), np.nan)


def claims(result: Result) -> list[Claim]:
    return [*law_claims(result), *remedy_claims(result), *linear_claims(result)]


DERIVED = "derived here"


def law_claims(result: Result) -> list[Claim]:
    """The law of ageing, its order in eta, and the time to learn again."""
    cfg, flips, fine = result.config, result.records["flips"], result.records["fine"]
    eta, found = np.asarray(cfg.eta), growth(result.records["flips"])
    out = []
    for rate, one in zip(eta, found):
        name = f"growth of age a task over eta, less 1, eta = {rate:g}"
        rivals = {"linear ageing": 0.0, "gradient flow": 0.0, "twice eta": 2.0}
        out.append(Claim.close(name, DERIVED, float((one - 1) / rate), 1.0, float(max(rate, 0.02)), rivals=rivals))
    started, ended = fine.values["before_age"][1], fine.values["after_age"][-1]
    told = started
    with jax.enable_x64(True):
        for _ in range(len(fine.step) - 1):
            told = np.asarray(aged(told, np.asarray(cfg.fine)))
        age = flips.values["before_age"][1:]
        steps = np.asarray(relearning_steps(age, eta, cfg.tolerance))
        first = np.asarray(relearning_steps(age[0], eta, cfg.tolerance))
    name = "error of the law's increment over ten tasks: its order in eta"
    if len(cfg.fine) < 3:
        out.append(Claim.not_applicable(name, DERIVED, "needs three fine steps"))
    else:
        miss = {key: np.abs((x - started) / (ended - started) - 1) for key, x in (("law", told), ("flow", started))}
        slope = {key: float(np.polyfit(np.log(cfg.fine), np.log(x), 1)[0]) for key, x in miss.items()}
        note = f"errors {', '.join(f'{x:.4f}' for x in miss['law'])}"
        rivals = {"gradient flow": slope["flow"]}
        out.append(Claim.close(name, DERIVED, slope["law"], 1.0, 0.2, rivals=rivals, note=note))
    time = flips.values["time_to_fit"][1:]
    worst = {key: np.nanmax(np.abs(time / x - 1), 0) / eta for key, x in (("law", steps), ("flow", first))}
    name = "steps to learn again against theory at the measured age, largest relative error over eta"
    out.append(
        Claim.at_most(
            name, DERIVED, float(np.max(worst["law"])), 0.5, rivals={"gradient flow": float(np.min(worst["flow"]))}
        )
    )
    last = np.isfinite(time).sum(0) - 1
    rise = [eta[i] * (time[k, i] - time[k // 2, i]) / (age[k, i] - age[k // 2, i]) for i, k in enumerate(last)]
    name = "eta dT/dL, second half of the tasks, furthest from 1"
    rivals = {"only on the way to the saddle": 0.5, "gradient flow": 0.0}
    furthest = float(max(rise, key=lambda x: abs(x - 1)))
    return [*out, Claim.close(name, DERIVED, furthest, 1.0, 0.05, rivals=rivals)]


def remedy_claims(result: Result) -> list[Claim]:
    """By seed: logarithms of the last task's steps over the first's, or over the control's."""
    cfg, record = result.config, result.records["remedies"]
    time = np.log(record.values["time_to_fit"])  # [K, decay, noise, seed]
    none, decays, noises = 0.0 in cfg.decay and 0.0 in cfg.noise, max(cfg.decay), sorted(set(cfg.noise) - {0.0})
    names = (
        "noise: log of the last task's steps over the first's",
        "weight decay: log of the last task's steps over those without",
        "weight decay: growth of age a task, less 1, over eta + 2 decay",
    )
    if not none or not noises or not decays or cfg.tasks < 40 or cfg.seeds < 2:
        note = "needs 40 tasks, two seeds, and runs without and with noise and decay"
        return [Claim.not_applicable(name, DERIVED, note) for name in names]
    zero, off = cfg.decay.index(0.0), cfg.noise.index(0.0)
    decay = cfg.decay.index(decays)
    gain = time[-1] - time[1]
    least = np.max(gain[zero, [cfg.noise.index(x) for x in noises]], 0)
    over = time[-1, decay] - time[-1, zero, off]
    eta, ages = 0.05, growth(record)[decay, off, 0] - 1
    small = {"small weights keep plasticity": 0.0, "with noise": over[cfg.noise.index(noises[-1])]}
    return [
        Claim.at_most(names[0], DERIVED, least, math.log(3), rivals={"no noise": gain[zero, off]}),
        Claim.at_least(names[1], DERIVED, over[off], math.log(1.5), rivals=small),
        Claim.close(
            names[2], DERIVED, ages / (eta + 2 * decays), 1.0, 0.1,
            rivals={"that of descent alone": eta / (eta + 2 * decays)},
        ),
    ]  # fmt: skip


def linear_claims(result: Result) -> list[Claim]:
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


def figure(result: Result):
    """Steps to learn again over theory; remedies; the modes of a linear network; random linear networks."""
    cfg, records = result.config, result.records
    fig, ((again, remedies), (modes, random)) = new_figure(2, 2, width=4.4, height=3.2)
    flips = records["flips"]
    for i, eta in enumerate(cfg.eta):
        style, time = measured_style(i, len(cfg.eta)), flips.values["time_to_fit"][1:, i]
        with jax.enable_x64(True):
            told = [flips.values["before_age"][1, i]]
            while len(told) < np.isfinite(time).sum():
                told.append(float(aged(told[-1], eta)))
            told = np.asarray(relearning_steps(np.asarray(told), eta, cfg.tolerance))
        tasks = np.arange(1, len(told) + 1)
        again.semilogy(tasks, time[: len(told)], ms=3, label=f"eta = {eta:g}", **style)
        again.semilogy(tasks, told, label=None if i else "theory from the first task's c", **theory_style())
        straight = told[0] + (told[min(1, len(told) - 1)] - told[0]) * (tasks - 1)
        again.semilogy(tasks, straight, label=None if i else "linear ageing", **rival_style(0))
        again.semilogy(tasks, 0 * tasks + told[0], label=None if i else "gradient flow", **rival_style(2))
    again.set(xlabel="task", ylabel="steps to learn the sign again")
    again.legend(fontsize=7)
    time, cells = records["remedies"].values["time_to_fit"][1:], [(d, n) for d in cfg.decay for n in cfg.noise]
    for i, (decay, noise) in enumerate(cells):
        rows = records["remedies"].at(decay=decay, noise=noise).values["time_to_fit"][1:]
        name = " + ".join([f"decay {decay:g}"] * (decay > 0) + [f"noise {noise:g}"] * (noise > 0)) or "none"
        style = measured_style(i, len(cells)) | {"linestyle": "-", "linewidth": 0.8}
        remedies.semilogy(np.arange(1, len(rows) + 1), np.median(rows, -1), ms=3, label=name, **style)
    remedies.set(xlabel="task", ylabel="steps, median of seeds", ylim=(None, 4 * np.nanmax(time)))
    remedies.legend(fontsize=7, ncol=2, title="remedy", title_fontsize=7)
    aged_modes = records["modes"]
    eta = float(np.asarray(aged_modes.axes["eta"])[0])
    for i, s in enumerate(cfg.modes):
        style, told = measured_style(i, len(cfg.modes)), [aged_modes.values["before_age"][1, 0, 0, i]]
        rows = np.append(told, aged_modes.values["after_age"][1:, 0, 0, i]) + math.log(4 * s)
        with jax.enable_x64(True):
            while len(told) < len(rows):
                told.append(float(aged(told[-1], eta, s)))
        modes.semilogy(rows, ms=3, label=f"s = {s:g}", **style)
        modes.semilogy(np.asarray(told) + math.log(4 * s), label=None if i else "theory", **theory_style())
    modes.set(xlabel="tasks done", ylabel="age of the mode, L + ln 4s", title=f"linear network, eta = {eta:g}")
    modes.legend(fontsize=7)
    rows = records["linear"]
    for i, eta in enumerate(np.asarray(rows.axes["eta"])):
        lines = rows.values["time_to_fit"][1:, i]
        shade = colour(i, 2)
        random.semilogy(np.arange(1, len(lines) + 1), lines, color=shade, lw=0.7, alpha=0.7)
        random.semilogy([], [], color=shade, label=f"eta = {eta:g}, a line a network")
    random.set(xlabel="task", ylabel="steps to learn -S, then S, ...", title="random linear networks")
    random.legend(fontsize=7)
    return fig


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
