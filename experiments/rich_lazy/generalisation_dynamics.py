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
from dynamics.runs.figures import measured_style, new_figure, ticks_at
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
    network_seeds: Annotated[int, Count] = 8
    """draws of the ReLU network's task"""
    network_steps: Annotated[int, Count] = 4000
    """steps of the ReLU network"""

    @classmethod
    def paper(cls) -> Config:
        """More aspects, ten times the time."""
        return cls(aspect=(0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.5, 2.0, 4.0), steps=5000, network_steps=40_000)

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
    cfg, (measured, predicted), out = result.config, (result.records[name] for name in ("student", "theory")), []
    early = predicted.time <= 50
    gap = {name: np.abs(measured.values[name].mean(-1) - predicted.values[name])[early] for name in ("train", "test")}
    test = (gap["test"] / predicted.values["test"][early]).max(0)
    train = (gap["train"] / predicted.values["train"][0]).max(0)
    for i, aspect in enumerate(cfg.aspect):
        for name, error, source in (
            ("mean test error against theory, t <= 50, largest relative deviation", test, "eq. 17"),
            ("mean train error against theory, t <= 50, largest deviation over its start", train, "eq. 20"),
        ):
            name = f"a = {aspect:g}: {name}"
            if cfg.seeds * cfg.size < 20_000:
                out.append(Claim.not_applicable(name, source, "needs some 200 draws of 200 weights"))
            else:
                out.append(Claim.at_most(name, source, error[i], 0.02))
    return [*out, *aspect_claims(result), *network_claims(result)]


def aspect_claims(result: Result) -> list[Claim]:
    """The peak at a = 1 and its absence under early stopping, in the theory and in the students themselves."""
    cfg, out = result.config, []
    for side, record in (("theory", "late theory"), ("measured", "late")):
        late, early = (np.asarray(result.records[record].values[name][0]) for name in ("late", "early_stopped"))
        late = late if late.ndim == 1 else late.mean(1)
        few = side == "measured" and cfg.seeds * cfg.size < 20_000
        peak, fall = f"{side} late test error peaks at a", f"{side} early-stopped error falls with a: largest rise"
        if few or 1.0 not in cfg.aspect[1:-1] or cfg.noise == 0:
            out.append(Claim.not_applicable(peak, "figure 3", "needs noise, a = 1 inside the grid and 200 large draws"))
        else:
            at = cfg.aspect[int(np.argmax(late))] if np.isfinite(late).all() else np.nan
            out.append(Claim.close(peak, "figure 3", at, 1.0, 0.0))
        if few or len(cfg.aspect) < 2:
            out.append(Claim.not_applicable(fall, "figure 3", "needs two values of a and some 200 large draws"))
        else:
            out.append(Claim.at_most(fall, "figure 3", np.diff(early).max(), 0.0))
    return out


def network_claims(result: Result) -> list[Claim]:
    cfg = result.config
    test = result.records["network"].values["test"]  # [T, samples, seeds]
    late, early = test[-1].mean(-1), test.min(0).mean(-1)
    excess = late / early
    name = "ReLU network: early-stopped error, most samples over fewest"
    out = [Claim.at_most(name, "section 5", early[-1] / early[0], 0.9)]
    if len(cfg.network_samples) < 2:
        out = [Claim.not_applicable(name, "section 5", "needs two numbers of samples")]
    name = "ReLU network: samples at which training too long costs most"
    low, high = WEIGHTS / 2, 2 * WEIGHTS
    few, many = min(cfg.network_samples), max(cfg.network_samples)
    if not few < low < high < many:
        return [*out, Claim.not_applicable(name, "section 5", f"needs samples from below {low:g} to above {high:g}")]
    note = f"{WEIGHTS} weights; late over early-stopped error: " + ", ".join(f"{value:.2f}" for value in excess)
    peak = cfg.network_samples[int(np.argmax(excess))] if np.isfinite(excess).all() else np.nan
    return [*out, Claim.between(name, "section 5", peak, low, high, note=note)]


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
    along.set(xscale="log", xlabel="time (learning rate x step)", ylabel="test error; lines: Marchenko-Pastur theory")
    along.legend(fontsize=7)
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
