"""Learning in context: from memorised tasks to all of them, exactly (Lu et al. 2025; Raventos et al. 2023).

Linear attention ``f = x^T Gamma h``, ``h = (1/n) sum y_i x_i``, is trained on sequences of linear regressions whose
tasks w are K fixed ones. With ``R = (1/K) sum w w^T`` and ``A = (1 + 1/n) R + (tr R + s2)/n I`` its risk is
``tr R - 2 tr(Gamma R) + tr(Gamma A Gamma^T)``, at any n, d and K; gradient descent goes as ``Gamma_t = R A^-1 (I - (I -
eta A)^t)``, and on fresh tasks R is I/d. The more tasks it sees the worse it does on each of them and the better on new
ones. A small transformer (preset ``transformer``) on the same sequences stands between the Bayes estimator that knows
the K tasks and ridge regression, which knows none.

Run time: about 60 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dynamics import config
from dynamics.config import Count, NonNegative, Positive, Range
from dynamics.evolve import Drawn, descent, fresh_batches, gradient_descent, log_steps
from dynamics.evolve import study as in_memory
from dynamics.losses import half_mse
from dynamics.models import transformer
from dynamics.runs.figures import measured_style, new_figure, rival_style, ticks_at
from dynamics.tasks.regression_sequences import regression_sequences
from dynamics.theory import in_context as theory
from dynamics.types import Claim, Dynamics, Objective, Observable, Record

SOURCE = (
    "Lu, Letey, Zavatone-Veth, Maiti & Pehlevan 2025, 'Asymptotic theory of in-context learning by linear attention'"
)
SECONDS = 60
BAYES = "Raventos, Paul, Chen & Ganguli 2023, figure 2"
RIVALS = {"bare": "without (tr R + s2)/n", "longer": "context twice as long", "all": "tasks without number"}


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Count] = 4
    """draws of the tasks and of all sequences"""
    tasks: Annotated[tuple[int, ...], Count] = (4, 16, 64)
    """number K of tasks trained on, ascending; the first of the largest set"""
    dim: Annotated[int, Range(2)] = 16
    """input dimension d"""
    length: Annotated[int, Count] = 32
    """pairs n in the context"""
    noise: Annotated[float, Positive] = 0.1
    """variance s2 of the labels' noise"""
    batch: Annotated[int, Count] = 192
    """fresh sequences a step"""
    rate: Annotated[float, Positive] = 0.03
    """learning rate, in units of 1 / lambda_max(A)"""
    steps: Annotated[int, Range(8)] = 1500
    """updates"""
    sequences: Annotated[int, Range(8)] = 4000
    """sequences on which each network is tested in the end"""
    transformer_steps: Annotated[int, NonNegative] = 0
    """Adam's updates of the transformer; 0 for none"""
    width: Annotated[int, Range(4)] = 32
    """the transformer's residual stream, with 4 heads"""

    @classmethod
    def large(cls) -> Config:
        """Larger dimension, more tasks; sizes of ours, for the paper's theory is of large ones. Five minutes of a
        core. With batches of 256 the noise of the updates shows: .046 off theory, for .04."""
        return cls(tasks=(8, 32, 128), dim=32, length=64, batch=512)

    @classmethod
    def transformer(cls) -> Config:
        """With a one-block transformer beside it, at d = 8 and n = 16 as in Raventos et al. 2023, whose has eight.

        About 3 minutes of a core. Its three draws do not resolve that the risk on tasks trained on rises with K."""
        return cls(seeds=3, tasks=(2, 8, 32, 128), dim=8, length=16, noise=0.25, transformer_steps=3000)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(bool(np.all(np.diff(self.tasks) > 0)), "tasks", "ascending values")
        self.require(self.rate < 2, "rate", "below 2, or descent diverges")
        self.require(self.width % 4 == 0, "width", "a multiple of 4, the number of heads")


class Result(NamedTuple):
    """``records``: ``attention`` and ``theory`` (``[T, tasks, seed]``: risk on the tasks trained on, ``old``, and on
    ``new`` ones; in theory also those of ``RIVALS``), ``tested`` (``[1, tasks, seed]``: z of the exact risk on drawn
    sequences, and the estimators' risks), ``transformer`` (``[T, tasks, seed]``) where there is one."""

    config: Config
    records: dict[str, Record]


def run(config: Config, study=in_memory) -> Result:
    axes = {"tasks": config.tasks, "seed": range(config.seeds)}
    records = trained(config, study, axes)
    records["tested"] = tested(config, study, axes, records["attention"])
    if config.transformer_steps:
        records["transformer"] = with_transformer(config, study, axes)
    return Result(config, records)


def tasks_of(config: Config, lane) -> jax.Array:
    """``[K, d]``, the first K of the seed's tasks."""
    key = jax.random.fold_in(jax.random.key(config.seed), lane.seed)
    return jax.random.normal(key, (config.tasks[-1], config.dim))[: lane.tasks] / config.dim**0.5


def attention(Gamma, x):
    """``f = x_q^T Gamma h``; the query's label is 0, so that h may sum over all."""
    h = jnp.einsum("snd,sn->sd", x[..., :-1], x[..., -1]) / (x.shape[1] - 1)
    return jnp.einsum("sd,de,se->s", x[:, -1, :-1], Gamma, h)[:, None]


def online(inner: Dynamics, config: Config) -> Dynamics:
    """``inner`` on fresh sequences at every step; the data are the tasks."""
    return fresh_batches(inner, lambda key, tasks: sequences(key, config, tasks, config.batch))


def sequences(key, config: Config, tasks, count: int):
    return regression_sequences(key, count, config.length, tasks, noise=config.noise)


def moments(config: Config, tasks) -> dict[str, tuple]:
    """``(R, n, s2)`` of the tasks trained on and of fresh ones."""
    R = theory.second_moment(tasks), jnp.eye(config.dim) / config.dim
    return {name: (one, config.length, config.noise) for name, one in zip(("old", "new"), R)}


def trained(config: Config, study, axes) -> dict[str, Record]:
    """Networks, and their theory at the same steps."""
    at, zero = log_steps(config.steps, 25), jnp.zeros((config.dim, config.dim))

    def rate(tasks):
        return config.rate / jnp.linalg.eigvalsh(theory.context_moment(*moments(config, tasks)["old"]))[-1]

    def draw(lane):
        tasks = tasks_of(config, lane)
        return Drawn(zero, tasks, {"rate": rate(tasks)})

    def read(view):
        risks = {name: theory.risk(view.params, *args) for name, args in moments(config, view.batch).items()}
        return risks | {"Gamma": view.params}

    @jax.jit
    def predicted(tasks):
        known, eta, found = moments(config, tasks), rate(tasks), {}
        (R, n, s2), bare = known["old"], {name: (R, n, 1e-6 - jnp.trace(R)) for name, (R, n, _) in known.items()}
        settings = {
            "": (R, n, s2),
            "bare": bare["old"],
            "longer": (R, 2 * n, s2),
            "all": known["new"],
        }
        for rival, setting in settings.items():
            path = theory.descent(jnp.asarray(at), *setting, learning_rate=eta)
            for name, args in (bare if rival == "bare" else known).items():
                longer = (args[0], 2 * n, s2) if rival == "longer" else args
                found[f"{name} {rival}".strip()] = theory.risk(path, *longer)
        return found

    L, held = Objective(attention, half_mse), Observable.of_view(lambda view: view.params)
    measured = study(
        axes,
        draw=draw,
        make=lambda lane: online(gradient_descent(L, lane.rate), config),
        read=[Observable.of_view(read)],
        steps=config.steps,
        record_at=at,
        key=jax.random.key(config.seed),
        label="attention",
    )

    def predict(lane):
        return jax.device_get(predicted(tasks_of(config, lane)))

    known = study(axes, predict, None, held, steps=0, data=(), label="theory")
    curves = {name: np.moveaxis(value[0], -1, 0) for name, value in known.values.items()}
    return {"attention": measured, "theory": measured._replace(values=curves)}


def tested(config: Config, study, axes, measured: Record) -> Record:
    """The trained networks on drawn sequences: their squared errors, less the exact risk, in standard errors."""

    @jax.jit
    def z(Gamma, x, y, R, n, s2):
        """Mean squared error less the exact risk in standard errors: with the noise that there is, and the rival's."""
        squares = (attention(Gamma, x) - y)[:, 0] ** 2
        error = jnp.std(squares) / config.sequences**0.5
        return [(jnp.mean(squares) - theory.risk(Gamma, R, n, noise)) / error for noise in (s2, -jnp.trace(R))]

    def draw(lane):
        tasks, out = tasks_of(config, lane), {}
        key = jax.random.fold_in(jax.random.key(config.seed), lane.seed)
        Gamma = measured.values["Gamma"][-1][config.tasks.index(lane.tasks), lane.seed]
        examined, known = examination(config, tasks, key), moments(config, tasks)
        for name, (x, y, answers) in examined.items():
            out[f"{name} z"], out[f"{name} z bare"] = z(Gamma, x, y, *known[name])
            out |= {f"{name} {estimator}": np.mean((f - y[:, 0]) ** 2) for estimator, f in answers.items()}
        return jax.device_get(out)

    held = Observable.of_view(lambda view: view.params)
    return study(axes, draw, None, held, steps=0, data=(), label="tested")


def examination(config: Config, tasks, key) -> dict[str, tuple]:
    """Sequences ``(x, y, answers)`` of the tasks trained on and of new ones; answers ``[sequences]`` of the Bayes
    estimator that knows the K tasks, and of ridge regression. Programs run one after the other: side by side, batched
    factorisations may wait for each other for ever on two cores."""
    out = {}
    for i, (name, drawn) in enumerate((("old", tasks), ("new", config.dim))):
        own = jax.random.fold_in(key, 1 + i)
        x, y = jax.device_get(sequences(own, config, drawn, config.sequences))
        inputs, labels, answers = x[:, :-1, :-1], x[:, :-1, -1], {}
        for estimator, w in (
            ("bayes", partial(jax.jit(theory.discrete_bayes), tasks=tasks)),
            ("ridge", jax.jit(theory.ridge)),
        ):
            answers[estimator] = np.sum(x[:, -1, :-1] * jax.device_get(w(inputs, labels, noise=config.noise)), -1)
        out[name] = x, y, answers
    return out


def with_transformer(config: Config, study, axes) -> Record:
    """A transformer on the same tasks: its risks, and how far it answers from either estimator, over d."""
    model = transformer(config.dim + 1, 1, width=config.width)
    schedule = optax.warmup_cosine_decay_schedule(0.0, 3e-3, config.transformer_steps // 20, config.transformer_steps)
    L, key = Objective(model.apply, half_mse), jax.random.key(config.seed)

    def draw(lane):
        own, tasks = jax.random.fold_in(key, lane.seed), tasks_of(config, lane)
        start = model.init(own, (-1, config.length + 1, config.dim + 1))[1]
        return Drawn(start, tasks, {"examined": examination(config, tasks, own)})

    def read(lane, view):
        out = {}
        for name, (x, y, answers) in lane.examined.items():
            f = model.apply(view.params, x)[:, 0]
            out[name] = jnp.mean((f - y[:, 0]) ** 2)
            out |= {f"{name} from {estimator}": jnp.mean((f - other) ** 2) for estimator, other in answers.items()}
        return out

    return study(
        axes,
        draw=draw,
        make=lambda lane: online(descent(L, optax.adam(schedule)), config),
        read=lambda lane: Observable.of_view(partial(read, lane)),
        steps=config.transformer_steps,
        record_at=log_steps(config.transformer_steps, 12),
        key=key,
        label="transformer",
    )


def claims(result: Result) -> list[Claim]:
    """Seeds draw their own tasks and sequences, and have their own theory."""
    return [*risk_claims(result), *path_claims(result), *transformer_claims(result)]


def risk_claims(result: Result) -> list[Claim]:
    tested = {name: held[0] for name, held in result.records["tested"].values.items()}
    z, bare = (np.stack([tested[f"{name} z{rival}"] for name in ("old", "new")]) for rival in ("", " bare"))
    title = f"trained attention on {result.config.sequences} sequences against its exact risk"
    return [Claim.cells(title, "derived here", z, rivals={RIVALS["bare"]: bare})]


def path_claims(result: Result) -> list[Claim]:
    """Along all of training, at every K; minibatches of B leave an excess of order eta/B that is no part of the theory.

    B was raised to 192 from 128 after a failure: with 128 the largest deviation on tasks trained on is .033 at base
    seed 0 and .042 at 100, above the bound of .04."""
    cfg, out = result.config, []
    measured, known = (result.records[name].values for name in ("attention", "theory"))

    def apart(name: str, rival: str = "") -> np.ndarray:
        """``[seeds]``: the largest relative deviation over steps and K."""
        with np.errstate(invalid="ignore", divide="ignore"):
            off = np.abs(measured[name] / known[f"{name} {rival}".strip()] - 1)
        return np.max(np.nan_to_num(off, nan=np.inf), axis=(0, 1)).clip(max=1e6)

    for name, title in (("old", "tasks trained on"), ("new", "new tasks")):
        rivals = {label: apart(name, rival) for rival, label in RIVALS.items()}
        title = f"risk on {title} along training against theory, largest relative deviation"
        out.append(Claim.at_most(title, "derived here", apart(name), 0.04, rivals=rivals))
    steps = {name: np.diff(np.log(measured[name][-1]), axis=0) for name in ("old", "new")}  # [K, seeds]
    titles = {
        "new": "risk on new tasks falls with K: largest log step",
        "old": "risk on tasks trained on rises with K: least log step",
    }
    if len(cfg.tasks) < 2 or cfg.seeds < 3:
        return [
            *out,
            *(Claim.not_applicable(title, SOURCE, "needs two K and three seeds") for title in titles.values()),
        ]
    highest, lowest = ({name: pick(step) for name, step in steps.items()} for pick in (worst, least))
    none = {"K has no effect": 0.0}
    return [
        *out,
        Claim.at_most(titles["new"], SOURCE, highest["new"], 0.0, rivals={"tasks trained on": highest["old"], **none}),
        Claim.at_least(titles["old"], SOURCE, lowest["old"], 0.0, rivals={"new tasks": lowest["new"], **none}),
    ]


def worst(cells: np.ndarray) -> np.ndarray:
    """``[seeds]`` of the cell of largest mean, of ``[cells, seeds]``."""
    return cells[np.argmax(cells.mean(1))]


def least(cells: np.ndarray) -> np.ndarray:
    """``[seeds]`` of the cell of least mean."""
    return -worst(-cells)


def transformer_claims(result: Result) -> list[Claim]:
    """Few tasks are memorised, many are not: whose answers a transformer gives."""
    cfg, titles = (
        result.config,
        (
            f"transformer, K = {result.config.tasks[0]}, its tasks: log distance to ridge over that to Bayes",
            f"transformer, K = {result.config.tasks[-1]}, new tasks: log distance to Bayes over that to ridge",
            "transformer: log risk on new tasks, few tasks over many",
        ),
    )
    if "transformer" not in result.records or cfg.tasks[-1] < 16 * cfg.dim or cfg.tasks[0] > cfg.dim or cfg.seeds < 3:
        note = "needs the preset transformer, tasks from K <= d to 16 d and three seeds"
        return [Claim.not_applicable(title, BAYES, note) for title in titles]
    last = {name: np.log(held[-1]) for name, held in result.records["transformer"].values.items()}
    old, new = (last[f"{name} from ridge"] - last[f"{name} from bayes"] for name in ("old", "new"))
    many, few = f"K = {cfg.tasks[-1]}", f"K = {cfg.tasks[0]}"
    gain = last["new"][0] - last["new"][-1]
    return [
        Claim.at_least(titles[0], BAYES, old[0], 0.0, rivals={many: old[-1]}),
        Claim.at_least(titles[1], BAYES, -new[-1], 0.0, rivals={few: -new[0]}),
        Claim.at_least(titles[2], BAYES, gain, math.log(1.5), rivals={"no effect of tasks": 0.0}),
    ]


def figure(result: Result):
    """Risks along training over theory; the end against K, with estimators and, where there is one, the transformer."""
    cfg = result.config
    fig, axes = new_figure(1, 3, width=4.4, height=4.0)
    measured, known = (result.records[name] for name in ("attention", "theory"))
    for ax, name, title in zip(axes, ("old", "new"), ("tasks trained on", "new tasks")):
        for i, K in enumerate(cfg.tasks):
            style = measured_style(i, len(cfg.tasks))
            seen, line = (record.at(tasks=K).values[name].mean(-1) for record in (measured, known))
            ax.plot(1 + measured.step, seen, ms=4, label=f"K = {K}", **style)
            ax.plot(1 + measured.step, line, color=style["color"], lw=1)
        bare = known.at(tasks=cfg.tasks[-1]).values[f"{name} bare"].mean(-1)
        ax.plot(1 + measured.step, bare, label=f"K = {cfg.tasks[-1]}, {RIVALS['bare']}", **rival_style(0))
        ax.set(xscale="log", xlabel="1 + step", ylabel="risk", title=f"{title}; lines: theory", ylim=(0, 1.3))
        ax.legend(fontsize=7)
    end, tested = axes[2], {name: held[0].mean(-1) for name, held in result.records["tested"].values.items()}
    for i, (name, title) in enumerate((("old", "tasks trained on"), ("new", "new tasks"))):
        style = measured_style(2 * i, 4)
        end.plot(cfg.tasks, measured.values[name][-1].mean(-1), label=f"attention, {title}", **style)
        end.plot(cfg.tasks, known.values[name][-1].mean(-1), color=style["color"], lw=1)
        for estimator, dashes in (("bayes", "--"), ("ridge", ":")):
            label = f"{'Bayes of K tasks' if estimator == 'bayes' else 'ridge'}, {title}"
            end.plot(cfg.tasks, tested[f"{name} {estimator}"], dashes, color=style["color"], lw=1, label=label)
        if "transformer" in result.records:
            seen = result.records["transformer"].values[name][-1].mean(-1)
            filled = style | {"marker": "*", "markerfacecolor": style["color"]}
            end.plot(cfg.tasks, seen, label=f"transformer, {title}", **filled)
    end.set(xscale="log", xlabel="tasks K", ylabel="risk", title="end of training", ylim=(-0.05, 2.6))
    ticks_at(end.xaxis, cfg.tasks)
    end.legend(fontsize=6)
    return fig


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
