"""Connectivity structure shapes rich and lazy learning (Liu et al. 2023).

Start a recurrent network from ``W_0 = 1.25 randn/sqrt(N)``, cut to rank r by its singular values and rescaled to the
same norm. The lower the rank, the richer the learning: the kernel at the end is less aligned with the one at the start,
``<K_0, K_T>/(|K_0||K_T|)``. The same holds in a two-layer linear net on whitened inputs, whose kernel is ``x^T (W_1^T
W_1 + |w_2|^2) x'`` and whose alignment has a closed form; for the recurrent network there is none, only the ordering.
The exception: a low-rank start that already points along the task stays lazier than a random one.

Run time: about 50 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import config
from dynamics.config import Count, Positive, Range
from dynamics.empirical import empirical_ntk_fn
from dynamics.evolve import gradient_descent
from dynamics.evolve import study as in_memory
from dynamics.losses import accuracy, cross_entropy
from dynamics.models.rnn import rnn, states, truncated
from dynamics.observe import since_start
from dynamics.runs.figures import new_figure, rival_style, theory_style, ticks_at
from dynamics.statistics import kernel_alignment, kernel_distance
from dynamics.tasks.sequences import two_alternative_choice
from dynamics.theory.low_rank import low_rank_alignment
from dynamics.types import Batch, Claim, Objective, Record

SOURCE = "Liu et al. 2023, 'How connectivity structure shapes rich and lazy learning in neural circuits'"
SECONDS = 50
INPUTS = 20  # of the linear net
READOUT = 1e-3  # spread of its w_2 at the start; the closed form is the limit 0
ALIGNED = 0  # in place of a rank of W_1: rank 1, along the task


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Count] = 32
    """paired draws: one W_0, task and data for all ranks"""
    units: Annotated[int, Range(2)] = 64
    """recurrent units N"""
    rank: Annotated[tuple[int, ...], Count] = (1, 8, 64)
    """ranks of the recurrent W_0, ascending; N is full rank"""
    learning_rate: Annotated[float, Positive] = 0.01
    """learning rate of the recurrent network"""
    iterations: Annotated[int, Count] = 800
    """SGD steps of the recurrent network"""
    batch: Annotated[int, Count] = 32
    """sequences a step, out of 512"""
    linear_rank: Annotated[tuple[int, ...], Count] = (1, 2, 5, 10, 20)
    """ranks of W_1 in the two-layer linear net (20 inputs, 40 hidden), ascending"""
    tasks: Annotated[int, Count] = 32
    """random tasks of the linear net"""
    strength: Annotated[float, Positive] = 30.0
    """norm of the linear task; W_1 starts with norm sqrt(20)"""

    @classmethod
    def large(cls) -> Config:
        """The paper's 300 units, on one of its tasks and trained longer; the linear net stays as it is.

        About 20 minutes of a core.
        """
        return cls(units=300, rank=(1, 8, 64, 300), iterations=1500)

    def __post_init__(self) -> None:
        super().__post_init__()
        for field, most in (("rank", self.units), ("linear_rank", 20)):
            ranks = getattr(self, field)
            self.require(bool(np.all(np.diff(ranks) > 0)) and ranks[-1] <= most, field, f"ascending, at most {most}")


class Result(NamedTuple):
    """``records``: 'recurrent' ``[2, ranks, seeds]`` (start, end); 'linear' ``[2, ranks + 1, tasks]``, aligned last;
    'linear theory' ``[1, ranks + 1, tasks]``, with ``blind``, which knows the mean share of a task alone."""

    config: Config
    records: dict[str, Record]


def run(config: Config, study=in_memory) -> Result:
    """All ranks and seeds of the recurrent network as one program, and of the linear net as another."""
    linear = run_linear(config, study)
    records = {
        "recurrent": run_recurrent(config, study),
        "linear": linear,
        "linear theory": linear_theory(config, linear),
    }
    return Result(config, records)


def run_recurrent(config: Config, study) -> Record:
    model, key, usual = rnn(config.units, 2, gain=1.25), jax.random.key(config.seed), Config().seeds
    L = Objective(model.apply, cross_entropy)

    def draw(lane):
        own = jax.random.fold_in(key, lane.seed)
        full = model.init(own, (-1, 8, 3))[1]
        data = two_alternative_choice(jax.random.fold_in(own, 1), 512)
        return data, full._replace(recurrent=truncated(full.recurrent, lane.rank))

    def read(first, last, batch):
        kernels, forms = [], []
        for params in (first, last):
            ntk = empirical_ntk_fn(lambda w, x, params=params: model.apply(params._replace(recurrent=w), x))
            hidden = states(params, batch.x[:64])[-1]
            kernels.append(ntk(batch.x[:64], None, params.recurrent))
            forms.append(hidden @ hidden.T)
        f = model.apply(last, batch.x)
        return {
            "kernel_alignment": kernel_alignment(*kernels, centre=False),
            "kernel_distance": kernel_distance(kernels[1], kernels[0]),
            "representation_alignment": kernel_alignment(*forms, centre=False),
            "weight_change": jnp.linalg.norm(last.recurrent - first.recurrent),
            "loss": cross_entropy(f, batch.y),
            "accuracy": accuracy(f, batch.y),
        }

    return study(
        {"rank": config.rank, "seed": range(config.seeds)},
        draw,
        make=lambda lane: gradient_descent(L, config.learning_rate, batch_size=config.batch),
        read=since_start(read),
        steps=config.iterations,
        key=key,
        label="recurrent",
        stream=lambda index: usual * index["rank"] + index["seed"],
    )


def run_linear(config: Config, study) -> Record:
    """``f = w_2 . W_1 x`` on whitened inputs; the last rank, ``ALIGNED``, is a start at rank 1 along the task."""
    hidden, key = 40, jax.random.fold_in(jax.random.key(config.seed), 1)
    L = Objective(lambda w, x: x @ w[0].T @ w[1], lambda f, y: 0.5 * jnp.sum((f - y) ** 2))

    @jax.jit
    def drawn(task, rank):
        kb, kw, kv = jax.random.split(jax.random.fold_in(key, task), 3)
        task = jax.random.normal(kb, (INPUTS, 1))
        task = config.strength * task / jnp.linalg.norm(task)
        full = jnp.linalg.qr(jax.random.normal(kw, (hidden, INPUTS)))[0]
        full = full @ jnp.linalg.qr(jax.random.normal(jax.random.fold_in(kw, 1), (INPUTS, INPUTS)))[0]
        aligned = full[:, :1] @ task.T / config.strength * INPUTS**0.5
        u, _, v = jnp.linalg.svd(full, full_matrices=False)
        cut = (u * (jnp.arange(INPUTS) < rank)) @ v * (INPUTS / jnp.maximum(rank, 1)) ** 0.5  # norm kept
        first = jnp.where(rank == ALIGNED, aligned, cut)
        return Batch(jnp.eye(INPUTS), task), (first, READOUT * jax.random.normal(kv, (hidden, 1)))

    def read(first, last, batch):
        k0, k = (w[0].T @ w[0] + jnp.sum(w[1] ** 2) * jnp.eye(INPUTS) for w in (first, last))
        return {
            "kernel_alignment": kernel_alignment(k0, k, centre=False),
            "loss": L(last, batch) / (0.5 * config.strength**2),
            "seen": jnp.sum((first[0] @ batch.y) ** 2) / config.strength**2,
        }

    return study(
        {"linear_rank": (*config.linear_rank, ALIGNED), "task": range(config.tasks)},
        draw=lambda lane: drawn(lane.task, lane.linear_rank),
        make=lambda lane: gradient_descent(L, 2e-3),
        read=since_start(read),
        steps=4000,
        key=key,
        label="linear",
    )


def linear_theory(config: Config, linear: Record) -> Record:
    """The closed form at the share ``|W_1 task|^2 / |task|^2`` that each start sees; ``blind``, at the mean share."""
    rank = np.maximum(linear.axes["linear_rank"], 1)[:, None]
    scale, seen = INPUTS / rank, linear.values["seen"][0]
    shares = {"kernel_alignment": seen, "blind": np.broadcast_to(seen.mean(-1, keepdims=True), seen.shape)}
    values = {
        name: np.asarray(low_rank_alignment(rank, INPUTS, config.strength, scale, share / scale))[None]
        for name, share in shares.items()
    }
    return Record(linear.step[:1], linear.time[:1], values, linear.axes)


def claims(result: Result) -> list[Claim]:
    """Paired over seeds (recurrent) and tasks (linear); the rival of each is that rank has no effect."""
    cfg, out = result.config, []
    recurrent, linear = (result.records[name].values for name in ("recurrent", "linear"))
    alignment = recurrent["kernel_alignment"][1]  # [ranks, seeds]
    kept = np.isfinite(alignment).all(0)  # a start of rank 1 and full norm may explode
    lost = f"; {int((~kept).sum())} of {cfg.seeds} seeds diverged" if not kept.all() else ""
    name = "recurrent: paired KA(full) - KA(rank 1)"
    if cfg.rank[0] != 1 or cfg.rank[-1] != cfg.units or cfg.seeds < 4:
        out.append(Claim.not_applicable(name, "figure 2", "needs ranks 1 and N, and four seeds"))
    elif kept.mean() < 0.5:  # the survivors are no fair sample
        out.append(Claim.at_least(name, "figure 2", np.nan, 0.0, note=lost[2:]))
    else:
        gap = (alignment[-1] - alignment[0])[kept]
        means = ", ".join(f"{value:.2f} (rank {rank})" for rank, value in zip(cfg.rank, alignment[:, kept].mean(-1)))
        note = f"full > rank 1 in {int((gap > 0).sum())} of {gap.size}; mean KA {means}{lost}"
        out.append(Claim.at_least(name, "figure 2", gap, 0.0, rivals={"rank has no effect": 0.0}, note=note))
    name = "recurrent: worst final accuracy (every rank learns the task)"
    start, end = np.mean(np.nan_to_num(recurrent["accuracy"]), -1)  # [ranks]; a seed that diverged has learnt nothing
    untrained = {"untrained networks": start.max()}
    out.append(Claim.at_least(name, "figure 2", end.min(), 0.9, rivals=untrained, note=lost[2:]))
    ka = linear["kernel_alignment"][1]  # [ranks + 1, tasks]
    name = "linear net: KA rises with rank, smallest paired rise"
    if len(cfg.linear_rank) < 2 or cfg.tasks < 2:
        out.append(Claim.not_applicable(name, "theorem 1", "needs two ranks and two tasks"))
    else:
        rises = np.diff(ka[:-1], axis=0)
        smallest = rises[np.argmin(rises.mean(-1) / np.maximum(rises.std(-1), 1e-9))]
        note = "KA " + ", ".join(f"{value:.2f}" for value in ka[:-1].mean(-1))
        out.append(Claim.at_least(name, "theorem 1", smallest, 0.0, rivals={"rank has no effect": 0.0}, note=note))
    name = "linear net: paired KA(aligned rank 1) - KA(lowest random rank)"
    if cfg.tasks < 2:
        out.append(Claim.not_applicable(name, "section 3.2", "needs two tasks"))
    else:
        note = f"aligned {ka[-1].mean():.2f}, random {ka[0].mean():.2f}"
        rivals = {"the task's direction has no effect": 0.0}
        out.append(Claim.at_least(name, "section 3.2", ka[-1] - ka[0], 0.0, rivals=rivals, note=note))
    theory, blind = (result.records["linear theory"].values[key][0] for key in ("kernel_alignment", "blind"))
    between = np.sum((ka - ka.mean(-1, keepdims=True)) ** 2)
    explained, blindly = (1 - np.sum((ka - one) ** 2) / between for one in (theory, blind))
    name = "linear net: mean KA against its closed form, largest deviation over ranks"
    note = f"of the variance between tasks it explains {explained:.2f}, and {blindly:.2f} blind to each task's share"
    off = ka.mean(-1) - theory.mean(-1)  # [ranks + 1]
    flat = ka.mean(-1) - theory[:-1].mean()
    rivals = {"rank has no effect": np.abs(flat).max()}
    out.append(
        Claim.at_most(name, "conservation of w_2 w_2^T - W_1 W_1^T", np.abs(off).max(), 0.02, rivals=rivals, note=note)
    )
    name = "linear net: one task's KA against its closed form, mean deviation over ranks"
    if cfg.tasks < 2:
        return [*out, Claim.not_applicable(name, "conservation of w_2 w_2^T - W_1 W_1^T", "needs two tasks")]
    exact, unseen, same = (np.abs(ka - one).mean(0) for one in (theory, blind, theory[:-1].mean(0)))
    rivals = {"blind to each task's share": unseen, "rank has no effect": same}
    note = "the worst tasks are hardly seen by a start of rank 1, far from the closed form's limit w_2 -> 0"
    out.append(Claim.at_most(name, "conservation of w_2 w_2^T - W_1 W_1^T", exact, 0.005, rivals=rivals, note=note))
    return out


def figure(result: Result):
    """Alignment of the kernel's end with its start against rank, for both networks; the linear one over its theory."""
    cfg = result.config
    fig, (recurrent, linear) = new_figure(1, 2)
    values = result.records["recurrent"].values
    for name, marker, shift in (("kernel_alignment", "o", 0.95), ("representation_alignment", "s", 1.05)):
        rows = values[name][1][:, np.isfinite(values["kernel_alignment"][1]).all(0)]  # seeds that diverged aside
        half = 2 * rows.std(-1) / np.sqrt(max(rows.shape[-1], 1))
        style = dict(fmt=marker + ":", color="black", mfc="white", lw=1, label=name.replace("_", " "))
        recurrent.errorbar(shift * np.asarray(cfg.rank), rows.mean(-1), half, **style)
    recurrent.set(xscale="log", xlabel="rank of W_0", ylabel="alignment of end with start")
    recurrent.set_title("recurrent network (dotted: guide to the eye)", fontsize=9)
    rows = result.records["linear"].values["kernel_alignment"][1]
    predicted = result.records["linear theory"].values["kernel_alignment"][0].mean(-1)
    half = 2 * rows.std(-1) / np.sqrt(cfg.tasks)
    linear.errorbar(
        cfg.linear_rank, rows[:-1].mean(-1), half[:-1], fmt="o", color="black", mfc="white", label="random start"
    )
    linear.plot(cfg.linear_rank, predicted[:-1], label="closed form", **theory_style())
    linear.axhline(predicted[:-1].mean(), label="rank has no effect", **rival_style())
    linear.errorbar([1], [rows[-1].mean()], [half[-1]], fmt="^", color="black", mfc="white", label="along the task")
    linear.plot([1], [predicted[-1]], "_", color="black", ms=16)
    linear.set(xscale="log", xlabel="rank of W_1", ylabel="kernel alignment")
    linear.set_title("two-layer linear network (lines: theory)", fontsize=9)
    for ax, ranks in ((recurrent, cfg.rank), (linear, cfg.linear_rank)):
        ticks_at(ax.xaxis, ranks)
        ax.legend(fontsize=8, loc="lower right")
    return fig


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
