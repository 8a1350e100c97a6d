"""A toy experiment for tests of the command line and of sweeps: gradient descent on a quadratic, in closed form.

``x_k = (1 - eta a)^k x_0``.
"""

import dataclasses
import os
import time
from typing import Annotated, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from dynamics import config
from dynamics.config import Count, Positive, Range
from dynamics.evolve import every, study
from dynamics.statistics import first_step
from dynamics.types import Claim, Dynamics, Record

SOURCE = "a textbook"
SECONDS = 1


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    eta: Annotated[tuple[float, ...], Range(0, 10, open_low=True, unit="1/a")] = (0.1, 0.5)
    """learning rate eta"""
    curvature: Annotated[float, Positive] = 1.0
    """curvature a"""
    steps: Annotated[int, Count] = 20
    """updates"""
    width: Annotated[int, Range(1, 64)] = 3
    """copies of x: another shape"""
    start: Literal["one", "two"] = "one"
    """x_0"""
    fail: Literal["", "claim", "run", "late"] = ""
    """what goes wrong, for the tests"""

    @classmethod
    def paper(cls):
        """A longer run; a second."""
        return cls(steps=40)


class Result(NamedTuple):
    config: Config
    records: dict[str, Record]


def decay(eta, curvature):
    return Dynamics(lambda x: x, lambda key, x, data: x - eta * curvature * x, lambda x: x, eta)


def run(config, study=study):
    if os.environ.get("TOY_SLOW"):
        time.sleep(float(os.environ["TOY_SLOW"]))
    if config.fail == "run":
        raise RuntimeError("the run fails as asked")
    start = 1.0 if config.start == "one" else 2.0
    record = study(
        {"eta": config.eta, "seed": range(config.seeds)},
        draw=lambda lane: jnp.full(config.width, start),
        make=lambda lane: decay(lane.eta, config.curvature),
        read=lambda lane: [lambda x, data: {"x": x[0], "all": x}],
        steps=config.steps,
        record_at=every(max(5, config.steps // 20), config.steps),
        data=jnp.zeros(()),
        label="decay",
    )
    return Result(config, {"decay": record})


def claims(result):
    made, record = [], result.records["decay"]
    for eta in result.config.eta:
        rate = 1 - eta * result.config.curvature
        start = 1.0 if result.config.start == "one" else 2.0
        wrong = 1.0 if result.config.fail == "claim" else 0.0
        with np.errstate(over="ignore"):
            expected = start * rate**record.step
        error = np.max(np.abs(record.at(eta=eta, seed=0).values["x"] - expected)) + wrong
        made.append(Claim.at_most(f"error at eta = {eta:g} <b>", "eq. 1", error, 1e-5))
    if result.config.fail == "late":
        low = first_step(record.step, record.values["x"][:, 0], 1e-30)
        made.append(Claim.at_most("time to fall", "eq. 1", low, 1e9).within(record, low, due=result.config.due()))
    made.append(Claim.not_applicable("one more", "eq. 2", "needs three learning rates"))
    return made


def figure(result):
    from dynamics.runs.figures import measured_style, new_figure

    made, axes = new_figure()
    record = result.records["decay"]
    for i, eta in enumerate(result.config.eta):
        label = f"eta = {eta:g}"
        axes.plot(
            record.step,
            record.at(eta=eta, seed=0).values["x"],
            label=label,
            **measured_style(i, len(result.config.eta)),
        )
    axes.set(xlabel="step", ylabel="x", xticks=[0, result.config.steps], yticks=[0, 1])  # few, which draws faster
    axes.legend(loc="upper right")
    return made


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__file__)
