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

import numpy as np
from matplotlib.figure import Figure

from dynamics import config
from dynamics.config import Count, NonNegative, Positive
from dynamics.evolve import CentralStart, central_flow, gradient_descent
from dynamics.evolve import simulate as in_memory_simulate
from dynamics.evolve import study as in_memory
from dynamics.observe import sharpness
from dynamics.runs.figures import measured_style, new_figure, theory_style
from dynamics.stability import gradient_descent_threshold
from dynamics.types import Claim, Record
from experiments.edge_of_stability._central import central_claims, check_flow, run_central
from experiments.edge_of_stability._digits import ends_early, late, train_grid

SOURCE = (
    "Cohen, Kaur, Li, Kolter & Talwalkar 2021, "
    "'Gradient descent on neural networks typically occurs at the edge of stability'"
)
SECONDS = 60
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

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flow(self)


class Result(NamedTuple):
    """``records['descent']``: ``[T, etas, seeds]``; ``['central']`` and ``['discrete']``: the flow and the run that it
    averages, ``[T]``."""

    config: Config
    records: dict[str, Record]


def run(config: Config, study=in_memory, simulate=in_memory_simulate) -> Result:
    """Trains every (eta, seed) as one program, then the central flow beside the largest eta's first seed."""

    def read(eta):
        return [sharpness(num_matvecs=CHEAP, threshold=gradient_descent_threshold(eta))]

    def beside(L, eta):
        flow = central_flow(L, eta, k=config.flow_rank)
        return gradient_descent(L, eta), flow, lambda state: CentralStart(state.params)

    result = Result(config, {"descent": train_grid(config, gradient_descent, read, study)})
    found = run_central(config, result.records["descent"], ratio(result), beside, simulate)
    result.records.update(found)
    return result


def ratio(result: Result) -> np.ndarray:
    """Sharpness over 2/eta, ``[T, etas, seeds]``."""
    threshold = gradient_descent_threshold(np.asarray(result.config.eta)[:, None])
    return np.asarray(result.records["descent"].values["sharpness"]) / threshold


def claims(result: Result) -> list[Claim]:
    cfg, values = result.config, result.records["descent"].values
    over, found = ratio(result), []
    for i, eta in enumerate(cfg.eta):
        hovering = late(over[:, i]).mean(0)
        name = f"eta = {eta:g}: sharpness x eta / 2 over the last third"
        if ends_early(over[:, i], 1, *spans(cfg, eta)):
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
    found += central_claims(result.records, cfg, over)
    if "central" in result.records:
        sharp = np.median(np.asarray(result.records["central"].values["sharpness"])[-20:]) * max(cfg.eta) / 2
        name = "central flow: sharpness x eta / 2 at its end"
        found.append(Claim.between(name, "Cohen, Damian et al. 2024", sharp, 0.9, 1.03))
    return found


def spans(cfg: Config, eta: float) -> tuple[float, float]:
    """Training time of a run, and the shortest of the quick preset."""
    quick = Config()
    return cfg.steps * eta, quick.steps * min(quick.eta)


def figure(result: Result) -> Figure:
    """Loss and sharpness along training, over 2/eta and the central flow."""
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
