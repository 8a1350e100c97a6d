"""Heavy ball at its own edge of stability (Cohen, Kaur, Li, Kolter & Talwalkar 2021, section 3 and appendix B).

``m <- g + beta m``, ``w <- w - eta m`` on the loss ``(1/2n) sum_i |f_i - y_i|^2``: the sharpness rises to
(2 + 2 beta)/eta, which is 3.8/eta at beta = .9, and hovers there (figure 4). Digits, three tanh layers of 50.

A crossing by 1 or 2 % sets off an oscillation that cuts the sharpness by up to a fifth before it dies out, and
progressive sharpening restores it: the mean lies somewhat below the threshold, the more so the slower the sharpening
(300 samples at the same rates: .78 to .99 by seed; 1000: .90 to .99). From eta = .6 on some starts diverge.

Theory is the threshold, and the central flow with its oscillation carried, which follows the bursts; in balance it
would stay at the threshold, but momentum makes that balance unstable (``dynamics.evolve.central_flow``).

Run time: about 40 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Annotated, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from dynamics import config
from dynamics.config import Count, NonNegative, Positive
from dynamics.evolve import CentralStart, central_flow, gradient_descent
from dynamics.evolve import simulate as in_memory_simulate
from dynamics.evolve import study as in_memory
from dynamics.observe import sharpness
from dynamics.runs.figures import rival_style
from dynamics.stability import gradient_descent_threshold, momentum_threshold
from dynamics.types import Claim, Record

from ._central import central_claims, check_flow, draw_central, run_central
from ._digits import falling_claims, hovering_claims, ratio_figure, train_grid

SOURCE = (
    "Cohen, Kaur, Li, Kolter & Talwalkar 2021, "
    "'Gradient descent on neural networks typically occurs at the edge of stability'"
)
SECONDS = 40


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Count] = 3
    """number of initialisations"""
    eta: Annotated[tuple[float, ...], Positive] = (0.45, 0.5)
    """learning rate eta"""
    beta: Annotated[float, config.Range(0, 1, open_high=True)] = 0.9
    """momentum beta"""
    samples: Annotated[int, config.Range(20, 1797)] = 1000
    """training digits n"""
    width: Annotated[int, Count] = 50
    """tanh units of a hidden layer"""
    depth: Annotated[int, Count] = 3
    """hidden layers"""
    steps: Annotated[int, Count] = 800
    """gradient steps"""
    record_every: Annotated[int, Count] = 10
    """steps between two readings of the sharpness"""
    flow_steps: Annotated[int, NonNegative] = 200
    """length of the central flow, in steps of the largest eta; 0 leaves it out"""
    flow_rank: Annotated[int, Count] = 3
    """eigenvectors k that may oscillate in the central flow"""

    @classmethod
    def large(cls) -> Config:
        """Two hidden layers of 200 on 1000 digits, some ten minutes on two cores; the paper has 5000 of CIFAR-10."""
        return cls(samples=1000, width=200, depth=2, eta=(0.1, 0.2), steps=4000, flow_steps=400)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flow(self)


class Result(NamedTuple):
    """``records['descent']``: sharpness, its residual and upper bound, and loss, ``[T, etas, seeds]``."""

    config: Config
    records: dict[str, Record]


def run(config: Config, study=in_memory, simulate=in_memory_simulate) -> Result:
    """Trains every (eta, seed) as one program, then the central flow beside the largest eta's first seed."""

    def make(L, eta):
        return gradient_descent(L, eta, momentum=config.beta)

    def read(eta):
        return [sharpness(num_matvecs=8)]

    def beside(L, eta):
        return make(L, eta), partial(central_flow, L, eta, momentum=config.beta, k=config.flow_rank), first

    def first(state):
        return CentralStart(state.params, trace=state.opt_state[0].trace)

    result = Result(config, {"descent": train_grid(config, make, read, study)})
    result.records.update(run_central(config, result.records["descent"], ratio(result), beside, simulate))
    return result


def claims(result: Result) -> list[Claim]:
    cfg, over, source = result.config, ratio(result), "figure 4"
    threshold = momentum_threshold(1.0, cfg.beta)
    levels = {
        "2/eta, without momentum": gradient_descent_threshold(1.0) / threshold,
        "Nesterov's threshold": momentum_threshold(1.0, cfg.beta, nesterov=True) / threshold,
    }
    found = hovering_claims(over, cfg, source, 0.9, 1.1, "sharpness x eta / (2 + 2 beta)", levels if cfg.beta else {})
    found += falling_claims(result.records["descent"], over, cfg, source)
    return found + central_claims(result.records, cfg, over)  # carried, the oscillation moves the flow's sharpness


def ratio(result: Result) -> np.ndarray:
    """Sharpness over its threshold, ``[T, etas, seeds]``."""
    threshold = momentum_threshold(np.asarray(result.config.eta)[:, None], result.config.beta)
    return np.asarray(result.records["descent"].values["sharpness"]) / threshold


def figure(result: Result) -> Figure:
    """Loss and sharpness along training, over the threshold, gradient descent's and two flows."""
    record, threshold = result.records["descent"], momentum_threshold(max(result.config.eta), result.config.beta)
    picture = ratio_figure(result.config, record, ratio(result), "sharpness / threshold", r"$(2+2\beta)/\eta$")
    level = gradient_descent_threshold(max(result.config.eta)) / threshold
    picture.axes[1].axhline(level, **rival_style(), label=r"$2/\eta$, without momentum")
    draw_central(picture, result.records, 1 / threshold)
    picture.axes[1].legend(fontsize=7)
    return picture


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
