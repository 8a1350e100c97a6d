"""Slowly changing regression: a network unlearns to learn, a linear learner does not (Dohare et al. 2024).

Inputs of 20 bits, of which 15 change only between tasks, a target of 100 threshold units, and a learner of five ReLU
units that sees each sample once. Its error over a task falls at first, and then rises from task to task above that of a
linear learner, the more the larger the learning rate, while its units die. Weight decay helps, continual
backpropagation, which renews the least useful units, cures. The linear learner's mean error follows exactly from the
first two moments of its weights, with the term of order ``eta^2`` that the averaged equation lacks.

Run time: about 70 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dynamics import config, observe
from dynamics.config import Count, NonNegative, Positive, Range
from dynamics.evolve import (
    Drawn,
    continual_backprop,
    descent,
    every,
    gradient_descent,
    over_tasks,
    shrink_and_perturb,
    task_readings,
)
from dynamics.evolve import study as in_memory
from dynamics.losses import mse
from dynamics.runs.figures import measured_style, new_figure, rival_style, theory_style
from dynamics.tasks.streams import SlowBits, slow_bits
from dynamics.theory.online_regression import Moments, online_regression
from dynamics.types import Claim, Objective, Record

SOURCE = "Dohare, Hernandez-Garcia, Lan, Rahman, Mahmood & Sutton 2024, 'Loss of plasticity in deep continual learning'"
SECONDS = 70
BITS = 20
SHAKEN = 100  # steps between two shakes of shrink and perturb


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Count] = 30
    """targets, streams and starts"""
    eta: Annotated[tuple[float, ...], Positive] = (0.01, 0.003, 0.001)
    """learning rates of the network; all else is at the first"""
    decay: Annotated[tuple[float, ...], NonNegative] = (0.001, 0.01)
    """weight decay (L2)"""
    noise: Annotated[float, NonNegative] = 0.01
    """noise of every hundredth step, beside the first decay: shrink and perturb"""
    tasks: Annotated[int, Range(2)] = 100
    """tasks"""
    steps: Annotated[int, Count] = 10_000
    """samples of a task"""
    width: Annotated[int, Count] = 5
    """hidden units"""
    rate: Annotated[float, Range(0.0, 1.0)] = 1e-4
    """share of mature units that continual backpropagation renews in a step"""

    @classmethod
    def paper(cls) -> Config:
        """The paper's 100 seeds and 3 million steps; six minutes of a core.

        8 of 12 claims hold. A network's error rises by .22 to .52, but the linear learner's by .007, so that a rise
        above 0 does not tell them apart; and, as in the quick preset, the network is not better than it at first.
        """
        return cls(seeds=100, tasks=300)


class Result(NamedTuple):
    """``records`` by task, ``online_error`` and ``after_dead_units``: 'network' ``[K, eta, seed]``, 'decay' ``[K,
    decay, seed]``, 'shaken', 'renewed' and 'linear' ``[K, seed]``; 'theory' and 'averaged' of the linear learner,
    ``error [K, seed]``."""

    config: Config
    records: dict[str, Record]


def run(config: Config, study=in_memory) -> Result:
    """Every learner on the same streams, and the linear learner's theory."""
    seeds = {"seed": range(config.seeds)}
    records = {
        "network": trained(config, study, "network", {"eta": config.eta} | seeds),
        "decay": trained(config, study, "decay", {"decay": config.decay} | seeds),
        "shaken": trained(config, study, "shaken", seeds),
        "renewed": trained(config, study, "renewed", seeds),
        "linear": trained(config, study, "linear", seeds),
    }
    for name, fluctuations in (("theory", True), ("averaged", False)):
        values = {"error": linear_theory(config, fluctuations)}
        records[name] = Record(records["linear"].step[1:], records["linear"].time[1:], values, records["linear"].axes)
    return Result(config, records)


def hidden(params, x):
    return [jax.nn.relu(x @ params[0]["w"] + params[0]["b"])]


def network(params, x):
    return hidden(params, x)[0] @ params[1]["w"] + params[1]["b"]


def linear(params, x):
    return x @ params["w"] + params["b"]


def stream(config: Config, seed) -> SlowBits:
    key = jax.random.fold_in(jax.random.key(config.seed), seed)
    return slow_bits(jax.random.fold_in(key, 0), config.steps, slow=BITS - 5, random=5)


@partial(jax.jit, static_argnums=0)
def start(config: Config, seed):
    """He-uniform hidden weights, LeCun-uniform output weights, no biases."""
    one, two = jax.random.split(jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), seed), 1))
    into = jax.nn.initializers.he_uniform()(one, (BITS, config.width))
    out = jax.nn.initializers.lecun_uniform()(two, (config.width, 1))
    return [{"w": into, "b": jnp.zeros(config.width)}, {"w": out, "b": jnp.zeros(1)}]


def trained(config: Config, study, label: str, axes) -> Record:
    """One kind of learner on all its axes."""
    eta, of_network = config.eta[0], label != "linear"
    L = Objective(network if of_network else linear, mse)

    def draw(lane):
        return Drawn(start(config, lane.seed) if of_network else {"w": jnp.zeros((BITS, 1)), "b": jnp.zeros(1)})

    def method(lane):
        noise = jax.random.bits(jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), lane.seed), 2))
        if label == "renewed":
            return descent(L, continual_backprop(optax.sgd(eta), hidden, rate=config.rate, seed=noise))
        if label in ("decay", "shaken"):
            decayed = optax.add_decayed_weights(lane.decay if label == "decay" else config.decay[0])
            shaken = shrink_and_perturb(1.0, config.noise, interval=SHAKEN, seed=noise)
            last = [shaken] if label == "shaken" else []
            return descent(L, optax.chain(decayed, optax.sgd(eta), *last))
        return gradient_descent(L, lane.eta if label == "network" else eta)

    def make(lane):
        dead = [observe.dead_units(lambda params, x: hidden(params, x)[0])] if of_network else []
        return over_tasks(method(lane), stream(config, lane.seed).stream, after=dead)

    return study(
        axes,
        draw=draw,
        make=make,
        read=task_readings(),
        steps=config.tasks,
        record_at=every(1, config.tasks),
        key=jax.random.key(config.seed),
        label=label,
    )


def linear_theory(config: Config, fluctuations: bool) -> np.ndarray:
    """Mean error of the linear learner in each task of each stream, ``[K, seed]``."""
    tables = jax.jit(jax.vmap(lambda seed, task: stream(config, seed).table(task), (0, None)))
    moments, errors = Moments.at(np.zeros((config.seeds, BITS + 1))), []
    for task in range(config.tasks):
        x, y = map(np.asarray, tables(jnp.arange(config.seeds), task))
        x = np.concatenate([x, np.ones((*x.shape[:-1], 1))], -1)
        how = {"fluctuations": fluctuations}
        error, moments = online_regression(moments, x, y[..., 0], config.eta[0], config.steps, **how)
        errors.append(error)
    return np.stack(errors)


def ends(record: Record, name: str = "online_error") -> tuple[np.ndarray, np.ndarray]:
    """Means over the first and the last tenth of the tasks, ``[*axes]``."""
    rows = record.values[name][1:]
    tenth = max(1, len(rows) // 10)
    return rows[:tenth].mean(0), rows[-tenth:].mean(0)


def claims(result: Result) -> list[Claim]:
    cfg = result.config
    few = cfg.seeds < 20 or cfg.tasks < 50 or cfg.steps < 5000 or cfg.eta[0] < 0.01
    return [linear_claim(result), *network_claims(result, few), *remedy_claims(result, few)]


FEW = "needs 20 seeds, 50 tasks of 5000 steps, and eta = .01 first"


def linear_claim(result: Result) -> Claim:
    """The mean over seeds in every task; relative deviations have one spread, that of all tasks together."""
    name, source = "linear learner: mean error of every task against the moments' recursion", "extends figure 1"
    found = result.records["linear"].values["online_error"][1:]
    if result.config.seeds < 10:
        return Claim.not_applicable(name, source, "needs ten seeds")
    off = {key: found / result.records[key].values["error"] - 1 for key in ("theory", "averaged")}
    spread = np.sqrt(np.mean(np.var(off["theory"], axis=1, ddof=1)) / result.config.seeds)
    note = f"spread of a task's error {spread * result.config.seeds**0.5:.3f} of it"
    z = {key: one.mean(1) / spread for key, one in off.items()}
    return Claim.cells(name, source, z["theory"], rivals={"averaged, without eta^2": z["averaged"]}, note=note)


def network_claims(result: Result, few: bool) -> list[Claim]:
    """By seed, on the same streams: first and last tenth of the tasks."""
    cfg, records, source = result.config, result.records, "figure 1"
    names = (
        "network: error below the linear learner's, first tenth of the tasks",
        "network: error above the linear learner's, last tenth of the tasks",
        *(f"network: rise of the error, eta = {eta:g}" for eta in cfg.eta),
        "network: rise of the error per factor e in eta",
        "network: share of dead units, last tenth of the tasks less the first",
    )
    if few:
        return [Claim.not_applicable(name, source, FEW) for name in names]
    first, last = ends(records["network"])
    straight = ends(records["linear"])
    dead = {key: ends(records[key], "after_dead_units") for key in ("network", "renewed")}
    none, rise = {"no rise": 0.0}, last - first
    still = straight[1] - straight[0]
    out = [
        Claim.at_least(names[0], source, straight[0] - first[0], 0.1, rivals={"at the end": straight[1] - last[0]}),
        Claim.at_least(names[1], source, last[0] - straight[1], 0.25, rivals={"at the start": first[0] - straight[0]}),
    ]
    for name, one in zip(names[2:], rise):
        out.append(Claim.at_least(name, source, one, 0.0, rivals=none | {"linear learner": still}))
    if len(cfg.eta) > 1:
        slope = np.polyfit(np.log(cfg.eta), rise, 1)[0]
        out.append(Claim.at_least(names[-2], source, slope, 0.0, rivals={"eta has no effect": 0.0}))
    else:
        out.append(Claim.not_applicable(names[-2], source, "needs two learning rates"))
    gain = {key: (one[1] - one[0]) for key, one in dead.items()}
    rivals = {"none die": 0.0, "continual backpropagation": gain["renewed"]}
    return [*out, Claim.at_least(names[-1], source, gain["network"][0], 0.1, rivals=rivals)]


def remedy_claims(result: Result, few: bool) -> list[Claim]:
    """Rises against those of backpropagation alone, seed by seed."""
    cfg, records = result.config, result.records
    decays = [f"decay {decay:g}" for decay in cfg.decay]
    others = [*decays, f"decay {cfg.decay[0]:g} and noise {cfg.noise:g}"]
    names = (
        "continual backpropagation: rise of the error",
        *(f"{name}: rise of the error over that without" for name in others),
    )
    if few:
        return [Claim.not_applicable(name, "figure 4", FEW) for name in names]
    rise = {name: np.subtract(*ends(records[name])[::-1]) for name in ("network", "renewed", "decay", "shaken")}
    plain, none = rise["network"][0], {"no effect": 0.0}
    out = [Claim.close(names[0], "figure 4", rise["renewed"], 0.0, 0.05, rivals={"backpropagation": plain})]
    for name, one in zip(names[1:], [*rise["decay"], rise["shaken"]]):
        out.append(Claim.at_most(name, "figure 4", one - plain, 0.0, rivals=none))
    return out


def figure(result: Result):
    """Error by task of networks and the linear learner; of the remedies; dead units; the linear learner's theory."""
    cfg, records = result.config, result.records
    fig, ((learners, remedies), (dead, theory)) = new_figure(2, 2, width=4.4, height=3.1)
    tasks = np.arange(1, cfg.tasks + 1)

    def draw(panel, rows, index, count, label):
        style = measured_style(index, count) | {"markevery": max(1, cfg.tasks // 12), "ms": 4, "lw": 1, "ls": "-"}
        mean, error = rows.mean(-1), rows.std(-1) / cfg.seeds**0.5
        panel.plot(tasks, mean, label=label, **{key: value for key, value in style.items() if key != "linestyle"})
        panel.fill_between(tasks, mean - error, mean + error, color=style["color"], alpha=0.15, lw=0)

    straight = records["linear"].values["online_error"][1:]
    count = len(cfg.eta) + 1
    for i, eta in enumerate(cfg.eta):
        for panel, name in ((learners, "online_error"), (dead, "after_dead_units")):
            draw(panel, records["network"].values[name][1:, i], i, count, f"network, eta = {eta:g}")
    for panel in (learners, remedies):
        panel.plot(tasks, straight.mean(-1), label="linear", **theory_style(1))
    draw(dead, records["renewed"].values["after_dead_units"][1:], count - 1, count, "continual backpropagation")
    others = [(f"decay {decay:g}", records["decay"].at(decay=decay)) for decay in cfg.decay]
    others += [(f"decay {cfg.decay[0]:g}, noise {cfg.noise:g}", records["shaken"])]
    for i, (label, record) in enumerate(others):
        draw(remedies, record.values["online_error"][1:], i, len(others) + 1, label)
    draw(remedies, records["renewed"].values["online_error"][1:], len(others), len(others) + 1, "continual backprop")
    first = min(20, cfg.tasks)
    theory.plot(tasks[:first], straight[:first].mean(-1), label="linear learner", **measured_style(0))
    theory.plot(tasks[:first], records["theory"].values["error"][:first].mean(-1), label="moments", **theory_style())
    averaged = records["averaged"].values["error"][:first].mean(-1)
    theory.plot(tasks[:first], averaged, label="averaged: no $\\eta^2$", **rival_style())
    for panel in (learners, remedies, theory):
        panel.set(xlabel="task", ylabel="error of a task")
        low, high = panel.get_ylim()
        panel.set_ylim(low, high + 0.35 * (high - low))
    remedies.set_title(f"eta = {cfg.eta[0]:g}", fontsize=9)
    dead.set(xlabel="task", ylabel="share of dead units", ylim=(0, 1.45))
    for panel in (learners, remedies, dead, theory):
        panel.legend(fontsize=7, loc="upper left", ncol=2)
    return fig


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
