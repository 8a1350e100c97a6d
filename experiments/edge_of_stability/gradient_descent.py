"""Gradient descent on neural networks typically occurs at the edge of stability (Cohen, Kaur, Li, Kolter & Talwalkar
2021).

Full-batch gradient descent with step eta on the loss ``L = (1/2n) sum_i |f_i - y_i|^2``: the sharpness lambda_max(H)
first rises (progressive sharpening) until it reaches 2/eta, where a quadratic would diverge, and then hovers there
while the loss keeps falling (figure 1). Every sharpness is recorded with its residual and an upper bound. Theory is
the threshold 2/eta and the central flow of Cohen, Damian et al. 2024, started shortly before the crossing of the
largest eta.

Run time: about 60 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from matplotlib.figure import Figure

from dynamics import config
from dynamics.config import Count, NonNegative, Positive
from dynamics.evolve import central_flow, every, gradient_descent
from dynamics.evolve import simulate as in_memory
from dynamics.losses import half_mse
from dynamics.observe import readout, sharpness
from dynamics.stability import gradient_descent_threshold
from dynamics.types import Claim, Record
from experiments.edge_of_stability._digits import digits, ends_early, late, network, starts, train_grid

SOURCE = (
    "Cohen, Kaur, Li, Kolter & Talwalkar 2021, "
    "'Gradient descent on neural networks typically occurs at the edge of stability'"
)
SECONDS = 60
WINDOW = 10  # steps on either side of a running mean; an even number of periods of the oscillation
CHEAP = 6  # Hessian products of a reading without a certificate


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Count] = 3
    """number of initialisations"""
    eta: Annotated[tuple[float, ...], Positive] = (0.2, 0.3, 0.4)
    """learning rate eta"""
    samples: Annotated[int, config.Range(20, 1797)] = 300
    """training digits n"""
    width: Annotated[int, Count] = 50
    """tanh units of a hidden layer"""
    depth: Annotated[int, Count] = 3
    """hidden layers"""
    steps: Annotated[int, Count] = 2500
    """gradient steps"""
    record_every: Annotated[int, Count] = 20
    """steps between two readings of the sharpness"""
    flow_steps: Annotated[int, NonNegative] = 200
    """length of the central flow, in steps of the largest eta; 0 leaves it out"""
    flow_rank: Annotated[int, Count] = 2
    """eigenvectors k that may oscillate in the central flow"""

    @classmethod
    def paper(cls) -> Config:
        """Two hidden layers of 200 on 1000 digits, long runs, as in the paper's fully connected networks."""
        return cls(seeds=3, eta=(0.1, 0.2, 0.3, 0.4), samples=1000, width=200, depth=2, steps=10000, flow_steps=400)


class Result(NamedTuple):
    """``records['descent']``: ``[T, etas, seeds]``; ``['central']`` and ``['discrete']``: the flow and its lane
    ``[T]``."""

    config: Config
    records: dict[str, Record]


def run(config: Config, simulate=in_memory) -> Result:
    """Trains every (eta, seed) as one program, then the central flow beside the largest eta's first seed."""

    def make(apply, eta):
        return gradient_descent(apply, half_mse, eta)

    def observe(apply, dynamics, eta):
        threshold = gradient_descent_threshold(eta)
        return readout(dynamics, sharpness(apply, half_mse, num_matvecs=CHEAP, threshold=threshold))

    records = {"descent": train_grid(config, make, observe, simulate)}
    if config.flow_steps:
        records |= run_central(config, records, simulate)
    return Result(config, records)


def run_central(config: Config, records, simulate) -> dict[str, Record]:
    """The central flow from the last reading below 80 % of the threshold, and the discrete path beside it."""
    data, model = digits(config.samples, config.seed), network(config.width, config.depth)
    start = jax.tree.map(lambda leaf: leaf[0], starts(model, data.train.x.shape[1], config.seed, 1))
    eta, key = max(config.eta), jax.random.key(config.seed)
    column = np.asarray(records["descent"].values["sharpness"])[:, config.eta.index(eta), 0] * eta / 2
    above = np.flatnonzero(column > 0.8)
    if not above.size:
        return {}
    begin = int(records["descent"].step[max(above[0] - 1, 0)])
    discrete = gradient_descent(model.apply, half_mse, eta)
    state, _ = simulate(discrete, read_loss, discrete.init(start), data, begin, key, [begin], label="approach")
    flow = central_flow(model.apply, half_mse, eta, k=config.flow_rank)
    at, records = every(1, config.flow_steps), {}

    def read_path(state, data):
        return {"params": ravel_pytree(state.params)[0], "loss": loss_of(state.params, data.train)}

    def read_flow(state, data):
        # The mean loss of the oscillating path is L + <H, Sigma> / 2.
        spread = 0.5 * jnp.sum(state.eigenvalues * jnp.diagonal(state.covariance))
        path = read_path(state, data)
        return {**path, "loss": path["loss"] + spread, "sharpness": state.eigenvalues[0]}

    def loss_of(params, batch):
        return half_mse(model.apply(params, batch.x), batch.y)

    for name, dynamics, first, read in (
        ("discrete", discrete, state, read_path),
        ("central", flow, flow.init(discrete.params(state)), read_flow),
    ):
        _, record = simulate(dynamics, read, first, data, config.flow_steps, key, at, label=name)
        records[name] = record._replace(step=np.asarray(record.step) + begin)
    return records


def read_loss(state, data):
    return {"loss": state.loss}


def claims(result: Result) -> list[Claim]:
    cfg, values = result.config, result.records["descent"].values
    ratio = np.asarray(values["sharpness"]) * np.asarray(cfg.eta)[:, None] / 2
    found = []
    for i, eta in enumerate(cfg.eta):
        hovering = late(ratio[:, i]).mean(0)
        name = f"eta = {eta:g}: sharpness x eta / 2 over the last third"
        if ends_early(ratio[:, i], 1, *spans(cfg, eta)):
            found.append(Claim.not_applicable(name, "figure 1", "the run ends before it reaches 2/eta"))
            continue
        note = f"seeds {np.array2string(hovering, precision=3)}"
        found.append(Claim.between(f"{name}, mean", "figure 1", hovering.mean(), 0.9, 1.15, note=note))
        worst = hovering[np.argmax(np.abs(hovering - 1.01))]
        found.append(Claim.between(f"{name}, worst seed", "figure 1", worst, 0.97, 1.05))
        start, end = np.asarray(values["loss"])[[1, -1], i].mean(1)  # the first reading precedes any update
        found.append(Claim.at_most(f"eta = {eta:g}: final loss over its start", "figure 1", end / start, 0.1))
    gap = np.asarray(values["sharpness_upper"]) / np.asarray(values["sharpness"]) - 1
    certified = np.asarray(values["sharpness_matvecs"]) > CHEAP
    name = "upper bound over sharpness - 1 at certified readings, median"
    found.append(Claim.at_most(name, "van Dorsselaer et al. 2000", np.median(gap[certified]), 0.01))
    return found + central_claims(result)


def spans(cfg: Config, eta: float) -> tuple[float, float]:
    """Training time of a run, and the shortest of the quick preset."""
    quick = Config()
    return cfg.steps * eta, quick.steps * min(quick.eta)


def central_claims(result: Result) -> list[Claim]:
    name, source = "central flow: distance to the path's running mean, per unit travelled", "Cohen, Damian et al. 2024"
    if "central" not in result.records:
        cfg, eta = result.config, max(result.config.eta)
        if not cfg.flow_steps:
            return [Claim.not_applicable(name, source, "the flow was left out")]
        first = np.asarray(result.records["descent"].values["sharpness"])[:, cfg.eta.index(eta), :1] * eta / 2
        if ends_early(first, 0.8, *spans(cfg, eta)):
            return [Claim.not_applicable(name, source, "the run ends before it comes near 2/eta")]
        return [Claim.at_most(name, source, np.nan, 0.1, note="the run never came near 2/eta")]
    flow, path = (result.records[k].values for k in ("central", "discrete"))
    w, mean = np.asarray(flow["params"]), smooth(path["params"])
    travelled = np.linalg.norm(np.diff(w, axis=0), axis=1).sum()
    inner = slice(WINDOW, -WINDOW)
    apart = np.linalg.norm((w - mean)[inner], axis=1).max() / travelled
    sharp = np.median(np.asarray(flow["sharpness"])[-20:]) * max(result.config.eta) / 2
    error = np.median(np.abs(np.asarray(flow["loss"]) / smooth(path["loss"]) - 1)[inner])
    return [
        Claim.at_most(name, source, apart, 0.1, note=f"{travelled:.3g} travelled"),
        Claim.at_most("central flow: mean loss of the path, median relative error", source, error, 0.1),
        Claim.between("central flow: sharpness x eta / 2 at its end", source, sharp, 0.9, 1.03),
    ]


def smooth(values, window: int = WINDOW) -> np.ndarray:
    """Running mean along axis 0 over ``window`` readings on both sides, fewer at the ends."""
    values = np.asarray(values, float)
    total = np.cumsum(np.concatenate([np.zeros_like(values[:1]), values]), axis=0)
    last = np.minimum(np.arange(len(values)) + window + 1, len(values))
    first = np.maximum(np.arange(len(values)) - window, 0)
    width = np.reshape(last - first, (-1,) + (1,) * (values.ndim - 1))
    return (total[last] - total[first]) / width


def figure(result: Result) -> Figure:
    """Loss and sharpness along training, over 2/eta and the central flow."""
    from dynamics.runs.figures import measured_style, new_figure, theory_style

    cfg, record = result.config, result.records["descent"]
    picture, (left, right) = new_figure(1, 2)
    for i, eta in enumerate(cfg.eta):
        style = measured_style(i, len(cfg.eta)) | {"markevery": max(1, len(record.step) // 40)}
        left.semilogy(record.step, np.asarray(record.values["loss"])[:, i, 0], **style, label=f"$\\eta$ = {eta:g}")
        right.plot(record.step, np.asarray(record.values["sharpness"])[:, i, 0], **style, label=f"$\\eta$ = {eta:g}")
        right.axhline(2 / eta, **theory_style(1), label="$2/\\eta$" if i == 0 else None)
        certified = np.asarray(record.values["sharpness_matvecs"])[:, i, 0] > CHEAP
        upper = np.where(certified, np.asarray(record.values["sharpness_upper"])[:, i, 0], np.nan)
        bound = {"color": style["color"], "marker": "_", "markersize": 12, "linestyle": "none"}
        right.plot(record.step, upper, **bound, label="certified upper bound" if i == 0 else None)
    if "central" in result.records:
        flow = result.records["central"]
        left.semilogy(flow.step, flow.values["loss"], **theory_style(), label="central flow")
        right.plot(flow.step[1:], flow.values["sharpness"][1:], **theory_style(), label="central flow")
    left.set(xlabel="step", ylabel="training loss")
    right.set(xlabel="step", ylabel=r"sharpness $\lambda_{max}(H)$")
    right.set_ylim(bottom=0)
    left.legend()
    right.legend(loc="lower right", ncols=2)
    return picture


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
