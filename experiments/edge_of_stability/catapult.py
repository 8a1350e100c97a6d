"""The catapult mechanism of large learning rates (Lewkowycz, Bahri, Dyer, Sohl-Dickstein & Gur-Ari 2020).

With lambda_0 the curvature at the start, gradient descent at ``eta < 2/lambda_0`` is lazy; for ``2/lambda_0 < eta <
4/lambda_0`` the loss first grows, the curvature falls below 2/eta, and training then converges; beyond, a linear
network diverges. Exact for ``f = n^(-1/2) u.v`` on one sample with target 0 (equations 4 and 5), lambda = (|u|^2 +
|v|^2)/n:

    f <- f (1 - eta lambda + eta^2 f^2 / n),   lambda <- lambda + (eta f^2 / n)(eta lambda - 4).

While f^2 is small beside n, f grows by ``1 - eta lambda_0`` a step and the loss by its square. On other networks the
same factor acts on the component along the top eigenvector, and the loss grows once that dominates: at 2.5 in most
starts, at 3 in all. Nearer to 4 a network this narrow diverges from some starts (on digits, half of them at 3.5): those
are counted, and what is claimed at such a rate is claimed of the others.

Measured: that network against its recursion, also beyond 4, and a ReLU network on two classes of digits, loss ``(1/2n)
sum |f - y|^2``. Rivals: the recursion with a term dropped, a curvature that stays (which diverges above 2), and the
lazy rate.

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
from dynamics.runs.figures import measured_style, new_figure, rival_style, theory_style
from dynamics.tasks import images
from dynamics.types import Batch, Claim, Dynamics, Objective, Observable, Record

from ._digits import held_out, learnt_claim

SOURCE = "Lewkowycz, Bahri, Dyer, Sohl-Dickstein & Gur-Ari 2020, 'The large learning rate phase of deep learning'"
SECONDS = 30
BEYOND = 4.5  # eta lambda_0 at which the linear network diverges
SURE = 3.0  # eta lambda_0 from which the loss on digits grows from every start


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
    def large(cls) -> Config:
        """Width 512, finer ratios, six starts: five minutes of a core. The paper has widths to 2048 on MNIST, and wide
        residual networks on CIFAR-10."""
        return cls(width=512, samples=150, ratio=(0.5, 1.0, 1.5, 2.5, 3.0, 3.5), seeds=6, steps=600)


class Result(NamedTuple):
    """``records['digits']``, ``['linear']`` and ``['theory']``: loss, and ``edge`` = curvature x eta / 2, ``[T, ratios,
    seeds]``; the latter two at ``BEYOND`` besides, and with ``amplitude = (eta f)^2 / n``."""

    config: Config
    records: dict[str, Record]


def run(config: Config, study=in_memory) -> Result:
    """Digits with a ReLU network, then the linear network and its exact recursion."""
    return Result(config, {"digits": run_digits(config, study), **run_linear(config, study)})


def sweep(config: Config, study, label: str, data, draw, make, read, interval: int = 1, more=(), test=()) -> Record:
    """Runs every (ratio, seed), with ``more`` ratios, as one program, reading every ``interval`` steps."""
    axes, at = {"ratio": (*config.ratio, *more), "seed": range(config.seeds)}, every(interval, config.steps)
    key = jax.random.key(config.seed)
    return study(axes, draw, make, read, test=test, steps=config.steps, record_at=at, key=key, data=data, label=label)


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

    test = [] if data.test is None else [held_out(L)]
    return sweep(config, study, "digits", data, draw, make, read, config.record_every, test=test)


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

    def values(f, lam, lane):
        eta = rate(lane)
        return {"loss": f**2 / 2, "edge": lam * eta / 2, "amplitude": (eta * f) ** 2 / n}

    def read(lane):
        return [lambda w, _: values(f(w), curvature(w), lane)]

    def read_theory(lane):
        return [lambda state, _: values(state[0], state[1], lane)]

    def descent(lane):
        return gradient_descent(L, rate(lane))

    L, data = Objective(lambda params, x: f(params) * x, half_mse), Batch(jnp.ones((1, 1)), jnp.zeros((1, 1)))
    return {
        "linear": sweep(config, study, "linear", data, draw, descent, read, more=[BEYOND]),
        "theory": sweep(config, study, "theory", data, draw_theory, recursion, read_theory, more=[BEYOND]),
    }


def dropped(linear: Record, term: str) -> np.ndarray:
    """The curvature x eta / 2 ``[T, ratios, seeds]`` of the recursion from the same starts, with a term left out.

    With ``x = eta lambda`` and the amplitude ``S = (eta f)^2 / n`` it is ``S <- S (1 - x + S)^2``, ``x <- x + S (x -
    4)``; without ``feedback`` the first lacks S in the bracket, without ``second order`` the other lacks x.
    """
    S, x = (np.asarray(linear.values[name], float)[0] for name in ("amplitude", "edge"))
    x, path = 2 * x, []
    for _ in linear.step:
        path.append(x / 2)
        factor = 1 - x + (0 if term == "feedback" else S)
        S, x = S * factor**2, x + S * ((0 if term == "second order" else x) - 4)
        S, x = np.clip(S, 0, 1e3), np.clip(x, -1e3, 1e3)  # it may diverge
    return np.array(path)


def claims(result: Result) -> list[Claim]:
    """Means over the starts that do not diverge; the lazy rate and the catapult are each other's controls."""
    cfg = result.config
    found = [recursion_claim(result)]
    for kind in ("digits", "linear"):
        lazy, thrown = (
            [i for i, ratio in enumerate(cfg.ratio) if low <= ratio < high] for low, high in ((0, 2), (2, 4))
        )
        for i in (*lazy, *thrown):
            found += ratio_claims(result, kind, i, thrown[-1:] if i in lazy else lazy[:1])
    found += digits_claim(result)
    name = f"linear, eta lambda_0 = {BEYOND:g}: share of starts that diverge"
    gone = ~np.isfinite(np.asarray(result.records["linear"].values["loss"])[-1])  # [ratios, seeds]
    below = [i for i, ratio in enumerate(cfg.ratio) if ratio < 4]
    if below and cfg.steps >= 50:
        rivals = {f"eta lambda_0 = {cfg.ratio[below[-1]]:g}": 1.0 * gone[below[-1]]}
        found.append(Claim.at_least(name, "section 2.1", 1.0 * gone[-1], 0.9, rivals=rivals))
    else:
        found.append(Claim.not_applicable(name, "section 2.1", "needs a ratio below 4, and 50 steps"))
    return found


def digits_claim(result: Result) -> list[Claim]:
    """What is learnt on digits holds for others, at every rate below 4 and from every start that does not diverge."""
    record, rates = result.records["digits"], np.asarray(result.config.ratio) < 4
    if "test_loss" not in record.values or not rates.any():
        return []
    kept = np.isfinite(np.asarray(record.values["loss"])[-1, rates]).all(0)
    if not kept.any():
        return []
    values = {key: np.asarray(record.values[key])[:, rates][..., kept] for key in ("test_loss", "test_shuffled")}
    return [learnt_claim(record._replace(values=values), "section 2.1")]


def recursion_claim(result: Result) -> Claim:
    cfg, (linear, theory) = result.config, (result.records[name] for name in ("linear", "theory"))
    name, source = (
        "linear network against its recursion: curvature x eta / 2, largest deviation",
        "identity: equation 5",
    )
    thrown = [i for i, ratio in enumerate(cfg.ratio) if 2 < ratio < 4]
    if not thrown:
        return Claim.not_applicable(name, source, "no eta lambda_0 between 2 and 4")
    path = np.asarray(linear.values["edge"], float)
    kept = np.isfinite(path[-1, thrown]).all(0)
    if kept.mean() < 0.5:
        return Claim.at_most(name, source, np.nan, 2e-2, note=f"{int((~kept).sum())} of {kept.size} starts diverge")

    def apart(other):
        return np.abs(path[:, thrown] - other[:, thrown])[..., kept].max((0, 1))

    rivals = {"curvature that stays": apart(path[:1])}
    rivals |= {f"without {term}": apart(dropped(linear, term)) for term in ("feedback", "second order")}
    # Float32 rounding grows while the loss does; the curvature itself is of order 1.
    return Claim.at_most(name, source, apart(np.asarray(theory.values["edge"], float)), 2e-2, rivals=rivals)


def ratio_claims(result: Result, kind: str, i: int, control: list[int]) -> list[Claim]:
    """At ratio ``i``, against the ratio ``control``: how the loss grows, and where curvature and loss end."""
    values, ratio = result.records[kind].values, result.config.ratio[i]
    loss, edge = (np.asarray(values[key]) for key in ("loss", "edge"))
    kept = np.isfinite(loss[-1, [i, *control]]).all(0) & (loss[0, i] > 0)
    name, lost = f"{kind}, eta lambda_0 = {ratio:g}", ""
    if not kept.all():
        lost = f"{int((~kept).sum())} of {kept.size} starts diverge"
    if not control or kept.mean() < 0.5:
        note = lost if control else "needs a ratio below 2 and one from 2 to 4"
        found = Claim.not_applicable(f"{name}: largest growth of the loss", "section 2.1", note)
        return [found._replace(measured=np.nan, holds=False) if control else found]
    growth, start = (
        {j: f(j) for j in (i, *control)}
        for f in (lambda j: largest_growth(loss[:, j])[kept], lambda j: np.abs(edge[-1, j] / edge[0, j] - 1)[kept])
    )
    other = f"eta lambda_0 = {result.config.ratio[control[0]]:g}"
    first = f"{name}: largest growth of the loss"
    if ratio < 2:
        second = f"{name}: relative change of the curvature"
        return [
            Claim.at_most(first, "section 2.1", growth[i], 1.0, rivals={other: growth[control[0]]}, note=lost),
            Claim.at_most(second, "section 2.1", start[i], 0.1, rivals={other: start[control[0]]}, note=lost),
        ]
    if kind == "digits" and ratio < SURE:
        risen = Claim.not_applicable(first, "section 2.1", f"from some starts only, below {SURE:g}")
    elif kind == "digits":
        risen = Claim.at_least(first, "section 2.1", growth[i], 1.0, rivals={other: growth[control[0]]}, note=lost)
    else:  # (eta lambda_0 - 1)^2 in a step, but for eta^2 f^2 / n
        rivals = {"its root": abs(ratio - 1), "(eta lambda_0)^2": ratio**2, other: growth[control[0]]}
        risen = Claim.close(
            first, "equation 4, large n", growth[i], (ratio - 1) ** 2, 0.1, relative=True, rivals=rivals, note=lost
        )
    end, peak = (np.log10(np.maximum(x / loss[0, i], 1e-30))[kept] for x in (loss[-1, i], loss[:, i].max(0)))
    final, last = f"{name}: final curvature x eta / 2", f"{name}: final loss over its start, log10"
    rivals = {"it stays": edge[0, i][kept]}
    return [
        risen,
        Claim.at_most(final, "figure 2", edge[-1, i][kept], 1.0, rivals=rivals, note=lost),
        Claim.at_most(last, "figure 1", end, -1.0, rivals={"as at its peak": peak}, note=lost),
    ]


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
                label = f"$\\eta\\lambda_0$ = {ratio:g}" if column == 0 else None
                axes[row, column].plot(record.step, record.values[name][:, i, 0], **style, label=label)
                if kind == "linear":
                    theory = result.records["theory"]
                    axes[row, column].plot(theory.step, theory.values[name][:, i, 0], **theory_style())
        for ratio in (ratio for ratio in cfg.ratio if 2 < ratio < 4):
            last = ratio == [one for one in cfg.ratio if one < 4][-1]
            axes[row, 1].axhline(ratio / 2, **rival_style(), label="curvature that stays" if last else None)
        axes[row, 1].axhline(1, **theory_style(1))
        axes[row, 1].margins(y=0.2)
        axes[row, 0].set(xlabel="step", ylabel=f"training loss ({kind})", yscale="log")
        axes[row, 1].set(xlabel="step", ylabel=r"curvature $\times\ \eta / 2$")
        axes[row, 0].legend()
        axes[row, 1].legend()
    axes[0, 0].set_ylim(1e-4, None)
    axes[1, 0].set_ylim(1e-8, None)
    return picture


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
