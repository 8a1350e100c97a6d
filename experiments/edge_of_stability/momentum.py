"""Heavy ball at its own edge of stability (Cohen, Kaur, Li, Kolter & Talwalkar 2021, section 3 and appendix B).

``m <- g + beta m``, ``w <- w - eta m`` on the loss ``(1/2n) sum_i |f_i - y_i|^2``: the sharpness rises to
(2 + 2 beta)/eta, which is 3.8/eta at beta = .9, and hovers there (figure 4). Digits, three tanh layers of 50.

A crossing by 1 or 2 % sets off an oscillation that cuts the sharpness by up to a fifth before it dies out, and
progressive sharpening restores it: the mean lies somewhat below the threshold, the more so the slower the sharpening
(300 samples at the same rates: .78 to .99 by seed; 1000: .90 to .99). From eta = .6 on some starts diverge.

Run time: about 30 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from dynamics import config
from dynamics.config import Count, Positive
from dynamics.evolve import gradient_descent
from dynamics.evolve import simulate as in_memory
from dynamics.losses import half_mse
from dynamics.observe import readout, sharpness
from dynamics.stability import momentum_threshold
from dynamics.types import Claim, Record
from experiments.edge_of_stability._digits import hovering_claims, ratio_figure, train_grid

SOURCE = (
    "Cohen, Kaur, Li, Kolter & Talwalkar 2021, "
    "'Gradient descent on neural networks typically occurs at the edge of stability'"
)
SECONDS = 30


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

    @classmethod
    def paper(cls) -> Config:
        """Two hidden layers of 200 on 1000 digits."""
        return cls(samples=1000, width=200, depth=2, eta=(0.1, 0.2), steps=4000)


class Result(NamedTuple):
    """``records['descent']``: sharpness, its residual and upper bound, and loss, ``[T, etas, seeds]``."""

    config: Config
    records: dict[str, Record]


def run(config: Config, simulate=in_memory) -> Result:
    """Trains every (eta, seed) as one program."""

    def make(apply, eta):
        return gradient_descent(apply, half_mse, eta, momentum=config.beta)

    def observe(apply, dynamics, eta):
        return readout(dynamics, sharpness(apply, half_mse, num_matvecs=8))

    return Result(config, {"descent": train_grid(config, make, observe, simulate)})


def claims(result: Result) -> list[Claim]:
    return hovering_claims(ratio(result), result.config, "figure 4", 0.9, 1.1, "sharpness x eta / (2 + 2 beta)")


def ratio(result: Result) -> np.ndarray:
    """Sharpness over its threshold, ``[T, etas, seeds]``."""
    threshold = momentum_threshold(np.asarray(result.config.eta)[:, None], result.config.beta)
    return np.asarray(result.records["descent"].values["sharpness"]) / threshold


def figure(result: Result) -> Figure:
    """Loss and sharpness along training, over the threshold."""
    record = result.records["descent"]
    return ratio_figure(result.config, record, ratio(result), "sharpness / threshold", r"$(2+2\beta)/\eta$")


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
