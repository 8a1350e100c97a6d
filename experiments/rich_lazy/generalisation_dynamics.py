"""Generalisation along training in high dimensions (Advani & Saxe 2017).

A linear student of N weights learns ``y = X wbar + noise`` from P = a N samples by full-batch gradient descent (updates
``eta X^T r``, entries of X of variance 1/N). As N grows its errors follow the Marchenko-Pastur law mode by mode:
``E_g(t) = se^2 + S E[e^(-2 l t)] + E_{l>0}[(se^2/l)(1 - e^(-l t))^2]``. Without early stopping the error diverges at
a = 1; with it, more data always helps; and for a < 1 the share 1 - a of weight space never moves. A ReLU network beside
it overtrains in the same way: most when samples and parameters are about equal.

Run time: about 60 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import config, stax
from dynamics.config import Count, NonNegative, Positive
from dynamics.evolve import Drawn, gradient_descent, log_steps
from dynamics.evolve import study as in_memory
from dynamics.losses import half_mse, mse
from dynamics.runs.figures import measured_style, new_figure, rival_style, ticks_at
from dynamics.theory.generalisation import linear_student
from dynamics.types import Batch, Claim, Data, Objective, Observable, Record

SOURCE = "Advani & Saxe 2017, 'High-dimensional dynamics of generalization error in neural networks'"
SECONDS = 60
LATE = 1000.0  # time of the 'late' test error
WEIGHTS = 160  # of the ReLU network


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Count] = 200
    """number of independent draws of data, teacher and start"""
    size: Annotated[int, Count] = 200
    """weights N of the linear student"""
    aspect: Annotated[tuple[float, ...], Positive] = (0.5, 0.9, 1.0, 1.1, 2.0)
    """samples per weight a = P/N, ascending"""
    noise: Annotated[float, NonNegative] = 0.2
    """label noise se^2 (the teacher's variance is 1)"""
    start: Annotated[float, NonNegative] = 0.0
    """initial weights' variance s0^2"""
    learning_rate: Annotated[float, Positive] = 0.1
    """eta of the linear student"""
    steps: Annotated[int, Count] = 500
    """steps of the linear student, to time t = eta steps"""
    network_samples: Annotated[tuple[int, ...], Count] = (20, 40, 80, 160, 320, 640)
    """training samples of the ReLU network, ascending"""
    network_seeds: Annotated[int, Count] = 12
    """draws of the ReLU network's task"""
    network_steps: Annotated[int, Count] = 4000
    """steps of the ReLU network"""

    @classmethod
    def large(cls) -> Config:
        """More aspects, three times the time; sizes of ours, where the paper has MNIST too. Seven minutes of a
        core."""
        return cls(aspect=(0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.5, 2.0, 4.0), steps=1500, network_steps=12_000)

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("aspect", "network_samples"):
            self.require(bool(np.all(np.diff(getattr(self, field)) > 0)), field, "ascending values")
        self.require(min(self.aspect) * self.size >= 1, "aspect", "at least one sample")


class Result(NamedTuple):
    """``records``: 'student' ``[T, a, seeds]``, 'theory' ``[T, a]``, 'late theory' ``[1, a]``, 'late' (measured:
    ``late [1, a, seeds]``, ``early_stopped [1, a]``) and 'network' ``[T, samples, seeds]``."""

    config: Config
    records: dict[str, Record]


def run(config: Config, study=in_memory) -> Result:
    """The linear student at each aspect, its theory, and the ReLU network."""
    student = run_student(config, study)
    late = {"late": student.values.pop("late")[:1], "early_stopped": student.values["test"].mean(-1).min(0)[None]}
    theory = student_theory(config, student.time, config.learning_rate)
    curves = student_theory(config, np.geomspace(1e-2, LATE, 400), None)["test"]
    best = {"late": curves[-1:], "early_stopped": curves.min(0)[None]}
    once, axes = (np.zeros(1, int), np.array([LATE])), {"aspect": student.axes["aspect"]}
    records = {"student": student, "theory": Record(student.step, student.time, theory, axes)}
    records |= {"late": Record(*once, late, student.axes), "late theory": Record(*once, best, axes)}
    return Result(config, records | {"network": run_network(config, study)})


def student_theory(config: Config, times, learning_rate) -> dict:
    """Mean train and test error ``[T, a]``."""
    how = {"start": config.start, "noise": config.noise, "learning_rate": learning_rate, "nodes": 2000}
    errors = [linear_student(times, aspect, **how) for aspect in config.aspect]
    return {side: np.stack([getattr(error, side) for error in errors], axis=1) for side in ("train", "test")}


def linear(w, x):
    return x @ w


def run_student(config: Config, study) -> Record:
    """``seeds`` draws side by side; the loss ``1/2 sum r^2`` gives updates ``eta X^T r``.

    ``late`` is the test error of gradient flow at ``t = LATE``, by singular values.
    """
    L, key = Objective(linear, lambda f, y: 0.5 * jnp.sum((f - y) ** 2)), jax.random.key(config.seed)

    @partial(jax.jit, static_argnums=1)
    def draw(seed, samples) -> Drawn:
        n, (kx, kt, ks, ke) = config.size, jax.random.split(jax.random.fold_in(key, seed), 4)
        x, teacher = jax.random.normal(kx, (samples, n)) / n**0.5, jax.random.normal(kt, (n, 1))
        y = x @ teacher + config.noise**0.5 * jax.random.normal(ke, (samples, 1))
        start = config.start**0.5 * jax.random.normal(ks, (n, 1))
        u, s, vt = jnp.linalg.svd(x, full_matrices=False)
        end = start + vt.T @ (-jnp.expm1(-(s**2) * LATE) / s * (u.T @ (y - x @ start))[:, 0])[:, None]
        return Drawn(start, Batch(x, y), {"teacher": teacher, "end": test_error(end, teacher)})

    def test_error(w, teacher):
        return jnp.mean((w - teacher) ** 2) + config.noise

    def read(view, lane):
        train = mse(linear(view.params, view.batch.x), view.batch.y)
        return {"train": train, "test": test_error(view.params, lane.teacher), "late": lane.end}

    record = study(
        {"aspect": config.aspect, "seed": range(config.seeds)},
        draw=lambda lane: draw(lane.seed, round(lane.aspect * config.size)),
        make=lambda lane: gradient_descent(L, config.learning_rate),
        read=lambda lane: Observable.of_view(lambda view: read(view, lane)),
        steps=config.steps,
        record_at=log_steps(config.steps, 40),
        key=key,
        label="student",
    )
    return record._replace(time=record.step * config.learning_rate)


def run_network(config: Config, study) -> Record:
    """A ReLU student of 10 hidden units on 15 inputs (160 weights) with a teacher of its own kind, noisy labels."""
    model, dim, most = stax.serial(stax.Dense(10), stax.Relu(), stax.Dense(1)), 15, max(config.network_samples)
    key = jax.random.fold_in(jax.random.key(config.seed), 1)

    @jax.jit
    def draw(seed):
        kt, ks, kx, ke = jax.random.split(jax.random.fold_in(key, seed), 4)
        x = jax.random.normal(kx, (most + 1000, dim))
        teacher = model.init(kt, (-1, dim))[1]
        y = model.apply(teacher, x)
        y, noise = y / jnp.std(y), config.noise**0.5 * jax.random.normal(ke, (most, 1))
        small = jax.tree.map(lambda leaf: 0.3 * leaf, model.init(ks, (-1, dim))[1])
        return Data(Batch(x[:most], y[:most] + noise), Batch(x[most:], y[most:])), small

    def objective(samples) -> Objective:
        """Half mean squared error on the first ``samples`` rows."""
        used = jnp.arange(most)[:, None] < samples
        return Objective(model.apply, lambda f, y: 0.5 * jnp.sum(jnp.where(used, (f - y) ** 2, 0.0)) / samples)

    def read(view):
        test = half_mse(model.apply(view.params, view.data.test.x), view.data.test.y)
        return {"train": 2 * view.objective(view.params, view.batch), "test": 2 * test + config.noise}

    return study(
        {"network_samples": config.network_samples, "seed": range(config.network_seeds)},
        draw=lambda lane: draw(lane.seed),
        make=lambda lane: gradient_descent(objective(lane.network_samples), 0.5),
        read=Observable.of_view(read),
        steps=config.network_steps,
        record_at=log_steps(config.network_steps, 50),
        key=jax.random.key(config.seed),
        label="network",
    )


def claims(result: Result) -> list[Claim]:
    return [*student_claims(result), *aspect_claims(result), *network_claims(result)]


FEW = "needs some 200 draws of 200 weights"


def student_claims(result: Result) -> list[Claim]:
    """Means over draws at every recorded ``t <= 50`` and every a, in their own standard errors: one test each."""
    cfg, (measured, predicted), out = result.config, (result.records[name] for name in ("student", "theory")), []
    early, wrong = predicted.time <= 50, wrong_theories(result)
    for side, source in (("test", "eq. 17"), ("train", "eq. 20")):
        name = f"mean {side} error against theory, t <= 50, every a"
        if cfg.seeds * cfg.size < 20_000:
            out.append(Claim.not_applicable(name, source, FEW))
            continue
        rows, theory = measured.values[side][early], predicted.values[side][early]
        mean, error = rows.mean(-1), rows.std(-1, ddof=1) / cfg.seeds**0.5
        rivals = {key: (mean - curves[side][early]) / error for key, curves in wrong.items() if side in curves}
        note = f"largest deviation {np.max(np.abs(mean - theory) / theory[0]):.4f} of the start"
        out.append(Claim.cells(name, source, (mean - theory) / error, rivals=rivals, note=note))
    return out


def wrong_theories(result: Result) -> dict[str, dict[str, np.ndarray]]:
    """Errors ``[T, a]`` without label noise, at half the rate, and of a test error without the frozen subspace."""
    cfg, time = result.config, result.records["theory"].time
    found = {
        "no label noise": student_theory(dataclasses.replace(cfg, noise=0.0), time, cfg.learning_rate),
        "half the rate": student_theory(cfg, time / 2, cfg.learning_rate / 2),
    }
    if min(cfg.aspect) < 1:
        frozen = np.maximum(0.0, 1 - np.asarray(cfg.aspect)) * (1 + cfg.start)
        learnt = frozen * -np.expm1(-2 * time[:, None])  # as if at the mean rate
        found["no frozen subspace"] = {"test": result.records["theory"].values["test"] - learnt}
    return found


def early_stopped(result: Result) -> np.ndarray:
    """``[a, seeds]``: test error of every draw at the recorded time that is best in theory."""
    at = result.records["theory"].values["test"].argmin(0)
    return result.records["student"].values["test"][at, np.arange(len(at))]


def aspect_claims(result: Result) -> list[Claim]:
    """The peak at a = 1 and its absence under early stopping."""
    cfg, late, early = result.config, result.records["late"].values["late"][0], early_stopped(result)
    names = (
        "late test error against theory, every a",
        "late test error at a = 1 over that of its larger neighbour",
        "early-stopped test error falls with a: largest rise",
    )
    if cfg.seeds * cfg.size < 20_000 or 1.0 not in cfg.aspect[1:-1] or cfg.noise == 0:
        note = f"needs noise and a = 1 inside the grid, and {FEW[6:]}"
        return [Claim.not_applicable(name, "figure 3", note) for name in names]
    noiseless = student_theory(dataclasses.replace(cfg, noise=0.0), np.array([LATE]), None)["test"][0]
    theory, error = result.records["late theory"].values["late"][0], late.std(-1, ddof=1) / cfg.seeds**0.5
    z, rival = ((late.mean(-1) - curve) / error for curve in (theory, noiseless))
    one = cfg.aspect.index(1.0)
    beside = one + (1 if late[one + 1].mean() > late[one - 1].mean() else -1)
    rivals = {"early stopped": early[one] - early[beside], "no label noise": noiseless[one] - noiseless[beside]}
    rise, of_late = (curve[np.argmax(curve.mean(-1))] for curve in (np.diff(early, axis=0), np.diff(late, axis=0)))
    return [
        Claim.cells(names[0], "figure 3", z, rivals={"no label noise": rival}),
        Claim.at_least(names[1], "figure 3", late[one] - late[beside], 0.1, rivals=rivals),
        Claim.at_most(names[2], "figure 3", rise, 0.0, rivals={"late": of_late}),
    ]


def network_claims(result: Result) -> list[Claim]:
    """By seed, in logarithms."""
    cfg, samples = result.config, np.asarray(result.config.network_samples)
    test = result.records["network"].values["test"]  # [T, samples, seeds]
    early = np.log(test.min(0))
    excess = np.log(test[-1]) - early
    names = (
        "ReLU network: log of the early-stopped error, most samples over fewest",
        "ReLU network: log of late over early-stopped error, half to twice as many samples as weights over the others",
    )
    near = (samples >= WEIGHTS / 2) & (samples <= 2 * WEIGHTS)
    if near[0] or near[-1] or not near.any() or cfg.network_seeds < 3:
        note = f"needs samples from below {WEIGHTS / 2:g} to above {2 * WEIGHTS:g}, and three seeds"
        return [Claim.not_applicable(name, "section 5", note) for name in names]
    note = f"{WEIGHTS} weights; late over early-stopped: " + ", ".join(f"{v:.2f}" for v in np.exp(excess.mean(-1)))
    none = {"samples have no effect": 0.0}
    gap = excess[near].mean(0) - excess[~near].mean(0)
    return [
        Claim.at_most(names[0], "section 5", early[-1] - early[0], np.log(0.9), rivals=none),
        Claim.at_least(names[1], "section 5", gap, 0.0, rivals=none, note=note),
    ]


def figure(result: Result):
    """Test error along training over theory; late and early-stopped error against a; the ReLU network."""
    cfg, records = result.config, result.records
    fig, (along, peak, network) = new_figure(1, 3, width=3.7, height=3.8)
    measured, predicted = records["student"], records["theory"]
    for i, aspect in enumerate(cfg.aspect):
        style = measured_style(i, len(cfg.aspect))
        mean = measured.values["test"][1:, i].mean(-1)
        along.plot(measured.time[1:], mean, ms=4, label=f"a = {aspect:g}", **style)
        along.plot(predicted.time[1:], predicted.values["test"][1:, i], "-", color=style["color"], lw=1)
    for i, (name, curves) in enumerate(wrong_theories(result).items()):
        at = 0 if name == "no frozen subspace" else len(cfg.aspect) // 2
        label = f"{name}, a = {cfg.aspect[at]:g}"
        along.plot(predicted.time[1:], curves["test"][1:, at], label=label, **rival_style(i))
    along.set(xscale="log", xlabel="time (learning rate x step)", ylabel="test error; lines: Marchenko-Pastur theory")
    along.set_ylim(top=1.75)
    along.legend(fontsize=7, ncol=2, loc="upper right")
    for name, marker, line in (("late", "o", "-"), ("early_stopped", "s", "--")):
        found = np.reshape(records["late"].values[name][0], (len(cfg.aspect), -1)).mean(1)
        peak.plot(cfg.aspect, found, marker, color="black", mfc="white", label=name.replace("_", " "))
        peak.plot(cfg.aspect, records["late theory"].values[name][0], line, color="black", lw=1)
    peak.set(xlabel="samples per weight a", ylabel=f"test error (late: t = {LATE:g}); lines: theory", yscale="log")
    peak.legend(fontsize=8)
    test = records["network"].values["test"]
    network.plot(cfg.network_samples, test[-1].mean(-1), "o-", color="black", mfc="white", label="end of training")
    network.plot(cfg.network_samples, test.min(0).mean(-1), "s--", color="black", mfc="white", label="early stopped")
    network.axvline(WEIGHTS, ls=":", color="grey")
    network.set(
        xscale="log", yscale="log", xlabel="samples (dots: number of weights)", ylabel="test error of the ReLU network"
    )
    ticks_at(network.xaxis, cfg.network_samples)
    network.legend(fontsize=8)
    return fig


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
