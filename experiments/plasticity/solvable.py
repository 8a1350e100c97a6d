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
from dynamics.evolve import Drawn, descent, every, gradient_descent, shrink_and_perturb, task_readings
from dynamics.evolve import study as in_memory
from dynamics.losses import half_mse
from dynamics.runs.figures import colour, measured_style, new_figure, rival_style, theory_style, ticks_at
from dynamics.theory.plasticity import aged, relearning_steps
from dynamics.types import Batch, Claim, Objective, Record

from ._linear_networks import DERIVED, START, flipping, growth, linear_claims, run_linear

SOURCE = "this repository; explains Dohare et al. 2024, 'Loss of plasticity in deep continual learning'"
SECONDS = 15
REMEDIES = 0.05, 0.1  # eta and tol of their runs


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
        """Finer steps, more noise and tasks; half a minute of a core. The least noise is too little: a claim fails."""
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
    p = START / math.sqrt(2 * (both - 2 * a))
    return {"p": jnp.asarray(p), "m": jnp.asarray(START / 2 / p)}


def readings(w, batch) -> dict[str, Any]:
    """Age and f; the age is NaN where a weight has come near the smallest of the floating-point numbers."""
    sizes = jnp.abs(w["p"]), jnp.abs(w["m"])
    known = jnp.minimum(*sizes) > 1e6 * jnp.finfo(sizes[0].dtype).tiny
    return {"age": jnp.where(known, -math.log(2) - jnp.log(sizes[0]) - jnp.log(sizes[1]), jnp.nan), "f": f(w, 1.0)}


L = Objective(f, half_mse)


def signs(dynamics, tolerance: float):
    """``dynamics`` on a sign that flips when it is learned."""
    batch = Batch(np.ones((1, 1)), np.ones((1, 1)))
    return flipping(dynamics, tolerance, batch, lambda w, part: jnp.abs(f(w, part.x) - part.y)[0, 0], readings)


def run_flips(config: Config, study, label: str, eta, tolerance) -> Record:
    """Gradient descent; ``ln(old)/eta`` tasks, or ten for the fine steps."""

    def tasks(lane):
        return 10 if label == "fine" else round(math.log(config.old) / math.log1p(lane.eta))

    return study(
        {"eta": eta},
        draw=lambda lane: Drawn(start(tolerance)),
        make=lambda lane: signs(gradient_descent(L, lane.eta), tolerance),
        read=task_readings(),
        steps=tasks,
        record_at=lambda lane: every(1, tasks(lane)),
        key=jax.random.key(config.seed),
        label=label,
    )


def run_remedies(config: Config, study) -> Record:
    """Weight decay and noise; every seed has its noise."""
    eta, tolerance = REMEDIES

    def method(lane):
        decayed = optax.chain(optax.add_decayed_weights(lane.decay), optax.sgd(eta))
        seed = jax.random.fold_in(jax.random.key(config.seed), lane.seed)
        shaken = shrink_and_perturb(1.0, lane.noise, seed=jax.random.bits(seed))
        return signs(descent(L, optax.chain(decayed, shaken)), tolerance)

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


def claims(result: Result) -> list[Claim]:
    return [*law_claims(result), *remedy_claims(result), *linear_claims(result)]


def law_claims(result: Result) -> list[Claim]:
    """The law of ageing, its order in eta, and the time to learn again."""
    cfg, flips = result.config, result.records["flips"]
    eta, found = np.asarray(cfg.eta), growth(result.records["flips"])
    out = []
    for rate, one in zip(eta, found):
        name = f"growth of age a task over eta, less 1, eta = {rate:g}"
        rivals = {"linear ageing": 0.0, "gradient flow": 0.0, "twice eta": 2.0}
        out.append(Claim.close(name, DERIVED, float((one - 1) / rate), 1.0, float(max(rate, 0.02)), rivals=rivals))
    with jax.enable_x64(True):
        age = flips.values["before_age"][1:]
        steps = np.asarray(relearning_steps(age, eta, cfg.tolerance))
        first = np.asarray(relearning_steps(age[0], eta, cfg.tolerance))
    name = "error of the law's increment over ten tasks: its order in eta"
    if len(cfg.fine) < 3:
        out.append(Claim.not_applicable(name, DERIVED, "needs three fine steps"))
    else:
        miss = missed(result)
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


def missed(result: Result) -> dict[str, np.ndarray]:
    """Relative errors ``[eta]`` of the law's and of gradient flow's increment of age over all fine tasks."""
    fine, eta = result.records["fine"], np.asarray(result.config.fine)
    told = started = fine.values["before_age"][1]
    with jax.enable_x64(True):
        for _ in range(len(fine.step) - 1):
            told = np.asarray(aged(told, eta))
    gained = fine.values["after_age"][-1] - started
    return {key: np.abs((x - started) / gained - 1) for key, x in (("law", told), ("flow", started))}


def remedy_claims(result: Result) -> list[Claim]:
    """By seed: logarithms of the last task's steps over the first's, or over the control's.

    Without noise all seeds are one run."""
    cfg, record = result.config, result.records["remedies"]
    known = np.isfinite(record.values["after_age"]).all((1, 2, 3))
    time = np.log(record.values["time_to_fit"])[: 1 + np.flatnonzero(known).max(initial=1)]  # [K, decay, noise, seed]
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
    eta, ages = REMEDIES[0], growth(record)[decay, off, 0] - 1
    small = {"small weights keep plasticity": 0.0, "with noise": over[cfg.noise.index(noises[-1])]}
    return [
        Claim.at_most(names[0], DERIVED, least, math.log(3), rivals={"no noise": gain[zero, off]}),
        Claim.at_least(names[1], DERIVED, float(over[off, 0]), math.log(1.5), rivals=small),
        Claim.close(
            names[2], DERIVED, ages / (eta + 2 * decays), 1.0, 0.1,
            rivals={"that of descent alone": eta / (eta + 2 * decays)},
        ),
    ]  # fmt: skip


def figure(result: Result):
    """Steps to learn again over theory; the plane of uv and c; the law's order; remedies; linear networks."""
    cfg, records = result.config, result.records
    fig, ((again, plane, order), (remedies, modes, random)) = new_figure(2, 3, width=4.2, height=3.2)
    portrait(plane, result)
    for key, style in (("law", measured_style(0)), ("flow", rival_style(2))):
        order.loglog(cfg.fine, missed(result)[key], label={"law": "law", "flow": "gradient flow"}[key], **style)
    law = missed(result)["law"]
    order.loglog(
        cfg.fine, law[-1] * np.asarray(cfg.fine) / cfg.fine[-1], label="in proportion to eta", **theory_style()
    )
    order.set(xlabel="eta", ylabel="error of ten tasks' ageing, relative")
    order.legend(fontsize=7)
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
    ticks_at(random.xaxis, range(1, len(rows.step)))
    for i, eta in enumerate(np.asarray(rows.axes["eta"])):
        lines = rows.values["time_to_fit"][1:, i]
        shade = colour(i, 2)
        random.semilogy(np.arange(1, len(lines) + 1), lines, color=shade, lw=0.7, alpha=0.7)
        random.semilogy([], [], color=shade, label=f"eta = {eta:g}, a line a network")
    random.set(xlabel="task", ylabel="steps to learn -S, then S, ...", title="random linear networks")
    random.legend(fontsize=7)
    return fig


def portrait(panel, result: Result) -> None:
    """The plane of ``f = u v`` and ``c = u^2 - v^2``: ends of tasks at the first eta, on the path of descent's map.

    With ``e = f - s``: ``f <- f (1 + eta^2 e^2) - eta e sqrt(c^2 + 4 f^2)``, ``c <- c (1 - eta^2 e^2)``.
    """
    eta, values = result.config.eta[0], result.records["flips"].at(eta=result.config.eta[0]).values
    ages = np.append(values["before_age"][1], values["after_age"][1:])
    ends, c = np.append(values["before_f"][1], values["after_f"][1:]), np.exp(-ages)
    path = [(ends[0], c[0])]
    for end in ends[1 : np.isfinite(ends).sum()]:
        s = np.sign(end)
        while abs(path[-1][0] - s) >= result.config.tolerance:
            f, c_now = path[-1]
            e = f - s
            path.append((f * (1 + eta**2 * e**2) - eta * e * math.hypot(c_now, 2 * f), c_now * (1 - eta**2 * e**2)))
    panel.semilogy(*np.transpose(path), label="descent's map in uv and c", **theory_style())
    panel.semilogy(ends, c, label="ends of tasks, measured", ms=4, **measured_style(0))
    panel.axhline(c[0], label="gradient flow", **rival_style(2))
    panel.set(xlabel="uv", ylabel="imbalance c = u$^2$ - v$^2$", title=f"eta = {eta:g}")
    panel.set_ylim(np.nanmin(c) ** 1.3, 2)
    panel.legend(fontsize=7, loc="lower center")


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
