"""SGD: batch sharpness at 2/eta (Andreyev & Beneventano 2024), trace below 2/eta (Wu & Su 2023).

(i) Minibatch SGD holds not the sharpness but the batch sharpness ``E[g_B . H_B g_B / |g_B|^2]`` at 2/eta; lambda_1
stays well below. This holds while samples are left to fit: at 300 samples or half of eta they are fitted before the
edge, and the batch sharpness stops below it. (ii) An interpolating minimum that SGD with B = 1 finds on ``(1/2n) sum_i
(f_i - y_i)^2`` is linearly stable only if ``Tr H = (1/n) sum_i |grad f_i|^2 <= 2/eta``: diagonal networks ``f = sum_k
(u_k^2 - v_k^2) x_k`` and two-layer ReLU networks, at rates up to where the bound bites. There full-batch gradient
descent from the same starts keeps about the trace that it started from, up to 2.3 times the bound. At the
largest rate at which SGD interpolates too it is above the bound from every start of the diagonal network and from two
of three of the ReLU network (``note`` of the claims); beyond, SGD does not interpolate.

Run time: about 60 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from dynamics import config, stax
from dynamics.config import Count, Positive
from dynamics.evolve import every, gradient_descent
from dynamics.evolve import study as in_memory
from dynamics.losses import half_mse
from dynamics.observe import batch_sharpness, loss, sharpness
from dynamics.runs.figures import measured_style, new_figure, theory_style
from dynamics.stability import minibatch_threshold, trace_threshold
from dynamics.types import Batch, Claim, Data, Objective, Record

from ._digits import SELDOM, check_data, ends_early, late, learnt_claim, stream, train_grid

SOURCE = (
    "Andreyev & Beneventano 2024, 'Edge of stochastic stability'; "
    "Wu & Su 2023, 'The implicit regularization of dynamical stability in SGD'"
)
SECONDS = 60


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Count] = 3
    """number of initialisations"""
    eta: Annotated[tuple[float, ...], Positive] = (0.8,)
    """learning rate eta on digits"""
    batch_size: Annotated[int, Count] = 8
    """samples a batch B on digits"""
    data: Literal["digits", "cifar10"] = "digits"
    """what is learnt: digits, or cifar10, whose file must be at hand"""
    samples: Annotated[int, config.Range(20, 50_000)] = 1000
    """training samples n"""
    width: Annotated[int, Count] = 50
    """tanh units of a hidden layer"""
    depth: Annotated[int, Count] = 3
    """hidden layers"""
    steps: Annotated[int, Count] = 8000
    """SGD steps on digits"""
    record_every: Annotated[int, Count] = 250
    """steps between two readings on digits"""
    draws: Annotated[int, config.Range(2)] = 256
    """batches a reading of the batch sharpness"""
    diagonal_eta: Annotated[tuple[float, ...], Positive] = (0.03, 0.06, 0.1, 0.15)
    """learning rates on the diagonal network, B = 1 and full batch"""
    relu_eta: Annotated[tuple[float, ...], Positive] = (0.5, 1.0, 2.0, 3.0)
    """learning rates on the ReLU network"""
    single_steps: Annotated[int, Count] = 10000
    """steps of the small networks"""

    @classmethod
    def large(cls) -> Config:
        """Two hidden layers of 100 on all digits; a minute of a core.

        All digits are fitted before batch sharpness comes to 2/eta (.62 of it): the two claims on it fail. At the
        quick preset's rate this network starts beyond the edge, and diverges.
        """
        return cls(eta=(0.4,), samples=1797, width=100, depth=2, steps=24000, record_every=500)

    @classmethod
    def paper(cls) -> Config:
        """Andreyev & Beneventano's fully connected network (two layers of 200) on 8192 samples of CIFAR-10.

        Tanh units and our rate: at .1 it starts beyond 2/eta, batch sharpness 50 and sharpness 80. At .03 the sharpness
        starts above 2/eta = 67 too, and falls to 10. Ten minutes of two cores. Batch sharpness comes to .7 of 2/eta in
        50,000 steps and stays, at a training loss of .004: its claim is not reached; sharpness stays below it.
        """
        sizes = {"data": "cifar10", "samples": 8192, "width": 200, "depth": 2}
        return cls(eta=(0.03,), steps=100_000, record_every=4000, **sizes)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_data(self)
        self.require(self.batch_size <= self.samples, "batch_size", f"at most the {self.samples} samples")


class Result(NamedTuple):
    """``records['descent']``: ``[T, etas, seeds]``; ``['diagonal']``, ``['relu']``: loss and trace, ``[T, batch sizes,
    etas, seeds]``."""

    config: Config
    records: dict[str, Record]


def run(config: Config, study=in_memory) -> Result:
    """SGD on digits, then SGD with single samples on the two small networks."""

    def make(L, eta):
        return gradient_descent(L, eta, batch_size=config.batch_size)

    def read(eta):
        return sharpness(num_matvecs=12), batch_sharpness(config.batch_size, draws=config.draws)

    records = {"descent": train_grid(config, make, read, study)}
    for name in ("diagonal", "relu"):
        records[name] = run_single(config, name, study)
    return Result(config, records)


def small_network(kind: str):
    """``(init, apply)`` on 10 inputs."""
    if kind == "relu":
        model = stax.serial(stax.Dense(50), stax.Relu(), stax.Dense(1))
        return lambda key: model.init(key, (-1, 10))[1], model.apply

    def apply(params, x):
        u, v = params
        return x @ (u**2 - v**2)[:, None]

    return lambda key: tuple(jax.random.uniform(key, (2, 10), minval=0.3, maxval=0.7)), apply


def run_single(config: Config, kind: str, study) -> Record:
    """SGD with B = 1, and full-batch descent, on 8 Gaussian samples of a sparse linear teacher."""
    init, apply = small_network(kind)
    x, key = jax.random.normal(jax.random.key(config.seed + 1), (8, 10)), jax.random.key(config.seed)
    L = Objective(apply, half_mse)

    def trace(params, batch):
        rows = jax.vmap(jax.grad(lambda p, row: apply(p, row[None])[0, 0]), (None, 0))(params, batch.x)
        return {"trace": sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(rows)) / batch.x.shape[0]}

    return study(
        {"batch": (1, len(x)), "eta": getattr(config, f"{kind}_eta"), "seed": range(config.seeds)},
        draw=lambda lane: init(jax.random.fold_in(key, lane.seed)),
        make=lambda lane: gradient_descent(L, lane.eta, batch_size=lane.batch),
        read=(loss(), trace),
        steps=config.single_steps,
        record_at=every(max(1, config.single_steps // 40), config.single_steps),
        key=key,
        data=Data(Batch(x, x[:, :1] - 0.5 * x[:, 1:2])),
        label=kind,
        loop=("batch",),
        stream=stream(config),
    )


def claims(result: Result) -> list[Claim]:
    cfg, values, found = result.config, result.records["descent"].values, []
    source = "Andreyev & Beneventano 2024, figure 1"
    for i, eta in enumerate(cfg.eta):
        batch, top = (
            np.asarray(values[name])[:, i] / minibatch_threshold(eta) for name in ("batch_sharpness", "sharpness")
        )
        error = late(np.asarray(values["batch_sharpness_error"])[:, i]) / minibatch_threshold(eta)
        batch_late, top_late = late(batch).mean(0), late(top).mean(0)
        note = f"standard error of one reading {np.sqrt(np.mean(error**2)):.3f}; {batch[0].mean():.2g} at the start"
        rivals, quick = {"full-batch sharpness": top_late}, Config()
        name = f"eta = {eta:g}: batch sharpness x eta / 2, last third"
        if ends_early(batch, 0.92, cfg.steps * eta, quick.steps * min(quick.eta)):
            found.append(Claim.not_reached(name, source, cfg.steps, "a run ends before it reaches the threshold"))
            continue
        found.append(Claim.close(name, source, batch_late, 1, 0.08, rivals=rivals, note=note))
        name, rivals = f"eta = {eta:g}: sharpness x eta / 2, last third", {"batch sharpness": batch_late}
        found.append(Claim.at_most(name, source, top_late, 0.9, rivals=rivals))
    if "test_loss" in values and cfg.steps * max(cfg.eta) >= 0.8 * Config().steps * max(Config().eta):
        found.append(learnt_claim(result.records["descent"], source, SELDOM))
    for kind in ("diagonal", "relu"):
        name, source = f"{kind}: Tr H x eta / 2 at interpolation, largest over rates", "Wu & Su 2023, theorem 3.1"
        held, values = interpolating(result, kind), result.records[kind].values
        (sgd, full), usual = largest(held), Config().single_steps * max(getattr(Config(), f"{kind}_eta"))
        span = cfg.single_steps * max(getattr(cfg, f"{kind}_eta"))
        if np.isnan(sgd).any() and np.isfinite(values["loss"]).all() and span < 0.8 * usual:
            found.append(Claim.not_reached(name, source, cfg.single_steps, "the runs end before they interpolate"))
            continue
        note = f"{np.isfinite(held[0]).sum()} interpolating runs of {held[0].size}"
        beside = largest(np.where(np.isnan(held[0]), np.nan, held[1]))
        note += f"; full-batch descent at the rates of these {np.array2string(beside, precision=2)}"
        rivals = {"full-batch descent": full}
        found.append(Claim.at_most(name, source, sgd, 1.0, rivals=rivals, note=note))
    return found


def interpolating(result: Result, kind: str) -> np.ndarray:
    """``Tr H x eta / 2 [batch sizes, etas, seeds]``, NaN for the runs that did not end at a loss below 1e-6."""
    values, etas = result.records[kind].values, np.asarray(getattr(result.config, f"{kind}_eta"))
    loss, trace = (np.asarray(values[name])[-1] for name in ("loss", "trace"))
    return np.where(loss < 1e-6, trace / trace_threshold(etas[:, None]), np.nan)


def largest(values) -> np.ndarray:
    """Largest over etas of ``values [..., etas, seeds]`` that are numbers; NaN for a seed without any."""
    found = np.where(np.isnan(values), -np.inf, values).max(-2)
    return np.where(np.isfinite(found), found, np.nan)


def figure(result: Result) -> Figure:
    """Batch sharpness and sharpness on digits; the trace against eta on the small networks."""
    cfg, record = result.config, result.records["descent"]
    picture, (left, right) = new_figure(1, 2)
    for i, (name, label) in enumerate(
        (("batch_sharpness", "batch sharpness"), ("sharpness", r"sharpness $\lambda_1$"))
    ):
        left.plot(record.step, np.asarray(record.values[name])[:, 0, 0], **measured_style(i, 2), label=label)
    left.axhline(minibatch_threshold(cfg.eta[0]), **theory_style(), label=r"$2/\eta$")
    for i, kind in enumerate(("diagonal", "relu")):
        single = np.asarray(getattr(cfg, f"{kind}_eta"))
        for traces, name in zip(interpolating(result, kind), ("B = 1", "full batch"), strict=True):
            style = measured_style(i, 2) | ({} if name == "B = 1" else {"color": "0.6", "zorder": 1})
            rates = np.broadcast_to(single[:, None], traces.shape).ravel()
            right.semilogx(rates, traces.ravel(), **style, label=f"{kind}, {name}")
    right.axhline(1, **theory_style(), label=r"$\mathrm{Tr} H = 2/\eta$")
    left.set(xlabel="step", ylabel=f"curvature on {cfg.data}")
    right.set(xlabel=r"learning rate $\eta$", ylabel=r"Tr H $\times\ \eta/2$ of interpolating runs")
    right.xaxis.set_minor_formatter("")
    left.legend(fontsize=8)
    right.legend(loc="upper left", bbox_to_anchor=(0.42, 1), fontsize=7)
    return picture


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
