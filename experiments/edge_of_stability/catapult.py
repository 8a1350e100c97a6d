"""The catapult mechanism of large learning rates (Lewkowycz, Bahri, Dyer, Sohl-Dickstein & Gur-Ari 2020).

With lambda_0 the curvature at the start, gradient descent at ``eta < 2/lambda_0`` is lazy; for ``2/lambda_0 < eta <
4/lambda_0`` the loss first grows, the curvature falls below 2/eta, and training then converges; beyond, a linear
network diverges. Exact for ``f = n^(-1/2) u.v`` on one sample with target 0 (equations 4 and 5), lambda = (|u|^2 +
|v|^2)/n:

    f <- f (1 - eta lambda + eta^2 f^2 / n),   lambda <- lambda + (eta f^2 / n)(eta lambda - 4).

While f^2 is small beside n, f grows by ``1 - eta lambda_0`` a step and the loss by its square. On other networks the
same factor acts on the component along the top eigenvector, and the loss grows once that dominates: at 2.5 in most
starts, at 3 in all. Nearer to 4 a network this narrow diverges from some starts (on digits, half of them at 3.5).

Measured: that network against its recursion, and a ReLU network on two classes of digits, loss ``(1/2n) sum |f -
y|^2``.

Run time: about 30 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from dynamics import config, linalg, operators, stax
from dynamics.config import Count, Positive
from dynamics.evolve import Drawn, every, gradient_descent
from dynamics.evolve import study as in_memory
from dynamics.losses import half_mse
from dynamics.observe import loss, top_eigenvalue
from dynamics.runs.figures import measured_style, new_figure, theory_style
from dynamics.tasks import images
from dynamics.types import Batch, Claim, Dynamics, Objective, Observable, Record

SOURCE = "Lewkowycz, Bahri, Dyer, Sohl-Dickstein & Gur-Ari 2020, 'The large learning rate phase of deep learning'"
SECONDS = 30


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Count] = 4
    """number of initialisations"""
    ratio: Annotated[tuple[float, ...], Positive] = (1.0, 2.5, 3.0)
    """eta lambda_0: learning rate in units of the inverse curvature at the start"""
    width: Annotated[int, Count] = 256
    """hidden units n"""
    samples: Annotated[int, config.Range(10, 300)] = 60
    """training digits of the classes 0 and 1"""
    steps: Annotated[int, Count] = 300
    """gradient steps"""
    record_every: Annotated[int, Count] = 2
    """steps between two readings on digits"""

    @classmethod
    def paper(cls) -> Config:
        """Width 1024, finer ratios."""
        return cls(width=1024, samples=300, ratio=(0.5, 1.0, 1.5, 2.5, 3.0, 3.5), seeds=5, steps=1000)


class Result(NamedTuple):
    """``records['digits']``, ``['linear']`` and ``['theory']``: loss, and ``edge`` = curvature x eta / 2, ``[T, ratios,
    seeds]``."""

    config: Config
    records: dict[str, Record]


def run(config: Config, study=in_memory) -> Result:
    """Digits with a ReLU network, then the linear network and its exact recursion."""
    return Result(config, {"digits": run_digits(config, study), **run_linear(config, study)})


def sweep(config: Config, study, label: str, data, draw, make, read, interval: int = 1) -> Record:
    """Runs every (ratio, seed) as one program, reading every ``interval`` steps."""
    axes, at = {"ratio": config.ratio, "seed": range(config.seeds)}, every(interval, config.steps)
    key = jax.random.key(config.seed)
    return study(axes, draw, make, read, steps=config.steps, record_at=at, key=key, data=data, label=label)


def rate(lane):
    """eta; ``draw`` has found the curvature lambda_0 at the lane's start."""
    return lane.ratio / lane.curvature


def run_digits(config: Config, study) -> Record:
    data = jax.tree.map(
        jnp.asarray, images.digits(config.samples, seed=config.seed, classes=2, target="binary", scale="standard")
    )
    model = stax.serial(stax.Dense(config.width), stax.Relu(), stax.Dense(1))
    L, base = Objective(model.apply, half_mse), jax.random.key(config.seed)

    @jax.jit
    def curvature(params, key):
        matvec, size, *_ = operators.hessian(L, params, data.train)
        return linalg.extreme_eigenvalues(matvec, jax.random.normal(key, (size,)), 30)[0].value

    def draw(lane):
        key = jax.random.fold_in(base, lane.seed)
        params = model.init(key, (-1, data.train.x.shape[1]))[1]
        return Drawn(params, values={"curvature": curvature(params, key)})

    def make(lane):
        return gradient_descent(L, rate(lane))

    def read(lane):
        return loss(), edge(rate(lane))

    return sweep(config, study, "digits", data, draw, make, read, config.record_every)


def edge(eta) -> Observable:
    """Curvature x eta / 2, with its bounds."""

    def operator(view):
        hessian = operators.hessian(view.objective, view.params, view.batch)
        return hessian._replace(matvec=lambda v: eta / 2 * hessian.matvec(v))

    return top_eigenvalue(operator, "edge", num_matvecs=10)


def run_linear(config: Config, study) -> dict[str, Record]:
    n, key = config.width, jax.random.key(config.seed)

    def f(params):
        return jnp.vdot(*params) / n**0.5

    def curvature(params):
        return sum(jnp.sum(leaf**2) for leaf in params) / n

    def draw(lane):
        params = tuple(jax.random.normal(jax.random.fold_in(key, lane.seed), (2, n)))
        return Drawn(params, values={"curvature": curvature(params)})

    def draw_theory(lane):
        params, *_, values = draw(lane)
        return Drawn((f(params), values["curvature"]), values=values)

    def recursion(lane):
        eta = rate(lane)

        def step(key, state, data):
            f, lam = state
            return f * (1 - eta * lam + eta**2 * f**2 / n), lam + eta * f**2 / n * (eta * lam - 4)

        return Dynamics(lambda state: state, step, lambda state: state, eta)

    def read(lane):
        return [lambda w, _: {"loss": f(w) ** 2 / 2, "edge": curvature(w) * rate(lane) / 2}]

    def read_theory(lane):
        return [lambda state, _: {"loss": state[0] ** 2 / 2, "edge": state[1] * rate(lane) / 2}]

    L, data = Objective(lambda params, x: f(params) * x, half_mse), Batch(jnp.ones((1, 1)), jnp.zeros((1, 1)))
    return {
        "linear": sweep(config, study, "linear", data, draw, lambda lane: gradient_descent(L, rate(lane)), read),
        "theory": sweep(config, study, "theory", data, draw_theory, recursion, read_theory),
    }


def claims(result: Result) -> list[Claim]:
    cfg, found = result.config, []
    linear, theory = (result.records[name].values for name in ("linear", "theory"))
    catapults = [i for i, ratio in enumerate(cfg.ratio) if ratio < 4]
    name = "linear network against its recursion: curvature x eta / 2"
    if catapults:
        error = np.abs(np.asarray(linear["edge"]) - theory["edge"])[:, catapults].max()
        # Float32 rounding grows while the loss does; the curvature itself is of order 1.
        found.append(Claim.at_most(name, "equation 5", error, 2e-2))
    else:
        found.append(Claim.not_applicable(name, "equation 5", "every eta lambda_0 diverges"))
    for i, ratio in enumerate(cfg.ratio):
        for kind in ("digits", "linear"):
            loss, edge = (result.records[kind].values[name][:, i] for name in ("loss", "edge"))
            name = f"{kind}, eta lambda_0 = {ratio:g}"
            growth = largest_growth(loss)  # without noise: anything above 1 is growth
            if ratio < 2:
                found.append(Claim.at_most(f"{name}: largest growth of the loss", "section 2.1", growth.max(), 1.0))
            elif ratio < 4:
                found.append(growth_claim(name, growth, ratio, kind))
                found.append(Claim.at_most(f"{name}: final curvature x eta / 2", "figure 2", edge[-1].max(), 1.0))
                found.append(
                    Claim.at_most(f"{name}: final loss over its start", "figure 1", (loss[-1] / loss[0]).max(), 0.1)
                )
    return found


def growth_claim(name: str, growth: np.ndarray, ratio: float, kind: str) -> Claim:
    """The linear network's loss grows by (eta lambda_0 - 1)^2 in a step, but for ``eta^2 f^2 / n``; that on digits
    grows."""
    name = f"{name}: largest growth of the loss"
    if kind == "digits":
        return Claim.at_least(f"{name}, median seed", "section 2.1", np.median(growth), 1.0)
    predicted = (ratio - 1) ** 2
    worst = growth[np.argmax(np.abs(growth - predicted))]
    return Claim.close(name, "equation 4, large n", worst, predicted, 0.1, relative=True)


def largest_growth(loss) -> np.ndarray:
    """Largest ratio of two successive readings of ``loss [T, seeds]``, while the former is above rounding, ``[seeds]``.

    Below ``eps^2`` of the start a residual is a rounding error, or 0.
    """
    loss = np.asarray(loss)
    floor = np.finfo(loss.dtype).eps ** 2 * loss[0]
    falling = np.where(loss[:-1] > floor, loss[:-1], np.inf)
    return np.where(np.isfinite(loss).all(0), (loss[1:] / falling).max(0), np.nan)


def figure(result: Result) -> Figure:
    """Loss and curvature in time: digits, and the linear network over its recursion."""
    cfg = result.config
    picture, axes = new_figure(2, 2)
    for row, kind in enumerate(("digits", "linear")):
        record = result.records[kind]
        for i, ratio in enumerate(cfg.ratio):
            style = measured_style(i, len(cfg.ratio)) | {"markevery": (0.0, 0.03)}
            for column, name in enumerate(("loss", "edge")):
                axes[row, column].plot(
                    record.step, record.values[name][:, i, 0], **style, label=f"$\\eta\\lambda_0$ = {ratio:g}"
                )
                if kind == "linear":
                    theory = result.records["theory"]
                    axes[row, column].plot(theory.step, theory.values[name][:, i, 0], **theory_style())
        axes[row, 1].axhline(1, **theory_style(1))
        axes[row, 0].set(xlabel="step", ylabel=f"training loss ({kind})", yscale="log")
        axes[row, 1].set(xlabel="step", ylabel=r"curvature $\times\ \eta / 2$")
        axes[row, 0].legend()
    axes[0, 0].set_ylim(1e-4, None)
    axes[1, 0].set_ylim(1e-8, None)
    return picture


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
